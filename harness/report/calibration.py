"""What calibrated cells have seen: which text, why this one, how many tokens, and how much of it is scored as well."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.cells import CellView
from harness.report.markup import Markup, el, join
from harness.report.numbers import THIN, show
from harness.report.section import Section, scheme
from harness.report.view import View
from harness.spec import OVERLAP, CalibrationText

COLUMNS = ("Text", "Tokens", "Also scored", "Cells")


def section(view: View) -> Section | None:
    if not view.calibrated_on:
        return None
    title = "What cells were calibrated or trained on"
    head = el("thead", el("tr", *(el("th", c, scope="col") for c in COLUMNS)))
    rows = [_row(view, text) for text in view.calibrated_on]
    table = el("table", head, el("tbody", *rows), cls="plain")
    note = el(
        "p",
        "Also scored: the share of the calibration rows' characters in runs of 50 or more that the scored text holds too. The "
        "more there is of it, the less a cell's perplexity and divergence on that text say about another one.",
        cls="muted",
    )
    return Section(
        id="calibration",
        nav="Calibration",
        title=title,
        lead="Calibrated methods look at a text while they round: it decides what they keep. Methods that train learn from it.",
        body=join(el("div", table, cls="scroll", tabindex="0", role="region", aria_label=title), note),
    )


def _row(view: View, text: CalibrationText) -> Markup:
    cells = [c for c in view.cells if c.model == text.model and c.label in text.cells]
    model = el("span", text.model, cls="muted small block") if len(view.models) > 1 else None
    shares = [el("span", _share(scored, text, cells), cls="block") for scored in text.overlap]
    return el(
        "tr",
        el("th", model, text.words, el("span", text.why, cls="muted small block"), scope="row"),
        el("td", f"{text.samples:,} × {text.length:,} = {text.tokens:,}"),
        el("td", *(shares or [el("span", "no text is scored", cls="muted")])),
        el("td", *(el("span", scheme(view, c), cls="block") for c in cells)),
    )


def _share(scored: str, text: CalibrationText, cells: Sequence[CellView]) -> str:
    """The largest share that a cell has measured of its own rows; before that, the plan's of the whole text."""
    found = [o.facts.get(OVERLAP) for c in cells for o in c.outcomes if o.question.subject == scored]
    measured = [share for share in found if isinstance(share, (int, float))]
    if measured:
        return f"{scored}: {_percent(max(measured))}"
    planned = text.overlap[scored]
    return f"{scored}: not known" if planned is None else f"{scored}: {_percent(planned)} of the whole text"


def _percent(share: float) -> str:
    return f"{show(share, 'share')}{THIN}%"
