"""Runs a plan: for each question that has no stored answer, makes the artifact, starts a child, and appends the record.

Every question of every planned cell ends as exactly one record: measurements or a typed failure. A record is stored the
moment its outcome exists; a stop at any point loses at most the question being answered, and the same command goes on from
there. A crash costs the probe that crashed; the cell's other questions are asked again in a fresh child.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import plugins
from harness.artifact import verified
from harness.child import job as jobs
from harness.child.bound import bounded, complete, rounding
from harness.child.events import Answered, Begun, Event
from harness.child.failures import Exit, failure_of
from harness.child.job import BaselineItems, Outcome
from harness.costs import CellCost
from harness.forecast import history
from harness.forecast.estimate import Forecast, forecast
from harness.measure import machine, rate
from harness.probes import PROBES, sequential
from harness.run import identity, left
from harness.run.account import Account
from harness.run.observer import Observer, Silent
from harness.run.only import APART, narrow
from harness.run.own_servers import check_permission
from harness.run.recorder import Recorder, now
from harness.run.stages import Stages
from harness.run.workspace import check_disk, sweep
from harness.spec import Failure, Question, Served
from harness.suite.plan import Plan, PlannedCell


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run, none of it part of any question: where results and cache go, whether to begin anew or retry failures. `only`:
    some of the plan's questions by themselves (run/only.py); their run file goes into `apart`, by default a folder in the suite's
    own, and never among whole runs. `another`: goes on with a run that was interrupted, and begins a new one where the last is
    finished, so that nights follow each other. `paranoid`: no file's hash is taken from memory."""

    results: Path
    cache: Path
    fresh: bool = False
    retry_failed: bool = False
    threads: int | None = None
    only: tuple[str, ...] = ()
    apart: Path | None = None
    another: bool = False
    paranoid: bool = False

    def folder(self, plan: Plan) -> Path:
        """Where the run file goes."""
        own = self.results / plan.suite.name
        return (self.apart or own / APART) if self.only else own


def run(plan: Plan, settings: Settings, observer: Observer | None = None) -> Path:
    """Runs (or goes on with) a plan; returns the path of the run file.

    BadInput before anything starts when inputs cannot be had or the disk is too small; everything after that is a record."""
    cache = settings.cache.expanduser().resolve()
    watching = observer or Silent()
    check_permission(plan)
    if not settings.only:
        check_disk(plan, cache)
    sweep(cache)
    if settings.paranoid:
        identity.forget(cache)
    inputs = identity.gather(plan, cache, tell=watching.fetching)
    if settings.only:
        inputs = narrow(inputs, settings.only)
        check_disk(inputs.plan, cache)
    with _Pipeline(inputs, settings, watching) as pipeline:
        return pipeline.run()


class _Pipeline:
    """One invocation: takes each cell from its artifact to the records of all its questions."""

    def __init__(self, inputs: identity.Inputs, settings: Settings, observer: Observer) -> None:
        self.inputs = inputs
        self.plan = inputs.plan
        self.observer = observer
        self.settings = settings
        self.without_energy: set[str] = set()  # the reasons that were told
        threads = settings.threads or len(machine.affinity())
        self.stages = Stages(inputs, observer, threads=threads)
        self.recorder = Recorder(
            inputs,
            self.stages.servers,
            observer,
            context=identity.context(self.plan, packages=inputs.packages, threads=threads),
            folder=settings.folder(self.plan),
            fresh=settings.fresh,
            another=settings.another,
        )

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.stages.close()
        self.recorder.close()

    def run(self) -> Path:
        self.recorder.resume()
        todo = [(p, self.recorder.unanswered(p, retry_failed=self.settings.retry_failed)) for p in self.plan.cells]
        planned_questions = sum(len(p.questions) for p in self.plan.cells)
        unanswered = sum(len(questions) for _, questions in todo)
        expected = self._forecast([questions for _, questions in todo])
        self.observer.begin(
            run=self.recorder.path, questions=planned_questions, stored=planned_questions - unanswered, forecast=expected
        )
        for refused in plugins.load().refused:
            self.observer.note(str(refused))
        self.stages.servers.prepare = self.stages.jobs.write_preparation(todo)
        for (planned, questions), cell in zip(todo, expected.cells, strict=True):
            if questions:
                self.stages.account = Account(planned, questions, cell)
                try:
                    self._measure(planned, questions)
                finally:
                    self.stages.own.stop()
                self.recorder.cost(self._cost(planned))
        self.recorder.end(questions=planned_questions, asked=unanswered > 0)
        return self.recorder.path

    def _forecast(self, questions: Sequence[Sequence[Question]]) -> Forecast:
        """What is left will take, from what this machine did before."""
        context = self.recorder.context
        here = history.Here(host=context.host, device=context.device.split(":")[0], threads=context.threads)
        known = history.read(self.settings.results, here)
        for unread in known.unread:
            self.observer.note(f"not in the forecast: {unread}")
        todo = left.todo(self.plan, questions, self.inputs)
        return forecast(todo, known, device=self.plan.device, rate=rate.for_device(self.plan.device))

    def _cost(self, planned: PlannedCell) -> CellCost:
        """What the cell that was just measured took."""
        artifact = self.inputs.artifact(planned.cell)
        asked = [q for q in planned.questions if PROBES[q.probe].needs_stored_baseline]
        kept = {self.inputs.stored_baseline(planned.cell, q) for q in asked} if planned.baseline else set()
        kept |= {self.inputs.bound(planned.cell)} if planned.baseline else set()
        return self.stages.account.close(artifact=artifact if artifact.is_dir() else None, kept=sorted(kept))

    def _measure(self, planned: PlannedCell, questions: Sequence[Question]) -> None:
        artifact = self.stages.artifact(planned)
        if isinstance(artifact, Failure):
            self.recorder.fail(planned, questions, artifact)
            return
        self.recorder.list_artifact(planned.cell)
        if not planned.baseline:
            self._bound(planned, questions)
            self._store_baselines(planned, [q for q in questions if PROBES[q.probe].needs_stored_baseline])
        answerable, items = self._paired(planned, questions)
        for group in _groups(answerable, apart=isinstance(planned.cell.origin, Served) and bool(planned.cell.origin.serve)):
            probe = PROBES[group[0].probe]
            timed = probe.isolation != "shared" and probe.needs_model
            if probe.isolation == "memory":
                self.stages.own.anew(planned)
            wrong = self._verify(planned, artifact) if timed else None
            if wrong is None:
                self._ask(planned, artifact, group, items)
            else:
                self.recorder.fail(planned, group, wrong)

    def _verify(self, planned: PlannedCell, artifact: Path) -> Failure | None:
        """The reload check, once per artifact and way of running, before anything is timed: a fresh child compares answers."""
        if verified(artifact, planned.cell.running).is_file():
            return None
        self.observer.doing(planned.cell, "reload check")
        return self.stages.run("verify", planned, artifact, phase="reload")

    def _store_baselines(self, planned: PlannedCell, questions: Sequence[Question]) -> None:
        """Has the baseline's answers stored when a cell will be compared with them and they are not in the cache. Where
        the baseline fails, the cell's own question says so."""
        baseline = self.inputs.baseline(planned.cell)
        for question in questions:
            if self.inputs.stored_baseline(planned.cell, question).is_dir():
                continue
            artifact = self.stages.artifact(baseline)
            if isinstance(artifact, Failure):
                return
            self.observer.doing(baseline.cell, f"stored baseline {question.subject}")
            wrong = self.stages.run("baseline", baseline, artifact, phase="baseline", questions=[question])
            if wrong is not None:
                self.observer.note(f"{wrong.kind}: {baseline.cell.name}: stored baseline {question.subject}: {wrong.message}")

    def _bound(self, planned: PlannedCell, questions: Sequence[Question]) -> None:
        """Has the baseline leave its answers to the fixed tokens where it has not (its own questions were answered before) and
        the cell loads a model. Where it fails, cells are not held against it, and their records say nothing of it."""
        baseline = self.inputs.baseline(planned.cell)
        if not bounded(planned.cell, baseline.cell) or not any(PROBES[q.probe].needs_model for q in questions):
            return
        folder = self.inputs.bound(planned.cell)
        if complete(folder, [each for each in [rounding(planned.cell)] if each is not None]):
            return
        artifact = self.stages.artifact(baseline)
        if isinstance(artifact, Failure):
            return
        self.observer.doing(baseline.cell, "fixed tokens")
        wrong = self.stages.run("bound", baseline, artifact, phase="answers")
        if wrong is not None:
            self.observer.note(f"{wrong.kind}: {baseline.cell.name}: fixed tokens: {wrong.message}")

    def _paired(self, planned: PlannedCell, questions: Sequence[Question]) -> tuple[list[Question], Mapping[str, BaselineItems]]:
        """The questions that can be answered, and the baseline's items of those that are asked until a verdict. Where the
        baseline has none, the question fails at once: scoring all its items instead would answer another question."""
        answerable: list[Question] = []
        items: dict[str, BaselineItems] = {}
        for question in questions:
            if sequential.settings(question) is not None:
                theirs = self.recorder.baseline_items(planned, question)
                if isinstance(theirs, str):
                    baseline = self.inputs.baseline(planned.cell).cell.name
                    message = (
                        f"budget: auto pairs each item with the baseline's answer, and {baseline} has none to "
                        f"{question.subject!r}: {theirs}; mend that and ask both again with --retry-failed, or have all items "
                        "scored with budget: fixed"
                    )
                    self.recorder.fail(planned, [question], Failure(kind="unsupported", phase="baseline", message=message))
                    continue
                items[question.subject] = theirs
            answerable.append(question)
        return answerable, items

    def _ask(
        self, planned: PlannedCell, artifact: Path, questions: Sequence[Question], items: Mapping[str, BaselineItems]
    ) -> None:
        """Asks the questions of one isolation group, in as many children as crashes make necessary."""
        waiting = list(questions)
        while waiting:
            failed = self.stages.own.up(planned)
            if failed is not None:
                self.recorder.fail(planned, waiting, failed)
                return
            job = self.stages.jobs.write("probe", planned, artifact, waiting, items)
            watch = _Watch(waiting)

            def on_event(event: Event, job: Path = job, watch: _Watch = watch) -> None:
                if isinstance(event, Begun):
                    question = watch.begin(event.index)
                    doing = f"{question.probe} {question.subject}".strip()
                    self.observer.doing(planned.cell, doing, self.stages.account.expected(question.probe, question))
                elif isinstance(event, Answered):
                    question = watch.answer(event.index)
                    outcome = self.recorder.store(
                        planned,
                        question,
                        job,
                        index=event.index,
                        started_at=watch.started_at,
                        blamed=self.stages.own.blamed,
                    )
                    self.stages.account.answered(question, outcome)
                    self._tell_energy(outcome)

            timeout = self.plan.suite.timeout
            ended = self.stages.servers.run(planned.cell, job, timeout, on_event)
            self.stages.note_starts()
            waiting = [q for i, q in enumerate(waiting) if i not in watch.answered]
            stopped_on_purpose = watch.answered and watch.current() is None and ended == Exit(code=0)
            if waiting and not stopped_on_purpose:
                broken = watch.current() or waiting[0]
                failure = failure_of(None, ended, log=jobs.log(job), phase=broken.probe, timeout=timeout)
                failure = self.stages.own.blamed(planned, failure)
                self.stages.own.anew(planned)  # it may still be at what nobody waits for any more
                outcome = Outcome(failure=failure, seconds=watch.seconds())
                self.stages.account.answered(broken, outcome)
                self.recorder.append(planned, broken, outcome, started_at=watch.started_at)
                waiting.remove(broken)

    def _tell_energy(self, outcome: Outcome) -> None:
        """Says once, and not with each cell, why no energy is measured."""
        energy = outcome.answer.facts.get("energy") if outcome.answer is not None else None
        reason = energy.get("unsupported") if isinstance(energy, dict) else None
        if reason and reason not in self.without_energy:
            self.without_energy.add(reason)
            self.observer.note(f"no energy (unsupported): {reason}")


class _Watch:
    """Which question of a child is being answered, and since when."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = tuple(questions)
        self.answered: list[int] = []
        self._index: int | None = None
        self._begun = time.monotonic()
        self.started_at = now()

    def begin(self, index: int) -> Question:
        self._index, self._begun, self.started_at = index, time.monotonic(), now()
        return self.questions[index]

    def answer(self, index: int) -> Question:
        self.answered.append(index)
        return self.questions[index]

    def current(self) -> Question | None:
        """The question that was begun and not answered."""
        return None if self._index is None or self._index in self.answered else self.questions[self._index]

    def seconds(self) -> float:
        return time.monotonic() - self._begun


def _groups(questions: Sequence[Question], *, apart: bool = False) -> list[list[Question]]:
    """Questions that may share a child, the cheap and safe ones first: all shared probes; each memory question in a process that
    has done nothing before; all latency shapes, on the model that the last of these has loaded; a server by itself. `apart`: each
    question by itself, because a server that dies of one is started anew for the next."""
    shared = [q for q in questions if PROBES[q.probe].isolation == "shared"]
    memory = [[q] for q in questions if PROBES[q.probe].isolation == "memory"]
    serving = [q for q in questions if PROBES[q.probe].own_server]
    latency = [q for q in questions if PROBES[q.probe].isolation == "latency" and not PROBES[q.probe].own_server]
    alone = [*memory[:-1], [*(memory[-1] if memory else []), *latency], serving]
    groups = [group for group in (shared, *alone) if group]
    return [[question] for group in groups for question in group] if apart else groups
