"""Latency: decoding and prefill by prompt length and batch, next to the baseline, the share of the roofline, energy, what ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.metrics.latency import (
    ENERGY_PER_TOKEN,
    ENERGY_PREFILL,
    PREFILL,
    ROOFLINE,
    THROUGHPUT,
    TPOT,
    TPOT_RATIO,
    TTFT,
    TTFT_RATIO,
)
from harness.report.cells import CellView, Outcome, plain_table
from harness.report.markup import Markup, el, join
from harness.report.numbers import Display, display, show, show_interval
from harness.report.pieces import by_model, cells_of, fold, head_of, kernels, numeric, table, value_of
from harness.report.section import Section
from harness.report.svg import FORMS, Dot, Row, chart, key, span
from harness.report.view import View

CHARTS = ((TPOT.name, "Time per output token", "decode"), (TTFT.name, "Time to first token", "prefill"))
NUMBERS = (
    (TPOT.name, "Per token"),
    (TPOT_RATIO.name, "× baseline"),
    (TTFT.name, "First token"),
    (TTFT_RATIO.name, "× baseline"),
    (THROUGHPUT.name, "Decode"),
    (PREFILL.name, "Prefill"),
    (ROOFLINE.name, "Of roofline"),
    (ENERGY_PER_TOKEN.name, "Energy per token"),
    (ENERGY_PREFILL.name, "Energy per prompt"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A shape that was timed: `subject` is its name in the record."""

    subject: str
    prompt: int
    new: int
    batch: int


def section(view: View) -> Section | None:
    shapes = shapes_of(view)
    if not shapes:
        return None
    blocks = by_model(view, lambda model: _block(view, model, shapes))
    if not blocks:
        return None
    return Section(
        id="latency",
        nav="Latency",
        title="Latency: prefill, decode, and what ran",
        lead="Medians with 95 % intervals, each cell timed in turn with the baseline. On logarithmic axes equal distances are "
        "equal factors. Simulated cells are withheld.",
        body=join(*blocks),
    )


def shapes_of(view: View) -> list[Shape]:
    """The shapes that cells were timed at, by batch and then by prompt."""
    found = {
        o.question.subject: o
        for c in view.cells
        for o in c.outcomes
        if any(m.metric in (TPOT.name, TTFT.name) for m in o.measurements)
    }
    return sorted((_shape(o) for o in found.values()), key=lambda s: (s.batch, s.prompt, s.new, s.subject))


def _shape(outcome: Outcome) -> Shape:
    options = outcome.question.options
    prompt, new, batch = (value if isinstance(value := options.get(name), int) else 0 for name in ("prompt", "new", "batch"))
    return Shape(subject=outcome.question.subject, prompt=prompt, new=new, batch=batch)


def _block(view: View, model: str, shapes: Sequence[Shape]) -> Markup | None:
    cells = [c for c in cells_of(view, model) if any(value_of(view, c, m, s.subject) for s in shapes for m, _, _ in CHARTS)]
    if not cells:
        return None
    drawn = []
    for batch in dict.fromkeys(s.batch for s in shapes):
        these = [s for s in shapes if s.batch == batch]
        two = [_chart(view, cells, these, metric, f"{title}, batch {batch}") for metric, title, _ in CHARTS]
        drawn.append(el("div", *(one for one in two if one is not None), cls="pair"))
    tables = [_table(view, cells, shape) for shape in shapes]
    folded = [fold(f"Table of {shape.subject}", one) for shape, one in zip(shapes, tables, strict=True)]
    return join(*drawn, *folded, _idle(cells), _ran(cells))


def _chart(view: View, cells: Sequence[CellView], shapes: Sequence[Shape], metric: str, title: str) -> Markup | None:
    found = {(c.id, s.subject): value_of(view, c, metric, s.subject) for c in cells for s in shapes}
    values = [x for v in found.values() if v is not None for x in (v[0].value, v[0].low, v[0].high) if x is not None]
    scale, how = span(values, log=True), display("s", values)
    if scale is None:
        return None
    rows = []
    for cell in cells:
        dots, texts = [], []
        for number, shape in enumerate(shapes):
            known = found[cell.id, shape.subject]
            if known is not None:
                text = _seconds(known[0].value, how)
                value = known[0]
                tip = f"{shape.subject}: {text}"
                dots.append(Dot(value=value.value, low=value.low, high=value.high, hue=number, form=number % len(FORMS), tip=tip))
                texts.append(text)
        rows.append(Row(label=cell.label, text=" · ".join(texts), dots=dots))
    legend = key([(number, f"after {s.prompt:,} tokens", number % len(FORMS)) for number, s in enumerate(shapes)])
    return el(
        "div",
        el("h4", title),
        legend,
        chart(f"{title}, by cell, logarithmic", rows, scale, lambda v: f"{v * how.factor:.3g} {how.label}"),
    )


def _seconds(value: float, how: Display) -> str:
    scaled = value * how.factor
    digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2 if scaled >= 0.1 else 4
    return f"{scaled:.{digits}f} {how.label}"


def _table(view: View, cells: Sequence[CellView], shape: Shape) -> Markup:
    shown = [(m, title) for m, title in NUMBERS if any(value_of(view, c, m, shape.subject) for c in cells)]
    heads, columns = [], []
    for metric, title in shown:
        found = [value_of(view, c, metric, shape.subject) for c in cells]
        unit = next(v[1].metric.unit for v in found if v is not None)
        how = display("share" if metric == ROOFLINE.name else unit, [v[0].value for v in found if v is not None])
        heads.append(numeric(title, how.label))
        columns.append((metric, found, "share" if metric == ROOFLINE.name else unit, how))
    rows = []
    for place, cell in enumerate(cells):
        squares = []
        for _, found, unit, how in columns:
            known = found[place]
            if known is None:
                squares.append(el("td", "–", cls="num muted"))
                continue
            value = known[0]
            between = show_interval(value.low, value.high, unit, how, value=value.value)
            squares.append(el("td", show(value.value, unit, how), el("small", between) if between else None, cls="num"))
        rows.append(el("tr", head_of(cell), *squares))
    return table(f"Latency at {shape.subject}", ["Cell", *heads], rows)


def _idle(cells: Sequence[CellView]) -> Markup | None:
    """The power of the idle machine that was subtracted from the energies, by the counters that were read."""
    watts: dict[str, list[float]] = {}
    for outcome in (o for c in cells for o in c.outcomes):
        energy = plain_table(outcome.facts.get("energy"))
        taken = energy.get("idle_watts")
        if isinstance(taken, (int, float)):
            watts.setdefault(str(energy.get("counter", "")), []).append(float(taken))
    if not watts:
        return None
    said = [
        f"Energy is what the counters of the {name} counted, less the power of the idle machine just before: "
        f"{_between(min(these), max(these))} W."
        for name, these in sorted(watts.items())
    ]
    return el("p", " ".join(said), cls="note")


def _between(low: float, high: float) -> str:
    least, most = show(low, "W"), show(high, "W")
    return least if least == most else f"{least} to {most}"


def _ran(cells: Sequence[CellView]) -> Markup | None:
    """The kernels that ran, read from the loaded models; cells with the same ones together."""
    groups: dict[tuple[str, ...], list[CellView]] = {}
    for cell in cells:
        said = tuple(f"{count} × {name}" for name, (count, _) in kernels(cell.outcomes).items())
        if said:
            groups.setdefault(said, []).append(cell)
    if not groups:
        return None
    rows = [
        el(
            "tr",
            el("th", *(el("span", head, cls="block") for head in said), scope="row", cls="kernel"),
            el("td", ", ".join(c.label for c in those), cls="why"),
        )
        for said, those in groups.items()
    ]
    return join(el("h3", "Kernels that ran"), table("Kernels that ran", ["Layers × kernel", "Cells"], rows))
