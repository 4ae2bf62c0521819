"""Runs for the gate's tests: a few cells with answers that a test states, and raw samples on disk, as `store.read` gives them.

A night is a table of what each cell answers. `night(folder, ...)` with the same arguments gives the same answers.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness import store
from harness.metrics import METRICS
from harness.series import EndRecord, Series
from harness.spec import (
    Answer,
    Cell,
    Failure,
    Measurement,
    Model,
    PlannedCellRecord,
    PlanRecord,
    Question,
    Record,
    RunContext,
    Scheme,
    UnsupportedRecord,
    digest,
)
from harness.store import Run
from tests.report.synthetic import HEADER
from tests.squares import square

MODEL = Model(name="reference", path="model")
BASE = square(Scheme(method="bf16", bits=16), model=MODEL, label="bf16")
GPTQ = square(Scheme(method="gptq", bits=4, options={"group_size": 64}), model=MODEL, label="gptq 4-bit g64")
HQQ = square(Scheme(method="hqq", bits=4, options={"group_size": 64}), model=MODEL, label="hqq 4-bit g64")
CELLS = (BASE, GPTQ, HQQ)

TASKS = ("facts", "tracking")
TEXT = Question(probe="perplexity", subject="prose", options={"window": 64, "corpus_digest": "a" * 64})
KL = Question(probe="divergence", subject="prose", options={"window": 64, "corpus_digest": "a" * 64})
SIZE = Question(probe="size", subject="")
MEMORY = Question(probe="memory", subject="64+8 x1", options={"prompt": 64})
LATENCY = Question(probe="latency", subject="pp64 tg8 b1", options={"prompt": 64})
QUESTIONS = (SIZE, TEXT, KL, *(Question(probe="tasks", subject=t, options={"limit": None}) for t in TASKS), MEMORY, LATENCY)

Edit = Callable[[Cell, Question, Answer], Answer | Failure | None]


class Answers:
    """What a night's cells answer; a test replaces what it is about. Arrays are shared by all nights of a seed."""

    def __init__(self, *, items: int = 1000, windows: int = 32, tokens: int = 64, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.correct = {(c.label, t): (rng.uniform(size=items) < 0.8).astype(float) for c in CELLS for t in TASKS}
        base = rng.gamma(1.2, 1.6, size=(windows, tokens))
        self.nll = {c.label: base + (0 if c is BASE else rng.normal(0.02, 0.1, size=base.shape)) for c in CELLS}
        self.kl = {c.label: rng.gamma(0.4, 2.5, size=base.shape) * 0.02 for c in CELLS if c is not BASE}
        self.kl_floor = 2e-5
        self.tpot = {c.label: 0.010 * (1 + i / 2) for i, c in enumerate(CELLS)}
        self.peak = {c.label: 2e8 / (1 + i) for i, c in enumerate(CELLS)}
        self.bytes = {c.label: 2e8 / (1 + i) for i, c in enumerate(CELLS)}
        self.share = {c.label: float(c is not BASE) for c in CELLS}
        self.elsewhere = 0.0  # the share of CPU time that other processes took
        self.kernels = {c.label: {"torch linear" if c is BASE else "packed": 24} for c in CELLS}

    def lose(self, cell: Cell, task: str, *, lost: int, won: int = 0) -> Answers:
        """Turns the first right items of a task wrong, and its first wrong ones right."""
        scores = self.correct[cell.label, task] = self.correct[cell.label, task].copy()
        right, wrong = np.nonzero(scores == 1)[0], np.nonzero(scores == 0)[0]
        scores[right[:lost]] = 0
        scores[wrong[:won]] = 1
        return self


def night(
    folder: Path,
    answers: Answers | None = None,
    *,
    name: str = "20261120T020000000000Z-aaaaaaaa",
    cells: Sequence[Cell] = CELLS,
    questions: Sequence[Question] = QUESTIONS,
    edit: Edit | None = None,
    ended: bool = True,
    context: Mapping[str, Any] | None = None,
    weights: str = "w" * 64,
    probe_version: str = "1",
    unsupported: Sequence[UnsupportedRecord] = (),
) -> Run:
    """A run whose cells answer `answers`; `edit` replaces an answer, or drops it (None). `context`: fields that differ."""
    given = answers or Answers()
    folder.mkdir(parents=True, exist_ok=True)
    started = f"{name[:4]}-{name[4:6]}-{name[6:8]}T{name[9:11]}:{name[11:13]}:00+00:00"
    records = []
    for cell in cells:
        for question in questions:
            answer: Answer | Failure | None = _answer(folder, given, cell, question)
            if edit is not None and isinstance(answer, Answer):
                answer = edit(cell, question, answer)
            if answer is not None:
                records.append(_record(cell, question, answer, started, probe_version))
    plan = PlanRecord(
        suite={"name": "quick"},
        baseline="bf16",
        cells=tuple(PlannedCellRecord(cell=c, questions=tuple(questions), baseline=c.label == "bf16") for c in cells),
        weights={"reference": weights},
        unsupported=tuple(unsupported),
    )
    conditions: RunContext = dataclasses.replace(HEADER.context, **(context or {}))
    header = dataclasses.replace(HEADER, run=name, started_at=started, context=conditions, context_digest=conditions.digest)
    end = EndRecord(ended_at=started, questions=len(records), series=Series()) if ended else None
    return Run(path=folder / f"{name}.jsonl", header=header, plan=plan, records=tuple(records), end=end)


def _record(cell: Cell, question: Question, answer: Answer | Failure, started: str, version: str) -> Record:
    return Record(
        key=digest({"cell": cell, "question": question}),
        context="c" * 64,
        cell=cell,
        question=question,
        probe_version=version,
        answer=None if isinstance(answer, Failure) else answer,
        failure=answer if isinstance(answer, Failure) else None,
        started_at=started,
    )


def _answer(folder: Path, given: Answers, cell: Cell, question: Question) -> Answer | None:
    label = cell.label if cell.label in given.bytes else GPTQ.label
    if question.probe == "size":
        parts = [measured("file_bytes", given.bytes[label]), measured("quantized_share", given.share[label])]
        return Answer(measurements=(measured("bpw_model", given.bytes[label] * 8 / 1e8), *parts))
    if question.probe == "perplexity":
        nll = given.nll[label]
        sample = measured("perplexity", float(np.exp(nll.mean())), n=nll.size, blob=npy(folder, nll), definition="gptq-64")
        return Answer(measurements=(sample,), facts={"engine": {"kernels": given.kernels[label]}})
    if question.probe == "divergence":
        if cell.label == BASE.label:
            return Answer(measurements=(measured("kl_floor", given.kl_floor),))
        kl = given.kl[label]
        return Answer(measurements=(measured("kl_mean", float(kl.mean()), n=kl.size, blob=npy(folder, kl)),))
    if question.probe == "tasks":
        scores = given.correct[label, question.subject]
        rows = [{"id": str(i), "correct": float(c)} for i, c in enumerate(scores)]
        blob = store.add_blob(folder, json.dumps({"items": rows}).encode(), "json")
        definition = f"lm-eval {question.subject} v1 acc, 0-shot"
        return Answer(measurements=(measured("accuracy", float(scores.mean()), n=scores.size, blob=blob, definition=definition),))
    if question.probe == "memory":
        return Answer(measurements=(measured("peak_host_bytes", given.peak[label]),))
    tpot = given.tpot[label]
    sample = measured("tpot", tpot, low=tpot * 0.99, high=tpot * 1.01, n=20)
    ratio = tpot / given.tpot[BASE.label]
    beside = measured("tpot_ratio", ratio, low=ratio * 0.99, high=ratio * 1.01, n=20)
    facts = {"conditions": {"others_cpu_share": given.elsewhere, "steal_share": None}}
    return Answer(measurements=(sample, beside) if label != BASE.label else (sample,), facts=facts)


def measured(metric: str, value: float, *, definition: str = "", **parts: Any) -> Measurement:
    row = METRICS[metric]
    return Measurement(metric=metric, value=value, definition=definition or row.definition, unit=row.unit, **parts)


def npy(folder: Path, array: Any) -> str:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array, dtype=np.float32), allow_pickle=False)
    return store.add_blob(folder, buffer.getvalue(), "npy")
