"""What a run says of each layer's weights is what its artifacts and the source say, computed here from the files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from harness import reference, store
from harness.formats import gptq_file, safetensors_file
from harness.methods import layer_errors
from harness.metrics.quantize import LAYERS, WEIGHT_ERROR
from harness.models import corpora
from harness.spec import Measurement

SAMPLES, LENGTH, SEED = 8, 128, 0
FIRST = "model.layers.0.self_attn.q_proj"
"""A layer whose inputs while quantizing are the source's own, because nothing before it is quantized."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is None, reason="GPTQModel not installed"),
    # Importing a model class imports hqq where it is installed, and that a part of torch that uses what torch deprecates.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


@dataclass(frozen=True, kw_only=True)
class Made:
    """Of each method: the measurement, the layers as the run file's samples have them, and the artifact's folder."""

    measured: Mapping[str, Measurement | None]
    layers: Mapping[str, Mapping[str, Mapping[str, Any]]]
    folders: Mapping[str, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("layers")
    suite = {
        "name": "layers",
        "models": ["reference"],
        "baseline": "bf16",
        "probes": ["size", "quantize"],
        "calibration": {"corpus": "reference", "samples": SAMPLES, "length": LENGTH, "seed": SEED},
        "methods": {
            "bf16": None,
            **{name: {"bits": 4, "group_size": 64} for name in ("rtn", "gptq", "awq", "hqq")},
            "bnb": {"bits": 4},
        },
    }
    (root / "layers.yaml").write_text(json.dumps(suite))
    command = [sys.executable, "-m", "harness.cli", "run", "layers.yaml", "--cache", "cache"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = store.read(root / "results" / "layers")
    measured, layers, folders = {}, {}, {}
    for record in run.records:
        if record.question.probe != "quantize":
            continue
        assert record.answer is not None, record.failure
        found = next((m for m in record.answer.measurements if m.metric == WEIGHT_ERROR.name), None)
        measured[record.cell.method] = found
        rows = [] if found is None else json.loads(run.blob(str(found.blob)))[LAYERS]
        layers[record.cell.method] = {row["layer"]: row for row in rows}
        folders[record.cell.method] = root / "cache" / "artifacts" / run.artifacts[record.artifact].folder
    return Made(measured=measured, layers=layers, folders=folders)


def source() -> dict[str, torch.Tensor]:
    entries = safetensors_file.checkpoint(reference.MODEL_DIR)
    return {
        n.removesuffix(".weight"): safetensors_file.tensor(e).double() for n, e in entries.items() if n.endswith("_proj.weight")
    }


def unpacked(made: Made, method: str) -> dict[str, torch.Tensor]:
    state = gptq_file.dequantize(made.folders[method], torch.float32)
    return {name.removesuffix(".weight"): tensor.double() for name, tensor in state.items()}


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_layers_error_is_the_distance_of_its_codes_from_the_source(made: Made, method: str) -> None:
    ours, theirs = source(), unpacked(made, method)
    rows = made.layers[method]
    assert rows.keys() == ours.keys()
    for name, weight in ours.items():
        expected = float((theirs[name] - weight).norm() / weight.norm())
        assert rows[name]["relative"] == pytest.approx(expected, rel=1e-4)
    everything = sum(float((theirs[n] - w).square().sum()) for n, w in ours.items()) / sum(
        float(w.square().sum()) for w in ours.values()
    )
    measured = made.measured[method]
    assert measured is not None
    assert measured.value == pytest.approx(everything**0.5, rel=1e-4)
    assert measured.n == len(ours)


def test_weights_that_awq_scaled_are_compared_with_the_source_scaled_likewise(made: Made) -> None:
    ours, theirs = source(), unpacked(made, "awq")
    apart = [float((theirs[name] - weight).norm() / weight.norm()) for name, weight in ours.items()]
    assert max(apart) > 2 * max(row["relative"] for row in made.layers["awq"].values()), (
        "nothing was scaled, so this shows nothing"
    )
    for name, weight in ours.items():
        rows, columns = torch.ones(len(weight), 1), torch.ones(1, weight.shape[1])
        for _ in range(20):  # alternating least squares, as long as it takes
            columns = (theirs[name] * weight * rows).sum(0) / (weight * rows).square().sum(0)
            rows = ((theirs[name] * weight * columns).sum(1) / (weight * columns).square().sum(1))[:, None]
        rest = float((theirs[name] - rows * weight * columns).norm() / theirs[name].norm())
        assert made.layers["awq"][name]["relative"] == pytest.approx(rest, rel=0.05)


def test_gptqs_own_loss_is_the_squared_change_of_a_layers_output_over_the_calibration_text(made: Made) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(reference.MODEL_DIR))
    ids = tokenizer(reference.CALIBRATION_TEXT.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    rows = corpora.calibration_rows(ids, samples=SAMPLES, length=LENGTH, seed=SEED, name="reference")
    model = transformers.AutoModelForCausalLM.from_pretrained(str(reference.MODEL_DIR), dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    model.get_submodule(FIRST).register_forward_hook(lambda _module, given, _answer: seen.append(given[0].detach().double()))
    with torch.no_grad():
        model(input_ids=torch.tensor(rows))
    inputs = torch.cat([x.flatten(0, -2) for x in seen])
    change = unpacked(made, "gptq")[FIRST] - source()[FIRST]
    output = float((inputs @ change.t()).square().sum(1).mean())
    damping = 0.05 * float(inputs.square().mean(0).mean()) * float(change.square().sum())
    assert made.layers["gptq"][FIRST]["output"] == pytest.approx(output + damping, rel=0.02)


def test_a_method_that_does_not_unpack_its_weights_says_nothing_of_them(made: Made) -> None:
    assert made.measured["bf16"] is None
    assert made.measured["bnb"] is None
    assert layer_errors.read(made.folders["bnb"]) == ()
    assert made.measured["hqq"] is not None
    assert all(row["output"] is None for method in ("rtn", "awq", "hqq") for row in made.layers[method].values())
