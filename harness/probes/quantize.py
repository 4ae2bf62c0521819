"""What quantizing cost: read from the manifest that the quantizing child left in the artifact, so that an artifact taken from the
cache still tells what it took to make."""

from __future__ import annotations

import json

from harness.artifact import MANIFEST, Manifest
from harness.decode import decode
from harness.metrics.quantize import GROUP, PEAK, SECONDS
from harness.probes.base import Probe, Session
from harness.probes.requests import ProbeRequests
from harness.spec import Answer, Json, Measurement, Question


def questions(requests: ProbeRequests) -> list[Question]:
    return [Question(probe="quantize", subject="")]


def measure(session: Session, question: Question) -> Answer:
    manifest = decode(Manifest, json.loads((session.artifact_dir / MANIFEST).read_text(encoding="utf-8")))
    phase = manifest.phase
    measured = [Measurement(metric=SECONDS.name, value=phase.seconds, definition=SECONDS.definition, unit="s", n=1)]
    peak = phase.peak_bytes.get("host_peak")
    if peak is not None:
        measured.append(Measurement(metric=PEAK.name, value=float(peak), definition=PEAK.definition, unit="B", n=1))
    wish = session.cell.scheme.options.get("calibration")
    facts: dict[str, Json] = {"calibration_tokens": manifest.calibration_tokens, "device": manifest.device}
    if wish is not None:
        facts["calibration"] = {**wish, "digest": manifest.calibration_digest}
    return Answer(measurements=tuple(measured), facts=facts)


PROBE = Probe(
    name="quantize",
    title=GROUP.title,
    version="1",
    metrics=GROUP.metrics,
    isolation="shared",
    questions=questions,
    measure=measure,
    origins=("quantized",),  # nobody quantizes the others here
    needs_model=False,
)
