"""Does training pay? Each cell whose weights were trained further beside the cells that a gain has to be measured against.

A quantized cell that was trained may be better than plain rounding because it was *trained*, on a text that is like what is
scored, and not because it was trained with rounding in mind. So a cell of `qat` stands beside the same training without rounding
(`ft`), the same training rounded afterwards (`ft+ptq`), and plain rounding of equal measured bytes; a cell with an adapter beside
the first and the last. Differences are paired: the same windows, the same items.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness import stats
from harness.errors import HarnessError
from harness.metrics.divergence import KL_MEAN
from harness.metrics.perplexity import PERPLEXITY
from harness.metrics.size import FILE, QUANTIZED
from harness.report.cells import CellView, plain_table
from harness.report.derivation import Items
from harness.report.markup import Markup, el, join
from harness.report.numbers import show
from harness.report.pieces import Floats, array, by_model, cells_of, head_of, numeric, quantity, subjects, table, value_of
from harness.report.section import Section
from harness.report.view import View
from harness.stats.intervals import Interval

"""The metric whose samples are losses of the text."""

EQUAL = 0.01
"""Share by which the bytes of files may differ that count as equal."""

TRAIN, PLAIN, ROUNDED = "train", "ft", "ft+ptq"
"""The option of schemes that train, and the methods of the two controls."""

ALONE = (
    "A gain over plain rounding alone proves nothing: the training may have brought it, and would have brought it to the "
    "unquantized model too. These cells' answers are held against no bound of the baseline's (no comparison: trained): an "
    "artifact is compared with the trained weights instead, of a base with an adapter, its base with the source."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A cell that a trained one is set beside, as what; `differences`: by measure (kl, loss, answers) how much the trained
    cell has more than this one, with its paired interval; a reason where there is none."""

    cell: CellView
    role: str
    differences: Mapping[str, Interval | str]


def section(view: View) -> Section | None:
    blocks = by_model(view, functools.partial(_block, view))
    if not blocks:
        return None
    return Section(
        id="trained",
        nav="Training",
        title="Does training pay?",
        lead="Cells that were trained further, beside the same training without rounding, the same rounded afterwards, and "
        "plain rounding of equal measured bytes. Differences are those of the trained cell, item by item, with 95 % intervals: "
        "below zero it is better in divergence and loss, above zero in accuracy.",
        body=join(el("p", ALONE, cls="muted"), *blocks),
    )


def _block(view: View, model: str) -> Markup | None:
    cells = cells_of(view, model)
    asked = [cell for cell in cells if _recipe(cell) and cell.cell.method not in (PLAIN, ROUNDED)]
    return join(*(_of_cell(view, cell, cells) for cell in asked)) if asked else None


def _recipe(cell: CellView) -> Mapping[str, object]:
    """What and how a cell was trained; empty where it was not."""
    options = cell.cell.scheme.options
    recipe = plain_table(options.get(TRAIN))
    return {**recipe, "rows": options.get("calibration"), "train": recipe} if recipe else {}


def beside(view: View, cell: CellView, cells: Sequence[CellView]) -> list[Beside]:
    """What a trained cell is set beside, the rounding of the same training first."""
    found: list[tuple[CellView, str]] = []
    for other in cells:
        method = other.cell.method
        if other is cell or (_recipe(other) and _recipe(other) != _recipe(cell)):
            continue
        if method == ROUNDED and cell.cell.method != PLAIN and _same_rounding(cell, other):
            found.append((other, "the same training, rounded afterwards"))
        elif method == PLAIN and _recipe(other):
            found.append((other, "the same training, not quantized"))
    found.sort(key=lambda pair: pair[0].cell.method != ROUNDED)
    equal = [other for other in cells if not _recipe(other) and _equal(view, cell, other)]
    found += [(other, "plain rounding of equal bytes") for other in equal]
    if not equal and (best := _best_of_fewer(view, cell, cells)) is not None:
        found.append((best, "the best untrained cell of fewer bytes"))
    base = _base(cell, cells)
    if base is not None and all(base is not other for other, _ in found):
        found.append((base, "its base without the adapter: fewer bytes"))
    return [Beside(cell=other, role=role, differences=differences(view, cell, other)) for other, role in found]


def _same_rounding(cell: CellView, other: CellView) -> bool:
    ours, theirs = cell.cell.scheme, other.cell.scheme
    wanted = ("type", "group_size")
    return ours.bits == theirs.bits and all(ours.options.get(name) == theirs.options.get(name) for name in wanted)


def _base(cell: CellView, cells: Sequence[CellView]) -> CellView | None:
    """The cell that an adapter's base would be by itself: the row that its name begins with, or for qlora bnb's."""
    options = cell.cell.scheme.options
    if "rank" not in options:
        return None
    method = cell.cell.method.partition("+")[0].replace("qlora", "bnb")
    shared = ("group_size", "double_quant")
    return next(
        (
            other
            for other in cells
            if other.cell.method == method
            and other.cell.bits == cell.cell.bits
            and all(other.cell.scheme.options.get(n) == options[n] for n in shared if n in options)
            and other.cell.scheme.options.get("type") in (None, "nf4")
        ),
        None,
    )


def _bytes(view: View, cell: CellView) -> float | None:
    found = value_of(view, cell, FILE.name, "")
    return None if found is None else found[0].value


def _best_of_fewer(view: View, cell: CellView, cells: Sequence[CellView]) -> CellView | None:
    """The untrained quantized cell of the least divergence among those whose files are smaller."""
    size, subject = _bytes(view, cell), next(iter(subjects(view, KL_MEAN)), "")
    smaller: list[tuple[float, CellView]] = []
    for other in cells:
        theirs, found = _bytes(view, other), value_of(view, other, KL_MEAN, subject)
        if _recipe(other) or other.cell.bits >= 16 or size is None or theirs is None or found is None or theirs > size:
            continue
        smaller.append((found[0].value, other))
    return min(smaller, key=lambda pair: pair[0])[1] if smaller else None


def _equal(view: View, cell: CellView, other: CellView) -> bool:
    ours, theirs = _bytes(view, cell), _bytes(view, other)
    return ours is not None and theirs is not None and other is not cell and abs(theirs / ours - 1) <= EQUAL


# ---- differences ----


def differences(view: View, cell: CellView, other: CellView) -> dict[str, Interval | str]:
    """How much `cell` has more than `other`: divergence from the baseline and loss of the text, both in nats per token of the
    first text, accuracy in points of the mean over the tasks that both were asked."""
    found: dict[str, Interval | str] = {}
    for name, metric in (("kl", KL_MEAN), ("loss", PERPLEXITY)):
        subject = next(iter(subjects(view, metric)), None)
        ours, theirs = (_samples(view, one, metric, subject) for one in (cell, other))
        found[name] = _paired(ours, theirs)
    found["answers"] = _accuracy(view.derived.items, cell, other)
    return found


def _samples(view: View, cell: CellView, metric: str, subject: str | None) -> Floats | None:
    outcomes = [o for o in cell.outcomes if o.question.subject == subject]
    return next((found for o in outcomes if (found := array(view, o, metric)) is not None), None)


def _paired(ours: Floats | None, theirs: Floats | None) -> Interval | str:
    if ours is None or theirs is None:
        return "no samples of both"
    if ours.shape != theirs.shape:
        return "other windows"
    finite = np.isfinite(ours) & np.isfinite(theirs)
    try:
        return stats.block_bootstrap_mean(np.where(finite, np.where(finite, ours, 0) - np.where(finite, theirs, 0), np.nan))
    except HarnessError as error:
        return str(error)


def _accuracy(items: Mapping[tuple[str, str], Items], cell: CellView, other: CellView) -> Interval | str:
    tasks = []
    for (own, task), ours in items.items():
        theirs = items.get((other.id, task))
        if own == cell.id and theirs is not None and ours.ids == theirs.ids:
            tasks.append(stats.Task(theirs.correct, ours.correct, ours.clusters))
    if not tasks:
        return "no task that both were asked"
    try:
        return stats.mean_difference_over_tasks(tasks)
    except HarnessError as error:
        return str(error)


# ---- drawn ----

_COLUMNS = (("kl", "KL", "nat"), ("loss", "loss", "nat"), ("answers", "right answers", "points"))


def _of_cell(view: View, cell: CellView, cells: Sequence[CellView]) -> Markup:
    others = beside(view, cell, cells)
    kl, perplexity = (next(iter(subjects(view, metric)), "") for metric in (KL_MEAN, PERPLEXITY))
    columns: list[str | Markup] = ["cell", "as what", numeric("file"), numeric("bits per weight"), numeric(f"KL, {kl}", "nat")]
    columns += [numeric(f"perplexity, {perplexity}"), *(numeric(f"less this: {words}", unit) for _, words, unit in _COLUMNS)]
    rows = [_row(view, cell, "trained", None, kl, perplexity)]
    rows += [_row(view, other.cell, other.role, other, kl, perplexity) for other in others]
    said = [el("p", sentence) for sentence in sentences(cell, others)]
    return join(el("h4", cell.label), table(f"{cell.label} beside its controls", columns, rows), *said)


def _row(view: View, cell: CellView, role: str, other: Beside | None, kl: str, perplexity: str) -> Markup:
    size = _bytes(view, cell)
    squares = [el("td", role), el("td", "–" if size is None else quantity(size, "B"), cls="num")]
    for metric, subject in ((QUANTIZED.name, ""), (KL_MEAN, kl), (PERPLEXITY, perplexity)):
        found = value_of(view, cell, metric, subject)
        squares.append(el("td", "–" if found is None else show(found[0].value, found[1].metric.unit), cls="num"))
    for name, *_ in _COLUMNS:
        change = None if other is None else other.differences[name]
        squares.append(el("td", "–" if change is None else _shown(change, name), cls="num"))
    return el("tr", head_of(cell), *squares)


def _shown(change: Interval | str, name: str) -> Markup | str:
    """The difference, with its interval on a line of its own: side by side the table is wider than a screen."""
    if isinstance(change, str):
        return change
    scale, digits = (100.0, 2) if name == "answers" else (1.0, 4)
    value = f"{change.value * scale:+.{digits}f}"
    if change.low is None or change.high is None:
        return value
    return join(value, el("br"), el("small", f"{change.low * scale:+.{digits}f} to {change.high * scale:+.{digits}f}"))


def sentences(cell: CellView, others: Sequence[Beside]) -> list[str]:
    """Who wins against each control, and what that says; what is not beside the cell, and so not known."""
    said = []
    rounded = [other for other in others if other.cell.cell.method == ROUNDED]
    for other in others:
        verdicts = [_verdict(other.differences[name], lower=name != "answers", what=what) for name, what in _WORDS]
        said.append(f"Against {other.cell.label} ({other.role}): {'; '.join(verdicts)}.")
    needed = "rank" not in cell.cell.scheme.options
    if needed and not rounded:
        said.append(f"{ROUNDED} of the same training is not among the cells, so whether {cell.label} pays is not known.")
    elif rounded:
        said.append(_conclusion(cell, rounded[0], others))
    if not needed and not any(other.cell.cell.method == PLAIN for other in others):
        said.append(f"{PLAIN} of the same training is not among the cells, so how much of a gain is the training's is not known.")
    return said


_WORDS = (("kl", "divergence"), ("loss", "loss of the text"), ("answers", "right answers"))


def _verdict(change: Interval | str, *, lower: bool, what: str) -> str:
    if isinstance(change, str):
        return f"{what} is not compared ({change})"
    if change.low is None or change.high is None:
        return f"{what} has no interval"
    better = change.high < 0 if lower else change.low > 0
    worse = change.low > 0 if lower else change.high < 0
    return f"{what} is {'better' if better else 'worse' if worse else 'the same within the noise'}"


def _conclusion(cell: CellView, rounded: Beside, others: Sequence[Beside]) -> str:
    """One sentence on whether rounding while training paid, by the loss of the text and the divergence."""
    loss = rounded.differences["loss"]
    wins = _wins(rounded)
    plain = [other for other in others if other.role.startswith("plain")]
    if isinstance(loss, str):
        return f"Whether {cell.label} pays is not known: {loss}."
    if wins > 0:
        what = " and ".join(_better(rounded))
        return f"{cell.label} pays in {what}: it beats {rounded.cell.label}, so what it gains is not the training's alone."
    if wins < 0:
        return f"{cell.label} does not pay: {rounded.cell.label}, the same training rounded afterwards, is better."
    beats = any(_wins(other) > 0 for other in plain)
    also = " What it gains over plain rounding is the training's." if beats else ""
    return f"{cell.label} is not told from {rounded.cell.label}, the same training rounded afterwards.{also}"


def _better(other: Beside) -> list[str]:
    """In which measures the trained cell is better than another."""
    verdicts = {what: _verdict(other.differences[name], lower=name != "answers", what=what) for name, what in _WORDS}
    return [what for what, said in verdicts.items() if said == f"{what} is better"]


def _wins(other: Beside) -> int:
    """1 where the trained cell is better than another in loss and not worse in divergence, or the other way round; -1 where it is
    the worse one; 0 where neither is."""
    signs = []
    for name in ("loss", "kl"):
        change = other.differences[name]
        if isinstance(change, str) or change.low is None or change.high is None:
            continue
        signs.append(1 if change.high < 0 else -1 if change.low > 0 else 0)
    if not signs or (1 in signs and -1 in signs):
        return 0
    return max(signs) if 1 in signs else min(signs)
