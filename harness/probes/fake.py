"""The probe that goes with methods/fake.py: three questions whose answers the cell's options script."""

from __future__ import annotations

import importlib.metadata
import json

from harness.methods import fake
from harness.probes.base import Probe, Session, Wishes
from harness.spec import Answer, Measurement, Metric, Question

METRIC = Metric(name="fake_value", title="Fake value", unit="1", better="lower", definition="scripted")


def questions(wishes: Wishes) -> list[Question]:
    return [Question(probe="fake", subject=subject) for subject in ("a", "b", "c")]


def measure(session: Session, question: Question) -> Answer:
    options = json.loads((session.artifact_dir / fake.ARTIFACT).read_text())
    script = str(options[f"on_{question.subject}"])
    fake.act(script)
    with (session.artifact_dir.parents[1] / "fake-measured.txt").open(
        "a"
    ) as file:  # tests count how often something was measured
        file.write(f"{session.cell.scheme.label} {question.subject}\n")
    value = float("nan") if script == "nan" else float(options["value"])
    blob = session.blob("fake", json.dumps({"value": options["value"]}).encode(), "json")
    package = str(options["package"])
    return Answer(
        measurements=(Measurement(metric="fake_value", value=value, definition="scripted", unit="1", n=1, blob=blob),),
        facts={package: importlib.metadata.version(package)} if package else {},
    )


PROBE = Probe(
    name="fake",
    title="Fake",
    version="1",
    metrics=(METRIC,),
    isolation="shared",
    simulated=True,
    questions=questions,
    measure=measure,
    needs_model=False,
)
