"""Interval, and the closed-form intervals: proportions, means, medians, quantiles.

Promises: pure and deterministic; numpy arrays or sequences in, `Interval` out; an interval that the data cannot support has
`low`/`high` None instead of a wrong width. Refuses empty input (BadInput) and input without any finite value (Nonfinite).
Clusters (items of one passage, tokens of one window) are never treated as independent where they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from harness.errors import BadInput, Nonfinite
from harness.stats import distributions

Floats: TypeAlias = NDArray[np.float64]
Clusters: TypeAlias = Sequence[Hashable] | NDArray[np.generic]
"""One label per item; items with equal labels belong together (a document, a passage, a subject)."""

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its two-sided confidence interval. `n` counts the values used (tokens, items, repeats), `excluded` the
    non-finite ones left out. `low`/`high` are None where the data cannot support a limit (one block, too few repeats)."""

    value: float
    low: float | None
    high: float | None
    n: int
    excluded: int = 0
    level: float = LEVEL

    def map(self, increasing: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the estimate, e.g. `interval.map(math.exp)`."""
        return Interval(
            value=increasing(self.value),
            low=None if self.low is None else increasing(self.low),
            high=None if self.high is None else increasing(self.high),
            n=self.n,
            excluded=self.excluded,
            level=self.level,
        )

    def negated(self) -> Interval:
        """The interval of minus the estimate (a difference seen as a loss)."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return Interval(value=-self.value, low=low, high=high, n=self.n, excluded=self.excluded, level=self.level)

    @property
    def relative_width(self) -> float:
        """(high - low) / |value|; infinite where no interval is defined. The stopping rule of the latency probe."""
        if self.low is None or self.high is None or self.value == 0.0:
            return float("inf")
        return (self.high - self.low) / abs(self.value)


def normal_quantile(level: float) -> float:
    """z of a two-sided interval: 1.95996 for 0.95."""
    if not 0.0 < level < 1.0:
        raise BadInput(f"a confidence level lies between 0 and 1, not {level}")
    return float(special.ndtri(0.5 + level / 2.0))


def wilson(successes: float, n: float, level: float = LEVEL, *, items: int | None = None) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927; Brown, Cai & DasGupta 2001 recommend it for every n).

    `successes` and `n` may be effective (fractional) counts; `items` is then the real number of items to report.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise BadInput(f"a proportion needs 0 <= successes <= n and n > 0, not {successes} of {n}; does the task have items?")
    z = normal_quantile(level)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At p = 0 and p = 1 the limits are exactly 0 and 1; rounding must not push them past the estimate.
    low, high = min(p, max(0.0, float(centre - half))), max(p, min(1.0, float(centre + half)))
    return Interval(value=p, low=low, high=high, n=round(n) if items is None else items, level=level)


def accuracy(correct: ArrayLike, clusters: Clusters | None = None, level: float = LEVEL) -> Interval:
    """Share of correct items with its Wilson interval. With `clusters`, on the effective number of items: n divided by the
    design effect (Rao & Scott 1992), with Student's t for few clusters (Korn & Graubard 1998)."""
    values = as_correct(correct)
    p = float(values.mean())
    effective = effective_items(values - p, p * (1 - p), clusters, level)
    return wilson(min(p * effective, effective), effective, level, items=values.size)


def mean_interval(samples: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean of independent samples with Student's t interval; non-finite samples are left out and counted."""
    values, excluded = finite(samples)
    mean = float(values.mean())
    if values.size < 2:
        return Interval(value=mean, low=None, high=None, n=values.size, excluded=excluded, level=level)
    half = float(distributions.t.ppf(0.5 + level / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return Interval(value=mean, low=mean - half, high=mean + half, n=values.size, excluded=excluded, level=level)


def median_interval(samples: ArrayLike, level: float = LEVEL) -> Interval:
    """Median of independent samples with its distribution-free order-statistic interval (ranks from Binomial(n, 1/2)).

    Coverage is at least `level` for every continuous distribution; below 6 samples no 95 % interval exists (None).
    """
    values, excluded = finite(samples)
    values = np.sort(values)
    n = values.size
    tail = (1 - level) / 2
    # Largest number of samples that may be cut from each end while P(median outside) stays below 1 - level.
    cut = int(distributions.binom.ppf(tail, n, 0.5))
    if distributions.binom.cdf(cut, n, 0.5) > tail:
        cut -= 1
    low, high = (None, None) if cut < 0 else (float(values[cut]), float(values[n - 1 - cut]))
    return Interval(value=float(np.median(values)), low=low, high=high, n=n, excluded=excluded, level=level)


def median_ratio(numerators: ArrayLike, denominators: ArrayLike, level: float = LEVEL) -> Interval:
    """Median of the ratios of interleaved pairs (cell against baseline, measured in turn), order-statistic interval."""
    over, under = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if over.shape != under.shape or over.ndim != 1:
        raise BadInput(f"pairs need two equally long rows, not shapes {over.shape} and {under.shape}")
    if np.any(under <= 0):
        raise BadInput("a ratio needs positive denominators")
    return median_interval(over / under, level)


def quantile_interval(blocks: ArrayLike, q: float, level: float = LEVEL) -> Interval:
    """The q-quantile of all values in `blocks` [windows, tokens] (or [samples], then independent), with its interval.

    Woodruff's method (1952): an interval for the share of values below the estimate, mapped back through the sorted values.
    The share's interval is Clopper-Pearson on the effective number of values, which counts the correlation within blocks
    (Korn & Graubard 1998). A limit beyond the last value is None: that few values cannot bound that quantile.
    """
    if not 0.0 < q < 1.0:
        raise BadInput(f"a quantile lies strictly between 0 and 1, not {q}")
    table = np.asarray(blocks, dtype=np.float64)
    mask = np.isfinite(table)
    values = np.sort(table[mask])
    if values.size == 0:
        raise Nonfinite("no finite value among the samples; the artifact answers NaN or infinity")
    n, excluded = values.size, table.size - values.size
    value = float(np.quantile(values, q))
    labels: NDArray[np.intp] | None = None
    if table.ndim == 2 and table.shape[1] > 1:
        labels = np.nonzero(mask)[0]
        if np.unique(labels).size < 2:
            return Interval(value=value, low=None, high=None, n=n, excluded=excluded, level=level)
    below = (table[mask] <= value).astype(np.float64)
    share = float(below.mean())
    effective = effective_items(below - share, share * (1 - share), labels, level) if 0 < share < 1 else float(n)
    tail = (1 - level) / 2
    hits = q * effective
    lowest = float(special.betaincinv(hits, effective - hits + 1, tail))
    highest = float(special.betaincinv(hits + 1, effective - hits, 1 - tail))
    # Ranks rounded outwards: the interval may only get wider.
    first, last = int(np.floor(lowest * n)) - 1, int(np.ceil(highest * n))
    low = float(values[first]) if first >= 0 else None
    high = float(values[last]) if last < n else None
    return Interval(value=value, low=low, high=high, n=n, excluded=excluded, level=level)


def effective_items(residuals: Floats, variance: float, clusters: Clusters | None, level: float = LEVEL) -> float:
    """How many independent items would give this mean the variance it has: n / design effect, at most n.

    `residuals` [items]: value minus mean; `variance`: that of one item if all were independent. Where nothing varies (no
    error, no flip) correlation cannot be estimated, and each cluster counts as one item: the safe side. Few clusters are
    paid for by Student's t (Korn & Graubard 1998).
    """
    n = float(residuals.size)
    if clusters is None:
        return n
    index = cluster_index(clusters, residuals.size)
    count = int(index.max()) + 1
    if count == residuals.size:
        return n
    if variance <= 0 or count < 2:
        return float(count)
    sums = np.bincount(index, weights=residuals)
    design = max(1.0, count / (count - 1) * float(sums @ sums) / (n * variance))
    tail = 0.5 + level / 2
    penalty = float(distributions.t.ppf(tail, n - 1) / distributions.t.ppf(tail, count - 1)) ** 2
    return max(1.0, n / design * penalty)


def cluster_index(clusters: Clusters, items: int) -> NDArray[np.intp]:
    """Labels of any hashable kind to 0..K-1 [items], in order of first appearance."""
    labels = clusters if isinstance(clusters, np.ndarray) else list(clusters)
    if len(labels) != items:
        raise BadInput(f"{len(labels)} cluster labels for {items} items; give one label per item")
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":  # windows of tokens: too many to look up one by one
        _, first, which = np.unique(labels, return_index=True, return_inverse=True)
        order = np.empty(first.size, dtype=np.intp)
        order[np.argsort(first)] = np.arange(first.size)
        return order[which.reshape(items)]
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    seen: dict[Hashable, int] = {}
    return np.fromiter((seen.setdefault(label, len(seen)) for label in labels), dtype=np.intp, count=items)


def as_correct(correct: ArrayLike) -> Floats:
    """Per-item correctness as 0.0/1.0 [items]; refuses anything that is not a row of 0/1 or booleans."""
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim != 1:
        raise BadInput(f"per-item results are one row, not an array of shape {values.shape}")
    if values.size == 0:
        raise BadInput("no items to score; the task or the limit leaves none")
    if not np.all((values == 0.0) | (values == 1.0)):
        raise BadInput("per-item results must be 0 or 1 (correct or not)")
    return values


def finite(samples: ArrayLike) -> tuple[Floats, int]:
    """The finite values as one row, and how many were left out."""
    values = np.asarray(samples, dtype=np.float64).ravel()
    if values.size == 0:
        raise BadInput("no samples to summarise")
    kept = values[np.isfinite(values)]
    if kept.size == 0:
        raise Nonfinite("no finite value among the samples; the artifact answers NaN or infinity")
    return kept, int(values.size - kept.size)
