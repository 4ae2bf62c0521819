"""What a plan makes of cells that train: their controls, their rows, their keys, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import reference
from harness.errors import BadInput
from harness.run import identity
from harness.run.identity import Inputs
from harness.suite.matrix import plan
from harness.suite.plan import Plan, PlannedCell


def planned(folder: Path, **changes: Any) -> Plan:
    written: dict[str, Any] = {
        "name": "trained",
        "models": ["reference"],
        "methods": {"qat": {"bits": 3}},
        "corpora": [{"corpus": "reference", "window": 256, "tokens": 2048}],
        "probes": ["size", "perplexity"],
        **changes,
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(written))
    return plan(path, device="cpu")


def cell(of: Plan, label: str) -> PlannedCell:
    return next(p for p in of.cells if p.cell.label == label)


def inputs(of: Plan, tmp_path: Path) -> Inputs:
    found = identity.at_hand(of, tmp_path / "cache")
    return found if found is not None else identity.gather(of, tmp_path / "cache")


def test_a_plan_adds_the_controls_of_qat_and_says_so(tmp_path: Path) -> None:
    made = planned(tmp_path)
    assert [p.cell.label for p in made.cells] == ["bf16", "qat 3-bit g64", "ft 16-bit", "ft+ptq 3-bit g64"]
    (said,) = [note for note in made.notes if "stands beside" in note]
    assert said.startswith("qat 3-bit g64 stands beside ft 16-bit and ft+ptq 3-bit g64, which the suite does not name")
    assert "proves nothing" in said


def test_controls_that_the_suite_names_are_not_added_again(tmp_path: Path) -> None:
    made = planned(tmp_path, methods={"qat": {"bits": [4, 3]}, "ft": None, "ft+ptq": {"bits": [4, 3]}})
    assert len(made.cells) == 1 + 2 + 1 + 2
    assert not [note for note in made.notes if "stands beside" in note]


def test_controls_have_the_rows_and_the_recipe_of_what_they_stand_beside(tmp_path: Path) -> None:
    made = planned(tmp_path, train={"steps": 10}, methods={"qat": [{"bits": 3}, {"bits": 3, "train": {"steps": 20, "rows": 2}}]})
    labels = [p.cell.label for p in made.cells]
    assert len(labels) == len(set(labels)) == 1 + 2 * 3
    for p in made.cells[1:]:
        options = p.cell.scheme.options
        assert options["calibration"]["samples"] == options["train"]["steps"] * options["train"]["rows"]
    steps = sorted(p.cell.scheme.options["train"]["steps"] for p in made.cells[1:])
    assert steps == [10, 10, 10, 20, 20, 20]
    assert any("steps=20" in label and label.startswith("ft ") for label in labels), labels


@pytest.mark.parametrize(
    "change",
    [{"steps": 3}, {"rows": 3}, {"length": 128}, {"rate": 2e-4}, {"seed": 1}, {"loss": "kl"}],
    ids=lambda change: next(iter(change)),
)
def test_all_that_decides_a_training_is_in_the_key_and_in_the_names_of_what_it_leaves(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    one = inputs(planned(tmp_path), tmp_path)
    other = inputs(planned(tmp_path, train=change), tmp_path)
    for label in ("qat 3-bit g64", "ft 16-bit", "ft+ptq 3-bit g64"):
        ours, theirs = cell(one.plan, label), cell(other.plan, label)
        assert one.key(ours.cell, ours.questions[0]) != other.key(theirs.cell, theirs.questions[0])
        assert one.artifact(ours.cell) != other.artifact(theirs.cell)
        assert one.training(ours.cell) != other.training(theirs.cell)


def test_plain_training_is_shared_and_training_with_rounding_is_not(tmp_path: Path) -> None:
    made = inputs(planned(tmp_path, methods={"qat": {"bits": [4, 3]}}), tmp_path)
    places = {p.cell.label: made.training(p.cell) for p in made.plan.cells}
    assert places["bf16"] is None
    assert places["ft 16-bit"] == places["ft+ptq 4-bit g64"] == places["ft+ptq 3-bit g64"]
    assert len({places["ft 16-bit"], places["qat 4-bit g64"], places["qat 3-bit g64"]}) == 3


def test_a_rate_in_powers_of_ten_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("name: a\nmodels: [reference]\ntrain: {rate: 2e-4}\nmethods: {ft: }\n")
    assert cell(plan(path, device="cpu"), "ft 16-bit").cell.scheme.options["train"]["rate"] == 2e-4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": {"rtn": {"bits": 4, "train": {"steps": 2}}}}, "rtn does not train; remove `train`"),
        ({"methods": {"qat": {"bits": 4, "calibration": {"samples": 2}}}}, "write them under `train`, not under `calibration`"),
        ({"train": {"steps": 0}}, "train.steps: 0 is not a whole number from 1"),
        ({"train": {"loss": "mse"}}, "train.loss"),
        ({"methods": {"qat": {"bits": 4, "train": {"step": 2}}}}, "did you mean 'steps'?"),
        ({"methods": {"qat": {"bits": 4, "train": 3}}}, "is no mapping; write train: {steps: 200}"),
        ({"train": {"length": 1024}}, "train: length: 1024 tokens are more than the context"),
    ],
)
def test_what_cannot_be_trained_so_is_refused_in_words(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        planned(tmp_path, **changes)
    assert said in str(refused.value)


def test_training_on_what_is_scored_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(reference.HELDOUT_TEXT.read_text()[:200000])
    with pytest.raises(BadInput, match=r"own.txt is trained on, and \d+% of it is scored in 'reference'"):
        planned(tmp_path, train={"corpus": {"path": "own.txt"}})


def test_calibrating_on_what_is_scored_is_told_and_not_refused(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(reference.HELDOUT_TEXT.read_text()[:200000])
    made = planned(tmp_path, methods={"gptq": {"bits": 4}}, calibration={"corpus": {"path": "own.txt"}})
    assert any(share and share > 0.5 for share in made.calibrated_on[0].overlap.values())


def test_a_model_that_was_trained_further_is_no_baseline(tmp_path: Path) -> None:
    suite = tmp_path / "one.yaml"
    suite.write_text(
        "name: one\nmodels: [reference]\nbaseline: ft 16-bit\nmethods: {bf16: , ft: {}}\nprobes: [size]\n"
        "train: {steps: 4, rows: 2, length: 32}\n"
    )
    with pytest.raises(BadInput, match=r"line 3: the baseline 'ft 16-bit' .* its weights were trained further"):
        plan(suite, device="cpu")
