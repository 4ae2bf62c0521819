"""Schemes that were made from several draws of their rows: what the draw does, beside what the choice of items does.

The interval of a cell says how its number would move with other items. Another draw of calibration rows makes other weights,
and moves it as well. Where a suite repeats a method, both stand side by side, and two methods are compared by their draws:
Student's t of the means over the seeds with unequal variances (Welch 1947, Biometrika 34, 28-35).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.metrics.divergence import KL_MEAN
from harness.metrics.perplexity import PERPLEXITY
from harness.report.cells import CellView, Value
from harness.report.derived import MEAN_ACCURACY
from harness.report.markup import Markup, el, join
from harness.report.pieces import by_model, cells_of, numeric, subjects, table, value_of
from harness.report.section import Section
from harness.report.view import View
from harness.spec import digest
from harness.stats import distributions

LEVEL = 0.95

FEWEST = 3
"""Draws of each of two schemes that are compared: two have one degree of freedom, and no difference shows."""

_SHOWN = ((KL_MEAN, "KL", "nat"), (PERPLEXITY, "ln PPL", "nat"), (MEAN_ACCURACY.name, "accuracy, mean over tasks", "share"))
"""Metric, what the table calls it, unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """One scheme from several draws: its cells in the order of the suite, and what they are called together."""

    label: str
    cells: tuple[CellView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A metric of one scheme over its draws: mean, standard deviation over the draws (n - 1), how many there are, and the mean
    half width of the single cells' intervals over their items (None: they have none)."""

    mean: float
    deviation: float
    draws: int
    items: float | None


def section(view: View) -> Section | None:
    blocks = by_model(view, functools.partial(_block, view))
    if not blocks:
        return None
    return Section(
        id="seeds",
        nav="Draws",
        title="The same method from several draws",
        lead="Each scheme was made from several draws of its rows. The spread over the draws is the method's own; the interval "
        "of a single cell, beside it, is that of the items, and holds for the weights of one draw. Everywhere else each draw is "
        "a cell of its own: what is recommended among several draws was picked with luck as well.",
        body=join(*blocks),
    )


def _block(view: View, model: str) -> Markup | None:
    found = repeated(cells_of(view, model, baseline=False))
    if not found:
        return None
    parts = []
    for metric, title, unit in _SHOWN:
        for subject in subjects(view, metric):
            spreads = [(each, spread) for each in found if (spread := spread_of(view, each, metric, subject)) is not None]
            if spreads:
                parts.append(_on(title, unit, subject, spreads))
    return join(*parts) if parts else el("p", "No repeated scheme has two answers yet.", cls="note")


def repeated(cells: Sequence[CellView]) -> list[Repeated]:
    """The schemes of which there is more than one draw: cells that differ in the seed of their rows, and in nothing else."""
    groups: dict[str, list[CellView]] = {}
    for cell in cells:
        drawn = cell.cell.scheme.options.get("calibration")
        if isinstance(drawn, dict) and "seed" in drawn:
            options = {**cell.cell.scheme.options, "calibration": {k: v for k, v in drawn.items() if k != "seed"}}
            same = [cell.cell.scheme.method, cell.cell.scheme.bits, options, cell.cell.running]
            groups.setdefault(digest(same), []).append(cell)
    return [Repeated(label=_common([c.label for c in group]), cells=tuple(group)) for group in groups.values() if len(group) > 1]


def _common(labels: Sequence[str]) -> str:
    """What the labels of one scheme's draws share: all but the word that tells the seed."""
    words = [label.split() for label in labels]
    shared = [each[0] for each in itertools.zip_longest(*words, fillvalue="") if len(set(each)) == 1]
    return " ".join(shared).removesuffix(" seed")


def spread_of(view: View, of: Repeated, metric: str, subject: str) -> Spread | None:
    """None where fewer than two draws have the number."""
    found = [value_of(view, cell, metric, subject) for cell in of.cells]
    points = [_points(each[0], logarithmic=metric == PERPLEXITY) for each in found if each is not None]
    known = [point for point in points if point is not None]
    if len(known) < 2:
        return None
    numbers = np.array([value for value, _ in known], dtype=np.float64)
    halves = [half for _, half in known if half is not None]
    return Spread(
        mean=float(numbers.mean()),
        deviation=float(numbers.std(ddof=1)),
        draws=len(known),
        items=float(np.mean(halves)) if halves else None,
    )


def _points(value: Value, *, logarithmic: bool) -> tuple[float, float | None] | None:
    """A number and half the width of its interval, of a perplexity their logarithms: what a method costs is a ratio of them."""
    if not logarithmic:
        half = None if value.low is None or value.high is None else (value.high - value.low) / 2
        return value.value, half
    if not 0 < value.value < math.inf:
        return None
    bounded = value.low is not None and value.high is not None and 0 < value.low <= value.high < math.inf
    half = math.log(value.high / value.low) / 2 if bounded and value.high and value.low else None
    return math.log(value.value), half


def _on(title: str, unit: str, subject: str, spreads: Sequence[tuple[Repeated, Spread]]) -> Markup:
    on = f"{title} on {subject}" if subject else title
    columns: list[str | Markup] = [
        "Scheme",
        numeric("Draws"),
        numeric("Mean over draws", unit),
        numeric("Spread of the draws", "1 standard deviation"),
        numeric("Interval of the items", "± of one cell"),
    ]
    rows = [
        el(
            "tr",
            el("th", each.label, scope="row"),
            *(
                el("td", text, cls="num")
                for text in (
                    str(spread.draws),
                    f"{spread.mean:.4g}",
                    f"{spread.deviation:.2g}",
                    "–" if spread.items is None else f"{spread.items:.2g}",
                )
            ),
        )
        for each, spread in spreads
    ]
    said = [el("li", sentence) for sentence in sentences(on, spreads)]
    return join(el("h3", on), el("ul", *said) if said else None, table(f"Spread over draws: {on}", columns, rows))


def sentences(on: str, spreads: Sequence[tuple[Repeated, Spread]]) -> list[str]:
    """For each two schemes of the same nominal bits, whether they differ by more than their draws do."""
    said = []
    for (one, first), (two, second) in itertools.combinations(spreads, 2):
        if one.cells[0].cell.scheme.bits != two.cells[0].cell.scheme.bits:
            continue
        if min(first.draws, second.draws) < FEWEST:
            few = min(first.draws, second.draws)
            said.append(f"{one.label} and {two.label}: {few} draws are too few to tell them apart in {on}; write repeat: 3.")
            continue
        low, high = difference(first, second)
        apart = f"{_signed(first.mean - second.mean)} ({_signed(low)} to {_signed(high)} over draws)"
        if low <= 0 <= high:
            said.append(f"{one.label} and {two.label} differ in {on} by less than their draws tell: {apart}.")
        else:
            said.append(f"{one.label} and {two.label} differ in {on} beyond their draws: {apart}.")
    return said


def _signed(value: float) -> str:
    """Two digits with a sign; what is left of a difference of equal means is none."""
    return "0" if abs(value) < 1e-12 else f"{value:+.2g}"


def difference(one: Spread, two: Spread) -> tuple[float, float]:
    """95 % limits of the difference of two means over draws, with unequal variances (Welch 1947)."""
    parts = [spread.deviation**2 / spread.draws for spread in (one, two)]
    apart, error = one.mean - two.mean, math.sqrt(sum(parts))
    if error == 0:
        return apart, apart
    freedom = sum(parts) ** 2 / sum(part**2 / (s.draws - 1) for part, s in zip(parts, (one, two), strict=True))
    half = float(distributions.t.ppf(0.5 + LEVEL / 2, freedom)) * error
    return apart - half, apart + half
