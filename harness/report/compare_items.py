"""Metrics whose raw samples are the items of a task, compared item by item with the baseline's.

Items (or clusters of items that share a passage) are resampled, the same for all cells that answered the same items.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from harness import stats
from harness.errors import HarnessError
from harness.frontier import Floats
from harness.report import losses
from harness.report.cells import NOT_COMPARABLE, OK, CellView, Value, column_key
from harness.report.derivation import IS_BASELINE, Absent, Derivation, counts, from_interval, outcome_of, sample_of, why_not
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Items:
    """One cell's answers to one task: `correct` float [items] of 0/1 (or partial credit), item ids in order, clusters where
    items share a passage."""

    ids: tuple[str, ...]
    correct: Floats
    clusters: tuple[str, ...] | None


def compare_tasks(work: Derivation, cells: Sequence[CellView], tasks: Sequence[ItemTask]) -> None:
    """All comparisons of the cells of one model, task by task and over the mean of the tasks."""
    base_cell = next((c for c in cells if c.baseline), None)
    bases: dict[str, _Items | str] = {}
    answers: dict[str, dict[str, _Items | str]] = {cell.id: {} for cell in cells}
    for task in tasks:
        base = bases[task.subject] = _items_or_reason(work, base_cell, task)
        for cell in cells:
            own = answers[cell.id][task.subject] = base if cell.baseline else _items_or_reason(work, cell, task)
            _compare_task(work, cell, task, base, own)
    # A task that nobody could answer (a data set that cannot be had, say) would otherwise cost every cell its mean.
    answered = [task for task in tasks if any(task.sample(cell) for cell in cells)] or tasks
    for cell in cells if answered else ():
        own_answers = {task.subject: answers[cell.id][task.subject] for task in answered}
        _compare_means(work, cell, answered, bases, own_answers)
    _losses(work, base_cell, [task.subject for task in answered], bases, answers)


def _losses(
    work: Derivation,
    base_cell: CellView | None,
    subjects: Sequence[str],
    bases: Mapping[str, _Items | str],
    answers: Mapping[str, Mapping[str, _Items | str]],
) -> None:
    """Losses of all cells of the model together, for a decision."""
    base = [bases[subject] for subject in subjects]
    if base_cell is None or not base:
        return
    unread = next((f"baseline: {own}" for own in base if isinstance(own, str)), None)
    rows = {i: unread or _in_order(bases, own, subjects) for i, own in answers.items() if i != base_cell.id}
    tasks = [(own.correct, own.clusters) for own in base if isinstance(own, _Items)]
    for kind, family in losses.of_items(base_cell.id, tasks if unread is None else [], rows).items():
        work.losses[base_cell.model, kind] = family


def _in_order(
    bases: Mapping[str, _Items | str], answers: Mapping[str, _Items | str], subjects: Sequence[str]
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


def _items_or_reason(work: Derivation, cell: CellView | None, task: ItemTask) -> _Items | str:
    outcome = outcome_of(cell, task.question)
    sample = task.sample(cell)
    if cell is None or outcome is None or sample is None:
        return "it has no answer to this task"
    try:
        return _items(work.read(cell, outcome, sample.blob))
    except Absent as absent:
        return str(absent)


def _items(data: bytes) -> _Items:
    try:
        rows = json.loads(data)["items"]
        ids = tuple(str(row["id"]) for row in rows)
        correct = np.array([float(row["correct"]) for row in rows])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Absent("its raw samples cannot be read") from None
    if not np.isfinite(correct).all():
        raise Absent("its items hold scores that are not finite")
    if not len(correct) or len(set(ids)) != len(ids):
        raise Absent("its items are none, or have the same id twice")
    clusters = None
    if any("cluster" in row for row in rows):
        clusters = tuple(f"{row.get('task', '')}|{row['cluster']}" if "cluster" in row else f"#{row['id']}" for row in rows)
    return _Items(ids=ids, correct=correct, clusters=clusters)


_Pair: TypeAlias = tuple[Floats, Floats, tuple[str, ...] | None]
"""The baseline's and the cell's scores of the same items, in one order, with their clusters."""


def _paired(base: _Items, own: _Items) -> _Pair:
    """Both rows in the baseline's order. Absent when they did not answer the same items."""
    if base.ids == own.ids:
        return base.correct, own.correct, base.clusters
    place = {name: i for i, name in enumerate(own.ids)}
    if set(place) != set(base.ids):
        raise Absent("the baseline answered other items")
    return base.correct, own.correct[[place[name] for name in base.ids]], base.clusters


def _compare_task(work: Derivation, cell: CellView, task: ItemTask, base: _Items | str, own: _Items | str) -> None:
    sample = task.sample(cell)
    if isinstance(own, _Items) and sample is not None:
        key = column_key(sample.metric, task.subject, sample.definition)
        work.keep(key, cell, _item_draws(own, task.subject))
    if sample is None:
        values = dict.fromkeys(PER_TASK, why_not(outcome_of(cell, task.question)))
    elif cell.baseline:
        values = dict.fromkeys(PER_TASK, IS_BASELINE)
    else:
        values = _compared(base, own)
    for metric, value in values.items():
        work.put(cell, metric, task.subject, value)


def _compared(base: _Items | str, own: _Items | str) -> dict[Metric, Value]:
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
    difference = from_interval(stats.paired_difference(before, after, clusters), scale=100)
    if not set(np.unique(np.concatenate([before, after]))) <= {0.0, 1.0}:  # F1 and its like: no flips to count
        return {**nowhere("this task's items are not right or wrong but scored"), ACCURACY_DIFFERENCE: difference}
    n = len(before)
    flips = stats.flips(before, after)
    p = Value(status=OK, value=stats.paired_test(before, after, clusters), n=n)
    effect = 100 * stats.smallest_detectable(before, after, clusters)
    return {
        ACCURACY_DIFFERENCE: difference,
        FLIPS_LOST: Value(status=OK, value=float(flips.right_to_wrong), n=n),
        FLIPS_GAINED: Value(status=OK, value=float(flips.wrong_to_right), n=n),
        MCNEMAR_P: p,
        MCNEMAR_P_HOLM: p,  # corrected once all are known
        MINIMUM_DETECTABLE_EFFECT: Value(status=OK, value=effect, n=n),
        RECOVERY: _recovery(before, after, clusters),
    }


def _recovery(before: Floats, after: Floats, clusters: tuple[str, ...] | None) -> Value:
    try:
        return from_interval(stats.recovery(before, after, clusters))
    except HarnessError as error:
        return Value(status=NOT_COMPARABLE, reason=str(error))


def _item_draws(items: _Items, subject: str) -> Floats:
    """Replicates [draws] of the accuracy, items (or clusters of items) resampled. Items are taken in the order of their ids,
    so that all cells that answered the same items share their resamples."""
    places: dict[str, int] = {}
    names = items.ids if items.clusters is None else items.clusters
    order = sorted(range(len(items.ids)), key=lambda i: items.ids[i])
    blocks = [places.setdefault(names[i], len(places)) for i in order]
    sums, sizes = np.bincount(blocks, weights=items.correct[order]), np.bincount(blocks)
    drawn = counts(len(sums), subject)
    shares: Floats = (drawn @ sums) / (drawn @ sizes)
    return shares


# ---------------------------------------------------------------------- means over tasks


def _compare_means(
    work: Derivation,
    cell: CellView,
    tasks: Sequence[ItemTask],
    bases: Mapping[str, _Items | str],
    answers: Mapping[str, _Items | str],
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


def _mean(work: Derivation, cell: CellView, samples: Mapping[str, Measurement], answers: Mapping[str, _Items | str]) -> Value:
    n = sum(sample.n or 0 for sample in samples.values())
    mean = sum(sample.value for sample in samples.values()) / len(samples)
    if any(isinstance(answer, str) for answer in answers.values()):
        return Value(status=OK, value=mean, n=n, reason="no interval: raw samples are missing")
    keys = [column_key(sample.metric, subject, sample.definition) for subject, sample in samples.items()]
    draws: Floats = np.mean([work.draws[key][cell.id] for key in keys], axis=0)
    low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    work.keep(column_key(MEAN_ACCURACY.name, "", MEAN_ACCURACY.definition), cell, draws)
    return Value(status=OK, value=mean, low=low, high=high, n=n)


def _mean_difference(bases: Mapping[str, _Items | str], answers: Mapping[str, _Items | str]) -> Value:
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
