"""Who watches a run: the command line's progress display, or nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from harness.costs import CellCost, Expected
from harness.forecast.estimate import Forecast
from harness.spec import Cell, Record


class Observer(Protocol):
    """Who watches a run: the command line's progress display, or nobody."""

    def fetching(self, what: str, done: int, total: int) -> None:
        """Before a run begins, now and then while a model is fetched: bytes that are here, and bytes in all."""

    def begin(self, *, run: Path, questions: int, stored: int, forecast: Forecast) -> None: ...

    def doing(self, cell: Cell, what: str, expected: Expected | None = None) -> None:
        """`expected`: the seconds that it will take."""

    def progress(self, cell: Cell, what: str, how_far: str) -> None:
        """Now and then while a cell is `doing` something long: how far it is."""

    def answered(self, record: Record) -> None: ...

    def measured(self, cost: CellCost) -> None:
        """A cell is done, with all that it took."""

    def note(self, text: str) -> None: ...


class Silent:
    """Watches nothing."""

    def fetching(self, what: str, done: int, total: int) -> None:
        pass

    def begin(self, *, run: Path, questions: int, stored: int, forecast: Forecast) -> None:
        pass

    def doing(self, cell: Cell, what: str, expected: Expected | None = None) -> None:
        pass

    def progress(self, cell: Cell, what: str, how_far: str) -> None:
        pass

    def answered(self, record: Record) -> None:
        pass

    def measured(self, cost: CellCost) -> None:
        pass

    def note(self, text: str) -> None:
        pass
