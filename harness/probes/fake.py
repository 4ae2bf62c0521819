"""The probe that goes with methods/fake.py: three questions whose answers the cell's options script, and where a suite says
`budget: auto` one of ITEMS items, of which the cell loses and gains the scripted shares."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.methods import fake
from harness.metrics.fake import GROUP
from harness.probes import sequential
from harness.probes.base import Probe, Session
from harness.probes.items import Item, baseline_items, side_car
from harness.probes.requests import ProbeRequests
from harness.spec import Answer, Measurement, Question, digest

ITEMS, RIGHT = 3000, 0.7
"""Items of the scripted task, and the share that the baseline answers."""


def questions(requests: ProbeRequests) -> list[Question]:
    scripted = [Question(probe="fake", subject=subject) for subject in ("a", "b", "c")]
    if requests.verdict is None:
        return scripted
    return [*scripted, Question(probe="fake", subject="items", options=sequential.options(requests.verdict))]


def prepare(questions: Sequence[tuple[Question, Path | None]], cache: Path) -> None:
    """Tests read what was prepared once for all cells; a question that hangs or crashes its cells does not do so here."""
    with (cache / "fake-prepared.txt").open("a") as file:
        file.write(" ".join(question.subject for question, _ in questions) + "\n")


def measure(session: Session, question: Question) -> Answer:
    options = json.loads((session.artifact_dir / fake.ARTIFACT).read_text())
    script = str(options[f"on_{question.subject}"])
    fake.act(script)
    with (session.artifact_dir.parents[1] / "fake-measured.txt").open(
        "a"
    ) as file:  # tests count how often something was measured
        file.write(f"{session.cell.label} {question.subject}\n")
    if question.subject == "items":
        return _items(session, question, options)
    value = float("nan") if script == "nan" else float(options["value"])
    blob = session.blob("fake", json.dumps({"value": options["value"]}).encode(), "json")
    package = str(options["package"])
    return Answer(
        measurements=(Measurement(metric="fake_value", value=value, definition="scripted", unit="1", n=1, blob=blob),),
        facts={"kv_cache": session.cell.running.kv, **({package: importlib.metadata.version(package)} if package else {})},
    )


def _items(session: Session, question: Question, options: Mapping[str, float]) -> Answer:
    """All items for the baseline; for others until the verdict."""

    def item(number: int) -> Item:
        luck, flip = (int(digest([kind, number])[:12], 16) / 16**12 for kind in ("luck", "flip"))
        right = luck < RIGHT
        if right and flip < options["lost"] / RIGHT:
            right = False
        elif not right and flip < options["gained"] / (1 - RIGHT):
            right = True
        return Item(id=f"i{number}", doc=number, correct=float(right))

    def keep(items: Sequence[Item]) -> str:
        return session.blob("items", side_car(items, metric="scripted"), "json")

    verdict = sequential.settings(question)
    if verdict is None:
        items = [item(number) for number in range(ITEMS)]
        share = sum(one.correct or 0.0 for one in items) / ITEMS
        whole = Measurement(metric="accuracy", value=share, definition="scripted", unit="share", n=ITEMS, blob=keep(items))
        return Answer(measurements=(whole,))
    base = baseline_items(session.baseline_items(question))
    scored = sequential.until_verdict(
        verdict, base.items, lambda asked: [item(one.doc) for one in asked], definition=base.definition, keep=keep
    )
    return Answer(measurements=scored.measurements, facts={sequential.KEY: asdict(scored.facts)})


PROBE = Probe(
    name="fake",
    title=GROUP.title,
    version="1",
    metrics=GROUP.metrics,
    isolation="shared",
    questions=questions,
    measure=measure,
    needs_model=False,
    prepare=prepare,
)
