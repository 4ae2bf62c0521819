"""Two runs side by side: which cells and which questions of theirs are the same.

Cells are joined by what a person would call the same: a model's name, a scheme, a way of running. Weights, packages, commits and
machines may differ; they are listed as possible causes. A question is the same if it asks the same of the same: the texts' and
tasks' digests are part of its options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from harness.gate.types import Figure, Kind, Square
from harness.metrics import GROUPS, Group
from harness.metrics.size import METRICS as SIZE
from harness.metrics.size import SHARE
from harness.report.cells import plain_table
from harness.series import square_identity
from harness.spec import Cell, Measurement, Metric, Question, Record, digest
from harness.store import Run

EXACT = {metric.name for metric in SIZE if metric.places.axis is not None} | {SHARE.name}
"""Sizes are counted, not sampled: any difference is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A planned question of a cell and its record, None where it was not run."""

    question: Question
    record: Record | None

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return () if self.record is None or self.record.answer is None else self.record.answer.measurements

    def sample(self, metric: str, definition: str) -> Measurement | None:
        return next((m for m in self.measurements if (m.metric, m.definition) == (metric, definition)), None)

    @property
    def facts(self) -> Mapping[str, object]:
        """What explains the answer; empty where there is none."""
        return {} if self.record is None or self.record.answer is None else self.record.answer.facts

    @property
    def elsewhere(self) -> float:
        """The share of the machine's CPU time that went elsewhere while this was measured: to other processes, or to the
        hypervisor's other guests; 0 where nobody counted."""
        conditions = plain_table(self.facts.get("conditions"))
        shares = [conditions.get(name) for name in ("others_cpu_share", "steal_share")]
        return sum(float(share) for share in shares if isinstance(share, (int, float)))

    def other_definition(self, metric: str) -> str | None:
        """The definition under which the metric was measured here, whichever it is."""
        return next((m.definition for m in self.measurements if m.metric == metric), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A cell of one run. `asked` by question digest, in plan order; `simulated`: its weights are held dequantized."""

    cell: Cell
    identity: str
    baseline: bool
    asked: Mapping[str, Asked]

    @property
    def simulated(self) -> bool:
        return any(a.record is not None and a.record.simulated for a in self.asked.values())

    def like(self, question: Question) -> Asked | None:
        """The only question of the same probe on the same subject, whatever its options."""
        found = [a for a in self.asked.values() if _about(a.question) == _about(question)]
        return found[0] if len(found) == 1 else None

    def square(self, metric: Metric, question: Question, definition: str, unit: str) -> Square:
        return replace(self.whole(metric.name, metric.title, definition, unit), subject=question.subject)

    def whole(self, metric: str, title: str, definition: str, unit: str) -> Square:
        """A square of the cell that no single question answers."""
        return Square(
            model=self.cell.model.name,
            label=self.cell.label,
            identity=self.identity,
            metric=metric,
            title=title,
            subject="",
            definition=definition,
            unit=unit,
            baseline=self.baseline,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """All cells of a run, by identity, in plan order; `unsupported`: why squares of the plan cannot exist, likewise."""

    run: Run
    rows: Mapping[str, Group]
    cells: Mapping[str, Side]
    unsupported: Mapping[str, str] = field(default_factory=dict)

    def metric(self, probe: str, name: str) -> Metric | None:
        group = self.rows.get(probe)
        return None if group is None else next((m for m in group.metrics if m.name == name), None)

    def baseline_of(self, side: Side) -> Side | None:
        return next((s for s in self.cells.values() if s.baseline and s.cell.model.name == side.cell.model.name), None)


def sides(run: Run) -> Sides:
    """The planned cells of a run with their newest records. Planned twice under one identity, the first counts."""
    rows = {name: Group(title=p.title, metrics=p.metrics) for name, p in run.plan.probes.items()} | GROUPS
    digests: dict[str, str] = {}

    def named(question: Question) -> str:
        written = repr(question)
        if written not in digests:
            digests[written] = digest(question)
        return digests[written]

    newest: dict[tuple[str, str], Record] = {}
    for record in sorted(run.records, key=lambda r: (r.started_at, r.key)):
        newest[repr(record.cell), named(record.question)] = record
    cells: dict[str, Side] = {}
    for planned in run.plan.cells:
        identity, cell = square_identity(planned.cell), repr(planned.cell)
        asked = {named(q): Asked(question=q, record=newest.get((cell, named(q)))) for q in planned.questions}
        side = Side(cell=planned.cell, identity=identity, baseline=planned.baseline, asked=asked)
        cells.setdefault(identity, side)
    unsupported = {square_identity(u.cell): u.reason for u in run.plan.unsupported}
    return Sides(run=run, rows=rows, cells=cells, unsupported=unsupported)


def kind_of(metric: Metric) -> Kind | None:
    """How a metric is judged; None for those that say again, or in part, what another one says."""
    if metric.samples is not None:
        return metric.samples
    if metric.name in EXACT:
        return "exact"
    return "fenced" if metric.axis == "cost" and metric.places.axis is not None else None


def judged(asked: Asked, side: Side, of: Sides) -> Iterator[tuple[Metric, Kind, Measurement]]:
    """What of an answer is judged: each metric once, under the definition that was asked for (the first)."""
    seen = set()
    for measurement in asked.measurements:
        metric = of.metric(asked.question.probe, measurement.metric)
        kind = None if metric is None else kind_of(metric)
        if metric is None or kind is None or metric.name in seen or (side.simulated and not metric.when_simulated):
            continue
        seen.add(metric.name)
        yield metric, kind, measurement


def figure(measurement: Measurement) -> Figure:
    return Figure(value=measurement.value, low=measurement.low, high=measurement.high, n=measurement.n)


def options_apart(before: Question, after: Question) -> str:
    """In words, which options of two questions on one subject differ."""
    names = sorted(n for n in before.options.keys() | after.options.keys() if before.options.get(n) != after.options.get(n))
    return ", ".join(f"{n}: {_short(before.options.get(n))} before, {_short(after.options.get(n))} now" for n in names)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _about(question: Question) -> tuple[str, str]:
    return question.probe, question.subject
