"""Metrics whose raw samples are the items of a task, compared item by item with the baseline's.

Items (or clusters of items that share a passage) are resampled, the same for all cells that answered the same items.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from harness import stats
from harness.frontier import Floats
from harness.report import losses
from harness.report.cells import NOT_COMPARABLE, OK, CellView, Value, column_key
from harness.report.derivation import (
    IS_BASELINE,
    Absent,
    Derivation,
    Items,
    counts,
    from_interval,
    outcome_of,
    sample_of,
    why_not,
)
from harness.report.derived import (
    ACCURACY_DIFFERENCE,
    FLIPS_GAINED,
    FLIPS_LOST,
    MCNEMAR_P,
    MCNEMAR_P_HOLM,
    MEAN_ACCURACY,
    MEAN_ACCURACY_DIFFERENCE,
    MINIMUM_DETECTABLE_EFFECT,
    PER_TASK,
    RECOVERY,
)
from harness.spec import Measurement, Metric, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTask:
    """A question that is answered by items, and the metric that is their mean."""

    question: Question
    metric: Metric

    @property
    def subject(self) -> str:
        return self.question.subject

    def sample(self, cell: CellView | None) -> Measurement | None:
        return sample_of(outcome_of(cell, self.question), self.metric)


Answers: TypeAlias = dict[str, dict[str, "Items | str"]]
"""By task and cell id what a cell answered, or why that cannot be read."""


def compare_tasks(work: Derivation, models: Sequence[Sequence[CellView]], tasks: Sequence[ItemTask]) -> None:
    """All comparisons of the cells of each model with its baseline, task by task and over the mean of the tasks."""
    answers: Answers = {}
    kept = _Kept()
    for task in tasks:  # tasks outside: the resamples of one serve all its cells
        mine = answers[task.subject] = {}
        for cells in models:
            for cell in cells:
                found = mine[cell.id] = _items_or_reason(work, cell, task, kept)
                if isinstance(found, Items):
                    work.items[cell.id, task.subject] = found
        _keep_draws(work, task, [c for cells in models for c in cells], mine)
        for cells in models:
            base = _of_baseline(cells, mine)
            for cell in cells:
                _compare_task(work, cell, task, base, mine[cell.id])
    for cells in models:
        # A task that nobody could answer (a data set that cannot be had, say) would otherwise cost every cell its mean.
        answered = [task for task in tasks if any(task.sample(cell) for cell in cells)] or tasks
        bases = {task.subject: _of_baseline(cells, answers[task.subject]) for task in answered}
        for cell in cells if answered else ():
            own_answers = {task.subject: answers[task.subject][cell.id] for task in answered}
            _compare_means(work, cell, answered, bases, own_answers)
        by_cell = {cell.id: {task.subject: answers[task.subject][cell.id] for task in answered} for cell in cells}
        _losses(work, next((c for c in cells if c.baseline), None), [task.subject for task in answered], bases, by_cell)


def _losses(
    work: Derivation,
    base_cell: CellView | None,
    subjects: Sequence[str],
    bases: Mapping[str, Items | str],
    answers: Mapping[str, Mapping[str, Items | str]],
) -> None:
    """Losses of all cells of the model together, for a decision."""
    base = [bases[subject] for subject in subjects]
    if base_cell is None or not base:
        return
    unread = next((f"baseline: {own}" for own in base if isinstance(own, str)), None)
    rows = {i: unread or _in_order(bases, own, subjects) for i, own in answers.items() if i != base_cell.id}
    tasks = [(own.correct, own.clusters) for own in base if isinstance(own, Items)]
    for kind, family in losses.of_items(base_cell.id, tasks if unread is None else [], rows).items():
        work.losses[base_cell.model, kind] = family


def _in_order(
    bases: Mapping[str, Items | str], answers: Mapping[str, Items | str], subjects: Sequence[str]
) -> list[Floats] | str:
    """A cell's scores of every task in the baseline's order, or why they cannot be compared."""
    scores = []
    for subject in subjects:
        base, own = bases[subject], answers[subject]
        if isinstance(own, str) or isinstance(base, str):
            return f"{subject}: {own}"
        try:
            scores.append(_paired(base, own)[1])
        except Absent as absent:
            return f"{subject}: {absent}"
        if min(base.correct.min(), own.correct.min()) < 0 or max(base.correct.max(), own.correct.max()) > 1:
            return f"{subject}: its scores are not between 0 and 1"
    return scores


_NO_ANSWER = "it has no answer to this task"


def _of_baseline(cells: Sequence[CellView], answers: Mapping[str, Items | str]) -> Items | str:
    return next((answers[c.id] for c in cells if c.baseline), _NO_ANSWER)


class _Kept:
    """Rows of ids and of clusters that were seen before: cells answer the same items, so one row of names serves all of them."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._clusters: dict[tuple[str, ...], tuple[str, ...]] = {}

    def ids(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """The row; Absent where it names no item, or one twice."""
        if row not in self._ids:
            if not row or len(set(row)) != len(row):
                raise Absent("its items are none, or have the same id twice")
            self._ids[row] = row
        return self._ids[row]

    def clusters(self, row: tuple[str, ...]) -> tuple[str, ...]:
        return self._clusters.setdefault(row, row)


def _items_or_reason(work: Derivation, cell: CellView, task: ItemTask, kept: _Kept) -> Items | str:
    outcome = outcome_of(cell, task.question)
    sample = task.sample(cell)
    if outcome is None or sample is None:
        return _NO_ANSWER
    try:
        return items_of(work.read(cell, outcome, sample.blob), kept)
    except Absent as absent:
        return str(absent)


_ID, _CORRECT = operator.itemgetter("id"), operator.itemgetter("correct")


def items_of(data: bytes, kept: _Kept | None = None) -> Items:
    """A task's raw samples. `kept`: rows of names seen before. Absent where they cannot be read, are none, name one twice or are
    not finite."""
    kept = kept or _Kept()
    try:
        rows = json.loads(data)["items"]
        ids = tuple(map(str, map(_ID, rows)))
        correct = np.array(list(map(float, map(_CORRECT, rows))))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Absent("its raw samples cannot be read") from None
    if not np.isfinite(correct).all():
        raise Absent("its items hold scores that are not finite")
    ids, clusters = kept.ids(ids), None
    if any(map(operator.contains, rows, itertools.repeat("cluster"))):
        clusters = tuple(f"{row.get('task', '')}|{row['cluster']}" if "cluster" in row else f"#{row['id']}" for row in rows)
        clusters = kept.clusters(clusters)
    return Items(ids=ids, correct=correct, right_or_wrong=stats.right_or_wrong(correct), clusters=clusters)


_Pair: TypeAlias = tuple[Floats, Floats, tuple[str, ...] | None]
"""The baseline's and the cell's scores of the same items, in one order, with their clusters."""


def _paired(base: Items, own: Items) -> _Pair:
    """Both rows in the baseline's order. Absent when they did not answer the same items."""
    if base.ids == own.ids:
        return base.correct, own.correct, base.clusters
    place = {name: i for i, name in enumerate(own.ids)}
    if set(place) != set(base.ids):
        raise Absent("the baseline answered other items")
    return base.correct, own.correct[[place[name] for name in base.ids]], base.clusters


def _compare_task(work: Derivation, cell: CellView, task: ItemTask, base: Items | str, own: Items | str) -> None:
    if task.sample(cell) is None:
        values = dict.fromkeys(PER_TASK, why_not(outcome_of(cell, task.question)))
    elif cell.baseline:
        values = dict.fromkeys(PER_TASK, IS_BASELINE)
    else:
        values = _compared(base, own)
    for metric, value in values.items():
        work.put(cell, metric, task.subject, value)


def _compared(base: Items | str, own: Items | str) -> dict[Metric, Value]:
    """The columns of one task for a cell that has an answer."""

    def nowhere(reason: str) -> dict[Metric, Value]:
        return dict.fromkeys(PER_TASK, Value(status=NOT_COMPARABLE, reason=reason))

    if isinstance(own, str):
        return nowhere(own)
    if isinstance(base, str):
        return nowhere(f"baseline: {base}")
    try:
        before, after, clusters = _paired(base, own)
    except Absent as absent:
        return nowhere(str(absent))
    if not (base.right_or_wrong and own.right_or_wrong):  # F1 and its like: no flips to count
        difference = from_interval(stats.paired_difference(before, after, clusters), scale=100)
        return {**nowhere("this task's items are not right or wrong but scored"), ACCURACY_DIFFERENCE: difference}
    n, found = len(before), stats.compare(before, after, clusters)
    p = Value(status=OK, value=found.p, n=n)
    nothing_right = Value(status=NOT_COMPARABLE, reason="the baseline has no item right, so there is nothing to recover")
    return {
        ACCURACY_DIFFERENCE: from_interval(found.difference, scale=100),
        FLIPS_LOST: Value(status=OK, value=float(found.flips.right_to_wrong), n=n),
        FLIPS_GAINED: Value(status=OK, value=float(found.flips.wrong_to_right), n=n),
        MCNEMAR_P: p,
        MCNEMAR_P_HOLM: p,  # corrected once all are known
        MINIMUM_DETECTABLE_EFFECT: Value(status=OK, value=100 * found.detectable, n=n),
        RECOVERY: nothing_right if found.recovery is None else from_interval(found.recovery),
    }


def _keep_draws(work: Derivation, task: ItemTask, cells: Sequence[CellView], answers: Mapping[str, Items | str]) -> None:
    """Replicates [draws] of the accuracy of every cell that answered the task. Items (or clusters of items) are resampled in the
    order of their ids, so that all cells that answered the same items share their resamples."""
    alike: dict[tuple[tuple[str, ...], tuple[str, ...] | None], list[tuple[CellView, Items]]] = {}
    for cell in cells:
        items = answers[cell.id]
        if isinstance(items, Items):
            alike.setdefault((items.ids, items.clusters), []).append((cell, items))
    for (ids, clusters), answered in alike.items():
        order = sorted(range(len(ids)), key=lambda i: ids[i])
        places: dict[str, int] = {}
        blocks = [places.setdefault((ids if clusters is None else clusters)[i], len(places)) for i in order]
        drawn = counts(len(places), task.subject)
        sizes = drawn @ np.bincount(blocks)
        sums = np.asarray([np.bincount(blocks, weights=items.correct[order]) for _, items in answered], dtype=np.float64)
        for (cell, _), totals in zip(answered, _resampled(drawn, sums), strict=True):
            sample = task.sample(cell)
            assert sample is not None
            work.keep(column_key(sample.metric, task.subject, sample.definition), cell, totals / sizes)


def _resampled(drawn: Floats, sums: Floats) -> Sequence[Floats]:
    """Totals [cells][draws] of `sums` [cells, blocks] in each replicate `drawn` [draws, blocks]."""
    if np.all(sums == np.rint(sums)):  # of whole numbers every order of summing gives the same total: all cells at once
        return list(np.ascontiguousarray((drawn @ sums.T).T))
    return [drawn @ row for row in sums]


# ---------------------------------------------------------------------- means over tasks


def _compare_means(
    work: Derivation,
    cell: CellView,
    tasks: Sequence[ItemTask],
    bases: Mapping[str, Items | str],
    answers: Mapping[str, Items | str],
) -> None:
    """Means over tasks; every planned task must be there, else two means would be over different tasks."""
    samples = {task.subject: task.sample(cell) for task in tasks}
    absent = [subject for subject, sample in samples.items() if sample is None or not math.isfinite(sample.value)]
    if absent:
        reasons = [why_not(outcome_of(cell, task.question)) for task in tasks if samples[task.subject] is None]
        kinds = sorted({value.status for value in reasons})
        reason = f"{len(absent)} of {len(tasks)} tasks have no answer: {', '.join(absent)}"
        value = Value(status=kinds[0] if len(kinds) == 1 else NOT_COMPARABLE, reason=reason)
        work.put(cell, MEAN_ACCURACY, "", value)
        work.put(cell, MEAN_ACCURACY_DIFFERENCE, "", value)
        return
    present = {subject: sample for subject, sample in samples.items() if sample is not None}
    work.put(cell, MEAN_ACCURACY, "", _mean(work, cell, present, answers))
    work.put(cell, MEAN_ACCURACY_DIFFERENCE, "", IS_BASELINE if cell.baseline else _mean_difference(bases, answers))


def _mean(work: Derivation, cell: CellView, samples: Mapping[str, Measurement], answers: Mapping[str, Items | str]) -> Value:
    n = sum(sample.n or 0 for sample in samples.values())
    mean = sum(sample.value for sample in samples.values()) / len(samples)
    if any(isinstance(answer, str) for answer in answers.values()):
        return Value(status=OK, value=mean, n=n, reason="no interval: raw samples are missing")
    keys = [column_key(sample.metric, subject, sample.definition) for subject, sample in samples.items()]
    draws: Floats = np.mean([work.draws[key][cell.id] for key in keys], axis=0)
    low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    work.keep(column_key(MEAN_ACCURACY.name, "", MEAN_ACCURACY.definition), cell, draws)
    return Value(status=OK, value=mean, low=low, high=high, n=n)


def _mean_difference(bases: Mapping[str, Items | str], answers: Mapping[str, Items | str]) -> Value:
    pairs = []
    for subject, own in answers.items():
        base = bases[subject]
        if isinstance(own, str):
            return Value(status=NOT_COMPARABLE, reason=f"{subject}: {own}")
        if isinstance(base, str):
            return Value(status=NOT_COMPARABLE, reason=f"{subject}: baseline: {base}")
        try:
            pairs.append(stats.Task(*_paired(base, own)))
        except Absent as absent:
            return Value(status=NOT_COMPARABLE, reason=str(absent))
    return from_interval(stats.mean_difference_over_tasks(pairs), scale=100)
