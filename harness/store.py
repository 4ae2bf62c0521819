"""Append-only runs and content-addressed blobs; the only file that reads and writes the lines of results/.

``results/<suite>/<run>.jsonl`` holds one JSON object per line::

    {"kind": "header", ...}         `spec.RunHeader`: first line, once
    {"kind": "plan", ...}           `spec.PlanRecord`: what was asked; the last one counts (a suite may grow)
    {"kind": "environment", ...}    `spec.EnvironmentRecord`: one that is not the main one
    {"kind": "artifact", ...}       `artifact.ArtifactRecord`: the bytes that the records after it were measured on
    {"kind": "record", ...}         `spec.Record`: one outcome
    {"kind": "cost", ...}           `costs.CellCost`: what a cell took, and what had been expected of it
    {"kind": "end", ...}            `spec.EndRecord`: everything planned has an outcome; written last

``results/<suite>/blobs/<aa>/<sha256>.<ext>`` holds raw samples. One process writes (an advisory lock proves it); each line
is flushed and fsynced before the writer goes on, so that a kill at any moment costs at most the line being written. A torn
last line is set aside in ``<run>.jsonl.torn`` with a warning when the run is opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

from harness.artifact import ArtifactRecord
from harness.costs import CellCost
from harness.decode import DecodeError, decode
from harness.errors import BadInput, NewerSchema, OlderSchema, StoreError
from harness.files import write_atomically
from harness.spec import SCHEMA, EndRecord, EnvironmentRecord, PlanRecord, Record, RunHeader, to_json

_Line: TypeAlias = dict[str, object]
_Content: TypeAlias = RunHeader | PlanRecord | EnvironmentRecord | ArtifactRecord | Record | CellCost | EndRecord
_T = TypeVar("_T")

_BLOB = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,8}")


class TornLine(UserWarning):
    """The last line of a run file was cut by a crash; it was set aside and its question will be asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as stored: header, the last plan, and the newest record of each key, in file order. `environments` lists what
    was installed in environments other than the main one, `artifacts` the bytes that were measured, each by the digest that
    records carry; `costs` what each invocation did for each cell."""

    path: Path
    header: RunHeader
    plan: PlanRecord
    records: tuple[Record, ...]
    ended: bool
    environments: Mapping[str, EnvironmentRecord] = field(default_factory=dict)
    costs: tuple[CellCost, ...] = ()
    artifacts: Mapping[str, ArtifactRecord] = field(default_factory=dict)

    def blob(self, name: str) -> bytes:
        """Raw samples by name; FileNotFoundError when they are not on disk, StoreError when the name is no blob's."""
        return blob_path(self.path.parent, name).read_bytes()


def blob_path(folder: Path, name: str) -> Path:
    if not _BLOB.fullmatch(name):
        raise StoreError(f"{name!r} is no blob name (64 hex digits and an extension)")
    return folder / "blobs" / name[:2] / name


def add_blob(folder: Path, data: bytes, extension: str) -> str:
    """Keeps `data` under its SHA-256 and returns the name; writing the same bytes twice costs nothing."""
    name = f"{hashlib.sha256(data).hexdigest()}.{extension}"
    path = blob_path(folder, name)
    if path.exists():
        return name
    with _explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, lasting=True)
    return name


def read(path: Path) -> Run:
    """Reads a run file, or the newest run of a results folder. BadInput when there is none, NewerSchema or OlderSchema for a
    run of another schema."""
    path = newest(path) if path.is_dir() else path
    if not path.is_file():
        raise BadInput(f"{path}: no such results file; make one with: quant-harness run SUITE")
    header: RunHeader | None = None
    plan = PlanRecord()
    records: dict[str, Record] = {}
    environments: dict[str, EnvironmentRecord] = {}
    spent: list[CellCost] = []
    artifacts: dict[str, ArtifactRecord] = {}
    ended = False
    for number, line in _lines(path):
        kind = line.pop("kind", None)
        if number == 1:
            if kind != "header":
                raise BadInput(f"{path}: line 1 is not a run header; is this a file of quant-harness?")
            _check_schema(path, line)
            header = _read(RunHeader, line, path, number)
        elif kind == "plan":
            plan, ended = _read(PlanRecord, line, path, number), False
        elif kind == "record":
            record = _read(Record, line, path, number)
            records.pop(record.key, None)
            records[record.key] = record
        elif kind == "environment":
            environment = _read(EnvironmentRecord, line, path, number)
            environments[environment.digest] = environment
        elif kind == "cost":
            spent.append(_read(CellCost, line, path, number))
        elif kind == "artifact":
            artifact = _read(ArtifactRecord, line, path, number)
            artifacts[artifact.digest] = artifact
        elif kind == "end":
            _read(EndRecord, line, path, number)
            ended = True
    if header is None:
        raise BadInput(f"{path}: is empty; run the suite again with: quant-harness run SUITE")
    return Run(
        path=path,
        header=header,
        plan=plan,
        records=tuple(records.values()),
        ended=ended,
        environments=environments,
        costs=tuple(spent),
        artifacts=artifacts,
    )


def read_header(path: Path) -> RunHeader | None:
    """The first line of a run file without reading the rest; None when it is not one."""
    with path.open("rb") as file:
        first = file.readline()
    try:
        line = json.loads(first)
    except ValueError:
        return None
    if not isinstance(line, dict) or line.pop("kind", None) != "header":
        return None
    _check_schema(path, line)
    try:
        return decode(RunHeader, line)
    except DecodeError:
        return None


def costs(path: Path) -> Iterator[CellCost]:
    """What cells took, from the run file's lines that say so; no other line is parsed. BadInput for one that says it
    otherwise."""
    begin = b'{"kind":"cost"'
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.startswith(begin) and raw.endswith(b"\n"):
                line = json.loads(raw)
                del line["kind"]
                yield _read(CellCost, line, path, number)


def newest(folder: Path) -> Path:
    """The newest run file of a suite's folder: names begin with the UTC time of their start."""
    runs = sorted(folder.glob("*.jsonl"))
    if not runs:
        raise BadInput(f"{folder}: holds no results (*.jsonl); make some with: quant-harness run SUITE")
    return runs[-1]


class Writer:
    """The single writer of one run file. Opening repairs a torn last line; a second writer at once is refused."""

    def __init__(self, path: Path, header: RunHeader) -> None:
        self.path = path
        self.folder = path.parent
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise StoreError(f"{path}: another quant-harness is writing this run; wait for it or stop it first") from None
        _set_torn_line_aside(self._file, path)
        if self._file.seek(0, os.SEEK_END) == 0:
            self._append("header", header)

    def plan(self, plan: PlanRecord) -> None:
        self._append("plan", plan)

    def environment(self, environment: EnvironmentRecord) -> None:
        self._append("environment", environment)

    def artifact(self, artifact: ArtifactRecord) -> None:
        self._append("artifact", artifact)

    def record(self, record: Record) -> None:
        self._append("record", record)

    def cost(self, cost: CellCost) -> None:
        self._append("cost", cost)

    def end(self, end: EndRecord) -> None:
        self._append("end", end)

    def blob(self, data: bytes, extension: str) -> str:
        return add_blob(self.folder, data, extension)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, kind: str, line: _Content) -> None:
        data = line_of(kind, line)
        with _explained(self.path):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())


def line_of(kind: str, line: _Content) -> bytes:
    """A line of a run file, its end included."""
    text = json.dumps({"kind": kind, **to_json(line)}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _lines(path: Path) -> Iterator[tuple[int, _Line]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = json.loads(raw)
            except ValueError:
                if raw.endswith(b"\n"):
                    raise BadInput(
                        f"{path}, line {number}: not valid JSON, so the file was edited or damaged; remove that line to go on"
                    ) from None
                warnings.warn(f"{path}, line {number}: cut by a crash, ignored", TornLine, stacklevel=3)
                return
            if not isinstance(line, dict):
                raise BadInput(f"{path}, line {number}: not an object; is this a file of quant-harness?")
            yield number, line


def _read(cls: type[_T], line: _Line, path: Path, number: int) -> _T:
    try:
        return decode(cls, line)
    except DecodeError as error:
        raise BadInput(
            f"{path}, line {number}: not what results schema {SCHEMA} says ({error}); it was edited, or another version wrote "
            "it: measure anew with: quant-harness run SUITE --fresh"
        ) from None


def _check_schema(path: Path, header: _Line) -> None:
    schema = header.get("schema")
    if not isinstance(schema, int):
        raise BadInput(f"{path}: its header names no schema; is this a file of quant-harness?")
    if schema > SCHEMA:
        raise NewerSchema(
            f"{path}: written with results schema {schema}, this quant-harness reads up to {SCHEMA}; "
            "upgrade it with: pip install --upgrade llm-quant-harness"
        )
    if schema < SCHEMA:
        raise OlderSchema(
            f"{path}: written with results schema {schema}, this quant-harness reads {SCHEMA} and converts none before its first "
            "release; measure again with: quant-harness run SUITE"
        )


def _set_torn_line_aside(file: IO[bytes], path: Path) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    end, step = size, 1 << 16
    while end > 0:  # backwards in chunks: a run file may be large
        start = max(0, end - step)
        file.seek(start)
        cut = file.read(end - start).rfind(b"\n")
        if cut >= 0:
            end = start + cut + 1
            break
        end = start
    file.seek(end)
    torn = file.read()
    with path.with_name(path.name + ".torn").open("ab") as aside:
        aside.write(torn + b"\n")
    file.truncate(end)
    warnings.warn(f"{path}: its last line was cut by a crash; set aside in {path.name}.torn", TornLine, stacklevel=3)


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turns the operating system's refusal into a message that says what to do."""
    try:
        yield
    except PermissionError as error:
        raise StoreError(f"{place}: cannot be written ({error.strerror}); choose another folder with --results DIR") from None
    except NotADirectoryError:
        raise StoreError(f"{place}: a file stands where a folder is needed; choose another with --results DIR") from None
    except FileExistsError:
        raise StoreError(f"{place}: a file stands where a folder is needed; choose another with --results DIR") from None
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            raise StoreError(
                f"{place}: no space left on the disk; free some (quant-harness env remove, or delete old artifacts in the cache "
                "folder), then run the same command again: everything already measured is kept"
            ) from None
        raise StoreError(f"{place}: cannot be written ({error.strerror})") from None
