"""Append-only runs and content-addressed blobs; the only file that reads and writes the lines of results/.

``results/<suite>/<run>.jsonl`` holds one JSON object per line::

    {"kind": "header", ...}         `spec.RunHeader`: first line, once
    {"kind": "plan", ...}           `spec.PlanRecord`: what was asked; the last one counts (a suite may grow)
    {"kind": "environment", ...}    `spec.EnvironmentRecord`: one that is not the main one
    {"kind": "artifact", ...}       `artifact.ArtifactRecord`: the bytes that the records after it were measured on
    {"kind": "record", ...}         `spec.Record`: one outcome
    {"kind": "cost", ...}           `costs.CellCost`: what a cell took, and what had been expected of it
    {"kind": "end", ...}            `series.EndRecord`: everything planned has an outcome, and its values; written last

``results/<suite>/blobs/<aa>/<sha256>.<ext>`` holds raw samples. One process writes (an advisory lock proves it); each line
is fsynced before the writer goes on, so that a kill at any moment costs at most the line being written. A torn
last line is set aside in ``<run>.jsonl.torn`` with a warning when the run is opened again.

Every line proves itself (proof.py). A damaged line is left out and named in `Run.damage`; its question counts as not run. When
the run is opened for writing, damaged lines go to ``<run>.jsonl.damaged`` and the file gets a new chain. A finished run has a
seal beside it, ``<run>.jsonl.seal``, with its length in bytes and its last proof: what was cut from its end afterwards shows. A
blob's name is the digest of its bytes and is checked whenever one is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

from harness.artifact import ArtifactRecord
from harness.costs import CellCost
from harness.decode import DecodeError, decode
from harness.errors import BadInput, DamagedBlob, NewerSchema, OlderSchema, StoreError, explained
from harness.files import draft_file, write_atomically
from harness.proof import Chain, Damage, Seal, chained, last_line, read_seal, seal_path, sealed, stated_proof, unsealed
from harness.series import EndRecord, series_of
from harness.spec import SCHEMA, EnvironmentRecord, PlanRecord, Record, RunHeader, to_json

_Line: TypeAlias = dict[str, object]
_Content: TypeAlias = RunHeader | PlanRecord | EnvironmentRecord | ArtifactRecord | Record | CellCost | EndRecord
_T = TypeVar("_T")

_TYPES: Mapping[str, type[_Content]] = {
    "header": RunHeader,
    "plan": PlanRecord,
    "environment": EnvironmentRecord,
    "artifact": ArtifactRecord,
    "record": Record,
    "cost": CellCost,
    "end": EndRecord,
}

_BLOB = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,8}")


class TornLine(UserWarning):
    """The last line of a run file was cut by a crash; it was set aside and its question will be asked again."""


class DamagedLines(UserWarning):
    """Lines of a run file are not as they were written; they are left out and their questions will be asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as stored: header, the last plan, and the newest record of each key, in file order. `environments` lists what
    was installed in environments other than the main one, `artifacts` the bytes that were measured, each by the digest that
    records carry; `costs` what each invocation did for each cell; `damage` what is not as it was written, and was left out;
    `end` the last line that says that all of the plan has an outcome."""

    path: Path
    header: RunHeader
    plan: PlanRecord
    records: tuple[Record, ...]
    end: EndRecord | None
    environments: Mapping[str, EnvironmentRecord] = field(default_factory=dict)
    costs: tuple[CellCost, ...] = ()
    artifacts: Mapping[str, ArtifactRecord] = field(default_factory=dict)
    damage: tuple[Damage, ...] = ()

    @property
    def ended(self) -> bool:
        return self.end is not None

    @property
    def damage_in_words(self) -> tuple[str, ...]:
        """A sentence for each part of the file that is not as it was written."""
        left_out = "that was left out, and the next run asks it again"
        return tuple(f"{self.path.name} is damaged: {found}; {left_out}" for found in self.damage)

    def blob(self, name: str) -> bytes:
        """Raw samples by name; FileNotFoundError when they are not on disk, StoreError when the name is no blob's,
        DamagedBlob when they are not what was stored."""
        return read_blob(self.path.parent, name)


def blob_path(folder: Path, name: str) -> Path:
    if not _BLOB.fullmatch(name):
        raise StoreError(f"{name!r} is no blob name (64 hex digits and an extension)")
    return folder / "blobs" / name[:2] / name


def add_blob(folder: Path, data: bytes, extension: str) -> str:
    """Keeps `data` under its SHA-256 and returns the name; writing the same bytes twice costs nothing."""
    name = f"{hashlib.sha256(data).hexdigest()}.{extension}"
    path = blob_path(folder, name)
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return name
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, lasting=True)
    return name


def read_blob(folder: Path, name: str) -> bytes:
    """See `Run.blob`."""
    data = blob_path(folder, name).read_bytes()
    if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
        raise DamagedBlob(f"{name}: its bytes are not what was stored; measure again with: quant-harness run SUITE")
    return data


def read(path: Path) -> Run:
    """Reads a run file, or the newest run of a results folder. BadInput when there is none, NewerSchema or OlderSchema for a
    run of another schema, StoreError when its header or its plan is damaged."""
    path = newest(path) if path.is_dir() else path
    if not path.is_file():
        raise BadInput(f"{path}: no such results file; make one with: quant-harness run SUITE")
    found = _Found()
    for line in _lines(path):
        if isinstance(line, Damage):
            found.damaged(line)
        elif (cls := _TYPES.get(line.kind)) is not None:
            found.take(_read(cls, line, path))
    run = found.run(path)
    for said in run.damage_in_words:
        warnings.warn(said, DamagedLines, stacklevel=2)
    return run


@dataclass(slots=True)
class _Found:
    """What the lines of a file hold, so far."""

    header: RunHeader | None = None
    plan: PlanRecord | None = None
    end: EndRecord | None = None
    records: dict[str, Record] = field(default_factory=dict)
    environments: dict[str, EnvironmentRecord] = field(default_factory=dict)
    artifacts: dict[str, ArtifactRecord] = field(default_factory=dict)
    costs: list[CellCost] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)

    def take(self, line: _Content) -> None:
        match line:
            case RunHeader():
                self.header = self.header or line
            case PlanRecord():
                self.plan, self.end = line, None
            case Record():
                self.records.pop(line.key, None)
                self.records[line.key] = line
            case EnvironmentRecord():
                self.environments[line.digest] = line
            case ArtifactRecord():
                self.artifacts[line.digest] = line
            case CellCost():
                self.costs.append(line)
            case EndRecord():
                self.end = line

    def damaged(self, damage: Damage) -> None:
        self.damage.append(damage)
        if damage.what == "plan":
            self.plan = None

    def run(self, path: Path) -> Run:
        if self.header is None:
            raise BadInput(f"{path}: is empty; run the suite again with: quant-harness run SUITE")
        if self.plan is None and self.damage:
            raise StoreError(
                f"{path}: its plan is damaged ({'; '.join(map(str, self.damage))}), so that what it lacks is not "
                "known; write the plan anew and measure what is missing with: quant-harness run SUITE"
            )
        return Run(
            path=path,
            header=self.header,
            plan=self.plan or PlanRecord(),
            records=tuple(self.records.values()),
            end=self.end,
            environments=self.environments,
            costs=tuple(self.costs),
            artifacts=self.artifacts,
            damage=tuple(self.damage),
        )


def read_header(path: Path) -> RunHeader | None:
    """The first line of a run file without reading the rest; None when it is not one, or not whole."""
    with path.open("rb") as file:
        first = file.readline()
    if _kind(first) != "header":
        return None
    _check_schema(path, first)
    content = Chain().admit(first)
    try:
        return None if content is None else decode(RunHeader, _object(content))
    except (DecodeError, ValueError):
        return None


def read_end(path: Path) -> EndRecord | Damage | None:
    """The last line of a finished run, read from the file's tail; None for a run that is not finished, Damage for a tail that is
    not as it was written. A table that once was written is right, whatever became of the lines before it."""
    line = last_line(path)
    if line is None or isinstance(line, Damage):
        return line
    if _kind(line) != "end":
        return Damage(line=None, what="end", why="it is sealed, and its last line is no end")
    try:
        return decode(EndRecord, _object(line))
    except (DecodeError, ValueError) as error:
        return Damage(line=None, what="end", why=f"its last line is not what results schema {SCHEMA} says ({error})")


def costs(path: Path) -> Iterator[CellCost]:
    """What cells took, from the run file's lines that say so and are whole; no other line is parsed. BadInput for one that
    says it otherwise."""
    for line in _lines(path):
        if not isinstance(line, Damage) and line.kind == "cost":
            yield _read(CellCost, line, path)


def newest(folder: Path) -> Path:
    """The newest run file of a suite's folder: names begin with the UTC time of their start."""
    runs = sorted(folder.glob("*.jsonl"))
    if not runs:
        raise BadInput(f"{folder}: holds no results (*.jsonl); make some with: quant-harness run SUITE")
    return runs[-1]


class Writer:
    """The single writer of one run file. Opening sets aside what is torn or damaged; a second writer at once is refused."""

    def __init__(self, path: Path, header: RunHeader) -> None:
        self.path = path
        self.folder = path.parent
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self._opened()
        _set_torn_line_aside(self._file, path)
        if _set_damage_aside(path):
            self._file.close()
            self._file = self._opened()
        self._proof = _last_proof(path)
        if not self._proof:
            self._append("header", header)

    def _opened(self) -> IO[bytes]:
        """The file, unbuffered: what could not be written is not tried again when it is closed. Locked until then."""
        with explained(self.folder):
            file = self.path.open("ab+", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise StoreError(f"{self.path}: another quant-harness is writing this run; wait for it or stop it first") from None
        return file

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

    def end(self, *, ended_at: str, questions: int) -> None:
        """Says that everything planned has an outcome, with a table of the values that the file holds, and seals it."""
        run = read(self.path)
        self._append("end", EndRecord(ended_at=ended_at, questions=questions, series=series_of(run.plan, run.records)))
        seal = Seal(size=self._file.seek(0, os.SEEK_END), proof=self._proof)
        with explained(self.folder):
            write_atomically(seal_path(self.path), json.dumps(to_json(seal)) + "\n", lasting=True)

    def blob(self, data: bytes, extension: str) -> str:
        return add_blob(self.folder, data, extension)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, kind: str, line: _Content) -> None:
        data = sealed(content_of(kind, line), self._proof)
        with explained(self.path):
            seal_path(self.path).unlink(missing_ok=True)  # it is not finished any more
            end = self._file.seek(0, os.SEEK_END)
            try:
                written = self._file.write(data)
                while written < len(data):
                    written += self._file.write(data[written:])
                os.fsync(self._file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(end)
                raise
        self._proof = stated_proof(data) or ""


def content_of(kind: str, line: _Content) -> bytes:
    """A line of a run file without its proof."""
    text = json.dumps({"kind": kind, **to_json(line)}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """A line that is whole, without its proof."""

    number: int
    kind: str
    content: bytes


def _lines(path: Path) -> Iterator[Damage | _Whole]:
    """What a run file holds, line by line. BadInput, NewerSchema, OlderSchema or StoreError for a first line that is no
    header or cannot be read; TornLine as a warning for a last line that was cut, unless the file was finished: then it is
    damage."""
    chain, number, size, torn = Chain(), 0, 0, False
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            size += len(raw)
            kind = _kind(raw)
            if number == 1:
                if kind != "header":
                    raise BadInput(f"{path}: line 1 is not a run header; is this a file of quant-harness?")
                _check_schema(path, raw)
            content = chain.admit(raw)
            if content is not None:
                yield _Whole(number=number, kind=kind, content=content)
            elif number == 1:
                raise StoreError(
                    f"{path}: its first line, which says what was measured where, is not as it was written, so that no "
                    "line below can be trusted; measure again with: quant-harness run SUITE --fresh"
                )
            elif raw.endswith(b"\n"):
                why = "not as it was written, or not where it was written"
                yield Damage(line=number, what=kind, why=why)
            else:
                torn = True
    seal = read_seal(path)
    if isinstance(seal, Damage):
        yield seal
    elif seal is not None and chain.stated != seal.proof:
        yield Damage(
            line=None,
            what="end",
            why=f"it ends otherwise than when it was finished ({size:,} bytes now, {seal.size:,} then)",
        )
    elif torn:
        warnings.warn(f"{path}, line {number}: cut by a crash, ignored", TornLine, stacklevel=3)


_KIND = re.compile(rb'\{"kind":"([a-z]{1,20})"')


def _kind(raw: bytes) -> str:
    """What kind of line it says that it is; empty where it does not say."""
    found = _KIND.match(raw)
    return "" if found is None else found[1].decode()


def _object(content: bytes) -> _Line:
    line = json.loads(content)
    if not isinstance(line, dict):
        raise ValueError("not an object")
    line.pop("kind", None)
    return line


def _read(cls: type[_T], line: _Whole, path: Path) -> _T:
    try:
        return decode(cls, _object(line.content))
    except (DecodeError, ValueError) as error:  # it proves itself, so it was written so
        raise BadInput(
            f"{path}, line {line.number}: not what results schema {SCHEMA} says ({error}); another version wrote it: measure "
            "anew with: quant-harness run SUITE --fresh"
        ) from None


def _check_schema(path: Path, header: bytes) -> None:
    try:
        schema = _object(header).get("schema")
    except ValueError:
        schema = None
    if not isinstance(schema, int) or isinstance(schema, bool):
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


def _set_damage_aside(path: Path) -> bool:
    """Moves damaged lines into `<run>.jsonl.damaged` and writes the others with a new chain; whether there were any. A seal that
    does not fit goes, too."""
    if path.stat().st_size == 0:
        return False
    damage = [found for found in _lines(path) if isinstance(found, Damage)]
    if not damage:
        return False
    numbers = {found.line for found in damage}
    place = path.with_name(path.name + ".damaged")
    with (
        explained(path),
        draft_file(path, lasting=True) as draft,
        draft.open("wb") as kept,
        path.open("rb") as file,
        place.open("ab") as aside,
    ):
        kept.writelines(chained(_sifted(file, numbers, aside)))
    seal_path(path).unlink(missing_ok=True)
    said = "; ".join(map(str, damage[:5])) + ("; ..." if len(damage) > 5 else "")
    warnings.warn(f"{path}: {said}; set aside in {path.name}.damaged, and asked again", DamagedLines, stacklevel=4)
    return True


def _sifted(lines: Iterable[bytes], damaged: Collection[int | None], aside: IO[bytes]) -> Iterator[bytes]:
    """The lines without their proofs, but for those of these numbers, which are written to `aside`."""
    for number, line in enumerate(lines, start=1):
        if number in damaged:
            aside.write(line)
        else:
            yield unsealed(line)


def _last_proof(path: Path) -> str:
    """The proof that the last line states; empty for an empty file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return stated_proof(file.read()) or ""
