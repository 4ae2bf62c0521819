"""The data that the page carries once, as plain JSON: numbers in display units and finished texts, so that the page's script
formats nothing and decides nothing about the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.report.cells import OK, CellView, Column
from harness.report.numbers import Display
from harness.report.section import column_display, finite, hue, shape, whole
from harness.report.standing import Noise, cost_columns, quality_columns, standings
from harness.report.view import View
from harness.spec import Better


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartColumn:
    """A column that a chart can draw. `log`: on a logarithmic axis."""

    key: str
    title: str
    name: str
    subject: str
    unit: str
    better: Better
    log: bool
    definition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartCell:
    """A cell by column: `v` is [value, low, high] in the column's unit (None where there is no number), `t` the text. `model` is
    an index into the payload's models; cells of one `series` are joined by a line."""

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
    v: Sequence[tuple[float, float | None, float | None] | None]
    t: Sequence[str]


Stands = Mapping[str, tuple[str, float, Sequence[str], Sequence[str]]]
"""By cell id: status, probability of being on the frontier, ids of the first rivals, ids of the first ties."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """`quality`, `cost` and `ladder` are indices into `columns`, in the order of the menus; `standing` is by
    "model,cost,quality", three indices."""

    models: Sequence[str]
    columns: Sequence[ChartColumn]
    quality: Sequence[int]
    cost: Sequence[int]
    ladder: Sequence[int]
    cells: Sequence[ChartCell]
    standing: Mapping[str, Stands]


def payload(view: View) -> Payload:
    qualities, costs = quality_columns(view), cost_columns(view)
    ladders = ladder_columns(view)
    shown = {c.key: c for c in (*qualities, *costs, *ladders)}
    displays = {key: column_display(view, column) for key, column in shown.items()}
    numbers = {key: index for index, key in enumerate(shown)}
    return Payload(
        models=view.models,
        columns=[_column(column, displays[key]) for key, column in shown.items()],
        quality=[numbers[c.key] for c in qualities],
        cost=[numbers[c.key] for c in costs],
        ladder=[numbers[c.key] for c in ladders],
        cells=[_cell(view, cell, list(shown.values()), displays) for cell in view.cells],
        standing=_standings(view, costs, qualities, numbers),
    )


def ladder_columns(view: View) -> list[Column]:
    """What can be drawn by bits, most telling first."""
    return view.placed(lambda places: places.ladder)


def series(cell: CellView) -> str:
    """What makes one line of the ladder: a method with its options and a way of running, whatever the bits."""
    return cell.series


def _column(column: Column, how: Display) -> ChartColumn:
    return ChartColumn(
        key=column.key,
        title=column.title,
        name=column.metric.title,
        subject=column.subject,
        unit="" if how.label == "p" else how.label,
        better=column.metric.better,
        log=column.metric.scale == "log",
        definition=column.metric.definition,
    )


def _cell(view: View, cell: CellView, columns: Sequence[Column], displays: Mapping[str, Display]) -> ChartCell:
    numbers: list[tuple[float, float | None, float | None] | None] = []
    for column in columns:
        value, factor = cell.values[column.key], displays[column.key].factor
        low, high = (None if (x := finite(limit)) is None else x * factor for limit in (value.low, value.high))
        numbers.append((value.value * factor, low, high) if value.status == OK else None)
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
        v=numbers,
        t=[whole(column, cell.values[column.key], displays[column.key]) for column in columns],
    )


def _standings(view: View, costs: Sequence[Column], qualities: Sequence[Column], numbers: Mapping[str, int]) -> dict[str, Stands]:
    by_axes: dict[str, Stands] = {}
    noise = Noise(view)
    for index, model in enumerate(view.models):
        cells = [c for c in view.cells if c.model == model]
        for cost in costs:
            for quality in qualities:
                stands = standings(view, cells, cost, quality, noise)
                by_axes[f"{index},{numbers[cost.key]},{numbers[quality.key]}"] = {
                    key: (s.status, round(s.probability, 3), s.rivals[:3], s.ties[:3]) for key, s in stands.items()
                }
    return by_axes
