"""What a section of the page is, and the pieces that several draw: a cell's mark, a status, a number with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.cells import OK, CellView, Column, Value
from harness.report.families import colour
from harness.report.markup import Markup, el, join, raw
from harness.report.numbers import Display, display, show, show_interval, with_unit
from harness.report.view import View

STATUS_WORDS = {
    "oom": "out of memory",
    "timeout": "timed out",
    "crash": "crashed",
    "nonfinite": "not finite",
    "unsupported": "unsupported",
    "environment": "no environment",
    "input": "bad input",
    "error": "error",
    "not run": "not run",
    "simulated": "simulated",
    "baseline": "baseline",
    "not comparable": "not comparable",
    "absent": "–",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the page. `id` is its anchor, `nav` its name in the navigation, `lead` one plain sentence under the title,
    `body` its HTML."""

    id: str
    nav: str
    title: str
    lead: str
    body: Markup


def hue(view: View, cell: CellView) -> int | None:
    """Index of the colour of the method's family; None for unquantized cells, which are drawn in grey."""
    return None if cell.cell.bits >= 16 else colour(cell.cell.method)


# Shapes by nominal bits, so that colour is never the only carrier. Names are Plotly's; paths are drawn in a 12 x 12 box.
SHAPES: tuple[tuple[float, str, str], ...] = (
    (16, "star", "M6 .6 7.6 4.3 11.6 4.7 8.6 7.4 9.5 11.3 6 9.2 2.5 11.3 3.4 7.4 .4 4.7 4.4 4.3Z"),
    (7, "circle", "M6 1.4A4.6 4.6 0 1 1 6 10.6 4.6 4.6 0 1 1 6 1.4Z"),
    (5, "hexagon", "M6 .8 10.6 3.4 10.6 8.6 6 11.2 1.4 8.6 1.4 3.4Z"),
    (4, "square", "M2 2H10V10H2Z"),
    (3, "triangle-up", "M6 1 11.2 10.2H.8Z"),
    (2, "diamond", "M6 .4 11.6 6 6 11.6 .4 6Z"),
    (0, "x", "M1.2 3.2 3.2 1.2 6 4 8.8 1.2 10.8 3.2 8 6 10.8 8.8 8.8 10.8 6 8 3.2 10.8 1.2 8.8 4 6Z"),
)


def shape(bits: float) -> tuple[str, str]:
    """(Plotly symbol, SVG path) of a bit width."""
    return next((name, path) for least, name, path in SHAPES if bits >= least)


def mark(view: View, cell: CellView) -> Markup:
    """The cell's mark as in the charts: method by colour, bits by shape; hollow when simulated."""
    index = hue(view, cell)
    cls = f"mark {'native' if index is None else f'm{index}'}{' hollow' if cell.simulated else ''}"
    return el("svg", raw(f'<use href="#shape-{shape(cell.cell.bits)[0]}"/>'), cls=cls, aria_hidden="true")


def shapes() -> Markup:
    """The shapes of all marks, once in a page: a mark names its own."""
    drawn = [
        el("symbol", raw(f'<path d="{path}"/>'), id=f"shape-{name}", viewBox="0 0 12 12", overflow="visible")
        for _, name, path in SHAPES
    ]
    return el("svg", *drawn, cls="shapes-of-marks", aria_hidden="true")


def scheme(view: View, cell: CellView) -> Markup:
    """Mark and name of a cell, with what must be said of it."""
    notes = [el("span", "baseline", cls="tag")] if cell.baseline else []
    if cell.simulated:
        tip = "Weights are held dequantized at run time: accuracy is real, memory and speed are not shown."
        notes.append(el("span", "simulated", cls="tag", data_tip=tip, tabindex="0"))
    if cell.marks:
        notes.append(el("span", "marked", cls="tag", data_tip="; ".join(cell.marks), tabindex="0"))
    return el("span", mark(view, cell), el("span", cell.label, cls="label"), *notes, cls="scheme")


def status(value_status: str, reason: str) -> Markup:
    """A chip that says why there is no number."""
    word = STATUS_WORDS.get(value_status, value_status)
    quiet = value_status in {"not run", "simulated", "baseline", "absent", "not comparable", "unsupported"}
    return el("span", word, cls=f"chip{' quiet' if quiet else ''}", data_tip=reason or None, tabindex="0" if reason else None)


def column_display(view: View, column: Column, cells: Sequence[CellView] | None = None) -> Display:
    values = [v.value for c in (view.cells if cells is None else cells) if (v := c.values[column.key]).status == OK]
    return display(column.metric.unit, values)


def number(column: Column, value: Value, how: Display) -> str:
    """Value in its column's unit, without the unit."""
    return show(value.value, column.metric.unit, how, signed=column.metric.signed)


def interval(column: Column, value: Value, how: Display) -> str:
    return show_interval(value.low, value.high, column.metric.unit, how, value=value.value, signed=column.metric.signed)


def own_noise(column: Column, value: Value) -> str:
    """`2.3x its own noise`: how many times half the width of its 95 % interval a change is. Beyond once, the interval holds no
    zero, as far as it is symmetric. '' for what is no change, or has no interval."""
    if not column.metric.signed or value.low is None or value.high is None or not value.low < value.high:
        return ""
    times = 2 * abs(value.value) / (value.high - value.low)
    return f"{times:.1f}x its own noise" if math.isfinite(times) else ""


def bracket(column: Column, value: Value, how: Display) -> str:
    """What stands in brackets behind a number: its interval, and of a change how many times its own noise it is."""
    between = interval(column, value, how)
    return "; ".join(filter(None, (between, own_noise(column, value)))) if between else ""


def whole(column: Column, value: Value, how: Display) -> str:
    """`92.48 (91.9 to 93.0) %`: number, interval and unit in one line; the status's words where there is no number."""
    if value.status != OK:
        return STATUS_WORDS.get(value.status, value.status)
    between = bracket(column, value, how)
    text = with_unit(number(column, value, how), how)
    return f"{text} ({between})" if between else text


def figure(identifier: str, label: str, controls: Markup | None = None, cls: str = "") -> Markup:
    """A chart's frame: menus above, the plot, and what to read when scripts are off."""
    plot = el("div", id=f"{identifier}-plot", cls="plot", role="img", aria_label=label)
    return el(
        "figure",
        controls,
        plot,
        el("noscript", "This chart needs JavaScript; every number in it is in the table below."),
        cls=f"chart {cls}".strip(),
    )


def select(identifier: str, label: str, options: Sequence[tuple[str, str, str]]) -> Markup:
    """A labelled menu. `options`: (value, text, group); groups stay together in order of first appearance."""
    groups: dict[str, list[Markup]] = {}
    for value, text, group in options:
        groups.setdefault(group, []).append(el("option", text, value=value))
    body = [join(*items) if not group else el("optgroup", *items, label=group) for group, items in groups.items()]
    return el("label", el("span", label), el("select", *body, id=identifier), cls="menu")


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
