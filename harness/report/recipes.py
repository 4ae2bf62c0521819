"""Cells made by recipes of one's own: what each recipe did, read back from its artifact beside the bits that the suite says."""

from __future__ import annotations

from collections.abc import Sequence

from harness import recipes
from harness.metrics.size import QUANTIZED, SHARE
from harness.recipes import UNKNOWN_BITS
from harness.report.cells import CellView, plain_table
from harness.report.markup import Markup, el
from harness.report.pieces import by_model, cells_of, head_of, numeric, table, value_of
from harness.report.section import Section
from harness.report.view import View

_FEW = 6
"""So many names are shown, and the rest counted."""


def section(view: View) -> Section | None:
    blocks = by_model(view, lambda model: _block(view, model))
    if not blocks:
        return None
    return Section(
        id="recipes",
        nav="Recipes",
        title="Recipes of one's own",
        lead="What each recipe did, read back from the artifact. Layers that a recipe leaves as they were are no mistake. The "
        "label has the bits that the suite says; what is measured counts, of the quantized layers and of all.",
        body=blocks[0] if len(blocks) == 1 else el("div", *blocks),
    )


def _block(view: View, model: str) -> Markup | None:
    cells = [cell for cell in cells_of(view, model) if recipes.of(cell.cell.scheme) is not None]
    if not cells:
        return None
    columns: list[str | Markup] = [
        "Cell",
        numeric("Said", "bits"),
        numeric("Quantized layers", "bits/weight"),
        numeric("Share quantized"),
        "Layers by stored bits per weight",
        "Left as they were",
        "Patterns that match no layer",
        "Digest",
    ]
    return table("Recipes, and what they did", columns, [_row(view, cell) for cell in cells])


def _row(view: View, cell: CellView) -> Markup:
    recipe = recipes.of(cell.cell.scheme)
    assert recipe is not None
    facts = next((o.facts for o in cell.outcomes if isinstance(o.facts.get("recipe"), dict)), {})
    digest = el("td", el("code", recipe.digest[:16]))
    bits = cell.cell.bits
    said = el("td", "not said" if bits == UNKNOWN_BITS else f"{bits:g}", cls="num")
    if not facts:
        return el("tr", head_of(cell), said, el("td", "not measured", cls="why", colspan="5"), digest)
    did = plain_table(facts.get("recipe"))
    measured, share = (value_of(view, cell, metric.name, "") for metric in (QUANTIZED, SHARE))
    squares = (
        el("td", "–" if measured is None else f"{measured[0].value:.3f}", cls="num"),
        el("td", "–" if share is None else f"{share[0].value:.1%}", cls="num"),
        el("td", _parts(facts.get("parts")), cls="why"),
        el("td", _brief(did.get("left")), cls="why"),
        el("td", _brief(did.get("unmatched")), cls="why"),
    )
    return el("tr", head_of(cell), said, *squares, digest)


def _parts(parts: object) -> str:
    """`24 at 4.6, 4 at 16`."""
    found = [(_number(name), plain_table(part).get("layers")) for name, part in plain_table(parts).items()]
    return ", ".join(f"{layers} at {bits:g}" for bits, layers in sorted(found, key=lambda each: each[0]))


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return 0.0


def _brief(names: object) -> str:
    listed: Sequence[object] = names if isinstance(names, list) else []
    more = f" and {len(listed) - _FEW} more" if len(listed) > _FEW else ""
    return ", ".join(map(str, listed[:_FEW])) + more or "none"
