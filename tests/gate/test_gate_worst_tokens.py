"""An alarm of a divergence shows its worst tokens with their text, on the page and in the evidence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from harness import store
from harness.gate import evidence, judge
from harness.gate.page import page
from harness.gate.types import Finding, GateReport
from harness.spec import Answer, Cell, Question
from harness.store import Run
from tests.gate.nights import HQQ, Answers, Edit, measured, night

LATER = "20261121T020000000000Z-bbbbbbbb"
HOSTILE = "<script>alert(1)</script>"


def with_tokens(folder: Path, given: Answers) -> Edit:
    """Side-cars as the probe keeps them: the tokens of largest divergence, the largest first."""

    def edit(cell: Cell, question: Question, answer: Answer) -> Answer:
        if question.probe != "divergence" or cell.label not in given.kl:
            return answer
        kl = given.kl[cell.label]
        rows = []
        for place in np.argsort(-kl, axis=None)[:12]:
            window, column = divmod(int(place), kl.shape[1])
            text = {"before": f"before {window} {HOSTILE}", "token": f"word {column}", "after": " after", "same_guess": False}
            rows.append({"window": window, "position": column + 1, "kl": float(kl.flat[place]), "p_base": 0.5, "p": 0.25, **text})
        blob = store.add_blob(folder, json.dumps({"tokens": rows}).encode(), "json")
        most = dataclasses.replace(measured("kl_max", float(kl.max())), blob=blob)
        return dataclasses.replace(answer, measurements=(*answer.measurements, most))

    return edit


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("nights")
    before, worse = Answers(), Answers()
    worse.kl[HQQ.label] = worse.kl[HQQ.label] * 1.5
    worse.kl[HQQ.label][3, 7] = 0.5
    return (
        night(folder, before, edit=with_tokens(folder, before)),
        night(folder, worse, name=LATER, edit=with_tokens(folder, worse)),
    )


@pytest.fixture(scope="module")
def report(two: tuple[Run, Run]) -> GateReport:
    return judge.gate(*two)


def alarm(report: GateReport) -> Finding:
    return next(f for f in report.alarms if f.square.metric == "kl_mean")


def test_the_worst_tokens_of_an_alarm_stand_with_their_text_and_what_they_were_before(report: GateReport) -> None:
    found = alarm(report).tokens
    assert len(found) == 8
    assert [one.kl for one in found] == sorted((one.kl for one in found), reverse=True)
    assert (found[0].kl, found[0].token) == (0.5, "word 7")
    assert found[0].earlier == pytest.approx(float(Answers().kl[HQQ.label][3, 7]), rel=1e-6)
    assert all(one.earlier == pytest.approx(one.kl / 1.5, rel=1e-5) for one in found[1:])


def test_nothing_else_has_tokens(report: GateReport) -> None:
    assert [f.square.metric for f in report.findings if f.tokens] == ["kl_mean"]


def test_they_stand_on_the_page_as_text_and_in_the_evidence(report: GateReport) -> None:
    shown = page(report).decode()
    assert "<mark>word 7</mark>" in shown
    assert "KL before" in shown
    assert HOSTILE not in shown
    assert "0.500" in shown
    data = evidence.evidence(report)
    assert alarm(evidence.read(data, "night.json")).tokens == alarm(report).tokens
    assert b"word 7" in data


def test_an_alarm_without_a_side_car_has_none_and_is_an_alarm_all_the_same(tmp_path: Path) -> None:
    worse = Answers()
    worse.kl[HQQ.label] = worse.kl[HQQ.label] * 1.5
    found = alarm(judge.gate(night(tmp_path), night(tmp_path, worse, name=LATER)))
    assert found.tokens == ()


@pytest.mark.parametrize(
    "kept",
    [
        b"[]",
        b"nonsense",
        b'{"tokens": 5}',
        b'{"tokens": [5, {"kl": "x"}, {"kl": NaN}, {"kl": 1.0, "window": -1, "position": 2}]}',
    ],
)
def test_a_side_car_of_another_shape_shows_what_can_be_read_of_it(kept: bytes, tmp_path: Path) -> None:
    def edit(cell: Cell, question: Question, answer: Answer) -> Answer:
        if question.probe != "divergence" or cell.label != HQQ.label:
            return answer
        most = dataclasses.replace(measured("kl_max", 1.0), blob=store.add_blob(tmp_path, kept, "json"))
        return dataclasses.replace(answer, measurements=(*answer.measurements, most))

    worse = Answers()
    worse.kl[HQQ.label] = worse.kl[HQQ.label] * 1.5
    found = alarm(judge.gate(night(tmp_path), night(tmp_path, worse, name=LATER, edit=edit)))
    assert [(one.kl, one.earlier) for one in found.tokens] == ([(1.0, None)] if b"NaN" in kept else [])
