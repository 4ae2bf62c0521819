"""plan -> skip what is stored -> environment, artifact -> child -> append record.

Every question of every planned cell ends as exactly one record: measurements or a typed failure. A record is stored the
moment its outcome exists; a stop at any point loses at most the question being answered, and the same command goes on from
there. A crash costs the probe that crashed; the cell's other questions are asked again in a fresh child.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import envs, store
from harness.child import fork_server
from harness.child.fork_server import Exit, Server, ServerFailed
from harness.child.job import MANIFEST, read_outcome, reference_name, verified
from harness.engines import ENGINES
from harness.errors import BadInput
from harness.measure import machine
from harness.methods import METHODS
from harness.models import find
from harness.probes import PROBES, sequential
from harness.run import identity
from harness.run.observer import Observer, Silent
from harness.run.recorder import new_run, now, same_context
from harness.run.workspace import check_disk, sweep, whole
from harness.spec import (
    Answer,
    Cell,
    Failure,
    Json,
    Measurement,
    Question,
    Record,
    answer_from_json,
    digest,
    phase_from_json,
    to_json,
)
from harness.suite.plan import Plan, PlannedCell


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run, none of it part of any question: where results and cache go, whether to begin anew or retry failures."""

    results: Path
    cache: Path
    fresh: bool = False
    retry_failed: bool = False
    threads: int | None = None


def run(plan: Plan, settings: Settings, observer: Observer | None = None) -> Path:
    """Runs (or goes on with) a plan; returns the path of the run file.

    BadInput before anything starts when inputs cannot be had or the disk is too small; everything after that is a record."""
    cache = settings.cache.expanduser().resolve()
    check_disk(plan, cache)
    sweep(cache)
    inputs = identity.gather(plan, cache)
    with _Matrix(inputs, settings, observer or Silent()) as matrix:
        return matrix.run()


class _Matrix:
    """State of one invocation: the open run file, the servers, and what is stored already."""

    def __init__(self, inputs: identity.Inputs, settings: Settings, observer: Observer) -> None:
        self.inputs = inputs
        self.plan = inputs.plan
        self.observer = observer
        self.settings = settings
        self.threads = settings.threads or len(machine.affinity())
        self.servers: dict[str, Server] = {}
        self.broken: dict[str, str] = {}
        self.stored: dict[str, Record] = {}
        self.ready: dict[str, envs.Ready] = {}  # environments of their own, held until the run ends
        self.unbuilt: dict[str, Failure] = {}
        self.listed: set[str] = set()  # digests whose package lists are in the run file
        self.ahead: Path | None = None  # the questions that a branch of the fork server begins to answer for all cells
        self.jobs = inputs.cache / "jobs" / f"{os.getpid()}-{time.time_ns()}"
        conditions, self.context = identity.context(self.plan, packages=inputs.packages, threads=self.threads)
        folder = settings.results / self.plan.suite.name
        path = (None if settings.fresh else same_context(folder, self.context)) or new_run(folder, self.context)
        header = {"run": path.stem, "started_at": now(), "context": conditions, "context_digest": self.context}
        self.writer = store.Writer(path, header)

    def __enter__(self) -> _Matrix:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            server.close()
        for ready in self.ready.values():
            ready.close()
        self.writer.close()
        shutil.rmtree(self.jobs, ignore_errors=True)

    def run(self) -> Path:
        before = store.read(self.writer.path)
        plan = {**self.plan.to_json(), "weights": dict(self.inputs.weights)}
        if {k: v for k, v in before.plan.items() if k != "kind"} != to_json(plan):
            self.writer.plan(plan)
        self.stored = {r.key: r for r in before.records}
        done = {r.key for r in before.records if self._stands(r)}
        self.listed.update(before.environments)
        todo = [(p, [q for q in p.questions if self.inputs.key(p.cell, q) not in done]) for p in self.plan.cells]
        asked = sum(len(p.questions) for p in self.plan.cells)
        left = sum(len(questions) for _, questions in todo)
        self.observer.begin(run=self.writer.path, questions=asked, stored=asked - left)
        self.ahead = self._write_ahead([questions for _, questions in todo])
        for planned, questions in todo:
            if questions:
                self._measure(planned, questions)
        if left or not before.ended:
            self.writer.end({"ended_at": now(), "questions": asked})
        return self.writer.path

    def _write_ahead(self, todo: Sequence[Sequence[Question]]) -> Path | None:
        """A file with the questions that several cells are still asked and whose probes can begin without a cell, or None."""
        asked = [self.inputs.resolved(q) for questions in todo for q in questions if PROBES[q.probe].ahead is not None]
        names = [digest(to_json(q)) for q in asked]
        cells = Counter(names)
        shared = [q for name, q in dict(zip(names, asked, strict=True)).items() if cells[name] > 1]
        if not shared:
            return None
        self.jobs.mkdir(parents=True, exist_ok=True)
        path = self.jobs / "ahead.json"
        data = {"questions": to_json(shared), "task_folders": dict(self.plan.task_folders), "cache": str(self.inputs.cache)}
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        return path

    def _stands(self, record: Record) -> bool:
        """Whether a stored record need not be made again: it is no failure to retry, and its environment, if there is one now,
        holds what it held then (an environment that was removed and built anew may have got other versions)."""
        if self.settings.retry_failed and record.failure is not None:
            return False
        if record.cell.method not in METHODS:
            return True
        return self._installed(record.cell) in {"", record.environment}

    def _installed(self, cell: Cell) -> str:
        """Digest of what is installed in the cell's environment; '' while that is not built."""
        installed = self.inputs.installed(cell.method)
        return "" if installed is None else machine.packages_digest(installed)

    def _measure(self, planned: PlannedCell, questions: Sequence[Question]) -> None:
        artifact = self._artifact(planned)
        if isinstance(artifact, Failure):
            self._fail(planned, questions, artifact)
            return
        if not planned.baseline:
            self._references(planned, [q for q in questions if PROBES[q.probe].needs_reference])
        for group in _groups(self._pairable(planned, questions)):
            alone = PROBES[group[0].probe].isolation != "shared"
            wrong = self._verify(planned, artifact) if alone and PROBES[group[0].probe].needs_model else None
            if wrong is None:
                self._ask(planned, artifact, group)
            else:
                self._fail(planned, group, wrong)

    def _artifact(self, planned: PlannedCell) -> Path | Failure:
        """The cell's artifact from the cache, or quantized now in a child of its own. A draft becomes the artifact in one
        rename once its manifest is written, so that a half-written one is never used."""
        lacking = self._environment(planned.cell)
        if lacking is not None:
            return lacking
        target = self.inputs.artifact(planned.cell)
        if whole(target, self.inputs.model_dirs[self.inputs.source(planned.cell)]):
            return target
        self.observer.doing(planned.cell, "quantize")
        draft = target.with_name(f".draft-{target.name}-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            timeout = self.plan.suite.quantize_timeout
            job = self._job("quantize", planned, [], draft)
            ended = self._serve(planned, job, timeout, quantizes=True)
            log = job / "log.txt"
            failure = fork_server.failure(read_outcome(job / "quantized.json"), ended, log=log, phase="quantize", timeout=timeout)
            if failure is not None:
                return failure
            shutil.rmtree(target, ignore_errors=True)
            draft.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return target

    def _environment(self, cell: Cell) -> Failure | None:
        """None when the cell's method can run: all is there in the main environment, or its own is built (now, if need be)
        and the method passed its health check there. A build is tried once per invocation."""
        method = METHODS[cell.method]
        name = method.environment
        lacking = envs.missing(method)
        if lacking is not None:
            message = f"{method.name} needs {', '.join(lacking.packages)}, not installed here; add it with: {lacking.install}"
            return Failure(kind="environment", phase="environment", message=message)
        if name == envs.MAIN:
            return None
        if name not in self.ready and name not in self.unbuilt:
            self.observer.doing(cell, f"environment {name}")
            try:
                ready = envs.obtain(envs.find(name), self.inputs.cache, self.observer.note)
            except envs.BuildFailed as error:
                self.unbuilt[name] = Failure(kind="environment", phase="environment", message=str(error), log_tail=error.log_tail)
            else:
                self.ready[name], self.inputs.environments[name] = ready, ready.packages
        if name in self.unbuilt:
            return self.unbuilt[name]
        self.observer.doing(cell, f"environment {name}")
        return self.ready[name].unwell(method.name, self.observer.note)

    def _verify(self, planned: PlannedCell, artifact: Path) -> Failure | None:
        """Has a fresh child reload the artifact and compare its answers before anything is timed, once per artifact and way of
        running."""
        if verified(artifact, planned.cell.running).is_file():
            return None
        self.observer.doing(planned.cell, "reload check")
        job, timeout = self._job("verify", planned, [], artifact), self.plan.suite.timeout
        ended = self._serve(planned, job, timeout)
        return fork_server.failure(
            read_outcome(job / "verified.json"), ended, log=job / "log.txt", phase="reload", timeout=timeout
        )

    def _references(self, planned: PlannedCell, questions: Sequence[Question]) -> None:
        """Has the baseline's answers stored when a cell will be compared with them and they are not in the cache. Where
        the baseline fails, the cell's own question says so."""
        baseline = self.inputs.baseline(planned.cell)
        for question in questions:
            if self.inputs.reference(planned.cell, question).is_dir():
                continue
            artifact = self._artifact(baseline)
            if isinstance(artifact, Failure):
                return
            self.observer.doing(baseline.cell, f"reference {question.subject}")
            job, timeout = self._job("reference", baseline, [question], artifact), self.plan.suite.timeout
            ended = self._serve(baseline, job, timeout)
            wrong = fork_server.failure(
                read_outcome(job / "reference.json"), ended, log=job / "log.txt", phase="reference", timeout=timeout
            )
            if wrong is not None:
                self.observer.note(f"{wrong.kind}: {baseline.cell.name}: reference {question.subject}: {wrong.message}")

    def _pairable(self, planned: PlannedCell, questions: Sequence[Question]) -> list[Question]:
        """The questions without those that are asked until a verdict against a baseline that has no answer: these fail at once,
        because scoring all their items instead would answer another question."""
        found = []
        for question in questions:
            if sequential.settings(question) is not None and isinstance(reason := self._baseline_items(planned, question), str):
                baseline = self.inputs.baseline(planned.cell).cell.name
                message = (
                    f"budget: auto pairs each item with the baseline's answer, and {baseline} has none to {question.subject!r}: "
                    f"{reason}; mend that and ask both again with --retry-failed, or have all items scored with budget: fixed"
                )
                self._fail(planned, [question], Failure(kind="unsupported", phase="baseline", message=message))
            else:
                found.append(question)
        return found

    def _baseline_items(self, planned: PlannedCell, question: Question) -> Json | str:
        """Where the baseline's per-item answers lie and under which definition, or why there are none."""
        record = self.stored.get(self.inputs.baseline_key(planned.cell, question))
        if record is None:
            return "it was not asked"
        if record.answer is None:
            assert record.failure is not None
            return f"it failed ({record.failure.kind}: {record.failure.message})"
        sample = next((m for m in record.answer.measurements if m.metric == "accuracy" and m.blob is not None), None)
        if sample is None or sample.blob is None:
            return "its items are not right or wrong"
        path = store.blob_path(self.writer.folder, sample.blob).resolve()
        return {"path": str(path), "definition": sample.definition} if path.is_file() else f"{path} is not on disk any more"

    def _ask(self, planned: PlannedCell, artifact: Path, questions: Sequence[Question]) -> None:
        """Asks the questions of one isolation group, in as many children as crashes make necessary."""
        waiting = list(questions)
        while waiting:
            job = self._job("probe", planned, waiting, artifact)
            watch = _Watch(waiting)

            def on_event(event: Json, job: Path = job, watch: _Watch = watch) -> None:
                question = watch.questions[event["index"]] if "index" in event else None
                if event["event"] == "begin" and question is not None:
                    watch.begin(event["index"])
                    self.observer.doing(planned.cell, f"{question.probe} {question.subject}".strip())
                elif event["event"] == "outcome" and question is not None:
                    watch.answered.append(event["index"])
                    self._store(planned, question, job, event["index"], watch.started_at)

            ended = self._serve(planned, job, self.plan.suite.timeout, on_event)
            waiting = [q for i, q in enumerate(waiting) if i not in watch.answered]
            left = watch.answered and watch.current() is None and ended == Exit(code=0, timed_out=False)  # it would ask no more
            if waiting and not left:
                broken = watch.current() or waiting[0]
                log, timeout = job / "log.txt", self.plan.suite.timeout
                failure = fork_server.failure(None, ended, log=log, phase=broken.probe, timeout=timeout)
                self._append(planned, broken, failure=failure, started_at=watch.started_at, seconds=watch.seconds())
                waiting.remove(broken)

    def _job(self, stage: str, planned: PlannedCell, questions: Sequence[Question], artifact: Path) -> Path:
        """Writes job.json into a new folder and returns the folder."""
        folder = self.jobs / f"{time.time_ns()}-{stage}"
        folder.mkdir(parents=True)
        resolved = [self.inputs.resolved(q) for q in questions]
        baseline = self.inputs.baseline(planned.cell).cell
        kept = self.inputs.artifact(baseline)
        together = envs.loading(METHODS[baseline.method]) == envs.loading(METHODS[planned.cell.method])
        calibration = planned.cell.scheme.options.get("calibration")
        source = self.inputs.source(planned.cell) if stage == "quantize" else planned.cell.model.name
        data = {
            "stage": stage,
            "cell": to_json(planned.cell),
            "is_baseline": planned.baseline,
            "questions": to_json(resolved),
            "model_dir": str(self.inputs.model_dirs[source]),
            "artifact_dir": str(artifact),
            # loaded beside the cell only where the same packages run both: other kernels would make it another baseline
            "baseline": {"cell": to_json(baseline), "artifact_dir": str(kept)}
            if together and (kept / MANIFEST).is_file()
            else None,
            "device": self.plan.device,
            "seed": self.plan.suite.seed,
            "threads": self.threads,
            "cache": str(self.inputs.cache),
            "texts": {name: str(path) for name, path in self.inputs.texts.items()},
            "task_folders": dict(self.plan.task_folders),
            "references": {
                reference_name(q): str(self.inputs.reference(planned.cell, q)) for q in resolved if "corpus_digest" in q.options
            },
            "baseline_items": {
                q.subject: self._baseline_items(planned, q) for q in resolved if sequential.settings(q) is not None
            },
            "calibration": calibration and {**calibration, "path": str(self.inputs.calibrations[calibration["corpus"]])},
        }
        (folder / "job.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        return folder

    def _serve(
        self,
        planned: PlannedCell,
        job: Path,
        timeout: float,
        on_event: Callable[[Json], None] = lambda event: None,
        *,
        quantizes: bool = False,
    ) -> Exit | Failure:
        """Runs a job in the environment that quantizes with the cell's method, or in the one that loads what it wrote."""
        method = METHODS[planned.cell.method]
        environment = method.environment if quantizes else envs.loading(method)
        try:
            server = self._server(environment)
            if environment != envs.loading(method):
                return server.run(job, on_event, timeout)
            # What `preload` and `apart` name is there where the artifacts are loaded, and what questions are answered with too.
            return server.run(job, on_event, timeout, apart=method.apart, ahead=self.ahead)
        except ServerFailed as error:
            self.broken[environment] = str(error)
            return Failure(kind="environment", phase="environment", message=str(error))

    def _server(self, environment: str) -> Server:
        if environment in self.broken:
            raise ServerFailed(self.broken[environment])
        if environment not in self.servers:
            python = Path(sys.executable) if environment == envs.MAIN else self.ready[environment].python
            env = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false", **_network(self.plan)}
            if environment != envs.MAIN:  # tools that its packages call (a compiler's ninja) are those that came with them
                env["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
            home = self.jobs / f"server-{environment}"
            server = Server(python=python, modules=self._modules(environment), home=home, env=env)
            self.servers[environment] = server
            server.start()
            for name, why in server.ready["missing"].items():
                self.observer.note(f"{name} cannot be imported in the {environment} environment: {why}")
            if self.plan.device.startswith("cuda") and "torch" in self._modules(environment) and not server.ready["cuda"]:
                if environment != envs.MAIN:
                    raise ServerFailed(f"the torch of the environment {environment!r} sees no CUDA device; use --device cpu")
                raise BadInput(
                    f"device {self.plan.device}: torch sees no CUDA device; use --device cpu, or install a CUDA build of torch"
                )
        return self.servers[environment]

    def _modules(self, environment: str) -> list[str]:
        """What the server imports once: what the engines, methods and probes of this plan would import in every child."""
        methods = [METHODS[name] for name in dict.fromkeys(p.cell.method for p in self.plan.cells)]
        used = [m for m in methods if environment in (m.environment, envs.loading(m)) and envs.missing(m) is None]
        names = [name for m in used for name in ENGINES[m.engine].modules]
        measured = [m for m in used if envs.loading(m) == environment]
        names += [name for m in measured for name in m.preload]
        if any(ENGINES[m.engine].modules for m in measured):
            names += [name for probe in self.plan.suite.probes for name in PROBES[probe].preload]
        if "transformers" in names and environment == envs.MAIN:
            names += ["harness.engines.warm", *find.modeling_modules(p.cell.model for p in self.plan.cells)]
        return list(dict.fromkeys(names))

    def _store(self, planned: PlannedCell, question: Question, job: Path, index: int, started_at: str) -> None:
        outcome = read_outcome(job / f"outcome-{index}.json") or {}
        ended = Exit(code=0, timed_out=False)
        failure = fork_server.failure(outcome, ended, log=job / "log.txt", phase=question.probe, timeout=0)
        answer = None if failure is not None else self._keep_blobs(answer_from_json(outcome["answer"]), job / "outbox")
        self._append(
            planned,
            question,
            answer=answer,
            failure=failure,
            started_at=started_at,
            seconds=float(outcome.get("seconds", 0.0)),
            phases=outcome.get("phases", ()),
            simulated=bool(outcome.get("simulated", False)),
        )

    def _keep_blobs(self, answer: Answer, outbox: Path) -> Answer:
        """Moves raw samples into the store and puts their content addresses in the place of file names."""
        names: dict[str, str] = {}

        def kept(measurement: Measurement) -> Measurement:
            if measurement.blob is None:
                return measurement
            if measurement.blob not in names:
                path = outbox / Path(measurement.blob).name
                names[measurement.blob] = self.writer.blob(path.read_bytes(), path.suffix[1:])
            return replace(measurement, blob=names[measurement.blob])

        return replace(answer, measurements=tuple(kept(m) for m in answer.measurements))

    def _fail(self, planned: PlannedCell, questions: Sequence[Question], failure: Failure) -> None:
        for question in questions:
            self._append(planned, question, failure=failure, started_at=now())

    def _append(
        self,
        planned: PlannedCell,
        question: Question,
        *,
        started_at: str,
        seconds: float = 0.0,
        answer: Answer | None = None,
        failure: Failure | None = None,
        phases: Sequence[Json] = (),
        simulated: bool = False,
    ) -> None:
        record = Record(
            key=self.inputs.key(planned.cell, question),
            context=self.context,
            cell=planned.cell,
            question=question,
            probe_version=PROBES[question.probe].version,
            answer=answer,
            failure=failure,
            simulated=simulated,
            phases=tuple(phase_from_json(p) for p in phases),
            environment=self._listed(planned.cell),
            started_at=started_at,
            seconds=seconds,
        )
        self.writer.record(record)
        self.stored[record.key] = record
        self.observer.answered(record)

    def _listed(self, cell: Cell) -> str:
        """Digest of the installed packages of the cell's environment, whose list is in the run file before a record names it."""
        found, name = self._installed(cell), METHODS[cell.method].environment
        ready = self.ready.get(name)
        if ready is not None and found not in self.listed:
            listing = {"name": name, "digest": found, "python": ready.python_version, "packages": dict(ready.packages)}
            self.writer.environment(listing)
            self.listed.add(found)
        return found


class _Watch:
    """Which question of a child is being answered, and since when."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = tuple(questions)
        self.answered: list[int] = []
        self._index: int | None = None
        self._begun = time.monotonic()
        self.started_at = now()

    def begin(self, index: int) -> None:
        self._index, self._begun, self.started_at = index, time.monotonic(), now()

    def current(self) -> Question | None:
        """The question that was begun and not answered."""
        return None if self._index is None or self._index in self.answered else self.questions[self._index]

    def seconds(self) -> float:
        return time.monotonic() - self._begun


def _groups(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that may share a child, the cheap and safe ones first: all shared probes; each memory question in a process that
    has done nothing before; all latency shapes, on the model that the last of these has loaded."""
    shared = [q for q in questions if PROBES[q.probe].isolation == "shared"]
    memory = [[q] for q in questions if PROBES[q.probe].isolation == "memory"]
    latency = [q for q in questions if PROBES[q.probe].isolation == "latency"]
    alone = [*memory[:-1], [*(memory[-1] if memory else []), *latency]]
    return [group for group in (shared, *alone) if group]


def _network(plan: Plan) -> dict[str, str]:
    """Models and texts are here before a child starts, so only tasks that lm-eval fetches need the hub. Otherwise children
    are told that there is none: libraries ask it about local folders too, and wait minutes for an answer behind a firewall."""
    tasks = {q.subject for p in plan.cells for q in p.questions if q.probe == "tasks"}
    return {} if tasks - set(plan.task_folders) else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
