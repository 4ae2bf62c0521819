"""What each number means: every metric that the report shows, by what it is about, with its definitions."""

from __future__ import annotations

from harness.report.cells import Column
from harness.report.markup import Markup, el, join
from harness.report.section import Section
from harness.report.view import View

DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "neither": ""}
LISTED = 6
"""Definitions of one metric that are written out: a metric of many tasks has one for each."""


def section(view: View) -> Section | None:
    groups: dict[str, dict[str, list[Column]]] = {}
    for column in view.columns:
        groups.setdefault(view.group(column), {}).setdefault(column.metric.name, []).append(column)
    if not groups:
        return None
    intervals = el(
        "p",
        "All intervals are 95 %. Windows of text and items of tasks are resampled whole; comparisons with the baseline are "
        "paired: the same windows, the same items. Two definitions of one metric are never drawn on one axis.",
    )
    return Section(
        id="glossary",
        nav="Glossary",
        title="What the numbers mean",
        lead="Every metric in this report, with the definition it was measured under.",
        body=join(intervals, *(_group(title, metrics) for title, metrics in groups.items())),
    )


def _group(title: str, metrics: dict[str, list[Column]]) -> Markup:
    """A probe's metrics; those without a description are folded away."""
    main = {name: columns for name, columns in metrics.items() if columns[0].metric.description} or metrics
    rest = {name: columns for name, columns in metrics.items() if name not in main}
    shown = el("dl", *(_term(name, columns) for name, columns in main.items()), cls="glossary")
    if not rest:
        return join(el("h3", title), shown)
    more = el("dl", *(_term(name, columns) for name, columns in rest.items()), cls="glossary")
    return join(el("h3", title), shown, el("details", el("summary", f"{len(rest)} more of this kind"), more))


def _term(name: str, columns: list[Column]) -> Markup:
    metric = columns[0].metric
    facts = " · ".join(f for f in (metric.unit if metric.unit != "1" else "", DIRECTIONS[metric.better]) if f)
    definitions = list(dict.fromkeys(c.metric.definition for c in columns))
    listed = [
        *definitions[:LISTED],
        *([f"and {len(definitions) - LISTED} more, one for each subject"] if len(definitions) > LISTED else []),
    ]
    body = el(
        "dd",
        el("p", metric.description) if metric.description else None,
        el("p", facts, cls="muted") if facts else None,
        el("ul", *(el("li", d) for d in listed)),
    )
    return el("div", el("dt", metric.title, el("code", name)), body, cls="term")
