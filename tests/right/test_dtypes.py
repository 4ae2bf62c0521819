"""What a model is stored in decides nothing but what its own cells hold: the baseline is transformers' load in that dtype."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from harness.methods import METHODS
from tests.right.cases import cell, checkpoint, loaded, quantized, run, values
from tests.tiny_llama import llama

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

NATIVE = {"fp32": (32, torch.float32), "bf16": (16, torch.bfloat16), "fp16": (16, torch.float16)}
IDS = torch.arange(3, 60)[None]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def stored_in(original: Path, folder: Path, dtypes: Mapping[str, torch.dtype] | torch.dtype) -> Path:
    """A copy of a checkpoint of one file whose tensors are stored in other dtypes."""
    shutil.copytree(original, folder)
    state = weights(original)
    kinds = dtypes if isinstance(dtypes, Mapping) else dict.fromkeys(state, dtypes)
    save_file({n: t.to(kinds[n]) for n, t in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLM-4's experts, whose router has a correction bias with a common offset, in float32, as such models are published."""
    shape: dict[str, Any] = {"head_dim": 16}  # the class takes it; its types do not name it
    config = transformers.Glm4MoeConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, **shape, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1,
        first_k_dense_replace=1, n_group=1, topk_group=1, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = checkpoint(tmp_path_factory.mktemp("router") / "m", model=transformers.Glm4MoeForCausalLM(config))
    state = weights(folder)
    (bias,) = (name for name in state if name.endswith("e_score_correction_bias"))
    state[bias] = 10 + 0.04 * torch.randn(8)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_an_unquantized_cell_is_transformers_own_load_in_its_dtype(
    stored: torch.dtype, name: str, router: Path, tmp_path: Path
) -> None:
    """Of what the class keeps in float32 too: cast, the router would choose other experts."""
    source = stored_in(router, tmp_path / "source", stored)
    bits, dtype = NATIVE[name]
    model = loaded(source, quantized(source, tmp_path / "artifact", cell(name, bits)), cell(name, bits)).model
    own = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    assert {n: t.dtype for n, t in model.state_dict().items()} == {n: t.dtype for n, t in own.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, own(IDS).logits)


def test_a_tensor_that_a_class_keeps_in_float32_stays_as_it_is_stored(router: Path, tmp_path: Path) -> None:
    state = weights(router)
    (bias,) = (name for name in state if name.endswith("e_score_correction_bias"))
    half = stored_in(router, tmp_path / "half", dict.fromkeys(state, torch.float16) | {bias: torch.float32})
    for source in (router, half):
        for name in ("bf16", "fp16"):
            out = quantized(source, tmp_path / source.name / name, cell(name, 16))
            kept = weights(out)[bias]
            assert kept.dtype == torch.float32
            assert torch.equal(kept, state[bias])


def test_float8_weights_without_scales_are_what_they_say(tmp_path: Path) -> None:
    original = checkpoint(tmp_path / "original", model=llama(hidden_size=64))
    kinds = {n: torch.float8_e4m3fn if n.endswith("proj.weight") else t.dtype for n, t in weights(original).items()}
    source = stored_in(original, tmp_path / "source", kinds)
    for name, (bits, dtype) in NATIVE.items():
        model = loaded(source, quantized(source, tmp_path / name, cell(name, bits)), cell(name, bits)).model
        own = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, own(IDS).logits)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.float16], ids=str)
def test_the_size_of_an_artifact_does_not_depend_on_how_its_source_was_stored(stored: torch.dtype, tmp_path: Path) -> None:
    checkpoint(tmp_path / "plain")
    stored_in(tmp_path / "plain", tmp_path / "other", stored)
    methods = "rtn: {bits: 8}, gptq: {bits: 4}, awq: {bits: 4}, autoround: {bits: 8, iters: 0}, hqq: {bits: 4}"
    models = "[{path: plain, name: plain}, {path: other, name: other}]"
    bits = values(run(tmp_path, models=models, methods=methods, extra="probes: [size]\n"), "bpw_model")
    assert len(bits) == 12
    for name in (n for n in bits if n.startswith("plain")):
        assert bits[name.replace("plain", "other")] == pytest.approx(bits[name], rel=1e-4)
    assert METHODS["rtn"].version != "1"  # artifacts of before are made again
