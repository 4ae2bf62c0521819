"""What a run stores: opens its run file, knows what is in it, and appends outcomes as records."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness import envs, store
from harness.artifact import MANIFEST
from harness.child import job as jobs
from harness.child.failures import Exit, failure_of
from harness.child.job import BaselineItems, Outcome
from harness.costs import CellCost
from harness.engines import ENGINES
from harness.errors import OlderSchema, StoreError
from harness.files import Hashes
from harness.measure import machine
from harness.methods import METHODS
from harness.probes import PROBES
from harness.proof import seal_path
from harness.run import contents
from harness.run.identity import DIGESTS, Inputs
from harness.run.observer import Observer
from harness.run.servers import Servers
from harness.spec import (
    Answer,
    Cell,
    EnvironmentRecord,
    Failure,
    Measurement,
    Question,
    Record,
    RunContext,
    RunHeader,
    Served,
    to_json,
)
from harness.suite.plan import Plan, PlannedCell


class Recorder:
    """The open run file. `stored` holds its newest records by key, what this run adds included."""

    def __init__(
        self,
        inputs: Inputs,
        servers: Servers,
        observer: Observer,
        *,
        context: RunContext,
        folder: Path,
        fresh: bool = False,
        another: bool = False,
    ) -> None:
        """Goes on with the newest run file in `folder` of the same context, or begins one; always begins one with `fresh`, and
        with `another` where that file is finished. Where the plan holds some questions of a suite only, with one that was asked
        the same questions."""
        self._inputs = inputs
        self._servers = servers
        self._observer = observer
        self.context = context
        self._context = context.digest
        asked = inputs.plan if inputs.plan.only else None
        path = None if fresh else same_context(folder, self._context, asked)
        if path is None or (another and seal_path(path).is_file()):
            path = _new_run(folder, self._context)
        header = RunHeader(run=path.stem, started_at=now(), context=context, context_digest=self._context)
        self._writer = store.Writer(path, header)
        self._ended = False
        self._listed: set[str] = set()  # digests whose package lists are in the run file
        self._listed_artifacts: set[str] = set()  # digests whose files are
        self._artifacts: dict[Path, str] = {}  # digests of artifacts, by their folders
        self.stored: dict[str, Record] = {}

    @property
    def path(self) -> Path:
        return self._writer.path

    def close(self) -> None:
        self._writer.close()

    def resume(self) -> None:
        """Takes in what the run file holds already, and appends the plan if it is another one."""
        before = store.read(self.path)
        plan = self._inputs.plan.record(self._inputs.weights)
        if to_json(before.plan) != to_json(plan):
            self._writer.plan(plan)
        self._ended = before.ended and seal_path(self.path).is_file()  # a crash may have come between the two
        self._listed.update(before.environments)
        self._listed_artifacts.update(before.artifacts)
        self.stored = {r.key: r for r in before.records if self._has_its_samples(r)}

    def unanswered(self, planned: PlannedCell, *, retry_failed: bool) -> list[Question]:
        """The cell's questions that are still to be asked; with `retry_failed` those that failed, too."""

        def stands(question: Question) -> bool:
            record = self.stored.get(self._inputs.key(planned.cell, question))
            return record is not None and not (retry_failed and record.failure is not None) and self._same_packages(record)

        return [question for question in planned.questions if not stands(question)]

    def end(self, *, questions: int, asked: bool) -> None:
        """Says that all questions have an outcome, unless the file says so already and nothing was asked since."""
        if asked or not self._ended:
            self._writer.end(ended_at=now(), questions=questions)

    def cost(self, cost: CellCost) -> None:
        """Appends what a cell took."""
        self._writer.cost(cost)
        self._observer.measured(cost)

    def list_artifact(self, cell: Cell) -> None:
        """Puts the files of the artifact that the cell is about to be measured on into the run file, with their hashes. Those of
        a server nobody has. It reads gigabytes, so it is called while nothing is measured."""
        folder = self._inputs.artifact(cell)
        if isinstance(cell.origin, Served) or folder in self._artifacts or not (folder / MANIFEST).is_file():
            return
        hashes = Hashes(self._inputs.cache / DIGESTS)
        artifact = contents.read(folder, hashes)
        hashes.keep()
        if artifact.digest not in self._listed_artifacts:
            self._writer.artifact(artifact)
            self._listed_artifacts.add(artifact.digest)
        self._artifacts[folder] = artifact.digest

    def store(
        self,
        planned: PlannedCell,
        question: Question,
        job: Path,
        *,
        index: int,
        started_at: str,
        blamed: Callable[[PlannedCell, Failure | None], Failure | None],
    ) -> Outcome:
        """Appends what a child left for the question at `index` of its job, and returns it. `blamed` may know of a failure what
        the child cannot: that its server is no more."""
        outcome = jobs.read_outcome(job, phase=question.probe, index=index)
        ended = Exit(code=0)
        failure = failure_of(outcome, ended, log=jobs.log(job), phase=question.probe, timeout=0)
        outcome = replace(outcome or Outcome(), failure=blamed(planned, failure))
        if outcome.answer is not None:
            outcome = replace(outcome, answer=self._keep_blobs(outcome.answer, jobs.outbox(job)))
        self.append(planned, question, outcome, started_at=started_at)
        return outcome

    def fail(self, planned: PlannedCell, questions: Sequence[Question], failure: Failure) -> None:
        """Appends one failure for several questions."""
        for question in questions:
            self.append(planned, question, Outcome(failure=failure), started_at=now())

    def append(self, planned: PlannedCell, question: Question, outcome: Outcome, *, started_at: str) -> None:
        """Appends an outcome as a record, after the list of packages that the record names."""
        record = Record(
            key=self._inputs.key(planned.cell, question),
            context=self._context,
            cell=planned.cell,
            question=question,
            probe_version=PROBES[question.probe].version,
            answer=outcome.answer,
            failure=outcome.failure,
            simulated=outcome.simulated,
            phases=outcome.phases,
            environment=self._list_packages(planned.cell),
            artifact=self._artifacts.get(self._inputs.artifact(planned.cell), ""),
            started_at=started_at,
            seconds=outcome.seconds,
        )
        self._writer.record(record)
        self.stored[record.key] = record
        self._observer.answered(record)

    def baseline_items(self, planned: PlannedCell, question: Question) -> BaselineItems | str:
        """The baseline's per-item answers, which a question asked until a verdict is paired with; or why there are none."""
        record = self.stored.get(self._inputs.baseline_key(planned.cell, question))
        if record is None:
            return "it was not asked"
        if record.answer is None:
            assert record.failure is not None
            return f"it failed ({record.failure.kind}: {record.failure.message})"
        sample = next((m for m in record.answer.measurements if m.metric == "accuracy" and m.blob is not None), None)
        if sample is None or sample.blob is None:
            return "this task gives scores, so pairing items is impossible"
        path = store.blob_path(self._writer.folder, sample.blob).resolve()
        return BaselineItems(path=path, definition=sample.definition) if path.is_file() else f"{path} is not on disk any more"

    def _keep_blobs(self, answer: Answer, outbox: Path) -> Answer:
        """Moves raw samples into the store and puts their content addresses in the place of file names."""
        names: dict[str, str] = {}

        def kept(measurement: Measurement) -> Measurement:
            if measurement.blob is None:
                return measurement
            if measurement.blob not in names:
                path = outbox / Path(measurement.blob).name
                names[measurement.blob] = self._writer.blob(path.read_bytes(), path.suffix[1:])
            return replace(measurement, blob=names[measurement.blob])

        return replace(answer, measurements=tuple(kept(m) for m in answer.measurements))

    def _has_its_samples(self, record: Record) -> bool:
        """Whether the raw samples of an answer lie there as they were stored; without them it is asked again."""
        names = () if record.answer is None else dict.fromkeys(m.blob for m in record.answer.measurements if m.blob is not None)
        for name in names:
            try:
                store.read_blob(self._writer.folder, name)
            except (OSError, StoreError) as error:
                why = "not there any more" if isinstance(error, FileNotFoundError) else "damaged"
                self._observer.note(f"{record.cell.name}, {record.question.probe}: its raw samples are {why}; asked again")
                return False
        return True

    def _same_packages(self, record: Record) -> bool:
        """Whether the record's environment, if there is one now, holds what it held then: one that was removed and built anew may
        have got other versions."""
        known = record.cell.method in METHODS and record.cell.running.engine in ENGINES
        return not known or self._installed(record.cell) in {"", record.environment}

    def _place(self, cell: Cell) -> str:
        """The environment whose packages decide a cell's answers: that of its engine, if it has one, else its method's."""
        method, device = METHODS[cell.method], self._inputs.plan.device
        return method.environment if ENGINES[cell.running.engine].place(device) is None else envs.answering(cell, device)

    def _installed(self, cell: Cell) -> str:
        """Digest of what is installed in the cell's environment; '' while that is not built."""
        installed = self._inputs.installed_in(self._place(cell))
        return "" if installed is None else machine.packages_digest(installed)

    def _list_packages(self, cell: Cell) -> str:
        """Digest of what is installed in the cell's environment, listed in the run file before a record names it."""
        installed, name = self._installed(cell), self._place(cell)
        ready = self._servers.environment(name)
        if ready is not None and installed not in self._listed:
            self._writer.environment(
                EnvironmentRecord(name=name, digest=installed, python=ready.python_version, packages=ready.packages)
            )
            self._listed.add(installed)
        return installed


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def same_context(folder: Path, context: str, asked: Plan | None = None) -> Path | None:
    """The newest run file that was made under the same context; with `asked`, the newest that was asked this plan's questions."""
    for path in sorted(folder.glob("*.jsonl"), reverse=True):
        try:
            header = store.read_header(path)
        except OlderSchema:  # it stays as it is, and a new run begins
            continue
        if header is not None and header.context_digest == context and (asked is None or _asks(path, asked)):
            return path
    return None


def _asks(path: Path, plan: Plan) -> bool:
    """Whether a run file's plan holds the questions of this one. One that was killed before it had a plan holds none."""
    try:
        theirs = store.read(path).plan
    except StoreError:  # its plan is damaged
        return False
    return [[p.cell.identity(), to_json(p.questions)] for p in theirs.cells] == [
        [p.cell.identity(), to_json(p.questions)] for p in plan.cells
    ]


def _new_run(folder: Path, context: str) -> Path:
    return folder / f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%fZ}-{context[:8]}.jsonl"
