"""The gate's evidence: written, read back the same, and refused where it is not what was written."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from harness.errors import BadInput, NewerSchema
from harness.gate import junit, markdown, page
from harness.gate.evidence import evidence, read
from harness.gate.types import Figure, GateReport
from tests.gate import reports_by_hand as by_hand
from tests.report import hostile

REPORTS = {
    "red": by_hand.red(),
    "green": by_hand.green(),
    "accepted": by_hand.red(accepted=by_hand.BASE, confirmed=True, findings=(by_hand.slower(cause="flaky", against="accepted"),)),
    "not finite": by_hand.red(findings=(by_hand.lost_accuracy(after=Figure(value=math.inf), change=math.inf, high=-math.inf),)),
    "hostile": by_hand.hostile(tuple(hostile.STRINGS)),
    "half a character": by_hand.red(notes=("a\ud800b",)),
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_what_was_written_is_read_back_the_same(report: GateReport) -> None:
    assert read(evidence(report), "evidence.json") == report


def test_every_other_output_can_be_made_of_the_evidence() -> None:
    again = read(evidence(by_hand.red()), "evidence.json")
    for output in (markdown.comment, junit.junit, page.page, evidence):
        assert output(again) == output(by_hand.red())


def test_it_is_sorted_strict_json_that_says_the_verdict_at_the_top() -> None:
    text = evidence(REPORTS["not finite"]).decode("ascii")
    told = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(told) == sorted(told)
    assert told["green"] is False
    assert told["said"][0] == "red: 1 of 1 square is worse"
    assert told["counts"] == {"regressed": 1}
    assert told["report"]["findings"][0]["change"] == "inf"
    assert evidence(REPORTS["not finite"]).decode() == text


def changed(**parts: Any) -> bytes:
    return json.dumps({**json.loads(evidence(by_hand.red())), **parts}).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"kind": NaN}', "not JSON"),
        (b"[1]", "no evidence of a gate"),
        (b'{"kind": "header"}', "no evidence of a gate"),
        (changed(schema=None), "names no schema"),
        (changed(schema=True), "names no schema"),
        (changed(schema=0), "names no schema"),
        (changed(report=5), "its report is not what schema 2 says"),
        (changed(report={}), r"its report is not what schema 2 says \(base: is missing"),
        (changed(green=True), "is not what the report says"),
        (changed(said=["green: nothing is worse"]), "is not what the report says"),
    ],
)
def test_what_is_no_evidence_is_refused_in_words(data: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        read(data, "evidence.json")
    assert str(refused.value).startswith("evidence.json: ")
    assert "quant-harness gate" in str(refused.value)


def test_an_alarm_that_was_taken_out_of_the_file_shows() -> None:
    told = json.loads(evidence(by_hand.red()))
    told["report"]["findings"] = [f for f in told["report"]["findings"] if f["verdict"] != "regressed"]
    with pytest.raises(BadInput, match="it was changed"):
        read(json.dumps(told).encode(), "evidence.json")


def test_a_later_schema_is_refused_with_the_command_that_helps() -> None:
    with pytest.raises(NewerSchema, match=re.escape("pip install --upgrade llm-quant-harness")):
        read(changed(schema=3), "evidence.json")
