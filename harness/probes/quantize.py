"""What quantizing cost, and what it changed of each layer: read from what the quantizing child left in the artifact, so that an
artifact taken from the cache still tells what it took to make.

A cell that trains says in its facts what training took: seconds of it are no part of `quantize_seconds` where another cell with
the same training came first.

Version 2 (2026-11-30): the relative error of the weights, where the method tells it.
"""

from __future__ import annotations

import json

from harness.artifact import MANIFEST, Manifest
from harness.decode import decode
from harness.methods import layer_errors
from harness.metrics.quantize import GROUP, LAYERS, PEAK, SECONDS, WEIGHT_ERROR
from harness.probes.base import Probe, Session
from harness.probes.requests import ProbeRequests
from harness.spec import Answer, Json, Measurement, Question, to_json
from harness.training import weights


def questions(requests: ProbeRequests) -> list[Question]:
    return [Question(probe="quantize", subject="")]


def measure(session: Session, question: Question) -> Answer:
    manifest = decode(Manifest, json.loads((session.artifact_dir / MANIFEST).read_text(encoding="utf-8")))
    phase = manifest.phase
    measured = [Measurement(metric=SECONDS.name, value=phase.seconds, definition=SECONDS.definition, unit="s", n=1)]
    peak = phase.peak_bytes.get("host_peak")
    if peak is not None:
        measured.append(Measurement(metric=PEAK.name, value=float(peak), definition=PEAK.definition, unit="B", n=1))
    errors = layer_errors.read(session.artifact_dir)
    if errors:
        rows = [{**to_json(error), "relative": error.relative} for error in errors]
        blob = session.blob("layers", json.dumps({LAYERS: rows}, allow_nan=False).encode(), "json")
        error = layer_errors.total(errors)
        measured.append(
            Measurement(
                metric=WEIGHT_ERROR.name, value=error, definition=WEIGHT_ERROR.definition, unit="1", n=len(errors), blob=blob
            )
        )
    wish = session.cell.scheme.options.get("calibration")
    facts: dict[str, Json] = {"calibration_tokens": manifest.calibration_tokens, "device": manifest.device}
    if wish is not None:
        facts["calibration"] = {**wish, "digest": manifest.calibration_digest}
    log = weights.read_log(session.artifact_dir)
    if log is not None:
        facts["training"] = {
            "seconds": log.seconds,
            "steps": len(log.losses),
            "tokens": log.tokens,
            "products": log.products,
            "first_loss": log.losses[0],
            "last_loss": log.losses[-1],
        }
    return Answer(measurements=tuple(measured), facts=facts)


PROBE = Probe(
    name="quantize",
    title=GROUP.title,
    version="2",
    metrics=GROUP.metrics,
    isolation="shared",
    questions=questions,
    measure=measure,
    origins=("quantized",),  # nobody quantizes the others here
    needs_model=False,
)
