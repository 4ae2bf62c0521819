"""What the sections below the first screen are built of: tables that can be copied, folds, a block for each model, samples."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.report.cells import OK, CellView, Column, Outcome, Value, plain_table
from harness.report.markup import Markup, el, join
from harness.report.numbers import Display, show, with_unit
from harness.report.view import View

MOST_MODELS = 6
"""Models that each of these sections draws: a page of fifty models is for finding one, whose own report has all."""

Floats: TypeAlias = NDArray[np.float64]


def table(title: str, columns: Sequence[str | Markup], rows: Sequence[Markup], cls: str = "plain") -> Markup:
    """A table of finished rows in a frame that scrolls by itself; its title is read aloud and stands over what is copied."""
    head = el("thead", el("tr", *(c if isinstance(c, Markup) else el("th", c, scope="col") for c in columns)))
    inner = el("table", el("caption", title, cls="hidden"), head, el("tbody", *rows), cls=cls)
    return el("div", inner, cls="scroll", tabindex="0", role="region", aria_label=title)


def numeric(title: str, unit: str = "") -> Markup:
    """The head of a column of numbers."""
    return el("th", title, el("small", unit) if unit else None, scope="col", cls="num")


def fold(summary: str, *body: Markup | None) -> Markup:
    return el("details", el("summary", summary), *body)


def by_model(view: View, make: Callable[[str], Markup | None]) -> list[Markup]:
    """One block for each model that has something to show, up to MOST_MODELS; those after the first are folded away."""
    made: list[tuple[str, Markup]] = []
    left = 0
    for name in view.models:
        if len(made) == MOST_MODELS:
            left += 1
        elif (block := make(name)) is not None:
            made.append((name, block))
    if len(view.models) < 2:
        return [block for _, block in made]
    blocks = [join(el("h3", name), block) if not place else fold(name, block) for place, (name, block) in enumerate(made)]
    if left:
        said = f"{left} more models are left out here, to keep the page small; their numbers are in the table of all cells."
        blocks.append(el("p", said, cls="muted small"))
    return blocks


def cells_of(view: View, model: str, *, baseline: bool = True) -> list[CellView]:
    return [c for c in view.cells if c.model == model and (baseline or not c.baseline)]


def head_of(cell: CellView) -> Markup:
    """The first square of a cell's row: its name, and that it is the baseline or simulated."""
    tags = [el("span", word, cls="tag") for word, so in (("baseline", cell.baseline), ("simulated", cell.simulated)) if so]
    return el("th", cell.label, *(join(" ", tag) for tag in tags), scope="row")


def square(value: Value | None, column: Column | None, how: Display | None, *, interval: str = "") -> Markup:
    """A number in a table, or its status in a word."""
    if value is None or column is None or value.status != OK:
        word = "–" if value is None or value.status == "absent" else value.status
        return el("td", word, cls="num muted", data_tip=(value.reason or None) if value is not None else None)
    text = show(value.value, column.metric.unit, how, signed=column.metric.signed)
    return el("td", text, el("small", interval) if interval else None, cls="num")


def value_of(view: View, cell: CellView, metric: str, subject: str) -> tuple[Value, Column] | None:
    """A cell's number of a metric on a subject, under whichever definition it has one."""
    for column in view.of(metric):
        if column.subject == subject and cell.values[column.key].status == OK:
            return cell.values[column.key], column
    return None


def subjects(view: View, metric: str) -> list[str]:
    """What a metric was measured on, in the order asked."""
    return list(dict.fromkeys(c.subject for c in view.of(metric)))


def quantity(value: float, unit: str, how: Display | None = None) -> str:
    """A number with its unit: `3.9 MB`."""
    from harness.report.numbers import display

    how = how or display(unit, [value])
    return with_unit(show(value, unit, how), how)


def kernels(outcomes: Sequence[Outcome]) -> dict[str, tuple[int, list[str]]]:
    """What really ran in a cell: `kernels_of` the first outcome that says."""
    return next((found for outcome in outcomes if (found := kernels_of(outcome.facts))), {})


def kernels_of(facts: Mapping[str, object]) -> dict[str, tuple[int, list[str]]]:
    """What really ran, as the engine reported it in an answer's facts: by kernel, on how many layers and on which."""
    engine = plain_table(facts.get("engine"))
    layers = plain_table(engine.get("layers"))
    return {
        name: (count if isinstance(count, int) else 0, [str(x) for x in names] if isinstance(names, list) else [])
        for name, count in plain_table(engine.get("kernels")).items()
        for names in [layers.get(name)]
    }


# ---- raw samples ----


def blob_of(outcome: Outcome, metric: str) -> str | None:
    return next((m.blob for m in outcome.measurements if m.metric == metric and m.blob), None)


def array(view: View, outcome: Outcome, metric: str) -> Floats | None:
    """A metric's samples [windows, tokens], or None where they are not kept, not on disk or not such a table."""
    name = blob_of(outcome, metric)
    if name is None:
        return None
    try:
        loaded = np.load(io.BytesIO(view.blob(name)), allow_pickle=False).astype(np.float64)
    except (OSError, HarnessError, ValueError, TypeError, EOFError):
        return None
    return loaded if loaded.ndim == 2 and loaded.size else None


def rows_of(view: View, outcome: Outcome, metric: str, key: str) -> list[Mapping[str, object]]:
    """The rows under `key` of a JSON side-car; none where it is not kept, not on disk or of another form."""
    name = blob_of(outcome, metric)
    if name is None or not name.endswith(".json"):
        return []
    try:
        rows = plain_table(json.loads(view.blob(name))).get(key)
    except (OSError, HarnessError, ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
