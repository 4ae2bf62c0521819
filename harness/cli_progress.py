"""What `run` shows while it measures: each number as it comes, and the time that has passed against the forecast. Prints, like
cli.py, which it is a part of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness.errors import readable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from harness.costs import CellCost, Expected
    from harness.forecast.estimate import Forecast
    from harness.spec import Cell, Measurement, Record

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

TOLD_SECONDS = 10.0
"""Between two lines that say how much of a model is fetched, where lines cannot be overwritten."""

LONG_SECONDS = 30.0
"""What is expected to take longer is announced where no bar is drawn, so that a silent minute is no surprise."""

PROGRESS_SECONDS = 30.0
"""Between two lines that say how far a library is, likewise."""

out = Console()


class Progress:
    """A `run.observer.Observer` that shows one live line for the running cell and an overall bar; plain lines when piped."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._all: TaskID | None = None
        self._now: TaskID | None = None
        self._done = 0
        self._total = 0
        self._started = time.monotonic()
        self._answered = 0
        self._told: dict[str, float] = {}  # when a line said last how much of something is fetched
        self._pace = Pace(None)
        self._since = self._last = time.monotonic()  # when what is being done began, and when a line said last how far it is

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def expected(self) -> Expected | None:
        """The seconds that the whole run was expected to take."""
        return self._pace.expected

    def fetching(self, what: str, done: int, total: int) -> None:
        line = f"fetching {readable(what)}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        if out.is_terminal:
            end = "\n" if done == total else ""
            out.print(f"\r{line}", end=end, markup=False, highlight=False, soft_wrap=True)
        elif what not in self._told or done == total or time.monotonic() - self._told[what] > TOLD_SECONDS:
            self._told[what] = time.monotonic()
            _say(line)

    def begin(self, *, run: Path, questions: int, stored: int, forecast: Forecast) -> None:
        from harness.forecast import words

        self._done, self._total, self._started = stored, questions, time.monotonic()
        self._pace = Pace(forecast)
        if stored:
            _say(f"{stored} of {questions} questions are answered in {run}: going on from there")
        if questions > stored:
            _say(f"forecast {words.whole(forecast)}")
        if out.is_terminal and questions > stored:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Drawn

            self._bar = Drawn(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=out,
                transient=True,
                refresh_per_second=1,  # drawing takes CPU time from what is being timed
            )
            self._all = self._bar.add_task("all", total=questions, completed=stored, left=words.against(self.expected).strip())
            self._now = self._bar.add_task("", total=None, left="")
            self._bar.start()

    def doing(self, cell: Cell, what: str, expected: Expected | None = None) -> None:
        from harness.forecast import words

        self._pace.begin(cell.name)
        self._since = self._last = time.monotonic()
        if self._bar is not None and self._now is not None:
            left = words.against(expected).strip()
            self._bar.reset(self._now, description=readable(f"{cell.name}: {what}"), total=None, left=left)
        elif expected is not None and expected.middle > LONG_SECONDS:
            _say(f"{cell.name}: {what}: {words.span(expected, 'seconds')} expected")

    def progress(self, cell: Cell, what: str, how_far: str) -> None:
        from harness.forecast import words

        said = "".join(c if c.isprintable() else " " for c in how_far)  # a library's line must not steer the terminal
        line = f"{cell.name}: {what}" + f", {said}" * bool(said)
        if self._bar is not None and self._now is not None:
            self._bar.update(self._now, description=readable(line))
        elif time.monotonic() - self._last >= PROGRESS_SECONDS:
            self._last = time.monotonic()
            _say(f"{line} ({words.clock(self._last - self._since)})")

    def answered(self, record: Record) -> None:
        self._done += 1
        self._answered += 1
        if self._bar is not None and self._all is not None:
            self._bar.update(self._all, completed=self._done, left=self._time_left())
        if record.failure is not None:
            what = f"{record.question.probe} {record.question.subject}".strip()
            self.note(f"{record.status}: {record.cell.name}: {what}: {record.failure.message}")
        elif self._bar is None:
            first = record.answer.measurements[0] if record.answer and record.answer.measurements else None
            value = _said(first) if first else "done"
            what = f"{record.question.probe} {record.question.subject}".strip()
            _say(f"[{self._done}/{self._total}] {record.cell.name}: {what}: {value} ({record.seconds:.1f} s)")

    def measured(self, cost: CellCost) -> None:
        from harness.forecast import words

        self._pace.end(cost)
        if self._bar is None:
            took = f"{words.clock(cost.seconds)}{words.against(cost.expected.seconds)}"
            passed = f"{words.clock(time.monotonic() - self._started)}{words.against(self.expected)}"
            _say(f"{cost.cell.name}: done in {took}; in all {passed}")

    def note(self, text: str) -> None:
        first = text.strip().splitlines()[0] if text.strip() else ""
        out.print(readable(first), style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        """By the forecast, at the pace of the cells that are done; where it lacks a cell, from the mean time of an answer."""
        from harness.forecast import words

        left = self._pace.left()
        if left is None:
            left = (time.monotonic() - self._started) / self._answered * (self._total - self._done)
        return f"{words.against(self.expected)}, about {words.clock(left)} left".removeprefix(", ").strip()


class Pace:
    """How a run keeps to its forecast."""

    def __init__(self, forecast: Forecast | None) -> None:
        self.expected = None if forecast is None else forecast.whole.seconds
        cells = () if forecast is None else forecast.cells
        self._waiting = {cell.name: cell.forecast.seconds for cell in cells if cell.questions}
        self._of_done = 0.0
        self._took = 0.0
        self._cell = ""
        self._begun = time.monotonic()

    def begin(self, cell: str) -> None:
        """A piece of the cell's work begins."""
        if cell != self._cell:
            self._cell, self._begun = cell, time.monotonic()

    def end(self, cost: CellCost) -> None:
        """The cell is done."""
        expected = self._waiting.pop(cost.cell.name, None)
        if expected is not None and expected.high is not None:
            self._of_done += expected.middle
            self._took += cost.seconds

    def left(self) -> float | None:
        """Seconds until all waiting cells are done; None where one of them has no whole forecast."""
        if any(expected is None or expected.high is None for expected in self._waiting.values()):
            return None
        middles = sum(expected.middle for expected in self._waiting.values() if expected is not None)
        pace = self._took / self._of_done if self._of_done else 1.0
        passed = time.monotonic() - self._begun if self._cell in self._waiting else 0.0
        return max(0.0, middles * pace - passed)


def _say(line: str) -> None:
    out.print(readable(line), markup=False, highlight=False, soft_wrap=True)


def _said(first: Measurement) -> str:
    """An answer's first number in a line."""
    if first.unit == "verdict":
        from harness.report.numbers import show

        return f"{show(first.value, first.unit)} after {first.n} items"
    return f"{first.metric} {first.value:.5g} {first.unit}"
