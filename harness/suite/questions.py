"""What a suite asks of its probes: corpora, tasks, latency shapes, as plain checked data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import reference
from harness.errors import BadInput, UnknownName
from harness.models import corpora
from harness.models.corpora import Corpus
from harness.probes import sequential
from harness.probes.base import Wishes
from harness.spec import Json
from harness.suite.file import Budget, CorpusEntry, Suite, TaskEntry, unique


def wishes_of(suite: Suite, base: Path, where: Any, texts: dict[str, Corpus]) -> Wishes:
    return Wishes(
        corpora=list(_corpora(suite, base, where, texts)),
        tasks=list(_tasks(suite, base, where)),
        latency=[
            {"prompt": p, "new": suite.latency.new, "batch": b}
            for p, b in itertools.product(suite.latency.prompt, suite.latency.batch)
        ],
        memory=suite.memory.model_dump(),
        serving=suite.serving.model_dump(),
        latency_budget_seconds=suite.latency.budget,
        sequential=_sequential(suite, suite.budget, where),
    )


def _sequential(suite: Suite, budget: Budget, where: Any) -> dict[str, Json] | None:
    """The settings of questions that are asked until a verdict; None where all items are scored. BadInput for settings that
    nothing uses: whoever wrote them expects a verdict."""
    given = suite.model_fields_set & {"margin", "alpha", "beta"}
    budgets = {suite.budget, *(t.budget for t in suite.tasks if isinstance(t, TaskEntry))}
    if given and "auto" not in budgets:
        name = sorted(given)[0]
        raise BadInput(f"{where(name)}: `{name}` is for scoring until a verdict, and all items are scored here; add budget: auto")
    return None if budget == "fixed" else {"margin": suite.margin, "alpha": suite.alpha, "beta": suite.beta}


def _corpora(suite: Suite, base: Path, where: Any, texts: dict[str, Corpus]) -> Iterator[dict[str, Json]]:
    for index, wish in enumerate(suite.corpora):
        entry = CorpusEntry(corpus=wish) if isinstance(wish, str) else wish
        source = corpora.corpus(entry.model_dump(), base, "measure", where("corpora", index))
        name = entry.name or source.name
        if name in texts:
            raise BadInput(f"{where('corpora', index)}: two corpora are called {name!r}; give one a `name`")
        texts[name] = source
        path = None if source.path is None else Path(source.path)
        yield {
            "name": name,
            "window": entry.window,
            "tokens": entry.tokens,
            "definition": entry.definition or f"gptq-{entry.window}",
            "digest": f"hub:{source.name}" if path is None else corpora.digest(path),
        }


def _tasks(suite: Suite, base: Path, where: Any) -> Iterator[dict[str, Json]]:
    from harness.probes.tasks import known_tasks, task_digest

    if not suite.tasks or "tasks" not in suite.probes:
        return
    seen: list[str] = []
    for index, wish in enumerate(suite.tasks):
        entry = TaskEntry(task=wish) if isinstance(wish, str) else wish
        folder: Path | None = None
        if entry.include is not None:
            folder = (base / Path(entry.include).expanduser()).resolve()
            if not folder.is_dir():
                raise BadInput(f"{where('tasks', index)}: no such folder of tasks: {folder}; correct `include`")
        elif entry.task in reference.TASKS:
            folder = reference.TASKS_DIR
        known = known_tasks(folder)
        if entry.task not in known:
            raise UnknownName("task", entry.task, {*known, *reference.TASKS}, where("tasks", index))
        seen.append(entry.task)
        yield {
            "name": entry.task,
            "shots": entry.shots,
            "limit": entry.limit if entry.limit is not None else suite.limit,
            "folder": None if folder is None else str(folder),
            "digest": task_digest(entry.task, folder),
            sequential.KEY: _sequential(suite, entry.budget or suite.budget, where),
        }
    unique(seen, f"{where('tasks')}: task")
