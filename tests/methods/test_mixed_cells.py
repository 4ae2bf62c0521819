"""Mixtures on the real path: made, read back, reloaded, answered, and set beside uniform widths."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import mixing, reference, store
from harness.errors import BadLedger
from harness.formats import gguf_export, gguf_weights, gptq_file, safetensors_file
from harness.methods import METHODS, _mixture
from harness.report import mixed
from harness.report.view import View, view
from harness.spec import Record

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")]

TARGET = 3.5
METHODS_HERE = {
    "rtn": ("gptqmodel", {"target_bits": TARGET, "group_size": 64}),
    "gptq": ("gptqmodel", {"target_bits": TARGET, "group_size": 64}),
    "gguf": ("llama_cpp", {"target_bits": TARGET}),
    "autoround": (
        "auto_round",
        {"target_bits": TARGET, "widths": [2, 4], "group_size": 64, "iters": 0, "from": ["autoscheme", "sensitivity"]},
    ),
    "openvino": ("nncf", {"target_bits": 5.5, "group_size": 64}),
}
CHOSEN_HERE = "sensitivity"


@dataclass(frozen=True, kw_only=True)
class Made:
    run: store.Run
    view: View
    folders: dict[str, Path]
    html: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("mixed")
    here = {name: options for name, (package, options) in METHODS_HERE.items() if importlib.util.find_spec(package) is not None}
    suite = {
        "name": "mixed",
        "models": ["reference"],
        "probes": ["size", "sensitivity", "divergence"],
        "calibration": {"corpus": "reference", "samples": 4, "length": 128},
        "corpora": [{"corpus": "reference", "window": 256, "tokens": 4096}],
        "methods": {"bf16": None, **here},
    }
    (root / "mixed.yaml").write_text(json.dumps(suite))
    command = [sys.executable, "-m", "harness.cli", "run", "mixed.yaml", "--cache", "cache", "--report", "mixed.html"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = store.read(root / "results" / "mixed")
    folders = {}
    for record in run.records:
        assert record.failure is None, (record.cell.label, record.failure)
        folders[record.cell.label] = root / "cache" / "artifacts" / run.artifacts[record.artifact].folder
    html = (root / "mixed.html").read_text(encoding="utf-8")
    return Made(run=run, view=view(run), folders=folders, html=html)


def mixtures(made: Made) -> list[Record]:
    found = [r for r in made.run.records if r.cell.scheme.mixture is not None]
    assert found, "neither GPTQModel nor llama.cpp is installed"
    return found


def value(made: Made, label: str, metric: str) -> float:
    measured = {(r.cell.label, m.metric): m.value for r in made.run.records if r.answer for m in r.answer.measurements}
    return measured[label, metric]


def test_the_file_holds_what_was_chosen_and_no_more_bits_than_the_target(made: Made) -> None:
    for record in mixtures(made):
        stored, said = value(made, record.cell.label, "bpw_quantized"), record.cell.scheme.mixture
        assert said is not None
        kept = mixing.read(made.folders[record.cell.label])
        if kept is None:  # NNCF chooses, and says nothing of it
            assert record.cell.method == "openvino"
            assert stored == pytest.approx(record.cell.bits, abs=0.2)
            continue
        assert stored == pytest.approx(kept.bits_per_weight, rel=1e-12)
        assert stored == pytest.approx(TARGET, abs=0.15)
        assert stored <= TARGET or said["from"] != CHOSEN_HERE
        assert len(set(kept.chosen.values())) > 1
        if record.cell.method in ("rtn", "gptq", "autoround"):
            read = gptq_file.Reader(made.folders[record.cell.label])
            assert {layer: str(read.bits(layer)) for layer in read.layers} == dict(kept.chosen)
        if record.question.probe == "size":
            assert record.answer is not None
            assert record.answer.facts["mixture"]["chosen"] == dict(kept.chosen)


def test_rounding_and_gptq_share_one_table_of_losses(made: Made) -> None:
    pytest.importorskip("gptqmodel", reason="GPTQModel not installed")
    one, other = (mixing.read(made.folders[f"{name} mixed 3.5-bit g64"]) for name in ("rtn", "gptq"))
    assert one is not None
    assert other is not None
    assert [each.losses for each in one.layers] == [each.losses for each in other.layers]
    assert (one.seconds > 0, other.seconds) == (True, 0.0)


def test_a_layer_rounded_alone_is_what_the_file_then_holds_of_it(made: Made) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python not installed")
    from harness.runtimes import ggml

    folder = made.folders["gguf mixed 3.5-bit"]
    kept = mixing.read(folder)
    assert kept is not None
    held = gguf_weights.unpacked(folder / "model.gguf", gguf_export.decoder_of(reference.MODEL_DIR))
    entries = safetensors_file.checkpoint(reference.MODEL_DIR)
    for layer in [next(iter(kept.chosen)), *list(kept.chosen)[-2:]]:
        name = f"{layer}.weight"
        alone = ggml.rounded(safetensors_file.tensor(entries[name]).float().numpy(), kept.chosen[layer])
        assert (held[name].numpy() == alone).all(), (layer, kept.chosen[layer])


def test_the_artifact_passed_its_reload_check_with_widths_by_layer(made: Made) -> None:
    for record in mixtures(made):
        folder = made.folders[record.cell.label]
        assert "rows" in json.loads((folder / "reload_check.json").read_text())
        assert list(folder.glob("verified-*.json"))


def test_uniform_neighbours_are_measured_and_the_report_says_who_wins(made: Made) -> None:
    for cell in made.view.cells:
        if cell.cell.scheme.mixture is None:
            continue
        own = mixed._found(made.view, cell, "reference")
        others = [
            found
            for each in made.view.cells
            if mixed._uniform_of(each, cell) and (found := mixed._found(made.view, each, "reference"))
        ]
        assert own is not None
        beside = mixed.neighbours(own, others)
        assert beside
        said = mixed.sentence(made.view, own, beside, "reference")
        assert any(words in said for words in ("mixing wins", "uniform wins", "no difference is shown"))
        assert said.partition(":")[0] in made.html
    assert "Mixed widths beside uniform ones" in made.html
    assert "What each layer loses alone" in made.html


def test_a_library_that_does_not_follow_the_mixture_is_found_out(made: Made, tmp_path: Path) -> None:
    record = mixtures(made)[0]
    folder = made.folders[record.cell.label]
    kept = mixing.read(folder)
    assert kept is not None
    layer, width = next(iter(kept.chosen.items()))
    other = next(each for each in kept.layers[0].bits if each != width)
    ledger: Any = METHODS[record.cell.method].ledger(folder, record.cell.scheme)
    wrong = mixing.Mixture(
        target=kept.target,
        rounding=kept.rounding,
        tokens=kept.tokens,
        seconds=kept.seconds,
        layers=kept.layers,
        chosen={**kept.chosen, layer: other},
    )
    with pytest.raises(BadLedger, match=f"layer {layer} was to be stored in {other}"):
        _mixture.check(tmp_path, wrong, ledger)
    assert mixing.read(tmp_path) is None
    _mixture.check(tmp_path, kept, ledger)
    assert mixing.read(tmp_path) == kept
