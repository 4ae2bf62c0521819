"""Flipped items with their texts, from the stored runs of two nights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import store
from harness.gate import examples, judge
from harness.gate.types import Finding, GateReport
from harness.spec import Answer, Cell, Measurement, Question
from harness.store import Run
from tests.gate.nights import BASE, GPTQ, Answers, Edit, night

LATER = "20261121T020000000000Z-bbbbbbbb"


def with_texts(folder: Path) -> Edit:
    """Side-cars as the probe keeps them: what was asked in the baseline's, how it was answered in each cell's."""

    def edit(cell: Cell, question: Question, answer: Answer) -> Answer:
        if question.probe != "tasks":
            return answer
        (sample,) = answer.measurements
        assert sample.blob is not None
        rows = json.loads(store.read_blob(folder, sample.blob))["items"]
        for place, row in enumerate(rows):
            row |= {"doc": place, "gold": 1, "margin": 0.25 if row["correct"] else -0.5}
            if cell is BASE:
                row["text"] = {"prompt": f"{question.subject} {place}?", "choices": ["no", "yes", "perhaps"]}
        kept = store.add_blob(folder, json.dumps({"items": rows}).encode(), "json")
        parts = {name: getattr(sample, name) for name in ("metric", "value", "definition", "unit", "n")}
        return Answer(measurements=(Measurement(**parts, blob=kept),))

    return edit


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("nights")
    worse = Answers().lose(GPTQ, "facts", lost=40, won=4)
    return (
        night(folder, edit=with_texts(folder)),
        night(folder, worse, name=LATER, edit=with_texts(folder)),
    )


@pytest.fixture(scope="module")
def report(two: tuple[Run, Run]) -> GateReport:
    return judge.gate(*two)


def alarm(report: GateReport, metric: str) -> Finding:
    return next(f for f in report.alarms if f.square.metric == metric)


def lost(f: Finding) -> list[str]:
    return [flip.item for flip in f.flips if not flip.won]


def test_a_lost_item_has_its_text_its_choices_and_how_near_both_answers_were(two: tuple[Run, Run], report: GateReport) -> None:
    shown = examples.of_runs(*two)(alarm(report, "accuracy"))
    assert len(shown) == examples.MOST
    assert {one.flip.won for one in shown} == {False}, "those that were lost come first"
    first = shown[0]
    place = int(first.flip.item)
    assert first.prompt == f"facts {place}?"
    assert (first.right, first.wrong) == ("yes", ("no", "perhaps"))
    assert (first.before, first.after) == ("ahead by 0.25 nats", "behind by 0.5 nats")
    assert first.place == f"item {place + 1} of facts"


def test_items_of_the_mean_of_tasks_are_found_under_their_own_task(two: tuple[Run, Run], report: GateReport) -> None:
    shown = examples.of_runs(*two)(alarm(report, "mean_accuracy"))
    assert {one.flip.task for one in shown} == {"facts"}
    assert all(one.prompt for one in shown)


def test_without_runs_or_texts_items_are_named(report: GateReport, tmp_path: Path) -> None:
    f = alarm(report, "accuracy")
    assert [one.place for one in examples.bare(f)][:1] == [f"item {lost(f)[0]}"]
    plain = (night(tmp_path), night(tmp_path, Answers().lose(GPTQ, "facts", lost=40, won=4), name=LATER))
    shown = examples.of_runs(*plain)(f)
    assert {(one.prompt, one.before, one.after) for one in shown} == {("", "", "")}


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"items": 5}', b'{"items": [1, {"id": 0}]}', b"[" * 100_000, None])
def test_side_cars_that_cannot_be_read_leave_the_names(
    two: tuple[Run, Run], report: GateReport, content: bytes | None, tmp_path: Path
) -> None:
    def edit(cell: Cell, question: Question, answer: Answer) -> Answer:
        (sample, *rest) = answer.measurements
        kept = "f" * 64 + ".json" if content is None else store.add_blob(tmp_path, content, "json")
        parts = {name: getattr(sample, name) for name in ("metric", "value", "definition", "unit", "n")}
        return Answer(measurements=(Measurement(**parts, blob=kept), *rest))

    broken = night(tmp_path, name=LATER, edit=edit)
    f = alarm(report, "accuracy")
    shown = examples.of_runs(broken, broken)(f)
    assert [one.place for one in shown] == [f"item {item}" for item in lost(f)[: examples.MOST]]


def test_an_item_of_a_hostile_form_is_text(tmp_path: Path, report: GateReport) -> None:
    f = alarm(report, "accuracy")
    row = {
        "id": lost(f)[0],
        "doc": True,
        "gold": "x",
        "margin": True,
        "said": 5,
        "text": {"choices": [1, None], "prompt": 7},
    }

    def edit(cell: Cell, question: Question, answer: Answer) -> Answer:
        kept = store.add_blob(tmp_path, json.dumps({"items": [row]}).encode(), "json")
        return Answer(measurements=(Measurement(metric="accuracy", value=0.5, definition="d", unit="share", blob=kept),))

    strange = night(tmp_path, edit=edit)
    (first, *_) = examples.of_runs(strange, strange)(f)
    assert (first.prompt, first.right, first.wrong, first.before, first.place) == ("7", "", (), "", f"item {row['id']}")
