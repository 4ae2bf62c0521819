"""What a run says at its end of the questions that have no number, in a line for each cause."""

from __future__ import annotations

from collections import Counter

from harness.report.cells import NOT_RUN, Outcome, withheld
from harness.report.view import View

SHOWN = 8
"""Causes that are listed; the report has them all."""


def lines(view: View) -> list[str]:
    """`12 of 120 questions failed`, then how many each cause took, the most frequent first. Nothing where nothing failed."""
    outcomes = [outcome for cell in view.cells for outcome in cell.outcomes]
    failed = [o for o in outcomes if o.failure is not None and not withheld(o)]
    if not failed:
        return []
    causes = Counter(f"{o.failure.kind}: {_first(o.failure.message)}" for o in failed if o.failure is not None)
    listed = [f"failed   {count} x {cause}" for cause, count in causes.most_common(SHOWN)]
    more = len(causes) - len(listed)
    return [
        f"failed   {len(failed)} of {len(outcomes)} questions; the report says of which cells",
        *listed,
        *([f"failed   {more} more causes are in the report"] if more > 0 else []),
    ]


def all_on_bad_input(view: View) -> bool:
    """Whether every question failed on what the user gave: text, weights, settings."""
    outcomes: list[Outcome] = [outcome for cell in view.cells for outcome in cell.outcomes if outcome.status != NOT_RUN]
    return bool(outcomes) and all(o.failure is not None and o.failure.kind == "input" for o in outcomes)


def _first(message: str) -> str:
    """The first line of a message, cut where it becomes a text of its own."""
    line = message.strip().splitlines()[0] if message.strip() else "no message"
    return line if len(line) <= 300 else line[:297] + "..."
