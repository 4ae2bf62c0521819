"""Python and the page's script answer 1,200 random cases as an independent oracle does, and say the same sentences."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from harness.decide import Candidate, Limits, decide, say
from harness.decode import decode
from harness.report import page as report_page
from harness.spec import to_json
from tests.decide import make_cases
from tests.report import browser

CASES: list[dict[str, Any]] = [json.loads(line) for line in gzip.decompress(make_cases.PATH.read_bytes()).decode().splitlines()]
SCRIPT = Path(report_page.__file__).parent / "assets" / "decide.js"


def python_answers(case: dict[str, Any]) -> tuple[Any, Any]:
    """(decision, sentences of its recommendations), as plain data."""
    cells = [decode(Candidate, cell) for cell in case["cells"]]
    limits = decode(Limits, case["limits"])
    decision = decide(cells, limits)
    return to_json(decision), [to_json(say(cells, limits, answer)) for answer in decision.recommendations]


def test_there_are_more_than_a_thousand_cases_of_every_kind() -> None:
    answers = [answer for case in CASES for answer in case["answer"]["recommendations"]]
    assert len(CASES) >= 1000
    for share, holds in (
        (0.3, lambda a: a["pick"] is None),
        (0.15, lambda a: a["runner_up"] is not None),
        (0.1, lambda a: a["changes"]),
        (0.05, lambda a: a["settle"]),
        (0.1, lambda a: a["alike"]),
    ):
        assert sum(bool(holds(a)) for a in answers) > share * len(answers)
    states = {(o["limit"], o["state"]) for a in answers for v in a["verdicts"] for o in v["obstacles"]}
    assert len(states) == 15  # every limit in every way that it can be missed
    assert {c["gain"] for a in answers for c in a["changes"]} == {"pick", "quality"}


@pytest.mark.slow
def test_the_cases_are_those_that_the_generator_makes() -> None:
    assert gzip.decompress(make_cases.PATH.read_bytes()).decode() == make_cases.text()


def test_python_answers_every_case_as_the_oracle_does() -> None:
    for number, case in enumerate(CASES):
        assert python_answers(case)[0] == case["answer"], f"case {number}"


@pytest.mark.parametrize("count", [100, pytest.param(len(CASES), marks=pytest.mark.slow)])
def test_the_pages_script_answers_every_case_as_the_oracle_and_says_what_python_says(tmp_path: Path, count: int) -> None:
    program = browser.find()
    if program is None:
        pytest.skip(browser.LACKING)
    # As in a report: the only script that the page's policy lets run is this one, by its hash.
    script = SCRIPT.read_text(encoding="utf-8") + "document.documentElement.dataset.ready = 'true'; globalThis.Q = QuantDecide;\n"
    policy = report_page._policy(script)
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    path = tmp_path / "decide.html"
    path.write_text(f"<!doctype html><html><head>{head}</head><body><script>{script}</script></body></html>", encoding="utf-8")
    with browser.page(program) as page:
        page.open(path)
        for first in range(0, count, 100):
            cases = CASES[first : first + 100]
            given = json.dumps([{"cells": c["cells"], "limits": c["limits"]} for c in cases])
            answers = page.evaluate(
                f"{given}.map(({{cells, limits}}) => {{ const d = Q.decide(cells, limits);"
                " return [d, d.recommendations.map((r) => Q.say(cells, limits, r))]; })"
            )
            for number, (case, (decision, sentences)) in enumerate(zip(cases, answers, strict=True), start=first):
                assert decision == case["answer"], f"case {number}"
                assert sentences == python_answers(case)[1], f"case {number}"
        assert page.errors == []
