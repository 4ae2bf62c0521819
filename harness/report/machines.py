"""Several runs in one report: the quality of equal cells side by side, and speed and memory by the machine they are of.

A report has one subject, its first run. Of the others it shows the cells that are the same: the same model, scheme and way of
running. Numbers of two definitions are never set side by side. Speed and memory are those of a machine: each machine has a chart
of its own, on the same scale, under its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.report.cells import OK, CellView, Column, Value, plain_table
from harness.report.markup import Markup, el, join
from harness.report.numbers import Display, display, show, show_interval
from harness.report.pieces import fold, head_of, numeric, rows_of, table
from harness.report.section import Section
from harness.report.svg import Dot, Row, Scale, chart, span
from harness.report.view import View
from harness.spec import Cell, Given, digest, to_json

NAMED = ("commit", "harness", "python", "device", "threads", "source", "packages_digest")
"""What of a run's conditions is set beside the others'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One run beside the others: its `letter`, its `name` (machine and date), its cells by what decides them."""

    letter: str
    name: str
    view: View
    cells: Mapping[str, CellView]


def section(views: Sequence[View]) -> Section | None:
    """None where there is one run only."""
    if len(views) < 2:
        return None
    sides = [_side(view, number) for number, view in enumerate(views)]
    shared = [c for name, c in sides[0].cells.items() if any(name in side.cells for side in sides[1:])]
    body: list[Markup | None] = [_runs(sides)]
    if not shared:
        body.append(
            el("p", "No cell of the first run is in another one: the same model, scheme and way of running.", cls="muted")
        )
    else:
        body += [
            el("h3", "Quality of the same cells"),
            _quality(sides, shared),
            el("h3", "Speed and memory, by machine"),
            *_speed(sides, shared),
        ]
    return Section(
        id="machines",
        nav="Runs",
        title=f"{len(sides)} runs side by side",
        lead="All other sections are of run A. Here the same cells stand beside each other: quality should not depend on the "
        "machine, speed and memory are a machine's own.",
        body=join(*body),
    )


def twin(view: View, cell: Cell) -> str:
    """A digest of what makes cells of two runs the same: the weights that the model holds (where no digest of them is known,
    where it comes from), what was made of them, and the way of running. Where a model's folder lies is a machine's own."""
    made_of = [cell.origin.checkpoint] if isinstance(cell.origin, Given) else []
    sources = [view.weights.get(model.name) or to_json(model) for model in (cell.model, *made_of)]
    origin = {**to_json(cell.origin.identity()), "checkpoint": None}
    return digest([cell.model.name, sources, origin, to_json(cell.running)])


def _side(view: View, number: int) -> Side:
    letter = chr(ord("A") + number) if number < 26 else f"#{number + 1}"
    date = view.started_at[:10]
    name = ", ".join(part for part in (f"{letter}: {machine_of(view)}", date) if part)
    return Side(letter=letter, name=name, view=view, cells={twin(view, c.cell): c for c in view.cells})


def machine_of(view: View) -> str:
    """The processor or the GPU that a run was made on."""
    machine = plain_table(view.context.get("machine"))
    listed = machine.get("gpus")
    gpus = [str(plain_table(gpu).get("name")) for gpu in listed] if isinstance(listed, list) else []
    if gpus and str(view.context.get("device", "")).startswith("cuda"):
        return gpus[0]
    return str(machine.get("cpu") or "a machine without a name")


def _runs(sides: Sequence[Side]) -> Markup:
    """What the runs are, and where their conditions differ."""
    facts: list[tuple[str, list[str]]] = [
        ("Run", [s.view.run for s in sides]),
        ("Suite", [s.view.title or s.view.suite for s in sides]),
        ("Machine", [machine_of(s.view) for s in sides]),
        ("Host id", [str(s.view.context.get("host", "–")) for s in sides]),
        ("Started", [s.view.started_at for s in sides]),
        *((name.replace("_", " ").capitalize(), [str(s.view.context.get(name, "–"))[:16] for s in sides]) for name in NAMED),
    ]
    packages = [plain_table(s.view.context.get("packages")) for s in sides]
    names = sorted({name for one in packages for name in one})
    unequal = [
        (n, [str(one.get(n, "–")) for one in packages]) for n in names if len({str(one.get(n, "–")) for one in packages}) > 1
    ]
    heads = ["", *(el("th", side.letter, scope="col") for side in sides)]
    rows = [_facts(name, values) for name, values in facts]
    other = [_facts(name, values) for name, values in unequal]
    differing = (
        fold(f"Packages of different versions: {len(other)}", table("Packages that differ", heads, other)) if other else None
    )
    return join(table("The runs", heads, rows), differing)


def _facts(name: str, values: Sequence[str]) -> Markup:
    differs = len(set(values)) > 1
    return el("tr", el("th", name, scope="row"), *(el("td", el("b", v) if differs else v, cls="why") for v in values))


# ---- quality ----


def _quality(sides: Sequence[Side], shared: Sequence[CellView]) -> Markup:
    """A table for each measure of quality that two runs have under one definition."""
    first = sides[0].view
    made = []
    for column in first.columns:
        if column.metric.axis != "quality" or column.metric.places.axis is None:
            continue
        has = [side for side in sides if any(c.key == column.key for c in side.view.columns)]
        rows = [_compared(sides, cell, column) for cell in shared if _known(sides, cell, column) > 1]
        if len(has) > 1 and rows:
            how = display(column.metric.unit, [v.value for c in shared for v in _values(sides, c, column) if v is not None])
            heads = ["Cell", *(numeric(side.letter, how.label) for side in has), el("th", "Against A", scope="col")]
            squares = [_line(cell, column, how, sides, has) for cell in shared if _known(sides, cell, column) > 1]
            equal = sum(rows)
            said = f"{column.title}: {equal} of {len(rows)} cells have the same number in all runs"
            made.append(fold(said, table(column.title, heads, squares)))
    if not made:
        return el("p", "No quality was measured under one definition in two of these runs.", cls="muted")
    return join(*made)


def _values(sides: Sequence[Side], cell: CellView, column: Column) -> list[Value | None]:
    name = twin(sides[0].view, cell.cell)
    twins = [side.cells.get(name) for side in sides]
    found = [None if its is None else its.values.get(column.key) for its in twins]
    return [None if v is None or v.status != OK else v for v in found]


def _known(sides: Sequence[Side], cell: CellView, column: Column) -> int:
    return sum(v is not None for v in _values(sides, cell, column))


def _compared(sides: Sequence[Side], cell: CellView, column: Column) -> bool:
    return len({v.value for v in _values(sides, cell, column) if v is not None}) == 1


def _line(cell: CellView, column: Column, how: Display, sides: Sequence[Side], has: Sequence[Side]) -> Markup:
    values = dict(zip([s.letter for s in sides], _values(sides, cell, column), strict=True))
    squares = [_square(values[side.letter], column, how) for side in has]
    return el("tr", head_of(cell), *squares, el("td", _against(sides, cell, column), cls="why"))


def _square(value: Value | None, column: Column, how: Display) -> Markup:
    if value is None:
        return el("td", "–", cls="num muted")
    unit, signed = column.metric.unit, column.metric.signed
    between = show_interval(value.low, value.high, unit, how, value=value.value, signed=signed)
    return el("td", show(value.value, unit, how, signed=signed), el("small", between) if between else None, cls="num")


def _against(sides: Sequence[Side], cell: CellView, column: Column) -> str:
    """Of tasks how many items were answered otherwise, item by item; of the rest whether the numbers are the same."""
    values = _values(sides, cell, column)
    base, said = values[0], []
    for side, value in list(zip(sides, values, strict=True))[1:]:
        if base is None or value is None:
            continue
        other = _otherwise(sides[0], side, cell, column) if column.metric.samples == "items" else None
        if other is not None:
            said.append(f"{side.letter}: {other[0]} of {other[1]} items answered otherwise")
        elif value.value == base.value:
            said.append(f"{side.letter}: the same number")
        elif None in (base.low, base.high, value.low, value.high):
            said.append(f"{side.letter}: another number, without intervals")
        else:
            said.append(f"{side.letter}: intervals {'lie apart' if _apart(base, value) else 'overlap'}")
    return "; ".join(said)


def _apart(one: Value, other: Value) -> bool:
    """Whether their intervals lie apart; both have one."""
    ends = (one.low, one.high, other.low, other.high)
    low, high, other_low, other_high = (math.nan if end is None else end for end in ends)
    return other_low > high or other_high < low


def _otherwise(first: Side, other: Side, cell: CellView, column: Column) -> tuple[int, int] | None:
    """(items answered otherwise, items that both answered); None where samples are missing."""
    answers, name = [], twin(first.view, cell.cell)
    for side in (first, other):
        its = side.cells[name]
        outcome = next(
            (o for o in its.outcomes if any(_is(m.metric, m.definition, o.question.subject, column) for m in o.measurements)),
            None,
        )
        rows = [] if outcome is None else rows_of(side.view, outcome, column.metric.name, "items")
        answers.append({str(row.get("id")): row.get("correct") for row in rows})
    both = answers[0].keys() & answers[1].keys()
    return (sum(answers[0][name] != answers[1][name] for name in both), len(both)) if both else None


def _is(metric: str, definition: str, subject: str, column: Column) -> bool:
    return (metric, definition, subject) == (column.metric.name, column.metric.definition, column.subject)


# ---- speed and memory ----


def _speed(sides: Sequence[Side], shared: Sequence[CellView]) -> list[Markup]:
    """For each measure and shape a chart for each machine, side by side, all on one scale; beneath them the table."""
    made = []
    columns = {c.key: c for side in sides for c in side.view.columns if _of_a_machine(c)}
    for column in columns.values():
        values = [v for cell in shared for v in _values(sides, cell, column) if v is not None]
        scale = span([x for v in values for x in (v.value, v.low, v.high) if x is not None], log=column.metric.scale == "log")
        if scale is None or not values:
            continue
        how = display(column.metric.unit, [v.value for v in values])
        title = f"{column.title}"
        drawn = [_panel(sides[0], side, shared, column, scale, how) for side in sides]
        panels = el("div", *(one for one in drawn if one is not None), cls="pair")
        heads = ["Cell", *(numeric(side.name, how.label) for side in sides), el("th", "Against A", scope="col")]
        rows = []
        for cell in shared:
            known = _values(sides, cell, column)
            if any(v is not None for v in known):
                squares = [_square(value, column, how) for value in known]
                rows.append(el("tr", head_of(cell), *squares, el("td", _factors(sides, known), cls="why")))
        made.append(join(el("h4", title), panels, fold(f"Table of {title}", table(title, heads, rows))))
    return made or [el("p", "No speed and no memory of these cells was measured.", cls="muted")]


def _of_a_machine(column: Column) -> bool:
    """Whether this is a cost that a machine has and a file has not: what a simulated cell may not show."""
    metric = column.metric
    return metric.axis == "cost" and not metric.when_simulated and metric.places.axis is not None


def _panel(first: Side, side: Side, shared: Sequence[CellView], column: Column, scale: Scale, how: Display) -> Markup | None:
    rows = []
    for cell in shared:
        its = side.cells.get(twin(first.view, cell.cell))
        value = None if its is None else its.values.get(column.key)
        if value is not None and value.status == OK:
            text = f"{show(value.value, column.metric.unit, how)} {how.label}"
            dot = Dot(value=value.value, low=value.low, high=value.high, hue=0, tip=f"{side.name}: {text}")
            rows.append(Row(label=cell.label, text=text, dots=[dot]))
    if not rows:
        return None
    label = f"{column.title} on {side.name}, by cell"
    drawn = chart(label, rows, scale, lambda x: f"{x * how.factor:.4g} {how.label}")
    return el("div", el("p", side.name, cls="machine"), drawn)


def _factors(sides: Sequence[Side], values: Sequence[Value | None]) -> str:
    base = values[0]
    if base is None or base.value == 0:
        return "–"
    return "; ".join(
        f"{side.letter}: {value.value / base.value:.2f} ×"
        for side, value in list(zip(sides, values, strict=True))[1:]
        if value is not None
    )
