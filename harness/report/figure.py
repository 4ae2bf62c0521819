"""The main chart as a picture: quality against cost of one model, as an SVG that needs no script and no style sheet.

The same records give the same bytes. `paper`: white, large type, no chrome; else with its title and the words of its axes. A PNG
is this SVG drawn by a browser (`browser_png`).
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BadInput
from harness.frontier import Standing
from harness.report.cells import OK, CellView, Column
from harness.report.families import FAMILIES, colour
from harness.report.markup import Markup, el, join, raw
from harness.report.numbers import Display, show
from harness.report.section import SHAPES, column_display
from harness.report.standing import cost_columns, quality_columns, standings
from harness.report.svg import Scale
from harness.report.view import View

WIDTH, HEIGHT = 960, 600
INK, MUTED, GRID = "#1b1f24", "#5d6670", "#e3e6ea"
COLOURS = ("#4750e7", "#a42d08", "#188b46", "#801d77", "#b38605", "#0997fe", "#430f98", "#47322d")
"""By family, as in the page's style sheet on white."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PRINT_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """The chart's box in pixels, its scales and how numbers are written."""

    left: float
    top: float
    right: float
    bottom: float
    x: Scale
    y: Scale
    size: int

    def place(self, x: float, y: float) -> tuple[float, float]:
        across, up = self.x.percent(x) / 100, self.y.percent(y) / 100
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def svg(view: View, *, model: str | None = None, paper: bool = False) -> bytes:
    """The chart of one model on the first axes of the page. Of the unquantized cells only the baseline is drawn: others would
    press the rest into a corner. BadInput where there is nothing to draw."""
    name = _model(view, model)
    axes = _axes(view, name)
    if axes is None:
        raise BadInput(f"{name}: no quality and cost were measured of it that could be drawn against each other")
    cost, quality = axes
    both = [c for c in view.cells if c.model == name and c.values[cost.key].status == c.values[quality.key].status == OK]
    cells = [c for c in both if c.baseline or c.cell.bits < 16] or both
    stands = standings(view, cells, cost, quality)
    size = 20 if paper else 14
    frame = _Frame(
        left=size * 5.5,
        top=size * (1.5 if paper else 4),
        right=WIDTH - size * 1.5,
        bottom=HEIGHT - size * (6.5 if _families(cells) else 4),
        x=_scale(cells, cost),
        y=_scale(cells, quality),
        size=size,
    )
    displays = {c.key: column_display(view, c, cells) for c in axes}
    title = None if paper else _text(f"{view.title or view.suite}: {name}", frame.left, size * 2.2, size * 1.2, weight="600")
    image = el(
        "svg",
        el("title", f"{quality.title} of {name} against {cost.title}"),
        raw(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'),
        title,
        _grid(frame, cost, quality, displays),
        _front(frame, cells, stands, cost, quality),
        *(_cell(frame, c, stands[c.id], cost, quality) for c in _drawn_last(cells, stands)),
        _labels(frame, cells, stands, cost, quality),
        _legend(frame, cells),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        width=WIDTH,
        height=HEIGHT,
        font_family="Helvetica, Arial, sans-serif",
    )
    return f"{image}\n".encode()


def browser_png(image: bytes, *, scale: float = 2) -> bytes:
    """An SVG of `svg` as a PNG of twice its size, by an installed browser without a network. BadInput where there is none."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        raise BadInput(
            "a PNG is drawn by a browser, and none is installed; add one with: apt-get install chromium, or write an .svg"
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page, picture = Path(folder) / "chart.html", Path(folder) / "chart.png"
        page.write_bytes(b'<!doctype html><meta charset="utf-8"><style>body{margin:0}svg{display:block}</style>' + image)
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}/profile"]
        command += [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={scale:g}"]
        command += [f"--screenshot={picture}", page.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PRINT_SECONDS, check=False, cwd=folder)
        except subprocess.TimeoutExpired:
            raise BadInput(f"{program} drew nothing in {PRINT_SECONDS} s; write an .svg instead") from None
        if not picture.is_file():
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise BadInput(f"{program} drew nothing ({last}); write an .svg instead")
        return picture.read_bytes()


def _model(view: View, model: str | None) -> str:
    if model is None:
        if len(view.models) != 1:
            raise BadInput(f"these results are of {len(view.models)} models; choose one with --model: {', '.join(view.models)}")
        return view.models[0]
    if model not in view.models:
        raise BadInput(f"--model {model}: not in these results; there are: {', '.join(view.models)}")
    return model


def _axes(view: View, model: str) -> tuple[Column, Column] | None:
    """(cost, quality): the first of the menus that two cells of the model have both of."""
    cells = [c for c in view.cells if c.model == model]
    for quality in quality_columns(view):
        for cost in cost_columns(view):
            if any(c.values[quality.key].status == c.values[cost.key].status == OK for c in cells):
                return cost, quality
    return None


def _scale(cells: Sequence[CellView], column: Column) -> Scale:
    """An axis that holds all values and intervals with some room; from the values' range, since a chart of points needs no 0."""
    values = [x for c in cells for x in _ends(c, column)]
    log = column.metric.scale == "log" and min(values) > 0
    low, high = (math.log10(f(values)) if log else f(values) for f in (min, max))
    room = (high - low) * 0.06 or (abs(high) * 0.05 or 1.0)
    low, high = low - room, high + room
    return Scale(low=10**low, high=10**high, log=True) if log else Scale(low=low, high=high)


def _ends(cell: CellView, column: Column) -> list[float]:
    value = cell.values[column.key]
    return [x for x in (value.value, value.low, value.high) if x is not None and math.isfinite(x)]


def _grid(frame: _Frame, cost: Column, quality: Column, displays: Mapping[str, Display]) -> Markup:
    parts = []
    for tick in frame.x.ticks():
        x, _ = frame.place(tick, frame.y.low)
        parts.append(_line(x, frame.top, x, frame.bottom, GRID, 1))
        parts.append(_text(_tick(tick, cost, displays), x, frame.bottom + frame.size * 1.4, frame.size * 0.9, anchor="middle"))
    for tick in frame.y.ticks():
        _, y = frame.place(frame.x.low, tick)
        parts.append(_line(frame.left, y, frame.right, y, GRID, 1))
        parts.append(_text(_tick(tick, quality, displays), frame.left - 8, y + frame.size / 3, frame.size * 0.9, anchor="end"))
    middle, height = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
    parts.append(_text(_titled(cost, displays), middle, frame.bottom + frame.size * 3, frame.size, anchor="middle"))
    named = _text(_titled(quality, displays), 0, 0, frame.size, anchor="middle")
    parts.append(el("g", named, transform=f"translate({frame.size * 1.2:.1f} {height:.1f}) rotate(-90)"))
    return join(*parts)


def _tick(value: float, column: Column, displays: Mapping[str, Display]) -> str:
    how = displays[column.key]
    return f"{value * how.factor:.6g}" if how.label != "p" else show(value, column.metric.unit, how)


def _titled(column: Column, displays: Mapping[str, Display]) -> str:
    label = displays[column.key].label
    return f"{column.title} ({label})" if label and label != "p" else column.title


def _front(
    frame: _Frame, cells: Sequence[CellView], stands: Mapping[str, Standing], cost: Column, quality: Column
) -> Markup | None:
    on = sorted((c for c in cells if stands[c.id].status == "frontier"), key=lambda c: c.values[cost.key].value)
    places = [frame.place(c.values[cost.key].value, c.values[quality.key].value) for c in on]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return el("polyline", points=points, fill="none", stroke=MUTED, stroke_width="1.5") if len(places) > 1 else None


def _drawn_last(cells: Sequence[CellView], stands: Mapping[str, Standing]) -> list[CellView]:
    """Those on the frontier above the others."""
    return sorted(cells, key=lambda c: stands[c.id].status == "frontier")


def _cell(frame: _Frame, cell: CellView, stand: Standing, cost: Column, quality: Column) -> Markup:
    own = INK if cell.cell.bits >= 16 else COLOURS[colour(cell.cell.method)]
    x, y = frame.place(cell.values[cost.key].value, cell.values[quality.key].value)
    bars = []
    for column, along in ((cost, True), (quality, False)):
        value = cell.values[column.key]
        if value.low is not None and value.high is not None and math.isfinite(value.low) and math.isfinite(value.high):
            if along:
                (x0, _), (x1, _) = frame.place(value.low, 0), frame.place(value.high, 0)
                bars.append(_line(x0, y, x1, y, own, 1.2))
            else:
                (_, y0), (_, y1) = frame.place(frame.x.low, value.low), frame.place(frame.x.low, value.high)
                bars.append(_line(x, y0, x, y1, own, 1.2))
    path = next(p for least, _, p in SHAPES if cell.cell.bits >= least)
    fill = "#fff" if cell.simulated else own
    grown = frame.size / 11
    place = f"translate({x - 6 * grown:.1f} {y - 6 * grown:.1f}) scale({grown:.2f})"
    shape = el("path", el("title", cell.label), d=path, fill=fill, stroke=own, stroke_width="1.2", transform=place)
    return el("g", *bars, shape, opacity=None if stand.status == "frontier" else "0.4")


def _labels(frame: _Frame, cells: Sequence[CellView], stands: Mapping[str, Standing], cost: Column, quality: Column) -> Markup:
    """Names of the baseline and of the cells on the frontier, each where it covers nothing; one that fits nowhere is left out."""
    reach = frame.size * 0.6
    marks = [frame.place(c.values[cost.key].value, c.values[quality.key].value) for c in cells]
    taken = [(x - reach, y - reach, x + reach, y + reach) for x, y in marks]
    parts = []
    on = (c for c in cells if stands[c.id].status == "frontier" or c.baseline)
    for cell in sorted(on, key=lambda c: (c.values[cost.key].value, c.id)):
        x, y = frame.place(cell.values[cost.key].value, cell.values[quality.key].value)
        label = cell.label if len(cell.label) <= 32 else f"{cell.label[:31]}\u2026"
        wide, high = len(label) * frame.size * 0.52, frame.size * 1.1
        for at_x, at_y in _beside(wide, high, reach):
            box = (x + at_x, y + at_y - high, x + at_x + wide, y + at_y)
            inside = box[0] >= frame.left and box[2] <= WIDTH and box[1] >= frame.top - high and box[3] <= frame.bottom
            if inside and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                taken.append(box)
                parts.append(_text(label, box[0], box[3] - high * 0.2, frame.size * 0.85, fill=INK))
                break
    return join(*parts)


def _beside(wide: float, high: float, reach: float) -> Iterator[tuple[float, float]]:
    """Where a name may stand beside its mark: the lower left corner, from near to far."""
    for far in (0, 1, 2, 3, 4):
        for down in (-far, far) if far else (0,):
            for across in (reach + 4, -wide - reach - 4):
                yield across, high / 2 + down * high


def _families(cells: Sequence[CellView]) -> list[str]:
    present = {colour(c.cell.method) for c in cells if c.cell.bits < 16}
    return [name for place, name in enumerate(FAMILIES) if place in present]


def _legend(frame: _Frame, cells: Sequence[CellView]) -> Markup:
    """Colours of the families that occur, then shapes of the bit widths, in one row."""
    parts, x, y = [], frame.left, HEIGHT - frame.size * 1.2
    places = list(FAMILIES)
    entries = [(SHAPES[1][2], COLOURS[places.index(name)], name) for name in _families(cells)]
    for bits in sorted({c.cell.bits for c in cells if c.cell.bits < 16}, reverse=True):
        entries.append((next(p for least, _, p in SHAPES if bits >= least), MUTED, f"{bits:g}-bit"))
    for path, own, words in entries:
        parts.append(el("path", d=path, fill=own, transform=f"translate({x:.1f} {y - frame.size * 0.75:.1f})"))
        parts.append(_text(words, x + 16, y, frame.size * 0.85))
        x += 16 + len(words) * frame.size * 0.5 + frame.size
    return join(*parts)


def _line(x0: float, y0: float, x1: float, y1: float, stroke: str, width: float) -> Markup:
    x0, y0, x1, y1 = (round(v, 1) for v in (x0, y0, x1, y1))
    return el("line", x1=f"{x0:g}", y1=f"{y0:g}", x2=f"{x1:g}", y2=f"{y1:g}", stroke=stroke, stroke_width=f"{width:g}")


def _text(
    words: str, x: float, y: float, size: float, *, anchor: str = "start", weight: str | None = None, fill: str = MUTED
) -> Markup:
    return el(
        "text", words, x=f"{x:.1f}", y=f"{y:.1f}", font_size=f"{size:.1f}", text_anchor=anchor, font_weight=weight, fill=fill
    )
