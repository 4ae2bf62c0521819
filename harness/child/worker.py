"""Inside a child: a job's questions in, outcomes out, each a file before its event is told.

This file and what it imports at the top run inside foreign environments that have none of our dependencies.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.child.failures import guarded
from harness.child.job import MANIFEST, Job, write_json
from harness.child.kernels import with_kernels
from harness.child.session import WorkerSession
from harness.errors import Unsupported
from harness.measure import memory_phases
from harness.methods import METHODS
from harness.methods.base import QuantizeRequest
from harness.models import build, corpora
from harness.probes import PROBES
from harness.spec import Json, Question, to_json


def run_job(job: Job, tell: Callable[[Json], None]) -> None:
    """Runs a job to its end inside a child. Every outcome is a file before its event is told."""
    _settle(job)
    if job.stage == "quantize":
        write_json(job.folder / "quantized.json", guarded("quantize", lambda: _quantize(job, tell)))
        tell({"event": "quantized"})
        return
    session = WorkerSession(job, tell)
    if job.stage == "verify":
        write_json(job.folder / "verified.json", guarded("reload", partial(_verify, session)))
        tell({"event": "verified"})
        return
    if job.stage == "reference":
        for question in job.questions:
            write_json(job.folder / "reference.json", guarded("reference", partial(_reference, session, question)))
        tell({"event": "referenced"})
        return
    for index, question in enumerate(job.questions):
        tell({"event": "begin", "index": index})
        started = time.perf_counter()
        outcome = guarded(question.probe, partial(_ask, session, question))
        outcome["seconds"] = time.perf_counter() - started
        outcome["phases"] = to_json(session.take_phases())
        outcome["simulated"] = session.facts is not None and session.facts.simulated
        write_json(job.folder / f"outcome-{index}.json", outcome)
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
    return {"answer": to_json(with_kernels(answer, session.facts))}


SIMULATED = (
    "simulated: the engine holds these weights dequantized, so its memory and speed are not those of the scheme; none is shown"
)


def _verify(session: WorkerSession) -> Json:
    session.verify()
    return {"ok": True}


def _reference(session: WorkerSession, question: Question) -> Json:
    session.reference(question)
    return {"ok": True}


def _quantize(job: Job, tell: Callable[[Json], None]) -> Json:
    method = METHODS[job.cell.method]
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
    with memory_phases.measure("quantize") as meter:
        method.quantize(
            QuantizeRequest(
                model_dir=job.model_dir,
                out_dir=job.artifact_dir,
                origin=job.cell.origin,
                calibration=rows,
                device=job.device,
                seed=job.seed,
            )
        )
    result = meter.phase
    if job.model_dir.is_dir():  # a GGUF file brings its own
        build.carry(job.model_dir, job.artifact_dir)
    manifest = {
        "scheme": job.cell.scheme.identity(),
        "method_version": method.version,
        "phase": to_json(result),
        "calibration_tokens": None if rows is None else sum(map(len, rows)),
        "device": job.device,
    }
    write_json(job.artifact_dir / MANIFEST, manifest, lasting=True)
    return {"ok": True, "phase": to_json(result)}


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
