"""Every weight of the source is in the artifact exactly once: artifacts are damaged in many ways, and each is found by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from harness.artifact import MANIFEST, HeldWeight
from harness.child import worker
from harness.child.job import Job, read_outcome
from harness.errors import BadLedger
from harness.formats import safetensors_file
from harness.methods import METHODS, against_source
from harness.methods.base import QuantizeRequest
from harness.models import source
from harness.spec import Cell
from tests.right.cases import ROWS, cell, checkpoint, quantized
from tests.tiny_llama import llama

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning",
    "ignore::DeprecationWarning:torch",
)

ROOT = Path(__file__).parents[2]

State: TypeAlias = dict[str, torch.Tensor]

SIZE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def uneven(model: torch.nn.Module) -> torch.nn.Module:
    """Norms that are not 1 and biases that are not 0, so that one in the place of another shows."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model


def qwen() -> torch.nn.Module:
    """Biases, an untied head, as many heads for keys as for queries: AWQ scales v against o."""
    config = transformers.Qwen2Config(
        **{**SIZE, "hidden_size": 128}, **IDS, intermediate_size=256, num_key_value_heads=4, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = uneven(transformers.Qwen2ForCausalLM(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layernorm.weight"):
                parameter[::16] *= 6  # channels that AWQ has a reason to scale
    return model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source.make(
        checkpoint(tmp_path_factory.mktemp("qwen") / "m", model=qwen()), tmp_path_factory.mktemp("view") / "v"
    ).folder


def check(model_dir: Path, artifact: Path, asked: Cell) -> None:
    method = METHODS[asked.method]
    request = QuantizeRequest(model_dir=model_dir, out_dir=artifact, origin=asked.origin, calibration=ROWS, device="cpu", seed=0)
    assert method.weights is not None
    against_source.check(model_dir, method.weights(request), folds=method.folds)


MADE: dict[str, tuple[Path, Cell]] = {}


def made(name: str, bits: float, model_dir: Path, folder: Path, **options: object) -> tuple[Path, Cell]:
    """An artifact of the model, made once."""
    key = f"{name} {bits} {model_dir} {options}"
    if key not in MADE:
        asked = cell(name, bits, **options)
        out = folder / f"{name}-{bits:g}"
        if name in ("rtn", "gptq", "awq"):  # GPTQModel leaves folders and threads behind in its process
            code = "import json, sys; from pathlib import Path; from tests.right.cases import cell, quantized\n"
            code += "a = json.loads(sys.argv[1]); quantized(Path(a[0]), Path(a[1]), cell(a[2], a[3], **a[4]))"
            told = json.dumps([str(model_dir), str(out), name, bits, options])
            subprocess.run([sys.executable, "-c", code, told], check=True, timeout=300, capture_output=True, cwd=ROOT)
        else:
            quantized(model_dir, out, asked)
        MADE[key] = (out, asked)
    return MADE[key]


CELLS = [
    ("fp32", 32.0), ("bf16", 16.0), ("fp16", 16.0), ("rtn", 4.0), ("rtn", 3.0), ("gptq", 8.0), ("hqq", 4.0), ("hqq", 3.0),
    ("torchao", 8.0), ("torchao", 4.0), ("torchao", 3.0), ("quanto", 8.0), ("quanto", 4.0), ("bnb", 8.0), ("bnb", 4.0),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), CELLS, ids=lambda value: f"{value}")
def test_an_artifact_as_it_is_made_holds_every_weight(name: str, bits: float, model_dir: Path, tmp_path: Path) -> None:
    check(model_dir, *made(name, bits, model_dir, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8.0, 4.0, 3.0, 2.0])
def test_folded_scales_are_found_in_the_layer_that_follows(bits: float, model_dir: Path, tmp_path: Path) -> None:
    artifact, asked = made("awq", bits, model_dir, tmp_path)
    check(model_dir, artifact, asked)
    stored, kept = load_file(model_dir / "model.safetensors"), load_file(artifact / "model.safetensors")
    assert any(not torch.equal(kept[name], stored[name]) for name in kept if name in stored)


def damaged(artifact: Path, folder: Path, change: Callable[[State], None]) -> Path:
    shutil.copytree(artifact, folder)
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt"})
    return folder


BIAS, NORM, HEAD = "model.layers.1.self_attn.q_proj.bias", "model.layers.0.input_layernorm.weight", "lm_head.weight"
OTHER = "model.layers.1.input_layernorm.weight"


def drops_a_bias(state: State) -> None:
    del state[BIAS]


def zeroes_a_bias(state: State) -> None:
    state[BIAS] = torch.zeros_like(state[BIAS])


def replaces_a_norm(state: State) -> None:
    state[NORM] = torch.ones_like(state[NORM])


def takes_the_norm_of_another_layer(state: State) -> None:
    state[NORM] = state[OTHER].clone()


def ties_the_head(state: State) -> None:
    del state[HEAD]


def copies_the_embedding_into_the_head(state: State) -> None:
    state[HEAD] = state["model.embed_tokens.weight"].clone()


def pads_the_vocabulary(state: State) -> None:
    for name in (HEAD, "model.embed_tokens.weight"):
        state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, 64))


def drops_a_layer(state: State) -> None:
    for name in [n for n in state if n.startswith("model.layers.1.mlp.down_proj.")]:
        del state[name]


def keeps_a_packed_weight_too(state: State) -> None:
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(256, 128)


def adds_a_bias(state: State) -> None:
    state["model.layers.0.mlp.up_proj.bias"] = torch.ones(256)


def moves_one_value(state: State) -> None:
    state[HEAD][5, 7] += 0.5


def rounds_an_embedding(state: State) -> None:
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].to(torch.float8_e4m3fn).to(torch.bfloat16)


def renames_a_norm(state: State) -> None:
    state["model.layers.0.attention_norm.weight"] = state.pop(NORM)


DAMAGES: list[tuple[Callable[[State], None], str]] = [
    (drops_a_bias, rf"{BIAS}: the source has \[128\], the artifact has no such tensor; the quantizing library dropped the bias"),
    (zeroes_a_bias, rf"{BIAS}: the artifact keeps \[128\], the source has \[128\], and the values are not the source's"),
    (replaces_a_norm, rf"{NORM}: the artifact keeps \[128\], .*replaced or damaged the tensor"),
    (takes_the_norm_of_another_layer, rf"{NORM}: the artifact keeps \[128\]"),
    (ties_the_head, rf"{HEAD}: the source has \[512, 128\], .*tied the head to the embedding, which the source does not"),
    (copies_the_embedding_into_the_head, rf"{HEAD}: the artifact keeps \[512, 128\]"),
    (
        pads_the_vocabulary,
        r"(lm_head|embed_tokens)\.weight: the artifact holds kept \[576, 128\] where the source has \[512, 128\]",
    ),
    (drops_a_layer, r"model\.layers\.1\.mlp\.down_proj\.weight: the source has \[128, 256\], the artifact has no such tensor"),
    (keeps_a_packed_weight_too, r"up_proj\.weight: the artifact holds it twice"),
    (adds_a_bias, r"up_proj\.bias: the artifact holds it \(kept \[256\]\), and the source has no such tensor"),
    (moves_one_value, rf"{HEAD}: .*they differ by up to 0\.5"),
    (rounds_an_embedding, r"embed_tokens\.weight: the artifact keeps"),
    (renames_a_norm, rf"{NORM}: .*stores it under another name \(model\.layers\.0\.attention_norm\.weight\)"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[change.__name__ for change, _ in DAMAGES])
@pytest.mark.parametrize("name", ["rtn", "hqq"])
def test_a_quantizer_that(damage: Callable[[State], None], said: str, name: str, model_dir: Path, tmp_path: Path) -> None:
    artifact, asked = made(name, 4.0, model_dir, tmp_path / "whole")
    folder = damaged(artifact, tmp_path / "damaged", damage)
    with pytest.raises(BadLedger, match=said):
        check(model_dir, folder, asked)


def restores_a_norm(state: State, stored: State) -> None:
    state[NORM] = stored[NORM].to(state[NORM].dtype)


def restores_a_bias(state: State, stored: State) -> None:
    name = "model.layers.1.self_attn.v_proj.bias"
    state[name] = stored[name].to(state[name].dtype)


def doubles_a_norm(state: State, stored: State) -> None:
    state[NORM] *= 2


def reverses_a_norm(state: State, stored: State) -> None:
    state[NORM] = state[NORM].flip(0)


def changes_the_last_norm(state: State, stored: State) -> None:
    state["model.norm.weight"] *= 1.5


def changes_the_head(state: State, stored: State) -> None:
    state[HEAD] *= 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (restores_a_norm, r"model\.layers\.0\..*(scaled against the source's|no layer that follows)"),
        (
            restores_a_bias,
            r"model\.layers\.1\.self_attn\.v_proj\.bias: it is the source's \[128\], and the rows of the layer's weight",
        ),
        (doubles_a_norm, rf"({NORM}|model\.layers\.0\.self_attn)"),
        (reverses_a_norm, rf"({NORM}|model\.layers\.0\.self_attn)"),
        (changes_the_last_norm, r"model\.norm\.weight"),
        (changes_the_head, HEAD),
        (lambda state, stored: drops_a_bias(state), BIAS),
    ],
    ids=[
        "restores a norm",
        "restores a bias",
        "doubles a norm",
        "reverses a norm",
        "changes the last norm",
        "changes the head",
        "drops a bias",
    ],
)
@pytest.mark.parametrize("bits", [8.0, 4.0])
def test_where_scales_are_folded_a_quantizer_that(
    bits: float, damage: Callable[[State, State], None], said: str, model_dir: Path, tmp_path: Path
) -> None:
    artifact, asked = made("awq", bits, model_dir, tmp_path / "whole")
    stored = load_file(model_dir / "model.safetensors")
    folder = damaged(artifact, tmp_path / "damaged", lambda state: damage(state, stored))
    with pytest.raises(BadLedger, match=said):
        check(model_dir, folder, asked)


@pytest.mark.slow
def test_an_artifact_of_another_precision_is_compared_at_its_own(tmp_path: Path) -> None:
    """Sources in float16, float32 and float64 become bfloat16."""
    for dtype in (torch.float16, torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        folder = checkpoint(tmp_path / name, model=uneven(llama(hidden_size=64)), dtype=dtype)
        view = source.make(folder, tmp_path / f"view-{name}").folder
        for method, bits in (("bf16", 16.0), ("hqq", 4.0), ("rtn", 4.0)):
            check(view, *made(method, bits, view, tmp_path / f"made-{name}"))


FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)
    ),
    "phi3": lambda: transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**SIZE, **IDS, intermediate_size=128, num_key_value_heads=2)
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**SIZE, **IDS, intermediate_size=128, num_key_value_heads=2, head_dim=16)
    ),
    "opt": lambda: transformers.OPTForCausalLM(transformers.OPTConfig(**SIZE, **IDS, ffn_dim=128, word_embed_proj_dim=64)),
    "neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZE, **IDS, intermediate_size=128)),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **SIZE, **IDS, intermediate_size=128, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
        )
    ),
    "gpt-oss": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            **SIZE, **IDS, intermediate_size=128, num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2
        )
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_pieces_of_other_families_are_found_again(family: str, tmp_path: Path) -> None:
    """Under other prefixes (GPT-2), transposed (its Conv1D), and as one tensor what is stored as many (experts)."""
    view = source.make(checkpoint(tmp_path / "m", model=uneven(FAMILIES[family]())), tmp_path / "view").folder
    for name, bits in (("bf16", 16.0), ("hqq", 4.0), ("bnb", 8.0)):
        options = {"group_size": 32} if name == "hqq" else {}
        check(view, *made(name, bits, view, tmp_path, **options))


def test_experts_that_are_kept_as_one_tensor_are_compared_with_those_that_are_stored_each_by_itself(tmp_path: Path) -> None:
    view = source.make(checkpoint(tmp_path / "m", model=FAMILIES["mixtral"]()), tmp_path / "view").folder
    artifact, asked = made("hqq", 4.0, view, tmp_path, group_size=32)

    def change(state: State) -> None:
        name = next(n for n in state if n.endswith("experts.gate_up_proj"))
        state[name][1, 3, 5] += 1

    with pytest.raises(BadLedger, match=r"experts.*the artifact holds other values under"):
        check(view, damaged(artifact, tmp_path / "damaged", change), asked)


def test_a_cell_whose_quantizer_lost_a_tensor_fails_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the quantizing child does it: a typed failure, and no artifact."""
    folder = checkpoint(tmp_path / "m", model=qwen())
    view = source.make(folder, tmp_path / "view").folder
    asked = cell("hqq", 4.0)
    row = METHODS["hqq"]

    def lossy(request: QuantizeRequest) -> None:
        row.quantize(request)
        (path,) = request.out_dir.glob("*.safetensors")
        state = load_file(path)
        drops_a_bias(state)
        save_file(state, path, metadata={"format": "pt"})

    monkeypatch.setitem(METHODS, "hqq", replace(row, quantize=lossy))
    (tmp_path / "job").mkdir()
    (tmp_path / "artifact").mkdir()
    told = Job(
        stage="quantize",
        cell=asked,
        model_dir=view,
        artifact_dir=tmp_path / "artifact",
        device="cpu",
        seed=0,
        threads=1,
        cache=tmp_path,
    )
    worker.run_job(tmp_path / "job", told, lambda event: None)
    outcome = read_outcome(tmp_path / "job", phase="quantize")
    assert outcome is not None
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.phase) == ("error", "ledger")
    assert outcome.failure.message.startswith(f"{BIAS}: the source has [128], the artifact has no such tensor")
    assert not (tmp_path / "artifact" / MANIFEST).exists()


def rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    grouped, most = weight.view(len(weight), -1, group), 2 ** (bits - 1) - 1
    scale = grouped.abs().amax(-1, keepdim=True) / most
    return ((grouped / scale).round().clamp(-most - 1, most) * scale).view_as(weight)


@pytest.mark.parametrize("taken_back", [True, False])
def test_a_scale_that_rounding_nearly_hides_is_explained_where_the_next_layer_takes_it_back(
    taken_back: bool, tmp_path: Path
) -> None:
    """AWQ at 3 bits divides up_proj's rows by scales that differ by a tenth and have a common factor."""
    torch.manual_seed(0)
    up, down = torch.randn(768, 256), torch.randn(256, 768)
    save_file({f"m.0.{name}.weight": w for name, w in {"up": up, "down": down}.items()}, tmp_path / "model.safetensors")
    stored = safetensors_file.checkpoint(tmp_path)
    scale = 0.78 * (0.1 * torch.randn(768)).exp()
    made = {"up": rounded(up / scale[:, None], 3, 16), "down": rounded(down * scale if taken_back else down, 3, 16)}
    layers = [
        (stored[f"m.0.{name}.weight"], HeldWeight(name=f"m.0.{name}.weight", shape=tuple(w.shape), quantized=True, read=w.clone))
        for name, w in made.items()
    ]
    assert not against_source._gains(*layers[0]).rows_scaled, "else nothing hides the scale"
    if taken_back:
        against_source._block_explained(layers, [], biases={}, plus_one=False)
    else:
        with pytest.raises(BadLedger, match=r"m\.0\.up\.weight: the columns of the artifact's"):
            against_source._block_explained(layers, [], biases={}, plus_one=False)


@pytest.mark.parametrize("folded", [True, False])
def test_columns_that_were_scaled_down_and_round_to_nothing_are_no_sign_of_another_scale(folded: bool, tmp_path: Path) -> None:
    """AWQ of a first layer: columns are multiplied by a tenth to nine. Beside large ones of their group the small ones round to
    nothing, though the source gives them as much weight as any."""
    torch.manual_seed(0)
    norm, query = torch.ones(256), torch.randn(192, 256)
    scale = torch.randn(256).exp().clamp(0.1, 9.0)
    save_file({"m.0.norm.weight": norm, "m.0.q.weight": query}, tmp_path / "model.safetensors")
    stored = safetensors_file.checkpoint(tmp_path)
    made, kept = rounded(query * scale, 4, 64), norm / scale
    layer = HeldWeight(name="m.0.q.weight", shape=(192, 256), quantized=True, read=made.clone)
    vector = HeldWeight(name="m.0.norm.weight", shape=(256,), quantized=False, read=kept.clone)
    layers, vectors = [(stored["m.0.q.weight"], layer)], [(stored["m.0.norm.weight"], vector)] if folded else []
    if folded:
        against_source._block_explained(layers, vectors, biases={}, plus_one=False)
    else:
        with pytest.raises(BadLedger, match=r"m\.0\.q\.weight: the columns of the artifact's"):
            against_source._block_explained(layers, vectors, biases={}, plus_one=False)
