"""Builds a suite's task requests once, in a branch of the fork server, so that no cell builds them again."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.forking import die_with_parent, let_go
from harness.probes import prompting
from harness.probes.lm_eval_tasks import LoadedTasks, configure, load, named, seed, templates
from harness.probes.prompting import Prompting, prompting_of
from harness.spec import DATA_SETS, Question, digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREPARE_SECONDS = 60.0
"""No further task is begun after that: a run should begin, and a branch that takes twice as long is given up."""

PREPARED: dict[str, LoadedTasks] = {}
"""Tasks built before this process was forked, each for one answer: its requests carry what a model said. Those that are asked in
the words of a model's chat template are loaded, and built in the child that has the model's tokenizer."""


def prepare(
    questions: Sequence[tuple[Question, Path | None]], cache: Path, *, clock: Callable[[], float] = time.monotonic
) -> None:
    """Loads the tasks of these questions and builds their requests where they depend on no model: each cell would do the
    same anew. A task that cannot be had is left to the children, whose records say why."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # it brings no types

    tqdm.monitor_interval = 0  # its monitor is a thread that stays
    end = clock() + PREPARE_SECONDS

    def late() -> bool:
        return clock() > end

    with let_go():  # `datasets` looks at files in threads
        _prepare(questions, cache, late)


def _prepare(questions: Sequence[tuple[Question, Path | None]], cache: Path, late: Callable[[], bool]) -> None:
    if not _fill_cache(questions, cache, late):
        return
    for question, folder in questions:
        if late():
            break
        # What is wrong with a task is said by the child that is asked for it.
        with contextlib.suppress(Exception), templates(sandboxed=folder is not None):
            tasks, asked = configured(question, folder, cache), prompting_of(question)
            if not asked.template:
                seed()
                build_requests(tasks, asked, None, question.options["limit"])
            PREPARED[key_of(question, folder)] = tasks


def build_requests(
    tasks: LoadedTasks, asked: Prompting, tokenizer: PreTrainedTokenizerBase | None, limit: int | None
) -> list[str]:
    """Builds all requests of configured tasks, which lm-eval's `evaluate` then finds built; returns what is to be said of them.
    `tokenizer`: the model's, where its chat template is asked for."""
    with named(tasks):
        notes = prompting.build(tasks["tasks"], asked, tokenizer, limit)
    for task in tasks["tasks"].values():
        task.build_all_requests = functools.partial(_as_built, limit)
    return notes


def _as_built(built: int | None, *, limit: int | None = None, **_: object) -> None:
    """Replaces a task's `build_all_requests` after the first build."""
    if limit != built:
        raise AssertionError(f"requests of {built} items were built, {limit} are asked for")


def _fill_cache(questions: Sequence[tuple[Question, Path | None]], cache: Path, late: Callable[[], bool]) -> bool:
    """Has a child read the data of the tasks, which starts threads where it is not in `datasets`' cache yet: they would not be in
    this process's children, and what is in the cache is mapped without any. False where that takes too long (the hub) or
    crashes."""
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            for question, folder in questions:
                with contextlib.suppress(Exception):  # as above
                    configured(question, folder, cache)
        finally:
            os._exit(0)
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if late():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.01)
    return ended[1] == 0


def key_of(question: Question, folder: Path | None) -> str:
    return digest({"options": question.options, "folder": None if folder is None else str(folder)})


def configured(question: Question, folder: Path | None, cache: Path) -> LoadedTasks:
    shots = question.options["shots"]
    tasks = load(str(question.options["task"]), folder, cache / "datasets", shots, question.options.get(DATA_SETS))
    configure(tasks, shots)
    return tasks
