"""A cell against its baseline on the same items: flips, exact test, difference, recovery, and what could not be seen.

Promises: every function takes per-item correctness of baseline and cell in the same order and treats the items as pairs,
which is what makes a 1-point loss visible with some hundred items instead of tens of thousands. Items that share a passage
are given as `clusters` and never counted as independent. "No loss" is not in the vocabulary: see `Finding`.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import BadInput
from harness.stats import distributions
from harness.stats.bootstrap import REPLICATES, SEED, block_bootstrap_mean, ratio_of_sums
from harness.stats.intervals import LEVEL, Clusters, Floats, Interval, as_correct, cluster_index, effective_items, normal_quantile
from harness.stats.roots import crossing


class Flips(NamedTuple):
    """Items whose answer changed, both ways apart."""

    right_to_wrong: int
    wrong_to_right: int


def flips(base_correct: ArrayLike, cell_correct: ArrayLike) -> Flips:
    """Counts of items right at the baseline and wrong in the cell, and the other way round."""
    return _Pairs.of(base_correct, cell_correct).flips


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """Right or wrong items [items] of the baseline and of a cell, checked once, and how many are right in both. Without
    clusters all that is said of them follows from the counts."""

    base: Floats
    cell: Floats
    clusters: Clusters | None
    both: int
    flips: Flips

    @classmethod
    def of(cls, base_correct: ArrayLike, cell_correct: ArrayLike, clusters: Clusters | None = None) -> _Pairs:
        base, cell = as_correct(base_correct), as_correct(cell_correct)
        if base.shape != cell.shape:
            raise BadInput(f"baseline and cell answered different items: {base.size} against {cell.size}; compare the same items")
        return cls.counted(base, cell, clusters)

    @classmethod
    def counted(cls, base: Floats, cell: Floats, clusters: Clusters | None) -> _Pairs:
        """Of equally long rows of zeros and ones."""
        both = int(base @ cell)  # sums of zeros and ones are exact
        flips = Flips(right_to_wrong=int(base.sum()) - both, wrong_to_right=int(cell.sum()) - both)
        return cls(base=base, cell=cell, clusters=clusters, both=both, flips=flips)

    def test(self) -> float:
        if self.clusters is None:
            return mcnemar_exact(*self.flips)
        nets = np.bincount(cluster_index(self.clusters, self.base.size), weights=self.cell - self.base)
        steps = np.abs(np.rint(nets[nets != 0])).astype(np.int64)
        observed, reach = abs(round(float(nets.sum()))), int(steps.sum())
        distribution: Floats = np.zeros(2 * reach + 1)
        distribution[reach] = 1.0
        for step in steps:
            distribution = 0.5 * (np.roll(distribution, step) + np.roll(distribution, -step))
        distance = np.abs(np.arange(-reach, reach + 1))
        return min(1.0, float(distribution[distance >= observed].sum()))

    def difference(self, level: float) -> Interval:
        (lost, won), n = self.flips, self.base.size
        mean = (won - lost) / n
        effective = self._effective(lambda: (self.cell - self.base - mean, (won + lost) / n - mean * mean), level)
        scale = effective / n
        low, high = _tango(lost * scale, won * scale, effective, normal_quantile(level))
        return Interval(value=mean, low=low, high=high, n=n, level=level)

    def recovery(self, level: float) -> Interval:
        both, (lost, won), n = float(self.both), self.flips, self.base.size
        if both + lost == 0:
            raise BadInput("the baseline has no item right, so there is nothing to recover; choose a task that it can do")
        ratio = (both + won) / (both + lost)

        def linearised() -> tuple[Floats, float]:
            """Per-item contribution to the ratio; its design effect is the ratio's."""
            residuals = self.cell - ratio * self.base
            return residuals, float(np.mean(residuals * residuals))

        effective = self._effective(linearised, level)
        scale = effective / n
        low, high = _ratio_limits(both * scale, lost * scale, won * scale, ratio, normal_quantile(level))
        return Interval(value=ratio, low=low, high=high, n=n, level=level)

    def detectable(self) -> float:
        (lost, won), n = self.flips, self.base.size
        rate, mean = (lost + won) / n, (won - lost) / n
        effective = self._effective(lambda: (self.cell - self.base - mean, rate - mean * mean), LEVEL)
        return minimum_detectable_effect(max(1, int(effective)), rate)

    def _effective(self, residuals: Callable[[], tuple[Floats, float]], level: float) -> float:
        """`effective_items`, for which residuals and their variance are made only where items share a cluster."""
        return float(self.base.size) if self.clusters is None else effective_items(*residuals(), self.clusters, level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that this file says of the right or wrong items of one task: `paired_difference`, `flips`, `paired_test`,
    `smallest_detectable` and `recovery`, which is None where the baseline has no item right."""

    difference: Interval
    flips: Flips
    p: float
    detectable: float
    recovery: Interval | None


def compare(
    base_correct: ArrayLike, cell_correct: ArrayLike, clusters: Clusters | None = None, level: float = LEVEL
) -> Comparison:
    """Everything about a pair of rows at once, so that they are checked and counted once."""
    pairs = _Pairs.of(base_correct, cell_correct, clusters)
    return Comparison(
        difference=pairs.difference(level),
        flips=pairs.flips,
        p=pairs.test(),
        detectable=pairs.detectable(),
        recovery=pairs.recovery(level) if pairs.both + pairs.flips.right_to_wrong else None,
    )


def mcnemar_exact(right_to_wrong: int, wrong_to_right: int) -> float:
    """Two-sided exact McNemar p-value: the flips against Binomial(flips, 1/2); 1 where nothing flipped."""
    if min(right_to_wrong, wrong_to_right) < 0:
        raise BadInput("flips are counts")
    return _mcnemar(min(right_to_wrong, wrong_to_right), right_to_wrong + wrong_to_right)


@functools.lru_cache(maxsize=65536)
def _mcnemar(fewer: int, total: int) -> float:
    return min(1.0, 2.0 * float(distributions.binom.cdf(fewer, total, 0.5)))


def paired_test(base_correct: ArrayLike, cell_correct: ArrayLike, clusters: Clusters | None = None) -> float:
    """Exact two-sided p-value of "quantization changes nothing": the exact McNemar test, and with `clusters` its extension.

    Under the hypothesis the two models may be swapped in any cluster, so the sign of each cluster's net change is a fair coin;
    the distribution of the signed sum is computed exactly by convolution (Fisher's randomisation test on clusters). With
    clusters of one item it is McNemar's test.
    """
    return _Pairs.of(base_correct, cell_correct, clusters).test()


def paired_difference(
    base_scores: ArrayLike, cell_scores: ArrayLike, clusters: Clusters | None = None, level: float = LEVEL
) -> Interval:
    """Cell minus baseline, mean over the same items, with its paired interval. Negative: the cell loses.

    For right/wrong items: Tango's score interval (1998). It covers to its level at the few flips that quantization causes,
    has a width even where nothing flipped (the Wald interval and the bootstrap collapse to a point there and would "show" no
    loss), and agrees with McNemar's test. With clusters, on the effective numbers of items (Rao & Scott 1992). For other
    scores (F1, bits): block bootstrap of the differences, clusters as blocks.
    """
    base, cell = np.asarray(base_scores, dtype=np.float64), np.asarray(cell_scores, dtype=np.float64)
    if base.shape != cell.shape or base.ndim != 1:
        raise BadInput(
            f"baseline and cell answered different items: shapes {base.shape} and {cell.shape}; compare the same items"
        )
    if not right_or_wrong(base) or not right_or_wrong(cell):
        return _scored_difference(base, cell, cell - base, clusters, level)
    if not base.size:
        raise BadInput("no items to compare; the task or the limit leaves none")
    return _Pairs.counted(base, cell, clusters).difference(level)


def recovery(
    base_correct: ArrayLike, cell_correct: ArrayLike, clusters: Clusters | None = None, level: float = LEVEL
) -> Interval:
    """accuracy(cell) / accuracy(baseline) with its paired score interval (Nam & Blackwelder 2002).

    Fieller's interval and the bootstrap collapse to a point where nothing flipped; this one does not. With clusters, on the
    effective numbers of items. A baseline that gets nothing right has no recovery (BadInput).
    """
    return _Pairs.of(base_correct, cell_correct, clusters).recovery(level)


@functools.lru_cache(maxsize=65536)
def _ratio_limits(both: float, lost: float, won: float, ratio: float, z: float) -> tuple[float, float | None]:
    """Limits of a ratio of accuracies: where the score statistic is +-z."""
    score = functools.partial(_ratio_score, both, lost, won)
    low = _root(lambda t: score(t) - z, 1e-9, ratio) if ratio > 0 else 0.0
    ceiling = max(ratio, 1.0)
    while score(ceiling) > -z and ceiling < 1e9:
        ceiling *= 2
    high = _root(lambda t: score(t) + z, max(ratio, 1e-9), ceiling) if ceiling < 1e9 else None
    return low, high


@functools.lru_cache(maxsize=4096)
def minimum_detectable_effect(n: int, flip_rate: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true change of accuracy that the exact McNemar test finds with this power at n items, as a fraction.

    `flip_rate`: share of items that flip, both ways together. The test's power is summed exactly over the number of flips
    (Connor 1987 gives the approximation); a change larger than the flip rate raises the flip rate with it, so that with no
    flips at all the answer is about 7.9 / n and not 0. Returns 1.0 where even a total loss would not be found.
    """
    if n < 1 or not 0.0 <= flip_rate <= 1.0:
        raise BadInput(f"a detectable effect needs n >= 1 items and a flip rate in 0..1, not {n} and {flip_rate}")
    if _mcnemar_power(n, 1.0, 1.0, alpha) < power:
        return 1.0

    def surplus(effect: float) -> float:
        return _mcnemar_power(n, max(flip_rate, effect), effect, alpha) - power

    return crossing(surplus, 0.0, 1.0, xtol=1e-7, rtol=1e-4)


def smallest_detectable(base_correct: ArrayLike, cell_correct: ArrayLike, clusters: Clusters | None = None) -> float:
    """`minimum_detectable_effect` at these items and their flip rate; with `clusters`, at their effective number."""
    return _Pairs.of(base_correct, cell_correct, clusters).detectable()


class Task(NamedTuple):
    """One task's per-item scores for `mean_difference_over_tasks`."""

    base: ArrayLike
    cell: ArrayLike
    clusters: Clusters | None = None


def mean_difference_over_tasks(tasks: Sequence[Task | tuple[ArrayLike, ArrayLike]], level: float = LEVEL) -> Interval:
    """Unweighted mean over tasks of (cell - baseline), items (or clusters) resampled within each task.

    Says how sure we are of the mean over *these* tasks, not over tasks in general. Bootstrap of 2,000 replicates; each task's
    resample is drawn as counts of its distinct (change, size) clusters, which is the same distribution as drawing items. The
    interval is never narrower than Tango's intervals of the tasks combine to (Zou & Donner 2008), which keep their width
    where nothing flipped.
    """
    rows = [Task(*task) for task in tasks]
    if not rows:
        raise BadInput("no tasks to average over")
    parts = [paired_difference(row.base, row.cell, row.clusters, level) for row in rows]
    rng = np.random.default_rng(SEED)
    replicates = np.mean([_resampled_means(rng, row) for row in rows], axis=0)
    value = float(np.mean([part.value for part in parts]))
    tail = (1 - level) / 2
    low, high = (float(x) for x in np.quantile(replicates, [tail, 1 - tail]))
    if all(part.low is not None and part.high is not None for part in parts):
        below = [part.value - part.low for part in parts if part.low is not None]
        above = [part.high - part.value for part in parts if part.high is not None]
        low = min(low, value - math.hypot(*below) / len(parts))
        high = max(high, value + math.hypot(*above) / len(parts))
    return Interval(value=value, low=low, high=high, n=sum(part.n for part in parts), level=level)


class Finding(enum.Enum):
    """What a paired interval allows to be said. There is no "no loss": that cannot be shown by any number of items."""

    LOSS = "loss shown"
    GAIN = "gain shown"
    WITHIN = "any loss is shown to be below the margin"
    UNSEEN = "no loss shown, but one above the margin could not be excluded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A finding with the two numbers that keep it honest: the largest loss that the interval leaves open, and the smallest
    that this many items would have shown with 80 % power (None where it was not computed), both as positive fractions."""

    finding: Finding
    largest_loss: float | None
    detectable: float | None
    margin: float


def state(difference: Interval, margin: float, detectable: float | None = None) -> Statement:
    """Sorts a difference (cell - baseline, higher is better) into a Finding. `margin` > 0: the loss that would matter.

    A significant loss that is also shown to be smaller than the margin is WITHIN: for a choice between cells that is what
    counts.
    """
    if margin <= 0:
        raise BadInput(f"a margin is a positive loss, not {margin}")
    largest = None if difference.low is None else max(0.0, -difference.low)
    if difference.low is not None and difference.low > 0:
        finding = Finding.GAIN
    elif noninferior(difference, margin):
        finding = Finding.WITHIN
    elif difference.high is not None and difference.high < 0:
        finding = Finding.LOSS
    else:
        finding = Finding.UNSEEN
    return Statement(finding=finding, largest_loss=largest, detectable=detectable, margin=margin)


def noninferior(difference: Interval, margin: float, *, higher_is_better: bool = True) -> bool:
    """Whether the loss is shown to be below `margin` (>= 0): the whole interval of cell - baseline lies on the good side of it.

    With a two-sided 95 % interval this is a one-sided test at 2.5 %; give a 90 % interval for "with 95 % confidence".
    """
    if higher_is_better:
        return difference.low is not None and difference.low > -margin
    return difference.high is not None and difference.high < margin


def equivalent(difference: Interval, margin: float) -> bool:
    """Whether a change in either direction is shown to be below `margin`."""
    return noninferior(difference, margin) and noninferior(difference, margin, higher_is_better=False)


def _scored_difference(base: Floats, cell: Floats, change: Floats, clusters: Clusters | None, level: float) -> Interval:
    """Mean change of scores that are not right or wrong: block bootstrap, clusters as blocks."""
    usable = np.isfinite(change)
    used = int(usable.sum())
    if used and not np.any(change[usable]):
        # Nothing changed: a bootstrap would call that certain. Scores in 0..1 change by at most 1, so unseen flips bound them.
        effective = effective_items(change[usable], 0.0, _kept(clusters, usable), level)
        low, high = _tango(0.0, 0.0, effective, normal_quantile(level))
        bounded = bool(np.all((base[usable] >= 0) & (base[usable] <= 1)))
        limits = (low, high) if bounded else (None, None)
        return Interval(value=0.0, low=limits[0], high=limits[1], n=used, excluded=change.size - used, level=level)
    if clusters is None:
        return block_bootstrap_mean(change, level)
    index = cluster_index(clusters, change.size)
    sums = np.bincount(index, weights=np.where(usable, change, 0.0))
    sizes = np.bincount(index, weights=usable.astype(np.float64))
    return ratio_of_sums(sums, sizes, level, n=used, excluded=change.size - used)


def _kept(clusters: Clusters | None, usable: NDArray[np.bool_]) -> Clusters | None:
    return None if clusters is None else [label for label, kept in zip(clusters, usable, strict=True) if kept]


def right_or_wrong(scores: Floats) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.all((scores == 0.0) | (scores == 1.0)))


@functools.lru_cache(maxsize=65536)  # a task of some hundred items has few numbers of flips, and many cells
def _tango(lost: float, won: float, n: float, z: float) -> tuple[float, float]:
    """Limits of p(won) - p(lost): where the score statistic, with the flips' probabilities fitted under that difference, is
    +-z."""

    def score(delta: float) -> float:
        a, b, c = 2 * n, (2 * n - won + lost) * delta - won - lost, -lost * delta * (1 - delta)
        fitted_lost = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * fitted_lost + delta * (1 - delta))
        distance = won - lost - n * delta
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0

    estimate = (won - lost) / n
    low = -1.0 if estimate <= -1 else _root(lambda d: score(d) - z, -1.0, estimate)
    high = 1.0 if estimate >= 1 else _root(lambda d: score(d) + z, estimate, 1.0)
    return low, high


def _ratio_score(both: float, lost: float, won: float, ratio: float) -> float:
    """Score statistic of accuracy(cell) = ratio x accuracy(baseline), flips' probabilities fitted under that ratio.

    The items wrong in both carry nothing. Among the m others, in numbers of items, v = fitted lost, w = fitted won = (v - (1
    - ratio) m) / ratio, and the likelihood equation is a quadratic in v whose larger root is the fit.
    """
    m = both + lost + won
    shift = (1 - ratio) * m
    a, b, c = (1 + ratio) * m, (1 + ratio) * shift * (both + lost) + m * (lost + won), lost * m * shift
    v = (b + math.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a)
    w = max(0.0, (v - shift) / ratio)
    distance = both + won - ratio * (both + lost)
    variance = ratio * (v + w)
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0


def _root(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Where a decreasing function crosses zero; the nearer end where it does not (a limit at the edge of the range)."""
    if decreasing(low) <= 0:
        return low
    if decreasing(high) >= 0:
        return high
    return crossing(decreasing, low, high)


def _mcnemar_power(n: int, flip_rate: float, effect: float, alpha: float) -> float:
    """Exact power of the two-sided exact McNemar test, summed over the number of flips that Binomial(n, flip_rate) makes
    likely."""
    if flip_rate <= 0:
        return 0.0
    counts, likely = _flip_counts(n, flip_rate)
    if counts.size == 0:
        return 0.0
    critical = _critical(alpha, int(counts[-1]).bit_length())[counts]
    share = min(1.0, 0.5 * (1 + effect / flip_rate))
    rejects = distributions.binom.cdf(critical, counts, 1 - share) + distributions.binom.sf(
        counts - critical - 1, counts, 1 - share
    )
    return float(np.sum(likely * np.where(critical >= 0, rejects, 0.0)))


@functools.lru_cache(maxsize=4096)  # a search for an effect below the flip rate asks for the same again and again
def _flip_counts(n: int, flip_rate: float) -> tuple[NDArray[np.int64], Floats]:
    """Numbers of flips that Binomial(n, flip_rate) makes likely, and their probabilities [numbers]."""
    first, last = (int(x) for x in distributions.binom.ppf([1e-9, 1 - 1e-9], n, flip_rate))
    counts = np.arange(max(first, 1), last + 1)
    return counts, distributions.binom.pmf(counts, n, flip_rate)


@functools.lru_cache(maxsize=64)
def _critical(alpha: float, bits: int) -> Floats:
    """Largest minority of flips that is still significant [numbers of flips, below 2**bits]; -1 where none is."""
    counts = np.arange(2**bits)
    critical = distributions.binom.ppf(alpha / 2, counts, 0.5)
    limits: Floats = np.where(distributions.binom.cdf(critical, counts, 0.5) > alpha / 2, critical - 1, critical)
    return limits


def _resampled_means(rng: np.random.Generator, task: Task) -> Floats:
    change = np.asarray(task.cell, dtype=np.float64) - np.asarray(task.base, dtype=np.float64)
    usable = np.isfinite(change)
    sums, sizes = np.where(usable, change, 0.0), usable.astype(np.float64)
    if task.clusters is not None:
        index = cluster_index(task.clusters, change.size)
        sums, sizes = (np.bincount(index, weights=each).astype(np.float64) for each in (sums, sizes))
    kinds, occurrences = _kinds(sums, sizes)
    drawn = rng.multinomial(sums.size, occurrences / sums.size, size=REPLICATES).astype(np.float64) @ kinds
    return np.asarray(drawn[:, 0] / np.maximum(drawn[:, 1], 1.0), dtype=np.float64)


def _kinds(sums: Floats, sizes: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """The distinct (sum, size) of clusters [kinds, 2] in ascending order, and how many clusters each has."""
    if np.all(sizes == sizes[0]):  # one item each, say: a row is sorted much faster than a table
        distinct, occurrences = np.unique(sums, return_counts=True)
        return np.stack([distinct, np.full_like(distinct, sizes[0])], axis=1), occurrences
    kinds, occurrences = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    return kinds, occurrences
