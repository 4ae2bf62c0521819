"""Every square that one of two runs has a number in, compared as its kind asks: drafts of findings, before it is known how many
tests the night makes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from harness.gate import causes, compare, fenced
from harness.gate.compare import Change, Family, PairedItems
from harness.gate.join import Asked, Side, Sides, figure, judged, options_apart
from harness.gate.policy import MEAN_ACCURACY, Policy
from harness.gate.samples import Lost, Unpaired
from harness.gate.types import Against, Figure, Finding, History, Kind, Square
from harness.spec import Measurement, Metric

_FAMILY: Mapping[Kind, Family] = {"items": "task", "losses": "text", "tokens": "text", "exact": "", "fenced": ""}


_TaskPair: TypeAlias = tuple[Asked, Asked, Metric, Measurement, Measurement]
"""A task in both runs: the two answers, the metric, and its two measurements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A finding before multiplicity is known. `change` is None where the verdict stands already."""

    finding: Finding
    family: Family = ""
    change: Change | None = None
    lost: bool = False  # its raw samples are gone or damaged


class Pairing:
    """Two runs whose squares are compared; `against` says what the first of them is."""

    def __init__(self, before: Sides, now: Sides, policy: Policy, history: History, against: Against) -> None:
        self.before, self.now = before, now
        self.policy, self.history, self.against = policy, history, against

    def drafts(self) -> Iterator[Draft]:
        """In the candidate's order of cells, then the cells that only the first run has."""
        for identity, side in self.now.cells.items():
            old = self.before.cells.get(identity)
            yield from self._new(side) if old is None else self._cell(old, side)
        for identity, old in self.before.cells.items():
            if identity not in self.now.cells:
                yield from self._gone(old, self.now.unsupported.get(identity))

    def _cell(self, old: Side, new: Side) -> Iterator[Draft]:
        tasks: list[_TaskPair] = []
        met = set()
        for name, asked in old.asked.items():
            same = new.asked.get(name)
            again = same or new.like(asked.question)
            for metric, kind, measurement in judged(asked, old, self.before):
                square = new.square(metric, asked.question, measurement.definition, measurement.unit)
                after = None if again is None else again.sample(metric.name, measurement.definition)
                met.add((asked.question.probe, asked.question.subject, metric.name))
                stub = Finding(square=square, kind=kind, verdict="missing", against=self.against, before=figure(measurement))
                if again is None or after is None:
                    yield Draft(finding=_without_answer(stub, asked, again))
                    continue
                stub = replace(stub, after=figure(after), keys=() if again.record is None else (again.record.key,))
                if same is None or (why := _versions_apart(asked, again)):
                    why = options_apart(asked.question, again.question) if same is None else why
                    yield Draft(finding=replace(stub, verdict="not comparable", reason=f"the question is another one ({why})"))
                    continue
                if math.isfinite(measurement.value) and not math.isfinite(after.value):
                    yield Draft(finding=replace(stub, reason=f"the stored value is {after.value}, which is no number"))
                    continue
                if kind == "items":
                    tasks.append((asked, again, metric, measurement, after))
                yield self._compared(stub, metric, old, new, (asked, measurement), (again, after))
        yield from self._mean(new, tasks)
        yield from self._kernels(old, new)
        if self.against == "base":
            yield from self._new(new, met)

    def _compared(
        self,
        stub: Finding,
        metric: Metric,
        old: Side,
        new: Side,
        before: tuple[Asked, Measurement],
        after: tuple[Asked, Measurement],
    ) -> Draft:
        first, second = (self.before.run, before[1]), (self.now.run, after[1])
        try:
            if stub.kind == "fenced":
                if self.against == "accepted":
                    return Draft(finding=replace(stub, verdict="within noise"))
                return Draft(
                    finding=fenced.judge(
                        stub, metric, (self.before, old, before[0]), (self.now, new, after[0]), self.history, self.policy
                    )
                )
            if stub.kind == "items":
                paired = compare.pair(stub.square.subject, first, second)
                change = compare.of_items([paired])
            elif stub.kind == "losses":
                change = compare.of_losses(first, second)
            elif stub.kind == "tokens":
                change = compare.of_tokens(first, second)
            else:
                change = compare.exact(metric, before[1].value, after[1].value)
        except Lost as why:
            return Draft(finding=replace(stub, verdict="missing", reason=str(why)), lost=True)
        except Unpaired as why:
            if before[1].blob is None and after[1].blob is None and before[1].value == after[1].value:
                return Draft(finding=replace(stub, verdict="within noise", reason="equal; no raw samples are kept of it"))
            if before[1].blob is not None and after[1].blob is None:
                return Draft(finding=replace(stub, verdict="missing", reason="no raw samples are kept of it any more"), lost=True)
            return Draft(finding=replace(stub, verdict="not comparable", reason=str(why)))
        limit, whence = self._threshold(stub, metric, new)
        stub = replace(stub, threshold=limit, threshold_from=whence)
        return Draft(finding=stub, family=_FAMILY[stub.kind], change=change)

    def _threshold(self, stub: Finding, metric: Metric, new: Side) -> tuple[float, str]:
        """What a change must reach, and where that comes from. A divergence at the noise floor is the execution's, not the
        cell's: there the change must reach the floor itself."""
        limit, whence = self.policy.limit(metric.name, stub.kind).magnitude, self.policy.whence(metric.name)
        base = self.now.baseline_of(new)
        if metric.floor and base is not None and stub.before is not None and stub.after is not None:
            floor = next(
                (
                    m.value
                    for a in base.asked.values()
                    if a.question.subject == stub.square.subject
                    for m in a.measurements
                    if m.metric == metric.floor
                ),
                0.0,
            )
            if stub.before.value > 0 and max(stub.before.value, stub.after.value) <= 2 * floor:
                return max(limit, floor / stub.before.value), "the noise floor: both are within twice of it"
        return limit, whence

    def _mean(self, new: Side, tasks: Sequence[_TaskPair]) -> Iterator[Draft]:
        """All tasks of a cell together: the most powerful look at its accuracy."""
        if len(tasks) < 2:
            return
        paired: list[PairedItems] = []
        keys, left_out = [], []
        whole = any(before.blob is None or before.blob != after.blob for *_, before, after in tasks)
        for asked, again, _, before, after in tasks:
            try:
                one = compare.pair(asked.question.subject, (self.before.run, before), (self.now.run, after), whole=whole)
            except Unpaired:
                left_out.append(asked.question.subject)
                continue
            paired.append(one)
            keys += [] if again.record is None else [again.record.key]
        if len(paired) < 2:
            yield from self._no_mean(new, tasks, left_out)
            return
        kept = [t for t in tasks if t[0].question.subject not in left_out]
        sums = [sum(m.value for m in column) / len(kept) for column in ([t[3] for t in kept], [t[4] for t in kept])]
        square = self._mean_square(new, len(kept))
        n = sum(p.n for p in paired)
        reason = f"without {', '.join(left_out)}, whose items cannot be paired" if left_out else ""
        stub = Finding(
            square=square, kind="items", verdict="within noise", against=self.against, before=Figure(value=sums[0], n=n),
            after=Figure(value=sums[1], n=n), keys=tuple(keys), reason=reason,
            threshold=self.policy.limit(MEAN_ACCURACY, "items").magnitude, threshold_from=self.policy.whence(MEAN_ACCURACY),
        )  # fmt: skip
        yield Draft(finding=stub, family="mean", change=compare.of_items(paired))

    def _mean_square(self, side: Side, tasks: int) -> Square:
        title, definition = f"Mean accuracy of {tasks} tasks", f"mean of {tasks} tasks, items paired"
        return side.whole(MEAN_ACCURACY, title, definition, "share")

    def _no_mean(self, new: Side, tasks: Sequence[_TaskPair], left_out: Sequence[str]) -> Iterator[Draft]:
        """The mean that both runs hold and that cannot be compared, because its tasks cannot."""
        if self.against == "accepted":
            return
        reason = f"the items of {', '.join(left_out)} cannot be paired"
        square = self._mean_square(new, len(tasks))
        yield Draft(finding=Finding(square=square, kind="items", verdict="not comparable", reason=reason))

    def _kernels(self, old: Side, new: Side) -> Iterator[Draft]:
        """The kernels that ran, which nobody may exchange unnoticed."""
        ran = [causes.kernels(side) for side in (old, new)]
        if not all(ran) or self.against == "accepted":
            return
        said = [", ".join(f"{name} ({count} layers)" for name, count in sorted(each.items())) for each in ran]
        asked = next((a for a in new.asked.values() if a.record is not None and a.record.answer is not None), None)
        square = new.whole("kernels", "Kernels that ran", "read from the loaded model after a forward pass", "")
        moved = ran[0] != ran[1]
        yield Draft(
            finding=Finding(
                square=square, kind="exact", verdict="regressed" if moved else "within noise",
                reason=f"{said[0]} before, {said[1]} now" if moved else said[1],
                threshold_from="any change of kernels" if moved else "",
                keys=(asked.record.key,) if asked is not None and asked.record is not None else (),
            )
        )  # fmt: skip

    def _new(self, side: Side, met: set[tuple[str, str, str]] | None = None) -> Iterator[Draft]:
        """Squares that only the candidate has a number in."""
        if self.against == "accepted":
            return
        for asked in side.asked.values():
            for metric, kind, measurement in judged(asked, side, self.now):
                if met is not None and (asked.question.probe, asked.question.subject, metric.name) in met:
                    continue
                square = side.square(metric, asked.question, measurement.definition, measurement.unit)
                yield Draft(finding=Finding(square=square, kind=kind, verdict="new", after=figure(measurement)))

    def _gone(self, old: Side, unsupported: str | None) -> Iterator[Draft]:
        """Squares whose cell the candidate's plan does not have."""
        if self.against == "accepted":
            return
        near = next((s for i, s in self.now.cells.items() if i not in self.before.cells and _alike(s, old)), None)
        why = "its cell is not planned any more"
        if unsupported:
            why = f"its cell is not supported any more: {unsupported}"
        elif near is not None:
            why += f"; the nearest new one is {near.cell.name} ({causes.schemes_apart(old.cell, near.cell)})"
        for asked in old.asked.values():
            for metric, kind, measurement in judged(asked, old, self.before):
                square = old.square(metric, asked.question, measurement.definition, measurement.unit)
                yield Draft(finding=Finding(square=square, kind=kind, verdict="missing", before=figure(measurement), reason=why))


def _alike(one: Side, other: Side) -> bool:
    return (one.cell.model.name, one.cell.method, one.cell.bits) == (other.cell.model.name, other.cell.method, other.cell.bits)


def _without_answer(stub: Finding, asked: Asked, again: Asked | None) -> Finding:
    """A square that had a number and has none now."""
    if again is None:
        return replace(stub, reason="its question is not planned any more")
    if again.record is None:
        return replace(stub, reason="planned, and not run")
    if again.record.failure is not None:
        failure = again.record.failure
        return replace(stub, verdict="failed", reason=f"{failure.kind}: {failure.message}", keys=(again.record.key,))
    other = again.other_definition(stub.square.metric)
    if other is None:
        return replace(stub, reason="the answer does not hold it any more", keys=(again.record.key,))
    return replace(stub, verdict="not comparable", reason=f"measured as {stub.square.definition!r} before and as {other!r} now")


def _versions_apart(asked: Asked, again: Asked) -> str:
    if asked.record is None or again.record is None or asked.record.probe_version == again.record.probe_version:
        return ""
    return f"version {asked.record.probe_version} of the probe before, {again.record.probe_version} now"
