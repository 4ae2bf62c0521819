"""How far each quantized layer's weight is from the source's: by cell, and layer by layer in a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.metrics.quantize import LAYERS, WEIGHT_ERROR
from harness.report.cells import CellView
from harness.report.markup import Markup, el, join
from harness.report.numbers import show
from harness.report.pieces import blob_of, cells_of, fold, head_of, numeric, rows_of, table
from harness.report.svg import Dot, Row, chart, span
from harness.report.view import View

MOST_LAYERS, MOST_CELLS = 400, 24
"""Of the table of single layers; the raw samples have all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A cell with its error over all layers, the relative error of each, and what the method says of their outputs."""

    cell: CellView
    total: float
    errors: Mapping[str, float]
    outputs: Mapping[str, float]

    @property
    def worst(self) -> str:
        return max(self.errors, key=lambda layer: self.errors[layer])

    @property
    def least(self) -> str:
        return min(self.errors, key=lambda layer: self.errors[layer])


def block(view: View, model: str) -> Markup | None:
    """Chart and tables of a model's cells; None where no method says anything of its layers."""
    cells = [found for cell in cells_of(view, model) if (found := _layers(view, cell)) is not None]
    scale = span([error for c in cells for error in (*c.errors.values(), c.total) if error > 0], log=True)
    if scale is None:
        return None
    label = "Relative weight error by cell, logarithmic: all layers, and from the least to the worst"
    drawn = chart(label, [_row(c) for c in cells], scale, _number)
    note = (
        "Distance of the quantized weights from the source's, relative to their size: the mark is all layers as one, the line "
        "reaches from the least to the most disturbed layer. A small distance is no small loss: methods that calibrate move "
        "weights further where it matters less."
    )
    return join(
        el("h4", "Weight error"),
        drawn,
        el("p", note, cls="note"),
        fold("Table of weight errors", _summary(cells)),
        fold("Weight error layer by layer", *_single(cells)),
    )


def _layers(view: View, cell: CellView) -> Layers | None:
    for outcome in cell.outcomes:
        if blob_of(outcome, WEIGHT_ERROR.name) is None:
            continue
        total = next(m.value for m in outcome.measurements if m.metric == WEIGHT_ERROR.name)
        errors, outputs = {}, {}
        for row in rows_of(view, outcome, WEIGHT_ERROR.name, LAYERS):
            name = row.get("layer")
            if isinstance(name, str) and (error := _finite(row.get("relative"))) is not None:
                errors[name] = error
                if (output := _finite(row.get("output"))) is not None:
                    outputs[name] = output
        if errors:
            return Layers(cell=cell, total=total, errors=errors, outputs=outputs)
    return None


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:.3g}"


def _row(found: Layers) -> Row:
    low, high = found.errors[found.least], found.errors[found.worst]
    ends = f"{_number(low)} ({found.least}) to {_number(high)} ({found.worst})"
    tip = f"{_number(found.total)} over {len(found.errors)} layers; {ends}"
    dot = Dot(value=found.total, hue=0, tip=tip, low=low, high=high)
    return Row(label=found.cell.label, text=_number(found.total), dots=[dot])


def _summary(cells: Sequence[Layers]) -> Markup:
    outputs = any(c.outputs for c in cells)
    prefix = _common([layer for c in cells for layer in c.errors])
    which = f"In layer, of {prefix}" if prefix else "In layer"
    columns: list[str | Markup] = ["Cell", numeric("Layers"), numeric("All as one"), numeric("Median"), numeric("Largest"), which]
    columns += [numeric("Most changed output", "mean square"), "In layer"] if outputs else []
    rows = []
    for c in cells:
        numbers = (
            f"{len(c.errors):,}",
            show(c.total, "1"),
            show(statistics.median(c.errors.values()), "1"),
            show(c.errors[c.worst], "1"),
        )
        squares = [el("td", n, cls="num") for n in numbers]
        squares.append(el("td", _within(prefix, c.worst), cls="why"))
        if outputs:
            most = max(c.outputs, key=lambda layer: c.outputs[layer], default=None)
            squares.append(el("td", "–" if most is None else show(c.outputs[most], "1"), cls="num"))
            squares.append(el("td", "–" if most is None else _within(prefix, most), cls="why"))
        rows.append(el("tr", head_of(c.cell), *squares))
    return table("Relative weight error by cell", columns, rows)


def _common(names: Sequence[str]) -> str:
    """The dotted parts that all names begin with, but for the last one of each."""
    parts = []
    for same in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(same)) > 1:
            break
        parts.append(same[0])
    return ".".join(parts)


def _within(prefix: str, layer: str) -> str:
    return layer.removeprefix(f"{prefix}.") if prefix else layer


def _single(cells: Sequence[Layers]) -> list[Markup | None]:
    shown = cells[:MOST_CELLS]
    names = list(dict.fromkeys(name for c in shown for name in c.errors))
    most = max(error for c in shown for error in c.errors.values())
    rows = []
    for name in names[:MOST_LAYERS]:
        squares = [_square(c.errors.get(name), most) for c in shown]
        rows.append(el("tr", el("th", name, scope="row"), *squares))
    cut = len(names) > MOST_LAYERS or len(cells) > MOST_CELLS
    said = (
        f"{min(len(names), MOST_LAYERS)} of {len(names)} layers and {len(shown)} of {len(cells)} cells; the raw samples of "
        "weight_error have all."
    )
    columns: list[str | Markup] = ["Layer", *(numeric(c.cell.label) for c in shown)]
    return [table("Relative weight error by layer", columns, rows, cls="heat"), el("p", said, cls="small muted") if cut else None]


def _square(error: float | None, most: float) -> Markup:
    """One layer's error, the redder the larger it is among all that stand here."""
    if error is None:
        return el("td", "–", cls="num muted")
    strength = (error / most) ** 0.6 if most else 0.0
    return el("td", _number(error), cls="num neg", style=f"--a:{strength:.3f}")
