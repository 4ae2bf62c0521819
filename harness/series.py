"""What a finished run says of itself in its last line: a table of its values, so that a year of runs is read from their tails.

`series_of(plan, records)` makes the table; `store.Writer.end` writes it, and `verify` holds it against the records. Beside it,
what makes things of two runs the same: `square_identity` of a cell, `machine_identity` of what speed and memory depend on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from harness.spec import Cell, Given, Json, Measurement, PlanRecord, Question, Record, RunContext, Served, digest, to_json

NONFINITE = "nonfinite"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesCell:
    """A planned cell. `identity`: see `square_identity`. `environment`: the digest of the packages it was measured with, ''
    where none was named."""

    model: str
    label: str
    method: str
    bits: float
    identity: str
    baseline: bool
    simulated: bool
    environment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesColumn:
    """A metric of a subject under a definition, as equally long columns: at each place the number of a cell in `Series.cells`,
    its value, the ends of its 95 % interval and its count (None where there is none). All values are finite."""

    metric: str
    subject: str
    definition: str
    unit: str
    probe: str
    cells: tuple[int, ...]
    values: tuple[float, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    counts: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFailure:
    """A question of a cell (its number) that has no number: the failure's kind, or `nonfinite` for a value that is none."""

    cell: int
    probe: str
    subject: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A run's values: cells in plan order, columns in the order asked. `suite`: its name. `weights`: digests of the models, by
    name."""

    suite: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[SeriesCell, ...] = ()
    columns: tuple[SeriesColumn, ...] = ()
    failures: tuple[SeriesFailure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRecord:
    """The last line of a finished run: everything planned has an outcome, and these are the values."""

    ended_at: str
    questions: int
    series: Series


def square_identity(cell: Cell) -> str:
    """A digest of what a person would call the same cell in two runs: the model's name, the scheme (of a given checkpoint its
    name and file as well, of a server its address, its name for the model and the command that starts it), and the way of
    running.

    No weights, commits or paths go in: they may change, and a gate asks what that did."""
    origin: dict[str, Json] = {"kind": cell.origin.kind, **cell.scheme.identity()}
    if isinstance(cell.origin, Given):
        origin["checkpoint"] = [cell.origin.checkpoint.name, cell.origin.checkpoint.file]
    elif isinstance(cell.origin, Served):
        origin["server"] = [cell.origin.url, cell.origin.model]
        origin["server"] += [cell.origin.serve, cell.origin.artifact] if cell.origin.serve else []
    return digest([cell.model.name, origin, to_json(cell.running)])


def machine_identity(context: RunContext) -> str:
    """A digest of the hardware that speed and memory depend on: processor, cores, governor, GPUs, device, threads. Only between
    runs where it is equal are they compared. Drivers and kernels may differ: a gate lists them as possible causes."""
    known = context.machine
    parts = {name: known.get(name) for name in ("cpu", "cores", "cores_usable", "governor")}
    gpus = [gpu.get("name") for gpu in known.get("gpus") or () if isinstance(gpu, dict)]
    return digest([parts, gpus, context.device, context.threads])


class Names:
    """Digests of what tells cells and questions apart. A run holds thousands of records of few of them: each is made once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, named: Cell | Question) -> str:
        written = repr(named)  # equal only for equal content, and many times cheaper than a digest
        if written not in self._known:
            self._known[written] = digest(named.identity() if isinstance(named, Cell) else named)
        return self._known[written]


def newest(records: Iterable[Record], names: Names) -> dict[tuple[str, str], Record]:
    """The newest record of each question of each cell, whatever their order: by start, then by key."""
    found: dict[tuple[str, str], Record] = {}
    for record in sorted(records, key=lambda r: (r.started_at, r.key)):
        found[names.of(record.cell), names.of(record.question)] = record
    return found


def series_of(plan: PlanRecord, records: Iterable[Record]) -> Series:
    """The table of a run from its plan and its records, in any order. What was measured and is planned no more is left out."""
    names = Names()
    answers = newest(records, names)
    table = _Table()
    for number, planned in enumerate(plan.cells):
        mine = [(q, answers[key]) for q in planned.questions if (key := (names.of(planned.cell), names.of(q))) in answers]
        for question, record in mine:
            table.take(number, question, record)
        table.cells.append(
            SeriesCell(
                model=planned.cell.model.name,
                label=planned.cell.label,
                method=planned.cell.method,
                bits=planned.cell.bits,
                identity=square_identity(planned.cell),
                baseline=planned.baseline,
                simulated=any(record.simulated for _, record in mine),
                environment=next((r.environment for _, r in reversed(mine) if r.environment), ""),
            )
        )
    return table.series(plan)


@dataclass(slots=True)
class _Table:
    """Values by column and cell, as far as they were taken in."""

    cells: list[SeriesCell] = field(default_factory=list)
    columns: dict[tuple[str, str, str, str, str], dict[int, Measurement]] = field(default_factory=dict)
    failures: list[SeriesFailure] = field(default_factory=list)

    def take(self, cell: int, question: Question, record: Record) -> None:
        probe, subject = question.probe, question.subject
        if record.answer is None:
            self.failures.append(SeriesFailure(cell=cell, probe=probe, subject=subject, kind=record.status))
            return
        for m in record.answer.measurements:
            if math.isfinite(m.value):
                self.columns.setdefault((m.metric, subject, m.definition, m.unit, probe), {})[cell] = m
            else:
                self.failures.append(SeriesFailure(cell=cell, probe=probe, subject=subject, kind=NONFINITE))

    def series(self, plan: PlanRecord) -> Series:
        columns = [
            SeriesColumn(
                metric=metric,
                subject=subject,
                definition=definition,
                unit=unit,
                probe=probe,
                cells=tuple(values),
                values=tuple(m.value for m in values.values()),
                lows=tuple(_finite(m.low) for m in values.values()),
                highs=tuple(_finite(m.high) for m in values.values()),
                counts=tuple(m.n for m in values.values()),
            )
            for (metric, subject, definition, unit, probe), values in self.columns.items()
        ]
        return Series(
            suite=str(plan.suite.get("name", "")),
            weights=plan.weights,
            cells=tuple(self.cells),
            columns=tuple(columns),
            failures=tuple(self.failures),
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
