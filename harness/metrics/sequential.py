"""What is said of a task whose items are scored until a verdict."""

from __future__ import annotations

from dataclasses import dataclass

from harness.spec import Metric, Question

KEY = "sequential"
WITHIN, WORSE, UNDECIDED = 1.0, -1.0, 0.0
"""Values of `sequential_verdict`; report/numbers.py writes them as words."""
VERDICT = Metric(
    name="sequential_verdict",
    title="Verdict",
    unit="verdict",
    better="neither",
    definition="anytime-valid paired test against the baseline",
    description="Whether the loss of accuracy is within the margin (1), worse than it (-1), or undecided after all items "
    "(0); n is the number of items that it took. It is false with at most its stated error rate, whenever scoring stopped.",
)
ITEMS = Metric(
    name="sequential_items",
    title="Items to the verdict",
    unit="items",
    better="neither",
    definition="items fed to the anytime-valid test",
    description="How many items the verdict took, in the order that all cells share; all of them where it is undecided.",
)
DIFFERENCE = Metric(
    name="sequential_difference",
    title="Accuracy against the baseline, up to the verdict",
    unit="points",
    better="higher",
    definition="paired difference over the items scored, anytime-valid interval",
    description="Percentage points. The value leans towards the verdict, because scoring stopped when it looked clear; the "
    "interval holds all the same. It answers every question at once, so it is wider than the test of the one margin.",
    signed=True,
    axis=None,  # of a part of the items, another one in each cell
)
ACCURACY = Metric(
    name="sequential_accuracy",
    title="Accuracy, up to the verdict",
    unit="share",
    better="higher",
    definition="lm-eval acc or exact_match over the items scored, anytime-valid interval",
    description="Of the items that were scored only, which differ in number from cell to cell: not to be ranked by.",
    axis=None,  # as above
)
METRICS = (VERDICT, ITEMS, DIFFERENCE, ACCURACY)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRequest:
    """Ask until a verdict. `margin`: the loss of accuracy (a share) that is accepted. `alpha`, `beta`: chance of a false "within"
    and "worse"."""

    margin: float
    alpha: float
    beta: float


def settings(question: Question) -> VerdictRequest | None:
    """The margin and error rates of a question that is asked until a verdict; None for one over all items."""
    asked = question.options.get(KEY)
    if not isinstance(asked, dict):
        return None
    return VerdictRequest(margin=float(asked["margin"]), alpha=float(asked["alpha"]), beta=float(asked["beta"]))


def points(margin: float) -> str:
    """`1 point`, `2.5 points`."""
    number = f"{100 * margin:g}"
    return f"{number} point{'' if number == '1' else 's'}"
