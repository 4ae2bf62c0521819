"""A cell is what its name says: what a method would leave is refused by the plan, and what was quantized is counted."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.artifact import BodyWeight, StoredTensor
from harness.child.job import Job
from harness.child.worker import _check_share
from harness.errors import BadInput, Unsupported
from harness.formats import config_json
from harness.models import body, build, fit, source
from harness.suite.matrix import plan
from harness.suite.plan import Plan
from tests.right import families
from tests.right.cases import cell, checkpoint, edit, failures, loaded, quantized, run, values
from tests.tiny_llama import llama, text

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

ALL_AT_4 = (
    "hqq: {bits: 4}, bnb: {bits: 4}, torchao: {bits: 4}, quanto: {bits: 4, group_size: 64}, rtn: {bits: 4, group_size: 64}, "
    "gptq: {bits: 4, group_size: 64}, awq: {bits: 4, group_size: 64}, autoround: {bits: 4, group_size: 64, iters: 0}"
)
BY_LAYERS = {"hqq", "bnb", "torchao", "quanto"}
BY_DEFINITIONS = {"rtn", "gptq", "awq", "autoround"}


@pytest.fixture
def asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models are built by the same function in this process, which has imported torch, instead of in one that must."""

    def run_here(command: list[str], **_: Any) -> None:
        assert command[:2] == [sys.executable, "-m"]
        if command[2] == "harness.models.fit":
            fit._main(Path(command[3]))
        else:
            assert command[2] == "harness.models.body"
            body._main(command[3:])

    monkeypatch.setattr("harness.models.body.subprocess.run", run_here)


@pytest.fixture
def cache(tmp_path: Path, asked_here: None) -> Path:
    return tmp_path / "cache"


def planned(folder: Path, cache: Path, models: str, methods: str = ALL_AT_4) -> Plan:
    (folder / "text.txt").write_text(text(60))
    suite = folder / "names.yaml"
    suite.write_text(
        f"name: names\nmodels: {models}\nbaseline: bf16\nmethods: {{bf16: , {methods}}}\n"
        "corpora: [{path: text.txt, window: 64}]\ncalibration: {corpus: reference, samples: 4, length: 32}\n"
        "probes: [size, perplexity, divergence]\n"
    )
    return plan(suite, device="cpu", cache=cache)


def refused(made: Plan) -> dict[str, str]:
    """Reasons by method."""
    return {square.cell.method: square.reason for square in made.unsupported}


@pytest.mark.parametrize(
    ("model", "by", "what"),
    [
        (families.gpt2, {"awq", "hqq", "torchao", "quanto"}, "100% .*transformer.h.0.attn.c_attn.*Conv1D"),
        (families.mixtral, BY_LAYERS, r"8\d% .*model.layers.0.mlp.experts.down_proj.*experts in one parameter"),
        (families.qwen2_moe, BY_LAYERS, r"6\d% .*model.layers.0.mlp.experts.down_proj.*experts in one parameter"),
        (families.olmoe, BY_LAYERS, r"8\d% .*model.layers.0.mlp.experts.down_proj.*experts in one parameter"),
        (families.phi3, BY_DEFINITIONS, r"4\d% .*model.layers.0.mlp.gate_up_proj"),
        (families.falcon, {"bnb"}, "100% .*transformer.h.0.mlp.dense_4h_to_h.*derived from nn.Linear"),
    ],
)
def test_a_method_that_would_leave_most_of_a_model_is_refused_with_what_it_would_leave(
    model: Callable[[], Any], by: set[str], what: str, tmp_path: Path, cache: Path
) -> None:
    checkpoint(tmp_path / "m", model=model())
    reasons = {method: why for method, why in refused(planned(tmp_path, cache, "[{path: m}]")).items() if "would leave" in why}
    assert set(reasons) == by
    for method, reason in reasons.items():
        assert reason.startswith(f"{method} would leave ")
        assert re.search(what, reason), reason


def test_a_router_that_the_library_leaves_alone_is_no_obstacle(tmp_path: Path, cache: Path) -> None:
    """Its four outputs do not divide as packing needs; nobody packs them."""
    checkpoint(tmp_path / "m", model=families.mixtral())
    made = planned(tmp_path, cache, "[{path: m}]", "rtn: {bits: 4, group_size: 64}, gptq: {bits: 4, group_size: 64}")
    assert not made.unsupported
    assert {p.cell.method for p in made.cells} == {"bf16", "rtn", "gptq"}


@pytest.mark.parametrize(("width", "accepted"), [(100, False), (132, False), (130, True), (128, True)])
def test_int8_of_quanto_is_refused_at_widths_that_end_its_kernel(width: int, accepted: bool, tmp_path: Path, cache: Path) -> None:
    checkpoint(tmp_path / "m", model=llama(hidden_size=64, intermediate_size=width))
    reasons = refused(planned(tmp_path, cache, "[{path: m}]", "quanto: {bits: 8}"))
    assert (reasons == {}) is accepted
    if not accepted:
        assert f"model.layers.0.mlp.down_proj has {width} input features, a multiple of 4 and not of 16" in reasons["quanto"]


def test_rows_that_the_cpus_kernel_of_bitsandbytes_does_not_take_are_refused(tmp_path: Path, cache: Path) -> None:
    """Mamba-2's in_proj; the other methods take it."""
    checkpoint(tmp_path / "m", model=families.mamba2())
    methods = "hqq: {bits: 4}, bnb: {bits: [8, 4]}, torchao: {bits: 8}, quanto: {bits: 8}"
    made = planned(tmp_path, cache, "[{path: m}]", methods)
    assert "backbone.layers.0.mixer.in_proj has 296 output features, which do not divide by 32" in refused(made)["bnb"]
    assert {p.cell.method for p in made.cells} == {"bf16", "hqq", "bnb", "torchao", "quanto"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model_type": "mymodel", "auto_map": {"AutoConfig": "code.MyConfig"}},
            "cannot load the model type 'mymodel' .* code of its own .auto_map., which is never run here",
        ),
        (
            {"attn_implementation": "flash_attention_2"},
            "'llama' .*FlashAttention2.*; take attn_implementation out of config.json, which is no part of the",
        ),
        ({"model_type": "neverheardof"}, "cannot load the model type 'neverheardof' as a causal language model"),
    ],
)
def test_a_model_that_transformers_does_not_load_here_is_refused_by_the_plan(
    changes: dict[str, Any], said: str, tmp_path: Path, cache: Path
) -> None:
    checkpoint(tmp_path / "m", model=llama(hidden_size=64))
    edit(tmp_path / "m" / "config.json", **changes)
    with pytest.raises(BadInput, match=said) as refusal:
        planned(tmp_path, cache, "[{path: m}]")
    assert "model 'm'" in str(refusal.value)


@pytest.mark.slow
def test_a_process_of_its_own_says_what_holds_the_weights_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, model in (("gpt2", families.gpt2()), ("mixtral", families.mixtral()), ("llama", llama(hidden_size=64))):
        checkpoint(tmp_path / name, model=model)
    cache = tmp_path / "kept"
    configs = {name: config_json.read(tmp_path / name) for name in ("gpt2", "mixtral", "llama")}
    first = body.of_configs(configs, cache=cache)
    assert first == {"gpt2": body.of_model(families.gpt2()), "mixtral": body.of_model(families.mixtral()), "llama": None}
    monkeypatch.setattr(body, "_known", {})
    monkeypatch.setattr("harness.models.body.subprocess.run", None)  # another process of the harness reads what this one has kept
    assert body.of_configs(configs, cache=cache) == first


def test_what_holds_the_weights_is_read_from_the_modules_of_the_loaded_model() -> None:
    def kinds(model: Any) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for weight in body.of_model(model):
            found.setdefault(weight.kind, set()).add(weight.name)
        return found

    assert kinds(families.gpt2()).keys() == {"conv1d"}
    experts = kinds(families.mixtral())
    assert experts["experts"] == {f"model.layers.{i}.mlp.experts.{n}" for i in (0, 1) for n in ("gate_up_proj", "down_proj")}
    assert experts["other"] == {"model.layers.0.mlp.gate", "model.layers.1.mlp.gate"}
    assert all("language_model.layers" in name for name in kinds(families.gemma3())["linear"])
    assert kinds(families.falcon()).keys() == {"derived"}
    mamba = families.mamba2()
    assert kinds(mamba)["linear"] == {f"backbone.layers.{i}.mixer.{n}" for i in (0, 1) for n in ("in_proj", "out_proj")}
    tied = llama(hidden_size=64)
    assert body.parameters(body.of_model(tied)) == sum(p.numel() for n, p in tied.named_parameters() if "proj" in n)


def test_the_parts_of_experts_are_counted_as_parts_of_the_parameter_that_holds_them() -> None:
    fused = {
        w.name: w
        for w in (
            BodyWeight(name="model.layers.0.mlp.experts.gate_up_proj", kind="experts", rows=256, columns=64, matrices=8),
            BodyWeight(name="model.layers.0.mlp.experts.down_proj", kind="experts", rows=64, columns=128, matrices=8),
        )
    }
    layers = [f"model.layers.0.mlp.experts.{e}.{n}" for e in range(8) for n in ("gate_proj", "up_proj", "down_proj")]
    assert sum(body.weights_of(layer, fused) for layer in layers) == body.parameters(fused.values())
    assert body.weights_of("model.layers.1.mlp.experts.0.up_proj", fused) == 0
    assert body.weights_of("model.layers.0.self_attn.q_proj", fused) == 0


def test_a_cell_whose_library_quantized_too_little_fails_with_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found after quantizing: the artifact holds half of what the scheme's name promises."""
    folder = checkpoint(tmp_path / "m", model=llama(hidden_size=64))
    view = source.make(folder, tmp_path / "view")
    asked = cell("hqq", 4)
    every = [w.name for w in view.body]
    job = Job(
        stage="quantize",
        cell=asked,
        model_dir=view.folder,
        artifact_dir=tmp_path,
        device="cpu",
        seed=0,
        threads=1,
        cache=tmp_path,
    )

    def ledger(layers: list[str]) -> Any:
        tensors = [StoredTensor(name=f"{name}.W_q", layer=name, role="weight", bits=8) for name in layers]
        return type("Row", (), {"name": "hqq", "ledger": staticmethod(lambda folder, scheme: tensors)})()

    _check_share(job, ledger(every))
    with pytest.raises(Unsupported, match=r"hqq has quantized 5\d% .* left model\.layers\.1\."):
        _check_share(job, ledger([name for name in every if "layers.0." in name]))


@pytest.mark.slow
@pytest.mark.parametrize("model", [families.gpt2, families.mixtral, families.qwen2_moe, families.gpt_neox, families.gemma3])
def test_cells_of_other_architectures_hold_the_weights_that_their_names_say(model: Callable[[], Any], tmp_path: Path) -> None:
    """At 8 bits every answer is near the source's, so what was quantized are the source's weights, where the model has them."""
    checkpoint(tmp_path / "m", model=model())
    methods = ALL_AT_4.replace("bits: 4", "bits: 8").replace("quanto: {bits: 8, group_size: 64}", "quanto: {bits: 8}")
    stored = run(tmp_path, models="[{path: m}]", methods=methods)
    assert not failures(stored), [(r.cell.name, r.failure) for r in failures(stored)]
    shares, apart = values(stored, "quantized_share"), values(stored, "kl_mean")
    assert len(shares) >= 3
    assert all(0.97 <= share <= 1 for share in shares.values()), shares
    assert all(0 < value < 0.05 for name, value in apart.items() if name in shares), apart
    assert all(value < 10.2 for value in values(stored, "bpw_quantized").values() if value < 15), "near what the scheme says"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hqq", "torchao", "quanto"])
def test_a_layer_whose_weight_the_module_around_it_fills_is_loaded_as_it_was_packed(method: str, tmp_path: Path) -> None:
    """Mamba-2 draws the weight of out_proj in the mixer's initialisation, where the layer is packed and has none."""
    folder = checkpoint(tmp_path / "m", model=families.mamba2())
    asked = cell(method, 8)
    engine = loaded(folder, quantized(folder, tmp_path / "out", asked), asked)
    ids = torch.tensor([[3 + 7 * i % 500 for i in range(40)]])
    with torch.inference_mode():
        ours = torch.log_softmax(engine.model(ids).logits.float(), -1)
        source_ = torch.log_softmax(build.plain(folder, torch.bfloat16, "cpu")(ids).logits.float(), -1)
    assert (source_.exp() * (source_ - ours)).sum(-1).mean() < 0.05


def test_the_share_is_that_of_the_weights_and_not_of_the_layers() -> None:
    names = [w.name for w in body.of_model(llama(hidden_size=64))]
    weights = {w.name: w for w in body.of_model(llama(hidden_size=64))}
    packed = names[:-1]
    tensors = [StoredTensor(name=f"{n}.qweight", layer=n, role="weight", bits=8) for n in packed]
    expected = 1 - weights[names[-1]].parameters / body.parameters(weights.values())
    assert body.share(tensors, tuple(weights.values())) == pytest.approx(expected)


def test_methods_that_take_language_models_alone_say_so_of_one_with_a_vision_tower(tmp_path: Path, cache: Path) -> None:
    checkpoint(tmp_path / "m", model=families.gemma3())
    methods = "autoround: {bits: 8, group_size: 64}, openvino: {bits: 8}, rtn: {bits: 8, group_size: 64}, hqq: {bits: 8}"
    made = planned(tmp_path, cache, "[{path: m}]", methods)
    assert {p.cell.method for p in made.cells} == {"bf16", "rtn", "hqq"}
    assert all("the model has parts for other inputs than text" in reason for reason in refused(made).values())
