"""What a suite asks of its probes: corpora, tasks and shapes, checked, with the digests of what they name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from harness import plugins, reference
from harness.errors import BadInput, UnknownName
from harness.kv import default_split
from harness.metrics.sequential import VerdictRequest
from harness.models import corpora
from harness.models.corpora import Corpus
from harness.probes import PROBES, perplexity
from harness.probes.prompting import Prompting
from harness.probes.requests import (
    CorpusRequest,
    GenerationShape,
    ProbeRequests,
    ServingRequest,
    TaskRequest,
)
from harness.spec import Question
from harness.suite import kv_axis
from harness.suite.file import DEFAULT_PROBES, Budget, CorpusEntry, SuiteFile, TaskEntry, unique


def requests_of(written: SuiteFile, texts: Mapping[str, Corpus]) -> ProbeRequests:
    """All that the suite asks. `texts`: its corpora by name, as `texts_of` gives them."""
    suite = written.suite
    return ProbeRequests(
        corpora=tuple(_corpora(written, texts)),
        tasks=tuple(_tasks(written)),
        latency=tuple(
            GenerationShape(prompt=prompt, new=suite.latency.new, batch=batch)
            for prompt, batch in itertools.product(suite.latency.prompt, suite.latency.batch)
        ),
        latency_budget_seconds=suite.latency.budget,
        memory=GenerationShape(prompt=suite.memory.prompt, new=suite.memory.new, batch=suite.memory.batch),
        serving=ServingRequest(
            concurrency=tuple(suite.serving.concurrency),
            prompt=suite.serving.prompt,
            new=suite.serving.new,
            requests=suite.serving.requests,
            budget=suite.serving.budget,
        ),
        verdict=_verdict(written, suite.budget),
    )


def questions_of(written: SuiteFile, requests: ProbeRequests) -> tuple[Question, ...]:
    """The questions of all probes that the suite names, in its order."""
    for name in written.suite.probes:
        if name not in PROBES:
            raise plugins.unknown("probe", name, written.where("probes"))
    return tuple(question for name in written.suite.probes for question in PROBES[name].questions(requests))


def without_questions(written: SuiteFile, requests: ProbeRequests) -> list[str]:
    """A line for each probe that the suite names and that has nothing to ask in it. BadInput where no probe has."""
    named = written.suite.probes if "probes" in written.suite.model_fields_set else []
    silent = [name for name in named if not PROBES[name].questions(requests)]
    if not silent:
        return []
    lacking = "; ".join(f"{name} needs {_NEEDS[name]}" for name in silent if name in _NEEDS)
    if len(silent) == len(named):
        remedy = lacking or f"name another one: probes: [{', '.join(DEFAULT_PROBES[:2])}]"
        raise BadInput(f"{written.where('probes')}: the suite asks nothing: {', '.join(silent)}: no questions; {remedy}")
    return [f"probe {name!r} has no questions in this suite{f': it needs {_NEEDS[name]}' * (name in _NEEDS)}" for name in silent]


_NEEDS = {
    "perplexity": "corpora: [{path: ./my-text.txt}]",
    "divergence": "corpora: [{path: ./my-text.txt}]",
    "tasks": "tasks: [arc_easy]",
}
"""What a suite has to hold for a probe to ask anything."""


def texts_of(written: SuiteFile) -> dict[str, Corpus]:
    """Where the texts of the suite's corpora are, by name, in its order."""
    texts: dict[str, Corpus] = {}
    for index, entry in enumerate(_corpus_entries(written)):
        where = written.where("corpora", index)
        source = corpora.corpus(entry.model_dump(), written.folder, "measure", where)
        name = entry.name or source.name
        if name in texts:
            raise BadInput(f"{where}: two corpora are called {name!r}; give one a `name`")
        texts[name] = source
    return texts


def _corpus_entries(written: SuiteFile) -> list[CorpusEntry]:
    return [CorpusEntry(corpus=entry) if isinstance(entry, str) else entry for entry in written.suite.corpora]


def _corpora(written: SuiteFile, texts: Mapping[str, Corpus]) -> list[CorpusRequest]:
    """The corpora in suite order. One whose definition the suite leaves open stands there again where it has the axis `kv`, whose
    cells are scored through the cache."""
    asked: list[CorpusRequest] = []
    for index, request in enumerate(_as_written(written, texts)):
        asked.append(request)
        if not request.open or not kv_axis.said(written):
            continue
        cached = replace(request, definition=default_split(request.window).name)
        if why := perplexity.unknown(cached.definition, cached.window):
            raise BadInput(f"{written.where('corpora', index)}: corpus {cached.name!r}: {why}")
        asked.append(cached)
    return asked


def _as_written(written: SuiteFile, texts: Mapping[str, Corpus]) -> Iterator[CorpusRequest]:
    for index, (entry, (name, source)) in enumerate(zip(_corpus_entries(written), texts.items(), strict=True)):
        definition = entry.definition or f"gptq-{entry.window}"
        if why := perplexity.unknown(definition, entry.window):
            raise BadInput(f"{written.where('corpora', index, 'definition')}: corpus {name!r}: {why}")
        yield CorpusRequest(
            name=name,
            window=entry.window,
            tokens=entry.tokens,
            definition=definition,
            digest=source.place if source.path is None else corpora.digest(Path(source.path)),
            open=entry.definition is None,
        )


def _verdict(written: SuiteFile, budget: Budget) -> VerdictRequest | None:
    """The settings of questions that are asked until a verdict; None where all items are scored. BadInput for settings that
    nothing uses: whoever wrote them expects a verdict."""
    suite = written.suite
    settings = suite.model_fields_set & {"margin", "alpha", "beta"}
    budgets = {suite.budget, *(t.budget for t in suite.tasks if isinstance(t, TaskEntry))}
    if settings and "auto" not in budgets:
        name = min(settings)
        raise BadInput(
            f"{written.where(name)}: `{name}` is for scoring until a verdict, and all items are scored here; add budget: auto"
        )
    return None if budget == "fixed" else VerdictRequest(margin=suite.margin, alpha=suite.alpha, beta=suite.beta)


def _tasks(written: SuiteFile) -> Iterator[TaskRequest]:
    from harness.probes.tasks import hub_data, task_digest

    suite = written.suite
    _check_conversation(written)
    if not suite.tasks or "tasks" not in suite.probes:
        return
    names: list[str] = []
    for index, item in enumerate(suite.tasks):
        entry = TaskEntry(task=item) if isinstance(item, str) else item
        folder = _task_folder(entry, written, index)
        names.append(entry.task)
        _check_shots(entry, folder, written.where("tasks", index, "shots"))
        yield TaskRequest(
            name=entry.task,
            shots=entry.shots,
            limit=entry.limit if entry.limit is not None else suite.limit,
            folder=None if folder is None else str(folder),
            digest=task_digest(entry.task, folder),
            verdict=_verdict(written, entry.budget or suite.budget),
            data_sets=tuple(hub_data(entry.task, folder)),
            prompting=_prompting(entry, written, index),
        )
    unique(names, f"{written.where('tasks')}: task")


def _check_shots(entry: TaskEntry, folder: Path | None, place: str) -> None:
    """BadInput for more examples than a task has whose data lie here."""
    from harness.probes import taskshots

    if not entry.shots or folder is None:
        return
    most = taskshots.examples(entry.task, folder)
    if most is not None and entry.shots > most:
        raise BadInput(
            f"{place}: task {entry.task!r} has {most} examples to show, and shots: {entry.shots} asks for more; "
            f"write shots: {min(5, most)}"
        )


def _prompting(entry: TaskEntry, written: SuiteFile, index: int) -> Prompting:
    """How the task's prompts are put to a model: what its entry says, else what the suite says. With a template, examples are
    turns unless `multiturn` is false (lm-eval's default). BadInput for `multiturn: true` where there is no conversation."""
    suite = written.suite
    template = suite.chat_template if entry.chat_template is None else entry.chat_template
    multiturn = suite.multiturn if entry.multiturn is None else entry.multiturn
    system = suite.system if entry.system is None else entry.system
    if entry.multiturn and not template:
        raise BadInput(f"{written.where('tasks', index, 'multiturn')}: task {entry.task!r}: {_NO_CONVERSATION}")
    return Prompting(
        template=template, multiturn=bool(template) and multiturn is not False, system=system if (system or "").strip() else None
    )


_NO_CONVERSATION = (
    "multiturn: true makes the examples turns of a conversation, and without chat_template there is none; add chat_template: true"
)


def _check_conversation(written: SuiteFile) -> None:
    """BadInput for settings of the suite on how tasks are asked that no task of it uses: whoever wrote them expects otherwise."""
    suite = written.suite
    settings = [
        name for name in ("chat_template", "system", "multiturn") if name in suite.model_fields_set and getattr(suite, name)
    ]
    if settings and not suite.tasks:
        name = settings[0]
        raise BadInput(
            f"{written.where(name)}: `{name}` says how tasks are asked, and this suite has none; add tasks: [arc_easy], or take "
            "it out"
        )
    chats = [suite.chat_template, *(task.chat_template for task in suite.tasks if isinstance(task, TaskEntry))]
    if suite.multiturn and not any(chats):
        raise BadInput(f"{written.where('multiturn')}: {_NO_CONVERSATION}")


def _task_folder(entry: TaskEntry, written: SuiteFile, index: int) -> Path | None:
    """The folder with the task's YAML; None for a task of lm-eval. BadInput or UnknownName where there is no such task."""
    from harness.probes.tasks import known_tasks

    where, folder = written.where("tasks", index), None
    if entry.include is not None:
        folder = (written.folder / Path(entry.include).expanduser()).resolve()
        if not folder.is_dir():
            raise BadInput(f"{where}: no such folder of tasks: {folder}; correct `include`")
    elif entry.task in (*reference.TASKS, *reference.LONG_TASKS):
        folder = reference.TASKS_DIR
    known = known_tasks(folder)
    if entry.task not in known:
        raise UnknownName("task", entry.task, {*known, *reference.TASKS, *reference.LONG_TASKS}, where)
    return folder
