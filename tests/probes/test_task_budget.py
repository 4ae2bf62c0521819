"""Items of real lm-eval tasks scored until a verdict: the same items with the same prompts and answers as when all are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import stats
from harness.engines.transformers import Transformers
from harness.errors import Nonfinite, Unsupported
from harness.probes import sequential
from harness.probes.tasks import PROBE
from harness.spec import Answer, Question
from tests.probes.test_tasks import CHOICE, GENERATE, items, question, write_items
from tests.tiny_llama import TinySession, llama, nudged, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
WISH = {"margin": 0.05, "alpha": 0.05, "beta": 0.05}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def measure(folder: Path, where: Path, model: Any, asked: Question, base: Any = None) -> tuple[Answer, list[dict[str, Any]], Any]:
    """The answer, the rows of its side-car, and what a cell would be handed of it."""
    session = TinySession(Transformers(model, tokenizer()), where, tasks=folder, items=base)
    answer = PROBE.measure(session, asked)
    kept = json.loads(session.blobs["items.json"])
    definition = answer.measurements[0].definition
    return answer, kept["items"], {**kept, "definition": definition}


def until(asked: Question, **changes: float) -> Question:
    return Question(probe=asked.probe, subject=asked.subject, options={**asked.options, "sequential": {**WISH, **changes}})


def both(folder: Path, tmp_path: Path, asked: Question, cell: Any, **changes: float) -> Any:
    """The cell's answer until a verdict with its rows, and the rows of baseline and cell over all items."""
    _, _, base = measure(folder, tmp_path / "base", llama(), asked)
    _, whole, _ = measure(folder, tmp_path / "whole", cell, asked)
    answer, part, _ = measure(folder, tmp_path / "part", cell, until(asked, **changes), base)
    return answer, part, base["items"], whole


def same(part: list[dict[str, Any]], whole: list[dict[str, Any]]) -> None:
    """Every row of the part equals the row of that item among all; log-likelihoods up to another batch's rounding."""
    by_id = {row["id"]: row for row in whole}
    for row in part:
        other = by_id[row["id"]]
        assert {k: v for k, v in row.items() if k not in ("loglikelihoods", "margin")} == {
            k: v for k, v in other.items() if k not in ("loglikelihoods", "margin")
        }
        if "loglikelihoods" in row:
            assert row["loglikelihoods"] == pytest.approx(other["loglikelihoods"], abs=1e-4)


@pytest.mark.parametrize("shots", [0, 3])
def test_a_part_of_the_items_is_answered_as_when_all_are_asked_with_its_own_few_shot_examples(shots: int, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    write_items(folder, items(300))
    (folder / "mine.yaml").write_text(CHOICE.format(name="mine", data="items.jsonl"))
    answer, part, base, whole = both(folder, tmp_path, question(shots=shots), llama(seed=1), margin=0.3)
    verdict, took, _, accuracy = answer.measurements
    assert verdict.value == sequential.WITHIN, "chance against chance"
    assert took.value <= len(part) < 300
    same(part, whole)
    order = [base[place]["id"] for place in stats.shared_order([row["id"] for row in base])]
    assert [row["id"] for row in part] == order[: len(part)]
    assert accuracy.value == pytest.approx(sum(row["correct"] for row in part) / len(part))
    assert accuracy.definition == f"lm-eval mine v1.0 acc, {shots}-shot, until a verdict on a margin of 30 points"


def test_a_model_against_itself_is_within_the_margin_and_a_broken_one_worse(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    rows = items(300)
    write_items(folder, rows)
    (folder / "mine.yaml").write_text(CHOICE.format(name="mine", data="items.jsonl"))
    _, whole, _ = measure(folder, tmp_path / "first", llama(), question())
    for row, answered in zip(rows, whole, strict=True):  # what the model says becomes right, so that it can only lose
        row["gold"] = max(range(4), key=answered["loglikelihoods"].__getitem__)
    write_items(folder, rows)
    answer, part, *_ = both(folder, tmp_path / "a", question(), llama())
    assert (answer.measurements[0].value, answer.measurements[2].value) == (sequential.WITHIN, 0.0)
    assert len(part) < 300
    answer, part, *_ = both(folder, tmp_path / "b", question(), nudged(llama(), 3.0))
    assert answer.measurements[0].value == sequential.WORSE
    assert answer.facts["sequential"]["scored"] == answer.facts["items"] == len(part) < 100


def test_groups_passages_and_equal_items_keep_their_names_and_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    for name, seed in (("one", 1), ("two", 2)):
        rows = [dict(row, passage=f"p{i // 3}") for i, row in enumerate(items(60, seed=seed))]
        rows[40] = dict(rows[41])  # two equal items of one passage
        write_items(folder, rows, f"{name}.jsonl")
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, data=f"{name}.jsonl"))
    (folder / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    answer, part, base, whole = both(folder, tmp_path, question("both"), llama(seed=1), margin=0.4)
    same(part, whole)
    assert {row["task"] for row in part} == {"one", "two"}
    passages = [(row["task"], row["cluster"]) for row in part]
    changes = [i for i in range(1, len(part)) if passages[i] != passages[i - 1]]
    assert len(changes) + 1 == len(set(passages)), "a passage is asked in one go"
    assert answer.facts["sequential"]["bets"] == 40
    assert answer.facts["sequential"]["available"] == len(base) == 120


def test_generated_answers_are_scored_until_a_verdict_too(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    write_items(folder, items(80))
    (folder / "mine_generate.yaml").write_text(GENERATE)
    answer, part, _, whole = both(folder, tmp_path, question("mine_generate"), llama(seed=1), margin=0.2)
    same(part, whole)
    assert answer.measurements[0].value == sequential.WITHIN
    assert len(part) < 80


def test_a_limit_bounds_the_items_of_cell_and_baseline_alike(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    write_items(folder, items(60))
    (folder / "mine.yaml").write_text(CHOICE.format(name="mine", data="items.jsonl"))
    answer, part, *_ = both(folder, tmp_path, question(limit=40), llama(seed=1))
    assert answer.measurements[0].value == sequential.UNDECIDED
    assert sorted(row["doc"] for row in part) == list(range(40))
    assert answer.measurements[0].n == 40


def test_what_cannot_flip_or_be_paired_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    write_items(folder, items(40))
    (folder / "mine.yaml").write_text(CHOICE.format(name="mine", data="items.jsonl"))
    _, _, base = measure(folder, tmp_path / "base", llama(), question())
    partly = {**base, "items": [{**row, "correct": 0.5} for row in base["items"]]}
    with pytest.raises(Unsupported, match="right or wrong, and the baseline's answers"):
        measure(folder, tmp_path / "a", llama(), until(question()), partly)
    write_items(folder, items(40, seed=9))
    with pytest.raises(Unsupported, match="answered other items than the baseline"):
        measure(folder, tmp_path / "b", llama(), until(question()), base)
    broken = llama()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(Nonfinite, match="the artifact is broken"):
        measure(folder, tmp_path / "c", broken, until(question()), base)
