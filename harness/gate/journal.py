"""The journal of a suite's results: which run was accepted by whom, and which verdicts were kept. `results/SUITE/journal`.

One JSON object a line, each proved as the lines of run files are (proof.py)::

    {"kind": "accepted", "run": ..., "who": ..., "when": ..., "why": ...}
    {"kind": "verdict", "base": ..., "candidate": ..., "green": ..., "alarms": [...], "flaky": [...]}

A line that is not as it was written is named and never used. `journal.seal` beside it says how the journal ended when it was last
written, so that lines cut from its end show. Writers take turns: the file is locked while a line is added.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from harness import store
from harness.decode import DecodeError, decode
from harness.errors import BadInput, HarnessError, StoreError, explained
from harness.files import write_atomically
from harness.gate.types import GateReport
from harness.proof import Chain, Damage, Seal, read_seal, seal_path, sealed, stated_proof
from harness.series import EndRecord, series_of
from harness.spec import to_json

NAME = "journal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A run that is the baseline from now on. `when` is ISO 8601 in UTC."""

    kind: Literal["accepted"] = "accepted"
    run: str
    who: str
    when: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a gate said of two runs: the names of the squares that are worse, and of those that were not seen again."""

    kind: Literal["verdict"] = "verdict"
    base: str
    candidate: str
    green: bool
    alarms: tuple[str, ...] = ()
    flaky: tuple[str, ...] = ()


Line: TypeAlias = Accepted | Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The lines that are whole, oldest first; `damage`: in words, what is not. `doubt`: the damage after the last whole line that
    accepts a run, which may have been one that accepts another; '' where there is none."""

    accepted: tuple[Accepted, ...] = ()
    verdicts: tuple[Kept, ...] = ()
    damage: tuple[str, ...] = ()
    doubt: str = ""

    @property
    def newest(self) -> str | None:
        """The run that was accepted last; None where none was. BadInput where damage leaves that open: an older one would be a
        baseline that nobody chose."""
        if self.doubt:
            raise BadInput(
                f"{self.doubt}. It may have said which run is accepted, and an older one is not taken in its place: name the "
                "baseline again with: quant-harness accept RUN"
            )
        return self.accepted[-1].run if self.accepted else None


def read(folder: Path) -> Journal:
    """The journal of a suite's results folder; an empty one where there is none. Damage is said by a warning, too.
    StoreError for one that cannot be read."""
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); what was accepted is not known without it") from None
    found = _Read(path, data)
    for said in found.damage:
        warnings.warn(said, store.DamagedLines, stacklevel=2)
    return Journal(
        accepted=tuple(line for line in found.lines if isinstance(line, Accepted)),
        verdicts=tuple(line for line in found.lines if isinstance(line, Kept)),
        damage=tuple(found.damage),
        doubt=found.doubt,
    )


def keep_verdict(folder: Path, report: GateReport) -> None:
    """Adds what the gate said, unless the newest line of these two runs says so already."""
    verdict = Kept(
        base=report.base.run,
        candidate=report.candidate.run,
        green=report.green,
        alarms=tuple(f.square.name for f in report.alarms),
        flaky=tuple(f.square.name for f in report.findings if f.cause == "flaky"),
    )
    pair = (verdict.base, verdict.candidate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", store.DamagedLines)
        known = [line for line in read(folder).verdicts if (line.base, line.candidate) == pair]
    if known[-1:] != [verdict]:
        append(folder, verdict)


def accept(path: Path, *, who: str, when: str, why: str = "") -> Accepted:
    """Makes a run file the accepted baseline of its folder. BadInput for one that is not finished, not whole, or not of here."""
    run = store.read(path)
    _check_whole(path, run)
    _check_of_here(path, run)
    line = Accepted(run=run.header.run, who=who, when=when, why=why)
    append(path.parent, line)
    return line


def append(folder: Path, line: Line) -> None:
    """Adds a line; it is on the disk when this returns. Two writers at once take turns."""
    path = folder / NAME
    content = json.dumps(to_json(line), ensure_ascii=False, separators=(",", ":")).encode()
    with explained(path), path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = file.read()
        end = b"" if not before or before.endswith(b"\n") else b"\n"  # a line that was cut stays by itself, and is named
        added = end + sealed(content, _last_stated(before + end))
        try:
            written = 0
            while written < len(added):
                written += file.write(added[written:])
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(len(before))
            raise
        seal = Seal(size=len(before) + len(added), proof=stated_proof(added) or "")
        write_atomically(seal_path(path), json.dumps(to_json(seal)) + "\n", lasting=True)


def _last_stated(data: bytes) -> str:
    """The proof that the next line must follow from."""
    chain = Chain()
    for raw in io.BytesIO(data):
        chain.admit(raw)
    return chain.stated


def _check_whole(path: Path, run: store.Run) -> None:
    """BadInput for a run that is not finished, or not as it was written, raw samples included."""
    if not seal_path(path).is_file():
        raise BadInput(
            f"{path}: is not finished, and only a finished run can be a baseline; finish it with: quant-harness run SUITE"
        )
    wrong = [*map(str, run.damage)]
    if run.end is not None and run.end.series != series_of(run.plan, run.records):
        wrong.append("the table of values in its last line is not what its records say")
    names = {m.blob for r in run.records if r.answer is not None for m in r.answer.measurements if m.blob is not None}
    for name in sorted(names):
        try:
            run.blob(name)
        except FileNotFoundError:
            wrong.append(f"raw samples {name} are not there")
        except (OSError, HarnessError) as error:
            wrong.append(str(error))
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BadInput(f"{path}: is damaged ({wrong[0]}{more}) and cannot be a baseline; see: quant-harness verify {path}")


def _check_of_here(path: Path, run: store.Run) -> None:
    """BadInput for a run whose file has another run's name, or that is of another suite than the folder's baseline so far."""
    if path.stem != run.header.run:
        raise BadInput(f"{path}: is run {run.header.run} under another name; accept it where `quant-harness run` wrote it")
    lines = read(path.parent).accepted
    others = [path.parent / f"{lines[-1].run}.jsonl"] if lines else sorted(path.parent.glob("*.jsonl"))
    suite = str(run.plan.suite.get("name", ""))
    for other in others:
        end = store.read_end(other) if other != path and other.is_file() else None
        if isinstance(end, EndRecord):
            if end.series.suite != suite:
                raise BadInput(
                    f"{path}: is of suite {suite!r}, and {other.name} beside it of {end.series.suite!r}; accept runs of one "
                    "suite in its own folder"
                )
            return


@dataclass(slots=True)
class _Read:
    """What the bytes of a journal hold."""

    path: Path
    data: bytes
    lines: list[Line] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    doubt: str = ""
    proofs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        chain = Chain()
        for number, raw in enumerate(io.BytesIO(self.data), start=1):
            self._take(number, chain.admit(raw))
            self.proofs.add(chain.stated)
        seal = read_seal(self.path)
        if isinstance(seal, Damage):
            self._damaged(str(seal))
        elif seal is not None and seal.proof not in self.proofs:
            self._damaged(f"it ends otherwise than when it was written ({len(self.data):,} bytes now, {seal.size:,} then)")

    def _take(self, number: int, content: bytes | None) -> None:
        if content is None:
            self._damaged(f"line {number}: not as it was written, or not where it was written; that line is not used")
            return
        try:
            line = _decode_line(json.loads(content))
        except (DecodeError, ValueError) as error:
            self._damaged(f"line {number}: not what a journal says ({error}); that line is not used")
            return
        self.lines.append(line)
        self.doubt = "" if isinstance(line, Accepted) else self.doubt

    def _damaged(self, what: str) -> None:
        self.damage.append(f"{self.path} is damaged: {what}")
        self.doubt = self.damage[-1]


def _decode_line(line: object) -> Line:
    kind = line.get("kind") if isinstance(line, dict) else None
    return decode(Accepted, line) if kind == "accepted" else decode(Kept, line)
