"""Which cells are worth choosing between: the Pareto frontier of any two metrics, with its uncertainty.

A point is on the frontier when no other point is at least as good on both axes and better on one. Measured points are
noisy, so each may carry draws (bootstrap replicates) of its coordinates; draws of all points share their resampled items, so that
what is common to two cells cancels in their difference. From the draws follow the probability of being on the frontier,
who is dominated *beyond the noise*, and who is tied with whom. Pure numbers: numpy only, no clock, seeded draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.spec import Better

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

DRAWS = 1000
CONFIDENCE = 0.975
"""One-sided: the share of draws in which a difference must hold to be beyond the noise (a two-sided 95 % interval excludes 0)."""

Status = Literal["frontier", "tied", "dominated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One cell on two axes. `x_draws`, `y_draws`: float arrays [draws] of replicates of that coordinate, None = exact."""

    id: str
    x: float
    y: float
    x_draws: Floats | None = None
    y_draws: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a point stands.

    `frontier`: nobody dominates it. `tied`: somebody does by value, nobody beyond the noise; `rivals` are those on the frontier
    who do. `dominated`: `rivals` are those on the frontier (or else anywhere) who dominate it beyond the noise.
    `ties`, for a frontier point: the frontier points that are better on x and that it does not beat on y beyond the noise, so
    that what it costs more buys nothing that this data could show. `probability`: share of draws in which it is on the frontier.
    """

    id: str
    status: Status
    probability: float
    rivals: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()


def draws_from_interval(value: float, low: float | None, high: float | None, *, seed: int, count: int = DRAWS) -> Floats | None:
    """Normal replicates [count] whose central 95 % matches the interval; None when there is no interval (an exact number)."""
    if low is None or high is None or not np.isfinite([value, low, high]).all() or high <= low:
        return None
    deviation = (high - low) / (2 * 1.959963984540054)
    draws: Floats = value + deviation * np.random.default_rng(seed).standard_normal(count)
    return draws


def frontier(points: Sequence[Point], *, better_x: Better, better_y: Better) -> list[Standing]:
    """The standing of every point, in the order given. Points with a coordinate that is not finite are refused (ValueError)."""
    if not points:
        return []
    x = _oriented([p.x for p in points], better_x)
    y = _oriented([p.y for p in points], better_y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a frontier point has a coordinate that is not finite; leave such cells out")
    x_draws = [None if p.x_draws is None else _oriented(p.x_draws, better_x) for p in points]
    y_draws = [None if p.y_draws is None else _oriented(p.y_draws, better_y) for p in points]
    on = _on_frontier(x[:, None], y[:, None])[:, 0]
    probability = _probabilities(x, y, x_draws, y_draws)

    def beyond(i: int, j: int) -> bool:
        return _better(x[i], x[j], x_draws[i], x_draws[j]) or _better(y[i], y[j], y_draws[i], y_draws[j])

    standings = []
    for j, point in enumerate(points):
        if on[j]:
            cheaper = [i for i in np.flatnonzero(on & (x < x[j])) if not _better(y[j], y[i], y_draws[j], y_draws[i])]
            ties = tuple(points[i].id for i in sorted(cheaper, key=lambda i: (y[i], points[i].id)))
            standings.append(Standing(id=point.id, status="frontier", probability=float(probability[j]), ties=ties))
            continue
        dominators = np.flatnonzero((x <= x[j]) & (y <= y[j]) & ((x < x[j]) | (y < y[j])))
        clear = [i for i in dominators if beyond(i, j)]
        chosen = clear or list(dominators)
        best = [i for i in chosen if on[i]] or chosen
        rivals = tuple(points[i].id for i in sorted(best, key=lambda i: (x[i], y[i], points[i].id)))
        status: Status = "dominated" if clear else "tied"
        standings.append(Standing(id=point.id, status=status, probability=float(probability[j]), rivals=rivals))
    return standings


def shares_on_frontier(points: Sequence[Point], *, better_x: Better, better_y: Better) -> list[float]:
    """`Standing.probability` of every point, without the rest of its standing."""
    if not points:
        return []
    x, y = _oriented([p.x for p in points], better_x), _oriented([p.y for p in points], better_y)
    x_draws = [None if p.x_draws is None else _oriented(p.x_draws, better_x) for p in points]
    y_draws = [None if p.y_draws is None else _oriented(p.y_draws, better_y) for p in points]
    return [float(share) for share in _probabilities(x, y, x_draws, y_draws)]


def _oriented(values: ArrayLike, better: Better) -> Floats:
    """As float array in which lower is better."""
    if better == "neither":
        raise ValueError("a frontier needs metrics that have a better direction")
    array = np.asarray(values, dtype=float)
    return -array if better == "higher" else array


def _better(a: float, b: float, a_draws: Floats | None, b_draws: Floats | None) -> bool:
    """Whether a (lower is better) beats b beyond the noise; two exact numbers differ when they differ."""
    if not a < b:
        return False
    if a_draws is None and b_draws is None:
        return True
    return bool(np.mean((a if a_draws is None else a_draws) < (b if b_draws is None else b_draws)) >= CONFIDENCE)


def _probabilities(x: Floats, y: Floats, x_draws: list[Floats | None], y_draws: list[Floats | None]) -> Floats:
    count = max((len(d) for d in (*x_draws, *y_draws) if d is not None), default=1)
    xs = np.stack([np.full(count, v) if d is None else d for v, d in zip(x, x_draws, strict=True)])
    ys = np.stack([np.full(count, v) if d is None else d for v, d in zip(y, y_draws, strict=True)])
    shares: Floats = _on_frontier(xs, ys).mean(axis=1)
    return shares


def _on_frontier(x: Floats, y: Floats) -> Bools:
    """x, y [points, draws], lower is better -> bool [points, draws]. One sort by (x, y) and one sweep that keeps the best y so
    far: n log n in the points, vectorised over draws. Equal points are on the frontier together."""
    by_y = np.argsort(y, axis=0, kind="stable")
    order = np.take_along_axis(by_y, np.argsort(np.take_along_axis(x, by_y, 0), axis=0, kind="stable"), 0)
    xs, ys = np.take_along_axis(x, order, 0), np.take_along_axis(y, order, 0)
    on = np.empty(x.shape, dtype=bool)
    on[0] = True
    best = ys[0].copy()
    for k in range(1, len(xs)):
        same = (xs[k] == xs[k - 1]) & (ys[k] == ys[k - 1])
        on[k] = (ys[k] < best) | (same & on[k - 1])
        np.minimum(best, ys[k], out=best)
    result = np.empty_like(on)
    np.put_along_axis(result, order, on, 0)
    return result
