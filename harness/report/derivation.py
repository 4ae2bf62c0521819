"""What a comparison is made with and of: answers by question, raw samples, and what is derived of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from harness import stats
from harness.decide import Kind
from harness.errors import DamagedBlob, HarnessError
from harness.frontier import DRAWS, Floats
from harness.report.cells import BASELINE, NOT_RUN, OK, CellView, Outcome, Value, column_key
from harness.report.losses import FamilyLosses
from harness.spec import Measurement, Metric, Question, digest

IS_BASELINE = Value(status=BASELINE, reason="the baseline is what the others are compared with")


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """One cell's answers to one task: `correct` float [items] of 0/1 (or partial credit, then not `right_or_wrong`), item ids
    in order, clusters where items share a passage."""

    ids: tuple[str, ...]
    correct: Floats
    right_or_wrong: bool
    clusters: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """`columns`: (metric, subject) in display order. `values`: by cell id and column key. `draws`: replicates [draws] by
    column key and cell id, for measured and derived columns alike. `missing`: samples that a comparison wanted in vain.
    `losses`: what a decision is made of, by model and kind. `items`: what cells answered, by cell id and task, of the tasks that
    they are compared on."""

    columns: tuple[tuple[str, str], ...]
    values: Mapping[str, Mapping[str, Value]]
    draws: Mapping[str, Mapping[str, Floats]]
    missing: tuple[str, ...]
    losses: Mapping[tuple[str, Kind], FamilyLosses] = field(default_factory=dict)
    items: Mapping[tuple[str, str], Items] = field(default_factory=dict)


class Absent(Exception):
    """A comparison cannot be made; the message says why."""


class Derivation:
    """Collects what is derived of a run. `blob` gives raw samples by name (FileNotFoundError when they are not on disk)."""

    def __init__(self, blob: Callable[[str], bytes]) -> None:
        self.blob = blob
        self.columns: dict[tuple[str, str], None] = {}
        self.values: dict[str, dict[str, Value]] = {}
        self.draws: dict[str, dict[str, Floats]] = {}
        self.missing: set[str] = set()
        self.losses: dict[tuple[str, Kind], FamilyLosses] = {}
        self.items: dict[tuple[str, str], Items] = {}

    def derived(self) -> Derived:
        return Derived(
            columns=tuple(self.columns),
            values=self.values,
            draws=self.draws,
            missing=tuple(sorted(self.missing)),
            losses=self.losses,
            items=self.items,
        )

    def join(self, part: Derived) -> None:
        """Takes in what was derived of other cells."""
        self.columns |= dict.fromkeys(part.columns)
        self.values |= {cell: dict(values) for cell, values in part.values.items()}
        for column, draws in part.draws.items():
            self.draws.setdefault(column, {}).update(draws)
        self.missing |= set(part.missing)
        self.losses |= part.losses
        self.items |= part.items

    def put(self, cell: CellView, metric: Metric, subject: str, value: Value) -> None:
        self.columns[metric.name, subject] = None
        self.values.setdefault(cell.id, {})[column_key(metric.name, subject, metric.definition)] = value

    def keep(self, column: str, cell: CellView, draws: Floats) -> None:
        self.draws.setdefault(column, {})[cell.id] = draws

    def read(self, cell: CellView, outcome: Outcome, name: str | None) -> bytes:
        """A blob of an answer; Absent with the reason when it is not there."""
        if name is None:
            raise Absent("no raw samples were kept with this answer")
        try:
            return self.blob(name)
        except DamagedBlob:
            self.missing.add(f"{cell.cell.name}, {outcome.question.probe} {outcome.question.subject}".strip())
            raise Absent("its raw samples are damaged, so that nothing can be paired; the next run asks again") from None
        except (OSError, HarnessError):
            self.missing.add(f"{cell.cell.name}, {outcome.question.probe} {outcome.question.subject}".strip())
            raise Absent("its raw samples are not on disk any more, so that nothing can be paired") from None


def outcome_of(cell: CellView | None, question: Question) -> Outcome | None:
    return None if cell is None else next((o for o in cell.outcomes if o.question == question), None)


def sample_of(outcome: Outcome | None, metric: Metric) -> Measurement | None:
    """The first measurement of a metric (the definition that was asked for comes first)."""
    return None if outcome is None else next((m for m in outcome.measurements if m.metric == metric.name), None)


def why_not(outcome: Outcome | None) -> Value:
    """The value of a comparison whose own side has no answer."""
    if outcome is None or outcome.record is None:
        return Value(status=NOT_RUN, reason="planned, no outcome stored yet" if outcome else "not asked of this cell")
    assert outcome.failure is not None
    return Value(status=outcome.failure.kind, reason=outcome.failure.message)


def from_interval(interval: stats.Interval, scale: float = 1.0) -> Value:
    low, high = (None if limit is None else limit * scale for limit in (interval.low, interval.high))
    return Value(status=OK, value=interval.value * scale, low=low, high=high, n=interval.n)


@functools.lru_cache(maxsize=2)  # questions are worked through one after another, so the table of one serves all its cells
def counts(blocks: int, subject: str) -> Floats:
    """How often each block is drawn in each replicate [draws, blocks]: the same for every cell that answered this subject."""
    rng = np.random.default_rng(int(digest(["draws", subject, blocks])[:16], 16))
    drawn = np.empty((DRAWS, blocks))
    step = max(1, _DRAWN_AT_ONCE // blocks)
    for first in range(0, DRAWS, step):
        rows = min(step, DRAWS - first)
        indices = rng.integers(blocks, size=(rows, blocks)) + np.arange(rows)[:, None] * blocks
        drawn[first : first + rows] = np.bincount(indices.ravel(), minlength=rows * blocks).reshape(rows, blocks)
    return drawn


_DRAWN_AT_ONCE = 1 << 18
