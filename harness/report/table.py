"""Every number: cells x metrics, sortable, a group of columns at a time.

The page holds the headline's columns as HTML. Those of another group are made by its script of the data block, which has every
number once: as HTML they would be most of the page's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.frontier import Standing
from harness.report.cells import OK, CellView, Column, Value, plain_table
from harness.report.markup import Markup, el, join
from harness.report.numbers import Display
from harness.report.section import Section, column_display, interval, number, scheme, select, status
from harness.report.standing import headline, headline_axes
from harness.report.view import View, place_or_last

STANDINGS = {"frontier": "on the frontier", "tied": "tied with the frontier", "dominated": "beaten by the frontier"}
"""Of a cell by its values, and by what is beyond the noise."""


def section(view: View) -> Section | None:
    if not view.cells:
        return None
    columns = [c for c in view.columns if any(cell.values[c.key].status != "absent" for cell in view.cells)]
    columns.sort(key=lambda c: place_or_last(c.metric.places.headline))
    shown = _headline(columns)
    groups = {"headline": "Headline"} | {c.probe: view.group(c) for c in columns} | {"all": "Everything"}
    menu = select("table-group", "Columns", [(key, title, "") for key, title in groups.items()])
    hint = el("span", "Select a column's title to sort by it; arrow keys walk the table.", cls="muted small")
    further = el("button", "More columns", type="button", id="table-further", cls="plain-button", hidden=True)
    displays = {c.key: column_display(view, c) for c in shown}
    standing = headline(view)
    fixed = [_sorter("Cell", "", "text", "scheme"), _sorter("Frontier", "", "text", "g-headline", _axes(view))]
    if len(view.models) > 1:
        fixed.insert(0, _sorter("Model", "", "text", "model"))
    fixed.append(_sorter("Kernel", "", "text", _kernel_groups(view)))
    head = el("tr", *fixed, *(_title(c, displays[c.key]) for c in shown))
    rows = [_row(view, cell, shown, displays, standing) for cell in view.cells]
    table = el("table", el("thead", head), el("tbody", *rows), id="cells", cls="cells")
    body = join(
        el("div", menu, hint, further, cls="controls"),
        el("div", table, cls="scroll tall", tabindex="0", role="region", aria_label="Table of all cells"),
    )
    return Section(
        id="table",
        nav="Table",
        title="All cells",
        lead="Every planned cell with every number; the 95 % interval stands under its value. A word in place of a number says "
        "why there is none.",
        body=body,
    )


def _headline(columns: list[Column]) -> list[Column]:
    """The columns that are shown first; of a cost the first shape only, of a quality every corpus."""
    placed = [c for c in columns if c.metric.places.headline is not None]
    first: dict[str, str] = {}
    for column in placed:
        first.setdefault(column.metric.name, column.subject)
    return [c for c in placed if c.metric.axis != "cost" or c.subject == first[c.metric.name]]


def _kernel_groups(view: View) -> str:
    """Classes of the columns beside which kernels are shown: those that a simulated cell may not show, being the kernels'."""
    return " ".join(sorted(f"g-{name}" for name, probe in view.probes.items() if not probe.simulated))


def _sorter(title: str, unit: str, kind: str, cls: str, tip: str = "") -> Markup:
    small = el("small", unit) if unit else None
    button = el("button", el("span", title), small, type="button", data_tip=tip or None)
    return el("th", button, scope="col", cls=cls, data_kind=kind)


def _axes(view: View) -> str:
    """Which axes the frontier is of."""
    axes = headline_axes(view)
    return "" if axes is None else f"The frontier of {axes[1].title} against {axes[0].title}, each model by itself."


def _title(column: Column, how: Display) -> Markup:
    unit = " · ".join(part for part in (column.subject, how.label if how.label != "p" else "") if part)
    tip = f"{column.metric.definition}. {column.metric.description}".strip()
    return _sorter(column.metric.title, unit, "number", "num g-headline", tip)


def _row(
    view: View, cell: CellView, columns: list[Column], displays: Mapping[str, Display], standing: Mapping[str, Standing]
) -> Markup:
    cells = [el("th", scheme(view, cell), scope="row", cls="scheme", data_sort=cell.label)]
    if len(view.models) > 1:
        cells.insert(0, el("td", cell.model, cls="model", data_sort=cell.model))
    cells.append(_standing(cell, standing.get(cell.id), view))
    kernel, layers = _kernel(cell)
    cells.append(el("td", kernel, cls=f"{_kernel_groups(view)} kernel", data_sort=kernel, data_tip=layers or None))
    for column in columns:
        cells.append(_value(column, cell.values[column.key], displays[column.key]))
    return el("tr", *cells, data_cell=cell.id)


def _value(column: Column, value: Value, how: Display) -> Markup:
    cls = "num g-headline"
    if value.status != OK:
        return el("td", status(value.status, value.reason), cls=cls)
    between = interval(column, value, how)
    tip = f"n = {value.n:,}".replace(",", "\u202f") if value.n else None
    small = el("small", between) if between else None
    return el("td", number(column, value, how), small, cls=cls, data_sort=f"{value.value:.7g}", data_tip=tip)


def standing_words(standing: Standing, rivals: str) -> str:
    """`tied with the frontier: no worse than A beyond the noise; on the frontier in 18 % of resamples`. `rivals`: names."""
    said = STANDINGS[standing.status]
    if rivals:
        against = {
            "frontier": "costs more than these, and is not better beyond the noise",
            "tied": "worse only within the noise than",
            "dominated": "worse beyond the noise than",
        }
        said += f"; {against[standing.status]}{':' if standing.status == 'frontier' else ''} {rivals}"
    return f"{said}; on the frontier in {standing.probability:.0%} of resamples".replace("%", "\u202f%")


def _standing(cell: CellView, standing: Standing | None, view: View) -> Markup:
    if standing is None:
        return el("td", "–", cls="g-headline muted", data_sort="z")
    names = {c.id: c.label for c in view.cells}
    rivals = ", ".join(names[r] for r in (standing.rivals or standing.ties)[:3])
    tip = standing_words(standing, rivals)
    order = {"frontier": "a", "tied": "b", "dominated": "c"}[standing.status]
    sign = {"frontier": "●", "tied": "◐", "dominated": "○"}[standing.status]
    word = el("span", f"{sign} ", aria_hidden="true")
    text = el("span", standing.status if standing.status != "dominated" else "beaten")
    return el(
        "td",
        word,
        text,
        cls=f"g-headline stand {standing.status}",
        data_sort=f"{order}{1 - standing.probability:.3f}",
        data_tip=tip,
    )


def _kernel(cell: CellView) -> tuple[str, str]:
    """What really ran: module, op and stored type of the quantized layers, as the engine reported it, and which layers."""
    for outcome in cell.outcomes:
        engine = plain_table(outcome.facts.get("engine"))
        kernels = plain_table(engine.get("kernels"))
        if kernels:
            layers = plain_table(engine.get("layers")).items()
            said = "; ".join(f"{name}: {', '.join(map(str, names))}" for name, names in layers if isinstance(names, list))
            return "; ".join(f"{count} × {name}" for name, count in kernels.items()), said
    return "–", ""
