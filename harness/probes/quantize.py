"""What quantizing cost: read from the manifest that the quantizing child left in the artifact, so that an artifact taken from the
cache still tells what it took to make."""

from __future__ import annotations

import json

from harness.artifact import MANIFEST, Manifest
from harness.decode import decode
from harness.probes.base import Probe, Session
from harness.probes.requests import ProbeRequests
from harness.spec import Answer, Measurement, Metric, Places, Question

SECONDS = Metric(
    name="quantize_seconds",
    title="Time to quantize",
    unit="s",
    better="lower",
    definition="wall time of the quantizing call",
    scale="log",
    description="From the call of the library to the packed artifact on disk: loading the source, calibrating, packing, saving.",
    axis="cost",
    places=Places(headline=130),
)
PEAK = Metric(
    name="quantize_peak_bytes",
    title="Peak memory to quantize",
    unit="B",
    better="lower",
    definition="VmHWM of the quantizing process within the call",
    scale="log",
    description="Largest resident set of the quantizing process, counted by the kernel; what it held before is included.",
    axis="cost",
)


def questions(requests: ProbeRequests) -> list[Question]:
    return [Question(probe="quantize", subject="")]


def measure(session: Session, question: Question) -> Answer:
    manifest = decode(Manifest, json.loads((session.artifact_dir / MANIFEST).read_text(encoding="utf-8")))
    phase = manifest.phase
    measured = [Measurement(metric=SECONDS.name, value=phase.seconds, definition=SECONDS.definition, unit="s", n=1)]
    peak = phase.peak_bytes.get("host_peak")
    if peak is not None:
        measured.append(Measurement(metric=PEAK.name, value=float(peak), definition=PEAK.definition, unit="B", n=1))
    facts = {"calibration_tokens": manifest.calibration_tokens, "device": manifest.device}
    return Answer(measurements=tuple(measured), facts=facts)


PROBE = Probe(
    name="quantize",
    title="Quantizing",
    version="1",
    metrics=(SECONDS, PEAK),
    isolation="shared",
    questions=questions,
    measure=measure,
    origins=("quantized",),  # nobody quantizes the others here
    needs_model=False,
)
