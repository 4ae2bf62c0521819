"""A stored run turned into what the report shows: every planned cell x every metric, derived comparisons included.

`view(run)` is pure: it reads the run and its blobs and nothing else. Every planned cell has a `Value` in every column: a number,
or the status that explains why there is none (see `cells`). Comparisons with the baseline of the same model are recomputed from
raw samples, paired by item or window; where samples are missing on disk, the derived number is absent and says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.report.cells import ABSENT, NOT_RUN, OK, SIMULATED, CellView, Column, Outcome, Value, column_key, identity
from harness.report.compare import DERIVED, Derived, compare
from harness.spec import Cell, Json, Measurement, Metric, Record, cell_from_json, digest, question_from_json
from harness.store import Run

WITHHELD_WHEN_SIMULATED = frozenset({"memory", "latency"})
"""Probes whose numbers a cell with dequantized weights never shows, whatever was stored (contract 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupportedCell:
    """A square that cannot exist, and why."""

    cell: Cell
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that the sections, the tidy frame and the terminal table need. Cells in plan order, columns in the order asked."""

    run: str
    suite: str
    title: str
    started_at: str
    context: Json
    commands: tuple[str, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...]
    cells: tuple[CellView, ...]
    columns: tuple[Column, ...]
    unsupported: tuple[UnsupportedCell, ...]
    unplanned: int
    ended: bool
    derived: Derived
    environments: tuple[Json, ...] = ()  # package lists of environments other than the main one

    def column(self, metric: str, subject: str | None = None) -> Column | None:
        """The first column of a metric (and subject)."""
        return next((c for c in self.columns if c.metric.name == metric and subject in (None, c.subject)), None)

    def of(self, *metrics: str) -> list[Column]:
        """All columns of these metrics, in column order."""
        return [c for c in self.columns if c.metric.name in metrics]

    def comparable(self, column: Column) -> bool:
        """Whether others than baselines may have a number there: of a task that is scored until a verdict only the baseline has
        an accuracy."""
        others = [c for c in self.cells if not c.baseline]
        return not others or any(c.values[column.key].status != ABSENT for c in others)

    def baseline_of(self, model: str) -> CellView | None:
        return next((c for c in self.cells if c.baseline and c.model == model), None)


def view(run: Run, metrics: Mapping[str, Metric] | None = None) -> View:
    """Builds the view. `metrics`: rows by name; by default those of all probes. A metric that no row describes is shown as
    stored, without a direction."""
    rows = {**(probe_metrics() if metrics is None else metrics), **DERIVED}
    planned = [(cell_from_json(p["cell"]), p) for p in run.plan["cells"]]
    asked = [tuple(question_from_json(q) for q in p["questions"]) for _, p in planned]
    found = _newest(run.records)
    cells = []
    for index, ((cell, plan), questions) in enumerate(zip(planned, asked, strict=True)):
        outcomes = tuple(Outcome(question=q, record=found.pop((identity(cell), digest(q)), None)) for q in questions)
        simulated = any(o.record is not None and o.record.simulated for o in outcomes)
        cells.append(
            CellView(id=f"c{index}", cell=cell, baseline=bool(plan.get("baseline")), simulated=simulated, outcomes=outcomes)
        )
    measured, squares = _measured(cells, rows)
    derived = compare(run.blob, cells)
    columns = (*measured, *_derived_columns(derived, rows))
    finished = tuple(dataclasses.replace(c, values={**squares[c.id], **derived.values.get(c.id, {})}) for c in cells)
    suite = run.plan.get("suite") or {}
    return View(
        run=str(run.header.get("run", "")),
        suite=str(suite.get("name", "")),
        title=str(suite.get("title", "") or ""),
        started_at=str(run.header.get("started_at", "")),
        context=run.header.get("context") or {},
        commands=tuple(str(c) for c in run.plan.get("commands", [])),
        models=tuple(dict.fromkeys(c.model for c in finished)),
        methods=tuple(dict.fromkeys(c.cell.scheme.method for c in finished)),
        cells=finished,
        columns=columns,
        unsupported=tuple(
            UnsupportedCell(cell=cell_from_json(u["cell"]), reason=str(u["reason"])) for u in run.plan.get("unsupported", [])
        ),
        unplanned=len(found),
        ended=run.ended,
        derived=derived,
        environments=tuple(run.environments[name] for name in sorted(run.environments)),
    )


def probe_metrics() -> dict[str, Metric]:
    """The metric rows of all probes."""
    from harness.probes import PROBES

    return {metric.name: metric for probe in PROBES.values() for metric in probe.metrics}


def _newest(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    """The newest record of each square, whatever their order: by start, then by key."""
    found: dict[tuple[str, str], Record] = {}
    for record in sorted(records, key=lambda r: (r.started_at, r.key)):
        found[identity(record.cell), digest(record.question)] = record
    return found


def _measured(cells: Sequence[CellView], rows: Mapping[str, Metric]) -> tuple[list[Column], dict[str, dict[str, Value]]]:
    """Columns of all measured metrics (every planned question has at least one), and each cell's value in each."""
    columns: dict[str, Column] = {}
    by_question: dict[str, list[str]] = {}
    questions = {digest(o.question): o.question for c in cells for o in c.outcomes}
    samples: dict[str, list[Measurement]] = {key: [] for key in questions}
    for cell in cells:
        for outcome in cell.outcomes:
            if outcome.record is not None and outcome.record.answer is not None:
                samples[digest(outcome.question)].extend(outcome.record.answer.measurements)
    order = {name: place for place, name in enumerate(rows)}
    for key, question in questions.items():
        present = {column_key(m.metric, question.subject, m.definition): m for m in reversed(samples[key])}
        shown = sorted(present.items(), key=lambda pair: (order.get(pair[1].metric, len(order)), pair[0]))
        for name, sample in shown:
            row = rows.get(sample.metric) or Metric(
                name=sample.metric, title=sample.metric, unit=sample.unit, better="neither", definition=sample.definition
            )
            metric = dataclasses.replace(row, unit=sample.unit, definition=sample.definition)
            columns[name] = Column(key=name, metric=metric, subject=question.subject, probe=question.probe, derived=False)
        if not shown:  # nobody has answered it yet: it is drawn all the same
            metric = Metric(name=question.probe, title=question.probe, unit="", better="neither", definition="not measured")
            name = column_key(question.probe, question.subject, metric.definition)
            columns[name] = Column(key=name, metric=metric, subject=question.subject, probe=question.probe, derived=False)
            by_question[key] = [name]
        else:
            by_question[key] = [name for name, _ in shown]
    squares: dict[str, dict[str, Value]] = {}
    for cell in cells:
        mine = squares[cell.id] = {name: _unasked(cell, column) for name, column in columns.items()}
        for outcome in cell.outcomes:
            for name in by_question[digest(outcome.question)]:
                mine[name] = _value(cell, outcome, columns[name])
    return list(columns.values()), squares


def _unasked(cell: CellView, column: Column) -> Value:
    """The value where a cell has no question of the column's. Asked of the same subject in another way (all items, or until a
    verdict), it lacks nothing."""
    if any((o.question.probe, o.question.subject) == (column.probe, column.subject) for o in cell.outcomes):
        return Value(status=ABSENT, reason="this cell is asked another question on this subject")
    return Value(status=NOT_RUN, reason="not asked of this cell")


def withheld(cell: CellView) -> list[Outcome]:
    """What a simulated cell was asked and may not show."""
    return [o for o in cell.outcomes if cell.simulated and o.question.probe in WITHHELD_WHEN_SIMULATED and o.record is not None]


def _value(cell: CellView, outcome: Outcome, column: Column) -> Value:
    record = outcome.record
    if record is None:
        return Value(status=NOT_RUN, reason="planned, no outcome stored yet")
    if (cell.simulated or record.simulated) and outcome.question.probe in WITHHELD_WHEN_SIMULATED:
        return Value(status=SIMULATED, reason="weights are held dequantized: memory and speed would not be those of the scheme")
    if record.failure is not None:
        return Value(status=record.failure.kind, reason=record.failure.message)
    assert record.answer is not None
    for m in record.answer.measurements:
        if column_key(m.metric, outcome.question.subject, m.definition) == column.key:
            if not math.isfinite(m.value):
                return Value(status="nonfinite", n=m.n, reason=f"the stored value is {m.value}")
            return Value(status=OK, value=m.value, low=_finite(m.low), high=_finite(m.high), n=m.n)
    return Value(status=ABSENT, reason="this cell's answer does not hold this metric")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _derived_columns(derived: Derived, rows: Mapping[str, Metric]) -> list[Column]:
    return [
        Column(
            key=column_key(name, subject, rows[name].definition),
            metric=rows[name],
            subject=subject,
            probe="comparison",
            derived=True,
        )
        for name, subject in derived.columns
    ]
