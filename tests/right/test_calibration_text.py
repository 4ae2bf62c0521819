"""What a model is calibrated on: the text that the suite names, or a default that is said, kept apart from what is scored."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness import store
from harness.costs import Expected
from harness.errors import BadInput
from harness.models import corpora, overlap, sampled
from harness.report import render
from harness.report.view import view
from harness.run import identity, runner
from harness.run.observer import Silent
from harness.spec import OVERLAP, CalibrationText, Cell
from harness.suite import matrix
from harness.suite.calibration import option
from harness.suite.plan import Plan
from tests.right.cases import checkpoint
from tests.tiny_llama import llama, text

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

GPTQ = "methods: {gptq: {bits: 4}}\n"
SHORT = "calibration: {samples: 4, length: 32}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model of one's own, `mine`, a text that is scored and one that is not."""
    checkpoint(tmp_path / "mine", model=llama(max_position_embeddings=512))
    (tmp_path / "scored.txt").write_text(text(60))
    (tmp_path / "apart.txt").write_text(text(60, seed=1))
    return tmp_path


def planned(folder: Path, *lines: str, models: str = "[{path: mine}]") -> Plan:
    suite = folder / "suite.yaml"
    suite.write_text(f"name: mine\nmodels: {models}\nprobes: [quantize, perplexity]\n" + "".join(lines))
    return matrix.plan(suite, device="cpu")


def said(made: Plan) -> CalibrationText:
    (text,) = made.calibrated_on
    return text


# ---- which text ----


def test_the_reference_model_is_calibrated_on_its_own_text(folder: Path) -> None:
    text = said(planned(folder, GPTQ, models="[reference]"))
    assert text.text == "reference"
    assert text.words == "the reference corpus' calibration text"
    named = said(planned(folder, GPTQ, "calibration: {corpus: reference}\n", models="[reference]"))
    assert named.why == "named by the suite"
    assert (named.text, named.tokens) == (text.text, text.tokens)


def test_the_default_of_the_reference_model_asks_what_its_name_asks(folder: Path) -> None:
    by_default = planned(folder, GPTQ, models="[reference]")
    by_name = planned(folder, GPTQ, "calibration: {corpus: reference}\n", models="[reference]")
    assert [p.cell for p in by_default.cells] == [p.cell for p in by_name.cells]


def test_another_model_writes_its_text_itself_whatever_the_reference_corpus_has(folder: Path) -> None:
    made = planned(folder, GPTQ, "corpora: [{corpus: reference, window: 64}, {path: scored.txt, window: 64}]\n")
    assert said(made).text == "sampled"
    assert said(made).words == "sampled from the model itself (seed 0, temperature 1)"
    assert said(made).why == "no corpus of the suite keeps a text apart from what is scored"
    assert not made.calibrations, "nothing is fetched for it"


def test_a_corpus_that_keeps_a_text_apart_gives_the_default(folder: Path) -> None:
    made = planned(folder, GPTQ, "corpora: [{path: scored.txt, calibration: apart.txt, window: 64}]\n")
    assert said(made).text == "apart"
    assert said(made).words == "apart.txt"
    assert said(made).why == "kept apart from the scored corpus 'scored'"
    assert made.calibrations["apart"].path == str(folder / "apart.txt")
    assert made.texts["scored"].path == str(folder / "scored.txt"), "what is scored is not cut"


def test_a_known_data_set_of_the_hub_gives_its_other_split(folder: Path) -> None:
    made = planned(folder, GPTQ, "corpora: [{corpus: wikitext2, window: 64}]\n")
    assert said(made).words == "split 'train' of Salesforce/wikitext (wikitext-2-raw-v1)"
    assert said(made).overlap == {"wikitext2": None}, "that is known once both are here"


def test_a_data_set_of_the_hub_gives_the_split_that_the_suite_names(folder: Path) -> None:
    made = planned(folder, GPTQ, "corpora: [{repo: some/texts, split: test, calibration: train, window: 64}]\n")
    assert said(made).words == "split 'train' of some/texts"
    unsaid = planned(folder, GPTQ, "corpora: [{repo: some/texts, split: test, window: 64}]\n")
    assert said(unsaid).text == "sampled"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{path: scored.txt, calibration: scored.txt}", "which is what is scored"),
        ("{repo: some/texts, split: test, calibration: test}", "which is what is scored"),
        ("{path: scored.txt, calibration: nowhere.txt}", "no such corpus"),
        ("{corpus: wikitext2, calibration: train}", "belongs to a corpus with `path` or `repo`"),
    ],
)
def test_a_text_kept_apart_that_is_none_is_refused_by_plan(entry: str, says: str, folder: Path) -> None:
    with pytest.raises(BadInput, match=says) as raised:
        planned(folder, GPTQ, f"corpora: [{entry}]\n")
    assert "line 5" in str(raised.value)


def test_a_text_that_the_suite_names_stays(folder: Path) -> None:
    scored = "corpora: [{path: scored.txt, calibration: apart.txt, window: 64}]\n"
    for wish, name in (("{path: scored.txt}", "scored"), ("reference", "reference"), ("sampled", "sampled")):
        text = said(planned(folder, GPTQ, scored, f"calibration: {{corpus: {wish}}}\n"))
        assert (text.text, text.why) == (name, "named by the suite")


def test_two_splits_of_one_data_set_are_two_texts(folder: Path) -> None:
    entries = ", ".join(f"{{bits: 4, calibration: {{corpus: {{repo: some/texts, split: {s}}}}}}}" for s in ("train", "other"))
    made = planned(folder, f"methods: {{gptq: [{entries}]}}\n")
    assert sorted(made.calibrations) == ["texts", "texts/other"]
    assert len({p.cell.label for p in made.cells}) == 3


def test_a_scheme_that_makes_no_use_of_a_text_names_none(folder: Path) -> None:
    made = planned(folder, "methods: {gguf: {bits: 8}, openvino: {bits: 8}}\n")
    assert not made.calibrated_on
    assert all(option(p.cell.scheme) is None for p in made.cells)
    made = planned(folder, "methods: {gguf: {bits: 8, imatrix: true}}\n")
    assert said(made).cells == ("gguf 8-bit Q8_0 imatrix",)


def test_plan_says_which_text_and_how_much_of_it_is_scored(folder: Path) -> None:
    scored = "corpora: [{path: scored.txt, window: 64}]\n"
    same = said(planned(folder, GPTQ, scored, "calibration: {corpus: {path: scored.txt}, samples: 4, length: 32}\n"))
    assert same.overlap == {"scored": 1.0}
    assert same.tokens == 128
    other = said(planned(folder, GPTQ, scored, "calibration: {corpus: {path: apart.txt}}\n"))
    assert other.overlap == {"scored": 0.0}


def test_the_plan_that_is_printed_says_it_in_one_line(folder: Path) -> None:
    planned(folder, GPTQ, "corpora: [{path: scored.txt, window: 64}]\n")
    command = [sys.executable, "-m", "harness.cli", "plan", "suite.yaml", "--device", "cpu"]
    printed = subprocess.run([*command], cwd=folder, capture_output=True, text=True, timeout=300, check=True).stdout
    assert (
        "calibration  mine: 128 rows of 512 tokens (65,536), sampled from the model itself (seed 0, temperature 1): no corpus of "
        "the suite keeps a text apart from what is scored; "
        "also scored, in runs of 50 characters: the run will say (scored); for gptq 4-bit g128"
    ) in printed
    data = subprocess.run([*command, "--json"], cwd=folder, capture_output=True, text=True, timeout=300, check=True).stdout
    (text,) = json.loads(data)["calibrated_on"]
    assert text["overlap"] == {"scored": None}


# ---- the overlap ----


def test_the_overlap_is_what_a_search_for_every_run_finds() -> None:
    draw = random.Random(0)
    words = ["".join(draw.choice("abc") for _ in range(20)) for _ in range(12)]
    ours, theirs = (" ".join(draw.choice(words) for _ in range(count)) for count in (60, 80))
    held = [False] * len(ours)
    for start in range(len(ours) - overlap.RUN + 1):
        if ours[start : start + overlap.RUN] in theirs:
            held[start : start + overlap.RUN] = [True] * overlap.RUN
    assert 0 < sum(held) < len(held)
    assert overlap.share(ours, theirs) == pytest.approx(sum(held) / len(held))


def test_the_overlap_counts_runs_of_fifty_characters_and_blanks_as_one() -> None:
    run = "x" + "0123456789" * 4 + "abcdefgh" + "y"
    assert len(run) == 50
    assert overlap.share(f"{run} and more", f"so {run[:49]}") == 0
    assert overlap.share(run, f"so {run} it is") == 1
    assert overlap.share(f"{run[:20]} {run[20:]}", f"{run[:20]}\n\n {run[20:]}") == 1
    assert overlap.share("", "text") == 0
    assert overlap.share("short", "a short text") == 1
    assert overlap.share("日本語の文章" * 20, "前置き" + "日本語の文章" * 30) == 1


# ---- the text of the model itself ----


class Heard(Silent):
    """What a run says of long work."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.progress_of: dict[str, list[str]] = {}

    def doing(self, cell: Cell, what: str, expected: Expected | None = None) -> None:
        self.done.append(what)

    def progress(self, cell: Cell, what: str, how_far: str) -> None:
        self.progress_of.setdefault(what, []).append(how_far)


def run(made: Plan, folder: Path, heard: Heard | None = None) -> store.Run:
    settings = runner.Settings(results=folder / "results", cache=folder / "cache", threads=1)
    return store.read(runner.run(made, settings, heard or Heard()))


def facts(stored: store.Run, probe: str) -> list[Mapping[str, Any]]:
    found = [r for r in stored.records if r.question.probe == probe and r.cell.method != "bf16"]
    assert all(r.failure is None for r in found), [r.failure for r in found]
    return [r.answer.facts for r in found if r.answer is not None]


@pytest.mark.slow
def test_a_model_is_calibrated_on_its_own_text_which_is_sampled_once_and_said_everywhere(folder: Path) -> None:
    heard = Heard()
    lines = ("methods: {gptq: {bits: [4, 8]}}\n", SHORT, "corpora: [{path: scored.txt, window: 64}]\n")
    made = planned(folder, *lines)
    stored = run(made, folder, heard)
    assert heard.done.count("calibration text") == 1, "for both cells"
    (path,) = folder.glob("cache/sampled/*/text-128.txt")
    first, second = facts(stored, "quantize")
    assert first["calibration"] == {"corpus": "sampled", "samples": 4, "length": 32, "seed": 0, "digest": corpora.digest(path)}
    assert first["calibration_tokens"] == 128
    assert second["calibration"] == first["calibration"]
    assert all(0 <= fact[OVERLAP] <= 1 for fact in facts(stored, "perplexity"))
    page = render(stored).decode()
    assert "sampled from the model itself (seed 0, temperature 1)" in page
    assert "4 × 32 = 128" in page
    assert view(stored).calibrated_on == made.calibrated_on

    written = path.read_bytes()
    path.unlink()
    for block in path.parent.glob("block-*.json"):
        block.unlink()
    again = planned(folder, *lines)
    artifacts = sorted((folder / "cache" / "artifacts").iterdir())
    for artifact in artifacts:
        (artifact / "artifact.json").unlink()
    settings = runner.Settings(results=folder / "results", cache=folder / "cache", threads=1, fresh=True)
    runner.run(again, settings)
    assert path.read_bytes() == written, "the same model writes the same text"


@pytest.mark.slow
def test_the_record_says_how_much_of_the_rows_is_scored(folder: Path) -> None:
    lines = (
        "corpora: [{path: scored.txt, window: 64}]\n",
        "methods: {gptq: [{bits: 4, calibration: {corpus: {path: scored.txt}}}, ",
    )
    both = "{bits: 8, calibration: {corpus: {path: apart.txt}}}]}\n"
    stored = run(planned(folder, *lines, both, SHORT), folder)
    shares = [fact[OVERLAP] for fact in facts(stored, "perplexity")]
    assert shares[0] > 0.9, "rows of the scored text, but for what their ends share with nobody"
    assert shares[1] == 0


def test_another_seed_another_model_and_more_text_are_other_questions(folder: Path) -> None:
    def key(seed: int) -> tuple[str, Path]:
        made = planned(folder, GPTQ, f"calibration: {{samples: 4, length: 32, seed: {seed}}}\n")
        inputs = identity.gather(made, folder / "cache")
        cell = made.cells[1]
        path = inputs.calibration(cell.cell)
        assert path is not None
        return inputs.key(cell.cell, cell.questions[0]), path

    first, other = key(0), key(1)
    assert first == key(0)
    assert first[0] != other[0]
    assert first[1].parent != other[1].parent
    checkpoint(folder / "mine", model=llama(seed=5))
    assert key(0)[0] != first[0]
    assert key(0)[1].parent != first[1].parent


def test_a_longer_text_begins_with_the_shorter_one_and_no_block_is_sampled_twice(folder: Path, monkeypatch: Any) -> None:
    import torch

    monkeypatch.setattr(sampled, "LENGTH", 24)
    told: list[tuple[int, int]] = []

    def write(tokens: int, seed: int = 0, place: str = "text") -> str:
        path = folder / place / f"text-{tokens}.txt"
        sampled.write(
            folder / "mine",
            path,
            tokens,
            seed=seed,
            dtype=torch.float32,
            device="cpu",
            tell=lambda done, of: told.append((done, of)),
        )
        return path.read_text()

    short = write(100)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(done <= of for done, of in told)
    assert told[-1][0] >= 100
    blocks = {path.name: path.stat().st_mtime_ns for path in (folder / "text").glob("block-*.json")}
    long = write(1500)
    assert long.startswith(short)
    assert len(long) > len(short)
    now = {path.name: path.stat().st_mtime_ns for path in (folder / "text").glob("block-*.json")}
    assert blocks.items() < now.items()
    assert write(100, seed=1, place="other") != short


def test_documents_are_drawn_from_the_whole_distribution_whatever_the_models_rules(folder: Path, monkeypatch: Any) -> None:
    import torch

    monkeypatch.setattr(sampled, "LENGTH", 24)

    def ids(seed: int) -> str:
        path = folder / f"place-{seed}-{len(list(folder.iterdir()))}" / "text-100.txt"
        sampled.write(folder / "mine", path, 100, seed=seed, dtype=torch.float32, device="cpu", tell=lambda done, of: None)
        return path.read_text()

    plain = ids(0)
    rules = {"do_sample": True, "top_k": 1, "top_p": 0.1, "temperature": 0.1, "repetition_penalty": 5.0, "eos_token_id": 2}
    (folder / "mine" / "generation_config.json").write_text(json.dumps(rules))
    assert ids(0) == plain


def test_a_model_that_ends_its_texts_at_once_is_refused_in_words(folder: Path) -> None:
    import torch

    config = json.loads((folder / "mine" / "config.json").read_text())
    (folder / "mine" / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(config["vocab_size"]))}))
    with pytest.raises(BadInput, match="ends 16 texts after 0 tokens in all; name a text instead"):
        sampled.write(
            folder / "mine", folder / "x" / "t.txt", 64, seed=0, dtype=torch.float32, device="cpu", tell=lambda done, of: None
        )
