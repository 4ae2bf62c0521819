"""What methods offer and refuse, known before anything runs and without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness import cli
from harness.artifact import LinearLayer, ModelShape
from harness.engines import ENGINES
from harness.errors import BadInput
from harness.methods import METHODS
from harness.methods.base import LoadRequest, Method, QuantizeRequest, resolve_options, running_of
from harness.methods.not_offered import FAMILIES
from harness.models import find
from harness.spec import Quantized, Scheme
from harness.suite import matrix
from tests.tiny_llama import llama

REAL = [name for name in METHODS if not name.startswith("fake")]


def shape(rows: int = 256, columns: int = 768, **changes: Any) -> ModelShape:
    layers = (LinearLayer(name="model.layers.0.mlp.down_proj", rows=rows, columns=columns),)
    plain = ModelShape(
        architecture="LlamaForCausalLM",
        parameters=rows * columns,
        linears=layers,
        hidden=256,
        layers=1,
        vocab=4096,
        tied=True,
        dtype="bfloat16",
    )
    return replace(plain, **changes)


def scheme(name: str, bits: float = 4, **options: Any) -> Scheme:
    return Scheme(method=name, bits=float(bits), options=resolve_options(METHODS[name], options, float(bits)))


@pytest.mark.parametrize("name", REAL)
def test_a_method_says_for_each_width_what_runs_on_each_device(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert list(method.bits) == sorted(method.bits, reverse=True)
    assert set(method.kernel_cpu) == set(method.kernel_cuda) == set(method.bits)
    assert method.engine in ENGINES
    assert method.summary
    for option_name, option in method.options.items():
        assert option.help, option_name
        assert option.check is None or option.choices is None, "what may be chosen is said once"
        assert option.choices is None or {option.default, *option.defaults.values()} <= set(option.choices)


@pytest.mark.parametrize("name", REAL)
def test_the_default_scheme_of_every_width_is_supported_on_a_usual_shape(name: str) -> None:
    for bits in METHODS[name].bits:
        assert METHODS[name].supports(scheme(name, bits), shape(), "cpu") is None
        assert METHODS[name].supports(scheme(name, bits), None, "cpu") is None


@pytest.mark.parametrize(
    ("name", "group"), [(name, 128) for name in ("rtn", "gptq", "awq", "autoround", "hqq", "torchao", "quanto")]
)
def test_inputs_that_do_not_divide_into_groups_are_refused_by_name(name: str, group: int) -> None:
    reason = METHODS[name].supports(scheme(name, group_size=group), shape(columns=576), "cpu")
    assert reason is not None
    assert "down_proj has 576 input features" in reason
    assert "groups of 128" in reason
    assert "smaller group_size" in reason


def test_bitsandbytes_blocks_of_64_must_fit() -> None:
    assert "groups of 64" in (METHODS["bnb"].supports(scheme("bnb"), shape(columns=96), "cpu") or "")


def test_bitsandbytes_has_no_four_bit_options_at_eight_bits() -> None:
    assert "belong to 4 bits" in (METHODS["bnb"].supports(scheme("bnb", 8, double_quant=True), shape(), "cpu") or "")
    assert METHODS["bnb"].supports(scheme("bnb", 8), shape(), "cpu") is None


@pytest.mark.parametrize("name", REAL)
def test_a_checkpoint_that_is_quantized_already_is_refused(name: str) -> None:
    if METHODS[name].origin == "served":  # whatever a server serves is quantized elsewhere
        return
    if METHODS[name].origin == "given":
        assert "is not quantized" in (METHODS[name].supports(scheme(name), shape(), "cpu") or "")
        return
    quantized = shape(config={"quantization_config": {"quant_method": "gptq"}})
    bits = METHODS[name].bits[-1]
    assert "already quantized" in (METHODS[name].supports(scheme(name, bits), quantized, "cpu") or "")


@pytest.mark.parametrize(
    ("name", "bits", "options", "expected"),
    [
        ("gptq", 4, {"group_size": 128}, 4 + 16 / 128 + 4 / 128),
        ("rtn", 8, {"group_size": 64}, 8 + 16 / 64 + 8 / 64),
        ("awq", 3, {"group_size": 128}, 3 + 16 / 128 + 3 / 128),
        ("hqq", 4, {}, 4.5),
        ("hqq", 3, {}, 3.7),
        ("bnb", 4, {}, 4.5),
        ("autoround", 2, {"group_size": 32}, 2 + 16 / 32 + 2 / 32),
        ("torchao", 8, {}, 8),
        ("torchao", 4, {"group_size": 128}, 4.25),
        ("torchao", 4, {"type": "intx", "group_size": 32}, 8.75),
        ("torchao", 2, {}, 8.375),
        ("quanto", 8, {}, 8),
        ("quanto", 4, {}, 4.25),
        ("quanto", 2, {"group_size": 64}, 2.5),
        ("bnb", 4, {"double_quant": True}, 4.127),
    ],
)
def test_estimated_bits_per_weight_are_those_of_the_definitions(
    name: str, bits: float, options: dict[str, Any], expected: float
) -> None:
    assert METHODS[name].bits_per_weight(scheme(name, bits, **options)) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "bits", "options", "device", "said"),
    [
        ("torchao", 4, {"type": "float"}, "cpu", "8-bit format"),
        ("torchao", 3, {"type": "intx"}, "cpu", "leave type out"),
        ("torchao", 8, {"type": "dynamic", "group_size": 64}, "cpu", "one scale per output channel"),
        ("torchao", 8, {"scale_search": True}, "cpu", "belongs to"),
        ("torchao", 4, {"group_size": -1}, "cpu", "come in groups"),
        ("torchao", 4, {}, "cuda", "type: intx"),
        ("quanto", 8, {"group_size": 64}, "cpu", "belong to 4 and 2 bits"),
        ("quanto", 8, {"optimizer": "hqq"}, "cpu", "belong to 4 and 2 bits"),
        ("quanto", 4, {"type": "float"}, "cpu", "8-bit format"),
        ("quanto", 2, {"group_size": -1}, "cpu", "come in groups"),
        ("autoround", 4, {"opt_rtn": False}, "cpu", "belongs to iters: 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_a_way_out(
    name: str, bits: float, options: dict[str, Any], device: str, said: str
) -> None:
    assert said in (METHODS[name].supports(scheme(name, bits, **options), shape(), device) or "")


def test_an_option_has_the_default_of_its_width() -> None:
    assert scheme("quanto", 8).options["group_size"] == -1
    assert scheme("quanto", 4).options["group_size"] == 128
    assert scheme("torchao", 8, group_size=32).options["group_size"] == 32


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_new_row_binds_four_fields_and_the_defaults_load_and_prove_what_it_wrote(tmp_path: Path) -> None:
    """The defaults are for artifacts in safetensors that transformers loads as they are."""

    def quantize(request: QuantizeRequest) -> None:
        llama().save_pretrained(str(request.out_dir))

    method = Method(name="mine", title="Mine", bits=(8,), quantize=quantize)
    mine = Scheme(method="mine", bits=8.0)
    origin = Quantized(scheme=mine)
    request = QuantizeRequest(model_dir=tmp_path, out_dir=tmp_path, origin=origin, calibration=None, device="cpu", seed=0)
    method.quantize(request)
    running = running_of(method, {}, mine.bits)
    model = method.load(LoadRequest(artifact_dir=tmp_path, model_dir=tmp_path, origin=origin, running=running, device="cpu"))
    proofs = method.kernels(model)
    assert {(proof.module, proof.op, proof.stored_dtype, proof.dequantized) for proof in proofs} == {
        ("Linear", "aten::linear", "bfloat16", True)
    }
    assert sum(row.bits for row in method.ledger(tmp_path, mine)) == 32 * find.shape_of(tmp_path).parameters
    assert method.bits_per_weight(mine) == 8.0
    assert method.supports(mine, shape(), "cpu") is None
    assert "already quantized" in (method.supports(mine, shape(config={"quantization_config": {"bits": 4}}), "cpu") or "")


def test_a_family_that_nobody_offers_is_listed_with_the_reason_and_what_comes_near() -> None:
    listed = CliRunner().invoke(cli.app, ["methods"]).output
    as_data = json.loads(CliRunner().invoke(cli.app, ["methods", "--format", "json"]).output)
    assert {row["method"] for row in as_data if row.get("state") == "not offered"} == set(FAMILIES)
    for family in FAMILIES.values():
        assert family.name not in METHODS
        assert f"{family.name} ({family.title}) is not offered" in " ".join(listed.split())


def test_a_suite_that_names_such_a_family_is_told_why(tmp_path: Path) -> None:
    suite = tmp_path / "one.yaml"
    suite.write_text("name: one\nmodels: [reference]\nbaseline: bf16\nmethods: {bf16: , QuIP: }\n")
    with pytest.raises(BadInput, match=r"one.yaml, line 4: quip .* is not offered: no package of the Python index holds them"):
        matrix.plan(suite, device="cpu")
