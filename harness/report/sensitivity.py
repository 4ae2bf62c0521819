"""Which layer loses how much in which width, alone, and which width a mixture gave it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.metrics.sensitivity import KL_OF_LAYERS, LAYERS
from harness.report.cells import CellView, Outcome, plain_table
from harness.report.markup import Markup, el, join
from harness.report.pieces import blob_of, fold, numeric, rows_of, table
from harness.report.view import View
from harness.spec import digest

MOST_LAYERS, MOST_CELLS = 400, 12
"""Of one table; the raw samples have all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One table of losses: by layer and width, in nats per token; `cells` that were made of it, each with the width that it gave
    to every layer. `rounding` and `tokens`: how it was made."""

    losses: Mapping[str, Mapping[str, float]]
    widths: Sequence[str]
    rounding: str
    tokens: str
    cells: list[tuple[CellView, Mapping[str, str], Outcome]]


def block(view: View, cells: Sequence[CellView]) -> Markup | None:
    """One heat map for each table of losses that the mixtures `cells` were made of."""
    tables: dict[str, Shown] = {}
    for cell in cells:
        for outcome in cell.outcomes:
            if blob_of(outcome, KL_OF_LAYERS.name) is not None:
                _add(view, cell, outcome, tables)
    drawn = [_drawn(shown) for shown in tables.values()]
    return join(el("h4", "What each layer loses alone"), *drawn) if drawn else None


def _add(view: View, cell: CellView, outcome: Outcome, tables: dict[str, Shown]) -> None:
    losses: dict[str, dict[str, float]] = {}
    chosen: dict[str, str] = {}
    bits: dict[str, float] = {}
    for row in rows_of(view, outcome, KL_OF_LAYERS.name, LAYERS):
        name = row.get("layer")
        if isinstance(name, str):
            losses[name] = _numbers(row.get("losses"))
            chosen[name] = str(row.get("chosen", ""))
            bits |= _numbers(row.get("bits"))  # of any layer: their order is the same in all
    if not losses:
        return
    rounding, tokens = str(outcome.facts.get("rounding", "")), str(outcome.facts.get("tokens", ""))
    own = Shown(losses=losses, widths=sorted(bits, key=lambda w: bits[w]), rounding=rounding, tokens=tokens, cells=[])
    tables.setdefault(digest([losses, rounding]), own).cells.append((cell, chosen, outcome))


def _numbers(row: object) -> dict[str, float]:
    """The entries of a table that are finite numbers from 0 on."""
    plain = {name: value for name, value in plain_table(row).items() if isinstance(value, (int, float))}
    return {name: float(value) for name, value in plain.items() if math.isfinite(value) and value >= 0}


def _drawn(shown: Shown) -> Markup:
    note = (
        f"Mean KL in nats per token, on {shown.tokens} tokens of the calibration rows, with one layer of the unquantized model "
        f"rounded ({shown.rounding}) and all others as they were; the redder, the more. The columns after it are the widths that "
        "the mixtures gave: those with the least sum within the bits that each may take."
    )
    return join(el("p", note, cls="note"), _sums(shown), fold("Loss layer by layer", *_layers(shown)))


def _sums(shown: Shown) -> Markup:
    """What was expected of each mixture, and what each width would lose everywhere."""
    rows = []
    for width in shown.widths:
        every = [own[width] for own in shown.losses.values() if width in own]
        text = f"{math.fsum(every):.4f}" if len(every) == len(shown.losses) else "–"
        rows.append(el("tr", el("th", f"all layers in {width}", scope="row"), el("td", text, cls="num")))
    for cell, chosen, _ in shown.cells:
        sums = [shown.losses[layer].get(width) for layer, width in chosen.items()]
        text = "–" if any(each is None for each in sums) else f"{math.fsum(each for each in sums if each is not None):.4f}"
        rows.append(el("tr", el("th", cell.label, scope="row"), el("td", text, cls="num")))
    return table("Sum of what layers lose alone", ["Widths", numeric("Added up", "nat")], rows)


def _layers(shown: Shown) -> list[Markup | None]:
    cells = shown.cells[:MOST_CELLS]
    known = [loss for own in shown.losses.values() for loss in own.values() if loss > 0]
    low, high = (math.log(pick(known)) for pick in (min, max)) if known else (0.0, 0.0)
    rows = []
    for layer, own in list(shown.losses.items())[:MOST_LAYERS]:
        squares = [_square(own.get(width), low, high) for width in shown.widths]
        squares += [el("td", chosen.get(layer, "–"), cls="num") for _, chosen, _ in cells]
        rows.append(el("tr", el("th", layer, scope="row"), *squares))
    columns: list[str | Markup] = ["Layer", *(numeric(width) for width in shown.widths)]
    columns += [numeric(cell.label, "width given") for cell, _, _ in cells]
    cut = len(shown.losses) > MOST_LAYERS or len(shown.cells) > MOST_CELLS
    said = el("p", "The table is cut; the raw samples of kl_of_layers have all.", cls="small muted") if cut else None
    return [table("Loss by layer and width, each alone", columns, rows, cls="heat"), said]


def _square(loss: float | None, low: float, high: float) -> Markup:
    """One layer's loss in one width, the redder the larger, on a logarithmic scale."""
    if loss is None:
        return el("td", "–", cls="num muted")
    at = (math.log(loss) - low) / (high - low) if loss > 0 and high > low else 0.0
    return el("td", f"{loss:.2g}", cls="num neg", style=f"--a:{at:.3f}")
