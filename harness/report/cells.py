"""The rows of the table of a report: a planned cell, its outcomes, and its value in each column."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.spec import Cell, Failure, Measurement, Metric, Question, Record, digest

OK, NOT_RUN, SIMULATED, BASELINE, NOT_COMPARABLE, ABSENT = "ok", "not run", "simulated", "baseline", "not comparable", "absent"
"""Status of a value beside the failure kinds: a number; planned and not done; withheld because the weights are held dequantized;
the baseline itself; a comparison that cannot be made; not part of this cell's answer (the baseline's noise floor, say)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One metric of one subject under one definition. `key` is unique in the view and stable between runs."""

    key: str
    metric: Metric
    subject: str
    probe: str
    derived: bool

    @property
    def title(self) -> str:
        return f"{self.metric.title}, {self.subject}" if self.subject else self.metric.title


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One entry of the table: `status` is "ok" exactly when `value` is a number; otherwise `reason` says why there is none."""

    status: str
    value: float = math.nan
    low: float | None = None
    high: float | None = None
    n: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one planned question of one cell: its record, or None when it was not run. `asked`: the question's digest.
    `metrics`: the rows of the question's probe. `simulated`: the cell's weights are held dequantized, by this record or another
    of the cell."""

    question: Question
    asked: str
    record: Record | None
    metrics: tuple[Metric, ...] = ()
    simulated: bool = False

    @property
    def status(self) -> str:
        return NOT_RUN if self.record is None else self.record.status

    @property
    def failure(self) -> Failure | None:
        return None if self.record is None else self.record.failure

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return () if self.record is None or self.record.answer is None else self.record.answer.measurements

    @property
    def facts(self) -> Mapping[str, object]:
        """What explains the answer, plain data of any shape; empty where there is no answer."""
        return {} if self.record is None or self.record.answer is None else self.record.answer.facts


@dataclass(frozen=True, slots=True, kw_only=True)
class CellView:
    """One planned cell with its values by column key. `series` is what makes one line of a chart by bits: a method with its
    options and a way of running, whatever the bits."""

    id: str
    cell: Cell
    baseline: bool
    simulated: bool
    outcomes: tuple[Outcome, ...]
    series: str
    values: Mapping[str, Value] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.cell.model.name

    @property
    def label(self) -> str:
        return self.cell.label

    @property
    def trained(self) -> bool:
        """Whether its weights, or an adapter beside them, were trained further: a scheme says its recipe then."""
        return "train" in self.cell.scheme.options

    @property
    def reading(self) -> str:
        """What a text was read for when the artifact was made."""
        return "Trained on" if self.trained else "Calibrated on"

    @property
    def marks(self) -> tuple[str, ...]:
        """What is to be said of the cell wherever it is shown, each once."""
        given = (outcome.facts.get("marks") for outcome in self.outcomes)
        return tuple(dict.fromkeys(str(mark) for marks in given if isinstance(marks, list) for mark in marks))


def series_of(cell: Cell) -> str:
    options = {k: v for k, v in cell.scheme.options.items() if k != "calibration"}
    return digest([cell.model.name, cell.method, options, cell.running])[:12]


def withheld(outcome: Outcome, *metrics: Metric) -> bool:
    """Whether none of these metrics (by default all that its probe measures) may be shown of an outcome: the cell's weights are
    held dequantized, and these numbers would not be those of its scheme. What was not run is "not run"."""
    asked = metrics or outcome.metrics
    return outcome.simulated and outcome.record is not None and bool(asked) and not any(m.when_simulated for m in asked)


def plain_table(value: object) -> Mapping[str, object]:
    """A table of plain data whose shape nobody promised; empty where it is no table."""
    return value if isinstance(value, dict) else {}


def column_key(metric: str, subject: str, definition: str) -> str:
    return "|".join((metric, subject, definition))


def identity(cell: Cell) -> str:
    """Digest of what decides a cell: two labels of one origin, run in one way, are one cell."""
    return digest(cell.identity())
