"""The gate as JUnit XML: what Jenkins, GitLab and GitHub's actions accept, one test case per square."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import pytest

from harness.gate import junit
from harness.gate.types import GateReport
from tests.gate import reports_by_hand as by_hand
from tests.report import hostile

CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase", "system-out"},
    "properties": {"property"},
    "property": set[str](),
    "testcase": {"failure", "error", "skipped", "system-out"},
}
ATTRIBUTES = {
    "testsuites": ({"name", "tests", "failures", "errors", "time"}, set[str]()),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"skipped", "time", "timestamp", "hostname"}),
    "property": ({"name", "value"}, set[str]()),
    "testcase": ({"name", "classname"}, {"time"}),
    "failure": ({"type", "message"}, set[str]()),
    "error": ({"type", "message"}, set[str]()),
    "skipped": ({"message"}, {"type"}),
}
"""By element: what must stand there, and what else may. Both the schema of Jenkins' xUnit plugin (junit-10.xsd) and that of Ant's
format allow each of these."""


def read(report: GateReport) -> ET.Element:
    """The file, parsed, once its form is that of the schemas and its counts are those of its cases."""
    root = ET.fromstring(junit.junit(report))
    for element in root.iter():
        must, may = ATTRIBUTES.get(element.tag, (set(), set()))
        assert must <= set(element.keys()) <= must | may, element.tag
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set()), element.tag
    (suite,) = root
    order = [child.tag for child in suite]
    assert order == sorted(order, key=["properties", "testcase", "system-out"].index)
    cases = suite.findall("testcase")
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(name, "")) == len(suite.findall(f"testcase/{tag}"))
    assert int(suite.get("tests", "")) == len(cases) == len(report.findings)
    assert [suite.get(n) for n in ("tests", "failures", "errors")] == [root.get(n) for n in ("tests", "failures", "errors")]
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases), "no two cases share a name"
    return suite


def outcomes(suite: ET.Element) -> dict[str, list[str]]:
    """Names of test cases by what they are."""
    found: dict[str, list[str]] = {}
    for case in suite.findall("testcase"):
        found.setdefault(case[0].tag, []).append(case.get("name", ""))
    return found


def test_each_square_is_a_test_case_with_what_was_found() -> None:
    found = outcomes(read(by_hand.red()))
    assert found["failure"] == ["Mean accuracy, mean of 6 tasks", "Time per token, prompt 128, batch 1"]
    assert found["error"] == ["Perplexity, reference", "Perplexity, reference"]
    assert found["skipped"] == ["Time per token, prompt 128, batch 1", "Mean KL divergence, reference"]
    assert len(found["system-out"]) == 7


def test_a_failure_says_before_after_interval_threshold_its_origin_and_the_command() -> None:
    report = by_hand.red()
    failure = next(read(report).iter("failure"))
    message = failure.get("message", "").replace("\u202f", " ")
    for part in ("96.4 % → 94.1 %", "(1.4 to 3.2)", "threshold 0.25 points, from the default policy"):
        assert part in message
    alarm = by_hand.lost_accuracy()
    assert f"Ask it again: {report.commands[alarm.square.name]}" in (failure.text or "")


def test_a_skipped_case_says_why() -> None:
    said = [e.get("message", "") for e in read(by_hand.green()).iter("skipped")]
    assert said == [f"not comparable: {said[0].partition(': ')[2]}"]
    assert "other machine" in said[0]


@pytest.mark.parametrize("verdict", ["missing", "failed"])
def test_the_suite_is_red_wherever_the_gate_is_and_green_wherever_it_is(verdict: str) -> None:
    found = next(f for f in by_hand.others() if f.verdict == verdict)
    alarm = by_hand.lost_accuracy()
    for f in (
        found,
        alarm,
        dataclasses.replace(found, muted="known"),
        dataclasses.replace(alarm, muted="known"),
        by_hand.quiet(0),
    ):
        report = by_hand.red(findings=(f,))
        suite = read(report)
        red = (suite.get("failures"), suite.get("errors")) != ("0", "0")
        assert red is not report.green


def test_squares_that_are_alike_but_for_their_definition_keep_apart() -> None:
    first = by_hand.quiet(0)
    other = dataclasses.replace(first, square=dataclasses.replace(first.square, definition="another"))
    names = [c.get("name") for c in read(by_hand.red(findings=(first, other, other))).findall("testcase")]
    assert names[0] != names[1] != names[2]


@pytest.mark.parametrize("start", range(0, len(hostile.STRINGS), 20))
def test_whatever_stands_in_a_name_it_is_xml_and_nothing_but_text(start: int) -> None:
    strings = tuple(hostile.STRINGS[start : start + 20])
    suite = read(by_hand.hostile(strings))
    assert suite.get("errors") == read(by_hand.hostile(("x",))).get("errors")


def test_characters_that_xml_forbids_are_replaced() -> None:
    f = by_hand.lost_accuracy(square=by_hand.square(label="a\0b\x0bc\ufffed\ud800e\x7ff\U0001f92f"))
    case = read(by_hand.red(findings=(f,))).find("testcase")
    assert case is not None
    assert case.get("classname") == "reference-12m / a\ufffdb\ufffdc\ufffdd\ufffde\x7ff\U0001f92f"


def test_the_same_report_gives_the_same_bytes_and_no_time_but_the_candidates_own() -> None:
    assert junit.junit(by_hand.red()) == junit.junit(by_hand.red())
    suite = read(by_hand.red())
    assert suite.get("timestamp") == "2026-11-29T02:00:00"
    assert {case.get("time") for case in suite.findall("testcase")} == {"0"}
