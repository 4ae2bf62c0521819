"""Finds the cell that a person means by its label, or by its model and label."""

from __future__ import annotations

import difflib

from harness.errors import BadInput
from harness.report.cells import CellView
from harness.report.view import View

SHOWN = 8
"""Names that a message lists."""


def cell(view: View, wish: str) -> CellView:
    """The cell called `LABEL` or `MODEL/LABEL`. BadInput where none or several are, with the names that were meant perhaps."""
    wanted = _plain(wish)
    found = [each for each in view.cells if wanted in _names(each)]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(f"{wish!r} is the name of {len(found)} cells; say which: {_listed(sorted(map(_whole, found)))}")
    names = _spoken(view)
    raise BadInput(f"the run has no cell {wish!r}; {_meant(wanted, names)}")


def _names(each: CellView) -> set[str]:
    return {_plain(each.label), _plain(_whole(each)), _plain(each.cell.name)}


def _whole(each: CellView) -> str:
    return f"{each.model}/{each.label}"


def _spoken(view: View) -> list[str]:
    """The shortest name of each cell that no other has."""
    labels = [each.label for each in view.cells]
    return [each.label if labels.count(each.label) == 1 else _whole(each) for each in view.cells]


def _meant(wanted: str, names: list[str]) -> str:
    begun = [name for name in names if wanted and _plain(name).startswith(wanted)]
    if begun:
        return f"did you mean {_listed(begun, ' or ')}?"
    plain = {_plain(name): name for name in names}
    near = [plain[name] for name in difflib.get_close_matches(wanted, plain, n=3, cutoff=0.5)]
    if near:
        return f"did you mean {_listed(near, ' or ')}?"
    return f"it has {_listed(names)}"


def _listed(names: list[str], between: str = ", ") -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(repr(name) for name in names[:SHOWN]) + more


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
