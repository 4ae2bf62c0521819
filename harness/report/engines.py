"""The same artifact in two engines: where their answers differ, token by token and item by item.

Cells of one model and one origin that run in several engines hold the same bits on disk, so what differs between them is how they
are computed: kernels, their rounding, what an engine rounds besides. The intervals are those of paired samples; what lies
outside of both zero and its interval is said to differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from harness import stats
from harness.report.cells import OK, CellView, Column, Outcome
from harness.report.markup import Markup, el, join
from harness.report.numbers import show
from harness.report.pieces import array, by_model, cells_of, kernels, numeric, rows_of, table, value_of
from harness.report.section import Section
from harness.report.view import View
from harness.spec import digest

LEAD = (
    "One artifact, made once, answered by several engines. A difference is one of kernels and not of weights; it counts where "
    "the interval of the paired difference holds no zero."
)


def section(view: View) -> Section | None:
    blocks = by_model(view, lambda model: _block(view, model))
    if not blocks:
        return None
    return Section(id="engines", nav="Engines", title="One artifact in several engines", lead=LEAD, body=join(*blocks))


def pairs(view: View, model: str) -> list[tuple[CellView, CellView]]:
    """The cells of a model that share an artifact: the first engine's with each other engine's, in plan order."""
    groups: dict[str, list[CellView]] = {}
    for cell in cells_of(view, model):
        groups.setdefault(digest(cell.cell.origin.identity()), []).append(cell)
    return [
        (same[0], other)
        for same in groups.values()
        for other in same[1:]
        if other.cell.running.engine != same[0].cell.running.engine
    ]


def _block(view: View, model: str) -> Markup | None:
    both = pairs(view, model)
    rows = [row for one, other in both for row in _rows(view, one, other)]
    if not rows:
        return None
    numbers = [numeric("In the first"), numeric("In the other"), numeric("Difference")]
    shown = table("One artifact in several engines", ["Artifact", "Measured", *numbers, "Differ?"], rows)
    cells = {cell.id: cell for pair in both for cell in pair}
    ran = [el("li", f"{cell.label}: {_ran(cell)}") for cell in cells.values()]
    return join(shown, el("p", "What ran:", cls="note"), el("ul", *ran, cls="small"))


def _ran(cell: CellView) -> str:
    """`CPUWNA16LinearKernel on 20 layers`, with a word where the weights are held dequantized."""
    said = ", ".join(f"{name} on {count} layers" for name, (count, _) in kernels(cell.outcomes).items()) or "nothing is known"
    return f"{said} (simulated)" if cell.simulated else said


def _rows(view: View, one: CellView, other: CellView) -> Iterator[Markup]:
    name = f"{one.label} · {one.cell.running.engine} and {other.cell.running.engine}"
    for column in view.columns:
        if column.metric.samples not in ("losses", "items") or column.derived:
            continue
        first, second = (value_of(view, cell, column.metric.name, column.subject) for cell in (one, other))
        if first is None or second is None:
            continue
        numbers = [show(value.value, c.metric.unit) for value, c in (first, second)]
        difference, differ = _difference(view, one, other, column)
        squares = [el("td", number, cls="num") for number in numbers]
        yield el(
            "tr", el("th", name, scope="row"), el("td", column.title), *squares, el("td", difference, cls="num"), el("td", differ)
        )


def _difference(view: View, one: CellView, other: CellView, column: Column) -> tuple[str, str]:
    """(the second less the first with its interval, whether they differ) from the raw samples of both."""
    outcomes = [_outcome(cell, column) for cell in (one, other)]
    if any(outcome is None for outcome in outcomes):
        return "–", "not known: no raw samples"
    first, second = (outcome for outcome in outcomes if outcome is not None)
    if column.metric.samples == "losses":
        return _of_losses(view, first, second, column)
    return _of_items(view, first, second, column)


def _outcome(cell: CellView, column: Column) -> Outcome | None:
    held = (
        o for o in cell.outcomes
        if o.question.subject == column.subject and any(m.metric == column.metric.name and m.blob for m in o.measurements)
    )  # fmt: skip
    return next(held, None) if cell.values[column.key].status == OK else None


def _of_losses(view: View, first: Outcome, second: Outcome, column: Column) -> tuple[str, str]:
    before, after = (array(view, outcome, column.metric.name) for outcome in (first, second))
    if before is None or after is None or before.shape != after.shape:
        return "–", "not known: other tokens, or none on disk"
    change = stats.ln_ppl_ratio(after, before)
    low, high = (None if end is None else math.expm1(end) for end in (change.low, change.high))
    between = _between(low, high)
    moved = int((np.abs(after - before) > 0.1).sum())
    text = f"{100 * math.expm1(change.value):+.3g} %{f' ({between})' if between else ''}"
    return text, _verdict(change.low, change.high, f"; {moved:,} of {after.size:,} tokens by more than 0.1 nats")


def _of_items(view: View, first: Outcome, second: Outcome, column: Column) -> tuple[str, str]:
    before, after = (_correct(view, outcome, column) for outcome in (first, second))
    if not before or before.keys() != after.keys():
        return "–", "not known: other items, or none on disk"
    one, other = ([scores[name] for name in before] for scores in (before, after))
    change = stats.paired_difference(one, other)
    turned = sum(a != b for a, b in zip(one, other, strict=True))
    between = _between(change.low, change.high)
    text = f"{100 * change.value:+.3g} points{f' ({between})' if between else ''}"
    return text, _verdict(change.low, change.high, f"; {turned} of {len(one)} items are answered otherwise")


def _correct(view: View, outcome: Outcome, column: Column) -> dict[str, float]:
    rows = rows_of(view, outcome, column.metric.name, "items")
    return {str(row.get("id")): float(score) for row in rows if isinstance(score := row.get("correct"), (int, float))}


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:+.3g} to {100 * high:+.3g}"


def _verdict(low: float | None, high: float | None, more: str) -> str:
    if low is None or high is None:
        return f"not known: no interval{more}"
    return f"{'yes' if low > 0 or high < 0 else 'within their noise'}{more}"
