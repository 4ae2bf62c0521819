"""What asking once more makes of an alarm: it stands, the baseline moved as well, it was not seen again, it was the machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.gate import judge
from harness.gate.confirm import confirm, keys
from harness.gate.types import GateReport
from harness.spec import Answer, Cell, Failure, Question
from tests.gate.nights import BASE, CELLS, GPTQ, HQQ, Answers, night

LATER, AGAIN = "20261121T020000000000Z-bbbbbbbb", "20261121T060000000000Z-cccccccc"


def confirmed(folder: Path, tonight: Answers, once_more: Answers, *, cells: tuple[Cell, ...] = (BASE, GPTQ)) -> GateReport:
    """The gate of a night against an ordinary one, confirmed by what `cells` answer once more."""
    base = night(folder)
    report = judge.gate(base, night(folder, tonight, name=LATER))
    assert report.alarms
    return confirm(report, judge.gate(base, night(folder, once_more, name=AGAIN, cells=cells)))


def causes(report: GateReport) -> dict[tuple[str, str], str]:
    return {(f.square.label, f.square.metric): f.cause for f in report.findings if f.verdict == "regressed"}


def worse(**cells: int) -> Answers:
    """Answers in which cells lose so many items of the task `facts`."""
    answers = Answers()
    for cell in CELLS:
        answers.lose(cell, "facts", lost=cells.get(cell.method, 0))
    return answers


def slower(**cells: float) -> Answers:
    answers = Answers()
    for cell in CELLS:
        answers.tpot[cell.label] *= cells.get(cell.method, 1.0)
    return answers


def test_what_is_worse_again_is_a_regression_and_an_alarm(tmp_path: Path) -> None:
    report = confirmed(tmp_path, worse(gptq=40), worse(gptq=40))
    assert causes(report) == {(GPTQ.label, "accuracy"): "regression", (GPTQ.label, "mean_accuracy"): "regression"}
    assert report.confirmed
    assert not report.green
    assert "asked again, it is worse again" in report.alarms[0].reason


def test_what_is_not_seen_again_is_flaky_and_named_and_no_alarm(tmp_path: Path) -> None:
    report = confirmed(tmp_path, worse(gptq=40), Answers())
    assert set(causes(report).values()) == {"flaky"}
    assert not report.alarms
    assert report.green
    assert report.count("regressed") == 2, "it is not called within noise: it was seen once"


def test_a_cell_that_loses_what_its_baseline_loses_is_no_alarm_and_the_baseline_is(tmp_path: Path) -> None:
    both = worse(bf16=40, gptq=40)
    report = confirmed(tmp_path, both, both)
    assert causes(report)[GPTQ.label, "accuracy"] == "stale baseline"
    assert causes(report)[BASE.label, "accuracy"] == "regression"
    assert {f.square.label for f in report.alarms} == {BASE.label}


def test_a_cell_that_loses_much_more_than_its_baseline_is_still_a_regression(tmp_path: Path) -> None:
    both = worse(bf16=25, gptq=120)
    assert causes(confirmed(tmp_path, both, both))[GPTQ.label, "accuracy"] == "regression"


def test_a_cell_that_is_slow_once_more_beside_a_baseline_that_is_as_slow_is_the_machine(tmp_path: Path) -> None:
    report = confirmed(tmp_path, slower(gptq=2.5), slower(gptq=2.5, bf16=2.5))
    assert causes(report) == {(GPTQ.label, "tpot"): "machine"}
    assert report.green


@pytest.mark.parametrize(("again", "cause"), [({"gptq": 2.5}, "regression"), ({}, "flaky"), ({"bf16": 2.5}, "flaky")])
def test_a_slow_cell_is_a_regression_only_if_it_is_slow_again_against_its_baseline(
    again: dict[str, float], cause: str, tmp_path: Path
) -> None:
    assert causes(confirmed(tmp_path, slower(gptq=2.5), slower(**again))) == {(GPTQ.label, "tpot"): cause}


def test_a_changed_size_has_no_baseline_to_blame(tmp_path: Path) -> None:
    larger = Answers()
    for cell in (BASE, GPTQ):
        larger.bytes[cell.label] *= 1.25
    found = causes(confirmed(tmp_path, larger, larger))
    assert found
    assert set(found.values()) == {"regression"}


def test_what_has_no_answer_the_second_time_stays_an_alarm(tmp_path: Path) -> None:
    base = night(tmp_path)
    report = judge.gate(base, night(tmp_path, worse(gptq=40), name=LATER))

    def dies(cell: Cell, question: Question, answer: Answer) -> Answer | Failure:
        return Failure(kind="crash", phase="tasks", message="it crashed") if cell.label == GPTQ.label else answer

    again = confirm(report, judge.gate(base, night(tmp_path, name=AGAIN, edit=dies)))
    assert len(again.alarms) == 2
    assert all("asked again it has no answer" in f.reason for f in again.alarms)
    elsewhere = confirm(report, judge.gate(base, night(tmp_path, name=AGAIN, cells=(BASE, HQQ))))
    assert len(elsewhere.alarms) == 2


def test_the_questions_of_alarms_and_the_same_of_their_baseline_are_asked_and_no_others(tmp_path: Path) -> None:
    base, candidate = night(tmp_path), night(tmp_path, slower(gptq=2.5), name=LATER)
    asked = keys(judge.gate(base, candidate), candidate)
    records = {r.key: r for r in candidate.records}
    assert [(records[key].cell.label, records[key].question.probe) for key in asked] == [
        (BASE.label, "latency"),
        (GPTQ.label, "latency"),
    ]


def test_nothing_is_asked_where_nothing_is_alarmed_and_nothing_of_what_the_policy_mutes(tmp_path: Path) -> None:
    base, candidate = night(tmp_path), night(tmp_path, worse(gptq=40), name=LATER)
    assert keys(judge.gate(base, night(tmp_path, name=LATER)), candidate) == ()
    report = judge.gate(base, candidate)
    muted = dataclasses.replace(report, findings=tuple(dataclasses.replace(f, muted="until then") for f in report.findings))
    assert keys(muted, candidate) == ()


def test_the_same_two_reports_always_make_the_same_one(tmp_path: Path) -> None:
    first = confirmed(tmp_path, worse(gptq=40), Answers())
    again = confirmed(tmp_path, worse(gptq=40), Answers())
    assert first == again


def test_a_cell_that_lost_more_than_a_baseline_that_is_no_alarm_is_not_excused_by_it(tmp_path: Path) -> None:
    """The baseline lost a little, which nobody would be told of: the cell's loss must count somewhere."""
    first, again = (Answers().lose(GPTQ, "facts", lost=300).lose(BASE, "facts", lost=6) for _ in range(2))
    report = confirmed(tmp_path, first, again)
    assert (GPTQ.label, "accuracy") in {(f.square.label, f.square.metric) for f in report.alarms}
    assert not report.green
