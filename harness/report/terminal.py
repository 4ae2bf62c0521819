"""The table at the end of a run: one line per cell with the numbers one chooses by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.cells import OK, Column
from harness.report.section import STATUS_WORDS, column_display, number
from harness.report.standing import headline
from harness.report.view import View

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    ("bits/weight", ("bpw_model",)),
    ("perplexity", ("perplexity",)),
    ("KL", ("kl_mean",)),
    ("accuracy", ("mean_accuracy", "accuracy")),
    ("peak memory", ("peak_device_bytes", "peak_host_bytes", "peak_decode_bytes")),
    ("latency", ("tpot",)),
)
MARKS = {"frontier": "●", "tied": "◐", "dominated": ""}


def terminal_table(view: View) -> Table:
    """Cells in plan order; frontier of the first quality against bits per weight: ● on it, ◐ tied with it within the noise."""
    from rich.table import Table
    from rich.text import Text

    chosen = [(title, column) for title, names in COLUMNS if (column := _first(view, names)) is not None]
    table = Table(title=_plain(view.title or view.suite), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("cell")
    displays = {column.key: column_display(view, column) for _, column in chosen}
    for title, column in chosen:
        unit = displays[column.key].label
        table.add_column(f"{title}\n{unit if unit != 'bits/weight' else ''}".rstrip(), justify="right")
    table.add_column("frontier", justify="center")
    standing = headline(view)
    for cell in view.cells:
        name = cell.cell.name if len(view.models) > 1 else cell.label
        style = "bold" if cell.baseline else ""
        texts = [
            Text(
                _plain(name) + (" (baseline)" if cell.baseline else "") + (" (simulated)" if cell.simulated else ""), style=style
            )
        ]
        for _, column in chosen:
            value = cell.values[column.key]
            if value.status == OK:
                texts.append(Text(number(column, value, displays[column.key])))
            else:
                texts.append(Text(STATUS_WORDS.get(value.status, value.status), style="dim"))
        stand = standing.get(cell.id)
        texts.append(Text(MARKS[stand.status] if stand is not None else "", style="green"))
        table.add_row(*texts)
    return table


def _first(view: View, names: tuple[str, ...]) -> Column | None:
    return next((column for name in names if (column := view.column(name)) is not None), None)


def _plain(text: str) -> str:
    """Without control characters: a stored name must not steer the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
