"""Checkpoints that are quantized already: recognised from their config, planned as cells, measured through the real runner."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import store
from harness.errors import BadInput, UnknownName, Unsupported
from harness.methods import prequantized
from harness.run import runner
from harness.suite import matrix, plan
from tests.tiny_llama import llama, text, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
W8A8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
W4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}


@pytest.mark.parametrize(
    ("quantization", "bits", "label"),
    [
        (GPTQ, 4, "prequantized gptq 4-bit g128"),
        ({"quant_method": "gptq", "bits": 3, "group_size": -1}, 3, "prequantized gptq 3-bit"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, 4, "prequantized awq 4-bit g64"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, 4, "prequantized awq 4-bit g128"),
        ({"quant_method": "auto-round", "bits": 2, "group_size": 32}, 2, "prequantized auto-round 2-bit g32"),
        ({"load_in_8bit": True, "load_in_4bit": False}, 8, "prequantized bitsandbytes 8-bit"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            4,
            "prequantized bitsandbytes 4-bit nf4",
        ),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3, "group_size": 64}}},
            3,
            "prequantized hqq 3-bit g64",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": W4, "input_activations": None}}},
            4,
            "prequantized compressed-tensors 4-bit g64",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": W8A8, "input_activations": W8A8}}},
            8,
            "prequantized compressed-tensors 8-bit a8",
        ),
        (
            {"quant_method": "aqlm", "num_codebooks": 1, "nbits_per_codebook": 16, "in_group_size": 8},
            2,
            "prequantized aqlm 2-bit g8",
        ),
        ({"quant_method": "bitnet"}, 1.58, "prequantized bitnet 1.58-bit"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, 8, "prequantized fp8 8-bit"),
        ({"quant_method": "mxfp4"}, 4, "prequantized mxfp4 4-bit g32"),
        ({"quant_method": "quanto", "weights": "int2"}, 2, "prequantized quanto 2-bit int2"),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
            8,
            "prequantized torchao 8-bit Int8WeightOnly",
        ),
    ],
)
def test_the_scheme_is_read_from_the_config(quantization: dict[str, Any], bits: float, label: str) -> None:
    scheme = prequantized.scheme({"quantization_config": quantization})
    assert (scheme.method, scheme.bits, prequantized.label("prequantized", scheme)) == ("prequantized", bits, label)


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "spells"}, "spells"),
        ({"bits": 4}, "not known here"),
        ({"quant_method": "gptq"}, "names no bit width"),
        ({"quant_method": "hqq"}, "cannot be read"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "cannot be read"),
    ],
)
def test_a_format_that_cannot_be_read_is_refused_by_name(quantization: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        prequantized.scheme({"quantization_config": quantization})


@pytest.fixture
def packed_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint whose config says that it is quantized."""
    folder = tmp_path / "packed"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": GPTQ}))
    return folder


def planned(tmp_path: Path, models: str, methods: str = "{fake: {bits: 4}}", extra: str = "") -> plan.Plan:
    path = tmp_path / "given.yaml"
    path.write_text(
        f"name: given\nmodels: {models}\nbaseline: fake 4-bit\nmethods: {methods}\nprobes: [quantize, size]\n{extra}\n"
    )
    return matrix.plan(path, device="cpu")


def test_a_quantized_model_is_one_cell_and_its_own_baseline(tmp_path: Path, packed_folder: Path) -> None:
    plan = planned(tmp_path, f"[{{path: {packed_folder}}}]", "{prequantized: , gptq: {bits: [4, 3]}, bf16: }")
    (cell,) = plan.cells
    assert cell.baseline
    assert (cell.cell.model.name, cell.cell.label) == ("packed", "prequantized gptq 4-bit g128")
    assert [q.probe for q in cell.questions] == ["size"]  # nobody quantizes it, so there is no time to report
    assert cell.estimated_bytes == 16 * 8 * 2 + 7 * 8 * 8 * 2 + 3 * 8 * 2
    assert {u.cell.method for u in plan.unsupported} == {"gptq", "bf16"}
    assert all("already quantized" in u.reason for u in plan.unsupported)


def test_of_another_model_it_is_a_cell_of_that_one(tmp_path: Path, model_folder: Path, packed_folder: Path) -> None:
    plan = planned(tmp_path, f"[{{path: {packed_folder}, name: mine, of: tiny}}, {{path: {model_folder}, name: tiny}}]")
    assert [(p.cell.model.name, p.cell.label, p.baseline) for p in plan.cells] == [
        ("tiny", "fake 4-bit", True),
        ("tiny", "mine gptq 4-bit g128", False),
    ]
    assert plan.unsupported == ()
    assert [m.name for m in plan.checkpoints] == ["mine"]


def test_alone_it_is_asked_all_items_as_every_baseline_is(tmp_path: Path, packed_folder: Path) -> None:
    path = tmp_path / "alone.yaml"
    path.write_text(
        f"name: alone\nmodels: [{{path: {packed_folder}}}]\nmethods: {{prequantized: }}\nprobes: [fake]\nbudget: auto\n"
    )
    (cell,) = matrix.plan(path, device="cpu").cells
    assert cell.baseline
    assert [q.options for q in cell.questions if q.subject == "items"] == [{}]


def test_it_can_be_excluded_like_any_other_cell(tmp_path: Path, model_folder: Path, packed_folder: Path) -> None:
    models = f"[{{path: {model_folder}, name: tiny}}, {{path: {packed_folder}, of: tiny}}]"
    plan = planned(tmp_path, models, extra="exclude: [{method: prequantized}]")
    assert [p.cell.method for p in plan.cells] == ["fake"]


def test_a_format_that_is_not_known_is_an_unsupported_square(tmp_path: Path, model_folder: Path, packed_folder: Path) -> None:
    config = json.loads((packed_folder / "config.json").read_text())
    (packed_folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "spells"}}))
    plan = planned(tmp_path, f"[{{path: {model_folder}, name: tiny}}, {{path: {packed_folder}, of: tiny}}]")
    (square,) = plan.unsupported
    assert (square.cell.model.name, square.cell.label) == ("tiny", "packed")
    assert "spells" in square.reason


def test_mistakes_are_named_before_anything_starts(tmp_path: Path, model_folder: Path, packed_folder: Path) -> None:
    with pytest.raises(UnknownName, match="tiny"):
        planned(tmp_path, f"[{{path: {model_folder}, name: tiny}}, {{path: {packed_folder}, of: tinny}}]")
    with pytest.raises(BadInput, match="names no quantization"):
        planned(tmp_path, f"[{{path: {model_folder}, name: tiny}}, {{path: {model_folder}, name: twin, of: tiny}}]")
    with pytest.raises(BadInput, match="takes no options"):
        planned(tmp_path, f"[{{path: {packed_folder}}}]", "{prequantized: {bits: 4}}")
    with pytest.raises(BadInput, match="no such file"):
        planned(tmp_path, "[{path: ./model.gguf}]")


def measured(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Values by metric of every cell of a suite that is run; no failure is accepted."""
    plan = matrix.plan(path, device="cpu")
    run = store.read(runner.run(plan, runner.Settings(results=path.parent / "results", cache=path.parent / "cache")))
    found: dict[tuple[str, str], dict[str, float]] = {}
    for record in run.records:
        assert record.answer is not None, record.failure
        values = found.setdefault((record.cell.model.name, record.cell.label), {})
        values.update({m.metric: m.value for m in record.answer.measurements})
    return found


@pytest.mark.slow
def test_an_artifact_given_as_a_model_answers_as_the_cell_that_it_was(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    source, packed = tmp_path / "source", tmp_path / "packed"
    llama(dtype=torch.bfloat16).save_pretrained(source)
    tokenizer().save_pretrained(source)
    (tmp_path / "text.txt").write_text(text(60))
    asked = "corpora: [{path: text.txt, window: 64}]\nprobes: [size, perplexity, divergence]\n"
    (tmp_path / "made.yaml").write_text(
        f"name: made\nmodels: [{{path: source, name: base}}]\nmethods: {{bf16: , bnb: {{bits: 4}}}}\n{asked}"
    )
    made = measured(tmp_path / "made.yaml")["base", "bnb 4-bit nf4"]
    (artifact,) = (tmp_path / "cache" / "artifacts").glob("bnb-4-*")
    shutil.copytree(artifact, packed)
    tokenizer().save_pretrained(packed)
    (tmp_path / "given.yaml").write_text(
        "name: given\nmodels: [{path: source, name: base}, {path: packed, name: mine, of: base}, {path: packed, name: alone}]\n"
        f"methods: {{bf16: }}\n{asked}"
    )
    found = measured(tmp_path / "given.yaml")
    given = found["base", "mine bitsandbytes 4-bit nf4"]
    alone = found["alone", "prequantized bitsandbytes 4-bit nf4"]
    for metric in ("perplexity", "bpw_quantized", "bpw_model", "nominal_bits"):
        assert given[metric] == pytest.approx(made[metric], rel=1e-6), metric
        assert alone[metric] == pytest.approx(made[metric], rel=1e-6), metric
    assert given["kl_mean"] == pytest.approx(made["kl_mean"], rel=1e-3)
    assert made["kl_mean"] > 0
    links = [p / "model.safetensors" for p in (tmp_path / "cache" / "artifacts").glob("prequantized-*")]
    assert len(links) == 2
    assert {(p.is_symlink(), p.resolve()) for p in links} == {(True, packed / "model.safetensors")}
