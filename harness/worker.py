"""The child process: job.json in, outcomes out.

``python -m harness.worker serve MODULES`` is a fork server: it imports the named modules once (torch and transformers cost
seconds), then forks one child per job read from standard input, or has a branch fork it (`harness.branches`). All of them
speak to the parent by JSON lines on one private pipe: ``ready``, ``started``, ``begin``, ``outcome``, ``phase``, ``exited``.
What an outcome says lies in a file of the job's folder, written and renamed before its line is sent; standard output is the
child's log and is never parsed. A child lives in a session of its own, so that the parent can kill it with everything it
started, and dies with who forked it, which dies with the parent.

This file and what it imports at the top run inside foreign environments that have none of our dependencies.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import corpora, phases
from harness.branches import Branch, die_with_parent, threads
from harness.engines import ENGINES
from harness.engines.base import EngineFacts, Loaded
from harness.errors import BadReload, HarnessError, MissingPackage, Nonfinite, ServerTrouble, Unsupported
from harness.methods import METHODS, reload
from harness.methods.base import QuantizeRequest
from harness.probes import PROBES
from harness.spec import (
    Answer,
    Cell,
    Failure,
    FailureKind,
    Json,
    Phase,
    Question,
    cell_from_json,
    question_from_json,
    to_json,
)

MANIFEST = "artifact.json"
"""Written last into an artifact's folder: a folder without it is no artifact."""

VERIFIED = "verified.json"
"""Written into an artifact once a fresh process has reloaded it and found that it answers as its weights say."""

_BLOB_EXTENSIONS = {"npy", "json", "npz", "txt"}


class Job:
    """One job as read from job.json; attributes are its fields."""

    def __init__(self, folder: Path) -> None:
        data = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.stage: str = data["stage"]
        self.cell: Cell = cell_from_json(data["cell"])
        self.is_baseline: bool = data["is_baseline"]
        self.questions: list[Question] = [question_from_json(q) for q in data["questions"]]
        self.model_dir = Path(data["model_dir"])
        self.artifact_dir = Path(data["artifact_dir"])
        self.baseline: Json = data["baseline"]
        self.device: str = data["device"]
        self.seed: int = data["seed"]
        self.threads: int = data["threads"]
        self.cache = Path(data["cache"])
        self.texts: dict[str, str] = data["texts"]
        self.task_folders: dict[str, str] = data["task_folders"]
        self.references: dict[str, str] = data["references"]
        self.baseline_items: dict[str, Json] = data["baseline_items"]
        self.calibration: Json = data["calibration"]


class WorkerSession:
    """`probes.base.Session` inside a child: loads on first use, keeps blobs in the job's folder, measures phases."""

    def __init__(self, job: Job, tell: Callable[[Json], None]) -> None:
        self.cell = job.cell
        self.is_baseline = job.is_baseline
        self.artifact_dir = job.artifact_dir
        self.model_dir = job.model_dir
        self.device = job.device
        self.seed = job.seed
        self.cache = job.cache
        self.memo: dict[str, Any] = {}
        self._job = job
        self._tell = tell
        self._loaded: Loaded | None = None
        self._facts: EngineFacts | None = None
        self._wrong: str | None = None
        self._phases: list[Phase] = []

    @property
    def loaded(self) -> Loaded:
        if self._loaded is None:
            method = METHODS[self.cell.scheme.method]
            loaded = ENGINES[method.engine].load(self.cell, self.artifact_dir, self.model_dir, self.device)
            self._facts = loaded.facts()
            self._loaded = loaded
        return self._loaded

    def verify(self) -> None:
        """Raises BadReload when the artifact loads but answers otherwise than its weights say. Done once per artifact, by
        the child that asks the quality probes or by one of its own; never by a child that measures memory or latency."""
        if self._wrong is None:
            if (self.artifact_dir / VERIFIED).is_file():
                return
            self._wrong = reload.check(self.loaded.model, self.artifact_dir) or ""
            if not self._wrong:
                _write(self.artifact_dir / VERIFIED, {"ok": True}, lasting=True)
        if self._wrong:
            raise BadReload(self._wrong)

    @property
    def facts(self) -> EngineFacts | None:
        """What the engine holds, once loaded."""
        return self._facts

    @property
    def model_seconds(self) -> float:
        """Seconds that the loaded model has spent in scoring and generating (0 for engines that do not count them)."""
        return float(getattr(self._loaded, "model_seconds", 0.0))

    def load_baseline(self) -> Loaded | None:
        from harness.machine import available_memory_bytes

        if self._job.baseline is None or self.is_baseline:
            return None
        cell = cell_from_json(self._job.baseline["cell"])
        folder = Path(self._job.baseline["artifact_dir"])
        size = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
        room = available_memory_bytes()
        if room is not None and size * 2 > room:
            return None
        return ENGINES[METHODS[cell.scheme.method].engine].load(cell, folder, self.model_dir, self.device)

    def windows(self, question: Question) -> list[list[int]]:
        key = f"windows {question.subject} {question.options.get('window')} {question.options.get('tokens')}"
        if key not in self.memo:
            ids = corpora.token_ids(self.loaded.tokenizer, self.corpus_text(question), self.cache / "tokens")
            self.memo[key] = corpora.windows(
                ids, int(question.options["window"]), question.options.get("tokens"), question.subject
            )
        found: list[list[int]] = self.memo[key]
        return found

    def corpus_text(self, question: Question) -> str:
        return corpora.text(Path(self._job.texts[question.subject]))

    def baseline_items(self, question: Question) -> Json:
        given = self._job.baseline_items[question.subject]
        return {**json.loads(Path(given["path"]).read_bytes()), "definition": given["definition"]}

    def task_folder(self, question: Question) -> Path | None:
        folder = self._job.task_folders.get(question.subject)
        return None if folder is None else Path(folder)

    def reference(self, question: Question) -> Path:
        """The baseline's stored answers; the baseline itself writes them when they are missing."""
        folder = Path(self._job.references[reference_name(question)])
        if folder.is_dir():
            return folder
        if not self.is_baseline:
            raise Unsupported(f"the baseline has no stored answers on {question.subject!r}: it failed or was not measured")
        with self.phase("reference"):
            self.loaded.write_reference(self.windows(question), folder)
        return folder

    def blob(self, name: str, data: bytes, extension: str) -> str:
        if extension not in _BLOB_EXTENSIONS:
            raise ValueError(f"{extension!r} is no extension of raw samples: {sorted(_BLOB_EXTENSIONS)}")
        path = self._job.folder / "outbox" / f"{len(os.listdir(self._job.folder / 'outbox')):04d}-{name}.{extension}"
        path.write_bytes(data)
        return path.name

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._tell({"event": "phase", "name": name})
        with phases.measure(name) as meter:
            yield
        if meter.phase is not None:
            self._phases.append(meter.phase)

    def phases(self) -> tuple[Phase, ...]:
        return tuple(self._phases)

    def take_phases(self) -> tuple[Phase, ...]:
        taken, self._phases = tuple(self._phases), []
        return taken


def reference_name(question: Question) -> str:
    """Two questions with the same name share the baseline's stored answers."""
    return f"{question.subject}|{question.options['corpus_digest']}|{question.options['window']}|{question.options['tokens']}"


def run_job(job: Job, tell: Callable[[Json], None]) -> None:
    """Runs a job to its end inside a child. Every outcome is a file before its event is told."""
    _settle(job)
    if job.stage == "quantize":
        _write(job.folder / "quantized.json", _guarded("quantize", lambda: _quantize(job, tell)))
        tell({"event": "quantized"})
        return
    session = WorkerSession(job, tell)
    if job.stage == "verify":
        _write(job.folder / "verified.json", _guarded("reload", partial(_verify, session)))
        tell({"event": "verified"})
        return
    if job.stage == "reference":
        for question in job.questions:
            _write(job.folder / "reference.json", _guarded("reference", partial(_reference, session, question)))
        tell({"event": "referenced"})
        return
    for index, question in enumerate(job.questions):
        tell({"event": "begin", "index": index})
        started = time.perf_counter()
        outcome = _guarded(question.probe, partial(_ask, session, question))
        outcome["seconds"] = time.perf_counter() - started
        outcome["phases"] = to_json(session.take_phases())
        outcome["simulated"] = session.facts is not None and session.facts.simulated
        _write(job.folder / f"outcome-{index}.json", outcome)
        tell({"event": "outcome", "index": index})
        if "failure" in outcome and PROBES[question.probe].isolation == "memory":
            return  # whatever is left behind of it is nothing to time beside: what follows gets a process of its own


def _ask(session: WorkerSession, question: Question) -> Json:
    probe = PROBES[question.probe]
    if probe.needs_model and probe.isolation != "memory" and session.facts is None:  # memory weighs its own load
        with session.phase("load"):
            session.loaded  # noqa: B018 - loads on first use
    if probe.needs_model and probe.isolation == "shared":
        session.verify()
    if not probe.simulated and session.facts is not None and session.facts.simulated:
        raise Unsupported(SIMULATED)
    before = session.model_seconds
    answer = probe.measure(session, question)
    in_model = session.model_seconds - before
    if in_model:
        answer = replace(answer, facts={**answer.facts, "model_seconds": in_model})
    if session.facts is not None and session.facts.simulated and not probe.simulated:
        raise Unsupported(SIMULATED)
    return {"answer": to_json(_with_kernels(answer, session.facts))}


SIMULATED = (
    "simulated: the engine holds these weights dequantized, so its memory and speed are not those of the scheme; none is shown"
)


def _with_kernels(answer: Answer, facts: EngineFacts | None) -> Answer:
    if facts is None:
        return answer
    layers: dict[str, list[str]] = {}
    for layer in facts.kernels:
        layers.setdefault(f"{layer.module} · {layer.op} · {layer.stored_dtype}", []).append(layer.layer)
    engine = {
        "name": facts.engine,
        "device": facts.device,
        "kernels": {name: len(found) for name, found in layers.items()},
        "layers": {name: gathered(found) for name, found in layers.items()},
        "notes": list(facts.notes),
    }
    return Answer(measurements=answer.measurements, facts={**answer.facts, "engine": engine})


def gathered(names: Sequence[str]) -> list[str]:
    """Layers whose names differ in one number as one entry, numbers in ranges: `model.layers.0-5,7.mlp.up_proj`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        before, after = (name, "") if number is None else (name[: number.start()], name[number.end() :])
        groups.setdefault((before, after), []).extend([] if number is None else [int(number.group())])
    found = [f"{before}{_ranges(sorted(set(numbers)))}{after}" for (before, after), numbers in groups.items()]
    return found if len(found) == len(names) else gathered(found)


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _verify(session: WorkerSession) -> Json:
    session.verify()
    return {"ok": True}


def _reference(session: WorkerSession, question: Question) -> Json:
    session.reference(question)
    return {"ok": True}


def _quantize(job: Job, tell: Callable[[Json], None]) -> Json:
    method = METHODS[job.cell.scheme.method]
    rows: list[list[int]] | None = None
    if job.calibration is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(job.model_dir), trust_remote_code=False)
        wish = job.calibration
        ids = corpora.token_ids(tokenizer, corpora.text(Path(wish["path"])), job.cache / "tokens")
        rows = corpora.calibration_rows(
            ids, samples=wish["samples"], length=wish["length"], seed=wish["seed"], name=wish["corpus"]
        )
    tell({"event": "phase", "name": "quantize"})
    with phases.measure("quantize") as meter:
        method.quantize(
            QuantizeRequest(
                model_dir=job.model_dir,
                out_dir=job.artifact_dir,
                scheme=job.cell.scheme,
                calibration=rows,
                device=job.device,
                seed=job.seed,
            )
        )
    result = meter.phase
    manifest = {
        "scheme": job.cell.scheme.identity(),
        "method_version": method.version,
        "phase": to_json(result),
        "calibration_tokens": None if rows is None else sum(map(len, rows)),
        "device": job.device,
    }
    _write(job.artifact_dir / MANIFEST, manifest, lasting=True)
    return {"ok": True, "phase": to_json(result)}


def _guarded(phase: str, work: Callable[[], Json]) -> dict[str, Json]:
    """The work's plain data, or {"failure": ...} with the exception sorted into a kind; the traceback goes to the log."""
    try:
        return dict(work())
    except BaseException as error:  # a child reports whatever happened to it, SystemExit of a library included
        traceback.print_exc()
        failure = Failure(
            kind=failure_kind(error), phase="reload" if isinstance(error, BadReload) else phase, message=_message(error)
        )
        return {"failure": to_json(failure)}


def failure_kind(error: BaseException) -> FailureKind:
    """Sorts an exception into a failure kind. Out of memory has no common type: torch, numpy and C++ each say it their way."""
    if isinstance(error, ServerTrouble):  # before its words are looked at: they may be the server's, about its own memory
        return error.kind
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(
        sign in said
        for sign in (
            "OutOfMemoryError",
            "can't allocate memory",
            "std::bad_alloc",
            "CUDA out of memory",
            "Cannot allocate memory",
        )
    ):
        return "oom"
    if isinstance(error, Unsupported):
        return "unsupported"
    if isinstance(error, Nonfinite):
        return "nonfinite"
    if isinstance(error, (MissingPackage, ImportError)):
        return "environment"
    return "error"


def _message(error: BaseException) -> str:
    said = str(error).strip() or "no message"
    return said if isinstance(error, HarnessError) else f"{type(error).__name__}: {said[:2000]}"


def _settle(job: Job) -> None:
    """Seeds and thread counts, before any work."""
    (job.folder / "outbox").mkdir(exist_ok=True)
    random.seed(job.seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(job.seed % 2**32)
    if "torch" in sys.modules:
        torch: Any = sys.modules["torch"]
        torch.manual_seed(job.seed)
        torch.set_num_threads(job.threads)


def _write(path: Path, data: Json, *, lasting: bool = False) -> None:
    """Complete or not there. `lasting`: on the disk when this returns; what the parent reads at once and stores need not be."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(to_json(data), file, ensure_ascii=False, allow_nan=False)
        if lasting:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(path)


def serve(modules: list[str]) -> None:
    """The fork server's loop; ends when standard input does."""
    die_with_parent()
    pipe = os.dup(1)
    os.dup2(2, 1)  # standard output joins the log

    def tell(event: Json) -> None:
        os.write(pipe, json.dumps(event, ensure_ascii=False).encode() + b"\n")

    missing: dict[str, str] = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken optional library is its cells' failure, not the server's
            missing[name] = f"{type(error).__name__}: {error}"[:500]
    gc.collect()
    gc.freeze()  # forked children must not copy pages only because the collector touches them
    tell({"event": "ready", "missing": missing, "threads": threads(), "cuda": _cuda()})

    def jobs(lines: Iterable[str], begin: Callable[[], None], done: Callable[[], None]) -> None:
        for line in lines:
            child = os.fork()
            if child == 0:
                _child(Path(json.loads(line)["job"]), tell, begin)
            tell({"event": "started", "pid": child})
            _, status = os.waitpid(child, 0)
            tell({"event": "exited", "code": os.waitstatus_to_exitcode(status)})
            done()

    branches: dict[tuple[str, ...], Branch] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        ahead: dict[str, Callable[[], object]] = {name: partial(importlib.import_module, name) for name in asked["apart"]}
        if asked["ahead"] is not None:
            ahead[asked["ahead"]] = partial(_ahead, Path(asked["ahead"]))
        key = tuple(ahead)
        if ahead and key not in branches:
            branches[key] = Branch(ahead, jobs, lambda pid: tell({"event": "started", "pid": pid}))
        if not ahead or not branches[key].fit:
            jobs([line], _nothing, _nothing)
        elif not branches[key].run(line):
            tell({"event": "exited", "code": branches.pop(key).close()})
    for branch in branches.values():
        branch.close()


def _nothing() -> None:
    pass


def _ahead(path: Path) -> None:
    """Has the probes do, once, what every child that answers one of these questions would do before it looks at its model."""
    data = json.loads(path.read_text(encoding="utf-8"))
    cache, folders = Path(data["cache"]), data["task_folders"]
    by_probe: dict[str, list[tuple[Question, Path | None]]] = {}
    for one in data["questions"]:
        question = question_from_json(one)
        folder = folders.get(question.subject)
        by_probe.setdefault(question.probe, []).append((question, None if folder is None else Path(folder)))
    for probe, questions in by_probe.items():
        do = PROBES[probe].ahead
        if do is not None:
            do(questions, cache)


def _child(folder: Path, tell: Callable[[Json], None], begin: Callable[[], None]) -> None:
    code = 70
    try:
        os.setsid()
        die_with_parent()
        os.chdir(folder)  # libraries write logs where they stand
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        begin()
        run_job(Job(folder), tell)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # no atexit handlers of libraries: their threads did not survive the fork


def _cuda() -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] != "serve":
        sys.exit("usage: python -m harness.worker serve [MODULE ...]")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks the driver without starting CUDA, so that forks can
    serve(sys.argv[2:])
