"""The parts of the vLLM engine that are there without vLLM: which rows are whose, what a layer's kernel is said to be, what is
told of an artifact that it cannot load. What vLLM itself does is tested in test_vllm_real.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from harness.child import effect
from harness.engines import ENGINES
from harness.engines import vllm as engine
from harness.engines.base import Loaded
from harness.runtimes import vllm, vllm_server
from harness.spec import Cell, Model, Running, Scheme
from harness.spec import Quantized as Origin

FLAGS = {name: option.default for name, option in ENGINES["vllm"].flags.items()}


def seen(*rows: list[int]) -> vllm.Seen:
    ids = [token for row in rows for token in row]
    places = [place for row in rows for place in range(len(row))]
    return vllm.Seen(ids=torch.tensor(ids), positions=torch.tensor(places), hidden=torch.arange(len(ids)).float()[:, None])


def test_rows_of_one_step_are_told_apart_by_their_tokens_whatever_their_order() -> None:
    rows = vllm._rows([seen([5, 6], [7, 8, 9], [5])], 6)
    assert {ids: hidden.flatten().tolist() for ids, hidden in rows.items()} == {(5, 6): [0, 1], (7, 8, 9): [2, 3, 4], (5,): [5]}


def test_a_step_takes_neighbours_up_to_its_tokens_and_its_rows_and_a_long_prompt_alone() -> None:
    core: Any = SimpleNamespace(step_tokens=8, step_rows=3)
    groups = vllm.Core._groups(core, [[1] * n for n in (3, 4, 2, 1, 1, 1, 20, 2)])
    assert [[len(prompt) for prompt in group] for group in groups] == [[3, 4], [2, 1, 1], [1], [20], [2]]


def test_settings_that_are_unsaid_are_left_to_vllm_and_nothing_but_safetensors_is_read() -> None:
    said = vllm.arguments(dtype="bfloat16", kv="", flags=FLAGS)
    assert said["load_format"] == "safetensors"
    assert said["trust_remote_code"] is False
    assert said["kv_cache_memory_bytes"] == 1 << 30
    assert "max_model_len" not in said
    assert vllm.arguments(dtype="bfloat16", kv="fp8", flags={**FLAGS, "max_model_len": 64})["max_model_len"] == 64


def test_settings_become_options_of_the_servers_command_line() -> None:
    said = {"enforce_eager": True, "trust_remote_code": False, "max_model_len": 64}
    assert vllm_server.options(said) == ["--enforce-eager", "--max-model-len", "64"]


def test_reports_home_are_off_here_and_in_the_server() -> None:
    for settings in (vllm.SETTINGS, vllm.SERVER_SETTINGS):
        assert settings["VLLM_NO_USAGE_STATS"] == settings["DO_NOT_TRACK"] == "1"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in vllm.SERVER_SETTINGS


def test_vllms_own_words_on_an_artifact_are_shortened_and_name_no_folder() -> None:
    error = ValueError(
        "1 validation error for VllmConfig\n  Cannot read /cache/x/model [type=value_error, input_value=ArgsKwargs"
    )
    said = vllm.shortened(error, Path("/cache/x"))
    assert said == "ValueError: 1 validation error for VllmConfig Cannot read (artifact)/model"
    assert len(vllm.shortened(ValueError("x" * 5000), Path("/y"))) < 330


class UnquantizedLinearMethod:
    pass


class Quantized:
    def __init__(self, kernel: object) -> None:
        self.kernel = kernel


class CPUWNA16LinearKernel:
    pass


class EmulationNvFp4LinearKernel:
    pass


class Int8Kernel:
    dnnl_handler = SimpleNamespace(n=8, k=4)

    def _apply_weights_onednn(self) -> None: ...

    def __init__(self) -> None:
        self.linear_method = self._apply_weights_onednn


class QkvLinear(torch.nn.Linear):
    def __init__(self, method: object, **held: object) -> None:
        super().__init__(4, 8, dtype=torch.bfloat16)
        self.quant_method = method
        vars(self).update(held)


def proofs(module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, packed: set[str]) -> list[Any]:
    model = SimpleNamespace(packed_modules_mapping={"qkv_proj": ["q_proj", "k_proj", "v_proj"]})
    monkeypatch.setattr(engine, "_linears", lambda model: iter([("model.layers.0.self_attn.qkv_proj", module)]))
    return engine.kernels(model, packed)


def test_the_kernel_of_a_layer_is_the_one_that_vllm_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    (proof,) = proofs(
        QkvLinear(Quantized(CPUWNA16LinearKernel()), isa_hint="vec"), monkeypatch, {"model.layers.0.self_attn.q_proj"}
    )
    assert proof.module == "QkvLinear (Quantized / CPUWNA16LinearKernel)"
    assert proof.op == "cpu_gemm_wna16 (vec)"
    assert not proof.dequantized


def test_inputs_that_are_rounded_besides_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    (proof,) = proofs(QkvLinear(Quantized(CPUWNA16LinearKernel()), isa_hint="amx", use_w4a8=True), monkeypatch, set())
    assert proof.op == "int4_scaled_mm_cpu, inputs in 8 bits"


def test_a_layer_that_the_artifact_packs_and_vllm_holds_plain_is_dequantized(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QkvLinear(UnquantizedLinearMethod())
    assert not proofs(layer, monkeypatch, set())[0].dequantized
    assert proofs(layer, monkeypatch, {"model.layers.0.self_attn.k_proj"})[0].dequantized


def test_an_emulated_format_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    (proof,) = proofs(QkvLinear(Quantized(EmulationNvFp4LinearKernel())), monkeypatch, set())
    assert (proof.op, proof.dequantized) == ("emulated", True)


def test_weights_that_a_kernel_holds_by_itself_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QkvLinear(Quantized(Int8Kernel()))
    (proof,) = proofs(layer, monkeypatch, set())
    assert (proof.op, proof.stored_dtype) == ("onednn", "int8")
    assert engine.weight_bytes(layer) == 2 * (8 * 4 + 8) + 8 * 4  # the tensors that torch sees, and the handler's


def test_weights_that_are_repacked_beside_their_tensors_count_twice() -> None:
    handler = object()
    layer = QkvLinear(UnquantizedLinearMethod(), output_size_per_partition=8, input_size_per_partition=4)
    before = engine.weight_bytes(layer)
    vars(layer)["cpu_linear"] = lambda x: (handler, x)
    assert engine.weight_bytes(layer) == before + 2 * 8 * 4


@pytest.mark.parametrize("kept", ["auto", "fp8"])
def test_a_type_of_keys_and_values_that_is_a_flag_is_no_part_of_the_axis(kept: str) -> None:
    cell = Cell(
        model=Model(name="m"),
        origin=Origin(scheme=Scheme(method="bf16", bits=16.0)),
        running=Running(engine="vllm", kv=kept),
    )
    effect.prove(cell, cast(Loaded, None))  # nothing is asked through the cache: vLLM has no such way
