"""The stages before anything is measured: a model's folder is read, a text is written, an artifact is quantized, each in a
child of its own.

`run` and `export` share them: what makes an artifact anew is what made it first.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from harness.child import job as jobs
from harness.child.events import Event, Progress
from harness.child.failures import failure_of
from harness.child.job import Stage
from harness.files import draft_folder
from harness.methods import METHODS
from harness.models.source import known
from harness.run import identity
from harness.run.account import Account
from harness.run.jobs import JobFolders
from harness.run.observer import Observer
from harness.run.own_servers import OwnServers
from harness.run.servers import Servers
from harness.run.workspace import whole
from harness.spec import Failure, Quantized, Question, Served
from harness.suite.plan import PlannedCell


class Stages:
    """Does the stages of one cell after another. `account`, set for each cell, is told what they take. Each model is read, and
    each text written, once: what failed stays failed, and costs the cells that need it."""

    def __init__(self, inputs: identity.Inputs, observer: Observer, *, threads: int) -> None:
        self.inputs = inputs
        self.observer = observer
        self._home = inputs.cache / "jobs" / f"{os.getpid()}-{time.time_ns()}"  # folders of jobs, and the servers' logs
        self.jobs = JobFolders(inputs, threads=threads, home=self._home)
        self.servers = Servers(inputs, observer, threads=threads, home=self._home)
        self.own = OwnServers(
            inputs, observer, threads=threads, home=self._home, artifact=self.artifact, started=self._note_server
        )
        self.account: Account
        self.sources: dict[str, Failure | None] = {}  # models whose folders were read, with why they could not be
        self.unwritten: dict[Path, Failure | None] = {}  # texts that models were to write, with why they could not

    def close(self) -> None:
        self.own.stop()
        self.servers.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def artifact(self, planned: PlannedCell) -> Path | Failure:
        """The cell's artifact from the cache, or quantized now in a child of its own. A draft becomes the artifact in one
        rename once its manifest is written, so that a half-written one is never used."""
        environment, unbuilt = METHODS[planned.cell.method].environment, self.inputs.installed(planned.cell.method) is None
        begun = time.monotonic()
        lacking = self.servers.lacking(planned.cell)
        if unbuilt:
            self.account.took("environment", environment, time.monotonic() - begun)
        if lacking is not None:
            return lacking
        target = self.inputs.artifact(planned.cell)
        unread = self._source(planned)
        if unread is not None:
            return unread
        if whole(target, self.inputs.model_dir(self.inputs.source(planned.cell))):
            return target
        unwritten = self._own_text(planned)
        if unwritten is not None:
            return unwritten
        self.observer.doing(planned.cell, "quantize", self.account.expected("quantize"))
        try:
            with draft_folder(target) as draft:
                failure = self.run("quantize", planned, draft, phase="quantize")
                if failure is not None:
                    raise _Failed(failure)
        except _Failed as failed:
            return failed.failure
        return target

    def _source(self, planned: PlannedCell) -> Failure | None:
        """Has the folder of the cell's model read as transformers reads it, once per model; why it cannot be is the failure of
        every cell. A model that is quantized already is read by its own format, and a server reads its own files."""
        baseline = self.inputs.baseline(planned.cell)  # runs in the main environment, whose transformers decides
        read_here = isinstance(baseline.cell.origin, Quantized) and "transformers" in METHODS[baseline.cell.method].modules
        if isinstance(planned.cell.origin, Served) or not read_here:
            return None
        model = planned.cell.model.name
        if model not in self.sources:
            view = self.inputs.view(model)
            if known(view) is not None:
                return None
            self.observer.doing(planned.cell, "source")
            self.sources[model] = self.run("source", baseline, view, phase="source")
        return self.sources[model]

    def _own_text(self, planned: PlannedCell) -> Failure | None:
        """Has the model write the text that the cell is calibrated on, if it is to be of its own and is not there yet. Why it
        cannot is the failure of every cell that needs it."""
        path = self.inputs.calibration(planned.cell)
        if path is None or not identity.on_own_text(planned.cell) or path.is_file():
            return None
        if path not in self.unwritten:
            self.observer.doing(planned.cell, SAMPLING, self.account.expected("sample"))
            self.unwritten[path] = self.run("sample", planned, path.parent, phase=SAMPLING)
        return self.unwritten[path]

    def run(
        self, stage: Stage, planned: PlannedCell, artifact: Path, *, phase: str, questions: Sequence[Question] = ()
    ) -> Failure | None:
        """Runs a job that answers nothing in a child of its own; None when it went well. A crash is told under `phase`."""
        quantizes = stage == "quantize"
        timeout = self.inputs.plan.suite.quantize_timeout if stage in ("quantize", "sample") else self.inputs.plan.suite.timeout
        # a text is written where the baseline runs, whatever environment quantizes
        runs = self.inputs.baseline(planned.cell) if stage == "sample" else planned

        def on_event(event: Event) -> None:
            if isinstance(event, Progress):
                self.observer.progress(planned.cell, SAMPLING if stage == "sample" else stage, _how_far(event))

        failed = self.own.up(planned)
        if failed is not None:
            return failed
        with self.account.stage(stage):
            job = self.jobs.write(stage, planned, artifact, questions)
            ended = self.servers.run(runs.cell, job, timeout, on_event, quantizes=quantizes)
            self.note_starts()
        outcome = jobs.read_outcome(job, phase=phase)
        self.account.saw(outcome)
        return self.own.blamed(planned, failure_of(outcome, ended, log=jobs.log(job), phase=phase, timeout=timeout))

    def _note_server(self, seconds: float) -> None:
        self.account.took("start", "server", seconds)

    def note_starts(self) -> None:
        for environment, seconds in self.servers.take_started():
            self.account.took("start", environment, seconds)


SAMPLING = "calibration text"


def _how_far(event: Progress) -> str:
    """`layer 3 of 30`, `2,048 of 65,536 tokens`, or what the library has said last."""
    if not event.total:
        return event.said
    if event.unit == "layer":
        return f"layer {event.done} of {event.total}"
    return f"{event.done:,} of {event.total:,} {event.unit}s"


class _Failed(Exception):
    """Ends the writing of an artifact whose child has failed, so that the draft is dropped."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
