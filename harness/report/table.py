"""Every number: cells x metrics, sortable, a group of columns at a time."""

from __future__ import annotations

from collections.abc import Mapping

from harness.frontier import Standing
from harness.report.cells import OK, CellView, Column, Value, plain_table
from harness.report.markup import Markup, el, join
from harness.report.numbers import Display
from harness.report.section import Section, column_display, interval, number, scheme, select, status
from harness.report.standing import headline
from harness.report.view import View, place_or_last

STANDINGS = {"frontier": "on the frontier", "tied": "tied with the frontier", "dominated": "beaten on both axes"}


def section(view: View) -> Section | None:
    if not view.cells:
        return None
    columns = [c for c in view.columns if any(cell.values[c.key].status != "absent" for cell in view.cells)]
    columns.sort(key=lambda c: place_or_last(c.metric.places.headline))
    head_keys = {c.key for c in _headline(columns)}
    groups = {"headline": "Headline"} | {c.probe: view.group(c) for c in columns} | {"all": "Everything"}
    menu = select("table-group", "Columns", [(key, title, "") for key, title in groups.items()])
    hint = el("span", "Select a column's title to sort by it.", cls="muted small")
    displays = {c.key: column_display(view, c) for c in columns}
    standing = headline(view)
    fixed = [_sorter("Cell", "", "text", "scheme"), _sorter("Frontier", "", "text", "g-headline")]
    if len(view.models) > 1:
        fixed.insert(0, _sorter("Model", "", "text", "model"))
    fixed.append(_sorter("Kernel", "", "text", _kernel_groups(view)))
    head = el("tr", *fixed, *(_title(c, displays[c.key], c.key in head_keys) for c in columns))
    rows = [_row(view, cell, columns, displays, head_keys, standing) for cell in view.cells]
    table = el("table", el("thead", head), el("tbody", *rows), id="cells", cls="cells")
    body = join(
        el("div", menu, hint, cls="controls"),
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


def _title(column: Column, how: Display, shown: bool) -> Markup:
    unit = " · ".join(part for part in (column.subject, how.label if how.label != "p" else "") if part)
    cls = f"num g-{column.probe}{' g-headline' if shown else ''}"
    tip = f"{column.metric.definition}. {column.metric.description}".strip()
    return _sorter(column.metric.title, unit, "number", cls, tip)


def _row(
    view: View,
    cell: CellView,
    columns: list[Column],
    displays: Mapping[str, Display],
    head_keys: set[str],
    standing: Mapping[str, Standing],
) -> Markup:
    cells = [el("th", scheme(view, cell), scope="row", cls="scheme", data_sort=cell.label)]
    if len(view.models) > 1:
        cells.insert(0, el("td", cell.model, cls="model", data_sort=cell.model))
    cells.append(_standing(cell, standing.get(cell.id), view))
    kernel, layers = _kernel(cell)
    cells.append(el("td", kernel, cls=f"{_kernel_groups(view)} kernel", data_sort=kernel, data_tip=layers or None))
    for column in columns:
        cells.append(_value(column, cell.values[column.key], displays[column.key], column.key in head_keys))
    return el("tr", *cells, data_cell=cell.id)


def _value(column: Column, value: Value, how: Display, shown: bool) -> Markup:
    cls = f"num g-{column.probe}{' g-headline' if shown else ''}"
    if value.status != OK:
        return el("td", status(value.status, value.reason), cls=cls)
    between = interval(column, value, how)
    tip = f"n = {value.n:,}".replace(",", "\u202f") if value.n else None
    small = el("small", between) if between else None
    return el("td", number(column, value, how), small, cls=cls, data_sort=repr(value.value), data_tip=tip)


def _standing(cell: CellView, standing: Standing | None, view: View) -> Markup:
    if standing is None:
        return el("td", "–", cls="g-headline muted", data_sort="z")
    names = {c.id: c.label for c in view.cells}
    rivals = ", ".join(names[r] for r in (standing.rivals or standing.ties)[:3])
    tip = f"{STANDINGS[standing.status]} in the values; in {standing.probability:.0%} of resamples"
    tip += f"; {'no better beyond the noise than' if standing.status == 'frontier' else 'against'} {rivals}" if rivals else ""
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
        tabindex="0",
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
