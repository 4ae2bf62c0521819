"""What became of a cell's layers: how many bits each part of them is stored in, how far their weights moved, and which kernel ran
on which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.report import layer_errors
from harness.report.cells import CellView, plain_table
from harness.report.markup import Markup, el, join
from harness.report.pieces import by_model, cells_of, fold, head_of, kernels, numeric, table
from harness.report.section import Section
from harness.report.svg import Row, Scale, Segment, chart, key
from harness.report.view import View

WIDTHS = (2.5, 3.5, 4.75, 6.75, 9.0, 17.0)
"""Upper ends of the bins of stored bits per weight that share a colour."""
NAMES = ("up to 2.5 bits", "2.5 to 3.5", "3.5 to 4.75", "4.75 to 6.75", "6.75 to 9", "9 to 17", "more")


def section(view: View) -> Section | None:
    blocks = by_model(view, lambda model: _block(view, model))
    if not blocks:
        return None
    return Section(
        id="layers",
        nav="Layers",
        title="Layer by layer",
        lead="In how many bits the quantized layers are stored, read from the artifact, how far their weights moved, and which "
        "kernels ran on them.",
        body=join(*blocks),
    )


def _block(view: View, model: str) -> Markup | None:
    cells = [c for c in cells_of(view, model) if _parts(c) or kernels(c.outcomes)]
    stored = [c for c in cells if _parts(c)]
    errors = layer_errors.block(view, model)
    if not cells and errors is None:
        return None
    mixed = [c for c in stored if len(_bins(c)) > 1]
    drawn: list[Markup | None] = []
    if len(mixed) < len(stored):
        one = "cell stores" if len(stored) - len(mixed) == 1 else "cells store"
        drawn.append(el("p", f"{len(stored) - len(mixed)} {one} all of these layers in about as many bits each.", cls="note"))
    if mixed:
        bins = sorted({number for c in mixed for number in _bins(c)})
        label = "Share of the quantized layers' parameters by stored bits, by cell that mixes widths"
        drawn.append(key([(number, NAMES[number], None) for number in bins]))
        drawn.append(chart(label, [_row(cell) for cell in mixed], Scale(low=0, high=1), lambda share: f"{share:.0%}"))
    return join(*drawn, _spread(stored) if stored else None, errors, _placed(cells))


def _facts(cell: CellView) -> Mapping[str, object]:
    """What the probe of sizes says of the artifact."""
    return next((o.facts for o in cell.outcomes if isinstance(o.facts.get("parts"), dict)), {})


def _parts(cell: CellView) -> list[tuple[float, int, int]]:
    """(stored bits per weight, layers, parameters) of each part, fewest bits first."""
    found = []
    for name, part in plain_table(_facts(cell).get("parts")).items():
        counts = plain_table(part)
        layers, parameters = counts.get("layers"), counts.get("parameters")
        try:
            bits = float(name)
        except ValueError:
            continue
        if isinstance(layers, int) and isinstance(parameters, int) and parameters > 0:
            found.append((bits, layers, parameters))
    return sorted(found)


def _bin(bits: float) -> int:
    return next((number for number, limit in enumerate(WIDTHS) if bits <= limit), len(WIDTHS))


def _bins(cell: CellView) -> set[int]:
    return {_bin(bits) for bits, _, _ in _parts(cell)}


def _row(cell: CellView) -> Row:
    parts = _parts(cell)
    whole = sum(parameters for _, _, parameters in parts)
    at, bars = 0, []
    for bits, layers, parameters in parts:
        tip = f"{layers} layers at {bits:g} bits: {parameters:,} parameters, {parameters / whole:.1%}"
        bars.append(Segment(low=at / whole, high=(at + parameters) / whole, hue=_bin(bits), tip=tip))
        at += parameters
    text = f"{parts[0][0]:g} bits" if len(parts) == 1 else f"{parts[0][0]:g} to {parts[-1][0]:g} bits"
    return Row(label=cell.label, text=text, bars=bars)


def _spread(cells: Sequence[CellView]) -> Markup:
    rows = []
    for cell in cells:
        for place, (bits, layers, parameters) in enumerate(_parts(cell)):
            head = head_of(cell) if place == 0 else el("th", cell.label, scope="row", cls="muted")
            numbers = (f"{bits:g}", f"{layers:,}", f"{parameters:,}")
            rows.append(el("tr", head, *(el("td", n, cls="num") for n in numbers)))
    columns = ["Cell", numeric("Stored", "bits/weight"), numeric("Layers"), numeric("Parameters")]
    return fold("Table of stored widths", table("Stored bits per weight by layer", columns, rows))


def _placed(cells: Sequence[CellView]) -> Markup | None:
    """Which kernel ran on which layers, cells with the same answer together."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for cell in cells:
        found = kernels(cell.outcomes)
        placed = tuple((name, ", ".join(layers)) for name, (_, layers) in found.items() if layers)
        if placed:
            groups.setdefault(placed, []).append(cell.label)
    if not groups:
        return None
    rows = [
        el("tr", el("th", kernel, scope="row", cls="kernel"), el("td", layers, cls="why"), el("td", ", ".join(labels), cls="why"))
        for placed, labels in groups.items()
        for kernel, layers in placed
    ]
    return fold("Which kernel ran on which layers", table("Kernels by layer", ["Kernel", "Layers", "Cells"], rows))
