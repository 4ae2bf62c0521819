"""Where a series of nights changed its level, and how fast it drifts. Ranks only: one wild night moves neither.

Change points: the largest standardized rank sum (Pettitt 1979, with the weights of a two-sample test) is held against its own
distribution under random order (Antoch & Huskova 2001); where it is too large for chance, the series is split there and both
parts are asked again (Vostrikova 1981). Then each point is placed and tested once more between its neighbours. That nights are
exchangeable where nothing changed is assumed: a series that drifts all the time is cut into steps, and has a slope besides.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from harness.errors import BadInput
from harness.stats.intervals import LEVEL, Floats, Interval

ALPHA = 0.01
"""The chance that a series in which nothing changed shows a change point."""
SHORTEST = 3
"""Nights of a level, at least: a single other night is the gate's to judge."""
ORDERS = 1999
"""Random orders that one test draws, at most: fewer where it is clear that chance does as much."""
SEED = 1729
_CHUNK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePoint:
    """`at`: the place of the first value of the new level. `before`, `after`: the medians of the values from the last change to
    this one and from this one to the next. `p`: how often random order does as much."""

    at: int
    before: float
    after: float
    p: float


def change_points(values: ArrayLike, *, alpha: float = ALPHA) -> tuple[ChangePoint, ...]:
    """The places at which the level of a series [nights] changed, in order. BadInput for values that are not finite."""
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1 or not np.isfinite(series).all():
        raise BadInput("change points are looked for in one row of finite values")
    found = sorted(_split(series, 0, series.size, alpha))
    kept: list[tuple[int, float]] = []
    for place, _ in enumerate(found):
        begin = kept[-1][0] if kept else 0
        end = found[place + 1] if place + 1 < len(found) else series.size
        again = _largest(series[begin:end], alpha)
        if again is not None:
            kept.append((begin + again[0], again[1]))
    if not kept:
        return ()
    edges = [0, *(at for at, _ in kept), series.size]
    medians = [float(np.median(series[a:b])) for a, b in itertools.pairwise(edges)]
    return tuple(ChangePoint(at=at, before=medians[place], after=medians[place + 1], p=p) for place, (at, p) in enumerate(kept))


def _split(series: Floats, begin: int, end: int, alpha: float) -> list[int]:
    found = _largest(series[begin:end], alpha)
    if found is None:
        return []
    at = begin + found[0]
    return [*_split(series, begin, at, alpha), at, *_split(series, at, end, alpha)]


def _largest(values: Floats, alpha: float) -> tuple[int, float] | None:
    """Where the two sides differ most, and how often random order does as much; None where that is too often."""
    n = values.size
    if n < 2 * SHORTEST or values.min() == values.max():
        return None
    ranks = _ranks(values) - (n + 1) / 2
    weights = _weights(n)
    sums = np.abs(np.cumsum(ranks))[:-1] * weights
    at, most = int(sums.argmax()) + 1, float(sums.max()) * (1 - 1e-12)
    draw, as_much, drawn = np.random.default_rng(SEED), 0, 0
    while drawn < ORDERS:
        orders = draw.permuted(np.tile(ranks, (min(_CHUNK, ORDERS - drawn), 1)), axis=1)
        as_much += int(np.count_nonzero((np.abs(np.cumsum(orders, axis=1))[:, :-1] * weights).max(axis=1) >= most))
        drawn += len(orders)
        if 1 + as_much > alpha * (ORDERS + 1):
            return None
    return at, (1 + as_much) / (1 + drawn)


def _weights(n: int) -> Floats:
    """1 / the standard deviation of the rank sum at each place, but for a constant; 0 where one side were too short."""
    left = np.arange(1, n, dtype=np.float64)
    allowed = (left >= SHORTEST) & (left <= n - SHORTEST)
    return np.where(allowed, 1 / np.sqrt(left * (n - left)), 0.0)


def _ranks(values: Floats) -> Floats:
    """From 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    above = np.cumsum(counts)
    shared: Floats = (above - (counts - 1) / 2)[inverse]
    return shared


def slope(times: ArrayLike, values: ArrayLike, level: float = LEVEL) -> Interval:
    """The median of the slopes between all pairs (Theil 1950), with Sen's interval (Sen 1968, normal approximation, ties in the
    values counted). `times` must differ. No interval below 4 values; BadInput for rows of different lengths or below 2."""
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or x.size < 2 or np.unique(x).size != x.size:
        raise BadInput("a slope needs two rows of at least two values, at times that differ")
    first, second = np.triu_indices(x.size, k=1)
    slopes: NDArray[np.float64] = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    value, n = float(np.median(slopes)), x.size
    if n < 4:
        return Interval(value=value, low=None, high=None, n=n, level=level)
    _, ties = np.unique(y, return_counts=True)
    spread = n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())
    reach = float(special.ndtri(1 - (1 - level) / 2)) * math.sqrt(max(0.0, spread) / 18)
    low, high = round((slopes.size - reach) / 2) - 1, round((slopes.size + reach) / 2)
    ends = (float(slopes[max(0, low)]), float(slopes[min(slopes.size - 1, high)]))
    return Interval(value=value, low=ends[0], high=ends[1], n=n, level=level)
