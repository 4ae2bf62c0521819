"""Which columns are axes, and where each cell stands on the frontier of any pair of them.

A metric's row says whether it is an axis, on which side, where in the menu, and which direction is better.
Replicates of task and window means share their resamples between cells; where a column has none, its interval stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from harness.frontier import CONFIDENCE, Bools, Floats, Point, Standing, draws_from_interval, frontier, shares_on_frontier
from harness.report.cells import OK, CellView, Column
from harness.report.view import View, place_or_last
from harness.spec import Axis, Better, digest


def quality_columns(view: View) -> list[Column]:
    """What cells may be compared by, most telling first."""
    return _axis(view, "quality")


def cost_columns(view: View) -> list[Column]:
    return _axis(view, "cost")


def standings(
    view: View, cells: Iterable[CellView], cost: Column, quality: Column, noise: Noise | None = None
) -> dict[str, Standing]:
    """Standing by cell id, on x = cost and y = quality, of those cells that have both numbers. `noise` is shared by calls that
    draw many pairs of axes."""
    noise = Noise(view) if noise is None else noise
    points = [
        Point(
            id=cell.id,
            x=cell.values[cost.key].value,
            y=cell.values[quality.key].value,
            x_draws=noise.of(cell, cost),
            y_draws=noise.of(cell, quality),
        )
        for cell in cells
        if cell.values[cost.key].status == OK and cell.values[quality.key].status == OK
    ]
    return {s.id: s for s in frontier(points, better_x=cost.metric.better, better_y=quality.metric.better)}


class Noise:
    """Replicates of every cell's value in a column, made once: shared resamples where raw samples were kept, else normal draws
    from the interval, else None (an exact number)."""

    def __init__(self, view: View) -> None:
        self._kept = view.derived.draws
        self._drawn: dict[tuple[str, str], Floats | None] = {}

    def of(self, cell: CellView, column: Column) -> Floats | None:
        kept = self._kept.get(column.key, {}).get(cell.id)
        if kept is not None:
            return kept
        key = column.key, cell.id
        if key not in self._drawn:
            value = cell.values[column.key]
            seed = int(digest(list(key))[:12], 16)
            self._drawn[key] = draws_from_interval(value.value, value.low, value.high, seed=seed)
        return self._drawn[key]


def beats(values: Sequence[float], draws: Sequence[Floats | None], better: Better) -> Bools:
    """Who beats whom beyond the noise on one axis, by the rule of `frontier`: bool [n, n], row better than column. From two such
    tables, one for each axis, follow the standings of any selection of the cells."""
    sign = -1.0 if better == "higher" else 1.0
    x = sign * np.asarray(values, dtype=float)
    count = max((len(d) for d in draws if d is not None), default=1)
    rows = (
        np.stack([np.full(count, x[i]) if d is None else sign * d for i, d in enumerate(draws)]) if len(x) else np.empty((0, 1))
    )
    table = np.zeros((len(x), len(x)), dtype=bool)
    for i, own in enumerate(rows):
        table[i] = (x[i] < x) & ((own < rows).mean(axis=1) >= CONFIDENCE)
    return table


def shares(
    cost: Sequence[tuple[float, Floats | None]],
    quality: Sequence[tuple[float, Floats | None]],
    better: tuple[Better, Better],
) -> list[float]:
    """Shares of the resamples in which each of some points is on their frontier. `better`: of cost and of quality."""
    points = [
        Point(id=str(i), x=x, y=y, x_draws=x_draws, y_draws=y_draws)
        for i, ((x, x_draws), (y, y_draws)) in enumerate(zip(cost, quality, strict=True))
    ]
    return shares_on_frontier(points, better_x=better[0], better_y=better[1])


def headline_axes(view: View) -> tuple[Column, Column] | None:
    """(cost, quality) that come first in the menus; None when either is missing."""
    qualities, costs = quality_columns(view), cost_columns(view)
    return (costs[0], qualities[0]) if qualities and costs else None


def headline(view: View) -> dict[str, Standing]:
    """Standing of every cell on the headline axes, each model by itself."""
    axes = headline_axes(view)
    stands: dict[str, Standing] = {}
    for model in view.models if axes is not None else ():
        assert axes is not None
        stands.update(standings(view, [c for c in view.cells if c.model == model], *axes))
    return stands


def _axis(view: View, axis: Axis) -> list[Column]:
    columns = [c for c in view.columns if c.metric.axis == axis and view.comparable(c)]
    measured = [c for c in columns if any(cell.values[c.key].status == OK for cell in view.cells)]
    return sorted(measured, key=lambda c: place_or_last(c.metric.places.axis))
