"""A stored run turned into what the report shows: every planned cell x every metric, derived comparisons included.

`view(run)` is pure: it reads the run and its blobs and nothing else. Every planned cell has a `Value` in every column: a number,
or the status that explains why there is none (see `cells`). Comparisons with the baseline of the same model are recomputed from
raw samples, paired by item or window; where samples are missing on disk, the derived number is absent and says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.costs import CellCost
from harness.metrics import GROUPS, Group
from harness.report import derived
from harness.report.cells import (
    ABSENT,
    NOT_RUN,
    OK,
    SIMULATED,
    CellView,
    Column,
    Outcome,
    Value,
    column_key,
    series_of,
    withheld,
)
from harness.report.compare import compare
from harness.report.derivation import Derived
from harness.series import Names, newest
from harness.spec import (
    CalibrationText,
    EnvironmentRecord,
    Measurement,
    Metric,
    Places,
    Question,
    SourceGrid,
    UnsupportedRecord,
    to_json,
)
from harness.store import Run


def _no_blobs(name: str) -> bytes:
    raise FileNotFoundError(f"{name}: this view was made without raw samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that the sections, the tidy frame and the terminal table need. Cells in plan order, columns in the order asked."""

    run: str
    suite: str
    title: str
    started_at: str
    context: Mapping[str, object]
    commands: tuple[str, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...]
    cells: tuple[CellView, ...]
    columns: tuple[Column, ...]
    unsupported: tuple[UnsupportedRecord, ...]
    unplanned: int
    ended: bool
    derived: Derived
    probes: Mapping[str, Group]  # rows by name
    environments: tuple[EnvironmentRecord, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)  # digests, by model
    source_grids: Mapping[str, SourceGrid] = field(default_factory=dict)  # likewise
    calibrated_on: tuple[CalibrationText, ...] = ()
    notes: tuple[str, ...] = ()
    costs: tuple[CellCost, ...] = ()  # by start
    blob: Callable[[str], bytes] = _no_blobs  # raw samples by name
    _by_metric: Mapping[str, Sequence[Column]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_metric: dict[str, list[Column]] = {}
        for column in self.columns:
            by_metric.setdefault(column.metric.name, []).append(column)
        object.__setattr__(self, "_by_metric", by_metric)

    def column(self, metric: str, subject: str | None = None) -> Column | None:
        """The first column of a metric (and subject)."""
        return next((c for c in self._by_metric.get(metric, ()) if subject in (None, c.subject)), None)

    def of(self, *metrics: str) -> list[Column]:
        """All columns of these metrics, in column order."""
        if len(metrics) == 1:
            return list(self._by_metric.get(metrics[0], ()))
        return [c for c in self.columns if c.metric.name in metrics]

    def placed(self, place: Callable[[Places], int | None]) -> list[Column]:
        """The columns whose metrics have this place, in its order and then in column order."""
        columns = [c for c in self.columns if place(c.metric.places) is not None]
        return sorted(columns, key=lambda c: place_or_last(place(c.metric.places)))

    def first(self, place: Callable[[Places], int | None]) -> list[Column]:
        """One comparable column for each number of this place, in its order: of metrics that stand in for each other the one that
        comes first on its axis, of a metric its first subject."""
        chosen: dict[float, Column] = {}
        for column in sorted(self.placed(place), key=lambda c: place_or_last(c.metric.places.axis)):
            if self.comparable(column):
                chosen.setdefault(place_or_last(place(column.metric.places)), column)
        return [chosen[number] for number in sorted(chosen)]

    def group(self, column: Column) -> str:
        """What a column belongs to, as people read it: the title of its probe."""
        if column.derived:
            return derived.TITLE
        probe = self.probes.get(column.probe)
        return column.probe.capitalize() if probe is None else probe.title

    def comparable(self, column: Column) -> bool:
        """Whether others than baselines may have a number there: of a task that is scored until a verdict only the baseline has
        an accuracy."""
        others = [c for c in self.cells if not c.baseline]
        return not others or any(c.values[column.key].status != ABSENT for c in others)

    def baseline_of(self, model: str) -> CellView | None:
        return next((c for c in self.cells if c.baseline and c.model == model), None)


def place_or_last(place: int | None) -> float:
    """A place to sort by."""
    return math.inf if place is None else place


def view(run: Run, probes: Mapping[str, Group] | None = None) -> View:
    """Builds the view. `probes`: their metrics by name; by default ours, and those of other packages that the run file carries. A
    metric that no row describes is shown as stored, without a direction."""
    if probes is None:
        probes = {name: Group(title=p.title, metrics=p.metrics) for name, p in run.plan.probes.items()} | GROUPS
    rows = {m.name: m for probe in probes.values() for m in probe.metrics} | derived.DERIVED
    cells, unplanned = _cells(run, probes)
    columns, squares = _measured(cells, rows)
    comparisons = compare(run.blob, cells)
    finished = tuple(dataclasses.replace(c, values={**squares[c.id], **comparisons.values.get(c.id, {})}) for c in cells)
    return View(
        run=run.header.run,
        suite=str(run.plan.suite.get("name", "")),
        title=str(run.plan.suite.get("title", "") or ""),
        started_at=run.header.started_at,
        context=to_json(run.header.context),
        commands=run.plan.commands,
        models=tuple(dict.fromkeys(c.model for c in finished)),
        methods=tuple(dict.fromkeys(c.cell.method for c in finished)),
        cells=finished,
        columns=(*columns, *_derived_columns(comparisons)),
        unsupported=run.plan.unsupported,
        unplanned=unplanned,
        ended=run.ended,
        derived=comparisons,
        probes=probes,
        environments=tuple(run.environments[name] for name in sorted(run.environments)),
        weights=run.plan.weights,
        source_grids=run.plan.source_grids,
        calibrated_on=run.plan.calibrated_on,
        costs=tuple(sorted(run.costs, key=lambda c: (c.started_at, c.cell.name))),
        blob=run.blob,
        notes=(*run.plan.notes, *run.damage_in_words),
    )


def _cells(run: Run, probes: Mapping[str, Group]) -> tuple[list[CellView], int]:
    """The planned cells with their outcomes, without values, and the number of records that belong to none of them."""
    names = Names()
    answers = newest(run.records, names)
    cells = []
    for index, planned in enumerate(run.plan.cells):
        cell, questions = planned.cell, planned.questions
        records = [answers.pop((names.of(cell), names.of(q)), None) for q in questions]
        simulated = any(record is not None and record.simulated for record in records)
        outcomes = tuple(
            Outcome(question=q, asked=names.of(q), record=r, metrics=_metrics_of(q, probes), simulated=simulated)
            for q, r in zip(questions, records, strict=True)
        )
        cells.append(
            CellView(
                id=f"c{index}",
                cell=cell,
                baseline=planned.baseline,
                simulated=simulated,
                outcomes=outcomes,
                series=series_of(cell),
            )
        )
    return cells, len(answers)


def _metrics_of(question: Question, probes: Mapping[str, Group]) -> tuple[Metric, ...]:
    probe = probes.get(question.probe)
    return () if probe is None else probe.metrics


def _measured(cells: Sequence[CellView], rows: Mapping[str, Metric]) -> tuple[list[Column], dict[str, dict[str, Value]]]:
    """Columns of all measured metrics (every planned question has at least one), and each cell's value in each."""
    columns: dict[str, Column] = {}
    by_question: dict[str, list[str]] = {}
    outcomes = {o.asked: o for c in cells for o in c.outcomes}
    samples: dict[str, list[Measurement]] = {key: [] for key in outcomes}
    for cell in cells:
        for outcome in cell.outcomes:
            samples[outcome.asked].extend(outcome.measurements)
    order = {name: place for place, name in enumerate(rows)}
    for key, outcome in outcomes.items():
        subject, probe = outcome.question.subject, outcome.question.probe
        present = {column_key(m.metric, subject, m.definition): m for m in reversed(samples[key])}
        shown = sorted(present.items(), key=lambda pair: (order.get(pair[1].metric, len(order)), pair[0]))
        metrics = {name: _as_measured(sample, rows, outcome) for name, sample in shown}
        if not metrics:  # nobody has answered it yet: it is drawn all the same
            metric = _unknown(probe, unit="", definition="not measured", outcome=outcome)
            metrics[column_key(probe, subject, metric.definition)] = metric
        for name, metric in metrics.items():
            columns[name] = Column(key=name, metric=metric, subject=subject, probe=probe, derived=False)
        by_question[key] = list(metrics)
    squares: dict[str, dict[str, Value]] = {}
    for cell in cells:
        mine = squares[cell.id] = {name: _unasked(cell, column) for name, column in columns.items()}
        for outcome in cell.outcomes:
            for name in by_question[outcome.asked]:
                mine[name] = _value(outcome, columns[name])
    return list(columns.values()), squares


def _as_measured(sample: Measurement, rows: Mapping[str, Metric], outcome: Outcome) -> Metric:
    """The metric's row with the unit and the definition that it was measured under."""
    row = rows.get(sample.metric)
    if row is None:
        return _unknown(sample.metric, unit=sample.unit, definition=sample.definition, outcome=outcome)
    return dataclasses.replace(row, unit=sample.unit, definition=sample.definition)


def _unknown(name: str, *, unit: str, definition: str, outcome: Outcome) -> Metric:
    """A row for what no row describes. A simulated cell shows it only if it may show all that the probe measures."""
    shown = all(m.when_simulated for m in outcome.metrics)
    return Metric(name=name, title=name, unit=unit, better="neither", definition=definition, when_simulated=shown)


def _unasked(cell: CellView, column: Column) -> Value:
    """The value where a cell has no question of the column's. Asked of the same subject in another way (all items, or until a
    verdict), it lacks nothing."""
    if any((o.question.probe, o.question.subject) == (column.probe, column.subject) for o in cell.outcomes):
        return Value(status=ABSENT, reason="this cell is asked another question on this subject")
    return Value(status=NOT_RUN, reason="not asked of this cell")


def _value(outcome: Outcome, column: Column) -> Value:
    record = outcome.record
    if record is None:
        return Value(status=NOT_RUN, reason="planned, no outcome stored yet")
    if withheld(outcome, column.metric):
        return Value(status=SIMULATED, reason="weights are held dequantized: memory and speed would not be those of the scheme")
    if record.failure is not None:
        return Value(status=record.failure.kind, reason=record.failure.message)
    for m in outcome.measurements:
        if column_key(m.metric, outcome.question.subject, m.definition) == column.key:
            if not math.isfinite(m.value):
                return Value(status="nonfinite", n=m.n, reason=f"the stored value is {m.value}")
            return Value(status=OK, value=m.value, low=_finite(m.low), high=_finite(m.high), n=m.n)
    return Value(status=ABSENT, reason="this cell's answer does not hold this metric")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _derived_columns(comparisons: Derived) -> list[Column]:
    rows = [(derived.DERIVED[name], subject) for name, subject in comparisons.columns]
    return [
        Column(key=column_key(row.name, subject, row.definition), metric=row, subject=subject, probe=derived.GROUP, derived=True)
        for row, subject in rows
    ]
