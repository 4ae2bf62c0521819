"""A file that is not the model its config.json describes is refused by `plan`, once and for every method; what else such a file
may hold is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from harness.errors import BadInput
from harness.models import fit, source
from harness.suite.matrix import plan
from harness.suite.plan import Plan
from tests.right.cases import checkpoint, edit
from tests.tiny_llama import text

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def asked_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of transformers is asked in this process, which has imported it, instead of in one that must."""
    asked: list[str] = []

    def run_here(command: list[str], **_: Any) -> None:
        asked.append(command[2])
        if command[2] == "harness.models.fit":
            fit._main(Path(command[3]))

    monkeypatch.setattr("harness.models.fit.subprocess.run", run_here)
    return asked


def planned(folder: Path, methods: str = "bf16: , rtn: {bits: 4}, hqq: {bits: 4}", more: str = "") -> Plan:
    (folder / "text.txt").write_text(text(60))
    suite = folder / "suite.yaml"
    suite.write_text(
        f"name: fit\nmodels: [{{path: m}}]\nbaseline: bf16\nmethods: {{{methods}}}\n"
        f"corpora: [{{path: text.txt, window: 64}}]\n{more}"
    )
    return plan(suite, device="cpu", cache=folder / "cache")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "m")


def changed(folder: Path, change: Callable[[State], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def one_layer_more(state: State) -> None:
    state.update({k.replace("layers.1.", "layers.2."): v.clone() for k, v in state.items() if ".layers.1." in k})


def under_a_wrapper(state: State) -> None:
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


def as_integers(state: State) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    state[name] = (state[name].float() * 100).to(torch.int8)


def of_another_shape(state: State) -> None:
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(248, 256, dtype=torch.bfloat16)


def with_fewer_words(state: State) -> None:
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:500].clone()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            one_layer_more,
            r"m: model\.layers\.2\.\S+, .* of layer 2, and by config\.json there are 2 layers .*config is likely that of",
        ),
        (
            as_integers,
            r"m: model\.layers\.1\.mlp\.up_proj\.weight: stored as integers \(I8\), and config\.json has no quantization_",
        ),
        (
            lambda s: s.pop("model.layers.1.mlp.up_proj.weight"),
            r"the weights of model\.layers\.1\.mlp\.up_proj\.weight are missing",
        ),
        (
            under_a_wrapper,
            r"its tensors are stored under 'module\.', which is no name of this model; save the model that it wraps",
        ),
        (of_another_shape, r"model\.layers\.0\.mlp\.up_proj\.weight: stored in another shape than config\.json says"),
        (with_fewer_words, r"model\.embed_tokens\.weight: stored in another shape"),
        (
            lambda s: s.update({"model.adapter.weight": torch.ones(4, 4)}),
            r"model\.adapter\.weight: stored, and a LlamaForCausalLM has",
        ),
    ],
)
def test_a_file_that_is_not_the_model_of_its_config_is_refused_by_the_plan(
    change: Callable[[State], object], said: str, made: Path, tmp_path: Path
) -> None:
    changed(made, change)
    with pytest.raises(BadInput, match=f"suite.yaml, line 2: model 'm': .*{said}"):
        planned(tmp_path)
    with pytest.raises(BadInput, match=said):
        source.make(made, tmp_path / "view")


def test_a_type_that_transformers_does_not_know_is_one_sentence(made: Path, tmp_path: Path) -> None:
    edit(made / "config.json", model_type="neverheardof")
    with pytest.raises(
        BadInput, match=r"model type 'neverheardof' .*: transformers \S+ knows no such type; correct model_type, or install a"
    ) as seen:
        planned(tmp_path)
    assert ". " not in str(seen.value)
    edit(made / "config.json", model_type=None)
    with pytest.raises(BadInput, match=r"config\.json names no model_type"):
        source.make(made, tmp_path / "view")


def test_layers_for_several_tokens_that_the_config_counts_are_named_in_the_plan(made: Path, tmp_path: Path) -> None:
    changed(made, one_layer_more)
    edit(made / "config.json", num_nextn_predict_layers=1)
    (note,) = (note for note in planned(tmp_path).notes if "does not load" in note)
    assert note.startswith("model 'm': its files also hold model.layers.2.")


def test_a_file_that_is_as_its_config_says_is_asked_nothing_about(made: Path, tmp_path: Path, asked_here: list[str]) -> None:
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    changed(made, lambda s: s.update({frequencies: torch.rand(32)}))
    assert any(frequencies in note for note in planned(tmp_path).notes)
    assert asked_here == []


def test_another_architecture_is_asked_about_once(tmp_path: Path, asked_here: list[str]) -> None:
    config = transformers.GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    checkpoint(tmp_path / "m", model=transformers.GPT2LMHeadModel(config))
    headers = {"transformer.wte.weight": ("BF16", [512, 64])}
    for _ in range(2):
        with pytest.raises(BadInput, match="are missing"):
            fit.unread(json.loads((tmp_path / "m" / "config.json").read_text()), headers, cache=tmp_path / "cache")
    assert asked_here == ["harness.models.fit"]


def test_a_clone_without_lfs_is_told_what_to_run(made: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n"
    (made / "model.safetensors").write_text(pointer)
    with pytest.raises(BadInput, match=r"model\.safetensors: a Git LFS pointer in the place of the file.* git lfs pull"):
        planned(tmp_path)


def test_a_tokenizer_that_is_cut_off_is_refused_by_the_plan(made: Path, tmp_path: Path) -> None:
    file = made / "tokenizer.json"
    file.write_text(file.read_text()[:200])
    with pytest.raises(BadInput, match=r"tokenizer\.json is damaged or cut off"):
        planned(tmp_path)


SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 96, "intermediate_size": 192,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip


def test_a_shape_gets_the_groups_that_a_checkpoint_of_its_sizes_gets(tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: s\nmodels: [{shape: shape.json}]\nbaseline: bf16\nprobes: [size, latency]\n"
        "methods: {bf16: , rtn: {bits: 4}, gptq: {bits: 4}, gguf: {bits: 4}}\ncalibration: {length: 64}\n"
    )
    made = plan(suite, device="cpu", cache=tmp_path / "cache")
    assert [p.cell.label for p in made.cells] == ["bf16", "rtn 4-bit g32", "gptq 4-bit g32"]
    assert all(p.estimated_bytes for p in made.cells)
    assert "do not divide into groups of 256" in made.unsupported[0].reason


def test_calibration_rows_are_no_longer_than_the_context(made: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"calibration: length: 600 tokens are more than the context of model 'm', 256; write length: 256"
    ):
        planned(tmp_path, "bf16: , gptq: {bits: 4}", "calibration: {corpus: reference, length: 600}\n")
    with pytest.raises(BadInput, match=r"length: 300 tokens are more than the context"):
        planned(tmp_path, "bf16: , gptq: {bits: 4, calibration: {corpus: reference, length: 300}}")
    (said,) = planned(tmp_path, "bf16: , gptq: {bits: 4}", "calibration: {corpus: reference}\n").calibrated_on
    assert said.length == 256
    assert "rows of 256 tokens, the model's context, in place of the default 512" in said.why


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "few.txt",
            "the river stone opens house the green water",
            r"holds \d+ tokens, fewer than one row of 32 tokens .*; use a longer text",
        ),
        ("empty.txt", "", "holds no text"),
        ("null.jsonl", '{"text": null}\n', "holds no text"),
        ("none/readme.md", "text", r"holds no \.txt, \.jsonl or \.parquet file"),
    ],
)
def test_a_text_to_calibrate_on_is_looked_at_by_the_plan(name: str, content: str, said: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    text_file = name.split("/")[0]
    with pytest.raises(BadInput, match=said):
        planned(tmp_path, "bf16: , gptq: {bits: 4}", f"calibration: {{corpus: {{path: {text_file}}}, length: 32}}\n")
