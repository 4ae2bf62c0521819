"""What a suite asks of the probes, already checked: corpora, tasks, shapes. Each probe makes its questions of it."""

from __future__ import annotations

from dataclasses import dataclass

from harness.metrics.sequential import VerdictRequest
from harness.probes.prompting import AS_THEY_STAND, Prompting
from harness.spec import Json, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRequest:
    """A text to score in windows of `window` tokens, `tokens` of them at most (None: all). `digest` is that of the text, or
    `hub:NAME` until the text is here; `definition` names how a perplexity is computed. `open`: the suite does not name it, and it
    depends on the cell's way of running."""

    name: str
    window: int
    tokens: int | None
    definition: str
    digest: str
    open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """A task of lm-eval, with the task's own shots where `shots` is None and all its items where `limit` is. `folder` holds its
    YAML where it does not come with lm-eval; `digest` is that of the task. `verdict` is None where all items are scored.
    `data_sets` are those of the hub that it is made of, as `taskdata.hub_data` writes them. `prompting`: how its prompts are put
    to a model."""

    name: str
    shots: int | None
    limit: int | None
    folder: str | None
    digest: str
    verdict: VerdictRequest | None
    data_sets: tuple[str, ...] = ()
    prompting: Prompting = AS_THEY_STAND


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationShape:
    """`batch` sequences of `prompt` tokens, each continued by `new` tokens."""

    prompt: int
    new: int
    batch: int

    @property
    def name(self) -> str:
        return f"pp{self.prompt} tg{self.new} b{self.batch}"

    def options(self) -> dict[str, Json]:
        """What a question's options say of it; `shape_of` reads it."""
        return {"prompt": self.prompt, "new": self.new, "batch": self.batch}


def shape_of(question: Question) -> GenerationShape:
    options = question.options
    return GenerationShape(prompt=int(options["prompt"]), new=int(options["new"]), batch=int(options["batch"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRequest:
    """`concurrency` clients at once, for each of its numbers; each asks `prompt` + `new` tokens again and again until `requests`
    are answered or `budget` seconds are spent."""

    concurrency: tuple[int, ...]
    prompt: int
    new: int
    requests: int
    budget: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequests:
    """All that a suite asks. `verdict` is the suite's own; a task may have another, or none."""

    corpora: tuple[CorpusRequest, ...] = ()
    tasks: tuple[TaskRequest, ...] = ()
    latency: tuple[GenerationShape, ...] = ()
    latency_budget_seconds: float = 30.0
    memory: GenerationShape = GenerationShape(prompt=512, new=64, batch=1)
    serving: ServingRequest = ServingRequest(concurrency=(), prompt=128, new=64, requests=24, budget=60.0)
    verdict: VerdictRequest | None = None
