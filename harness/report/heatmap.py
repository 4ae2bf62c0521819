"""Accuracy against the baseline, task by task: where each method breaks first, and what is noise."""

from __future__ import annotations

from harness.report.cells import OK, CellView, Column
from harness.report.compare import ALPHA
from harness.report.derived import (
    ACCURACY_DIFFERENCE,
    FLIPS_GAINED,
    FLIPS_LOST,
    MCNEMAR_P_HOLM,
    MEAN_ACCURACY,
    MEAN_ACCURACY_DIFFERENCE,
    MINIMUM_DETECTABLE_EFFECT,
)
from harness.report.markup import Markup, el, join
from harness.report.numbers import show
from harness.report.section import Section, own_noise, scheme, status
from harness.report.view import View
from harness.spec import Metric

FULL_POINTS = 30.0
"""Difference in points at which the colour is full."""

_RULE = " changed beyond chance: tasks by exact McNemar, Holm-corrected over all squares, p < 0.05; the mean by its 95 % interval"


def section(view: View) -> Section | None:
    tasks = view.of(ACCURACY_DIFFERENCE.name)
    if not tasks:
        return None
    mean = view.column(MEAN_ACCURACY_DIFFERENCE.name)
    columns = [*([mean] if mean is not None else []), *tasks]
    tables = [_table(view, model, columns) for model in view.models]
    legend = el(
        "p",
        el(
            "span",
            el("b", "bold"),
            _RULE,
            cls="key",
        ),
        el("span", el("span", "thin", cls="thin"), " within what chance can do", cls="key"),
        el("span", el("i", cls="swatch neg"), " loses", cls="key"),
        el("span", el("i", cls="swatch pos"), " gains", cls="key"),
        cls="legend",
    )
    return Section(
        id="tasks",
        nav="Tasks",
        title="Task by task against the baseline",
        lead="Change of accuracy in percentage points, on the same items. Rest on a square for its flips, its interval and the "
        "smallest loss it could have shown.",
        body=join(legend, *tables),
    )


def _table(view: View, model: str, columns: list[Column]) -> Markup:
    base = view.baseline_of(model)
    accuracies = {c.subject: c for c in view.columns if c.metric.samples == "items"}
    mean = view.column(MEAN_ACCURACY.name)
    head = [el("th", "Cell", scope="col")]
    baseline = [el("th", scheme(view, base), scope="row")] if base is not None else []
    for column in columns:
        accuracy = accuracies.get(column.subject) if column.subject else mean
        value = None if base is None or accuracy is None else base.values[accuracy.key]
        n = f"n = {value.n}" if value is not None and value.n else ""
        head.append(el("th", _task(column.subject) if column.subject else "Mean", el("small", n), scope="col", cls="num"))
        if base is not None:
            shown = value is not None and value.status == OK
            text = f"{show(value.value, 'share')}\u202f%" if shown and value is not None else "–"
            baseline.append(el("td", text, cls="num base"))
    rows = [el("tr", *baseline)] if baseline else []
    for cell in view.cells:
        if cell.model == model and not cell.baseline:
            rows.append(el("tr", el("th", scheme(view, cell), scope="row"), *(_square(view, cell, c) for c in columns)))
    title = f"Accuracy differences of {model}"
    table = el("table", el("caption", title, cls="hidden"), el("thead", el("tr", *head)), el("tbody", *rows), cls="heat")
    scroller = el("div", table, cls="scroll", tabindex="0", role="region", aria_label=title)
    return join(el("h3", model) if len(view.models) > 1 else None, scroller)


def _task(name: str) -> str:
    """Underscores allow a break."""
    return name.replace("_", "_\u200b")


def _square(view: View, cell: CellView, column: Column) -> Markup:
    value = cell.values[column.key]
    if value.status != OK:
        return el("td", status(value.status, value.reason), cls="num none")
    strength = min(1.0, abs(value.value) / FULL_POINTS) ** 0.6  # small changes must be told apart, large ones saturate
    shown = show(value.value, "points", signed=True)
    tip = [f"{cell.label}, {column.subject or 'mean over tasks'}: {shown} points"]
    if value.low is not None and value.high is not None:
        tip.append(f"95 % interval {show(value.low, 'points', signed=True)} to {show(value.high, 'points', signed=True)}")
        tip += filter(None, [own_noise(column, value)])
    clear = False
    if column.subject:
        p = _of(view, cell, MCNEMAR_P_HOLM, column.subject)
        clear = p is not None and p < ALPHA
        tip += _evidence(view, cell, column.subject, p, value.n)
    elif value.low is not None and value.high is not None:
        clear = value.low > 0 or value.high < 0
    sign = "neg" if value.value < 0 else "pos"
    text = "; ".join(tip)
    return el(
        "td",
        el("b", shown) if clear else el("span", shown, cls="thin"),
        cls=f"num {sign}",
        style=f"--a:{strength:.3f}",
        data_tip=True,  # shows the label
        aria_label=f"{text}; {'beyond' if clear else 'within'} chance",
    )


def _evidence(view: View, cell: CellView, subject: str, p: float | None, n: int | None) -> list[str]:
    """Flips, corrected p, and what could have been seen, as far as each is there."""
    said = []
    lost, gained = (_of(view, cell, metric, subject) for metric in (FLIPS_LOST, FLIPS_GAINED))
    if lost is not None and gained is not None:
        said.append(f"{lost:.0f} items lost, {gained:.0f} gained of {n}")
    if p is not None:
        said.append(f"corrected p {show(p, 'p')}")
    effect = _of(view, cell, MINIMUM_DETECTABLE_EFFECT, subject)
    if effect is not None:
        said.append(f"smallest loss this could show {show(effect, 'points')} points")
    return said


def _of(view: View, cell: CellView, metric: Metric, subject: str) -> float | None:
    column = view.column(metric.name, subject)
    if column is None or cell.values[column.key].status != OK:
        return None
    return cell.values[column.key].value
