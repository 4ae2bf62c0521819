"""The fork server: imports once, then one child per job.

``python -m harness.child.serve MODULES`` imports the named modules once (torch and transformers cost seconds), then forks one
child per job that a line of standard input asks for, or has a branch fork it (`harness.child.branch`). All of them tell the
parent what happens by lines on one private pipe (`harness.child.events`). What an outcome says lies in a file of the job's
folder, written before its line is sent; standard output is the child's log and is never parsed. A child lives in a session of
its own, so that the parent can kill it with everything it started. It dies with the process that forked it, which dies with the
parent.

This file and what it imports at the top run inside foreign environments that have none of our dependencies.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from harness import plugins
from harness.child import events, job
from harness.child.branch import Branch
from harness.child.events import Event, Exited, JobRequest, Ready, Started
from harness.child.worker import run_job
from harness.forking import die_with_parent, threads
from harness.probes import PROBES
from harness.spec import Question

Tell = Callable[[Event], None]


def serve(modules: list[str]) -> None:
    """The fork server's loop; ends when standard input does."""
    die_with_parent()
    pipe = os.dup(1)
    os.dup2(2, 1)  # standard output joins the log

    def tell(event: Event) -> None:
        os.write(pipe, events.event_line(event))

    missing = plugins.from_parent(os.environ.pop(plugins.CHILDS, ""))
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken optional library is its cells' failure, not the server's
            missing[name] = f"{type(error).__name__}: {error}"[:500]
    gc.collect()
    gc.freeze()  # forked children must not copy pages only because the collector touches them
    tell(Ready(missing=missing, threads=threads(), cuda=_cuda()))

    def jobs(lines: Iterable[str], begin: Callable[[], None], done: Callable[[], None]) -> None:
        for line in lines:
            child = os.fork()
            if child == 0:
                _child(events.read_request(line).job, tell, begin)
            tell(Started(pid=child))
            _, status = os.waitpid(child, 0)
            tell(Exited(code=os.waitstatus_to_exitcode(status)))
            done()

    branches: dict[tuple[str, ...], Branch] = {}
    for line in sys.stdin:
        prepare = _shared_work(events.read_request(line))
        key = tuple(prepare)
        if prepare and key not in branches:
            branches[key] = Branch(prepare, jobs, lambda pid: tell(Started(pid=pid)))
        if not prepare or not branches[key].usable:
            jobs([line], _nothing, _nothing)
        elif not branches[key].run(line):
            tell(Exited(code=branches.pop(key).close()))
    for branch in branches.values():
        branch.close()


def _nothing() -> None:
    pass


def _shared_work(request: JobRequest) -> dict[str, Callable[[], object]]:
    """What a branch does before it forks children for such requests, by the name that the log gives it."""
    work: dict[str, Callable[[], object]] = {name: partial(importlib.import_module, name) for name in request.branch_modules}
    if request.prepare is not None:
        work[str(request.prepare)] = partial(_prepare, request.prepare)
    return work


def _prepare(path: Path) -> None:
    """Has the probes do once what every child that answers one of these questions would do before it looks at its model."""
    preparation = job.read_preparation(path)
    by_probe: dict[str, list[tuple[Question, Path | None]]] = {}
    for question in preparation.questions:
        by_probe.setdefault(question.probe, []).append((question, preparation.task_folders.get(question.subject)))
    for probe, questions in by_probe.items():
        prepare = PROBES[probe].prepare
        if prepare is not None:
            prepare(questions, preparation.cache)


def _child(folder: Path, tell: Tell, begin: Callable[[], None]) -> None:
    code = 70
    try:
        os.setsid()
        die_with_parent()
        os.chdir(folder)  # libraries write logs where they stand
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        log = os.open(job.log(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        begin()
        run_job(folder, job.read_job(folder), tell)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # no atexit handlers of libraries: their threads did not survive the fork


def _cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


if __name__ == "__main__":
    if any(name.startswith("-") for name in sys.argv[1:]):
        sys.exit("usage: python -m harness.child.serve [MODULE ...]")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks the driver without starting CUDA, so that forks can
    serve(sys.argv[1:])
