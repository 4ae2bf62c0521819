"""Recipes of one's own and groups of whole channels on the real path: made by the libraries, reloaded, answered, read back."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import recipes, store
from harness.formats import gptq_file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")]

LEFT = "model.layers.0.self_attn.v_proj"
DYNAMIC = '"-:.*layers\\\\.0\\\\..*v_proj": {}\n"+:.*down_proj": {bits: 8, group_size: 32}\n"+:.*nonesuch": {bits: 2}\n'
LAYERS = f"layer_config:\n  down_proj: {{bits: 8, group_size: 32}}\n  {LEFT}: {{bits: 16}}\n"
REFUSED = '".*": {bits: 11}\n'
NOTHING = '"-:.*": {}\n'
METHODS_HERE: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "rtn": ("gptqmodel", [{"dynamic": ["mine.yaml", "refused.yaml", "nothing.yaml"]}, {"group_size": "channel"}]),
    "gptq": ("gptqmodel", [{"group_size": 64, "dynamic": "mine.yaml"}, {"group_size": "channel", "act_order": "none"}]),
    "autoround": ("auto_round", [{"bits": 4, "iters": 0, "scheme_file": "layers.yaml"}, {"group_size": "channel", "iters": 0}]),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    run: store.Run
    folders: dict[str, Path]
    html: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("own")
    here = {name: grids for name, (package, grids) in METHODS_HERE.items() if importlib.util.find_spec(package) is not None}
    if not here:
        pytest.skip("neither GPTQModel nor AutoRound is installed")
    for name, text in (("mine", DYNAMIC), ("layers", LAYERS), ("refused", REFUSED), ("nothing", NOTHING)):
        (root / f"{name}.yaml").write_text(text)
    suite = {
        "name": "own",
        "models": ["reference"],
        "bits": [4],
        "probes": ["size", "divergence"],
        "calibration": {"corpus": "reference", "samples": 4, "length": 128},
        "corpora": [{"corpus": "reference", "window": 256, "tokens": 4096}],
        "methods": {"bf16": None, **here},
    }
    (root / "own.json.yaml").write_text(json.dumps(suite))
    command = [sys.executable, "-m", "harness.cli", "run", "own.json.yaml", "--cache", "cache", "--report", "own.html"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1700, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    run = store.read(root / "results" / "own")
    found = {r.cell.label: run.artifacts[r.artifact].folder for r in run.records if r.artifact}
    folders = {label: root / "cache" / "artifacts" / folder for label, folder in found.items()}
    return Made(run=run, folders=folders, html=(root / "own.html").read_text(encoding="utf-8"))


def size(made: Made, start: str) -> tuple[str, dict[str, Any]]:
    """(label, facts) of the cell whose label starts so."""
    for record in made.run.records:
        if record.question.probe == "size" and record.cell.label.startswith(start):
            assert record.answer is not None, record.failure
            return record.cell.label, dict(record.answer.facts)
    pytest.skip(f"the library of {start} is not installed")


@pytest.mark.parametrize("start", ["rtn 4-bit g64 by mine@", "gptq 4-bit g64 by mine@", "autoround 4-bit no-iters by layers@"])
def test_what_a_recipe_did_is_in_the_file_and_in_the_facts(made: Made, start: str) -> None:
    label, facts = size(made, start)
    read = gptq_file.Reader(made.folders[label])
    assert LEFT not in read.layers
    assert {read.bits(layer) for layer in read.layers if layer.endswith("down_proj")} == {8}
    assert {read.group(layer) for layer in read.layers if layer.endswith("down_proj")} == {32}
    assert {read.bits(layer) for layer in read.layers if not layer.endswith("down_proj")} == {4}
    assert facts["recipe"]["left"] == [LEFT]
    assert facts["parts"]["16.0"]["layers"] == 1
    assert facts["parts"]["8.9"]["layers"] == sum(layer.endswith("down_proj") for layer in read.layers)
    assert "marks" not in facts
    assert any(LEFT in note for note in facts["notes"])
    assert label in made.html
    assert "Recipes, and what they did" in made.html


def test_a_pattern_that_matches_no_layer_is_named(made: Made) -> None:
    label, facts = size(made, "gptq 4-bit g64 by mine@")
    assert facts["recipe"]["unmatched"] == ["+:.*nonesuch"] == list(recipes.unmatched(made.folders[label]))


def test_a_recipe_that_the_library_refuses_or_that_quantizes_nothing_is_a_typed_failure(made: Made) -> None:
    size(made, "rtn 4-bit g64 by mine@")
    failed = {r.cell.label.partition("@")[0]: r.failure for r in made.run.records if r.failure is not None}
    assert set(failed) == {"rtn 4-bit g64 by refused", "rtn 4-bit g64 by nothing"}
    refused, nothing = (failed[f"rtn 4-bit g64 by {name}"] for name in ("refused", "nothing"))
    assert refused is not None
    assert nothing is not None
    assert (refused.kind, nothing.kind) == ("unsupported", "unsupported")
    assert "GPTQModel refuses the recipe @" in refused.message
    assert "must resolve to one of" in refused.message
    assert nothing.message.startswith(("GPTQModel refuses the recipe @", "the recipe @"))


@pytest.mark.parametrize("start", ["rtn 4-bit per-channel", "gptq 4-bit per-channel none", "autoround 4-bit per-channel"])
def test_groups_of_whole_channels_are_stored_reloaded_and_answered(made: Made, start: str) -> None:
    label, facts = size(made, start)
    read = gptq_file.Reader(made.folders[label])
    assert all(read.group(layer) == read.shape(layer)[1] for layer in read.layers)
    assert "marks" not in facts
    kl = {(r.cell.label, m.metric): m.value for r in made.run.records if r.answer for m in r.answer.measurements}
    assert 0 < kl[label, "kl_mean"] < 0.5
