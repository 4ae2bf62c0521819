"""What passes between parent and child as files: a job going in, outcomes coming out. Written and read here and nowhere else.

A job is a folder. The parent writes `job.json` into it, the child leaves `outcome-N.json` for its N-th question (one for a job
without questions), raw samples in `outbox/`, and all that it and its libraries say in `log.txt`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from harness.child.bound import Rounding
from harness.decode import DecodeError, decode
from harness.files import write_atomically
from harness.kv import split_of
from harness.spec import Answer, Cell, Failure, Phase, Question, to_json

Stage = Literal["source", "sample", "quantize", "verify", "baseline", "bound", "probe"]
"""`source`: read the model's folder as transformers does, into a view of it. `sample`: have the model write the text that the
cell is calibrated on. `quantize`: write the artifact. `verify`: the reload check, and the bound on the answers. `baseline`: store
the baseline's answers to one question. `bound`: those to the fixed tokens of the bound. `probe`: answer the questions in
order."""

ALL = "all"
"""The phase that spans all of a question or a stage: its peaks are the process's own meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The baseline's cell and its artifact, to be loaded beside the cell's."""

    cell: Cell
    artifact_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineItems:
    """Where the baseline's answers to all items of a task lie, and the definition that they were measured under."""

    path: Path
    definition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRows:
    """The calibration rows to draw: `samples` rows of `length` tokens from the text at `path`, called `corpus`, by `seed`."""

    corpus: str
    samples: int
    length: int
    seed: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that a child is told. Texts and task folders are named by their subject, stored baselines by
    `stored_baseline_name`. `bound` is where the baseline leaves its answers to the fixed tokens, `roundings` what it leaves
    beside them; None where cells are not held against them. `training` is where one that trains keeps its trained weights."""

    stage: Stage
    cell: Cell
    model_dir: Path
    artifact_dir: Path
    device: str
    seed: int
    threads: int
    cache: Path
    is_baseline: bool = False
    questions: tuple[Question, ...] = ()
    baseline: Baseline | None = None
    texts: Mapping[str, Path] = field(default_factory=dict)
    task_folders: Mapping[str, Path] = field(default_factory=dict)
    stored_baselines: Mapping[str, Path] = field(default_factory=dict)
    baseline_items: Mapping[str, BaselineItems] = field(default_factory=dict)
    calibration: CalibrationRows | None = None
    training: Path | None = None
    bound: Path | None = None
    roundings: tuple[Rounding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What a child process does once for several cells: their probes prepare these questions, and
    the children that answer them are forked afterwards."""

    questions: tuple[Question, ...]
    task_folders: Mapping[str, Path]
    cache: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a child leaves for one question, or for a job without questions: an answer, a failure, or neither where nothing was
    asked and all went well. `phases` were measured meanwhile; `simulated`: the engine holds the weights dequantized."""

    answer: Answer | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    phases: tuple[Phase, ...] = ()
    simulated: bool = False


def write_job(folder: Path, job: Job) -> None:
    (folder / "job.json").write_text(json.dumps(asdict(job), ensure_ascii=False, default=os.fspath), encoding="utf-8")


def read_job(folder: Path) -> Job:
    return decode(Job, json.loads((folder / "job.json").read_text(encoding="utf-8")))


def write_preparation(path: Path, preparation: Preparation) -> None:
    path.write_text(json.dumps(asdict(preparation), ensure_ascii=False, default=os.fspath), encoding="utf-8")


def read_preparation(path: Path) -> Preparation:
    return decode(Preparation, json.loads(path.read_text(encoding="utf-8")))


def write_outcome(folder: Path, outcome: Outcome, index: int = 0) -> None:
    """Complete or not there. The parent reads it at once and stores it, so it need not outlive a power cut."""
    write_atomically(_outcome(folder, index), json.dumps(to_json(outcome), ensure_ascii=False, allow_nan=False))


def read_outcome(folder: Path, *, phase: str, index: int = 0) -> Outcome | None:
    """What a child left; None when it left nothing. What is no outcome (a probe that puts a text where a number belongs) is a
    failure of that question in the `phase` given, and says where it is wrong."""
    try:
        data = json.loads(_outcome(folder, index).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    try:
        return decode(Outcome, data)
    except DecodeError as error:
        return Outcome(failure=Failure(kind="error", phase=phase, message=f"the child left what is no outcome: {error}"))


def stored_baseline_name(question: Question) -> str:
    """Two questions with the same name share the baseline's stored answers. Answers through the cache are others than those of
    one pass."""
    name = f"{question.subject}|{question.options['corpus_digest']}|{question.options['window']}|{question.options['tokens']}"
    definition = str(question.options.get("definition", ""))
    return name if split_of(definition) is None else f"{name}|{definition}"


def outbox(folder: Path) -> Path:
    """Where a child leaves raw samples."""
    return folder / "outbox"


def log(folder: Path) -> Path:
    """All that a child said."""
    return folder / "log.txt"


def _outcome(folder: Path, index: int) -> Path:
    return folder / f"outcome-{index}.json"
