"""An exported folder, loaded by the runtime that it is made for and nothing else, gives the record's answers.

Each case runs a suite of one cell of the reference model beside its baseline, exports it, and has a process that imports nothing
of the harness load the folder and compute the perplexity again. Then the artifact is taken out of the cache, and made again.
Where a runtime is not installed the case is skipped, and says so.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import envs, reference, store
from harness.files import sha256
from harness.methods import METHODS

ROOT = Path(__file__).parents[2]
WINDOW, TOKENS = 256, 2048
SAME = 1e-3
"""Distance of the logarithms of two perplexities: what the runtimes' own order of sums and rounding of activations moves."""

OWN_CACHE = "QUANT_HARNESS_TEST_CACHE"
"""The variable that names a cache whose environments these tests may use."""

pytestmark = pytest.mark.slow


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    named = os.environ.get(OWN_CACHE)
    return Path(named) if named else tmp_path / "cache"


@dataclass(frozen=True, kw_only=True)
class Case:
    method: str
    scheme: str
    runtime: str  # of by_runtime.py; '' where nothing but the harness loads it
    serve: str  # the command that the export prints
    files: frozenset[str]
    given: Callable[[Path], None] | None = None  # writes the checkpoint, where the cell is one that somebody quantized


def compressed(folder: Path) -> None:
    """A compressed-tensors checkpoint of the reference model: rounded to nearest in groups of 64, codes of four bits plus eight
    packed into int32, the first in the lowest bits, as that library's `pack-quantized` layout has them."""
    state = load_file(reference.MODEL_DIR / "model.safetensors")
    for name in [n for n in state if n.endswith("_proj.weight")]:
        rows, columns = state[name].shape
        groups = state.pop(name).float().view(rows, columns // 64, 64)
        scale = (groups.abs().amax(-1, keepdim=True) / 7).to(torch.bfloat16)
        codes = (groups / scale.float()).round().clamp(-8, 7).to(torch.int64).view(rows, columns // 8, 8) + 8
        words = (codes << (4 * torch.arange(8))).sum(-1)
        layer = name.removesuffix(".weight")
        state[f"{layer}.weight_packed"] = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
        state[f"{layer}.weight_scale"] = scale.squeeze(-1).contiguous()
        state[f"{layer}.weight_shape"] = torch.tensor([rows, columns])
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for path in reference.MODEL_DIR.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    (folder / "config.json").write_text(json.dumps(config))


CASES = (
    Case(
        method="hqq",
        scheme="{bits: 4, group_size: 64}",
        runtime="",
        serve="digest",
        files=frozenset({"config.json", "model.safetensors", "hqq.json", "tokenizer.json"}),
    ),
    Case(
        method="gptq",
        scheme="{bits: 4, group_size: 64}",
        runtime="gptqmodel",
        serve="vllm serve .",
        files=frozenset({"config.json", "model.safetensors", "quantize_config.json", "tokenizer.json"}),
    ),
    Case(
        method="openvino",
        scheme="{bits: 4, group_size: 64}",
        runtime="openvino",
        serve="convert_tokenizer . --with-detokenizer --output .",
        files=frozenset({"openvino_model.xml", "openvino_model.bin", "config.json", "tokenizer.json"}),
    ),
    Case(
        method="gguf",
        scheme="{bits: 4, type: Q4_0}",
        runtime="llama_cpp",
        serve="llama-server --model model.gguf --port 8000",
        files=frozenset({"model.gguf", "tokenizer.json"}),
    ),
    Case(
        method="llmcompressor",
        scheme="{bits: 4, group_size: 64}",
        runtime="transformers",
        serve="vllm serve .",
        files=frozenset({"config.json", "model.safetensors", "tokenizer.json"}),
    ),
    Case(
        method="prequantized",
        scheme="",
        runtime="transformers",
        serve="vllm serve .",
        files=frozenset({"config.json", "model.safetensors", "tokenizer.json"}),
        given=compressed,
    ),
    Case(
        method="bf16",
        scheme="{bits: 16}",
        runtime="transformers",
        serve="vllm serve .",
        files=frozenset({"config.json", "model.safetensors", "tokenizer.json"}),
    ),
)


def lacking(case: Case, cache: Path) -> str | None:
    """Why the case cannot run here, with what would add it."""
    method = METHODS[case.method]
    if case.given is not None and importlib.util.find_spec("compressed_tensors") is None:
        return "compressed-tensors not installed; add with: pip install compressed-tensors"
    missing = envs.missing(method)
    if missing is not None:
        return f"{', '.join(missing.packages)} not installed; add with: {missing.install}"
    if method.environment != envs.MAIN and envs.packages(method.environment, cache) is None:
        return f"the environment {method.environment} is not built (it takes gigabytes); {OWN_CACHE} names a cache that has it"
    return None


def python(case: Case, cache: Path) -> str:
    """The interpreter that has the runtime: that of the method's environment, where it has one."""
    environment = METHODS[case.method].environment
    if environment == envs.MAIN:
        return sys.executable
    with envs.obtain(envs.find(environment), cache, print) as ready:
        return str(ready.python)


def harness(folder: Path, cache: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "harness.cli", *arguments, "--cache", str(cache)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def answered(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GPTQMODEL_CPU_WORKERS": "2", "TORCH_COMPILE_DISABLE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_an_export_loaded_by_its_own_runtime_gives_the_records_perplexity_and_can_be_made_again(
    case: Case, tmp_path: Path, own_cache: Path
) -> None:
    if why := lacking(case, own_cache):
        pytest.skip(why)
    rows = {"bf16": [{"bits": 16}]} | ({} if case.method == "bf16" or case.given else {case.method: "SCHEME"})
    models: list[object] = ["reference"]
    if case.given is not None:
        case.given(tmp_path / "given")
        models.append({"path": "given", "of": "reference"})
    suite = {
        "name": "one",
        "models": models,
        "baseline": "bf16",
        "probes": ["size", "perplexity"],
        "calibration": {"corpus": "reference", "samples": 8, "length": 128},
        "corpora": [{"corpus": "reference", "window": WINDOW, "tokens": TOKENS}],
        "methods": rows,
    }
    (tmp_path / "one.yaml").write_text(json.dumps(suite).replace('"SCHEME"', f"[{case.scheme}]"))
    harness(tmp_path, own_cache, "run", "one.yaml")
    run = store.read(tmp_path / "results" / "one")
    record = next(r for r in run.records if r.cell.method == case.method and r.question.probe == "perplexity")
    assert record.answer is not None, record.failure
    measured = next(m.value for m in record.answer.measurements if m.metric == "perplexity")

    said = harness(tmp_path, own_cache, "export", "results/one", record.cell.label, "--to", "out")
    assert case.serve in said
    assert case.files <= {p.name for p in (tmp_path / "out").iterdir()}
    artifact = run.artifacts[record.artifact]
    assert {file.name: file.sha256 for file in artifact.files} == {
        p.relative_to(tmp_path / "out").as_posix(): sha256(p)
        for p in (tmp_path / "out").rglob("*")
        if p.is_file() and p.name != "README.md"
    }

    if case.runtime:
        command = [python(case, own_cache), "-m", "tests.export.by_runtime", case.runtime, str(tmp_path / "out")]
        again = float(answered([*command, str(reference.HELDOUT_TEXT), str(WINDOW), str(TOKENS)], ROOT).split()[-1])
        assert abs(math.log(again) - math.log(measured)) <= SAME, (again, measured)
    card = (tmp_path / "out" / "README.md").read_text()
    tried = re.findall(r"quant-harness measured it with this runtime\.\n\n```python\n(.*?)\n```", card, flags=re.DOTALL)
    assert tried
    for code in tried:  # what the card says to type works in the folder
        assert "Model" in answered([python(case, own_cache), "-c", f"{code}\nprint('Model', type(model))"], tmp_path / "out")

    if case.method == "bf16":
        return  # it links to the source's own weights: there is nothing to make again
    shutil.rmtree(own_cache / "artifacts" / artifact.folder)
    assert "made again, with the same bytes" in harness(
        tmp_path, own_cache, "export", "results/one", record.cell.label, "--to", "again"
    )
    for file in artifact.files:
        assert sha256(tmp_path / "again" / file.name) == file.sha256
