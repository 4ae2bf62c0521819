"""`budget: auto`: which cells are within the margin, task by task, and how many items it took to know.

Everything here was measured with the items (see `probes/sequential.py`) and holds whenever scoring stopped. Nothing is recomputed
from the scored part as if its size had been fixed: neither p-values, nor Tango's or Wilson's intervals, nor means over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from harness.metrics import sequential
from harness.metrics.sequential import VerdictRequest
from harness.report.cells import NOT_RUN, OK, CellView, Column, Value, plain_table
from harness.report.markup import Markup, el, join
from harness.report.numbers import THIN, VERDICTS, show
from harness.report.section import Section, scheme, status
from harness.report.view import View
from harness.spec import Metric

COLOURS = {sequential.WITHIN: "pos", sequential.WORSE: "neg"}
WHY_NO_P = (
    "No p-values, Wilson or Tango intervals and no mean over tasks are given for these: they assume that the number of items was "
    "fixed beforehand, and here the answers themselves decided when to stop."
)


def section(view: View) -> Section | None:
    names = tasks(view)
    if not names:
        return None
    points = margin_points(view)
    return Section(
        id="verdicts",
        nav="Verdicts",
        title="Within the margin or not, task by task",
        lead=f"Items were scored in one random order, the same for all cells, until it was known whether a cell loses less than "
        f"{points} of accuracy, or more. Under each verdict: the items that it took.",
        body=join(_notes(view), *(_table(view, model, names) for model in view.models)),
    )


def tasks(view: View) -> list[str]:
    """The tasks whose items are scored until a verdict, in the order asked."""
    return list(dict.fromkeys(name for name, _ in _asked(view)))


def margin_points(view: View) -> str:
    """`1 point`, `2.5 points`: the margin of the verdicts."""
    return sequential.points(_rule(view).margin)


def counts(view: View, cell: CellView) -> dict[float, list[str]]:
    """The tasks by the verdict that the cell has on them; those without one are in none."""
    by_verdict: dict[float, list[str]] = {verdict: [] for verdict in VERDICTS}
    for task in tasks(view):
        value = _value(view, cell, sequential.VERDICT, task)
        if value.status == OK and value.value in by_verdict:
            by_verdict[value.value].append(task)
    return by_verdict


def all_within(view: View, cell: CellView) -> bool:
    """Whether every task that is scored until a verdict has this one. False with at most the stated rate of a single verdict:
    if the claim is false, so is the verdict of one certain task."""
    return len(counts(view, cell)[sequential.WITHIN]) == len(tasks(view))


def words(view: View, cell: CellView) -> str:
    """`Within 1 point on 3 tasks, worse on 1 task (recall).`; empty where no verdict was made."""
    parts = []
    for verdict, names in counts(view, cell).items():
        if names:
            said = f"within {margin_points(view)}" if verdict == sequential.WITHIN else VERDICTS[verdict]
            which = f" ({', '.join(names)})" if verdict != sequential.WITHIN else ""
            parts.append(f"{said} on {len(names)} {'task' if len(names) == 1 else 'tasks'}{which}")
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def effort(view: View) -> str:
    """`1 204 of 9 000 items scored (13 %)`, over all verdicts; empty where there is none."""
    scored = available = 0
    for cell in view.cells:
        for task in tasks(view):
            value, items = (_value(view, cell, metric, task) for metric in (sequential.DIFFERENCE, sequential.ITEMS))
            if value.n and items.n:
                scored, available = scored + value.n, available + items.n
    return f"{_count(scored)} of {_count(available)} items scored ({100 * scored / available:.0f}{THIN}%)" if available else ""


def _rule(view: View) -> VerdictRequest:
    return next(rule for _, rule in _asked(view))


def _asked(view: View) -> Iterator[tuple[str, VerdictRequest]]:
    """Each task that is scored until a verdict, with its margin and error rates."""
    for cell in view.cells:
        for outcome in cell.outcomes:
            rule = sequential.settings(outcome.question)
            if rule is not None:
                yield outcome.question.subject, rule


def _value(view: View, cell: CellView, metric: Metric, task: str) -> Value:
    return _square_of(cell, view.column(metric.name, task), task)


def _accuracy(view: View, cell: CellView, task: str) -> Value:
    """Over all items: the baseline's."""
    column = next((c for c in view.columns if c.subject == task and c.metric.samples == "items"), None)
    return _square_of(cell, column, task)


def _square_of(cell: CellView, column: Column | None, task: str) -> Value:
    if column is not None:
        return cell.values[column.key]
    # No cell has an answer: this one failed, or was not run.
    failure = next((o.failure for o in cell.outcomes if o.question.subject == task and o.failure is not None), None)
    if failure is not None:
        return Value(status=failure.kind, reason=failure.message)
    return Value(status=NOT_RUN, reason="planned, no outcome stored yet")


def _notes(view: View) -> Markup:
    rule = _rule(view)
    made = sum(_value(view, cell, sequential.VERDICT, task).status == OK for cell in view.cells for task in tasks(view))
    rates = f"{100 * rule.alpha:g} % (within) or {100 * rule.beta:g} % (worse)"
    expected = made * max(rule.alpha, rule.beta)
    lines = [
        f"Each verdict is false with a chance of at most {rates}, whenever its scoring stopped: of {made} here, at most "
        f"{expected:.1f} are to be expected false. Undecided: all of the task's items could not tell.",
        WHY_NO_P,
        f"{effort(view)} in place of all items of every cell; the baseline answered all." if effort(view) else None,
    ]
    return el("ul", *(el("li", line) for line in lines if line), cls="note")


def _table(view: View, model: str, names: list[str]) -> Markup:
    base = view.baseline_of(model)
    head = [el("th", "Cell", scope="col")]
    baseline = [el("th", scheme(view, base), scope="row")] if base is not None else []
    for task in names:
        value = None if base is None else _accuracy(view, base, task)
        n = f"n = {_count(value.n)}" if value is not None and value.n else ""
        head.append(el("th", task.replace("_", "_\u200b"), el("small", n), scope="col", cls="num"))
        if value is not None:
            text = f"{show(value.value, 'share')}\u202f%" if value.status == OK else "–"
            baseline.append(el("td", text, cls="num base"))
    rows = [el("tr", *baseline)] if baseline else []
    for cell in view.cells:
        if cell.model == model and not cell.baseline:
            rows.append(el("tr", el("th", scheme(view, cell), scope="row"), *(_square(view, cell, task) for task in names)))
    title = f"Verdicts on {model}"
    table = el("table", el("caption", title, cls="hidden"), el("thead", el("tr", *head)), el("tbody", *rows), cls="heat")
    scroller = el("div", table, cls="scroll", tabindex="0", role="region", aria_label=title)
    return join(el("h3", model) if len(view.models) > 1 else None, scroller)


def _square(view: View, cell: CellView, task: str) -> Markup:
    value = _value(view, cell, sequential.VERDICT, task)
    if value.status != OK or value.value not in VERDICTS:
        return el("td", status(value.status, value.reason), cls="num none")
    available = _value(view, cell, sequential.ITEMS, task).n
    took = f"{_count(value.n or 0)} of {_count(available or 0)} items"
    word = VERDICTS[value.value]
    said = f"{word}, {took}" if value.value != sequential.UNDECIDED else f"undecided after all {_count(available or 0)} items"
    tip = [f"{cell.label}, {task}: {said}"]
    change = _value(view, cell, sequential.DIFFERENCE, task)
    if change.status == OK and change.low is not None and change.high is not None:
        tip.append(
            f"difference {show(change.value, 'points', signed=True)} points over the {_count(change.n or 0)} scored "
            f"(95 %, whenever one stops: {show(change.low, 'points', signed=True)} to {show(change.high, 'points', signed=True)})"
        )
    tip += _evidence(cell, task)
    strength = {"style": "--a:0.450"} if value.value in COLOURS else {}
    return el(
        "td",
        el("b" if value.value in COLOURS else "span", word),
        el("small", took, cls="block"),
        cls=f"num {COLOURS.get(value.value, '')}".strip(),
        data_tip="; ".join(tip),
        tabindex="0",
        aria_label="; ".join(tip),
        **strength,
    )


def _evidence(cell: CellView, task: str) -> list[str]:
    """The bettors' wealth and what each needs, as stored."""
    for outcome in cell.outcomes:
        if outcome.question.subject == task and isinstance(outcome.facts.get(sequential.KEY), dict):
            facts = plain_table(outcome.facts.get(sequential.KEY))
            pairs = (("within", "e_within", "needed_within"), ("worse", "e_worse", "needed_worse"))
            return [f"evidence for {name} {_number(facts.get(e))} of {_number(facts.get(need))}" for name, e, need in pairs]
    return []


def _number(value: object) -> str:
    if not isinstance(value, (int, float, str)):
        return "?"
    try:
        number = float(value)
    except ValueError:
        return "?"
    return f"{number:.3g}" if math.isfinite(number) else "∞"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", THIN)
