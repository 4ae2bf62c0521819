"""Nights of a suite for tests of histories, written by the project's own writer: numbers that a test chooses, never measured."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from harness import store
from harness.metrics import METRICS
from harness.spec import (
    Answer,
    Failure,
    Measurement,
    Model,
    PlannedCellRecord,
    PlanRecord,
    Question,
    Record,
    RunContext,
    RunHeader,
    Scheme,
    digest,
)
from tests.report.synthetic import HEADER
from tests.squares import square

START = datetime.datetime(2026, 1, 1, 2, tzinfo=datetime.UTC)
MODEL = Model(name="reference", path="/models/reference")
PROBES = {"perplexity": ("perplexity", "heldout"), "accuracy": ("tasks", "facts"), "tpot": ("latency", "pp128")}

Values = Mapping[str, Mapping[str, float | None]]
"""Values by metric by the cell's label; None: the question failed. The first cell is the baseline."""


def name(day: int) -> str:
    return f"{START + datetime.timedelta(days=day):%Y%m%dT%H%M%S%fZ}-{day:08x}"


def cell(label: str) -> Any:
    scheme = Scheme(method="bf16", bits=16) if label == "bf16" else Scheme(method="rtn", bits=4, options={"label": label})
    return square(scheme, model=MODEL, label=label)


def write(
    folder: Path,
    day: int,
    values: Values,
    *,
    simulated: Sequence[str] = (),
    weights: str = "w" * 64,
    suite: str = "nightly",
    finish: bool = True,
    **context: Any,
) -> Path:
    """One night's run file. `context` replaces fields of the conditions."""
    conditions: RunContext = replace(HEADER.context, **context)
    started = (START + datetime.timedelta(days=day)).isoformat()
    header = RunHeader(run=name(day), started_at=started, context=conditions, context_digest=conditions.digest)
    planned, records = [], []
    for label, measured in values.items():
        asked = []
        for metric, value in measured.items():
            probe, subject = PROBES[metric]
            question = Question(probe=probe, subject=subject)
            asked.append(question)
            answer = None if value is None else Answer(measurements=(measurement(metric, value),))
            failure = Failure(kind="crash", phase="measure", message="it died") if value is None else None
            records.append(
                Record(
                    key=digest([label, question]),
                    context="c" * 64,
                    cell=cell(label),
                    question=question,
                    probe_version="1",
                    answer=answer,
                    failure=failure,
                    simulated=label in simulated,
                    started_at=started,
                )
            )
        planned.append(PlannedCellRecord(cell=cell(label), questions=tuple(asked), baseline=label == "bf16"))
    with mock.patch("os.fsync"), store.Writer(folder / f"{header.run}.jsonl", header) as writer:
        writer.plan(PlanRecord(suite={"name": suite}, baseline="bf16", cells=tuple(planned), weights={"reference": weights}))
        for record in records:
            writer.record(record)
        if finish:
            writer.end(ended_at=started, questions=len(records))
    return writer.path


def measurement(metric: str, value: float) -> Measurement:
    row = METRICS[metric]
    return Measurement(
        metric=metric, value=value, definition=row.definition, unit=row.unit, low=value * 0.99, high=value * 1.01, n=100
    )


def key(label: str, metric: str) -> tuple[str, str, str, str]:
    from harness.series import square_identity

    return square_identity(cell(label)), metric, PROBES[metric][1], METRICS[metric].definition
