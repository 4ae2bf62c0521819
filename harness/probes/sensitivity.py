"""What a model loses by each of its layers alone, as the widths of a mixture were chosen by it.

Asked of cells that mix widths, and of no other: the table is made while such a cell is quantized, once for each model, kind of
rounding and calibration text (models/sensitivity.py), and lies in its artifact. So asking costs nothing, and shows exactly what
decided the cell.

Version 1 (2026-11-30): first definition.
"""

from __future__ import annotations

import json

from harness import mixing
from harness.errors import BadInput
from harness.metrics.sensitivity import GROUP, KL_OF_LAYERS, LAYERS
from harness.mixing import Mixture
from harness.probes.base import Probe, Session
from harness.probes.requests import ProbeRequests
from harness.spec import Answer, Measurement, Question


def questions(requests: ProbeRequests) -> list[Question]:
    return [Question(probe="sensitivity", subject="")]


def measure(session: Session, question: Question) -> Answer:
    mixture = mixing.read(session.artifact_dir)
    if mixture is None:
        raise BadInput(f"{session.cell.name}: the artifact does not say how its widths were chosen; delete it and run again")
    blob = session.blob("layers", json.dumps({LAYERS: _rows(mixture)}, allow_nan=False).encode(), "json")
    measured = Measurement(
        metric=KL_OF_LAYERS.name,
        value=mixture.loss,
        definition=KL_OF_LAYERS.definition,
        unit=KL_OF_LAYERS.unit,
        n=mixture.tokens,
        blob=blob,
    )
    facts = {
        "rounding": mixture.rounding,
        "tokens": mixture.tokens,
        "table_seconds": mixture.seconds,
        "target": mixture.target,
        "bits_per_weight": mixture.bits_per_weight,
    }
    return Answer(measurements=(measured,), facts=facts)


def _rows(mixture: Mixture) -> list[dict[str, object]]:
    return [
        {
            "layer": each.layer,
            "parameters": each.parameters,
            "chosen": mixture.chosen[each.layer],
            "losses": dict(each.losses),
            "bits": dict(each.bits),
        }
        for each in mixture.layers
    ]


PROBE = Probe(
    name="sensitivity",
    title=GROUP.title,
    version="1",
    metrics=GROUP.metrics,
    isolation="shared",
    questions=questions,
    measure=measure,
    needs_model=False,
    needs_weights=True,
    of_mixtures=True,
)
