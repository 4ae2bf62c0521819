"""Every cell against the baseline of its model, recomputed from raw samples, paired by window or item.

What is compared is the same question put to both: the same windows, the same items. Intervals and tests come from
`harness.stats`; p values are Holm-corrected over all task comparisons of the run. Beside the values this keeps bootstrap
replicates of each sampled column, the same windows or items resampled for all cells, from which the frontier takes its noise.
A comparison that cannot be made (a record or its samples are missing, items do not match) is absent with its reason.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import stats
from harness.errors import HarnessError
from harness.frontier import DRAWS
from harness.probes import sequential
from harness.report.cells import ABSENT, BASELINE, NOT_COMPARABLE, NOT_RUN, OK, CellView, Outcome, Value, column_key
from harness.spec import Measurement, Metric, Question, digest

ALPHA = 0.05
BLOCK = 256
"""Tokens per block where samples are one long row: neighbours are correlated, so they are resampled together."""

DERIVED: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            name="mean_accuracy",
            title="Mean accuracy",
            unit="share",
            better="higher",
            definition="unweighted mean over the tasks that any cell answered, bootstrap over items within tasks",
            description="Every task counts the same, however many items it has. Given where a cell answered all of them. Tasks "
            "that are scored until a verdict have no part in it.",
        ),
        Metric(
            name="mean_accuracy_difference",
            title="Mean accuracy against the baseline",
            unit="points",
            better="higher",
            definition="difference of means over tasks, paired bootstrap over items within tasks",
            description="Percentage points; negative means that quantizing lost accuracy. The same items are resampled for both.",
        ),
        Metric(
            name="ln_ppl_ratio",
            title="ln(perplexity / baseline's)",
            unit="nat",
            better="lower",
            definition="paired block bootstrap over windows",
            description="Mean extra loss per token: 0.01 is one percent of perplexity. Tokens not finite in either are left out.",
        ),
        Metric(
            name="accuracy_difference",
            title="Accuracy against the baseline",
            unit="points",
            better="higher",
            definition="paired difference over the same items",
            description="Percentage points; negative means lost accuracy.",
        ),
        Metric(
            name="flips_lost",
            title="Flips right to wrong",
            unit="items",
            better="lower",
            definition="items the baseline answers and the cell does not",
            description="Two errors that cancel in the accuracy still show here.",
        ),
        Metric(
            name="flips_gained",
            title="Flips wrong to right",
            unit="items",
            better="neither",
            definition="items the cell answers and the baseline does not",
        ),
        Metric(
            name="mcnemar_p",
            title="McNemar p",
            unit="p",
            better="neither",
            definition="exact McNemar test, two-sided",
            description="Chance of flips at least this one-sided if losing and gaining an item were equally likely.",
        ),
        Metric(
            name="mcnemar_p_holm",
            title="McNemar p, corrected",
            unit="p",
            better="neither",
            definition="exact McNemar test, Holm-corrected over all cells and tasks of this run",
            description="Below 0.05: a real change even though this many comparisons were looked at.",
        ),
        Metric(
            name="minimum_detectable_effect",
            title="Smallest loss that could be seen",
            unit="points",
            better="lower",
            definition="80 % power at 5 %, for this number of items and this rate of flips",
            description="A loss smaller than this would usually go unnoticed here, so 'no loss' is never claimed below it.",
        ),
        Metric(
            name="recovery",
            title="Recovery",
            unit="share",
            better="higher",
            definition="accuracy / baseline's accuracy, paired interval",
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """`columns`: (metric, subject) in display order. `values`: by cell id and column key. `draws`: replicates [draws] by column
    key and cell id, for measured and derived columns alike. `missing`: samples that a comparison wanted and did not find."""

    columns: tuple[tuple[str, str], ...]
    values: Mapping[str, Mapping[str, Value]]
    draws: Mapping[str, Mapping[str, Any]]
    missing: tuple[str, ...]


class _Absent(Exception):
    """A comparison cannot be made; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Items:
    """One cell's answers to one task: `correct` float [items] of 0/1, item ids in order, clusters where items share a passage."""

    ids: tuple[str, ...]
    correct: Any
    clusters: tuple[str, ...] | None


class _Work:
    """What is being collected, and the blobs already read."""

    def __init__(self, blob: Callable[[str], bytes]) -> None:
        self.blob = blob
        self.columns: dict[tuple[str, str], None] = {}
        self.values: dict[str, dict[str, Value]] = {}
        self.draws: dict[str, dict[str, Any]] = {}
        self.missing: set[str] = set()

    def put(self, cell: CellView, metric: str, subject: str, value: Value) -> None:
        self.columns[metric, subject] = None
        self.values.setdefault(cell.id, {})[column_key(metric, subject, DERIVED[metric].definition)] = value

    def put_interval(self, cell: CellView, metric: str, subject: str, interval: stats.Interval, scale: float = 1.0) -> None:
        low, high = (None if limit is None else limit * scale for limit in (interval.low, interval.high))
        self.put(cell, metric, subject, Value(status=OK, value=interval.value * scale, low=low, high=high, n=interval.n))

    def keep(self, column: str, cell: CellView, draws: Any) -> None:
        self.draws.setdefault(column, {})[cell.id] = draws

    def read(self, cell: CellView, outcome: Outcome, name: str | None) -> bytes:
        """A blob of an answer; _Absent with the reason when it is not there."""
        if name is None:
            raise _Absent("no raw samples were kept with this answer")
        try:
            return self.blob(name)
        except (OSError, HarnessError):
            self.missing.add(f"{cell.cell.name}, {outcome.question.probe} {outcome.question.subject}".strip())
            raise _Absent("its raw samples are not on disk any more, so that nothing can be paired") from None


def compare(blob: Callable[[str], bytes], cells: Sequence[CellView]) -> Derived:
    """All derived columns of a run. `blob` gives raw samples by name (FileNotFoundError when they are not on disk)."""
    work = _Work(blob)
    questions = list({digest(o.question): o.question for c in cells for o in c.outcomes}.values())
    given = {(m.metric, o.question.subject) for c in cells for o in c.outcomes for m in _measurements(o)}
    left_out = {subject for metric, subject in given if metric == "task_score"}  # tasks that know no right and wrong
    # What follows assumes that the number of items was fixed beforehand; verdicts have a section of their own.
    left_out |= {q.subject for q in questions if sequential.settings(q) is not None}
    for model in dict.fromkeys(c.model for c in cells):
        mine = [c for c in cells if c.model == model]
        for question in questions:
            if question.probe == "perplexity":
                _perplexity(work, mine, question, derive=("ln_ppl_ratio", question.subject) not in given)
            elif question.probe == "divergence":
                _divergence(work, mine, question)
        _tasks(work, mine, [q for q in questions if q.probe == "tasks" and q.subject not in left_out])
    _holm(work)
    _complete(work, cells)
    order = {name: place for place, name in enumerate(DERIVED)}
    subjects = {q.subject: place for place, q in enumerate(questions)}
    columns = sorted(work.columns, key=lambda pair: (order[pair[0]], subjects.get(pair[1], -1)))
    return Derived(columns=tuple(columns), values=work.values, draws=work.draws, missing=tuple(sorted(work.missing)))


def _measurements(outcome: Outcome | None) -> tuple[Measurement, ...]:
    return (
        () if outcome is None or outcome.record is None or outcome.record.answer is None else outcome.record.answer.measurements
    )


def _outcome(cell: CellView | None, question: Question) -> Outcome | None:
    return None if cell is None else next((o for o in cell.outcomes if o.question == question), None)


def _sampled(outcome: Outcome | None, metric: str) -> Measurement | None:
    """The first measurement of a metric (the definition that was asked for comes first)."""
    return next((m for m in _measurements(outcome) if m.metric == metric), None)


def _why_not(cell: CellView, outcome: Outcome | None) -> Value:
    """The value of a comparison whose own side has no answer."""
    if outcome is None or outcome.record is None:
        return Value(status=NOT_RUN, reason="planned, no outcome stored yet" if outcome else "not asked of this cell")
    assert outcome.failure is not None
    return Value(status=outcome.failure.kind, reason=outcome.failure.message)


# ---------------------------------------------------------------------- perplexity and divergence: windows of tokens


def _perplexity(work: _Work, cells: Sequence[CellView], question: Question, *, derive: bool) -> None:
    base_cell = next((c for c in cells if c.baseline), None)
    base: Any = None
    why = "the baseline has no answer to this"
    if base_cell is not None:
        try:
            base = _windows(work, base_cell, question, "perplexity")
        except _Absent as absent:
            why = f"baseline: {absent}"
    for cell in cells:
        outcome = _outcome(cell, question)
        sample = _sampled(outcome, "perplexity")
        if sample is None:
            if derive:
                work.put(cell, "ln_ppl_ratio", question.subject, _why_not(cell, outcome))
            continue
        try:
            nll = base if cell.baseline else _windows(work, cell, question, "perplexity")
            if nll is None:
                raise _Absent(why)
            log = _mean_draws(nll, question)
            work.keep(column_key("perplexity", question.subject, sample.definition), cell, np.exp(log))
            if cell.baseline:
                if derive:
                    work.put(cell, "ln_ppl_ratio", question.subject, _IS_BASELINE)
                continue
            if base is None:
                raise _Absent(why)
            if base.shape != nll.shape:
                raise _Absent("the baseline scored other windows")
            both = np.isfinite(base) & np.isfinite(nll)
            difference = np.where(both, np.where(both, nll, 0.0) - np.where(both, base, 0.0), np.nan)
            if derive:
                work.put_interval(cell, "ln_ppl_ratio", question.subject, stats.ln_ppl_ratio(nll, base))
            ratio = _sampled(_outcome(cell, _as(cells, question, "divergence")), "ln_ppl_ratio")
            definition = DERIVED["ln_ppl_ratio"].definition if ratio is None else ratio.definition
            work.keep(column_key("ln_ppl_ratio", question.subject, definition), cell, _mean_draws(difference, question))
        except (_Absent, HarnessError) as error:
            if derive and not cell.baseline:
                work.put(cell, "ln_ppl_ratio", question.subject, Value(status=NOT_COMPARABLE, reason=str(error)))


def _as(cells: Sequence[CellView], question: Question, probe: str) -> Question:
    """The question of another probe on the same subject, or the question itself when there is none."""
    return next(
        (o.question for c in cells for o in c.outcomes if o.question.probe == probe and o.question.subject == question.subject),
        question,
    )


def _divergence(work: _Work, cells: Sequence[CellView], question: Question) -> None:
    """Replicates of the mean divergence, windows resampled in common."""
    for cell in cells:
        sample = _sampled(_outcome(cell, question), "kl_mean")
        if sample is None:
            continue
        try:
            kl = _windows(work, cell, question, "kl_mean")
        except _Absent:
            continue  # the stored interval stands in: see `view`
        work.keep(column_key("kl_mean", question.subject, sample.definition), cell, _mean_draws(kl, question))


def _windows(work: _Work, cell: CellView, question: Question, metric: str) -> Any:
    """Raw samples [windows, tokens] as float64; a flat row of tokens is cut into blocks, NaN at the end."""
    outcome = _outcome(cell, question)
    sample = _sampled(outcome, metric)
    if outcome is None or sample is None:
        raise _Absent("it has no answer to this")
    data = work.read(cell, outcome, sample.blob)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64)
    except (ValueError, TypeError, EOFError, OSError):
        raise _Absent("its raw samples cannot be read") from None
    if array.ndim == 1 and array.size:
        padded = np.full(-(-array.size // BLOCK) * BLOCK, np.nan)
        padded[: array.size] = array
        array = padded.reshape(-1, BLOCK)
    if array.ndim != 2 or not np.isfinite(array).any():
        raise _Absent("its raw samples hold no finite table of windows")
    return array


def _mean_draws(table: Any, question: Question) -> Any:
    """Replicates [draws] of the mean over finite values of [windows, tokens], whole windows resampled."""
    finite = np.isfinite(table)
    sums, sizes = np.where(finite, table, 0.0).sum(axis=1), finite.sum(axis=1)
    counts = _counts(len(table), question.subject)
    return (counts @ sums) / np.maximum(counts @ sizes, 1)


@functools.lru_cache(maxsize=2)  # questions are worked through one after another, so the table of one serves all its cells
def _counts(blocks: int, subject: str) -> Any:
    """How often each block is drawn in each replicate [draws, blocks]: the same for every cell that answered this subject."""
    rng = np.random.default_rng(int(digest(["draws", subject, blocks])[:16], 16))
    counts = np.empty((DRAWS, blocks))
    for draw in range(DRAWS):
        counts[draw] = np.bincount(rng.integers(blocks, size=blocks), minlength=blocks)
    return counts


# ---------------------------------------------------------------------- tasks: items


def _tasks(work: _Work, cells: Sequence[CellView], questions: Sequence[Question]) -> None:
    base_cell = next((c for c in cells if c.baseline), None)
    bases: dict[str, _Items | str] = {}
    answers: dict[str, dict[str, _Items | str]] = {cell.id: {} for cell in cells}
    for question in questions:
        base = bases[question.subject] = _items_or_reason(work, base_cell, question)
        for cell in cells:
            own = answers[cell.id][question.subject] = base if cell.baseline else _items_or_reason(work, cell, question)
            _task(work, cell, question, base, own)
    # A task that nobody could answer (a data set that cannot be had, say) would otherwise cost every cell its mean.
    answered = [q for q in questions if any(_sampled(_outcome(cell, q), "accuracy") for cell in cells)] or questions
    for cell in cells if answered else ():
        _mean(work, cell, answered, bases, {q.subject: answers[cell.id][q.subject] for q in answered})


def _items_or_reason(work: _Work, cell: CellView | None, question: Question) -> _Items | str:
    outcome = _outcome(cell, question)
    sample = _sampled(outcome, "accuracy")
    if cell is None or outcome is None or sample is None:
        return "it has no answer to this task"
    try:
        return _items(work.read(cell, outcome, sample.blob))
    except _Absent as absent:
        return str(absent)


def _items(data: bytes) -> _Items:
    try:
        rows = json.loads(data)["items"]
        ids = tuple(str(row["id"]) for row in rows)
        correct = np.array([float(row["correct"]) for row in rows])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Absent("its raw samples cannot be read") from None
    if not np.isfinite(correct).all():
        raise _Absent("its items hold scores that are not finite")
    if not len(correct) or len(set(ids)) != len(ids):
        raise _Absent("its items are none, or have the same id twice")
    clusters = None
    if any("cluster" in row for row in rows):
        clusters = tuple(f"{row.get('task', '')}|{row['cluster']}" if "cluster" in row else f"#{row['id']}" for row in rows)
    return _Items(ids=ids, correct=correct, clusters=clusters)


def _paired(base: _Items, own: _Items) -> tuple[Any, Any, tuple[str, ...] | None]:
    """Both rows in the baseline's order. _Absent when they did not answer the same items."""
    if base.ids == own.ids:
        return base.correct, own.correct, base.clusters
    place = {name: i for i, name in enumerate(own.ids)}
    if set(place) != set(base.ids):
        raise _Absent("the baseline answered other items")
    return base.correct, own.correct[[place[name] for name in base.ids]], base.clusters


_PER_TASK = (
    "accuracy_difference",
    "flips_lost",
    "flips_gained",
    "mcnemar_p",
    "mcnemar_p_holm",
    "minimum_detectable_effect",
    "recovery",
)
_IS_BASELINE = Value(status=BASELINE, reason="the baseline is what the others are compared with")


def _task(work: _Work, cell: CellView, question: Question, base: _Items | str, own: _Items | str) -> None:
    subject = question.subject
    outcome = _outcome(cell, question)
    sample = _sampled(outcome, "accuracy")
    if isinstance(own, _Items) and sample is not None:
        work.keep(column_key(sample.metric, subject, sample.definition), cell, _item_draws(own, subject))

    def everywhere(value: Value) -> None:
        for name in _PER_TASK:
            work.put(cell, name, subject, value)

    if sample is None:
        return everywhere(_why_not(cell, outcome))
    if cell.baseline:
        return everywhere(_IS_BASELINE)
    if isinstance(own, str) or isinstance(base, str):
        reason = own if isinstance(own, str) else f"baseline: {base}"
        return everywhere(Value(status=NOT_COMPARABLE, reason=reason))
    try:
        before, after, clusters = _paired(base, own)
    except _Absent as absent:
        return everywhere(Value(status=NOT_COMPARABLE, reason=str(absent)))
    n = len(before)
    work.put_interval(cell, "accuracy_difference", subject, stats.paired_difference(before, after, clusters), scale=100)
    if not set(np.unique(np.concatenate([before, after]))) <= {0.0, 1.0}:  # F1 and its like: no flips to count
        for name in _PER_TASK[1:]:
            work.put(
                cell, name, subject, Value(status=NOT_COMPARABLE, reason="this task's items are not right or wrong but scored")
            )
        return None
    flips = stats.flips(before, after)
    p = stats.paired_test(before, after, clusters)
    effect = stats.smallest_detectable(before, after, clusters)
    work.put(cell, "flips_lost", subject, Value(status=OK, value=float(flips.right_to_wrong), n=n))
    work.put(cell, "flips_gained", subject, Value(status=OK, value=float(flips.wrong_to_right), n=n))
    work.put(cell, "mcnemar_p", subject, Value(status=OK, value=p, n=n))
    work.put(cell, "mcnemar_p_holm", subject, Value(status=OK, value=p, n=n))  # corrected once all are known
    work.put(cell, "minimum_detectable_effect", subject, Value(status=OK, value=effect * 100, n=n))
    try:
        work.put_interval(cell, "recovery", subject, stats.recovery(before, after, clusters))
    except HarnessError as error:
        work.put(cell, "recovery", subject, Value(status=NOT_COMPARABLE, reason=str(error)))
    return None


def _item_draws(items: _Items, subject: str) -> Any:
    """Replicates [draws] of the accuracy, items (or clusters of items) resampled. Items are taken in the order of their ids,
    so that all cells that answered the same items share their resamples."""
    places: dict[str, int] = {}
    names = items.ids if items.clusters is None else items.clusters
    order = sorted(range(len(items.ids)), key=lambda i: items.ids[i])
    blocks = [places.setdefault(names[i], len(places)) for i in order]
    sums, sizes = np.bincount(blocks, weights=items.correct[order]), np.bincount(blocks)
    counts = _counts(len(sums), subject)
    return (counts @ sums) / (counts @ sizes)


def _mean(
    work: _Work,
    cell: CellView,
    questions: Sequence[Question],
    bases: Mapping[str, _Items | str],
    answers: Mapping[str, _Items | str],
) -> None:
    """Means over tasks; every planned task must be there, else two means would be over different tasks."""
    samples = {q.subject: _sampled(_outcome(cell, q), "accuracy") for q in questions}
    absent = [subject for subject, sample in samples.items() if sample is None or not math.isfinite(sample.value)]
    if absent:
        values = [_why_not(cell, _outcome(cell, q)) for q in questions if samples[q.subject] is None]
        kinds = sorted({v.status for v in values})
        reason = f"{len(absent)} of {len(questions)} tasks have no answer: {', '.join(absent)}"
        value = Value(status=kinds[0] if len(kinds) == 1 else NOT_COMPARABLE, reason=reason)
        work.put(cell, "mean_accuracy", "", value)
        work.put(cell, "mean_accuracy_difference", "", value)
        return
    n = sum(s.n or 0 for s in samples.values() if s is not None)
    mean = sum(s.value for s in samples.values() if s is not None) / len(samples)
    column = column_key("mean_accuracy", "", DERIVED["mean_accuracy"].definition)
    if all(isinstance(a, _Items) for a in answers.values()):
        tasks = [column_key(s.metric, subject, s.definition) for subject, s in samples.items() if s is not None]
        draws = np.mean([work.draws[task][cell.id] for task in tasks], axis=0)
        low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
        work.keep(column, cell, draws)
        work.put(cell, "mean_accuracy", "", Value(status=OK, value=mean, low=low, high=high, n=n))
    else:
        work.put(cell, "mean_accuracy", "", Value(status=OK, value=mean, n=n, reason="no interval: raw samples are missing"))
    if cell.baseline:
        work.put(cell, "mean_accuracy_difference", "", _IS_BASELINE)
        return
    try:
        pairs = []
        for subject, own in answers.items():
            base = bases[subject]
            if isinstance(own, str) or isinstance(base, str):
                raise _Absent(f"{subject}: {own if isinstance(own, str) else f'baseline: {base}'}")
            pairs.append(stats.Task(*_paired(base, own)))
        difference = stats.mean_difference_over_tasks(pairs)
        work.put_interval(cell, "mean_accuracy_difference", "", difference, scale=100)
    except _Absent as error:
        work.put(cell, "mean_accuracy_difference", "", Value(status=NOT_COMPARABLE, reason=str(error)))


def _complete(work: _Work, cells: Sequence[CellView]) -> None:
    """Every cell has a value in every derived column, those too that nothing above could be said of."""
    for metric, subject in work.columns:
        key = column_key(metric, subject, DERIVED[metric].definition)
        for cell in cells:
            if key not in work.values.get(cell.id, {}):
                asked = any(o.question.subject == subject for o in cell.outcomes) or not subject
                absent = Value(status=NOT_COMPARABLE if asked else ABSENT, reason="there is nothing to compare with")
                work.put(cell, metric, subject, _IS_BASELINE if cell.baseline else absent)


def _holm(work: _Work) -> None:
    """Replaces the copied p values by those corrected over all task comparisons of the run."""
    definition = DERIVED["mcnemar_p_holm"].definition
    places = []
    for subject in [s for name, s in work.columns if name == "mcnemar_p_holm"]:
        key = column_key("mcnemar_p_holm", subject, definition)
        places += [(cell, key) for cell, values in work.values.items() if key in values and values[key].status == OK]
    corrected = stats.holm([work.values[cell][key].value for cell, key in places])
    for (cell, key), p in zip(places, corrected, strict=True):
        work.values[cell][key] = Value(status=OK, value=float(p), n=work.values[cell][key].n)
