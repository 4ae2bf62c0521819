"""Cells that mix widths beside the cells of one width: does mixing pay at equal bits, and which layer got which width.

A mixture is set beside the cells of the same model, method, options and way of running that have one width: those whose
*measured* bits per weight are next to its own, below and above. Against each, the difference in KL is paired token by token. If
neither has as many bits, the mixture is also held against the straight line between the two in ln KL over bits, at its own bits:
what a uniform cell of equal bits would be expected to lose, if there were one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness import stats
from harness.frontier import Floats
from harness.metrics.divergence import KL_MEAN
from harness.metrics.size import QUANTIZED
from harness.report import sensitivity
from harness.report.cells import CellView, Outcome
from harness.report.markup import Markup, el, join
from harness.report.pieces import array, by_model, cells_of, head_of, numeric, subjects, table, value_of
from harness.report.section import Section
from harness.report.view import View
from harness.spec import MIXTURE

EQUAL = 0.01
"""Measured bits that differ by no more than this share are called equal."""

_CHOSEN = (MIXTURE, "calibration", "type", "imatrix", "ratio")
"""Options in which a mixture differs from its uniform neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A cell with its measured bits per weight of the quantized layers, and its mean KL on a corpus in nats (None: not
    measured)."""

    cell: CellView
    bits: float
    kl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A mixture's KL minus another's, or minus what a line between two says: in nats, with the 95 % interval."""

    value: float
    low: float | None
    high: float | None


def section(view: View) -> Section | None:
    blocks = by_model(view, functools.partial(_block, view))
    if not blocks:
        return None
    return Section(
        id="mixed",
        nav="Mixed widths",
        title="Mixed widths beside uniform ones",
        lead="Each mixture beside the cells of one width of the same method that are next to it in measured bits. A negative "
        "difference means that the mixture loses less.",
        body=join(*blocks),
    )


def _block(view: View, model: str) -> Markup | None:
    cells = [cell for cell in cells_of(view, model) if cell.cell.scheme.mixture is not None]
    if not cells:
        return None
    corpora = subjects(view, KL_MEAN)
    parts = [_on(view, model, cells, subject, named=len(corpora) > 1) for subject in corpora]
    nothing = el("p", "No divergence was asked for, so nothing says whether mixing pays.", cls="note")
    return join(*(parts or [nothing]), sensitivity.block(view, cells))


def _on(view: View, model: str, cells: Sequence[CellView], subject: str, *, named: bool) -> Markup:
    rows, said = [], []
    for cell in cells:
        own = _found(view, cell, subject)
        others = [found for each in cells_of(view, model) if _uniform_of(each, cell) and (found := _found(view, each, subject))]
        if own is None:
            rows.append(el("tr", head_of(cell), el("td", "not measured", cls="why", colspan="4")))
            continue
        beside = neighbours(own, others)
        rows.append(_own_row(own))
        rows += [_row(view, own, each, subject) for each in beside]
        said.append(el("li", sentence(view, own, beside, subject)))
    columns: list[str | Markup] = [
        "Cell",
        numeric("Measured", "bits/weight"),
        numeric("KL", "nat"),
        numeric("Mixture minus this", "nat"),
        numeric("95 % interval", "nat"),
    ]
    title = f"Mixtures and their uniform neighbours on {subject}"
    return join(el("h3", subject) if named else None, el("ul", *said), table(title, columns, rows))


def _uniform_of(other: CellView, cell: CellView) -> bool:
    """Whether a cell is the mixture's method in one width, with the same options otherwise, run in the same way."""
    one, two = other.cell.scheme, cell.cell.scheme
    if one.mixture is not None or one.method != two.method or other.cell.running != cell.cell.running:
        return False
    mine, theirs = ({name: v for name, v in each.options.items() if name not in _CHOSEN} for each in (one, two))
    if two.method == "openvino" and mine.get("group_size") == -1:  # at 8 bits its channels have one scale each
        theirs["group_size"] = -1
    return mine == theirs


def _found(view: View, cell: CellView, subject: str) -> Found | None:
    bits, kl = value_of(view, cell, QUANTIZED.name, ""), value_of(view, cell, KL_MEAN, subject)
    return None if bits is None else Found(cell=cell, bits=bits[0].value, kl=None if kl is None else kl[0].value)


def neighbours(own: Found, others: Sequence[Found]) -> list[Found]:
    """The uniform cells next to a mixture in measured bits, below and above; one of equal bits alone."""
    equal = [each for each in others if abs(each.bits - own.bits) <= EQUAL * own.bits]
    if equal:
        return [min(equal, key=lambda each: abs(each.bits - own.bits))]
    below = [each for each in others if each.bits < own.bits]
    above = [each for each in others if each.bits > own.bits]
    found = [max(below, key=lambda each: each.bits)] if below else []
    return found + ([min(above, key=lambda each: each.bits)] if above else [])


def _own_row(own: Found) -> Markup:
    squares = [el("td", f"{own.bits:.3f}", cls="num"), el("td", _nats(own.kl), cls="num")]
    return el("tr", head_of(own.cell), *squares, el("td", "–", cls="num muted"), el("td", "", cls="num"))


def _row(view: View, own: Found, other: Found, subject: str) -> Markup:
    difference = paired(view, own.cell, other.cell, subject)
    shown, between = "–", "–"
    if difference is not None:
        shown = f"{difference.value:+.4f}"
        between = _interval(difference)
    squares = (f"{other.bits:.3f}", _nats(other.kl), shown, between)
    return el("tr", el("th", f"beside {other.cell.label}", scope="row", cls="muted"), *(el("td", s, cls="num") for s in squares))


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _interval(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return "no interval"
    return f"{difference.low:+.4f} to {difference.high:+.4f}"


def _outcome(cell: CellView, subject: str) -> Outcome | None:
    asked = (o for o in cell.outcomes if o.question.subject == subject)
    return next((o for o in asked if any(m.metric == KL_MEAN for m in o.measurements)), None)


def paired(view: View, one: CellView, other: CellView, subject: str) -> Difference | None:
    """KL of one cell minus that of another, token by token, whole windows resampled; None where samples are not there."""
    tables = []
    for cell in (one, other):
        outcome = _outcome(cell, subject)
        tables.append(None if outcome is None else array(view, outcome, KL_MEAN))
    mine, theirs = tables
    if mine is None or theirs is None or mine.shape != theirs.shape or not np.isfinite(mine - theirs).any():
        return None
    made = stats.block_bootstrap_mean(mine - theirs)
    return Difference(value=made.value, low=made.low, high=made.high)


def against_line(view: View, own: Found, below: Found, above: Found, subject: str) -> Difference | None:
    """A mixture's KL minus what the straight line in ln KL between two uniform cells says at its bits, with the 2.5th and 97.5th
    percentile over the replicates in which the same windows are drawn for all three."""
    means = [each.kl for each in (own, below, above)]
    drawn = [_draws(view, each.cell, subject) for each in (own, below, above)]
    if any(mean is None or mean <= 0 for mean in means) or any(draws is None or (draws <= 0).any() for draws in drawn):
        return None
    share = (own.bits - below.bits) / (above.bits - below.bits)
    mine, low, high = (math.log(mean) for mean in means if mean is not None)
    line = math.exp((1 - share) * low + share * high)
    ours, theirs, others = (np.log(draws) for draws in drawn if draws is not None)
    apart = np.exp(ours) - np.exp((1 - share) * theirs + share * others)
    return Difference(value=math.exp(mine) - line, low=float(np.quantile(apart, 0.025)), high=float(np.quantile(apart, 0.975)))


def _draws(view: View, cell: CellView, subject: str) -> Floats | None:
    found = value_of(view, cell, KL_MEAN, subject)
    return None if found is None else view.derived.draws.get(found[1].key, {}).get(cell.id)


def sentence(view: View, own: Found, beside: Sequence[Found], subject: str) -> str:
    """Who wins at equal bits, or why that cannot be said."""
    name = own.cell.label
    if not beside:
        return f"{name}: no uniform cell of this method was measured beside it, so nothing says whether mixing pays."
    if len(beside) == 2:
        below, above = beside
        difference = against_line(view, own, below, above, subject)
        against = f"the line between {below.cell.label} and {above.cell.label} at {own.bits:.2f} measured bits"
        kind = "; the line is drawn, not measured"
    else:
        (one,) = beside
        difference = paired(view, own.cell, one.cell, subject)
        against, kind = f"{one.cell.label} ({own.bits:.2f} against {one.bits:.2f} measured bits)", ""
        if abs(one.bits - own.bits) > EQUAL * own.bits:
            kind = "; the bits are not equal, and no uniform cell stands on the other side"
    if difference is None or difference.low is None or difference.high is None:
        return f"{name} cannot be compared with {against}: divergences or their samples are missing."
    verdict = "mixing wins" if difference.high < 0 else "uniform wins" if difference.low > 0 else "no difference is shown"
    return f"{name} against {against}: {verdict}, {difference.value:+.4f} nats ({_interval(difference)}){kind}."
