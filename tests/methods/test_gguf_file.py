"""GGUF headers, names and offers: what is known without llama.cpp."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from harness.artifact import LinearLayer, ModelShape
from harness.errors import BadInput, Unsupported
from harness.formats import gguf_export, gguf_names, gguf_reader, gguf_types
from harness.methods import METHODS, gguf
from harness.methods.base import resolve_options
from harness.spec import Scheme

# Importing a model class imports hqq where it is installed, and that a part of torch that uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

METHOD = METHODS["gguf"]
BITS_BY_HAND = {
    "Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "IQ4_NL": 4.5, "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5,
    "Q5_K": 5.5, "Q6_K": 6.5625, "IQ4_XS": 4.25, "IQ3_S": 3.4375, "IQ3_XXS": 3.0625, "IQ2_S": 2.5625, "IQ2_XS": 2.3125,
    "IQ2_XXS": 2.0625, "IQ1_M": 1.75, "IQ1_S": 1.5625, "TQ1_0": 1.6875, "TQ2_0": 2.0625, "F32": 32, "F16": 16, "BF16": 16,
    "MXFP4": 4.25, "NVFP4": 4.5, "Q1_0": 1.125, "Q2_0": 2.25, "Q8_1": 10, "Q8_K": 9.125, "I8": 8, "I16": 16, "I32": 32, "I64": 64,
    "F64": 64,
}  # fmt: skip
"""As llama.cpp's documentation has them."""


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def file(*, shape: tuple[int, ...] = (256, 2), kind: int = 12, data: int = 288) -> bytes:
    """A GGUF file written out by hand: two entries and one tensor (the fastest dimension first)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    head += text("blk.0.attn_q.weight") + struct.pack("<I", len(shape))
    head += b"".join(struct.pack("<Q", size) for size in shape) + struct.pack("<IQ", kind, 0)
    return head + b"\0" * (-len(head) % 32) + b"\1" * data


def test_a_header_gives_names_types_shapes_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file())
    found = gguf_reader.header(path)
    assert found.metadata == {"general.architecture": "llama", "tokenizer.ggml.tokens": 2}
    (tensor,) = found.tensors
    assert (tensor.name, tensor.type, tensor.shape, tensor.bytes) == ("blk.0.attn_q.weight", "Q4_K", (2, 256), 288)
    assert path.read_bytes()[tensor.offset :] == b"\1" * 288


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "first bytes"),
        (b"GGML" + b"\0" * 40, "first bytes"),
        (file()[:60], "ends within its header"),
        (file()[:-1], "reaches beyond its end"),
        (file(shape=(255, 2)), "no whole blocks"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60), "a string of"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
    ],
)
def test_a_damaged_file_is_bad_input(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=why):
        gguf_reader.header(path)


def test_a_type_that_is_not_known_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(file(kind=99))
    with pytest.raises(Unsupported, match="the type 99, which this version does not know"):
        gguf_reader.header(tmp_path / "m.gguf")


def test_the_blocks_have_the_bits_that_llama_cpp_documents() -> None:
    assert {name: block.bits_per_weight for name, block in gguf_types.BLOCKS.items()} == BITS_BY_HAND


def scheme(bits: float, **options: Any) -> Scheme:
    return Scheme(method="gguf", bits=float(bits), options=resolve_options(METHOD, options, float(bits)))


def shape(columns: int = 768, architecture: str = "LlamaForCausalLM", **config: Any) -> ModelShape:
    layers = (LinearLayer(name="model.layers.0.mlp.down_proj", rows=256, columns=columns),)
    return ModelShape(
        architecture=architecture,
        parameters=256 * columns,
        linears=layers,
        hidden=256,
        layers=1,
        vocab=4096,
        tied=True,
        dtype="bfloat16",
        config=config,
    )


def test_the_default_type_of_each_width_is_its_k_quant() -> None:
    found = {bits: scheme(bits).options["type"] for bits in METHOD.bits}
    assert {b: found[b] for b in (8, 6, 5, 4, 3, 2)} == {
        8: "Q8_0", 6: "Q6_K", 5: "Q5_K_M", 4: "Q4_K_M", 3: "Q3_K_M", 2: "Q2_K",
    }  # fmt: skip
    assert all(gguf_types.FILE_TYPES[found[bits]][0] == bits for bits in METHOD.bits)


@pytest.mark.parametrize("kind", gguf_types.FILE_TYPES)
def test_every_type_is_offered_at_its_bits_only(kind: str) -> None:
    bits = gguf_types.FILE_TYPES[kind][0]
    assert METHOD.supports(scheme(bits, type=kind), shape(), "cpu") is None
    assert f"belongs to {bits:g} bits" in (METHOD.supports(scheme(7, type=kind), shape(), "cpu") or "")


@pytest.mark.parametrize(
    ("kind", "columns", "reason"),
    [
        ("Q4_K_M", 576, "576 input features, which do not divide into groups of 256"),
        ("IQ2_S", 576, "groups of 256"),
        ("TQ1_0", 576, "groups of 256"),
        ("Q4_0", 576, None),
        ("Q8_0", 576, None),
        ("Q8_0", 80, "groups of 32"),
        ("BF16", 80, None),
    ],
)
def test_rows_that_are_no_whole_blocks_are_refused_by_name(kind: str, columns: int, reason: str | None) -> None:
    found = METHOD.supports(scheme(gguf_types.FILE_TYPES[kind][0], type=kind), shape(columns=columns), "cpu")
    assert found is None if reason is None else found is not None and "down_proj" in found and reason in found


def test_types_that_need_a_matrix_take_one_and_others_only_on_request() -> None:
    assert gguf.with_matrix(scheme(2, type="IQ2_M"))
    assert not gguf.with_matrix(scheme(2))
    assert gguf.with_matrix(scheme(2, imatrix=True))
    assert "refuses IQ2_M without" in (METHOD.supports(scheme(2, type="IQ2_M", imatrix=False), shape(), "cpu") or "")
    assert METHOD.supports(scheme(2, imatrix=False), shape(), "cpu") is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "GemmaForCausalLM"}, "not among the architectures"),
        ({"hidden_act": "gelu"}, "activation is gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "'layer type'"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
        ({"architecture": "Qwen2ForCausalLM", "use_sliding_window": True, "sliding_window": 1024}, "sliding window"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized"),
    ],
)
def test_models_that_cannot_be_converted_faithfully_are_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    assert reason in (METHOD.supports(scheme(4), shape(**changes), "cpu") or "")


def test_names_go_to_gguf_and_back() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.11.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.layers.3.self_attn.q_norm.weight",
        "model.layers.3.post_attention_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]
    ours = [gguf_names.gguf_name(name) for name in names]
    assert ours[1] == "blk.11.attn_q.weight"
    assert [gguf_names.source_name(str(name)) for name in ours] == names
    assert [gguf_names.linear(str(name)) for name in ours] == [None, "model.layers.11.self_attn.q_proj", *[None] * 5]
    assert gguf_names.gguf_name("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    with pytest.raises(Unsupported, match="no place for"):
        gguf_names.gguf_name("model.layers.0.block_sparse_moe.gate.weight")


def test_rows_are_reordered_as_rotation_needs_and_back() -> None:
    import torch

    weight = torch.arange(2 * 6 * 3).reshape(12, 3)
    moved = gguf_names.interleaved(weight, 2)
    assert moved[:, 0].tolist() == [3 * row for row in (0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11)]
    assert torch.equal(gguf_names.halved(moved, 2), weight)
    assert torch.equal(gguf_names.halved(gguf_names.interleaved(weight[:, 0], 2), 2), weight[:, 0])


def test_llama_3s_divisors_are_those_of_transformers() -> None:
    import numpy as np
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings["original_max_position_embeddings"] = 8192
    config = transformers.LlamaConfig(hidden_size=512, num_attention_heads=8, rope_parameters=settings)
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    found = gguf_export._frequency_divisors(gguf_export.decoder({**config.to_dict(), "architectures": ["LlamaForCausalLM"]}))
    assert found is not None
    assert max(found) == 32.0
    np.testing.assert_allclose(plain / found, scaled, rtol=1e-5)
