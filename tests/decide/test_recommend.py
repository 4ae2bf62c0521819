"""`quant-harness recommend`: limits as people write them, sentences, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import cli, store
from harness.decide import quantities
from harness.errors import BadInput
from harness.spec import Record
from tests.report import synthetic


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recommend")
    synthetic.write(folder, models=("one", "two"), small=True)
    return folder


def recommend(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["recommend", *map(str, arguments)])
    printed = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, printed.out + printed.err


def test_each_model_gets_a_pick_and_every_other_cell_a_reason(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = recommend(capsys, results, "--max-loss", "kl:0.02", "--max-memory", "6GiB")
    assert code == 0
    assert said.count("Deploy ") == 2
    assert said.count("Why the others do not qualify:") == 2
    assert "Its memory is not shown, because its weights are simulated" in said
    assert "MiB on disk" in said


def test_json_holds_the_decision_and_its_sentences(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = recommend(capsys, results, "--model", "two", "--max-loss", "kl:0.02", "--format", "json", "--prefer", "speed")
    assert code == 0
    told = json.loads(said)
    (answer,) = told["recommendations"]
    assert told["limits"]["loss"] == "kl"
    assert answer["labels"][answer["pick"]] in answer["sentences"]["pick"]
    assert {v["id"] for v in answer["verdicts"] if not v["qualifies"]} == set(answer["sentences"]["fails"])


def test_nothing_that_qualifies_exits_with_1_and_says_what_would_have_to_give(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = recommend(capsys, results, "--model", "one", "--max-size", "1MB", "--max-loss", "kl:0.02")
    assert code == 1
    assert said.startswith("Nothing qualifies: none of the 22 cells of one keeps every limit.")
    assert "MB on disk instead of 1 MB" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-memory", "6"], "the unit is missing"),
        (["--max-memory", "6 parsecs"], "'parsecs' is no unit of size"),
        (["--max-size", "much"], "is not understood; write a size like 6GiB"),
        (["--max-size", "0GB"], "above zero"),
        (["--max-tpot", "40"], "write it like 40ms or 1.5s"),
        (["--max-ttft", "2h"], "'h' is no unit of time"),
        (["--max-loss", "1%"], "may be points of accuracy or a share of the baseline's"),
        (["--max-loss", "perplexity:1"], "there is no loss called 'perplexity'"),
        (["--max-loss", "recovery:1"], "has no unit"),
        (["--confidence", "0.97"], "0.8, 0.9, 0.95, 0.99"),
        (["--model", "on"], "did you mean 'one'?"),
        (["--method", "gtpq"], "did you mean 'gptq'?"),
        (["--bits", "5"], "there are 2, 3, 4, 8, 16, 32"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(
    results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, said = recommend(capsys, results, *arguments)
    assert code == 2
    assert words in said


def test_quantities_are_read_as_they_are_written() -> None:
    assert quantities.parse_bytes("6GiB", "o") == (6 * 1024**3, True)
    assert quantities.parse_bytes("1.5 gb", "o") == (1.5e9, False)
    assert quantities.parse_seconds("40ms", "o") == pytest.approx(0.04)
    assert quantities.parse_loss("1pp", "o") == ("pp", 1.0)
    assert quantities.parse_loss("recovery:0.5%", "o") == ("recovery", 0.5)
    assert quantities.parse_loss("kl:0.02", "o") == ("kl", 0.02)
    assert quantities.parse_confidence(95, "o") == 0.95
    with pytest.raises(BadInput):
        quantities.parse_bytes("\u0666GB", "o")  # digits of another script


def test_divergence_is_a_limit_under_the_definition_that_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The probe says in which windows it scored; a real run's definitions are longer than the row's."""

    def as_stored(record: Record) -> Record:
        if record.question.probe != "divergence" or record.answer is None:
            return record
        said = [replace(m, definition=f"{m.definition}, gptq-256 windows") for m in record.answer.measurements]
        return replace(record, answer=replace(record.answer, measurements=tuple(said)))

    synthetic.write(tmp_path, edit=as_stored, small=True)
    code, said = recommend(capsys, tmp_path, "--max-loss", "kl:5")
    assert code == 0
    assert "measured as" not in said
    assert "Deploy " in said


@pytest.mark.slow
def test_divergence_is_a_limit_of_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.yaml").write_text(
        "name: one\nmodels: [reference]\nbaseline: bf16\nmethods: {bf16: , hqq: {bits: 8, group_size: 64}}\n"
        "corpora: [{corpus: reference, window: 128, tokens: 2048}]\nprobes: [size, divergence]\n"
    )
    command = [sys.executable, "-m", "harness.cli", "run", "one.yaml", "--cache", "cache", "--report", "one.html"]
    here = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600, env=here)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    code, said = recommend(capsys, tmp_path / "results" / "one", "--max-loss", "kl:0.02")
    assert code == 0
    assert said.startswith("Deploy hqq 8-bit")
