"""The data that the page carries once, as plain JSON: numbers in display units and finished texts, so that the page's script
formats nothing and decides nothing about the statistics.

What needs resamples is decided here and sent as answers: for each axis who beats whom beyond the noise, and for the first axes in
how many resamples a cell is on the frontier. From the former the script finds the standings of any selection of cells, as
`frontier` would.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.frontier import Side, beats, shares_on_frontier, side
from harness.report.axes import ChartAxes, ChartAxis, chart_axes
from harness.report.cells import OK, CellView, Column, Value
from harness.report.families import FAMILIES
from harness.report.numbers import Display
from harness.report.section import column_display, finite, hue, shape, whole
from harness.report.view import View
from harness.spec import Better

DIGITS = 7
"""Significant digits of numbers in the data block: beyond what any interval here can tell."""
NEAR_CEILING = 0.9
"""Where the best share is above this, a chart shows shares by what is missing from 100 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartColumn:
    """A column of the table. `factor`: stored values times this are in `unit`. `scale`: how a chart draws it: linear, log, or
    error (by the distance from 100 %, logarithmic). `floor`: the baseline's noise floor by model, in the same unit; empty where
    none was measured. `metric`: its name; `group`: its probe's."""

    key: str
    metric: str
    title: str
    name: str
    subject: str
    unit: str
    factor: float
    better: Better
    scale: str
    definition: str
    group: str
    floor: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartCell:
    """A cell by column: `v` is [value, low, high, n] in the column's unit, cut after the last that is known (None where there is
    no number), `t` the text, `why` the reason why there is no number, as an index into the payload's reasons, by column. `model`
    is an index into the payload's models; cells of one `series` are joined by a line."""

    id: str
    model: int
    label: str
    method: str
    bits: float
    series: str
    hue: int | None
    symbol: str
    baseline: bool
    simulated: bool
    v: Sequence[Sequence[float | None] | None]
    t: Sequence[str]
    why: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """`quality`, `cost` and `ladder` are indices into `columns`, in the order of the menus. `beats` is by "model,column": a table
    [n, n] of bits, row by row, in base64, for the n cells of the model in the order of `cells`. `shares` is by
    "model,cost,quality": percent of resamples on the frontier, -1 where there is none."""

    run: str
    commands: Sequence[str]
    models: Sequence[str]
    families: Sequence[str]
    columns: Sequence[ChartColumn]
    quality: Sequence[int]
    cost: Sequence[int]
    ladder: Sequence[int]
    cells: Sequence[ChartCell]
    reasons: Sequence[str]
    beats: Mapping[str, str]
    shares: Mapping[str, Sequence[int]]


def payload(view: View) -> Payload:
    axes = chart_axes(view)
    shown = {a.column.key: a for a in (*axes.quality, *axes.cost)}
    rest = [c for c in view.columns if c.key not in shown]
    columns = [*(a.column for a in shown.values()), *rest]
    displays = {a.column.key: a.display for a in shown.values()} | {c.key: column_display(view, c) for c in rest}
    numbers = {c.key: index for index, c in enumerate(columns)}
    reasons: dict[str, int] = {}
    beaten: dict[str, str] = {}
    held: dict[str, list[int]] = {}
    for index, model in enumerate(view.models):
        cells, sides = [c for c in view.cells if c.model == model], _Sides()
        beaten |= {f"{index},{numbers[key]}": table for key, table in _beats(cells, shown, sides).items()}
        held |= {
            f"{index},{numbers[cost]},{numbers[quality]}": percent
            for (cost, quality), percent in _shares(cells, axes, sides).items()
        }
    return Payload(
        run=view.run,
        commands=view.commands,
        models=view.models,
        families=list(FAMILIES),
        columns=[_column(view, column, displays[column.key]) for column in columns],
        quality=[numbers[a.column.key] for a in axes.quality],
        cost=[numbers[a.column.key] for a in axes.cost],
        ladder=[numbers[c.key] for c in ladder_columns(view)],
        cells=[_cell(view, cell, [(c, shown.get(c.key), displays[c.key]) for c in columns], reasons) for cell in view.cells],
        reasons=list(reasons),
        beats=beaten,
        shares=held,
    )


def ladder_columns(view: View) -> list[Column]:
    """What can be drawn by bits, most telling first."""
    return view.placed(lambda places: places.ladder)


def series(cell: CellView) -> str:
    """What makes one line of the ladder: a method with its options and a way of running, whatever the bits."""
    return cell.series


def _column(view: View, column: Column, how: Display) -> ChartColumn:
    return ChartColumn(
        key=column.key,
        metric=column.metric.name,
        title=column.title,
        name=column.metric.title,
        subject=column.subject,
        unit="" if how.label == "p" else how.label,
        factor=how.factor,
        better=column.metric.better,
        scale=_scale(view, column),
        definition=column.metric.definition,
        group=column.probe,
        floor=_floor(view, column, how),
    )


def _scale(view: View, column: Column) -> str:
    if column.metric.unit not in {"share", "fraction"} or column.metric.better != "higher":
        return column.metric.scale
    values = [v.value for c in view.cells if (v := c.values.get(column.key)) is not None and v.status == OK]
    return "error" if values and NEAR_CEILING < max(values) <= 1 else column.metric.scale


def _floor(view: View, column: Column, how: Display) -> dict[str, float]:
    floor = view.column(column.metric.floor, column.subject) if column.metric.floor else None
    found = {}
    for index, model in enumerate(view.models if floor is not None else ()):
        base = view.baseline_of(model)
        assert floor is not None
        if base is not None and base.values[floor.key].status == OK:
            found[str(index)] = _rounded(base.values[floor.key].value * how.factor)
    return found


def _cell(
    view: View, cell: CellView, columns: Sequence[tuple[Column, ChartAxis | None, Display]], reasons: dict[str, int]
) -> ChartCell:
    """`reasons` gets those that are new."""
    values = [cell.values[column.key] if axis is None else axis.values[cell.id] for column, axis, _ in columns]
    return ChartCell(
        id=cell.id,
        model=view.models.index(cell.model),
        label=cell.label,
        method=cell.cell.method,
        bits=cell.cell.bits,
        series=series(cell),
        hue=hue(view, cell),
        symbol=shape(cell.cell.bits)[0],
        baseline=cell.baseline,
        simulated=cell.simulated,
        v=[_numbers(value, how.factor) for (_, _, how), value in zip(columns, values, strict=True)],
        t=[whole(column, value, how) for (column, _, how), value in zip(columns, values, strict=True)],
        why={
            str(index): reasons.setdefault(value.reason, len(reasons))
            for index, value in enumerate(values)
            if value.status != OK and value.reason
        },
    )


def _numbers(value: Value, factor: float) -> Sequence[float | None] | None:
    if value.status != OK:
        return None
    low, high = (None if (x := finite(limit)) is None else _rounded(x * factor) for limit in (value.low, value.high))
    known: list[float | None] = [_rounded(value.value * factor), low, high, value.n]
    while known[-1] is None:
        known.pop()
    return known


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


class _Sides:
    """Some cells of a model on an axis, prepared once for all the tables that they stand in."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, tuple[str, ...]], Side] = {}

    def of(self, axis: ChartAxis, cells: Sequence[CellView]) -> Side:
        key = axis.column.key, tuple(c.id for c in cells)
        if key not in self._made:
            values = [axis.values[c.id].value for c in cells]
            self._made[key] = side(values, [axis.draws(c) for c in cells], axis.column.metric.better)
        return self._made[key]


def _beats(cells: Sequence[CellView], shown: Mapping[str, ChartAxis], sides: _Sides) -> dict[str, str]:
    """By axis the packed table of a model's cells."""
    tables = {}
    for key, axis in shown.items():
        having = [k for k, c in enumerate(cells) if axis.values[c.id].status == OK]
        table = np.zeros((len(cells), len(cells)), dtype=bool)
        table[np.ix_(having, having)] = beats(sides.of(axis, [cells[k] for k in having]))
        tables[key] = base64.b64encode(np.packbits(table, axis=None).tobytes()).decode()
    return tables


def _shares(cells: Sequence[CellView], axes: ChartAxes, sides: _Sides) -> dict[tuple[str, str], list[int]]:
    """By cost and quality, for the pairs of the first axes of both sides, percents of a model's cells."""
    found = {}
    for cost in (a for a in axes.cost if a.told):
        for quality in (a for a in axes.quality if a.told):
            having = [c for c in cells if cost.values[c.id].status == OK and quality.values[c.id].status == OK]
            shares = shares_on_frontier(sides.of(cost, having), sides.of(quality, having)).tolist()
            told = {c.id: share for c, share in zip(having, shares, strict=True)}
            found[cost.column.key, quality.column.key] = [round(100 * told[c.id]) if c.id in told else -1 for c in cells]
    return found
