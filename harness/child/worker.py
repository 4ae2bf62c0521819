"""One job, from its first line to its last, inside a child: every outcome is a file before its event is told.

This file and what it imports at the top run inside foreign environments that have none of our dependencies.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness import recipes
from harness.artifact import MANIFEST, Manifest
from harness.child import bound, calibration
from harness.child import job as jobs
from harness.child.events import Answered, Begun, Event, PhaseBegun
from harness.child.failures import guarded
from harness.child.job import ALL, Job, Outcome
from harness.child.kernels import with_kernels
from harness.child.progress import Counted, layers
from harness.child.session import WorkerSession
from harness.errors import BadInput, Unsupported
from harness.files import write_atomically
from harness.formats import safetensors_file
from harness.measure import memory_phases
from harness.methods import METHODS, against_source, layer_errors
from harness.methods.base import Method, QuantizeRequest
from harness.models import body, build, corpora, sampled, source
from harness.probes import PROBES
from harness.spec import OVERLAP, Answer, Phase, Quantized, Question, Served, to_json

SIMULATED = (
    "simulated: the engine holds these weights dequantized, so its memory and speed are not those of the scheme; none is shown"
)

TRAINED = "no comparison: trained; the weights are others than the source's, so its answers are held against none of its"
"""Why the answers of a cell that was trained further are not held against the baseline's (child/bound.py)."""

Tell = Callable[[Event], None]


def run_job(folder: Path, job: Job, tell: Tell) -> None:
    """Does what the job's stage asks for and leaves the outcomes in its folder."""
    jobs.outbox(folder).mkdir(exist_ok=True)
    _seed(job)
    session = WorkerSession(job, folder, tell)
    if job.stage == "probe":
        _answer_all(session, folder, job, tell)
        return
    with memory_phases.measure(ALL) as meter:
        outcome = _done(session, job, jobs.log(folder), tell)
    jobs.write_outcome(folder, replace(outcome, phases=_phases(session, meter)))
    tell(Answered(index=0))


def _done(session: WorkerSession, job: Job, log: Path, tell: Tell) -> Outcome:
    """The outcome of a stage that answers nothing."""
    if job.stage == "source":
        return guarded("source", partial(_read_source, job))
    if job.stage == "sample":
        return guarded("calibration text", partial(_sample, job, tell))
    if job.stage == "quantize":
        return guarded("quantize", partial(_quantize, job, log, tell))
    if job.stage == "verify":
        return guarded("reload", partial(_verify, session))
    if job.stage == "bound":
        return guarded("answers", partial(_keep_bound, session))
    return guarded("baseline", partial(_store_baseline, session, job.questions))


def _phases(session: WorkerSession, meter: memory_phases.Meter) -> tuple[Phase, ...]:
    """What was measured within, and the phase that spans it all."""
    assert meter.phase is not None
    return (*session.take_phases(), meter.phase)


def _answer_all(session: WorkerSession, folder: Path, job: Job, tell: Tell) -> None:
    for index, question in enumerate(job.questions):
        tell(Begun(index=index))
        started = time.perf_counter()
        with memory_phases.measure(ALL) as meter:
            outcome = guarded(question.probe, partial(_answer, session, question))
        seconds = time.perf_counter() - started
        outcome = replace(outcome, seconds=seconds, phases=_phases(session, meter), simulated=session.simulated)
        jobs.write_outcome(folder, outcome, index)
        tell(Answered(index=index))
        if outcome.failure is not None and PROBES[question.probe].isolation == "memory":
            return  # a failed memory probe may leave memory behind; latency is timed in another child


def _answer(session: WorkerSession, question: Question) -> Answer:
    probe = PROBES[question.probe]
    elsewhere = probe.own_server and not isinstance(session.cell.origin, Served)  # the model is in the server's process
    by_itself = probe.isolation == "memory" or elsewhere  # memory weighs its own load
    if probe.needs_model and not session.has_loaded and not by_itself:
        with session.phase("load"):
            session.loaded  # noqa: B018 - loads on first use
    if probe.needs_model and probe.isolation == "shared":
        if session.held:
            session.verify()
        else:
            with session.phase("verify"):
                session.verify()
    if session.simulated and not probe.simulated:
        raise Unsupported(SIMULATED)
    before = session.model_seconds
    answer = probe.measure(session, question)
    in_model = session.model_seconds - before
    if in_model:
        answer = replace(answer, facts={**answer.facts, "model_seconds": in_model})
    if session.simulated and not probe.simulated:  # the probe itself has loaded the model
        raise Unsupported(SIMULATED)
    if probe.needs_model and session.answers is not None:
        answer = held_against(answer, session.answers)
    elif probe.needs_model and METHODS[session.cell.method].trains is not None:
        answer = replace(answer, facts={**answer.facts, "answers": {"no_comparison": TRAINED}})
    if session.calibrated and "corpus_digest" in question.options:
        answer = replace(answer, facts={**answer.facts, OVERLAP: session.calibration_overlap(question)})
    return with_kernels(answer, session.facts)


def held_against(answer: Answer, answers: bound.Answers) -> Answer:
    """The answer with how the cell was held against the baseline beside it, and a mark where something is to be said of that."""
    facts = {**answer.facts, "answers": {"kl": answers.kl, "floor": answers.floor, "limit": answers.limit}}
    if answers.said:
        facts["marks"] = [*facts.get("marks", ()), answers.said]
    return replace(answer, facts=facts)


def _verify(session: WorkerSession) -> None:
    session.verify()


def _keep_bound(session: WorkerSession) -> None:
    session.keep_bound()


def _store_baseline(session: WorkerSession, questions: tuple[Question, ...]) -> None:
    for question in questions:
        session.stored_baseline(question)


def _read_source(job: Job) -> None:
    """Makes the view of the model's folder in the place of an artifact. A text with tokens that the model lacks is refused
    before anything is quantized for it."""
    tokenizer = source.tokenizer_of(job.model_dir)
    view = source.make(job.model_dir, job.artifact_dir)
    if max(tokenizer.get_vocab().values()) < view.rows:
        return
    try:
        for name, path in job.texts.items():
            ids = corpora.token_ids(tokenizer, corpora.text(path), job.cache / "tokens")
            source.check_ids(ids, view.rows, tokenizer, f"corpus {name!r}")
    except BadInput:
        shutil.rmtree(job.artifact_dir)  # asked again, the same is said again
        raise


def _sample(job: Job, tell: Tell) -> None:
    """Has the model write the text that the cell is calibrated on."""
    import torch

    from harness.scoring.widened import products

    wish = job.calibration
    assert wish is not None
    dtype, counted = build.unpacked_dtype(safetensors_file.parameters(job.model_dir)), Counted(tell, "token")
    with products(torch.device(job.device), dtype):
        sampled.write(
            job.model_dir,
            wish.path,
            wish.samples * wish.length,
            seed=wish.seed,
            dtype=dtype,
            device=job.device,
            tell=counted.at,
        )


def _quantize(job: Job, log: Path, tell: Tell) -> None:
    method = METHODS[job.cell.method]
    rows = None if job.calibration is None else calibration.rows(job, job.calibration)
    request = QuantizeRequest(
        model_dir=job.model_dir,
        out_dir=job.artifact_dir,
        origin=job.cell.origin,
        calibration=rows,
        device=job.device,
        seed=job.seed,
        cache=job.cache,
        training=job.training,
        progress=Counted(tell, "step").at,
    )
    tell(PhaseBegun(name="quantize"))
    watched = layers(job.model_dir, tell, log=log, torch="torch" in method.modules and method.trains is None)
    with memory_phases.measure("quantize") as meter, watched:
        method.quantize(request)
    _check_share(job, method)
    if method.weights is not None:
        errors = against_source.check(method.compared_with(request), method.weights(request), folds=method.folds)
        if method.folds:  # scaled weights cannot be subtracted from the source's, as the unpacking method has done
            layer_errors.write(job.artifact_dir, errors)
    if job.model_dir.is_dir():  # a GGUF file brings its own
        build.carry(job.model_dir, job.artifact_dir)
    assert meter.phase is not None
    manifest = Manifest(
        scheme=job.cell.scheme.identity(),
        method_version=method.version,
        phase=meter.phase,
        calibration_tokens=None if rows is None else sum(map(len, rows)),
        calibration_digest=None if job.calibration is None else corpora.digest(job.calibration.path),
        device=job.device,
    )
    text = json.dumps(to_json(manifest), ensure_ascii=False, allow_nan=False)
    write_atomically(job.artifact_dir / MANIFEST, text, lasting=True)


def _check_share(job: Job, method: Method) -> None:
    """Unsupported where the library has quantized too little for the scheme's name, which could not be known beforehand."""
    view = source.known(job.model_dir) if job.model_dir.is_dir() else None
    if view is None or not view.body or job.cell.bits >= 16 or not isinstance(job.cell.origin, Quantized):
        return
    ledger = method.ledger(job.artifact_dir, job.cell.scheme)
    share = view.share(ledger)
    recipe = recipes.of(job.cell.scheme)
    if share >= body.ENOUGH or (recipe is not None and share > 0):  # what a recipe leaves alone is named by the probe `size`
        return
    if recipe is not None:
        raise Unsupported(
            f"the recipe @{recipe.short} leaves every layer as it was, so nothing is quantized; correct it: its patterns may "
            "match no layer of this model"
        )
    packed = {view.loaded(tensor.layer) for tensor in ledger}
    left = [weight.name for weight in view.body if weight.name not in packed]
    raise Unsupported(
        f"{method.name} has quantized {share:.0%} of the model's weights (embedding and head aside), and left "
        f"{safetensors_file.brief(left)} as they were, so the cell would not be what its name says; choose a method that takes "
        "them"
    )


def _seed(job: Job) -> None:
    """Seeds and thread counts, before any work, of the libraries that the fork server has imported."""
    random.seed(job.seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(job.seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(job.seed)
        sys.modules["torch"].set_num_threads(job.threads)
