"""`run --only`: some questions of a suite by themselves, by key or by name, in a run file that nothing takes for a whole run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import cli, store
from harness.cli_verify import check
from harness.errors import BadInput, UnknownName
from harness.run import runner
from harness.spec import Record
from harness.suite.matrix import plan

WriteSuite = Callable[..., Path]


def run(suite: Path, tmp_path: Path, *only: str, fresh: bool = False) -> store.Run:
    settings = runner.Settings(results=tmp_path / "results", cache=tmp_path / "cache", only=only, fresh=fresh)
    return store.read(runner.run(plan(suite, device="cpu"), settings))


def measured(tmp_path: Path) -> Counter[str]:
    return Counter((tmp_path / "cache" / "fake-measured.txt").read_text().splitlines())


def found(stored: store.Run, label: str, subject: str) -> Record:
    return next(r for r in stored.records if r.cell.label == label and r.question.subject == subject)


def test_one_question_is_asked_by_its_key_and_nothing_else_is(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: [4, 3]}")
    whole = run(suite, tmp_path)
    key = found(whole, "fake 4-bit", "b").key
    again = run(suite, tmp_path, key[:12], fresh=True)
    assert [(r.cell.label, r.question.subject, r.key) for r in again.records] == [("fake 4-bit", "b", key)]
    assert measured(tmp_path)["fake 4-bit b"] == 2
    assert sum(measured(tmp_path).values()) == sum(len(p.questions) - 1 for p in whole.plan.cells) + 1


def test_its_file_lies_apart_so_that_the_newest_run_of_the_suite_stays_the_whole_one(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite("{bits: 4}")
    whole = run(suite, tmp_path)
    again = run(suite, tmp_path, found(whole, "fake 4-bit", "a").key, fresh=True)
    assert store.newest(tmp_path / "results" / "scripted") == whole.path
    assert again.path.parent == whole.path.parent / "confirm"
    assert again.plan.only
    assert not whole.plan.only
    assert any("no whole run" in note for note in again.plan.notes)
    assert [each.path for each in check(tmp_path / "results")] == [whole.path, again.path]


def test_without_fresh_it_goes_on_where_it_was_and_with_fresh_it_asks_once_more(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4}")
    key = found(run(suite, tmp_path), "fake 4-bit", "a").key
    first = run(suite, tmp_path, key)
    assert run(suite, tmp_path, key).path == first.path
    assert measured(tmp_path)["fake 4-bit a"] == 2
    assert run(suite, tmp_path, key, fresh=True).path != first.path
    assert measured(tmp_path)["fake 4-bit a"] == 3


def test_other_questions_begin_another_file_so_that_each_file_says_what_it_was_asked(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite("{bits: 4}")
    one = run(suite, tmp_path, "tiny / fake 4-bit: fake a")
    other = run(suite, tmp_path, "tiny / fake 4-bit: fake b")
    assert one.path != other.path
    assert [q.subject for p in other.plan.cells for q in p.questions] == ["b"]


def test_a_cell_is_asked_as_a_whole_by_its_name(write_suite: WriteSuite, tmp_path: Path) -> None:
    again = run(write_suite("{bits: [4, 3]}"), tmp_path, "tiny / fake 3-bit")
    assert {r.cell.label for r in again.records} == {"fake 3-bit"}
    assert len(again.records) == 4
    assert again.ended


def test_an_answer_that_is_paired_with_the_baselines_brings_the_baselines_with_it(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite("{bits: 4}", extra="budget: auto")
    again = run(suite, tmp_path, "tiny / fake 4-bit: fake items")
    assert [(r.cell.label, r.question.subject, r.status) for r in again.records] == [
        ("fake 16-bit", "items", "ok"),
        ("fake 4-bit", "items", "ok"),
    ]


@pytest.mark.parametrize(
    ("only", "error", "says"),
    [
        ("0123456789ab", BadInput, "no question of this suite has such a key.*quant-harness plan SUITE --json"),
        ("abc", BadInput, "3 digits are too few"),
        ("tiny / fake 4-bit: fake aa", UnknownName, "did you mean 'tiny / fake 4-bit: fake a'"),
    ],
)
def test_a_name_that_means_no_question_is_refused_with_what_to_do(
    only: str, error: type[BadInput], says: str, write_suite: WriteSuite, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        run(write_suite("{bits: 4}"), tmp_path, only)
    assert not (tmp_path / "results").exists()


def call(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_keys_and_names_stand_in_the_plan_and_keys_in_the_results(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4}")
    whole = run(suite, tmp_path)
    data = json.loads(call("plan", suite, "--json", "--results", tmp_path / "results", "--cache", tmp_path / "cache"))
    shown = {question["name"]: question["key"] for cell in data["cells"] for question in cell["questions"]}
    assert set(shown.values()) == {record.key for record in whole.records}
    assert shown["tiny / fake 4-bit: fake a"] == found(whole, "fake 4-bit", "a").key
    rows = json.loads(call("results", whole.path, "--format", "json"))
    keys = {(row["scheme"], row["subject"]): row["key"] for row in rows if row["metric"] == "fake_value"}
    assert keys["fake 4-bit", "b"] == found(whole, "fake 4-bit", "b").key


def test_a_run_of_some_questions_writes_no_report_over_the_suites(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite("{bits: 4}")
    monkeypatch.chdir(tmp_path)
    said = call("run", suite, "--only", "tiny / fake 4-bit: fake a", "--cache", tmp_path / "cache")
    assert "report" not in said
    assert not (tmp_path / "reports").exists()
    assert (tmp_path / "results" / "scripted" / "confirm").is_dir()
