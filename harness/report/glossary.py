"""What each number means: every metric that the report shows, with its definitions."""

from __future__ import annotations

from harness.report.markup import Markup, el, join
from harness.report.section import Section
from harness.report.view import View

DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "neither": ""}


def section(view: View) -> Section | None:
    entries: dict[str, list[str]] = {}
    for column in view.columns:
        definitions = entries.setdefault(column.metric.name, [])
        if column.metric.definition not in definitions:
            definitions.append(column.metric.definition)
    if not entries:
        return None
    rows: list[Markup] = []
    for name, definitions in entries.items():
        metric = next(c.metric for c in view.columns if c.metric.name == name)
        facts = [f for f in (metric.unit, DIRECTIONS[metric.better]) if f]
        listed = definitions if len(definitions) <= 6 else [*definitions[:5], f"and {len(definitions) - 5} more of the same kind"]
        rows.append(
            el(
                "div",
                el("dt", metric.title, el("code", name)),
                el(
                    "dd",
                    el("p", metric.description) if metric.description else None,
                    el("p", *join_with(" · ", facts), cls="muted") if facts else None,
                    el("ul", *(el("li", d) for d in listed)),
                ),
                cls="term",
            )
        )
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
        body=join(intervals, el("dl", *rows, cls="glossary")),
    )


def join_with(separator: str, parts: list[str]) -> list[str]:
    return [separator.join(parts)]
