"""What a chart can put on an axis: every comparable column of the view, and two that only charts show.

Recovery of the mean and the share of flipped items are made here of what the view holds: replicates of the mean accuracy, whose
resampled items are the same for a cell and its baseline, and counts of flips by task.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from harness import stats
from harness.frontier import Floats
from harness.report.cells import BASELINE, NOT_COMPARABLE, OK, CellView, Column, Value, column_key
from harness.report.derived import FLIPS_GAINED, FLIPS_LOST, GROUP, MEAN_ACCURACY
from harness.report.numbers import Display, display
from harness.report.standing import Noise, cost_columns, quality_columns
from harness.report.view import View
from harness.spec import Metric

MEAN_RECOVERY = Metric(
    name="mean_recovery",
    title="Recovery",
    unit="share",
    better="higher",
    definition="mean accuracy / baseline's mean accuracy, paired bootstrap over items within tasks",
    description="100 % is the baseline's own mean accuracy.",
    axis="quality",
)
FLIPS = Metric(
    name="flips",
    title="Flipped answers",
    unit="share",
    better="lower",
    definition="items on which cell and baseline are not both right or both wrong / items of all tasks, Wilson",
    description="Errors that cancel in the accuracy show here. Items count as independent of each other.",
    axis="quality",
)
TOLD = 4
"""Of how many metrics on each side, the first of the menu, the page holds probabilities over resamples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartAxis:
    """A column with its values by cell id. `draws`: replicates of a cell's value (None: an exact number), made when asked for.
    `told`: whether the page holds the share of resamples in which a cell is on the frontier of this axis and another such."""

    column: Column
    values: Mapping[str, Value]
    draws: Callable[[CellView], Floats | None]
    told: bool = False

    @property
    def display(self) -> Display:
        return display(self.column.metric.unit, [v.value for v in self.values.values() if v.status == OK])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartAxes:
    """Both sides of the chart, most telling first."""

    quality: tuple[ChartAxis, ...]
    cost: tuple[ChartAxis, ...]


def chart_axes(view: View) -> ChartAxes:
    noise = Noise(view)

    def ready(columns: list[Column]) -> list[ChartAxis]:
        told = _first_of_metrics(columns, TOLD)
        return [
            ChartAxis(
                column=column,
                values={c.id: c.values[column.key] for c in view.cells},
                draws=functools.partial(noise.of, column=column),
                told=column.key in told,
            )
            for column in columns
        ]

    qualities = ready(quality_columns(view))
    made = [axis for axis in (_recovery(view), _flips(view)) if axis is not None]
    first = 1 if qualities and qualities[0].column.metric.name == MEAN_ACCURACY.name else 0
    return ChartAxes(quality=(*qualities[:first], *made, *qualities[first:]), cost=tuple(ready(cost_columns(view))))


def _first_of_metrics(columns: list[Column], count: int) -> set[str]:
    """Keys of the first column of each of the first metrics."""
    first: dict[str, str] = {}
    for column in columns:
        first.setdefault(column.metric.name, column.key)
    return set(list(first.values())[:count])


def _column(metric: Metric) -> Column:
    return Column(key=column_key(metric.name, "", metric.definition), metric=metric, subject="", probe=GROUP, derived=True)


def _recovery(view: View) -> ChartAxis | None:
    """The mean accuracy as a share of the baseline's. None where no cell has both."""
    mean = view.column(MEAN_ACCURACY.name)
    if mean is None:
        return None
    values: dict[str, Value] = {}
    draws: dict[str, Floats] = {}
    kept = view.derived.draws.get(mean.key, {})
    for cell in view.cells:
        base, own = view.baseline_of(cell.model), cell.values[mean.key]
        before = None if base is None else base.values[mean.key]
        if base is None or before is None or before.status != OK or own.status != OK or before.value <= 0:
            values[cell.id] = (
                own if own.status != OK else Value(status=NOT_COMPARABLE, reason="its baseline has no mean accuracy")
            )
            continue
        if cell.baseline:
            values[cell.id] = Value(status=OK, value=1.0, n=own.n)
            continue
        if cell.id not in kept or base.id not in kept or not (kept[base.id] > 0).all():
            values[cell.id] = Value(status=OK, value=own.value / before.value, n=own.n, reason="no interval")
            continue
        ratios = kept[cell.id] / kept[base.id]
        low, high = (float(q) for q in np.quantile(ratios, [0.025, 0.975]))
        values[cell.id] = Value(status=OK, value=own.value / before.value, low=low, high=high, n=own.n)
        draws[cell.id] = ratios
    if not any(v.status == OK for v in values.values()):
        return None
    return ChartAxis(column=_column(MEAN_RECOVERY), values=values, draws=lambda cell: draws.get(cell.id), told=True)


def _flips(view: View) -> ChartAxis | None:
    """Items that flipped either way, over all tasks that a cell was compared on. None where nothing was compared."""
    lost = {c.subject: c for c in view.of(FLIPS_LOST.name)}
    gained = {c.subject: c for c in view.of(FLIPS_GAINED.name)}
    values: dict[str, Value] = {}
    for cell in view.cells:
        values[cell.id] = _flips_of(cell, [(lost[t], gained[t]) for t in lost if t in gained])
    if not any(v.status == OK for v in values.values()):
        return None
    column = _column(FLIPS)
    noise = Noise(view)

    def draws(cell: CellView) -> Floats | None:
        return noise.of(dataclasses.replace(cell, values={column.key: values[cell.id]}), column)

    return ChartAxis(column=column, values=values, draws=draws)


def _flips_of(cell: CellView, pairs: list[tuple[Column, Column]]) -> Value:
    sides = [(cell.values[a.key], cell.values[b.key]) for a, b in pairs]
    if cell.baseline:
        return Value(status=OK, value=0.0) if sides else Value(status=BASELINE)
    bad = next((v for side in sides for v in side if v.status != OK), None)
    if bad is not None or not sides:
        return bad or Value(status=NOT_COMPARABLE, reason="no task was compared item by item")
    flips = round(sum(a.value + b.value for a, b in sides))
    items = sum(a.n or 0 for a, _ in sides)
    if not items:
        return Value(status=NOT_COMPARABLE, reason="no items are counted")
    interval = stats.wilson(flips, items)
    return Value(status=OK, value=flips / items, low=interval.low, high=interval.high, n=items)
