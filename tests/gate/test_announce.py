"""One issue for each regression, however many nights; against a local stand-in of the trackers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness import cli
from harness.announce import issues
from harness.announce.trackers import Api, GitHub
from harness.errors import BadInput, HarnessError
from harness.gate import evidence, judge, markdown
from harness.gate.types import GateReport
from harness.spec import Cell, Failure
from tests.gate import tracker
from tests.gate.nights import GPTQ, HQQ, Answers, night

NIGHTS = [f"202611{day}T020000000000Z-bbbbbbbb" for day in range(21, 30)]


@pytest.fixture(params=["github", "gitlab"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GITHUB_TOKEN", tracker.TOKEN)
    monkeypatch.setenv("GITLAB_TOKEN", tracker.TOKEN)
    return str(request.param)


@pytest.fixture
def server() -> Iterator[tracker.State]:
    with tracker.standing_in() as state:
        yield state


def report(folder: Path, name: str, *worse: Cell, task: str = "facts", **changes: Any) -> GateReport:
    """A night in which cells lost forty items of a task."""
    answers = Answers()
    for cell in worse:
        answers.lose(cell, task, lost=40)
    found = judge.gate(night(folder), night(folder, answers, name=name))
    return dataclasses.replace(found, **changes)


def announce(folder: Path, found: GateReport, server: tracker.State, kind: str, *more: str) -> str:
    path = folder / "verdict.json"
    path.write_bytes(evidence.evidence(found))
    done = CliRunner().invoke(cli.app, ["announce", str(path), f"--{kind}", "team/project", "--url", server.url, *more])
    if done.exception is not None and isinstance(done.exception, HarnessError):
        raise done.exception
    assert done.exit_code == 0, done.output
    assert tracker.TOKEN not in done.output
    return done.output


def test_five_nights_of_the_same_regression_are_one_issue_of_which_nobody_hears_again(
    kind: str, server: tracker.State, tmp_path: Path
) -> None:
    said = [announce(tmp_path, report(tmp_path, name, GPTQ), server, kind) for name in NIGHTS[:5]]
    assert len(server.issues) == 1
    assert said[0].startswith("opened #1: Regression: reference / gptq 4-bit g64 (quick)")
    assert all(s.startswith("brought #1 up to date") for s in said[1:])
    assert server.said(1) == [], "an updated text tells nobody"
    body = server.issues[0]["body"]
    assert f"First seen in {NIGHTS[0]}, last in {NIGHTS[4]}" in body.replace("\\", "")
    assert server.issues[0]["labels"] == [issues.LABEL]


def test_it_is_closed_by_the_first_night_that_is_green_and_a_return_is_a_new_issue(
    kind: str, server: tracker.State, tmp_path: Path
) -> None:
    announce(tmp_path, report(tmp_path, NIGHTS[0], GPTQ), server, kind)
    assert announce(tmp_path, report(tmp_path, NIGHTS[1]), server, kind).startswith("closed #1")
    assert server.open == []
    assert "Not worse any more" in server.said(1)[0]
    assert "nothing to tell" in announce(tmp_path, report(tmp_path, NIGHTS[2]), server, kind)
    announce(tmp_path, report(tmp_path, NIGHTS[3], GPTQ), server, kind)
    assert [issue["number"] for issue in server.open] == [2]


def test_two_cells_are_two_issues_and_each_is_closed_by_itself(kind: str, server: tracker.State, tmp_path: Path) -> None:
    announce(tmp_path, report(tmp_path, NIGHTS[0], GPTQ, HQQ), server, kind)
    assert len(server.open) == 2
    announce(tmp_path, report(tmp_path, NIGHTS[1], HQQ), server, kind)
    assert [issue["title"].split(" (")[0] for issue in server.open] == ["Regression: reference / hqq 4-bit g64"]


def test_another_square_of_the_same_cell_is_told_in_a_comment(kind: str, server: tracker.State, tmp_path: Path) -> None:
    announce(tmp_path, report(tmp_path, NIGHTS[0], GPTQ), server, kind)
    announce(tmp_path, report(tmp_path, NIGHTS[1], GPTQ, task="tracking"), server, kind)
    assert len(server.issues) == 1
    (comment,) = server.said(1)
    assert "Also worse" in comment
    assert "tracking" in comment
    announce(tmp_path, report(tmp_path, NIGHTS[2], GPTQ), server, kind)
    assert len(server.open) == 1, "one of its squares is well, the other was well only tonight"


def test_the_same_night_told_twice_changes_nothing(kind: str, server: tracker.State, tmp_path: Path) -> None:
    found = report(tmp_path, NIGHTS[0], GPTQ)
    announce(tmp_path, found, server, kind)
    asked = len(server.asked)
    assert "nothing to tell" in announce(tmp_path, found, server, kind)
    assert [line for line in server.asked[asked:] if not line.startswith("GET")] == []


@pytest.mark.parametrize("how", ["flaky", "muted", "missing", "failed"])
def test_a_night_that_proves_nothing_neither_opens_nor_closes(how: str, kind: str, server: tracker.State, tmp_path: Path) -> None:
    announce(tmp_path, report(tmp_path, NIGHTS[0], GPTQ), server, kind)
    found = report(tmp_path, NIGHTS[1], GPTQ, HQQ)
    if how == "flaky":
        findings = tuple(dataclasses.replace(f, cause="flaky") if f.alarm else f for f in found.findings)
    elif how == "muted":
        findings = tuple(dataclasses.replace(f, muted="until then") if f.alarm else f for f in found.findings)
    else:
        bad = Failure(kind="crash", phase="tasks", message="crashed")
        edited = night(
            tmp_path,
            name=NIGHTS[1],
            edit=lambda cell, question, answer: answer if question.probe != "tasks" else (bad if how == "failed" else None),
        )
        findings = judge.gate(night(tmp_path), edited).findings
    announce(tmp_path, dataclasses.replace(found, findings=findings), server, kind)
    assert len(server.open) == 1
    assert len(server.issues) == 1


def test_issues_are_found_beyond_the_first_page_and_those_of_others_are_left_alone(
    kind: str, server: tracker.State, tmp_path: Path
) -> None:
    others = [
        {"number": i + 1, "title": "x", "body": f"not ours {i}", "labels": [issues.LABEL], "state": "open"} for i in range(120)
    ]
    server.issues += others
    announce(tmp_path, report(tmp_path, NIGHTS[0], GPTQ), server, kind)
    announce(tmp_path, report(tmp_path, NIGHTS[1], GPTQ), server, kind)
    assert len(server.issues) == 121
    assert [issue["body"] for issue in server.issues[:120]] == [f"not ours {i}" for i in range(120)]


def test_a_pull_request_has_one_comment_that_is_brought_up_to_date(kind: str, server: tracker.State, tmp_path: Path) -> None:
    server.comments[17] = [{"id": 1, "body": "a person's"}]
    for name, worse in zip(NIGHTS[:3], ([GPTQ], [GPTQ, HQQ], []), strict=True):
        announce(tmp_path, report(tmp_path, name, *worse), server, kind, "--pull", "17")
    assert len(server.said(17)) == 2
    assert server.said(17)[1].startswith(markdown.MARKER)
    assert server.issues == []


def test_what_a_tracker_refuses_is_one_sentence_without_the_token(kind: str, server: tracker.State, tmp_path: Path) -> None:
    server.refuse = 403
    with pytest.raises(HarnessError, match=r"127\.0\.0\.1 answered 403 to GET .*the token may not do this") as refused:
        announce(tmp_path, report(tmp_path, NIGHTS[0], GPTQ), server, kind)
    assert tracker.TOKEN not in str(refused.value)


@pytest.mark.parametrize(("token", "says"), [("", "the variable GITHUB_TOKEN is empty"), ("a\nb", "cannot be a token")])
def test_a_token_that_is_none_is_said_without_showing_it(
    token: str, says: str, server: tracker.State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", token)
    with pytest.raises(BadInput, match=says):
        announce(tmp_path, report(tmp_path, NIGHTS[0], GPTQ), server, "github")


def test_a_token_is_sent_to_encrypted_addresses_only_and_to_repositories_that_are_some() -> None:
    with pytest.raises(BadInput, match="not sent without encryption"):
        Api(url="http://tracker.example/api", token_env="GITHUB_TOKEN", header="Authorization")
    with pytest.raises(BadInput, match="no repository at GitHub"):
        GitHub.at("team/project/../../x")


def test_without_a_tracker_it_says_what_it_would_do_and_sends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_bytes(evidence.evidence(report(tmp_path, NIGHTS[0], GPTQ)))
    done = CliRunner().invoke(cli.app, ["announce", str(path)])
    assert done.output.startswith("would open: Regression: reference / gptq 4-bit g64 (quick)")


def test_names_from_a_run_can_write_nothing_but_text_into_an_issue(tmp_path: Path) -> None:
    found = report(tmp_path, NIGHTS[0], GPTQ)
    hostile = "gptq <img src=x> @everyone --> [x](http://x)\n# y"
    findings = tuple(
        dataclasses.replace(f, square=dataclasses.replace(f.square, label=hostile)) if f.alarm else f for f in found.findings
    )
    (action,) = issues.actions(dataclasses.replace(found, findings=findings), [])
    assert isinstance(action, issues.Open)
    assert "\n" not in action.title
    assert "<img" not in action.body
    assert "\n# y" not in action.body
    assert "\\[x\\]" in action.body
    assert "\\@everyone" in action.body
