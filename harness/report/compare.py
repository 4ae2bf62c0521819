"""Every cell against the baseline of its model, recomputed from raw samples, paired by window or item.

What is compared is the same question put to both: the same windows, the same items. How, the metric's row says (`samples`).
Intervals and tests come from `harness.stats`; p values are Holm-corrected over all task comparisons of the run. Beside the
values this keeps bootstrap replicates of each sampled column, the same windows or items resampled for all cells, from which the
frontier takes its noise. A comparison that cannot be made (a record or its samples are missing, items do not match) is absent
with its reason.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence, Set

from threadpoolctl import threadpool_limits

from harness import forking, stats
from harness.metrics import sequential
from harness.report.cells import ABSENT, NOT_COMPARABLE, OK, CellView, Outcome, Value, column_key
from harness.report.compare_items import ItemTask, compare_tasks
from harness.report.compare_tokens import losses, tokens
from harness.report.derivation import IS_BASELINE, Derivation, Derived
from harness.report.derived import DERIVED, LN_PPL_RATIO, MCNEMAR_P_HOLM

ALPHA = 0.05


ALONE = 100
"""Cells that one process compares by itself: a second one would take as long to begin."""


def compare(blob: Callable[[str], bytes], cells: Sequence[CellView]) -> Derived:
    """All derived columns of a run. `blob` gives raw samples by name (FileNotFoundError when they are not on disk).

    Models are compared apart, those of many cells in as many processes as this one may use."""
    work = Derivation(blob)
    asked = list({o.asked: o for c in cells for o in c.outcomes}.values())  # one outcome of each question
    measured = {(m.metric, o.question.subject) for c in cells for o in c.outcomes for m in o.measurements}
    tasks = _tasks(cells, asked)
    models = [[c for c in cells if c.model == model] for model in dict.fromkeys(c.model for c in cells)]
    derive = functools.partial(_derive, blob, asked, measured, tasks)
    first, *rest = _shares(models, min(forking.processors(), len(cells) // ALONE))
    if rest:
        with threadpool_limits(limits=1, user_api="blas"):  # threads that spin in wait of each other's cost threefold
            others = [forking.beside(functools.partial(derive, share)) for share in rest]
            parts = [derive(first), *(other() for other in others)]
    else:
        parts = [derive(first)]
    for part in parts:
        work.join(part)
    _holm(work)
    _complete(work, cells)
    order = {name: place for place, name in enumerate(DERIVED)}
    subjects = {o.question.subject: place for place, o in enumerate(asked)}
    columns = sorted(work.columns, key=lambda pair: (order[pair[0]], subjects.get(pair[1], -1)))
    return Derived(
        columns=tuple(columns),
        values=work.values,
        draws=work.draws,
        missing=tuple(sorted(work.missing)),
        losses=dict(sorted(work.losses.items(), key=lambda pair: pair[0])),
        items=work.items,
    )


def _shares(models: Sequence[Sequence[CellView]], number: int) -> list[Sequence[Sequence[CellView]]]:
    """The models in `number` runs of about as many, in their order; one where it is less."""
    edges = [len(models) * place // max(1, number) for place in range(max(1, number) + 1)]
    return [models[first:last] for first, last in itertools.pairwise(edges) if first < last] or [models]


def _derive(
    blob: Callable[[str], bytes],
    asked: Sequence[Outcome],
    measured: Set[tuple[str, str]],
    tasks: Sequence[ItemTask],
    models: Sequence[Sequence[CellView]],
) -> Derived:
    """What is derived of these models, each compared with its own baseline only."""
    work = Derivation(blob)
    for question, metrics in ((o.question, o.metrics) for o in asked):
        for metric in metrics:
            for mine in models:
                if metric.samples == "losses":
                    derive = (LN_PPL_RATIO.name, question.subject) not in measured
                    losses(work, mine, question, metric, derive=derive)
                elif metric.samples == "tokens":
                    tokens(work, mine, question, metric)
    compare_tasks(work, models, tasks)
    return work.derived()


def _tasks(cells: Sequence[CellView], asked: Sequence[Outcome]) -> list[ItemTask]:
    """The questions that are answered by items, without those on which cells cannot be compared: tasks that know no right and
    wrong, and those that are scored until a verdict, since what follows assumes that the number of items was fixed beforehand
    (verdicts have a section of their own)."""
    left_out = {o.question.subject for o in asked if sequential.settings(o.question) is not None}
    tasks = []
    for outcome in asked:
        question = outcome.question
        metric = next((m for m in outcome.metrics if m.samples == "items"), None)
        if metric is None or question.subject in left_out:
            continue
        answers = [o.measurements for c in cells for o in c.outcomes if o.question == question and o.measurements]
        if not answers or any(m.metric == metric.name for measurements in answers for m in measurements):
            tasks.append(ItemTask(question=question, metric=metric))
    return tasks


def _complete(work: Derivation, cells: Sequence[CellView]) -> None:
    """Every cell has a value in every derived column, those too that nothing above could be said of."""
    for name, subject in work.columns:
        metric = DERIVED[name]
        key = column_key(name, subject, metric.definition)
        for cell in cells:
            if key not in work.values.get(cell.id, {}):
                asked = any(o.question.subject == subject for o in cell.outcomes) or not subject
                absent = Value(status=NOT_COMPARABLE if asked else ABSENT, reason="there is nothing to compare with")
                work.put(cell, metric, subject, IS_BASELINE if cell.baseline else absent)


def _holm(work: Derivation) -> None:
    """Replaces the copied p values by those corrected over all task comparisons of the run."""
    places = []
    for subject in [s for name, s in work.columns if name == MCNEMAR_P_HOLM.name]:
        key = column_key(MCNEMAR_P_HOLM.name, subject, MCNEMAR_P_HOLM.definition)
        places += [(cell, key) for cell, values in work.values.items() if key in values and values[key].status == OK]
    corrected = stats.holm([work.values[cell][key].value for cell, key in places])
    for (cell, key), p in zip(places, corrected, strict=True):
        work.values[cell][key] = Value(status=OK, value=float(p), n=work.values[cell][key].n)
