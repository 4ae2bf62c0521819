"""Which columns are axes, and where each cell stands on the frontier of any pair of them.

Quality is what probes say of answers, cost what they say of bytes and seconds; the direction of each comes from its metric's row.
Replicates of task and window means share their resamples between cells; where a column has none, its interval stands in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.frontier import Point, Standing, draws_from_interval, frontier
from harness.report.cells import OK, CellView, Column
from harness.report.view import View
from harness.spec import digest

COST_PROBES = ("size", "memory", "latency", "quantize")
NO_AXIS = frozenset({
    "nonfinite_tokens", "kl_floor", "flips_lost", "minimum_detectable_effect", "roofline_share", "rest_bytes", "runtime_bytes",
    # these order the cells of a model as another axis does
    "accuracy_difference", "mean_accuracy_difference", "recovery", "compression", "nominal_bits", "kv_cache_bytes",
    "kl_median", "kl_p90", "kl_p95", "kl_p99_9", "kl_max",
    # of a part of the items, another one in each cell
    "sequential_accuracy", "sequential_difference",
})  # fmt: skip
NO_AXIS_PREFIXES = ("delta_p_", "kl_confidence_")
"""Lower-is-better or not, these are read in the table and are no axes."""
QUALITY_FIRST = ("mean_accuracy", "perplexity", "bits_per_byte", "kl_mean", "ln_ppl_ratio", "accuracy", "task_score")
COST_FIRST = ("bpw_model", "file_bytes", "peak_device_bytes", "peak_host_bytes", "peak_decode_bytes", "tpot", "ttft")
"""What the menus begin with, most telling first; everything else follows in column order."""


def quality_columns(view: View) -> list[Column]:
    found = [c for c in view.columns if c.probe not in COST_PROBES and _axis(view, c)]
    return sorted(found, key=lambda c: _place(c.metric.name, QUALITY_FIRST))


def cost_columns(view: View) -> list[Column]:
    found = [c for c in view.columns if c.probe in COST_PROBES and _axis(view, c)]
    return sorted(found, key=lambda c: _place(c.metric.name, COST_FIRST))


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
        self._drawn: dict[tuple[str, str], Any] = {}

    def of(self, cell: CellView, column: Column) -> Any:
        kept = self._kept.get(column.key, {}).get(cell.id)
        if kept is not None:
            return kept
        key = column.key, cell.id
        if key not in self._drawn:
            value = cell.values[column.key]
            seed = int(digest(list(key))[:12], 16)
            self._drawn[key] = draws_from_interval(value.value, value.low, value.high, seed=seed)
        return self._drawn[key]


def headline_axes(view: View) -> tuple[Column, Column] | None:
    """(cost, quality) that come first in the menus; None when either is missing."""
    qualities, costs = quality_columns(view), cost_columns(view)
    return (costs[0], qualities[0]) if qualities and costs else None


def headline(view: View) -> dict[str, Standing]:
    """Standing of every cell on the headline axes, each model by itself."""
    axes = headline_axes(view)
    found: dict[str, Standing] = {}
    for model in view.models if axes is not None else ():
        assert axes is not None
        found.update(standings(view, [c for c in view.cells if c.model == model], *axes))
    return found


def _axis(view: View, column: Column) -> bool:
    name = column.metric.name
    telling = column.metric.better != "neither" and name not in NO_AXIS and not name.startswith(NO_AXIS_PREFIXES)
    return telling and view.comparable(column) and any(cell.values[column.key].status == OK for cell in view.cells)


def _place(name: str, first: tuple[str, ...]) -> int:
    return first.index(name) if name in first else len(first)
