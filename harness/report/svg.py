"""Charts without a script: rows of bars or marks as SVG, drawn from numbers, the same bytes for the same numbers.

Places along the axis are percentages of the width, so that a chart is as wide as its column and its text keeps its size, on a
phone and on paper. Colours are those of the style sheet. Every chart says in its label what it shows, and stands over its table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.report.markup import Markup, el, join, raw

MOST_ROWS = 40
"""Rows that one chart draws; the table beneath has all."""
ROW, BAR, AXIS = 36, 10, 30
"""Heights in pixels: of a row with its label, of a bar in it, of the axis below."""
LABEL_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """An axis from `low` to `high`; `log`: by powers of ten, both ends above 0."""

    low: float
    high: float
    log: bool = False

    def percent(self, value: float) -> float:
        """Where a value stands, 0 to 100; what lies beyond an end stands at the end."""
        low, high, at = (math.log10(max(x, 1e-300)) if self.log else x for x in (self.low, self.high, value))
        if not high > low:
            return 0.0
        return min(100.0, max(0.0, 100 * (at - low) / (high - low)))

    def ticks(self) -> list[float]:
        """Round values within the scale, at most seven."""
        if self.log:
            return _powers(self.low, self.high)
        span = self.high - self.low
        if not span > 0:
            return [self.low]
        step = 10 ** math.floor(math.log10(span / 4))
        step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
        return [step * number for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten between the ends; where these are few, their doubles and fives too."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first <= 2:
        candidates = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    else:
        candidates = [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first) / 6)))]
    return [value for value in candidates if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a bar, from `low` to `high`. `hue` is an index of the style sheet's colours; `tip` what it is."""

    low: float
    high: float
    hue: int
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A value, with its interval where it has one. `form`: which of FORMS."""

    value: float
    hue: int
    tip: str
    low: float | None = None
    high: float | None = None
    form: int = 0


FORMS = ("M0-4.6A4.6 4.6 0 1 1 0 4.6 4.6 4.6 0 1 1 0-4.6Z", "M0-5.6 5.6 0 0 5.6-5.6 0Z", "M-4-4H4V4H-4Z", "M0-5 5.2 4.2H-5.2Z")
"""Circle, diamond, square, triangle around the origin: colour is never the only carrier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a chart: its `label` at the left, `text` at the right, and what is drawn."""

    label: str
    text: str
    bars: Sequence[Segment] = field(default=())
    dots: Sequence[Dot] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A value that all rows are compared with, drawn through them."""

    value: float
    text: str


def span(values: Sequence[float], *, log: bool) -> Scale | None:
    """The scale that holds these values: from 0, or between round ends on a logarithmic axis. None where there are none."""
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not known:
        return None
    if log:
        low, high = _round(min(known) * 0.95, up=False), _round(max(known) * 1.05, up=True)
        return Scale(low=low, high=high, log=True)
    high = max(0.0, *known)
    return Scale(low=min(0.0, *known), high=high * 1.02 if high else 1.0)


def _round(value: float, *, up: bool) -> float:
    """The nearest 1, 2 or 5 times a power of ten, above or below."""
    power = 10.0 ** math.floor(math.log10(value))
    steps = [power * factor for factor in (1, 2, 5, 10)]
    return next(s for s in steps if s >= value) if up else next(s for s in reversed(steps) if s <= value * (1 + 1e-12))


def chart(label: str, rows: Sequence[Row], scale: Scale, show: Callable[[float], str], lines: Sequence[Line] = ()) -> Markup:
    """The first MOST_ROWS rows over an axis whose ticks `show` writes. `label` says what the chart shows."""
    drawn = rows[:MOST_ROWS]
    height = len(drawn) * ROW
    parts = [_tick(scale, tick, height, show) for tick in scale.ticks()]
    for line in lines:
        at = f"{scale.percent(line.value):.2f}%"
        parts.append(el("line", el("title", line.text), x1=at, x2=at, y1=0, y2=height, cls="against"))
    parts += [_row(row, number * ROW, scale) for number, row in enumerate(drawn)]
    image = el(
        "svg", *parts, role="img", aria_label=label, width="100%", height=height + AXIS, cls="rows", preserveAspectRatio="none"
    )
    less = f"The first {len(drawn)} of {len(rows)} are drawn; the table has all." if len(rows) > len(drawn) else None
    return el("div", image, el("p", less, cls="small muted") if less else None, cls="drawing")


def _tick(scale: Scale, value: float, height: int, show: Callable[[float], str]) -> Markup:
    place = scale.percent(value)
    at = f"{place:.2f}%"
    anchor = "start" if place < 4 else "end" if place > 96 else "middle"
    line = el("line", x1=at, x2=at, y1=0, y2=height, cls="grid")
    return join(line, el("text", show(value), x=at, y=height + 18, text_anchor=anchor, cls="tick"))


def _row(row: Row, top: int, scale: Scale) -> Markup:
    label = el("text", short(row.label), x="0", y=top + 14, cls="name")
    text = el("text", row.text, x="100%", y=top + 14, text_anchor="end", cls="value")
    rail = None if row.bars else el("line", x1="0", x2="100%", y1=top + 25, y2=top + 25, cls="rail")
    bars = [_segment(bar, top, scale) for bar in row.bars]
    return join(rail, label, text, *bars, *(_dot(dot, top, scale) for dot in row.dots))


def _segment(bar: Segment, top: int, scale: Scale) -> Markup:
    low, high = scale.percent(min(bar.low, bar.high)), scale.percent(max(bar.low, bar.high))
    return el(
        "rect",
        el("title", bar.tip),
        x=f"{low:.2f}%",
        y=top + 20,
        width=f"{high - low:.2f}%",
        height=BAR,
        cls=f"part h{bar.hue}",
    )


def _dot(dot: Dot, top: int, scale: Scale) -> Markup:
    middle = top + 25
    between = None
    if dot.low is not None and dot.high is not None:
        ends = [f"{scale.percent(x):.2f}%" for x in (dot.low, dot.high)]
        between = el("line", x1=ends[0], x2=ends[1], y1=middle, y2=middle, cls=f"between h{dot.hue}")
    path = raw(f'<path d="{FORMS[dot.form]}"/>')
    mark = el(
        "svg",
        el("title", dot.tip),
        path,
        x=f"{scale.percent(dot.value):.2f}%",
        y=middle,
        overflow="visible",
        cls=f"dot h{dot.hue}",
    )
    return join(between, mark)


def steps(counts: Sequence[float], most: float) -> str:
    """An SVG path of the outline of a histogram in a box of len(counts) x 100, `most` at the top."""
    if not most > 0:
        return f"M0 100H{len(counts)}"
    parts = ["M0 100"]
    last = 100.0
    for number, count in enumerate(counts):
        level = round(100 - 100 * count / most, 1)
        if level != last:
            parts.append(f"V{level:g}")
            last = level
        parts.append(f"H{number + 1}")
    return "".join(parts) + "V100Z"


def key(parts: Sequence[tuple[int, str, int | None]]) -> Markup:
    """The legend: (hue, text, form); a swatch where there is no form."""
    return el("p", *(_key(hue, text, form) for hue, text, form in parts), cls="legend")


def _key(hue: int, text: str, form: int | None) -> Markup:
    if form is None:
        sign = el("i", cls=f"swatch h{hue}")
    else:
        path = raw(f'<path d="{FORMS[form]}"/>')
        sign = el("svg", path, viewBox="-6 -6 12 12", width="12", height="12", cls=f"dot h{hue}", aria_hidden="true")
    return el("span", sign, f" {text}", cls="key")


def short(text: str) -> str:
    """A label that fits."""
    return text if len(text) <= LABEL_CHARACTERS else f"{text[: LABEL_CHARACTERS - 1]}\u2026"
