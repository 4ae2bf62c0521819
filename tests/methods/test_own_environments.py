"""What can be shown of the methods of other environments without building those: what they offer, and that this project reads
their formats as they are. `python -m tests.own_environments` builds them and runs every method for real."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import envs
from harness.errors import BadInput, Unsupported
from harness.formats import compressed_tensors, gptq_file, modelopt_checkpoint
from harness.formats.safetensors_file import stored
from harness.methods import METHODS, _transformers4, inc, reload
from harness.methods.base import QuantizeRequest
from harness.models import build
from harness.spec import Quantized
from harness.suite import matrix
from tests.methods.test_offers import scheme, shape
from tests.tiny_llama import llama, tokenizer

OWN = ("llmcompressor", "inc", "modelopt", "autogptq", "autoawq")
LAYER = "model.layers.0.mlp.up_proj"
ROWS, COLUMNS, GROUP = 32, 64, 32


def words(rows: Iterable[Iterable[int]], bits: int, *, crossing: bool = True) -> torch.Tensor:
    """Codes as bit streams in int32 words, lowest first; `crossing` codes may lie in two words, others fill a word with whole
    ones. Written with Python's integers, to be no copy of what is tested."""
    packed = []
    for row in rows:
        codes = list(row)
        step = len(codes) if crossing else 32 // bits
        line: list[int] = []
        for start in range(0, len(codes), step):
            part = codes[start : start + step]
            stream = sum(code << (bits * place) for place, code in enumerate(part))
            line += [(stream >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(part) * bits // 32))]
        packed.append([word - (1 << 32) if word >> 31 else word for word in line])
    return torch.tensor(packed, dtype=torch.int32)


def codes(bits: int, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    return torch.randint(0, 1 << bits, (rows, columns), generator=torch.Generator().manual_seed(bits))


def checkpoint(folder: Path, parts: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    state = {f"{LAYER}.{name}": tensor.contiguous() for name, tensor in parts.items()}
    save_file({**state, "model.norm.weight": torch.ones(4, dtype=torch.bfloat16)}, folder / "model.safetensors")
    return folder


def counted(folder: Path, name: str, role: str) -> int:
    return sum(t.bits for t in METHODS[name].ledger(folder, scheme(name)) if t.role == role)


@pytest.mark.parametrize("name", OWN)
def test_a_method_of_another_environment_pins_torch_and_transformers_there(name: str) -> None:
    method = METHODS[name]
    assert method.environment != "main"
    pinned = {r.split("==")[0] for r in method.requirements if "==" in r}
    assert {"torch", "transformers"} <= pinned
    assert envs.find(method.environment).requirements == tuple(sorted(method.requirements))


def test_a_library_that_nobody_maintains_quantizes_apart_and_is_measured_by_its_successors_kernels() -> None:
    for name, successor in (("autogptq", "gptq"), ("autoawq", "awq")):
        assert METHODS[name].loaded_by == successor
        assert METHODS[name].load is METHODS[successor].load
        assert envs.loading(METHODS[name]) == "main"
        assert envs.missing(METHODS[name]) == envs.missing(METHODS[successor])
    assert envs.loading(METHODS["llmcompressor"]) == "llmcompressor"


@pytest.mark.parametrize("name", ["llmcompressor", "inc", "modelopt"])
def test_what_unpacks_to_full_width_is_called_simulated(name: str) -> None:
    assert set(METHODS[name].kernel_cpu.values()) == {"simulated"}


@pytest.mark.parametrize(
    ("bits", "options", "said"),
    [
        (4, {"type": "float"}, "type float is a format of 8 bits"),
        (8, {"type": "nv"}, "type nv is a format of 4 bits"),
        (4, {"type": "mx"}, "algorithm: rtn only"),
        (4, {"type": "mx", "algorithm": "rtn", "sym": False}, "no zero points"),
        (4, {"type": "nv", "algorithm": "rtn"}, "write group_size: 16"),
        (4, {"type": "mx", "algorithm": "rtn", "group_size": 32, "activations": 8}, "leave activations out"),
        (4, {"smooth": 0.5}, "smooth belongs to rounded activations"),
        (4, {"algorithm": "awq", "group_size": -1}, "in groups"),
        (8, {"sym": False}, "are symmetric"),
    ],
)
def test_options_of_llmcompressor_that_do_not_go_together_are_refused_with_what_to_write(
    bits: float, options: dict[str, Any], said: str
) -> None:
    assert said in (METHODS["llmcompressor"].supports(scheme("llmcompressor", bits, **options), shape(), "cpu") or "")


def test_formats_of_llmcompressor_are_offered_at_their_width() -> None:
    for bits, options, stated in (
        (8, {"type": "float"}, 8.0),
        (4, {"type": "nv", "algorithm": "rtn", "group_size": 16}, 4.5),
        (4, {"type": "mx", "algorithm": "rtn", "group_size": 32}, 4.25),
        (4, {"sym": False, "group_size": 64}, 4 + 20 / 64),
    ):
        found = scheme("llmcompressor", bits, **options)
        assert METHODS["llmcompressor"].supports(found, shape(), "cpu") is None
        assert METHODS["llmcompressor"].bits_per_weight(found) == stated


@pytest.mark.parametrize("name", ["autogptq", "autoawq"])
def test_an_architecture_that_came_after_a_library_is_refused_before_anything_runs(name: str) -> None:
    reason = METHODS[name].supports(scheme(name), shape(config={"model_type": "gemma4"}), "cpu")
    assert reason is not None
    assert "given up before gemma4 came" in reason
    assert METHODS[name].supports(scheme(name), shape(config={"model_type": "llama"}), "cpu") is None


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("sym", [True, False])
def test_packed_integers_of_compressed_tensors_are_read_as_they_are(tmp_path: Path, bits: int, sym: bool) -> None:
    found, middle = codes(bits), 1 << (bits - 1)
    scale = torch.rand(ROWS, COLUMNS // GROUP).bfloat16()
    zeros = codes(bits, ROWS, COLUMNS // GROUP)
    parts = {
        "weight_packed": words(found.tolist(), bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([ROWS, COLUMNS]),
    }
    if not sym:
        parts["weight_zero_point"] = words(zeros.t().tolist(), bits).t()
    folder = checkpoint(tmp_path / "c", parts)
    offsets = torch.full_like(zeros, middle) if sym else zeros
    expected = (found - offsets.repeat_interleave(GROUP, 1)).float() * scale.float().repeat_interleave(GROUP, 1)
    state = compressed_tensors.dequantize(folder, bits, torch.float32)
    assert torch.equal(state[f"{LAYER}.weight"], expected)
    assert set(state) == {f"{LAYER}.weight", "model.norm.weight"}
    assert counted(folder, "llmcompressor", "weight") == ROWS * COLUMNS * bits
    assert counted(folder, "llmcompressor", "scale") == 16 * ROWS * COLUMNS // GROUP
    assert counted(folder, "llmcompressor", "zero") == (0 if sym else bits * ROWS * COLUMNS // GROUP)
    every = sum(t.bits for t in METHODS["llmcompressor"].ledger(folder, scheme("llmcompressor")))
    assert every == sum(t.bits for t in stored(folder))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_bits_of_a_recipes_layer_are_read_from_its_shape_and_its_groups_may_be_in_any_order(
    tmp_path: Path, bits: int
) -> None:
    written, order = codes(bits), torch.arange(COLUMNS, dtype=torch.int32) % 2
    scale = torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    parts = {
        "weight_packed": words(written.tolist(), bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([ROWS, COLUMNS]),
        "weight_g_idx": order,
    }
    folder = checkpoint(tmp_path / "layer", parts)
    read = compressed_tensors.weight(folder, LAYER, None)
    assert torch.equal(read, (written - (1 << (bits - 1))).float() * scale[:, order.long()])


def test_eight_bit_rows_and_fp8_are_read_as_they_are(tmp_path: Path) -> None:
    scale = torch.rand(ROWS, 1).bfloat16()
    for place, dtype in enumerate((torch.int8, torch.float8_e4m3fn)):
        weight = torch.randint(-100, 100, (ROWS, COLUMNS)).to(dtype)
        folder = checkpoint(tmp_path / str(place), {"weight": weight, "weight_scale": scale})
        found = compressed_tensors.dequantize(folder, 8, torch.float32)[f"{LAYER}.weight"]
        assert torch.equal(found, weight.float() * scale.float())
        assert counted(folder, "llmcompressor", "weight") == ROWS * COLUMNS * 8


@pytest.mark.parametrize("kind", ["nv", "mx"])
def test_four_bit_floats_are_read_as_they_are(tmp_path: Path, kind: str) -> None:
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    found, block = codes(4), 16 if kind == "nv" else 32
    parts = {"weight_packed": (found[:, ::2] + 16 * found[:, 1::2]).to(torch.uint8)}
    if kind == "nv":
        parts["weight_scale"] = (torch.rand(ROWS, COLUMNS // block) * 400 + 1).to(torch.float8_e4m3fn)
        parts["weight_global_scale"] = torch.tensor([50.0])
        steps = parts["weight_scale"].float() / 50
    else:
        parts["weight_scale"] = torch.randint(120, 130, (ROWS, COLUMNS // block), dtype=torch.uint8)
        steps = torch.tensor([[2.0 ** (e - 127) for e in row] for row in parts["weight_scale"].tolist()])
    folder = checkpoint(tmp_path / "c", parts)
    expected = torch.tensor([[values[c] for c in row] for row in found.tolist()]) * steps.repeat_interleave(block, 1)
    assert torch.equal(compressed_tensors.dequantize(folder, 4, torch.float32)[f"{LAYER}.weight"], expected)
    stated = METHODS["llmcompressor"].bits_per_weight(scheme("llmcompressor", 4, type=kind, algorithm="rtn"))
    quantized = counted(folder, "llmcompressor", "weight") + counted(folder, "llmcompressor", "scale")
    assert quantized - (32 if kind == "nv" else 0) == stated * ROWS * COLUMNS


def test_a_layout_that_is_not_known_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", {"weight_scale": torch.ones(ROWS, 1)})
    with pytest.raises(BadInput, match=r"up_proj are of no layout known here: \['weight_scale'\]"):
        compressed_tensors.dequantize(folder, 4, torch.float32)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_what_neural_compressor_packs_is_read_as_it_is(tmp_path: Path, bits: int) -> None:
    found, zeros = codes(bits, COLUMNS, ROWS), codes(bits, COLUMNS // GROUP, ROWS)
    scales = torch.rand(COLUMNS // GROUP, ROWS).half()
    stored_zeros = (zeros - 1) % (1 << bits)
    parts = {
        "qweight": words(found.t().tolist(), bits, crossing=False).t(),
        "qzeros": words(stored_zeros.tolist(), bits, crossing=False),
        "scales": scales,
        "bias": torch.zeros(ROWS),
    }
    folder = checkpoint(tmp_path / "c", parts)
    (folder / inc.META).write_text(json.dumps({"bits": bits, "group_size": GROUP, "layers": {LAYER: [COLUMNS, ROWS, False]}}))
    expected = (found - zeros.repeat_interleave(GROUP, 0)).float() * scales.float().repeat_interleave(GROUP, 0)
    state = inc.dequantize(folder)
    assert torch.equal(state[f"{LAYER}.weight"], expected.t())
    assert f"{LAYER}.bias" not in state
    assert counted(folder, "inc", "weight") == ROWS * -(-COLUMNS // (32 // bits)) * 32
    every = sum(t.bits for t in METHODS["inc"].ledger(folder, scheme("inc")))
    assert every == sum(t.bits for t in stored(folder))


@pytest.mark.parametrize(
    ("bits", "options", "device", "said"),
    [
        (4, {"type": "fp8"}, "cpu", "type fp8 is a format of 8 bits; write bits: 8"),
        (8, {"type": "nvfp4"}, "cpu", "type nvfp4 is a format of 4 bits; write bits: 4"),
        (8, {"type": "fp8"}, "cpu", "write group_size: 0"),
        (8, {"group_size": 64}, "cpu", "write group_size: -1"),
        (4, {"type": "w4a16_nvfp4"}, "cpu", "write group_size: 16"),
        (4, {"type": "w4a16", "group_size": 16}, "cpu", "write group_size: 32, 64 or 128"),
        (4, {}, "cuda", "tried on the CPU only"),
    ],
)
def test_options_of_modelopt_that_do_not_go_together_are_refused_with_what_to_write(
    bits: float, options: dict[str, Any], device: str, said: str
) -> None:
    assert said in (METHODS["modelopt"].supports(scheme("modelopt", bits, **options), shape(), device) or "")


def test_modelopt_refuses_what_its_packing_cannot_cut() -> None:
    supports = METHODS["modelopt"].supports
    assert "groups of 128; choose a smaller" in (supports(scheme("modelopt"), shape(columns=576), "cpu") or "")
    assert "do not divide by 2" in (supports(scheme("modelopt"), shape(rows=255), "cpu") or "")
    said = supports(scheme("modelopt", type="nvfp4", group_size=16), shape(columns=24), "cpu") or ""
    assert said.endswith("groups of 16")
    assert supports(scheme("modelopt", 8), shape(rows=255, columns=25), "cpu") is None


LEVELS = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def exported(kind: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Parts of a layer of `kind` made by hand, and its weight: [ROWS, COLUMNS], float32."""
    draw = np.random.default_rng(0)
    if kind == "int8":
        steps = draw.random(ROWS, dtype=np.float32)
        whole = draw.integers(-127, 128, (ROWS, COLUMNS)).astype(np.int8)
        parts = {"weight": torch.tensor(whole), "weight_scale": torch.tensor(steps)}
        return parts, whole.astype(np.float32) * steps[:, None]
    if kind == "fp8":
        bytes_ = torch.tensor(draw.integers(0, 127, (ROWS, COLUMNS)), dtype=torch.uint8)  # 127 is NaN
        parts = {"weight": bytes_.view(torch.float8_e4m3fn), "weight_scale": torch.tensor(0.25)}
        exponent, mantissa = bytes_.numpy() >> 3, bytes_.numpy() & 7
        value = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0), mantissa / 8 * 2.0**-6)
        return parts, (value / 4).astype(np.float32)
    if kind == "nvfp4":
        nibbles, sixteenths = (
            draw.integers(0, 16, (ROWS, COLUMNS)),
            draw.integers(1, 16, (ROWS, COLUMNS // 16)).astype(np.float32),
        )
        parts = {
            "weight": torch.tensor(nibbles[:, ::2] + 16 * nibbles[:, 1::2], dtype=torch.uint8),
            "weight_scale": torch.tensor(sixteenths).to(torch.float8_e4m3fn),
            "weight_scale_2": torch.tensor(0.125),
        }
        values = np.array([*LEVELS, *(-x for x in LEVELS)], dtype=np.float32)[nibbles]
        return parts, values * np.repeat(sixteenths, 16, 1) / 8
    signed, steps = draw.integers(-8, 8, (ROWS, COLUMNS)), draw.random((ROWS, COLUMNS // GROUP), dtype=np.float32)
    parts = {
        "weight": torch.tensor(signed[::2] % 16 + 16 * (signed[1::2] % 16), dtype=torch.uint8),
        "weight_scale": torch.tensor(steps),
    }
    return parts, signed.astype(np.float32) * np.repeat(steps, GROUP, 1)


@pytest.mark.parametrize(
    ("kind", "options", "bits"),
    [
        ("int8", {"type": "w8a16"}, 8),
        ("fp8", {"type": "fp8", "group_size": 0}, 8),
        ("int4", {"type": "w4a16", "group_size": GROUP}, 4),
        ("nvfp4", {"type": "w4a16_nvfp4", "group_size": 16}, 4),
    ],
)
def test_what_modelopt_exports_is_read_as_it_is_and_counted(
    tmp_path: Path, kind: str, options: dict[str, Any], bits: int
) -> None:
    parts, expected = exported(kind)
    inputs = {"pre_quant_scale": torch.ones(COLUMNS, dtype=torch.bfloat16), "input_scale": torch.tensor(0.5)}
    folder = checkpoint(tmp_path / "c", {**parts, **inputs})
    layers, rest = modelopt_checkpoint.read(folder)
    assert set(layers) == {LAYER}
    state = modelopt_checkpoint.dequantize(layers, rest, torch.float32)
    assert set(state) == {f"{LAYER}.weight", "model.norm.weight"}
    assert np.array_equal(state[f"{LAYER}.weight"].numpy(), expected)
    assert counted(folder, "modelopt", "weight") == ROWS * COLUMNS * bits
    once = 16 * COLUMNS + 32 + {"int8": 32 * ROWS, "fp8": 32, "int4": 0, "nvfp4": 32}[kind]  # per channel, and per layer
    stated = METHODS["modelopt"].bits_per_weight(scheme("modelopt", bits, **options)) * ROWS * COLUMNS
    assert counted(folder, "modelopt", "weight") + counted(folder, "modelopt", "scale") == stated + once
    assert counted(folder, "modelopt", "other") == 4 * 16


def test_w4a8_rounds_what_its_integers_give_to_fp8_once_more() -> None:
    parts, expected = exported("int4")
    parts["weight_scale_2"] = torch.tensor(float(np.abs(expected).max() / 448))
    found = modelopt_checkpoint.dequantize({LAYER: parts}, {}, torch.float32)[f"{LAYER}.weight"].numpy()
    assert not np.array_equal(found, expected)
    assert np.all(np.abs(found - expected) <= np.abs(expected) / 16 + parts["weight_scale_2"].item() * 2.0**-10)  # half a step
    assert len(np.unique(np.abs(found))) <= 127  # of e4m3's values


@pytest.mark.parametrize("kind", ["int8", "e4m3", "e2m1", None])
def test_inputs_are_multiplied_and_rounded_as_stored(kind: str | None) -> None:
    parts, _ = exported({"int8": "int8", "e4m3": "int4", "e2m1": "nvfp4", None: "int8"}[kind])
    parts["pre_quant_scale"] = torch.full((COLUMNS,), 2.0, dtype=torch.bfloat16)
    if kind is not None:
        parts["input_scale"] = torch.tensor(0.5)
    assert modelopt_checkpoint.inputs_of(parts) == kind
    half = [0.3, 0.6, -40.0, 500.0, -500.0, 0.25, 0.75, 0.0] * (COLUMNS // 8)
    x = np.array(half, dtype=np.float32)
    if kind == "int8":
        expected = np.clip(np.round(2 * x / 0.5), -128, 127) * 0.5
    elif kind == "e4m3":  # 1.2, 2.4, -160, 2000, -2000, 1 and 3 steps become 1.25, 2.5, -160, 448, -448, 1 and 3
        expected = np.array([0.625, 1.25, -80, 224, -224, 0.5, 1.5, 0] * (COLUMNS // 8))
    elif kind == "e2m1":  # the block's largest, 1000, is 6 steps of the e4m3 value nearest to 1000 / 6 / 0.5, which is 320
        step = 320 * 0.5
        expected = np.array([0, 0, -80, 6 * step, -6 * step, 0, 0, 0] * (COLUMNS // 8))
    else:
        expected = (2 * x).astype(np.float64)
    found = modelopt_checkpoint.rounded(torch.tensor(x)[None, None], parts)
    assert np.array_equal(found[0, 0].numpy(), expected)


def test_ties_of_nvfp4_inputs_go_to_the_even_code() -> None:
    parts, _ = exported("nvfp4")
    parts["input_scale"] = torch.tensor(1.0)
    ties = [6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0, 0.0]
    found = modelopt_checkpoint.rounded(torch.tensor([ties]), parts)[0].tolist()
    assert found == [6, 0, 1, 1, 2, 2, 4, 4, 0, -1, -1, -2, -2, -4, -4, 0]


def test_a_layer_of_an_export_that_is_of_no_known_layout_is_named() -> None:
    with pytest.raises(BadInput, match="up_proj are of no layout known here"):
        modelopt_checkpoint.dequantize({LAYER: {"weight_scale": torch.ones(2)}}, {}, torch.float32)


def test_an_older_transformers_is_told_the_rotary_base_in_its_own_words() -> None:
    rope = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0}
    found = _transformers4.older({"model_type": "llama", "dtype": "bfloat16", "rope_parameters": rope})
    assert found == {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    }
    assert "rope_scaling" not in _transformers4.older({"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}})
    with pytest.raises(Unsupported, match="differs by layer"):
        _transformers4.older({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}})


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_foreign_checkpoint_becomes_an_artifact_in_the_dtype_and_words_of_its_source(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    model = llama(dtype=torch.bfloat16, num_hidden_layers=1)
    model.save_pretrained(source)
    tokenizer().save_pretrained(source)
    out.mkdir()
    written = out / "written"
    written.mkdir()
    dense = {n: t for n, t in load_file(source / "model.safetensors").items() if "proj" not in n}
    theirs: dict[str, torch.Tensor] = {n: t.half() for n, t in dense.items()}
    theirs["model.norm.weight"] *= 2  # as AWQ does, which scales norms
    theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"].clone()
    for name in build.decoder_linears(model):
        rows, columns = model.get_submodule(name).weight.shape
        theirs[f"{name}.qweight"] = words(codes(4, rows, columns).tolist(), 4).t().contiguous()
        theirs[f"{name}.qzeros"] = torch.full((columns // 64, rows // 8), 0x77777777, dtype=torch.int32)
        theirs[f"{name}.scales"] = torch.full((columns // 64, rows), 0.01, dtype=torch.float16)
        theirs[f"{name}.bias"] = torch.zeros(rows, dtype=torch.float16)
    save_file(theirs, written / "gptq_model-4bit-64g.safetensors")
    request = QuantizeRequest(
        model_dir=source,
        out_dir=out,
        origin=Quantized(scheme=scheme("autogptq", 4, group_size=64)),
        calibration=None,
        device="cpu",
        seed=0,
    )
    entry = {"bits": 4, "group_size": 64, "sym": True, "desc_act": False, "quant_method": "gptq", "checkpoint_format": "gptq"}
    with _transformers4.older_source(request) as older:
        assert "rope_parameters" not in json.loads((older.model_dir / "config.json").read_text())
        _transformers4.write_artifact(older, source, written, entry)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "quantize_config.json",
        "reload_check.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    found = load_file(out / "model.safetensors")
    assert "lm_head.weight" not in found
    assert not [name for name in found if name.endswith(".bias")]
    dense["model.norm.weight"] = 2 * dense["model.norm.weight"]
    assert all(torch.equal(found[name], tensor) and found[name].dtype == torch.bfloat16 for name, tensor in dense.items())
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == entry
    assert config["rope_parameters"] == json.loads((source / "config.json").read_text())["rope_parameters"]
    q = next(iter(build.decoder_linears(model)))
    rows, columns = model.get_submodule(q).weight.shape
    expected = (codes(4, rows, columns) - 8).float() * torch.tensor(0.01).half().float()
    assert torch.equal(gptq_file.dequantize(out, torch.float32)[f"{q}.weight"], expected)
    said = json.loads((out / reload.FILE).read_text())
    assert said["by"] == "the packed weights, unpacked and run in float32"


def test_an_original_that_packed_nothing_is_refused(tmp_path: Path) -> None:
    written = tmp_path / "written"
    written.mkdir()
    save_file({"model.norm.weight": torch.ones(4)}, written / "model.safetensors")
    request = QuantizeRequest(
        model_dir=written, out_dir=tmp_path, origin=Quantized(scheme=scheme("autogptq")), calibration=None, device="cpu", seed=0
    )
    with pytest.raises(Unsupported, match="packed no layer"):
        _transformers4.write_artifact(request, written, written, {})


def test_the_suite_that_runs_them_all_for_real_can_be_planned_and_every_cell_of_it_is_offered() -> None:
    planned = matrix.plan(Path(__file__).parents[1] / "own_environments.yaml", device="cpu")
    assert not planned.unsupported
    asked = {p.cell.method for p in planned.cells}
    assert {name for name, method in METHODS.items() if method.environment != "main" and not name.startswith("fake")} <= asked
    labels = {p.cell.label for p in planned.cells}
    assert {"modelopt 8-bit w8a8_sq per-channel", "modelopt 8-bit fp8 per-layer", "modelopt 4-bit nvfp4 g16"} <= labels
