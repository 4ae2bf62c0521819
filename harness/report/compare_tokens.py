"""Metrics whose raw samples are windows of tokens, compared token by token with the baseline's.

Whole windows are resampled, the same for all cells, so that what is common to two cells cancels in their difference.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from harness import stats
from harness.errors import HarnessError
from harness.frontier import Floats
from harness.metrics.divergence import KL_MEAN
from harness.report.cells import NOT_COMPARABLE, CellView, Value, column_key
from harness.report.derivation import IS_BASELINE, Absent, Derivation, counts, from_interval, outcome_of, sample_of, why_not
from harness.report.derived import LN_PPL_RATIO
from harness.report.losses import of_windows
from harness.spec import Metric, Question

DIVERGENCE = KL_MEAN
"""The metric that a loss in nats is stated in."""

BLOCK = 256
"""Tokens per block where samples are one long row: neighbours are correlated, so they are resampled together."""


def losses(work: Derivation, cells: Sequence[CellView], question: Question, metric: Metric, *, derive: bool) -> None:
    """Replicates of a metric whose samples are losses, and of its ratio to the baseline's. `derive`: no probe measured the
    ratio on this subject, so that its values are made here too."""
    subject = question.subject
    base = _baseline(work, cells, question, metric)
    for cell in cells:
        outcome = outcome_of(cell, question)
        sample = sample_of(outcome, metric)
        own = base if cell.baseline else _windows_or_reason(work, cell, question, metric)
        if sample is not None and not isinstance(own, str):
            draws = np.exp(_mean_draws(own, subject))
            work.keep(column_key(metric.name, subject, sample.definition), cell, draws)
        pair = _pair(own, base)
        if not cell.baseline and not isinstance(pair, str):
            key = column_key(LN_PPL_RATIO.name, subject, _ratio_definition(cell, subject))
            work.keep(key, cell, _mean_draws(_difference(*pair), subject))
        if not derive:
            continue
        if sample is None:
            work.put(cell, LN_PPL_RATIO, subject, why_not(outcome))
        else:
            work.put(cell, LN_PPL_RATIO, subject, IS_BASELINE if cell.baseline else _ratio(pair))


def tokens(work: Derivation, cells: Sequence[CellView], question: Question, metric: Metric) -> None:
    """Replicates of a metric whose samples are averaged as they are. Where they are not on disk, the stored interval stands in
    (see `standing`)."""
    tables: dict[str, Floats | str] = {}
    for cell in cells:
        sample = sample_of(outcome_of(cell, question), metric)
        if sample is None:
            tables[cell.id] = "it has no answer to this"
            continue
        table = _windows_or_reason(work, cell, question, metric)
        # A probe adds the windows that it scored to the row's definition.
        same = sample.definition.startswith(metric.definition)
        tables[cell.id] = table if same else f"measured as {sample.definition}"
        if not isinstance(table, str):
            key = column_key(metric.name, question.subject, sample.definition)
            work.keep(key, cell, _mean_draws(table, question.subject))
    if metric.name == DIVERGENCE and cells and (cells[0].model, "kl") not in work.losses:  # the corpus that was asked for first
        base = next((cell.id for cell in cells if cell.baseline), None)
        work.losses[cells[0].model, "kl"] = of_windows(base, tables)


def _baseline(work: Derivation, cells: Sequence[CellView], question: Question, metric: Metric) -> Floats | str:
    """The baseline's samples, or why they are not there."""
    cell = next((c for c in cells if c.baseline), None)
    if cell is None:
        return "the baseline has no answer to this"
    table = _windows_or_reason(work, cell, question, metric)
    return f"baseline: {table}" if isinstance(table, str) else table


def _pair(own: Floats | str, base: Floats | str) -> tuple[Floats, Floats] | str:
    """Samples of the cell and of the baseline [windows, tokens], or why they cannot be compared."""
    if isinstance(own, str):
        return own
    if isinstance(base, str):
        return base
    return (own, base) if own.shape == base.shape else "the baseline scored other windows"


def _ratio(pair: tuple[Floats, Floats] | str) -> Value:
    if isinstance(pair, str):
        return Value(status=NOT_COMPARABLE, reason=pair)
    try:
        return from_interval(stats.ln_ppl_ratio(*pair))
    except HarnessError as error:
        return Value(status=NOT_COMPARABLE, reason=str(error))


def _ratio_definition(cell: CellView, subject: str) -> str:
    """That of the measured ratio on this subject, so that its column has the replicates; else that of the derived one."""
    measured = (m for o in cell.outcomes if o.question.subject == subject for m in o.measurements)
    return next((m.definition for m in measured if m.metric == LN_PPL_RATIO.name), LN_PPL_RATIO.definition)


def _difference(nll: Floats, base: Floats) -> Floats:
    """Loss of the cell less the baseline's [windows, tokens]; NaN where either is not finite."""
    both = np.isfinite(base) & np.isfinite(nll)
    return np.where(both, np.where(both, nll, 0.0) - np.where(both, base, 0.0), np.nan)


def _windows_or_reason(work: Derivation, cell: CellView, question: Question, metric: Metric) -> Floats | str:
    try:
        return _windows(work, cell, question, metric)
    except Absent as absent:
        return str(absent)


def _windows(work: Derivation, cell: CellView, question: Question, metric: Metric) -> Floats:
    """See `table_of`."""
    outcome = outcome_of(cell, question)
    sample = sample_of(outcome, metric)
    if outcome is None or sample is None:
        raise Absent("it has no answer to this")
    return table_of(work.read(cell, outcome, sample.blob))


def table_of(data: bytes) -> Floats:
    """Raw samples [windows, tokens] as float64; a flat row of tokens is cut into blocks, NaN at the end. Absent where they are no
    such table, or hold nothing finite."""
    try:
        array: Floats = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64)
    except (ValueError, TypeError, EOFError, OSError):
        raise Absent("its raw samples cannot be read") from None
    if array.ndim == 1 and array.size:
        padded = np.full(-(-array.size // BLOCK) * BLOCK, np.nan)
        padded[: array.size] = array
        array = padded.reshape(-1, BLOCK)
    if array.ndim != 2 or not np.isfinite(array).any():
        raise Absent("its raw samples hold no finite table of windows")
    return array


def _mean_draws(table: Floats, subject: str) -> Floats:
    """Replicates [draws] of the mean over finite values of [windows, tokens], whole windows resampled."""
    finite = np.isfinite(table)
    sums, sizes = np.where(finite, table, 0.0).sum(axis=1), finite.sum(axis=1)
    drawn = counts(len(table), subject)
    means: Floats = (drawn @ sums) / np.maximum(drawn @ sizes, 1)
    return means
