"""AQLM checkpoints, which are given: read a second time by this project, and run by the library's own kernels where it is
here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness import store
from harness.errors import BadInput
from harness.formats import aqlm_file, safetensors_file
from harness.report.view import view
from harness.spec import to_json
from tests.tiny_llama import llama, tokenizer

# Importing a model class imports hqq where it is installed, and that a part of torch that uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

GROUP, ENTRIES = 8, 256


def test_a_group_is_the_sum_of_its_vectors_times_the_scale_of_its_outputs() -> None:
    codebooks = torch.arange(2 * 4 * 1 * 2.0).reshape(2, 4, 1, 2)  # two codebooks of four vectors of two weights
    codes = torch.tensor([[[0, 1], [-1, 2]], [[3, 3], [1, 0]]], dtype=torch.int8)  # -1: the last of four
    scales = torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1)
    first = [0 + 10, 1 + 11, 6 + 12, 7 + 13]
    second = [10 * (6 + 14), 10 * (7 + 15), 10 * (2 + 8), 10 * (3 + 9)]
    assert aqlm_file.matrix(codes, codebooks, scales).tolist() == [first, second]


def checkpoint(folder: Path) -> Path:
    """A tiny Llama whose linear layers are codes of one codebook: random ones, because nothing here asks what it knows."""
    draw = torch.Generator().manual_seed(0)
    model = llama(dtype=torch.bfloat16)
    state = {}
    for name, tensor in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer == "lm_head":  # tied
            continue
        if not layer.endswith("_proj"):
            state[name] = tensor
            continue
        rows, columns = tensor.shape
        state[f"{layer}.codes"] = torch.randint(-128, 128, (rows, columns // GROUP, 1), generator=draw).to(torch.int8)
        state[f"{layer}.codebooks"] = torch.randn(1, ENTRIES, 1, GROUP, generator=draw).to(torch.float16) * 0.03
        state[f"{layer}.scales"] = (1 + torch.rand(rows, 1, 1, 1, generator=draw)).to(torch.float16)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    safetensors_file.save(state, folder / safetensors_file.MODEL)
    settings = {"quant_method": "aqlm", "in_group_size": GROUP, "out_group_size": 1, "num_codebooks": 1, "nbits_per_codebook": 8}
    left = ["lm_head.weight", "model.embed_tokens.weight"]
    config = json.loads((folder / "config.json").read_text())
    quantized = {"quantization_config": {**settings, "linear_weights_not_to_quantize": left}, "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps({**config, **quantized}))
    return folder


def test_codes_without_their_codebooks_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "packed")
    state = safetensors_file.tensors(folder)
    del state["model.layers.0.mlp.up_proj.codebooks"]
    safetensors_file.save(state, folder / safetensors_file.MODEL)
    with pytest.raises(BadInput, match=r"up_proj: the checkpoint holds its codes and no codebooks"):
        aqlm_file.dequantize(folder, torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("aqlm") is None, reason="aqlm is not installed: pip install 'aqlm[cpu]'")
def test_a_given_checkpoint_answers_as_its_codes_say_on_the_librarys_own_kernel(tmp_path: Path) -> None:
    checkpoint(tmp_path / "packed")
    llama(dtype=torch.bfloat16).save_pretrained(tmp_path / "source")
    tokenizer().save_pretrained(tmp_path / "source")
    (tmp_path / "text.txt").write_text("seven lamps were lit again by the old bridge before noon " * 60)
    (tmp_path / "given.yaml").write_text(
        "name: given\nmodels: [{path: ./source}, {path: ./packed, of: source}]\nbaseline: bf16\nmethods: {bf16: }\n"
        "corpora: [{path: text.txt, window: 64, tokens: 512}]\nprobes: [size, perplexity, divergence]\n"
    )
    command = [sys.executable, "-m", "harness.cli", "run", "given.yaml", "--cache", "cache", "--report", "given.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    records = store.read(tmp_path / "results" / "given").records
    assert "QuantizedLinear" in json.dumps([to_json(record) for record in records])  # the kernel proof names the library's layer
    shown = view(store.read(tmp_path / "results" / "given"))
    assert [cell.label for cell in shown.cells] == ["bf16", "packed aqlm 1-bit g8"]
    assert not shown.cells[1].simulated
