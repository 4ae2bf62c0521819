"""The command line from outside: what it prints, what it answers to mistakes, and with which exit code."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

import harness
from harness import store
from harness.report.terminal import named

WriteSuite = Callable[..., Path]
COLUMNS = ["model", "method", "bits", "scheme", "metric", "definition", "value", "low", "high", "n", "unit", "status"]


def call(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


@pytest.fixture
def finished(write_suite: WriteSuite, tmp_path: Path) -> Path:
    """The results folder of a small finished run with one failure."""
    suite = write_suite("{bits: 4, value: 3.5}", "{bits: 3, on_b: 'raise:boom'}")
    done = call("run", suite, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "results" / "scripted"


def test_a_run_says_each_number_as_it_comes_and_ends_with_a_table_and_the_report(write_suite: WriteSuite, tmp_path: Path) -> None:
    done = call("run", write_suite("{bits: 4, value: 3.5}", "{bits: 3, unsupported: needs a moon}"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[8/8]" in done.stdout
    assert "fake_value 3.5" in done.stdout
    assert "needs a moon" in done.stdout
    assert "report   reports/scripted.html" in done.stdout
    assert (tmp_path / "reports" / "scripted.html").stat().st_size > 100_000


@pytest.mark.parametrize(
    "verb", [["methods"], ["methods", "--help"], ["results", "{results}", "--format", "csv"], ["verify", "{results}"]]
)
def test_a_reader_that_leaves_ends_a_verb_quietly_as_it_ends_other_programs(verb: list[str], finished: Path) -> None:
    command = [sys.executable, "-m", "harness.cli", *(word.format(results=finished) for word in verb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (128 + signal.SIGPIPE, "")


def test_no_name_of_a_model_steers_the_terminal_and_a_long_one_is_shortened(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4}", "{bits: 3, on_b: 'raise:boom'}", "{bits: 2, unsupported: needs a moon}")
    long = "m" * 290
    suite.write_text(suite.read_text().replace("name: tiny", f'name: "\\e[31mred\\r{long}\\u202eend"'))
    for verb in ("plan", "run"):
        done = call(verb, suite, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = done.stdout + done.stderr
        assert "red" in said
        assert all(c.isprintable() or c in "\n\u202f" for c in said), verb
    assert named(f"\x1b{long} end").endswith("mmm end")
    assert len(named(long)) == 100


def test_results_come_as_one_tidy_table_in_every_format(finished: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(call("results", finished, "--format", "csv").stdout)))
    assert set(COLUMNS) <= set(rows[0])
    values = {(r["scheme"], r["status"]): r["value"] for r in rows if r["metric"] == "fake_value"}
    assert values["fake 4-bit value=3.5" if ("fake 4-bit value=3.5", "ok") in values else "fake 4-bit 3.5", "ok"] == "3.5"
    assert any(r["status"] == "error" and not r["value"] for r in rows)
    data = json.loads(call("results", finished, "--format", "json").stdout)
    assert len(data) == len(rows)
    target = tmp_path / "r.parquet"
    assert call("results", finished, "--format", "parquet", "-o", target).returncode == 0
    frame = pandas.read_parquet(target)
    assert len(frame) == len(rows)
    assert "| scheme" in call("results", finished, "--format", "markdown").stdout.replace("|scheme", "| scheme")
    assert "Fake value" in call("results", finished).stdout
    assert list(harness.frame(finished).columns) == list(frame.columns)


def test_a_report_can_be_made_again_from_stored_results_byte_for_byte(finished: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    assert call("report", finished, "-o", first).returncode == 0
    harness.render(store.newest(finished), second)
    assert first.read_bytes() == second.read_bytes()


def test_a_report_of_two_runs_sets_them_side_by_side_and_one_run_is_not_two(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(finished, other)
    both = tmp_path / "both.html"
    done = call("report", finished, other, "-o", both)
    assert done.returncode == 0, done.stderr
    assert "2 runs side by side" in both.read_text()
    again = call("report", finished, finished, "-o", both)
    assert again.returncode == 2
    assert "the same run is named twice" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "quik"], "did you mean 'quick'"),
        (["run", "nowhere.yaml"], "no such suite file"),
        (["plan", "nowhere.yaml"], "built-in suites: "),
        (["report", "nowhere"], "no such results file; make one with: quant-harness run SUITE"),
        (["results", "."], "holds no results"),
        (["run", "quick", "--device", "tpu"], "device"),
    ],
)
def test_a_mistake_is_answered_in_words_with_exit_code_two(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_results_folder_is_answered_before_anything_runs(write_suite: WriteSuite, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call("run", write_suite("{bits: 4}"), "--results", tmp_path / "file" / "results", cwd=tmp_path)
    assert done.returncode == 2
    assert "choose another" in done.stderr
    assert not (tmp_path / "cache" / "artifacts").exists()


@pytest.mark.parametrize(("schema", "advice"), [(99, "pip install --upgrade"), (1, "measure again with")])
def test_results_of_another_schema_are_refused_with_advice_and_left_untouched(finished: Path, schema: int, advice: str) -> None:
    path = store.newest(finished)
    other = path.read_text().replace('"schema":4', f'"schema":{schema}', 1)
    path.write_text(other)
    verbs: list[list[str | Path]] = [["results", finished], ["report", finished, "-o", finished / "x.html"]]
    for verb in verbs:
        done = call(*verb)
        assert done.returncode == 2
        assert advice in done.stderr
    assert path.read_text() == other


def test_beside_a_run_of_an_older_schema_a_new_one_begins(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite, results = write_suite("{bits: 4}"), tmp_path / "results"
    assert call("run", suite, "--results", results, cwd=tmp_path).returncode == 0
    (old,) = (results / "scripted").glob("*.jsonl")
    old.write_text(old.read_text().replace('"schema":4', '"schema":1'))
    assert call("run", suite, "--results", results, cwd=tmp_path).returncode == 0
    assert len(list((results / "scripted").glob("*.jsonl"))) == 2


def test_a_damaged_line_is_named_and_left_out(finished: Path) -> None:
    path = store.newest(finished)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], "{broken\n", *lines[3:]]))
    done = call("results", finished)
    assert done.returncode == 0
    assert f"{path.name} is damaged: line 4: not as it was written" in done.stderr
    assert "line 5" not in done.stderr
    verified = call("verify", finished)
    assert verified.returncode == 1
    assert f"damaged  {path}" in verified.stdout
    assert "line 4: not as it was written" in verified.stdout


def test_results_that_are_whole_are_verified(finished: Path) -> None:
    done = call("verify", finished)
    assert done.returncode == 0
    assert done.stdout.startswith(f"whole    {store.newest(finished)}: 12 outcomes")
    assert done.stdout.rstrip().endswith("finished")


def test_a_folder_without_results_cannot_be_verified(tmp_path: Path) -> None:
    done = call("verify", tmp_path)
    assert done.returncode == 2
    assert "quant-harness run SUITE" in done.stderr


def test_help_shows_examples() -> None:
    for verb in ("run", "plan", "report", "results", "verify", "methods"):
        done = call(verb, "--help")
        assert done.returncode == 0
        assert f"quant-harness {verb}" in done.stdout, verb


def test_the_public_interface_is_three_functions_and_a_version() -> None:
    assert harness.__all__ == ["__version__", "frame", "render", "run"]
    assert all(hasattr(harness, name) for name in harness.__all__)
