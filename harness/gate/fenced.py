"""Latency and memory: numbers of a machine, judged by how far the same series has moved before.

A change is news only if it is beyond the fence of the series' own past changes *and* the ratio to the baseline of the same run is
beyond the fence of that ratio's: a slower night slows the baseline too. For latency the ratio is the one that the probe measured
within its rounds, cell and baseline at once: a machine that was busy for a minute slows both. Numbers of unequal machines are not
compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from harness import stats
from harness.gate import compare
from harness.gate.join import Asked, Side, Sides, figure, judged
from harness.gate.policy import Limit, Policy
from harness.gate.samples import Unpaired
from harness.gate.types import Figure, Finding, History, Past
from harness.series import machine_identity
from harness.spec import Metric
from harness.stats import Fence

ALLOCATOR_BYTES = 32 << 20
"""A peak that moves by less is no news, whatever share of it that is: caches, arenas and thread stacks of one artifact were seen
to move it by up to 24 MB between nights in which nothing changed."""

RATIO = "_ratio"
"""Ends the name of a metric that is another one's, cell over baseline within the rounds of one measurement."""

Place = tuple[Sides, Side, Asked]
"""Where a number stands: its run, its cell, its question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moved:
    """ln(now / before), positive is worse, and the fence that it has to cross."""

    by: float
    fence: Fence

    @property
    def worse(self) -> bool:
        return self.by > self.fence.worse

    @property
    def better(self) -> bool:
        return -self.by > self.fence.better


def judge(found: Finding, metric: Metric, before: Place, after: Place, history: History, policy: Policy) -> Finding:
    """The verdict of a number of latency or memory that both runs hold. Unpaired where it cannot be compared."""
    machines = [machine_identity(place[0].run.header.context) for place in (before, after)]
    if machines[0] != machines[1]:
        raise Unpaired("the two runs are of different machines, devices or numbers of threads")
    taken = max(before[2].elsewhere, after[2].elsewhere)
    if taken > policy.busy:
        when = "now" if after[2].elsewhere == taken else "before"
        raise Unpaired(f"the machine was busy with other work while it was measured {when} ({taken:.0%} of its CPU time)")
    first, second = found.before, found.after
    if first is None or second is None:
        raise Unpaired("one of the two runs has no number here")
    square = found.square
    series = history.get((square.identity, square.metric, square.subject, square.definition), ())
    past = [night for night in series if night.machine == machines[1]]
    limit = policy.limit(metric.name, "fenced")
    own = _moved(metric, first.value, second.value, [p.value for p in past], limit, unit=square.unit)
    found = _changed(found, first, second, own, metric)
    if after[1].baseline:
        if own.worse or own.better:
            why = "the baseline's own number moved, and nothing stands beside it that tells the machine from the model"
            return replace(found, verdict="not comparable", reason=why)
        return replace(found, verdict="within noise")
    old, new = (_ratio(place, found, value) for place, value in ((before, first), (after, second)))
    if old is None or new is None:
        raise Unpaired("the baseline of the same run has no such number, so a slow machine cannot be told from a slow cell")
    beside = _moved(metric, old.value, new.value, _past_ratios(old, past, history, machines[1]), limit)
    apart = _apart(first, second) and _apart(old.figure, new.figure)
    if own.worse and beside.worse and apart:
        return replace(found, verdict="regressed", reason=f"{math.expm1(beside.by):+.1%} against the same run's baseline")
    if own.better and beside.better and apart:
        return replace(found, verdict="improved")
    if own.worse:
        why = "the baseline of the same run moved with it" if not beside.worse else "the two intervals meet"
        return replace(found, verdict="within noise", factor=None, reason=why)
    return replace(found, verdict="within noise")


def moved_baselines(before: Sides, now: Sides, history: History, policy: Policy) -> Iterator[str]:
    """A sentence for each baseline whose own speed or memory is worse beyond its fence: the machine, or what all cells share."""
    machines = [machine_identity(sides.run.header.context) for sides in (before, now)]
    if machines[0] != machines[1]:
        return
    for identity, side in now.cells.items():
        old = before.cells.get(identity)
        if not side.baseline or old is None:
            continue
        for name, asked in old.asked.items():
            again = side.asked.get(name)
            for metric, kind, measurement in judged(asked, old, before):
                sample = None if again is None else again.sample(metric.name, measurement.definition)
                if kind != "fenced" or sample is None or again is None or max(asked.elsewhere, again.elsewhere) > policy.busy:
                    continue
                key = (identity, metric.name, asked.question.subject, measurement.definition)
                past = [p.value for p in history.get(key, ()) if p.machine == machines[1]]
                try:
                    moved = _moved(
                        metric, measurement.value, sample.value, past, policy.limit(metric.name, "fenced"), unit=metric.unit
                    )
                except Unpaired:
                    continue
                if moved.worse:
                    yield (
                        f"the baseline itself moved: {metric.title.lower()} of {side.cell.name}, {asked.question.subject}, "
                        f"{math.expm1(moved.by):+.0%}: the machine, or what all cells share"
                    )


def _moved(metric: Metric, before: float, after: float, past: Sequence[float], limit: Limit, unit: str = "") -> _Moved:
    """How far a number moved, and the fence made of the changes between its past nights. A number of bytes must also move by more
    than an allocator does."""
    by = compare.relative(metric, before, after)
    good = [value for value in past if value > 0]
    steps = [compare.relative(metric, old, new) for old, new in itertools.pairwise(good)]
    least = math.log1p(ALLOCATOR_BYTES / min(before, after)) if unit == "B" else 0.0
    fence = stats.fence(steps, default=max(math.log1p(limit.short_history), least), floor=max(math.log1p(limit.magnitude), least))
    return _Moved(by=by, fence=fence)


def _changed(found: Finding, before: Figure, after: Figure, own: _Moved, metric: Metric) -> Finding:
    """The finding with what changed, as shares of what it was."""
    whence = (
        f"the fence of {own.fence.changes} past changes (third quartile and three interquartile ranges)"
        if own.fence.source == "history"
        else f"the policy's limit for short histories ({own.fence.changes} past changes)"
    )
    low, high = _limits(before, after, higher=metric.better == "higher")
    return replace(
        found,
        change=math.expm1(own.by),
        low=low,
        high=high,
        change_unit="share",
        threshold=math.expm1(own.fence.worse),
        threshold_from=whence,
        factor=abs(own.by) / own.fence.worse,
    )


def _limits(before: Figure, after: Figure, *, higher: bool) -> tuple[float | None, float | None]:
    """Limits of the relative change from those of both numbers, wide enough for either; none where a number has none."""
    if higher or before.low is None or before.high is None or after.low is None or after.high is None:
        return None, None
    if min(before.low, after.low) <= 0:
        return None, None
    return after.low / before.high - 1, after.high / before.low - 1


def _apart(before: Figure, after: Figure) -> bool:
    """Whether the two intervals do not meet; numbers without one are points."""
    ends = [(f.value if f.low is None else f.low, f.value if f.high is None else f.high) for f in (before, after)]
    return ends[0][1] < ends[1][0] or ends[1][1] < ends[0][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ratio:
    """A cell's number over the baseline's of the same run. `key`: where its own past stands in a history; None where it is made
    of two numbers that were measured one after the other."""

    figure: Figure
    key: tuple[str, str, str, str] | None = None

    @property
    def value(self) -> float:
        return self.figure.value


def _ratio(place: Place, found: Finding, own: Figure) -> _Ratio | None:
    """The ratio that was measured within rounds, else the number over that of the baseline under the same question; None where
    there is neither."""
    sides, side, asked = place
    square = found.square
    measured = next((m for m in asked.measurements if m.metric == square.metric + RATIO and m.value > 0), None)
    if measured is not None:
        key = (square.identity, measured.metric, square.subject, measured.definition)
        return _Ratio(figure=figure(measured), key=key)
    base = sides.baseline_of(side)
    same = None if base is None else next((a for a in base.asked.values() if a.question == asked.question), None)
    sample = None if same is None else same.sample(square.metric, square.definition)
    if sample is None or sample.value <= 0:
        return None
    return _Ratio(figure=Figure(value=own.value / sample.value))


def _past_ratios(ratio: _Ratio, past: Sequence[Past], history: History, machine: str) -> list[float]:
    """The ratios of past nights: those measured, or those of the numbers."""
    if ratio.key is not None:
        return [night.value for night in history.get(ratio.key, ()) if night.machine == machine]
    return [night.value / night.baseline for night in past if night.baseline]
