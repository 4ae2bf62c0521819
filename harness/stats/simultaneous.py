"""What many cells lose against one baseline, with upper limits that hold for all of them at once.

Whoever reads limits of 20 cells and takes the cheapest one whose limit is small enough has tested 20 times: with limits that
each hold with 95 %, the share of picks that lose more than they were shown to is not 5 % but several times that. Here the
limits of a family of cells hold together: with the stated confidence, *no* cell loses more than its limit. So the pick does
not, whatever rule it was picked by, and whatever margins, costs or preferences were tried before (max-t simultaneous limits:
Hothorn, Bretz & Westfall 2008, section 3; many-to-one comparisons: Dunnett 1955).

The estimates are correlated, because all cells answer the same items and are compared with the same answers of the baseline.
Their correlation is that of the per-item (per-cluster, per-window) changes, stacked over cells. The critical value is the
quantile of the largest of as many normal variables with that correlation; it lies between one cell's quantile and Bonferroni's.
The limits are those of `paired` and `bootstrap` at that critical value: score intervals, which keep a width where nothing
flipped.

One family is the cells of one model under one kind of loss. Everything is deterministic, and in time linear in items.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from harness.errors import BadInput
from harness.stats import distributions
from harness.stats.bootstrap import upper_limits
from harness.stats.intervals import Clusters, Floats, cluster_index

CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
"""One-sided confidences that limits are given at."""

ALIKE = 1.959963984540054
"""Two cells differ where they do so at 95 %, two-sided, each pair by itself."""

_SEED = 1729
_STEPS = 60
"""Halvings of a bracket: more than a double has bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItems:
    """One task's scores in 0..1: the baseline's [items] and those of the cells [cells, items], over the same items. `clusters`:
    labels of items that belong together."""

    base: Floats
    cells: Floats
    clusters: Clusters | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """A family's losses, positive where a cell is worse: `values` [cells], upper `limits` [cells, confidences] (NaN: no
    limit), the `critical` values [confidences], `n` what was sampled. `alike` [cells, cells]: whose losses this data cannot
    tell apart; `like_baseline` [cells]: whose cannot be told from no loss."""

    values: Floats
    limits: Floats
    critical: Floats
    n: int
    alike: NDArray[np.bool_]
    like_baseline: NDArray[np.bool_]


def points_lost(tasks: Sequence[TaskItems], critical: Floats | None = None) -> Losses:
    """Loss of accuracy, the unweighted mean over tasks, as a fraction. `critical` replaces the simultaneous critical values.

    The limit is where the score statistic of a mean change is the critical value, with each task's flips fitted under that change
    (Tango 1998, distances and variances added over tasks as strata, on effective items): for one task it is
    `paired.paired_difference`'s. Over tasks it covers nearer to its level than limits that are made for each task and combined
    (Zou & Donner 2008). A task whose scores are not right or wrong takes Student's t on its clusters.
    """
    parts = [_Task.of(task, task.cells - task.base) for task in _checked(tasks)]
    count = len(parts)
    values = -np.mean([part.means for part in parts], axis=0)
    errors = np.concatenate([-part.centred() / (count * part.items) for part in parts], axis=1)
    chosen = critical_values(errors) if critical is None else critical
    score = _difference_score(parts, [part.effective(chosen) for part in parts], chosen)
    shape = (chosen.size, values.size)
    limits = -_root(lambda d: score(d) - chosen[:, None], np.full(shape, -1.0), np.broadcast_to(-values, shape))
    raw = np.concatenate([part.sums() / (count * part.items) for part in parts], axis=1)
    return _losses(values, limits, chosen, sum(part.items for part in parts), raw)


def recovery_lost(tasks: Sequence[TaskItems], critical: Floats | None = None) -> Losses:
    """1 - (mean accuracy / the baseline's mean accuracy), means over tasks. BadInput where the baseline has nothing right.

    The limit is where the score statistic of "mean accuracy = ratio x the baseline's" is the critical value, with each task's
    flips fitted under that ratio (Nam & Blackwelder 2002, summed over tasks as strata): for one task it is
    `paired.recovery`'s. A task whose scores are not right or wrong takes the variance of its residuals.
    """
    checked = _checked(tasks)
    count = len(checked)
    base = float(np.mean([np.mean(task.base) for task in checked]))
    if base <= 0:
        raise BadInput("the baseline has no item right, so there is nothing to recover; choose a task that it can do")
    ratios = np.mean([np.mean(task.cells, axis=1) for task in checked], axis=0) / base
    parts = [_Task.of(task, task.cells - ratios[:, None] * task.base) for task in checked]
    errors = np.concatenate([-part.sums() / (count * part.items * base) for part in parts], axis=1)
    chosen = critical_values(errors) if critical is None else critical
    score = _recovery_score(parts, [part.effective(chosen) for part in parts])
    shape = (chosen.size, ratios.size)
    lows = _root(lambda r: score(r) - chosen[:, None], np.full(shape, 1e-9), np.broadcast_to(ratios, shape))
    limits = 1.0 - lows
    changes = [_Task.of(task, task.cells - task.base) for task in checked]
    raw = np.concatenate([part.sums() / (count * part.items * base) for part in changes], axis=1)
    return _losses(1.0 - ratios, limits, chosen, sum(part.items for part in parts), raw)


def mean_divergence(sums: Floats, sizes: Floats, critical: Floats | None = None) -> Losses:
    """Mean over tokens of what each cell's windows add up to: `sums` and `sizes` [cells, windows], windows resampled.

    Limits by the studentized bootstrap (`bootstrap.upper_limits`), which covers on skewed figures. A divergence of zero in all
    windows has zero as its limit: the cell gave the baseline's answers. `like_baseline` is that alone.
    """
    if sums.shape != sizes.shape or sums.ndim != 2:
        raise BadInput(f"windows are two tables [cells, windows], not of shapes {sums.shape} and {sizes.shape}")
    totals = sizes.sum(axis=1)
    values = sums.sum(axis=1) / totals
    errors = (sums - values[:, None] * sizes) / totals[:, None]
    chosen = critical_values(errors) if critical is None else critical
    levels = special.ndtr(chosen)
    limits = np.array([upper_limits(top, bottom, levels) for top, bottom in zip(sums, sizes, strict=True)])
    windows = sums.shape[1]
    reach = float(distributions.t.ppf(0.975, windows - 1)) * math.sqrt(windows / (windows - 1)) if windows > 1 else math.inf
    return Losses(
        values=values,
        limits=limits,
        critical=chosen,
        n=windows,
        alike=_within(values, errors, reach),
        like_baseline=values == 0.0,
    )


def critical_values(errors: Floats, confidences: Sequence[float] = CONFIDENCES) -> Floats:
    """The quantiles [confidences] of the largest of correlated normal variables. `errors` [cells, units]: what each independent
    unit adds to a cell's error; the correlation of cells is that of their rows. A row of zeros is independent of all others.

    By quasi-random draws (shifted by a fixed seed, and their negatives), kept between the quantile of one variable
    and Bonferroni's, which hold for any correlation. The same rows in the same order give the same values.
    """
    levels = np.asarray(confidences, dtype=np.float64)
    cells = len(errors)
    single = special.ndtri(levels)
    if cells <= 1:
        return np.asarray(single, dtype=np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", errors, errors))
    unit = np.divide(errors, norms[:, None], out=np.zeros_like(errors), where=norms[:, None] > 0)
    correlation = (1 - 1e-6) * (unit @ unit.T)
    np.fill_diagonal(correlation, 1.0)
    drawn = _normals(cells) @ np.linalg.cholesky(correlation).T
    largest = np.concatenate([drawn.max(axis=1), -drawn.min(axis=1)])
    bonferroni = -special.ndtri((1 - levels) / cells)
    return np.asarray(np.clip(np.quantile(largest, levels), single, bonferroni), dtype=np.float64)


@functools.lru_cache(maxsize=2)
def _normals(dimensions: int) -> Floats:
    """Quasi-random standard normals [draws, dimensions]: multiples of the roots of primes (Richtmyer's generator), shifted and
    folded, as Genz & Bretz (2009, section 4.2) take for normal probabilities."""
    draws = 1 << (14 if dimensions <= 64 else 12)
    multiples = np.arange(1, draws + 1)[:, None] * np.sqrt(_primes(dimensions))
    shifted = np.mod(multiples + np.random.default_rng(_SEED).random(dimensions), 1.0)
    folded = np.abs(2.0 * shifted - 1.0)
    return np.asarray(special.ndtri(np.clip(folded, 1e-12, 1 - 1e-12)), dtype=np.float64)


def _primes(count: int) -> Floats:
    """The first `count` primes [count]."""
    most = max(12, int(count * (math.log(count + 1) + math.log(math.log(count + 2) + 1) + 1)))
    prime = np.ones(most + 1, dtype=bool)
    prime[:2] = False
    for number in range(2, math.isqrt(most) + 1):
        prime[number * number :: number] &= not prime[number]
    return np.flatnonzero(prime)[:count].astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A task's items as residuals [cells, items] (of a difference or of a ratio), with the flips [cells] where items are right or
    wrong. `membership` [items, clusters] is None where every item stands alone."""

    residuals: Floats
    means: Floats
    lost: Floats
    won: Floats
    both: Floats
    base: Floats
    scores: Floats
    binary: bool
    membership: Floats | None

    @classmethod
    def of(cls, task: TaskItems, residuals: Floats) -> _Task:
        membership = None
        if task.clusters is not None:
            index = cluster_index(task.clusters, task.base.size)
            if int(index.max()) + 1 < task.base.size:
                membership = np.zeros((task.base.size, int(index.max()) + 1))
                membership[np.arange(task.base.size), index] = 1.0
        right = task.cells @ task.base
        return cls(
            residuals=residuals,
            means=residuals.mean(axis=1),
            lost=task.base.sum() - right,
            won=task.cells.sum(axis=1) - right,
            both=right,
            base=task.base,
            scores=task.cells,
            binary=_binary(task.base) and _binary(task.cells),
            membership=membership,
        )

    @property
    def items(self) -> int:
        return int(self.residuals.shape[1])

    def sums(self) -> Floats:
        """Residuals added up by cluster [cells, clusters]."""
        return self.residuals if self.membership is None else np.asarray(self.residuals @ self.membership)

    def of_residuals(self, ratio: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of score - ratio x the baseline's, for ratios [confidences, cells]. Where nothing changed, the
        variance is that of right or wrong items without a flip."""
        scores, base = self.scores - self.scores.mean(axis=1)[:, None], self.base - self.base.mean()
        variances, together = np.mean(np.square(scores), axis=1), scores @ base / base.size
        mean = self.scores.mean(axis=1) - ratio * self.base.mean()
        scatter = np.maximum(0.0, variances - 2 * ratio * together + np.square(ratio) * np.mean(np.square(base)))
        return mean, np.where(self.changed, scatter, np.maximum(0.0, ratio * (1 - ratio) * self.base.mean()))

    def centred(self) -> Floats:
        """Likewise of residuals less their mean."""
        centred = self.residuals - self.means[:, None]
        return centred if self.membership is None else np.asarray(centred @ self.membership)

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Cells [cells] that answered anything unlike the baseline."""
        return np.asarray(np.any(self.scores != self.base, axis=1))

    def spread(self, critical: Floats) -> Floats:
        """Variance of the mean [confidences, cells] over clusters, wide enough for normal quantiles where Student's are due."""
        clusters = self.items if self.membership is None else self.membership.shape[1]
        if clusters < 2:
            return np.ones((critical.size, len(self.means)))
        squares = clusters / (clusters - 1) * np.sum(np.square(self.centred()), axis=1) / self.items**2
        wider = np.square(distributions.t.ppf(special.ndtr(critical), clusters - 1) / critical)
        return np.asarray(wider[:, None] * squares)

    def effective(self, critical: Floats) -> Floats:
        """Effective numbers of items [confidences, cells]: `intervals.effective_items` of every row, at the levels that the
        critical values belong to."""
        items, cells = float(self.items), len(self.residuals)
        if self.membership is None:
            return np.full((critical.size, cells), items)
        count = self.membership.shape[1]
        variance = np.mean(np.square(self.residuals - self.means[:, None]), axis=1)
        if count < 2:
            return np.full((critical.size, cells), float(count))
        squares = np.sum(np.square(self.centred()), axis=1)
        ratio = np.divide(squares, items * variance, out=np.zeros_like(squares), where=variance > 0)
        design = np.maximum(1.0, count / (count - 1) * ratio)
        tails = special.ndtr(critical)
        penalty = np.square(distributions.t.ppf(tails, items - 1) / distributions.t.ppf(tails, count - 1))
        return np.where(variance > 0, np.maximum(1.0, items / design * penalty[:, None]), float(count))


def _difference_score(tasks: Sequence[_Task], effective: Sequence[Floats], critical: Floats) -> Callable[[Floats], Floats]:
    """The statistic of "the mean change is delta" as a function of deltas [confidences, cells]: distance over the root of the
    variance, both summed over tasks. How flips are fitted, `paired.paired_difference` says."""
    n = np.stack(effective)
    seen = np.stack(
        [np.broadcast_to(task.binary | ~task.changed, size.shape) for task, size in zip(tasks, effective, strict=True)]
    )
    lost, won = (
        np.stack([getattr(task, name) * task.binary * (size / task.items) for task, size in zip(tasks, effective, strict=True)])
        for name in ("lost", "won")
    )
    spread = np.stack([task.spread(critical) for task in tasks])
    means = np.stack([task.means for task in tasks])[:, None]

    def score(delta: Floats) -> Floats:
        b = (2 * n - won + lost) * delta - won - lost
        fitted = (np.sqrt(np.maximum(0.0, b * b + 8 * n * lost * delta * (1 - delta))) - b) / (4 * n)
        variance = np.where(seen, (2 * fitted + delta * (1 - delta)) / n, spread)
        return _ratio(np.sum(means - delta, axis=0), np.sum(variance, axis=0))

    return score


def _recovery_score(tasks: Sequence[_Task], effective: Sequence[Floats]) -> Callable[[Floats], Floats]:
    """The statistic of "mean accuracy = ratio x the baseline's" as a function of ratios [confidences, cells]: distance over the
    root of the variance, both added over tasks. How flips are fitted, `paired.recovery` says."""
    pairs = list(zip(tasks, effective, strict=True))
    binary = [(task, size) for task, size in pairs if task.binary]
    graded = [(task, size) for task, size in pairs if not task.binary]
    n = np.stack([size for _, size in binary]) if binary else np.ones((0, 1, 1))
    both, lost, won = (
        np.stack([getattr(task, name) * (size / task.items) for task, size in binary]) if binary else n
        for name in ("both", "lost", "won")
    )
    m = both + lost + won

    def score(ratio: Floats) -> Floats:
        shift = (1 - ratio) * m
        a, b, c = (1 + ratio) * m, (1 + ratio) * shift * (both + lost) + m * (lost + won), lost * m * shift
        fitted = (b + np.sqrt(np.maximum(0.0, b * b - 4 * a * c))) / np.where(a > 0, 2 * a, 1.0)
        gained = np.maximum(0.0, (fitted - shift) / ratio)
        distance = np.sum((both + won - ratio * (both + lost)) / n, axis=0)
        variance = np.sum(ratio * (fitted + gained) / np.square(n), axis=0)
        for task, size in graded:
            mean, scatter = task.of_residuals(ratio)
            distance, variance = distance + mean, variance + scatter / size
        return _ratio(distance, variance)

    return score


def _ratio(distance: Floats, variance: Floats) -> Floats:
    """distance / sqrt(variance); without a variance an infinity of the distance's sign, 0 for 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = distance / np.sqrt(variance)
    return np.where(variance > 0, scores, np.where(distance == 0, 0.0, np.copysign(np.inf, distance)))


def _root(decreasing: Callable[[Floats], Floats], low: Floats, high: Floats) -> Floats:
    """Where decreasing functions cross zero between `low` and `high`, row by row; the nearer end where one does not."""
    low, high = low.copy(), np.maximum(low, high)
    ends = np.where(decreasing(low) <= 0, low, np.nan)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        above = decreasing(middle) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(np.isnan(ends), low, ends)


def _losses(values: Floats, limits: Floats, critical: Floats, n: int, raw: Floats) -> Losses:
    """`limits` [confidences, cells]. `raw` [cells, units]: what each unit adds to a cell's change, not centred, so that a
    difference of two cells is tested as McNemar's test does: against the flips that there are."""
    return Losses(
        values=values,
        limits=np.maximum(limits, values).T,
        critical=critical,
        n=n,
        alike=_within(values, raw, ALIKE),
        like_baseline=np.abs(values) <= ALIKE * np.sqrt(np.einsum("ij,ij->i", raw, raw)),
    )


def _within(values: Floats, errors: Floats, reach: float) -> NDArray[np.bool_]:
    """Whether two cells' values lie within `reach` standard errors of their difference [cells, cells]."""
    if not math.isfinite(reach):
        return np.ones((values.size, values.size), dtype=np.bool_)
    products = errors @ errors.T
    squares = np.diag(products)
    variance = np.maximum(0.0, squares[:, None] + squares[None, :] - 2 * products)
    difference = np.abs(values[:, None] - values[None, :])
    # Rounding of the products must not make two equal rows differ.
    slack = 1e-12 * (squares[:, None] + squares[None, :])
    return np.asarray(difference <= reach * np.sqrt(variance + slack))


def _binary(scores: Floats) -> bool:
    return bool(np.all((scores == 0.0) | (scores == 1.0)))


def _checked(tasks: Sequence[TaskItems]) -> Sequence[TaskItems]:
    if not tasks:
        raise BadInput("no tasks to average over")
    for task in tasks:
        if task.cells.ndim != 2 or task.cells.shape[1:] != task.base.shape or not task.base.size:
            shapes = f"{task.base.shape} and {task.cells.shape}"
            raise BadInput(f"a baseline's items [items] and its cells' [cells, items] do not fit together: {shapes}")
    return tasks
