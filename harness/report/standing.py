"""Which columns are axes, and where each cell stands on the frontier of any pair of them.

A metric's row says whether it is an axis, on which side, where in the menu, and which direction is better.
Replicates of task and window means share their resamples between cells; where a column has none, its interval stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.frontier import Floats, Side, Standing, draws_from_interval, side, stand
from harness.report.cells import OK, CellView, Column
from harness.report.view import View, place_or_last
from harness.spec import Axis, digest


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
    both = tuple(c for c in cells if c.values[cost.key].status == OK and c.values[quality.key].status == OK)
    return {s.id: s for s in stand([c.id for c in both], noise.side(both, cost), noise.side(both, quality))}


class Noise:
    """Replicates of every cell's value in a column, made once: shared resamples where raw samples were kept, else normal draws
    from the interval, else None (an exact number)."""

    def __init__(self, view: View) -> None:
        self._kept = view.derived.draws
        self._drawn: dict[tuple[str, str], Floats | None] = {}
        self._sides: dict[tuple[str, ...], Side] = {}

    def side(self, cells: Sequence[CellView], column: Column) -> Side:
        """These cells on an axis. They stand on it against each of the other axis' columns, so it is prepared once."""
        key = column.key, *(cell.id for cell in cells)
        if key not in self._sides:
            values = [cell.values[column.key].value for cell in cells]
            self._sides[key] = side(values, [self.of(cell, column) for cell in cells], column.metric.better)
        return self._sides[key]

    def of(self, cell: CellView, column: Column) -> Floats | None:
        kept = self._kept.get(column.key, {}).get(cell.id)
        if kept is not None:
            return kept
        key = column.key, cell.id
        if key not in self._drawn:
            value = cell.values[column.key]
            exact = value.low is None or value.high is None
            seed = 0 if exact else int(digest(list(key))[:12], 16)
            self._drawn[key] = draws_from_interval(value.value, value.low, value.high, seed=seed)
        return self._drawn[key]


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
