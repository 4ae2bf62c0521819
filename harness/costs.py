"""What measuring takes, as run files keep it: what each piece of work took, beside what was expected of it.

`Expected` is a range with its source. `PieceCost` is one piece of a cell's work, `CellCost` all that one invocation did for one
cell: a line of a run file (store.py). Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from harness.spec import Cell

CHANGES_NUMBERS = False
"""Stored measurements do not depend on what was expected of them."""

Source = Literal["same", "scheme", "method", "engine", "bits", "rate"]
"""Where an expectation comes from, the surest first.

`same`: this machine has done the same before. `scheme`: it has by the same scheme, for another model or another question.
`method`: by the same method at other bits or options. `engine`: by another method that the same engine runs. All but the first
are scaled, by the rule in forecast/work.py. `bits`: bits per weight times weights. `rate`: arithmetic over a rate that was
measured a moment ago."""

SOURCES: tuple[Source, ...] = ("same", "scheme", "method", "engine", "bits", "rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What something is expected to take, in seconds or bytes: from `low` to `high`, or `low` or more where `high` is None.
    `rule` is what the rule of the source said, around which the range was laid by how earlier ones turned out. `unknown` names
    the parts of a sum of which nothing is known; they are in neither end."""

    low: float
    high: float | None
    source: Source
    rule: float | None = None
    unknown: tuple[str, ...] = ()

    @property
    def middle(self) -> float:
        """The one number that stands for the range: the geometric mean of its ends (half the upper one where the lower is 0), or
        `low` where it has one end."""
        if self.high is None:
            return self.low
        return math.sqrt(self.low * self.high) if self.low > 0 else self.high / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CellForecast:
    """What a cell is expected to take; None: unknown. Memory is the largest resident set of any of its processes, that of the
    GPU what torch's allocator reserves; disk is what it leaves in the cache."""

    seconds: Expected | None = None
    host_bytes: Expected | None = None
    device_bytes: Expected | None = None
    disk_bytes: Expected | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceCost:
    """One piece of a cell's work. `what` is a stage or a probe; `question` is the digest of what was asked ('' for a stage) and
    `subject` what people call it. Of the `seconds`, `model_seconds` grow with the model. `units` counts what was worked on
    (tokens, items), None where nobody can say."""

    what: str
    subject: str
    seconds: float
    model_seconds: float
    question: str = ""
    units: float | None = None
    expected: Expected | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellCost:
    """What one invocation did for one cell, and what had been expected. `seconds` is all of its wall time, `pieces` what it was
    spent on. `questions` is the digest of all that the cell is asked; `whole`: all of it was asked now, and nothing failed.
    `parameters` are those of its model, `estimated_bytes` the plan's of its artifact.

    `host_bytes` and `device_bytes` are peaks over all its processes, `host_start_bytes` what the least of them held before it
    loaded anything (the runtime). `artifact_bytes` are its own files in the cache, `kept_bytes` the baseline's answers."""

    cell: Cell
    baseline: bool
    started_at: str
    seconds: float
    pieces: tuple[PieceCost, ...]
    questions: str
    whole: bool
    parameters: int | None = None
    estimated_bytes: int | None = None
    host_bytes: int | None = None
    host_start_bytes: int | None = None
    device_bytes: int | None = None
    artifact_bytes: int | None = None
    kept_bytes: int | None = None
    expected: CellForecast = CellForecast()
