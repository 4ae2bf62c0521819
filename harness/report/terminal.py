"""The table at the end of a run: one line per cell with the numbers one chooses by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report.cells import OK, CellView, Column, Value
from harness.report.numbers import VERDICTS, Display
from harness.report.section import bracket, column_display, number
from harness.report.standing import headline, headline_axes
from harness.report.verdicts import counts, effort, margin_points, tasks
from harness.report.view import View

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

MARKS = {"frontier": "●", "tied": "◐", "dominated": ""}
SHORT = {
    "simulated": "sim",
    "unsupported": "unsupp",
    "nonfinite": "NaN",
    "not comparable": "–",
    "absent": "–",
    "environment": "no env",
    "input": "input",
}


def terminal_columns(view: View) -> list[Column]:
    """The few that one chooses by; of a run that measured none of them its first."""
    return view.first(lambda places: places.terminal) or list(view.columns[:4])


def frontier_words(view: View) -> str:
    """Of what the marks of the frontier are: its two axes; empty where there is none."""
    axes = headline_axes(view)
    if axes is None:
        return ""
    cost, quality = (_lowered(axis) for axis in axes)
    alone = ", each model by itself" if len(view.models) > 1 else ""
    return f"● on the frontier of {quality} against {cost}{alone}; ◐ tied with it within the noise"


def _lowered(column: Column) -> str:
    title = column.title
    return title if title[:2].isupper() or title.startswith("ln") else title[:1].lower() + title[1:]


def terminal_table(
    view: View, columns: Sequence[Column] | None = None, *, whole: View | None = None, intervals: bool = False
) -> Table:
    """Cells in plan order; by default the few columns that one chooses by. ● on the frontier of the first quality against the
    first cost of the menus, ◐ tied with it within the noise; the words below name the two. Fits 80 columns with short names. A
    word in place of a number is its status. `whole`: the view that this one is a part of, whose frontiers are shown."""
    from rich.table import Table
    from rich.text import Text

    whole = view if whole is None else whole
    chosen = terminal_columns(view) if columns is None else columns
    notes = list(filter(None, [frontier_words(whole), *_notes(view)]))
    sequential = tasks(view)
    table = Table(
        title=plain(view.title or view.suite),
        title_justify="left",
        caption="\n".join(notes) or None,
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("cell", overflow="fold", vertical="bottom")  # a long name is broken, a number never
    displays = {column.key: column_display(view, column) for column in chosen}
    for column in chosen:
        head = _head(column, displays[column.key], subject=columns is not None)
        table.add_column(head, justify="right", vertical="bottom", no_wrap=True)
    if sequential:
        table.add_column("verdicts", justify="right", vertical="bottom", no_wrap=True)
    table.add_column("", justify="center", vertical="bottom", no_wrap=True)
    standing = headline(whole)
    for cell in view.cells:
        told = [
            word for word, holds in (("baseline", cell.baseline), ("simulated", cell.simulated), ("marked", cell.marks)) if holds
        ]
        texts = [Text(", ".join([named(_name(view, cell)), *told]), style="bold" if cell.baseline else "")]
        texts += [_entry(column, cell.values[column.key], displays[column.key], intervals=intervals) for column in chosen]
        if sequential:
            verdicts = counts(view, cell)
            texts.append(Text("" if cell.baseline else " / ".join(str(len(verdicts[verdict])) for verdict in VERDICTS)))
        stand = standing.get(cell.id)
        texts.append(Text(MARKS[stand.status] if stand is not None else "", style="green"))
        table.add_row(*texts)
    return table


def _notes(view: View) -> list[str]:
    """What verdicts and marks mean."""
    notes = []
    if tasks(view):
        order, scored = " / ".join(VERDICTS.values()), effort(view)
        notes.append(f"verdicts: tasks {order}, margin {margin_points(view)}{f'; {scored}' if scored else ''}")
    said: dict[str, list[str]] = {}
    for cell in view.cells:
        for mark in cell.marks:
            said.setdefault(mark, []).append(_name(view, cell))
    return notes + [plain(f"{', '.join(names)}: {mark}") for mark, names in said.items()]


def _head(column: Column, how: Display, *, subject: bool) -> str:
    title = column.metric.short or column.metric.title
    told = " ".join(title.split()).startswith(how.label.replace("/", " per "))  # "bits per weight of the model" needs no unit
    return "\n".join(filter(None, (title, plain(column.subject) if subject else "", "" if told else how.label)))


def _entry(column: Column, value: Value, how: Display, *, intervals: bool) -> Text:
    from rich.text import Text

    if value.status != OK:
        return Text(SHORT.get(value.status, value.status), style="dim")
    between = bracket(column, value, how) if intervals else ""
    return Text(number(column, value, how) + (f" ({between})" if between else ""))


def _name(view: View, cell: CellView) -> str:
    """With its model where there are several."""
    return cell.cell.name if len(view.models) > 1 else cell.label


LONGEST = 100
"""Characters of a name in a table of the terminal: its beginning and its end, by which twins differ."""


def named(text: str) -> str:
    """A name in a table: shortened in its middle, without control characters."""
    seen = plain(text)
    return seen if len(seen) <= LONGEST else f"{seen[: LONGEST // 2]}…{seen[-(LONGEST // 2 - 1) :]}"


def plain(text: str) -> str:
    """Without control characters: a stored name must not steer the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
