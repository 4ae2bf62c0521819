"""Checkpoints that somebody made: GGUF headers as the format allows them, layers left in 16 bits, weights unpacked at
first use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.engines.transformers import Transformers
from harness.errors import BadInput, Unsupported
from harness.formats import gguf_reader, gptq_file
from harness.formats.quantization_config import Quantization, bits_and_options
from harness.methods import gguf_file, prequantized
from harness.spec import Scheme
from tests.right.cases import checkpoint, failures, run, values
from tests.tiny_llama import llama, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

PLAIN: dict[str, object] = {"embedding_length": 256, "block_count": 4, "attention.head_count": 4, "attention.head_count_kv": 2}


def written(path: Path, meta: dict[str, object], *, kind: gguf.GGMLQuantizationType | None = None, parts: int = 1) -> Path:
    """A GGUF file with these metadata and one linear layer."""
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_file_type(0)
    for key, value in meta.items():
        name = f"qwen2.{key}"
        writer.add_array(name, value) if isinstance(value, list) else writer.add_uint32(name, int(str(value)))
    if parts > 1:
        writer.add_uint16("split.count", parts)
    if kind is None:
        writer.add_tensor("blk.0.ffn_down.weight", np.zeros((256, 512), np.float32))
    else:
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor("blk.0.ffn_down.weight", np.zeros((256, 512 // weights * size), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def kv_numbers(path: Path) -> int:
    return sum(key + value for key, value in gguf_reader.kv_widths(gguf_reader.header(path)))


def test_heads_that_differ_by_layer_are_counted_by_layer(tmp_path: Path) -> None:
    """Every second layer has attention: 2 layers x 2 heads x 64 x keys and values."""
    hybrid = written(tmp_path / "a.gguf", {**PLAIN, "attention.head_count_kv": [0, 2, 0, 2], "attention.key_length": 64})
    assert kv_numbers(hybrid) == 2 * 2 * 64 * 2
    assert kv_numbers(written(tmp_path / "b.gguf", {**PLAIN, "attention.head_count": [4, 4, 4, 4]})) == 4 * 2 * 64 * 2


def test_absent_key_and_value_lengths_are_the_hidden_units_divided_by_the_heads(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.gguf", PLAIN)
    assert gguf_reader.kv_widths(gguf_reader.header(plain)) == [(128, 128)] * 4
    told = written(tmp_path / "b.gguf", {**PLAIN, "attention.key_length": 32, "attention.value_length": 16})
    assert gguf_reader.kv_widths(gguf_reader.header(told)) == [(64, 32)] * 4


@pytest.mark.parametrize("kind", list(gguf.GGML_QUANT_SIZES), ids=lambda kind: kind.name)
def test_every_block_type_that_the_installed_package_knows_is_read(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    (tensor,) = gguf_reader.header(written(tmp_path / "a.gguf", PLAIN, kind=kind)).tensors
    assert (tensor.type, tensor.shape) == (kind.name, (256, 512))
    assert tensor.bytes == 256 * 512 // weights * size


def refused(path: Path, said: str) -> None:
    """One square that cannot be measured, in words; the plan goes on."""
    with pytest.raises(Unsupported, match=said):
        gguf_file.scheme(gguf_reader.shape_of(path).config)


def test_a_model_of_whose_parts_one_is_missing_or_renamed_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"of its 2 parts are missing: m-00002-of-00002\.gguf; put them beside it"):
        gguf_reader.shape_of(written(tmp_path / "m-00001-of-00002.gguf", PLAIN, parts=2))
    with pytest.raises(BadInput, match="is the first of 2 parts; give all of them the names that they had"):
        gguf_reader.shape_of(written(tmp_path / "other.gguf", PLAIN, parts=2))


def test_a_block_type_that_nobody_knows_refuses_one_cell_and_deletes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", PLAIN)
    data = path.read_bytes()
    name = b"blk.0.ffn_down.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # after the dimensions
    path.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    refused(path, "it holds the type 99, which this version does not know")
    with pytest.raises(Unsupported) as error:
        gguf_reader.header(path)
    assert "delete" not in str(error.value)


# ---------------------------------------------------------------------- layers left in 16 bits


@pytest.mark.parametrize(
    ("format_", "settings", "mixed"),
    [
        ("gptq", {"bits": 4, "group_size": 64}, False),
        ("gptq", {"bits": 4, "group_size": 64, "dynamic": {"+:.*down_proj": {"bits": 8}, "-:.*o_proj": {}}}, True),
        ("awq", {"bits": 4, "group_size": 64, "modules_to_not_convert": None}, False),
        ("awq", {"bits": 4, "group_size": 64, "modules_to_not_convert": ["lm_head"]}, False),
        ("awq", {"bits": 4, "group_size": 64, "modules_to_not_convert": ["lm_head", "down_proj"]}, True),
        ("bitsandbytes", {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]}, False),
        ("bitsandbytes", {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "down_proj"]}, True),
        (
            "compressed-tensors",
            {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}, "ignore": ["lm_head", "re:.*down_proj"]},
            True,
        ),
        ("compressed-tensors", {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}, "ignore": ["lm_head"]}, False),
    ],
)
def test_a_checkpoint_that_leaves_layers_of_the_body_alone_is_called_mixed(
    format_: str, settings: dict[str, object], mixed: bool
) -> None:
    bits, options = bits_and_options(Quantization(format=format_, settings=settings))
    assert options.get("mixed", False) is mixed
    label = prequantized.label("m", Scheme(method="prequantized", bits=bits, options={"format": format_, **options}))
    assert label.endswith(" mixed") is mixed


GROUP = 64
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq_words(codes: torch.Tensor) -> torch.Tensor:
    """Codes [rows, outputs] of 4 bits as AWQ packs them."""
    eights = codes.long().reshape(codes.shape[0], -1, 8)[..., list(ORDER)]
    words = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def awq(source: Path, folder: Path, *, said: list[str] | None) -> Path:
    """A checkpoint as AutoAWQ writes it, whose down_proj is left in 16 bits; the dense weights lie beside it."""
    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    dense = dict(state)
    for name in [n for n in state if n.endswith("_proj.weight") and "down_proj" not in n]:
        weight = state.pop(name).float()
        layer = name.removesuffix(".weight")
        groups = weight.reshape(len(weight), -1, GROUP)
        low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
        scale = ((high - low) / 15).half().float()
        zero = (-low / scale).round().clamp(0, 15)
        codes = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 15)
        dense[name] = ((codes - zero[..., None]) * scale[..., None]).reshape(weight.shape)
        state |= {
            f"{layer}.qweight": awq_words(codes.reshape(weight.shape).t()),
            f"{layer}.qzeros": awq_words(zero.t()),
            f"{layer}.scales": scale.t().half(),
        }
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({n: t.float().contiguous() for n, t in dense.items()}, folder.with_suffix(".dense"))
    settings = {
        "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True,
        "modules_to_not_convert": said,
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


def test_the_weights_of_an_awq_checkpoint_are_read_layer_by_layer(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", model=llama(hidden_size=128, tie_word_embeddings=False), dtype=torch.float16)
    folder = awq(source, tmp_path / "awq", said=None)
    dense = load_file(tmp_path / "awq.dense")
    for name, weight in gptq_file.dequantize(folder, torch.float32).items():
        assert torch.allclose(weight.float(), dense[name].float(), atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("said", [["lm_head", "down_proj"], None], ids=["said", "unsaid"])
def test_an_awq_checkpoint_with_layers_left_in_16_bits_answers_as_its_weights_say(said: list[str] | None, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", model=llama(hidden_size=128, tie_word_embeddings=False), dtype=torch.float16)
    awq(source, tmp_path / "awq", said=said)
    stored = run(
        tmp_path,
        methods="fp32: ",
        models="[{path: ./m, name: m}, {path: ./awq, name: given, of: m}]",
        extra="probes: [size, perplexity, divergence]\n",
    )
    assert failures(stored) == []
    given = next(name for name in values(stored, "kl_mean") if "given" in name)
    assert given.endswith("mixed") is (said is not None)
    base = Transformers(llama(hidden_size=128, tie_word_embeddings=False).half().float().eval(), tokenizer())
    other = llama(hidden_size=128, tie_word_embeddings=False)
    other.load_state_dict(load_file(tmp_path / "awq.dense"), strict=False)
    ids = torch.tensor([[3 + (7 * i * i) % 500 for i in range(64)]])
    with torch.no_grad():
        one = torch.log_softmax(base.model(input_ids=ids).logits, -1)  # type: ignore[operator]
        two = torch.log_softmax(other(input_ids=ids).logits, -1)
    by_hand = float((one.exp() * (one - two)).sum(-1).mean())
    assert values(stored, "kl_mean")[given] == pytest.approx(by_hand, rel=0.5)  # other tokens
    facts = next(
        r.answer.facts for r in stored.records if r.answer is not None and r.cell.name == given and r.question.probe == "size"
    )
    assert {float(bits) for bits in facts["parts"]} >= {16.0}
    assert not any(r.simulated for r in stored.records)


# ---------------------------------------------------------------------- facts after a forward pass


class Unpacks(torch.nn.Linear):
    """A layer that is packed until it is first used, as compressed-tensors' are."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.weight = torch.nn.Parameter(plain.weight.to(torch.int8), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.weight.dtype == torch.int8:
            self.weight = torch.nn.Parameter(self.weight.to(torch.float32), requires_grad=False)
        return torch.nn.functional.linear(inputs, self.weight)


def test_kernels_and_resident_bytes_are_read_after_a_forward_pass() -> None:
    from harness.engines.held_bytes import bytes_of
    from harness.methods import _kernels

    model = llama(hidden_size=64).eval()
    layer = model.model.layers[0].mlp
    layer.up_proj = Unpacks(layer.up_proj)
    packed = bytes_of(model)
    loaded = Transformers(model, tokenizer(), kernels=lambda: _kernels.of_modules(model))
    facts = loaded.facts()
    grown = layer.up_proj.weight.numel() * 3
    assert facts.resident_weight_bytes == packed + grown
    proof = next(k for k in facts.kernels if k.layer.endswith("0.mlp.up_proj"))
    assert proof.stored_dtype == "float32"
    assert facts.simulated
