"""The key `engine` of a suite: one artifact in several engines, each with its own settings of running and its own environment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness import envs, reference
from harness.engines import ENGINES
from harness.errors import BadInput, UnknownName
from harness.methods import METHODS
from harness.methods.base import running_of
from harness.run import identity
from harness.run.left import todo
from harness.suite import matrix
from harness.suite.plan import Plan


def planned(folder: Path, methods: str, *, device: str = "cpu", extra: str = "") -> Plan:
    path = folder / "engines.yaml"
    probes = "corpora: [{corpus: reference, window: 64, tokens: 256}]\nprobes: [size, perplexity, serving]\n"
    path.write_text(f"name: engines\nmodels: [reference]\n{probes}{extra}methods:\n{methods}")
    return matrix.plan(path, device=device)


def labels(plan: Plan) -> list[str]:
    return [p.cell.label for p in plan.cells]


def test_an_artifact_in_two_engines_is_two_cells_that_differ_in_their_running_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  bf16: {engine: [transformers, vllm]}\n  gptq: {bits: 4, engine: [transformers, vllm]}\n")
    assert labels(plan) == ["bf16", "bf16 in vllm", "gptq 4-bit g128", "gptq 4-bit g128 in vllm"]
    inputs = identity.gather(plan, tmp_path / "cache")
    one, other = (p.cell for p in plan.cells[2:])
    assert one.origin == other.origin
    assert inputs.artifact(one) == inputs.artifact(other)
    question = plan.cells[3].questions[0]
    assert inputs.key(one, question) != inputs.key(other, question)


def test_a_cell_is_made_in_its_methods_environment_and_answered_in_its_engines(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  gptq: {bits: 4, engine: [transformers, vllm]}\n  llmcompressor: {bits: 8, engine: vllm}\n")
    made = {p.cell.label: envs.made_and_answered(p.cell, "cpu") for p in plan.cells}
    assert made == {
        "bf16": ("main",),
        "gptq 4-bit g128": ("main",),
        "gptq 4-bit g128 in vllm": ("main", "vllm-cpu"),
        "llmcompressor 8-bit per-channel in vllm": ("llmcompressor", "vllm-cpu"),
    }
    assert envs.answering(plan.cells[3].cell, "cuda:1") == "vllm"
    assert [e.name for e in envs.needed((p.cell for p in plan.cells), "cpu")] == ["vllm-cpu", "llmcompressor"]
    stages = [stage for each in todo(plan, [p.questions for p in plan.cells], None) for stage in each.stages]
    assert stages.count(("environment", "vllm-cpu")) == stages.count(("start", "vllm-cpu")) == 1


def test_what_an_engine_has_no_kernel_for_is_unsupported_with_the_reason_and_planned_where_it_has_one(tmp_path: Path) -> None:
    methods = "  gptq: {bits: [8, 4, 3], engine: vllm}\n  llmcompressor: {bits: 4, activations: 8, engine: vllm}\n"
    reasons = {s.cell.label: s.reason for s in planned(tmp_path, methods).unsupported}
    assert reasons["gptq 8-bit g128 in vllm"] == "vLLM has no kernel on cpu for 8 bits as gptq writes them"
    assert "write activations: 16" in next(reason for label, reason in reasons.items() if label.startswith("llmcompressor"))
    assert len(reasons) == 3
    assert "gptq 8-bit g128 in vllm" in labels(planned(tmp_path, methods, device="cuda"))


def test_settings_of_an_engine_are_part_of_running_and_multiply(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  gptq: {bits: 4, engine: [transformers, vllm], max_model_len: [0, 256], enforce_eager: false}\n")
    assert labels(plan)[1:] == [
        "gptq 4-bit g128",
        "gptq 4-bit g128 in vllm no-enforce_eager",
        "gptq 4-bit g128 in vllm max_model_len=256 no-enforce_eager",
    ]
    assert plan.cells[3].cell.running.flags["max_model_len"] == 256
    assert plan.cells[1].cell.running.flags == {}


@pytest.mark.parametrize(
    ("methods", "kind", "says"),
    [
        ("  gptq: {engine: vllm, max_modl_len: 9}\n", UnknownName, "max_model_len"),
        ("  gptq: {engine: transformers, max_model_len: 9}\n", UnknownName, "option of gptq"),
        ("  gptq: {engine: openvino}\n", BadInput, "it takes transformers, vllm"),
        ("  hqq: {engine: vllm}\n", BadInput, "it takes transformers"),
        ("  gptq: {engine: vllm, tensor_parallel_size: 2}\n", BadInput, "it takes 1"),
        ("  gptq: {engine: vllm, kv_cache_gib: 0}\n", BadInput, "above 0"),
        ("  gptq: {engine: []}\n", BadInput, "empty list"),
    ],
)
def test_engines_and_settings_that_are_none_are_refused_with_what_there_is(
    methods: str, kind: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=says):
        planned(tmp_path, methods)


def test_a_baseline_runs_in_its_methods_own_engine(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="held against the baseline's"):
        planned(tmp_path, "  bf16: {engine: [transformers, vllm]}\n", extra="baseline: bf16 in vllm\n")


def test_cells_are_excluded_by_engine_and_by_its_settings(tmp_path: Path) -> None:
    methods = "  gptq: {bits: 4, engine: [transformers, vllm], max_model_len: [0, 256]}\n"
    assert labels(planned(tmp_path, methods, extra="exclude: [{engine: vllm, max_model_len: 0}]\n")) == [
        "bf16",
        "gptq 4-bit g128",
        "gptq 4-bit g128 in vllm max_model_len=256",
    ]


def test_only_engines_with_a_server_of_their_own_are_asked_under_load(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  bf16: {engine: [transformers, vllm]}\n")
    asked = {p.cell.label: {q.probe for q in p.questions} for p in plan.cells}
    assert asked == {"bf16": {"size", "perplexity"}, "bf16 in vllm": {"size", "perplexity", "serving"}}


def test_every_row_names_engines_that_there_are_with_kernels_for_bits_that_it_has() -> None:
    for method in METHODS.values():
        for name, run in method.engines.items():
            assert name in ENGINES
            assert name != method.engine
            assert {*run.cpu, *run.cuda} <= {*method.bits}


def test_the_defaults_of_an_engines_settings_are_values_that_it_takes() -> None:
    for engine in ENGINES.values():
        running = running_of(METHODS["bf16"], {}, 16, engine=engine.name, flags=engine.flags)
        assert running.engine == engine.name
        for option in engine.flags.values():
            assert option.choices is None or option.default in option.choices
            assert option.help


def given_folder(folder: Path) -> Path:
    """A checkpoint that says that it is quantized; its weights are never read by a plan."""
    model = folder / "given"
    shutil.copytree(reference.MODEL_DIR, model)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
    (model / "config.json").write_text(json.dumps(config))
    return model


def given(folder: Path, entry: str, engines: str) -> Plan:
    path = folder / "given.yaml"
    path.write_text(
        f"name: given\nmodels: [reference, {entry}]\nprobes: [size]\nmethods: {{bf16: , prequantized: {engines}}}\n".replace(
            "FOLDER", str(given_folder(folder))
        )
    )
    return matrix.plan(path, device="cpu")


def test_a_given_checkpoint_runs_in_several_engines_beside_what_it_was_made_of(tmp_path: Path) -> None:
    plan = given(tmp_path, "{path: FOLDER, name: theirs, of: reference}", "{engine: [vllm, transformers]}")
    assert labels(plan) == ["bf16", "theirs gptq 4-bit g64", "theirs gptq 4-bit g64 in vllm"]
    assert [p.baseline for p in plan.cells] == [True, False, False]


def test_a_given_checkpoint_that_stands_alone_is_its_own_baseline_in_its_own_engine(tmp_path: Path) -> None:
    plan = given(tmp_path, "{path: FOLDER, name: theirs}", "{engine: vllm}")
    reasons = [s.reason for s in plan.unsupported if s.cell.method == "prequantized"]
    assert reasons == ["alone it is its own baseline, which runs in transformers; write engine: [transformers, vllm]"]


def test_a_given_checkpoint_takes_the_settings_of_an_engine_in_label_and_way_of_running(tmp_path: Path) -> None:
    plan = given(tmp_path, "{path: FOLDER, name: theirs, of: reference}", "{engine: [vllm, transformers], max_model_len: 256}")
    assert labels(plan) == ["bf16", "theirs gptq 4-bit g64", "theirs gptq 4-bit g64 in vllm max_model_len=256"]
    assert [p.cell.running.flags.get("max_model_len") for p in plan.cells] == [None, None, 256]


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ("{bits: 4}", "only `engine` and an engine's settings can be said"),
        ("{max_model_len: 64}", r"max_model_len is a setting of vllm; add engine: \[transformers, vllm\]"),
        ("{engine: []}", r"engine: \[\] is an empty list, so the checkpoint has no cell"),
        ("{engine: vllm, max_model_len: [64, 128]}", "runs in one way in each engine; write one value"),
        ("{engine: vllm, max_model_len: long}", "max_model_len"),
        ("{engine: vllm, tensor_parallel_size: 2}", "tensor_parallel_size"),
        ("{engine: llamacpp}", "it takes transformers, vllm"),
    ],
)
def test_nothing_but_engines_and_their_settings_can_be_said_of_given_checkpoints(engines: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        given(tmp_path, "{path: FOLDER, name: theirs, of: reference}", engines)
