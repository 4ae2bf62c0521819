"""The past of a suite: every finished run of its folder, read from its first and its last line, oldest first.

A run that is not finished, or whose header, seal or last line is not as it was written, is named and left out. What became of the
lines between does not matter here: the table in the last line was made when they were whole, and proves itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import store
from harness.errors import HarnessError
from harness.gate.types import Figure, History, Past
from harness.metrics import METRICS
from harness.proof import Damage
from harness.series import EndRecord, SeriesCell, SeriesColumn, machine_identity
from harness.spec import RunHeader

Key = tuple[str, str, str, str]
"""A square's identity, its metric, the metric's subject and definition."""


class LeftOut(UserWarning):
    """A run that is no part of a history, because it is not whole."""


@dataclass(frozen=True, slots=True)
class StoredNight:
    """A finished run as its first and last line say."""

    path: Path
    header: RunHeader
    end: EndRecord
    machine: str = field(init=False)
    _cells: dict[str, int] = field(init=False, repr=False)
    _columns: dict[tuple[str, str, str], SeriesColumn] = field(init=False, repr=False)
    _baselines: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cells: dict[str, int] = {}
        for number, cell in enumerate(self.cells):
            cells.setdefault(cell.identity, number)  # planned twice under one identity, the first counts
        columns = {(c.metric, c.subject, c.definition): c for c in self.end.series.columns}
        baselines = {cell.model: number for number, cell in enumerate(self.cells) if cell.baseline}
        made = (machine_identity(self.header.context), cells, columns, baselines)
        for name, value in zip(("machine", "_cells", "_columns", "_baselines"), made, strict=True):
            object.__setattr__(self, name, value)

    @property
    def run(self) -> str:
        return self.header.run

    @property
    def cells(self) -> tuple[SeriesCell, ...]:
        return self.end.series.cells

    def cell(self, identity: str) -> SeriesCell | None:
        number = self._cells.get(identity)
        return None if number is None else self.cells[number]

    def squares(self) -> Iterator[Key]:
        """Every square with a number that may be shown: of weights that are held dequantized no speed and no memory."""
        for column in self.end.series.columns:
            for number in column.cells:
                if not _withheld(self.cells[number], column):
                    yield self.cells[number].identity, column.metric, column.subject, column.definition

    def value(self, key: Key) -> Figure | None:
        identity, *about = key
        column, number = self._columns.get((about[0], about[1], about[2])), self._cells.get(identity)
        if column is None or number is None or number not in column.cells or _withheld(self.cells[number], column):
            return None
        return _at(column, number)

    def past(self, key: Key) -> Past | None:
        """The square's number beside that of the same run's baseline."""
        own = self.value(key)
        if own is None:
            return None
        base = self._baselines.get(self.cells[self._cells[key[0]]].model)
        beside = None if base is None else self.value((self.cells[base].identity, *key[1:]))
        return Past(
            started_at=self.header.started_at,
            run=self.run,
            value=own.value,
            baseline=None if beside is None else beside.value,
            machine=self.machine,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nights:
    """The finished runs of a folder in the order of their start, and in words which others were left out."""

    nights: tuple[StoredNight, ...]
    left_out: tuple[str, ...] = ()


def read(folder: Path, *, before: str | None = None) -> History:
    """Every square's past, oldest first. `before`: only nights before this run. What is left out is said by a warning."""
    found = nights(folder, before=before)
    for said in found.left_out:
        warnings.warn(said, LeftOut, stacklevel=2)
    return of(found.nights)


def of(past: Sequence[StoredNight]) -> History:
    """The history of these nights."""
    return _History(past)


def nights(folder: Path, *, before: str | None = None) -> Nights:
    """The finished runs of a suite's results folder. `before`: only those before the run of this name; names begin with the UTC
    time of the start."""
    found: list[StoredNight] = []
    left_out: list[str] = []
    for path in sorted(folder.glob("*.jsonl")):
        if before is not None and path.stem >= before:
            continue
        night = _night(path)
        if isinstance(night, str):
            left_out.append(f"{path.name} is left out of the history: {night}")
        else:
            found.append(night)
    return Nights(nights=tuple(sorted(found, key=lambda n: (n.header.started_at, n.run))), left_out=tuple(left_out))


def _night(path: Path) -> StoredNight | str:
    """The run, or why it is none that a history can hold."""
    try:
        header = store.read_header(path)
        if header is None:
            return "it is damaged: its first line is not as it was written"
        end = store.read_end(path)
    except HarnessError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if end is None:
        return "it is not finished"
    if isinstance(end, Damage):
        return f"it is damaged: {end}"
    if header.run != path.stem:
        return f"it is run {header.run} under another name"
    return StoredNight(path, header, end)


class _History(Mapping[Key, tuple[Past, ...]]):
    """Looked up when asked: of a year's million numbers a gate needs few."""

    def __init__(self, past: Sequence[StoredNight]) -> None:
        self._past = past
        self._keys: dict[Key, None] | None = None

    def __getitem__(self, key: Key) -> tuple[Past, ...]:
        found = tuple(one for night in self._past if (one := night.past(key)) is not None)
        if not found:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[Key]:
        if self._keys is None:
            self._keys = {key: None for night in self._past for key in night.squares()}
        return iter(self._keys)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _withheld(cell: SeriesCell, column: SeriesColumn) -> bool:
    row = METRICS.get(column.metric)
    return cell.simulated and row is not None and not row.when_simulated


def _at(column: SeriesColumn, cell: int) -> Figure:
    place = column.cells.index(cell)
    return Figure(value=column.values[place], low=column.lows[place], high=column.highs[place], n=column.counts[place])
