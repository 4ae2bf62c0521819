"""Memory at the declared context: what it is made of, and the peak of each phase."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from harness.metrics.memory import (
    KV_CACHE,
    PEAK_DECODE,
    PEAK_DEVICE,
    PEAK_HOST,
    PEAK_LOAD,
    PEAK_PREFILL,
    REST,
    RUNTIME,
    SERVER,
    SERVER_RSS,
    WEIGHTS,
)
from harness.report.cells import CellView, Column, Value
from harness.report.markup import Markup, el, join
from harness.report.numbers import Display, display, show, with_unit
from harness.report.pieces import by_model, cells_of, fold, head_of, numeric, subjects, table, value_of
from harness.report.section import Section
from harness.report.svg import Dot, Row, Segment, chart, key, span
from harness.report.view import View

PARTS = ((WEIGHTS.name, "weights"), (KV_CACHE.name, "KV cache"), (REST.name, "rest"))
PHASES = ((PEAK_LOAD.name, "load"), (PEAK_PREFILL.name, "prefill"), (PEAK_DECODE.name, "decode"))
SERVERS = ((SERVER.name, "server processes"), (SERVER_RSS.name, "server processes, resident sets"))
OTHERS = ((RUNTIME.name, "runtime, not in the peaks"), *SERVERS)


def section(view: View) -> Section | None:
    found = list(dict.fromkeys(s for metric, _ in (*PHASES, *SERVERS) for s in subjects(view, metric)))
    blocks: list[Markup] = []
    for subject in found:
        made = by_model(view, functools.partial(_block, view, subject=subject))
        blocks += [el("h3", _shape(subject)), *made] if made else []
    if not blocks:
        return None
    return Section(
        id="memory",
        nav="Memory",
        title="Memory by component and phase",
        lead="The bar is what the peak of decoding is made of; the marks are the peaks of load, prefill and decode. Beyond the "
        "process before load; simulated cells are withheld.",
        body=join(*blocks),
    )


def _shape(subject: str) -> str:
    """`512+64 x1` in words."""
    tokens, _, batch = subject.partition(" x")
    prompt, plus, new = tokens.partition("+")
    return f"{prompt} tokens of prompt, {new} new, batch {batch}" if plus and batch else subject


def _block(view: View, model: str, subject: str) -> Markup | None:
    """One chart for each way of counting: bytes of a device and of the host are on no common axis."""
    groups: dict[str, list[CellView]] = {}
    others = []
    for cell in cells_of(view, model):
        peak = value_of(view, cell, PEAK_DECODE.name, subject)
        if peak is not None:
            groups.setdefault(peak[1].metric.definition, []).append(cell)
        elif any(value_of(view, cell, metric, subject) for metric, _ in (*PARTS, *PHASES, *SERVERS)):
            others.append(cell)
    charts = [_chart(view, cells, subject, definition) for definition, cells in groups.items()]
    shown = [cell for cells in groups.values() for cell in cells] + others
    if not shown:
        return None
    return join(*charts, fold("Table of memory", _table(view, shown, subject)))


def _chart(view: View, cells: Sequence[CellView], subject: str, definition: str) -> Markup | None:
    numbers = [
        v[0].value for c in cells for metric, _ in (*PARTS, *PHASES) if (v := value_of(view, c, metric, subject)) is not None
    ]
    scale, how = span([*numbers, 0.0], log=False), display("B", numbers)
    if scale is None:
        return None
    rows = [_row(view, cell, subject, how) for cell in cells]
    legend = key(
        [(hue, name, None) for hue, (_, name) in enumerate(PARTS)]
        + [(8, f"peak memory, {n}", f + 1) for f, (_, n) in enumerate(PHASES)]
    )
    drawn = chart(
        f"Memory at {_shape(subject)}, stacked by component, by cell",
        rows,
        scale,
        lambda v: f"{v * how.factor:g} {how.label}" if v else "0",
    )
    return join(legend, drawn, el("p", f"Peaks: {definition}.", cls="note"))


def _bytes(value: float, how: Display) -> str:
    return with_unit(show(value, "B", how), how) if value else "0"


def _row(view: View, cell: CellView, subject: str, how: Display) -> Row:
    """Components one after another. A rest below zero (weights that were never touched) is said, and ends no bar."""
    at, bars = 0.0, []
    for hue, (metric, name) in enumerate(PARTS):
        found = value_of(view, cell, metric, subject)
        if found is not None and found[0].value > 0:
            bars.append(Segment(low=at, high=at + found[0].value, hue=hue, tip=f"{name}: {_bytes(found[0].value, how)}"))
            at += found[0].value
    dots = []
    for number, (metric, name) in enumerate(PHASES):
        found = value_of(view, cell, metric, subject)
        if found is not None:
            dots.append(
                Dot(value=found[0].value, hue=8, form=number + 1, tip=f"peak memory, {name}: {_bytes(found[0].value, how)}")
            )
    peak = value_of(view, cell, PEAK_DECODE.name, subject)
    rest = value_of(view, cell, REST.name, subject)
    text = "" if peak is None else _bytes(peak[0].value, how)
    if rest is not None and rest[0].value < 0:
        text += f" (rest {_bytes(rest[0].value, how)})"
    return Row(label=cell.label, text=text, bars=bars, dots=dots)


def _table(view: View, cells: Sequence[CellView], subject: str) -> Markup:
    metrics = [
        (metric, title)
        for metric, title in (*PARTS, *((m, f"peak memory, {n}") for m, n in PHASES), (PEAK_HOST.name, PEAK_HOST.title),
                              (PEAK_DEVICE.name, PEAK_DEVICE.title), *OTHERS)
        if any(value_of(view, c, metric, subject) for c in cells)
    ]  # fmt: skip
    columns: list[list[tuple[Value, Column] | None]] = [
        [value_of(view, c, metric, subject) for c in cells] for metric, _ in metrics
    ]
    how = [display("B", [v[0].value for v in column if v is not None]) for column in columns]
    rows = [
        el(
            "tr",
            head_of(cell),
            *(
                el("td", "–" if (v := column[place]) is None else show(v[0].value, "B", unit), cls="num")
                for column, unit in zip(columns, how, strict=True)
            ),
        )
        for place, cell in enumerate(cells)
    ]
    heads = [numeric(title[:1].upper() + title[1:], unit.label) for (_, title), unit in zip(metrics, how, strict=True)]
    return table(f"Memory, {_shape(subject)}", ["Cell", *heads], rows)
