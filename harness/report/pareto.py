"""Quality against cost: the chart to choose from."""

from __future__ import annotations

from harness.report.cells import Column
from harness.report.markup import Markup, el, join, raw
from harness.report.section import SHAPES, Section, figure, select
from harness.report.standing import cost_columns, quality_columns
from harness.report.view import View


def section(view: View) -> Section | None:
    qualities, costs = quality_columns(view), cost_columns(view)
    if not qualities or not costs:
        return None
    numbers = {c.key: i for i, c in enumerate((*qualities, *costs))}
    menus = [
        select("pareto-quality", "Quality", [_option(view, c, numbers[c.key]) for c in qualities]),
        select("pareto-cost", "Cost", [_option(view, c, numbers[c.key]) for c in costs]),
    ]
    if len(view.models) > 1:
        menus.append(select("pareto-model", "Model", [(str(i), name, "") for i, name in enumerate(view.models)]))
    menus.append(select("pareto-range", "Show", [("all", "all cells", ""), ("near", "near the baseline", "")]))
    controls = el("div", *menus, cls="controls")
    shapes = _shapes(view)
    note = el("p", id="pareto-note", cls="note", aria_live="polite")
    return Section(
        id="pareto",
        nav="Pareto",
        title="Quality against cost",
        lead="Every cell by what it costs and what it keeps. The line joins the cells that no other cell beats on both; "
        "bars are 95 % intervals.",
        body=join(figure("pareto", "Scatter chart of quality against cost with the Pareto frontier", controls), shapes, note),
    )


def _option(view: View, column: Column, index: int) -> tuple[str, str, str]:
    overall = column.derived and not column.subject  # a mean over subjects stands above the groups
    return str(index), column.title, "" if overall else view.group(column)


def _shapes(view: View) -> Markup:
    """Which shape stands for which bit width, for the widths that occur."""
    present = sorted({c.cell.bits for c in view.cells}, reverse=True)
    entries, seen = [], set()
    for bits in present:
        name, path = next((n, p) for least, n, p in SHAPES if bits >= least)
        if name in seen:
            continue
        seen.add(name)
        same = [b for b in present if next(n for least, n, _ in SHAPES if b >= least) == name]
        text = "16 and 32 bits" if name == "star" else f"{' and '.join(f'{b:g}' for b in sorted(same, reverse=True))} bits"
        icon = el(
            "svg", raw(f'<path d="{path}"/>'), cls="mark native", viewBox="0 0 12 12", width="12", height="12", aria_hidden="true"
        )
        entries.append(el("span", icon, text))
    return el("div", *entries, cls="shapes")
