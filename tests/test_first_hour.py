"""What a person meets in the first hour: mistakes in a suite, a baseline that goes without saying, groups that do not fit, texts
that are too short, a GPU that is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import cli, envs
from harness.errors import BadInput
from harness.suite import matrix, plan
from tests import mistakes, tiny_folder

WriteSuite = Callable[..., Path]


def planned(folder: Path, text: str) -> plan.Plan:
    path = folder / "mine.yaml"
    path.write_text(text)
    return matrix.plan(path, device="cpu")


def labels(made: plan.Plan) -> list[str]:
    return [p.cell.label for p in made.cells]


@pytest.fixture
def odd_width(tmp_path: Path, model_folder: Path) -> Path:
    """A model whose hidden size, 576, is no multiple of 128: SmolLM2's."""
    tiny_folder.write(model_folder, hidden=576)
    return model_folder


@pytest.mark.parametrize("text", mistakes.MISTAKES)
def test_a_mistake_gets_a_sentence_and_no_validators_text(text: str, tmp_path: Path) -> None:
    said = mistakes.answer(text, tmp_path)
    assert said != "no mistake"
    assert said.startswith("mine.yaml")
    for word in ("Input should", "Field required", "pattern '", "valid dictionary", "valid list", "TaskEntry", "Traceback"):
        assert word not in said


def test_the_table_of_mistakes_in_the_docs_is_what_is_answered_today() -> None:
    assert len(mistakes.MISTAKES) >= 40
    assert mistakes.PAGE.read_text(encoding="utf-8") == mistakes.page(), "write it anew: python -m tests.mistakes"


def test_a_baseline_that_methods_do_not_name_is_added(tmp_path: Path) -> None:
    made = planned(tmp_path, "name: mine\nmodels: [reference]\nbits: [4]\nmethods: {rtn: }\n")
    assert labels(made) == ["bf16", "rtn 4-bit g64"]
    assert made.cells[0].baseline
    made = planned(tmp_path, "name: mine\nmodels: [reference]\nbaseline: fp32\nbits: [4]\nmethods: {rtn: , bf16: }\n")
    assert labels(made) == ["fp32", "rtn 4-bit g64", "bf16"]


def test_options_apply_at_the_widths_where_they_mean_something(tmp_path: Path) -> None:
    made = planned(tmp_path, "name: mine\nmodels: [reference]\nmethods: {quanto: {bits: [8, 4], group_size: 64}}\n")
    assert labels(made) == ["bf16", "quanto 8-bit per-channel", "quanto 4-bit g64"]
    assert not made.unsupported
    made = planned(tmp_path, "name: mine\nmodels: [reference]\nmethods: {quanto: {bits: [8, 4], group_size: [64, 32]}}\n")
    assert labels(made) == ["bf16", "quanto 8-bit per-channel", "quanto 4-bit g64", "quanto 4-bit g32"]


def test_a_default_group_falls_to_the_largest_that_fits_and_says_so(tmp_path: Path, odd_width: Path) -> None:
    made = planned(tmp_path, f"name: mine\nmodels: [{{path: {odd_width}}}]\nmethods: {{gptq: {{bits: 4}}}}\n")
    assert labels(made) == ["bf16", "gptq 4-bit g64"]
    assert "groups of 64 in place of the default 128" in made.cells[1].note
    assert "576" in made.cells[1].note
    twice = "{gptq: [{bits: 4}, {bits: 4, group_size: 64}]}"
    made = planned(tmp_path, f"name: mine\nmodels: [{{path: {odd_width}}}]\nmethods: {twice}\n")
    assert labels(made) == ["bf16", "gptq 4-bit g64"]


def test_a_group_that_the_suite_names_stays_and_what_would_fit_is_told(tmp_path: Path, odd_width: Path) -> None:
    made = planned(tmp_path, f"name: mine\nmodels: [{{path: {odd_width}}}]\nmethods: {{gptq: {{bits: 4, group_size: 128}}}}\n")
    (square,) = made.unsupported
    assert "576" in square.reason
    assert "what fits: group_size: 64, 32" in square.reason


def test_two_calibration_files_of_one_stem_are_two_texts(tmp_path: Path) -> None:
    for folder, words in (("a", "one text of its own. " * 400), ("b", "quite another text. " * 400)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(words)
    entries = ", ".join(f"{{bits: 4, calibration: {{corpus: {{path: {folder}/text.txt}}}}}}" for folder in ("a", "b"))
    made = planned(tmp_path, f"name: mine\nmodels: [reference]\nmethods: {{gptq: [{entries}]}}\n")
    assert labels(made) == ["bf16", "gptq 4-bit g128 on text", "gptq 4-bit g128 on text.txt"]
    assert sorted(Path(str(c.path)).parent.name for c in made.calibrations.values()) == ["a", "b"]
    (tmp_path / "b" / "text.txt").write_text((tmp_path / "a" / "text.txt").read_text())
    made = planned(tmp_path, f"name: mine\nmodels: [reference]\nmethods: {{gptq: [{entries}]}}\n")
    assert labels(made) == ["bf16", "gptq 4-bit g128"], "identity is content"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds 0 bytes of text"),
        ("one two three four five six", "fewer than one window of 256 tokens"),
        ("word " * 60, r"holds \d+ tokens"),
    ],
)
def test_a_text_that_fills_no_window_is_refused_by_plan(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(text)
    suite = "name: mine\nmodels: [reference]\nmethods: {rtn: }\ncorpora: [{path: short.txt, window: 256}]\n"
    with pytest.raises(BadInput, match=says):
        planned(tmp_path, suite)


def test_a_window_beyond_the_models_context_is_refused_by_plan(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"more than the context of model 'reference', (\d+); write window: \1"):
        planned(tmp_path, "name: mine\nmodels: [reference]\nmethods: {rtn: }\ncorpora: [{corpus: reference, window: 100000}]\n")


def test_a_text_that_is_only_named_is_told_what_names_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"line 4: a corpus names one of corpus, path and repo; known as `corpus` are reference"):
        planned(tmp_path, "name: mine\nmodels: [reference]\nmethods: {rtn: }\ncorpora: [{name: reference, window: 512}]\n")


def test_plan_says_which_library_is_missing_and_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = envs._importable
    monkeypatch.setattr(envs, "_importable", lambda module: module != "hqq" and there(module))
    (tmp_path / "mine.yaml").write_text("name: mine\nmodels: [reference]\nbits: [8, 4]\nmethods: {hqq: , rtn: }\n")
    suite, cache = str(tmp_path / "mine.yaml"), str(tmp_path / "cache")
    said = CliRunner().invoke(cli.app, ["plan", suite, "--cache", cache]).output
    need = 'hqq is not installed, so 2 cells (reference / hqq 8-bit g64 ...) would fail: pip install "llm-quant-harness[hqq]"'
    assert need in " ".join(said.split())
    listed = json.loads(CliRunner().invoke(cli.app, ["plan", suite, "--cache", cache, "--json"]).output)["missing"]
    cells = ["reference / hqq 8-bit g64", "reference / hqq 4-bit g64"]
    assert listed == [{"packages": ["hqq"], "install": 'pip install "llm-quant-harness[hqq]"', "cells": cells}]


def test_a_gpu_that_is_not_here_is_refused_by_run_and_planned_for_by_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.measure import nvidia

    monkeypatch.setattr(nvidia, "gpus", lambda: ())
    with pytest.raises(BadInput, match="lists no GPU"):
        matrix.choose_device("cuda", here=True)
    assert matrix.choose_device("cuda", here=False) == "cuda"
    assert matrix.choose_device("auto", here=True) == "cpu"
    monkeypatch.setattr(nvidia, "gpus", lambda: (object(),))
    assert matrix.choose_device("cuda:0", here=True) == "cuda:0"
    with pytest.raises(BadInput, match="lists 1 GPU"):
        matrix.choose_device("cuda:1", here=True)


def run(suite: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "run", str(suite), "--results", str(folder / "results")]
    command += more or ("--report", str(folder / "r.html"))
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(write_suite: WriteSuite, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = run(write_suite("{bits: 4}"), tmp_path, "--report", str(tmp_path / "folder"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_run_ends_with_how_many_questions_failed_and_why(write_suite: WriteSuite, tmp_path: Path) -> None:
    done = run(write_suite("{bits: 4, on_a: 'raise:no luck'}"), tmp_path)
    assert done.returncode == 0
    assert "failed   1 of " in done.stdout
    assert "failed   1 x error:" in done.stdout
    assert "no luck" in done.stdout


def test_a_run_whose_every_question_failed_on_bad_input_leaves_with_two(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite()
    text = suite.read_text().replace("{bits: 16}", "{bits: 16, on_quantize: 'input:no text'}")
    suite.write_text(text.replace("baseline: fake 16-bit", "baseline: 'fake 16-bit input:no text'"))
    done = run(suite, tmp_path)
    assert "x input: no text" in done.stdout
    assert done.returncode == 2
    assert "every question failed on what it was given" in done.stderr


def test_cells_that_differ_in_their_calibration_alone_have_short_labels_of_their_own(tmp_path: Path) -> None:
    rows = ", ".join(f"{{samples: {n}, length: 128, seed: {seed}}}" for n, seed in ((8, 0), (16, 0), (16, 1)))
    methods = f"{{gptq: {{bits: 4, calibration: [{rows}]}}, rtn: {{bits: 4}}}}"
    made = planned(tmp_path, f"name: mine\nmodels: [reference]\nmethods: {methods}\n")
    names = [name for name in labels(made) if name.startswith("gptq")]
    assert names == [f"gptq 4-bit g128 {words}" for words in ("8x128 seed 0", "16x128 seed 0", "16x128 seed 1")]
