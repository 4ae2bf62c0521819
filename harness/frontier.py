"""Which cells are worth choosing between: the Pareto frontier of any two metrics, with its uncertainty.

A point is on the frontier when no other point is at least as good on both axes and better on one. Measured points are
noisy, so each may carry draws (bootstrap replicates) of its coordinates; draws of all points share their resampled items, so that
what is common to two cells cancels in their difference. From the draws follow the probability of being on the frontier,
who is dominated *beyond the noise*, and who is tied with whom. Pure numbers: numpy only, no clock, seeded draws.
"""

from __future__ import annotations

import functools
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


Runs: TypeAlias = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One coordinate of all points, lower is better, prepared once for every frontier that they stand on: see `side`.

    `values` [points]. `draws` [points, draws], or [points, 1] where every value is exact.
    """

    values: Floats
    draws: Floats

    @functools.cached_property
    def order(self) -> NDArray[np.intp]:
        """What sorts each draw."""
        return np.argsort(self.draws, axis=0, kind="stable")

    @functools.cached_property
    def runs(self) -> Runs | None:
        """Where the values that equal a sorted one begin and end; None where no two values of a draw are equal."""
        return _equal(np.take_along_axis(self.draws, self.order, 0))


def side(values: Sequence[float], draws: Sequence[Floats | None], better: Better) -> Side:
    """Prepares a coordinate: its values and their replicates (None = exact). ValueError for values that are not finite."""
    oriented = _oriented(values, better)
    if not np.isfinite(oriented).all():
        raise ValueError("a frontier point has a coordinate that is not finite; leave such cells out")
    count = max((len(d) for d in draws if d is not None), default=1)
    table = np.empty((len(oriented), count))
    for row, value, drawn in zip(table, oriented, draws, strict=True):
        row[:] = value if drawn is None else _oriented(drawn, better)
    return Side(values=oriented, draws=table)


def beats(points: Side) -> Bools:
    """Who beats whom beyond the noise on one axis: bool [points, points], row better than column. Two exact numbers differ when
    they differ. From two such tables, one for each axis, follow the standings of any selection of the points."""
    count = points.draws.shape[1]
    table: Bools = points.values[:, None] < points.values
    if count == 1:
        return table
    for mine, row in zip(table, points.draws, strict=True):
        worse = np.flatnonzero(mine)
        mine[worse] = np.count_nonzero(row < points.draws[worse], axis=1) / count >= CONFIDENCE
    return table


def frontier(points: Sequence[Point], *, better_x: Better, better_y: Better) -> list[Standing]:
    """The standing of every point, in the order given. Points with a coordinate that is not finite are refused (ValueError)."""
    x = side([p.x for p in points], [p.x_draws for p in points], better_x)
    y = side([p.y for p in points], [p.y_draws for p in points], better_y)
    return stand([p.id for p in points], x, y)


def stand(ids: Sequence[str], x: Side, y: Side) -> list[Standing]:
    """As `frontier`, of sides that are prepared already. `ids` name their points."""
    count = len(ids)
    if not count:
        return []
    probability = shares_on_frontier(x, y).tolist()
    x_beats, y_beats = beats(x), beats(y)
    x_less, y_less = x.values[:, None] < x.values, y.values[:, None] < y.values
    beaten_by = ~x_less.T & ~y_less.T & (x_less | y_less)  # [i, j]: i is no worse than j on both and better on one
    on: Bools = np.logical_not(beaten_by.any(axis=0))
    clear = beaten_by & (x_beats | y_beats)
    is_clear: Bools = np.asarray(clear.any(axis=0))
    chosen = np.where(is_clear, clear, beaten_by)
    chosen_on = chosen & on[:, None]
    rivals = np.where(chosen_on.any(axis=0), chosen_on, chosen) & ~on
    ties = on[:, None] & on & x_less & ~y_beats.T
    xs, ys = x.values.tolist(), y.values.tolist()
    by_x = sorted(range(count), key=lambda i: (xs[i], ys[i], ids[i]))
    by_y = sorted(range(count), key=lambda i: (ys[i], ids[i]))
    rivals_of, ties_of = _named(ids, rivals, by_x), _named(ids, ties, by_y)
    return [
        Standing(
            id=name,
            status="frontier" if on[j] else "dominated" if is_clear[j] else "tied",
            probability=probability[j],
            rivals=rivals_of[j],
            ties=ties_of[j],
        )
        for j, name in enumerate(ids)
    ]


def shares_on_frontier(x: Side, y: Side) -> Floats:
    """The share of draws [points] in which each point is on the frontier. In the order of x, such a point is better on y than all
    that are better on x, and no worse than its equals there: the best y so far tells. Vectorised over draws; equal points are on
    the frontier together."""
    if x.order.shape[1] > 1 and y.order.shape[1] == 1:
        x, y = y, x  # neither comes first, and one order for all draws is less work
    count = len(x.order)
    one_order = x.order.shape[1] == 1
    ys = y.draws[x.order[:, 0]] if one_order else y.draws.ravel()[x.order * y.draws.shape[1] + np.arange(y.draws.shape[1])]
    so_far = np.minimum.accumulate(ys, axis=0)
    if x.runs is None:
        on = np.ones(ys.shape, dtype=bool)
        on[1:] = ys[1:] < so_far[:-1]
    else:
        first, last = (np.broadcast_to(each, ys.shape) for each in x.runs)
        best = np.take_along_axis(so_far, np.maximum(first - 1, 0), 0)
        on = ((ys < best) | (first == 0)) & (ys == np.take_along_axis(so_far, last, 0))
    if one_order:
        held: Floats = np.empty(count)
        held[x.order[:, 0]] = np.count_nonzero(on, axis=1)
    else:
        held = np.bincount(x.order[on], minlength=count).astype(np.float64)
    shares: Floats = held / on.shape[1]
    return shares


def _named(ids: Sequence[str], related: Bools, order: Sequence[int]) -> list[tuple[str, ...]]:
    """For each point [points] the ids of those that are related to it ([others, points]), in an order of the others."""
    named: list[list[str]] = [[] for _ in ids]
    names = [ids[i] for i in order]
    of, others = np.nonzero(related[order].T)
    for j, i in zip(of.tolist(), others.tolist(), strict=True):
        named[j].append(names[i])
    return [tuple(names) for names in named]


def _oriented(values: ArrayLike, better: Better) -> Floats:
    """As float array in which lower is better."""
    if better == "neither":
        raise ValueError("a frontier needs metrics that have a better direction")
    array = np.asarray(values, dtype=float)
    return -array if better == "higher" else array


def _equal(ordered: Floats) -> Runs | None:
    """Where the run of equal values begins and ends to which each belongs, of sorted columns [points, draws]; None where there is
    none of more than one value."""
    new = ordered[1:] != ordered[:-1]
    if new.all():
        return None
    places = np.broadcast_to(np.arange(len(ordered))[:, None], ordered.shape)
    first, last = places.copy(), places.copy()
    first[1:][~new] = 0
    last[:-1][~new] = len(ordered)
    return np.maximum.accumulate(first, axis=0), np.minimum.accumulate(last[::-1], axis=0)[::-1]
