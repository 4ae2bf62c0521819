"""One square in two runs: what changed, by how much, and how sure that is.

Changes are oriented: positive is worse. Equal raw samples (they are named by their content) are equal answers and are not read;
what changed by nothing has no interval here, because none was taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness import stats
from harness.errors import HarnessError
from harness.frontier import Floats
from harness.gate import samples
from harness.gate.samples import Unpaired
from harness.gate.types import Flip
from harness.report.compare_items import items_of
from harness.report.compare_tokens import table_of
from harness.report.derivation import Items
from harness.spec import Measurement, Metric
from harness.store import Run

Family = Literal["mean", "task", "text", ""]
"""Tests that share a part of the chance of a false alarm: a cell's tasks together, single tasks, texts; '' makes no test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`value` with its 95 % interval in `unit`; `worse` and `better`: one-sided p-values. `flips` of a task, or of all."""

    value: float
    low: float | None
    high: float | None
    unit: str
    worse: float = 1.0
    better: float = 1.0
    flips: tuple[Flip, ...] = ()

    @property
    def noise(self) -> float | None:
        """Half the width of the interval; None without one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedItems:
    """A task in both runs: scores [items] in one order, clusters likewise, and how many there are (equal answers are not
    read, and have no scores here)."""

    task: str
    n: int
    ids: tuple[str, ...] = ()
    before: Floats | None = None
    after: Floats | None = None
    clusters: tuple[str, ...] | None = None


def pair(task: str, before: tuple[Run, Measurement], after: tuple[Run, Measurement], *, whole: bool = False) -> PairedItems:
    """The items of a task in both runs. Unpaired where that cannot be. `whole`: read them also where they are equal."""
    names = before[1].blob, after[1].blob
    if names[0] is not None and names[0] == names[1] and not whole:
        return PairedItems(task=task, n=before[1].n or 0)
    first, second = (samples.parsed(items_of, run, m.blob) for run, m in (before, after))
    if not _clusters_agree(first, second):
        raise Unpaired("the two runs group the items differently")
    scores = samples.same_order(first, second)
    return PairedItems(task=task, n=len(first.ids), ids=first.ids, before=first.correct, after=scores, clusters=first.clusters)


def _clusters_agree(first: Items, second: Items) -> bool:
    if first.clusters is None or second.clusters is None:
        return first.clusters is second.clusters
    return dict(zip(first.ids, first.clusters, strict=True)) == dict(zip(second.ids, second.clusters, strict=True))


def of_items(tasks: list[PairedItems]) -> Change:
    """Points of accuracy lost, as the mean over tasks; the test is on all their items together (`stats.p_items_lost`), or, for
    scores that are not right or wrong, on the mean of the items' changes."""
    read = [t for t in tasks if t.before is not None and t.after is not None]
    if not read:
        return Change(value=0.0, low=None, high=None, unit="points")
    if len(read) < len(tasks):
        raise ValueError("equal answers count as well: read them with whole=True")
    before = np.concatenate([t.before for t in read if t.before is not None])
    after = np.concatenate([t.after for t in read if t.after is not None])
    clusters = _all_clusters(read)
    if len(read) == 1:
        interval = stats.paired_difference(before, after, clusters)
    else:
        rows = [stats.Task(t.before, t.after, t.clusters) for t in read if t.before is not None and t.after is not None]
        interval = stats.mean_difference_over_tasks(rows)
    binary = bool(np.all(np.isin(before, (0.0, 1.0))) and np.all(np.isin(after, (0.0, 1.0))))
    if binary:
        worse, better = (stats.p_items_lost(*sides, clusters) for sides in ((before, after), (after, before)))
    else:
        lost = _by_cluster(before - after, clusters)
        worse, better = stats.p_mean_above_zero(lost), stats.p_mean_above_zero(-lost)
    low, high = (None if limit is None else -100 * limit for limit in (interval.high, interval.low))
    value = -100 * interval.value
    return Change(value=value, low=low, high=high, unit="points", worse=worse, better=better, flips=_flips(read))


def of_losses(before: tuple[Run, Measurement], after: tuple[Run, Measurement]) -> Change:
    """ln(perplexity now / before), paired by window, in nats."""
    if _equal(before[1], after[1]):
        return Change(value=0.0, low=None, high=None, unit="nat")
    change = samples.change(*_windows(before, after))
    return _of_windows(change, unit="nat")


def of_tokens(before: tuple[Run, Measurement], after: tuple[Run, Measurement]) -> Change:
    """The mean's change as a share of what it was, paired by window. Unpaired where it was zero: there is no share of it."""
    if _equal(before[1], after[1]):
        return Change(value=0.0, low=None, high=None, unit="share")
    first, second = _windows(before, after)
    scale = float(np.nanmean(np.where(np.isfinite(first), first, np.nan)))
    if not scale > 0:
        raise Unpaired("it was zero, and now it is not: a share of zero is nothing")
    return _of_windows(samples.change(first, second) / scale, unit="share")


def exact(metric: Metric, before: float, after: float) -> Change:
    """Of what is counted: any difference beyond the rounding of a float, as a share of what it was. What has no better direction
    is worse whenever it differs."""
    if before == after or math.isclose(before, after, rel_tol=1e-12):
        return Change(value=0.0, low=None, high=None, unit="share")
    share = (after - before) / abs(before) if before else math.copysign(1.0, after)
    value = {"lower": share, "higher": -share, "neither": abs(share)}[metric.better]
    return Change(
        value=value, low=None, high=None, unit="share", worse=0.0 if value > 0 else 1.0, better=0.0 if value < 0 else 1.0
    )


def relative(metric: Metric, before: float, after: float) -> float:
    """ln(now / before), oriented. Unpaired where it has no logarithm."""
    try:
        return stats.worsening(before, after, higher_is_better=metric.better == "higher")
    except HarnessError as error:
        raise Unpaired(str(error)) from None


def _of_windows(change: Floats, unit: str) -> Change:
    if not np.isfinite(change).any():
        raise Unpaired("no token is finite in both runs")
    interval = stats.block_bootstrap_mean(change)
    return Change(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        unit=unit,
        worse=stats.p_mean_above_zero(change),
        better=stats.p_mean_above_zero(-change),
    )


def _equal(before: Measurement, after: Measurement) -> bool:
    return before.blob is not None and before.blob == after.blob


def _windows(before: tuple[Run, Measurement], after: tuple[Run, Measurement]) -> tuple[Floats, Floats]:
    first, second = (samples.parsed(table_of, run, m.blob) for run, m in (before, after))
    return first, second


def _all_clusters(tasks: list[PairedItems]) -> tuple[str, ...] | None:
    """Clusters over several tasks, an item of a task without any being its own; None where no task has any."""
    if all(t.clusters is None for t in tasks):
        return None
    return tuple(f"{t.task}|{name}" for t in tasks for name in (t.clusters or (f"#{i}" for i in t.ids)))


def _by_cluster(change: Floats, clusters: tuple[str, ...] | None) -> Floats:
    """Changes as rows of clusters [clusters, most items], NaN where a cluster has fewer."""
    if clusters is None:
        return change
    rows: dict[str, list[float]] = {}
    for name, value in zip(clusters, change, strict=True):
        rows.setdefault(name, []).append(float(value))
    widest = max(map(len, rows.values()))
    return np.array([row + [math.nan] * (widest - len(row)) for row in rows.values()])


def _flips(tasks: list[PairedItems]) -> tuple[Flip, ...]:
    found = []
    for task in tasks:
        assert task.before is not None
        assert task.after is not None
        for place in np.nonzero(task.before != task.after)[0]:
            won = bool(task.after[place] > task.before[place])
            found.append(Flip(task=task.task, item=task.ids[place], won=won))
    return tuple(found)
