"""Quality against cost: the controls, the chart to choose from, what is to be known of a point, and the table of decision.

All four are drawn by the page's script (`assets/explore.js`) from one state, which the address carries. What stands here is their
frame: labelled controls with the choices that this run has.
"""

from __future__ import annotations

from harness.decide import CONFIDENCES, KINDS, Limits
from harness.report.answer import Offer
from harness.report.axes import ChartAxis, chart_axes
from harness.report.markup import Markup, el, join, raw
from harness.report.numbers import THIN
from harness.report.section import Section, select, shape
from harness.report.view import View

LOSS_UNITS = ("points of mean accuracy", "% of the baseline's accuracy", "nats of divergence")
"""What a loss is counted in, in the order of `KINDS`."""
PREFERENCES = (("size", "smallest", ""), ("speed", "fastest", ""), ("quality", "least loss", ""))


def section(view: View, offered: Offer) -> Section | None:
    limits = offered.limits
    axes = chart_axes(view)
    if not axes.quality or not axes.cost:
        return None
    body = join(
        _limits(view, limits),
        _axes(view, list(axes.quality), list(axes.cost)),
        el("div", id="pareto-legend", cls="legend"),
        _chart(),
        _shapes(view),
        _pictures(),
        el("p", id="pareto-note", cls="note"),
        el("p", id="alike", cls="band", hidden=True),
        el("aside", id="panel", cls="panel", hidden=True, aria_label="The chosen cell", tabindex="-1"),
        el("h3", "What to choose between", id="decision-title"),
        el(
            "div",
            el("table", cls="plain choices"),
            id="decision",
            cls="scroll",
            tabindex="0",
            role="region",
            aria_labelledby="decision-title",
        ),
        el("p", id="decision-note", cls="note"),
        el("p", id="live", cls="hidden", role="status"),
    )
    return Section(
        id="pareto",
        nav="Choose",
        title="Quality against cost",
        lead="Say what you can live with: the recommendation, the chart and the table follow. The line joins the cells that no "
        "other cell beats on both axes; bars are 95 % intervals. The address keeps what you chose: a link to it shows the same.",
        body=body,
    )


def _limits(view: View, limits: Limits) -> Markup:
    """The limits of a reader, and which cells are looked at."""
    confidences = [(f"{c:g}", f"{100 * c:g}{THIN}%", "") for c in CONFIDENCES]
    rows = [
        _number("max-memory", "Memory at most", "GB"),
        _number("context", "at a context of", "tokens", whole=True),
        _number("batch", "x batch", "", whole=True),
        _number("max-size", "Size at most", "GB"),
        _number("max-tpot", "Time per token at most", "ms"),
        _number("max-ttft", "Time to first token at most", "ms"),
        _number("max-loss", "Loss below", ""),
        _preset("loss", "of", [(kind, unit, "") for kind, unit in zip(KINDS, LOSS_UNITS, strict=True)], limits.loss),
        _preset("confidence", "shown with", confidences, f"{limits.confidence:g}"),
        _preset("prefer", "Then the", PREFERENCES, limits.prefer),
    ]
    filters = [_filter("method", "Methods", list(view.methods))]
    filters.append(_filter("bits", "Bits", [f"{b:g}" for b in sorted({c.cell.bits for c in view.cells}, reverse=True)]))
    reset = el("button", "Reset", type="button", id="reset", cls="plain-button")
    chosen = el("details", el("summary", "Methods and bits"), el("div", *filters, cls="filters"), cls="fold")
    fields = el("div", *rows, reset, cls="controls limits")
    return el("div", fields, chosen, id="limits", role="group", aria_label="Limits")


def _axes(view: View, qualities: list[ChartAxis], costs: list[ChartAxis]) -> Markup:
    menus = [
        select("pareto-quality", "Quality", [_option(view, a, i) for i, a in enumerate(qualities)]),
        select("pareto-cost", "Cost", [_option(view, a, i + len(qualities)) for i, a in enumerate(costs)]),
    ]
    if len(view.models) > 1:
        each = [(str(i), name, "") for i, name in enumerate(view.models)]
        menus.append(select("pareto-model", "Model", [*each, ("all", "all, side by side", "")]))
    menus.append(select("pareto-range", "Show", [("all", "all cells", ""), ("near", "near the baseline", "")]))
    return el("div", *menus, cls="controls")


def _option(view: View, axis: ChartAxis, index: int) -> tuple[str, str, str]:
    column = axis.column
    overall = column.derived and not column.subject  # over all subjects: above the groups
    return str(index), column.title, "" if overall else view.group(column)


def _chart() -> Markup:
    """The plot itself is a picture to assistive technology; its frame takes the keyboard, and says each point in `live`."""
    plot = el("div", id="pareto-plot", cls="plot")
    keys = "Arrow keys walk the points, Enter tells all of one, Escape leaves. The table below has the numbers."
    frame = el(
        "div",
        plot,
        id="pareto-frame",
        cls="frame",
        tabindex="0",
        role="application",
        aria_roledescription="chart",
        aria_label="Quality against cost with the frontier",
        aria_describedby="pareto-keys",
    )
    said = el("p", keys, id="pareto-keys", cls="hidden")
    return el("figure", frame, said, el("noscript", "This chart needs JavaScript; every number is in the tables."), cls="chart")


def _pictures() -> Markup:
    """The chart as it stands, as a file; the page's script makes it, and shows these then."""
    buttons = [
        el("button", f"Chart as {name.upper()}", type="button", data_picture=name, cls="plain-button") for name in ("svg", "png")
    ]
    return el("p", *buttons, id="pareto-pictures", cls="actions", hidden=True)


def _number(identifier: str, label: str, unit: str, *, whole: bool = False) -> Markup:
    box = el(
        "input",
        type="number",
        id=identifier,
        min=0,
        step=1 if whole else "any",
        autocomplete="off",
        inputmode="numeric" if whole else "decimal",
        placeholder="any" if not whole else "measured",
    )
    return el("label", el("span", label), el("span", box, el("span", unit, cls="unit") if unit else None, cls="box"), cls="menu")


def _preset(
    identifier: str, label: str, options: list[tuple[str, str, str]] | tuple[tuple[str, str, str], ...], chosen: str
) -> Markup:
    """A menu that stands on a choice."""
    items = [el("option", text, value=value, selected=value == chosen) for value, text, _ in options]
    return el("label", el("span", label), el("select", *items, id=identifier), cls="menu")


def _filter(name: str, legend: str, values: list[str]) -> Markup:
    boxes = [
        el("label", el("input", type="checkbox", name=name, value=value, checked=True), el("span", value), cls="check")
        for value in values
    ]
    return el("fieldset", el("legend", legend), *boxes, id=f"filter-{name}")


def _shapes(view: View) -> Markup:
    """Which shape stands for which bit width, for the widths that occur."""
    present = sorted({c.cell.bits for c in view.cells}, reverse=True)
    entries, seen = [], set()
    for bits in present:
        name = shape(bits)[0]
        if name in seen:
            continue
        seen.add(name)
        same = [b for b in present if shape(b)[0] == name]
        text = "16 and 32 bits" if name == "star" else f"{' and '.join(f'{b:g}' for b in sorted(same, reverse=True))} bits"
        icon = el("svg", raw(f'<use href="#shape-{name}"/>'), cls="mark native", aria_hidden="true")
        entries.append(el("span", icon, text))
    hollow = [el("span", "hollow: simulated, quality only")] if any(c.simulated for c in view.cells) else []
    return el("div", *entries, *hollow, cls="shapes")
