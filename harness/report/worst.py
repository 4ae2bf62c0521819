"""The worst examples: items whose answers flipped, and tokens at which a cell is furthest from the baseline, with their text.

Texts are those that the probes kept (`probes/items.py`, `probes/divergence.py`): excerpts, in the baseline's side-car for items
and in each cell's own for tokens. Side-cars of older runs hold none; then the items are named by their place in the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.metrics.divergence import KL_MAX
from harness.report.cells import CellView, Outcome, plain_table
from harness.report.markup import Markup, el, join
from harness.report.pieces import by_model, cells_of, fold, numeric, rows_of, table
from harness.report.section import Section
from harness.report.view import View

ITEMS, CELLS, TOKENS = 8, 24, 8
"""At most so many items of a task, cells whose own examples are shown, and tokens of a cell."""

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An item that the baseline answers right and these cells wrong (`lost`), or the other way round (`gained`)."""

    row: Row
    lost: list[str] = field(default_factory=list)
    gained: list[str] = field(default_factory=list)


def section(view: View) -> Section | None:
    items = by_model(view, lambda model: _items(view, model))
    tokens = by_model(view, lambda model: _tokens(view, model))
    if not items and not tokens:
        return None
    body: list[Markup] = []
    if items:
        body += [el("h3", "Items that flipped"), *items]
    if tokens:
        body += [el("h3", "Tokens with the largest divergence"), *tokens]
    return Section(
        id="examples",
        nav="Examples",
        title="Worst examples",
        lead="What the numbers look like: the items that most cells lose against the baseline or gain on it, and the tokens at "
        "which a cell says something else. Extremes, picked for being extreme: no measure of anything.",
        body=join(*body),
    )


# ---- items ----


def _items(view: View, model: str) -> Markup | None:
    base = view.baseline_of(model)
    if base is None:
        return None
    blocks = []
    for outcome in base.outcomes:
        flips, compared = _flips(view, model, outcome)
        if flips:
            blocks.append(_task(outcome.question.subject, flips, compared))
    return join(*blocks) if blocks else None


def _flips(view: View, model: str, base: Outcome) -> tuple[list[Flip], int]:
    """Items of one task that any cell flips, those that most cells lose first, and how many cells were compared."""
    metric = next((m.name for m in base.metrics if m.samples == "items"), "")
    rows = rows_of(view, base, metric, "items")
    right = {str(row.get("id")): row.get("correct") for row in rows}
    found = {str(row.get("id")): Flip(row=row) for row in rows}
    compared = 0
    for cell in cells_of(view, model, baseline=False):
        own = next((o for o in cell.outcomes if o.question == base.question), None)
        answers = [] if own is None else _answers(view, cell, own, metric)
        compared += bool(answers)
        for name, after in answers:
            if after == right.get(name) or name not in found:
                continue
            if right[name] == 1 and after == 0:
                found[name].lost.append(cell.label)
            elif right[name] == 0 and after == 1:
                found[name].gained.append(cell.label)
    flipped = [flip for flip in found.values() if flip.lost or flip.gained]
    return sorted(flipped, key=lambda f: (-len(f.lost), -len(f.gained), str(f.row.get("id")))), compared


def _answers(view: View, cell: CellView, own: Outcome, metric: str) -> Sequence[tuple[str, object]]:
    """Ids and scores of a cell's items: as the comparison with the baseline read them, or read here for a task that cells are
    not compared on."""
    read = view.derived.items.get((cell.id, own.question.subject))
    if read is not None:
        return list(zip(read.ids, read.correct.tolist(), strict=True))
    return [(str(row.get("id")), row.get("correct")) for row in rows_of(view, own, metric, "items")]


def _task(task: str, flips: Sequence[Flip], compared: int) -> Markup:
    lost = [f for f in flips if f.lost]
    gained = sorted((f for f in flips if f.gained), key=lambda f: (-len(f.gained), str(f.row.get("id"))))
    said = f"{task}: {_some(lost, 'lost')} and {_some(gained, 'gained')} by at least one of {compared} cells"
    parts: list[Markup] = []
    if not any(flip.row.get("text") for flip in flips):
        parts.append(
            el("p", "The texts of these items were not kept; items are named by their place in the task's data.", cls="note")
        )
    for title, chosen, by in (("Lost by most cells", lost[:ITEMS], "lost"), ("Gained by most cells", gained[:ITEMS], "gained")):
        if chosen:
            rows = [_item(flip, by, compared) for flip in chosen]
            parts.append(
                table(f"{task}: {title.lower()}", [el("th", title, scope="col"), "Right answer", numeric("Cells"), "Which"], rows)
            )
    return fold(said, *parts)


def _some(flips: Sequence[Flip], how: str) -> str:
    return f"{len(flips)} {'item' if len(flips) == 1 else 'items'} {how}"


def _item(flip: Flip, by: str, compared: int) -> Markup:
    labels = flip.lost if by == "lost" else flip.gained
    text = plain_table(flip.row.get("text"))
    prompt = text.get("prompt")
    words = el("span", str(prompt), cls="excerpt") if prompt else el("span", _place(flip.row), cls="muted")
    which = el("td", fold("which", el("span", ", ".join(labels), cls="small")), cls="which")
    return el(
        "tr",
        el("th", words, scope="row", cls="why"),
        el("td", _right(flip.row, text), cls="why"),
        el("td", f"{len(labels)} of {compared}", cls="num"),
        which,
    )


def _place(row: Row) -> str:
    doc = row.get("doc")
    return f"item {doc + 1} of the data" if isinstance(doc, int) else f"item {row.get('id')}"


def _right(row: Row, text: Mapping[str, object]) -> Markup:
    """The right choice, and beside it how many there are; the target of an item that is answered in writing."""
    choices, gold = text.get("choices"), row.get("gold")
    if isinstance(choices, list) and isinstance(gold, int) and 0 <= gold < len(choices):
        others = [str(c) for place, c in enumerate(choices) if place != gold]
        return join(str(choices[gold]), el("span", f"not {' / '.join(others)}", cls="muted small block") if others else None)
    return join(str(text.get("target", "–")))


# ---- tokens ----


def _tokens(view: View, model: str) -> Markup | None:
    blocks: list[Markup] = []
    left = 0
    for cell in cells_of(view, model, baseline=False):
        for outcome in cell.outcomes:
            rows = rows_of(view, outcome, KL_MAX, "tokens")
            if rows and len(blocks) < CELLS:
                blocks.append(_cell(cell, outcome.question.subject, rows[:TOKENS]))
            left += bool(rows) and len(blocks) == CELLS
    if not blocks:
        return None
    less = left - 1 if len(blocks) == CELLS else 0
    more = el("p", f"{less} more answers keep theirs in results/; {CELLS} are shown.", cls="muted small") if less > 0 else None
    return join(*blocks, more)


def _cell(cell: CellView, subject: str, rows: Sequence[Row]) -> Markup:
    most = rows[0].get("kl")
    said = f"{cell.label} on {subject}" + (f": up to {most:.3g} nats" if isinstance(most, (int, float)) else "")
    heads = [numeric("KL", "nats"), numeric("p, baseline", "true token"), numeric("p, cell", "true token"), "Same guess"]
    title = f"{cell.label} on {subject}: tokens with the largest divergence"
    return fold(said, table(title, [el("th", "Text", scope="col"), *heads], [_token(row) for row in rows]))


def excerpt(before: str, token: str, after: str) -> Markup:
    """A token between what stands around it in its text."""
    return el("span", "…", before, el("mark", token), after, "…", cls="excerpt")


def _token(row: Row) -> Markup:
    words = excerpt(*(str(row.get(name, "")) for name in ("before", "token", "after")))
    same = row.get("same_guess")
    guess = "yes" if same is True else "no" if same is False else "–"
    numbers = [number(row.get(name), form) for name, form in (("kl", ".3f"), ("p_base", ".1%"), ("p", ".1%"))]
    return el("tr", el("th", words, scope="row", cls="why"), *(el("td", n, cls="num") for n in numbers), el("td", guess))


def number(value: object, form: str) -> str:
    """A number of a row, or a dash for what is none."""
    return format(value, form) if isinstance(value, (int, float)) and not isinstance(value, bool) else "–"
