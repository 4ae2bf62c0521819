"""One checkpoint for all cells: an ambiguous or damaged folder is refused by name, and all read what transformers reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from harness.errors import BadInput
from harness.models import find, source
from tests.right.cases import checkpoint, edit
from tests.tiny_llama import llama, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, an untied head."""
    return checkpoint(tmp_path_factory.mktemp("plain") / "m", model=llama(hidden_size=64, tie_word_embeddings=False))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("tied") / "m", model=llama(hidden_size=64))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewritten(original: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint of one file with other tensors in it."""
    shutil.copytree(original, folder)
    state = weights(folder)
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def in_shards(
    original: Path, folder: Path, *, twice: str | None = None, elsewhere: str | None = None, unnamed: str | None = None
) -> Path:
    """A copy in two shards; a tensor may lie in both, in another one than the index says, or in none of the index."""
    shutil.copytree(original, folder)
    state = weights(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": {n: state[n] for n in names[i::2]} for i in range(2)}
    index = {name: file for file, part in shards.items() for name in part}
    first, second = shards
    if twice is not None:
        for part in shards.values():
            part[twice] = state[twice]
    if elsewhere is not None:
        index[elsewhere] = second if index[elsewhere] == first else first
    if unnamed is not None:
        del index[unnamed]
    for file, part in shards.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def refused(folder: Path, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        find.shape(find.model({"path": str(folder)}, folder))


NORM = "model.norm.weight"


def test_a_folder_with_an_index_and_another_checkpoint_beside_it_is_refused_by_name(plain: Path, tmp_path: Path) -> None:
    folder = in_shards(plain, tmp_path / "m")
    assert find.shape(find.model({"path": str(folder)}, folder)) is not None
    shutil.copyfile(plain / "model.safetensors", folder / "model.safetensors")
    refused(folder, r"beside model\.safetensors lies an index of other files \(model-00001-of-00002\.safetensors")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"twice": NORM}, r"model\.norm\.weight: in more than one file \(model-00001-of-00002\.safetensors, model-00002"),
        ({"elsewhere": NORM}, r"model\.norm\.weight: not in the file that model\.safetensors\.index\.json names"),
        ({"unnamed": NORM}, r"model\.norm\.weight: in a file of model\.safetensors\.index\.json that does not name it"),
    ],
)
def test_shards_that_are_not_what_their_index_says_are_refused_by_name(
    how: dict[str, str], said: str, plain: Path, tmp_path: Path
) -> None:
    refused(in_shards(plain, tmp_path / "m", **how), said)


def test_weights_under_another_name_are_refused_with_the_names_that_are_read(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "weights.safetensors")
    refused(tmp_path / "m", r"transformers reads model\.safetensors, .* and here are only weights\.safetensors")


def test_a_file_that_is_cut_off_is_refused_with_what_is_missing(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "m")
    data = (plain / "model.safetensors").read_bytes()
    (tmp_path / "m" / "model.safetensors").write_bytes(data[:-1000])
    refused(tmp_path / "m", r"model\.safetensors: is no safetensors file or it is damaged .*fetch or make it again")


def test_a_folder_without_a_tokenizer_is_refused(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "m")
    for path in (tmp_path / "m").glob("tokenizer*"):
        path.unlink()
    refused(tmp_path / "m", "holds no tokenizer")


def test_a_null_quantization_is_none(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "m")
    config = json.loads((plain / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    assert source.make(tmp_path / "m", tmp_path / "view").parameters == source.make(plain, tmp_path / "other").parameters


# ---------------------------------------------------------------------- the view


def view(folder: Path, tmp_path: Path) -> source.Source:
    return source.make(folder, tmp_path / "view")


def names_in(folder: Path) -> set[str]:
    return {tensor for path in folder.glob("*.safetensors") for tensor in load_file(path)}


def answers(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


def loaded_parameters(folder: Path) -> int:
    return sum(p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(folder).parameters())


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_the_view_of_a_plain_checkpoint_is_links(shards: bool, plain: Path, tmp_path: Path) -> None:
    folder = in_shards(plain, tmp_path / "m") if shards else plain
    made = view(folder, tmp_path)
    assert made.unread == ()
    assert made.parameters == loaded_parameters(folder)
    files = [p for p in made.folder.iterdir() if p.name not in (source.FACTS, INDEX)]
    assert all(p.is_symlink() and p.resolve() == (folder / p.name).resolve() for p in files)
    assert {p.name for p in folder.iterdir()} <= {p.name for p in made.folder.iterdir()}
    assert torch.equal(answers(made.folder), answers(folder))
    assert source.known(made.folder) == made


def test_a_second_checkpoint_that_transformers_does_not_read_is_not_in_the_view(plain: Path, tmp_path: Path) -> None:
    folder = in_shards(plain, tmp_path / "m")
    shutil.copyfile(plain / "model.safetensors", folder / "consolidated.safetensors")
    save_file({"lora": torch.zeros(2)}, folder / "adapter_model.safetensors")
    assert {p.name for p in view(folder, tmp_path).folder.glob("*.safetensors")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_an_equal_copy_of_a_tied_head_is_read_and_counted_once(tied: Path, tmp_path: Path) -> None:
    folder = rewritten(tied, tmp_path / "m", lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"].clone()}))
    made = view(folder, tmp_path)
    assert made.unread == ("lm_head.weight",)
    assert names_in(made.folder) == names_in(tied)
    assert made.parameters == loaded_parameters(tied)
    assert torch.equal(answers(made.folder), answers(folder))


@pytest.mark.parametrize("change", [lambda t: t * 2, lambda t: t.roll(1, 0)], ids=["scaled", "other rows"])
def test_a_head_that_differs_from_the_embedding_that_it_is_said_to_be_tied_to_is_kept_for_all(
    change: Callable[[torch.Tensor], torch.Tensor], tied: Path, tmp_path: Path
) -> None:
    """As transformers does. Other libraries believe the config, so the view's config says what is so."""
    folder = rewritten(tied, tmp_path / "m", lambda s: s.update({"lm_head.weight": change(s["model.embed_tokens.weight"])}))
    made = view(folder, tmp_path)
    assert made.unread == ()
    assert json.loads((made.folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert made.parameters == loaded_parameters(tied) + 512 * 64
    assert torch.equal(answers(made.folder), answers(folder))
    assert not torch.equal(answers(made.folder), answers(tied))


def test_layers_that_are_stored_and_not_loaded_are_left_out_and_named(plain: Path, tmp_path: Path) -> None:
    """As models for multi-token prediction store them: behind the last layer, in the number that the config says, or under a name
    of their own."""

    def more(state: dict[str, torch.Tensor]) -> None:
        state.update({k.replace("layers.1.", "layers.2."): v.clone() for k, v in state.items() if ".layers.1." in k})
        state["mtp.fc.weight"] = torch.zeros(4, 4)
        state["model.vision.patch.weight"] = torch.zeros(4, 4)

    folder = rewritten(plain, tmp_path / "m", more)
    edit(folder / "config.json", num_nextn_predict_layers=1)
    made = view(folder, tmp_path)
    assert len(made.unread) == 11
    assert "model.layers.2.self_attn.q_proj.weight" in made.unread
    assert names_in(made.folder) == names_in(plain)
    assert made.parameters == loaded_parameters(plain)
    assert torch.equal(answers(made.folder), answers(folder))


def test_buffers_of_older_versions_are_left_out(tmp_path: Path) -> None:
    """GPT-NeoX as published: causal masks, their value, rotary frequencies."""
    config = transformers.GPTNeoXConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    original = checkpoint(tmp_path / "original", model=transformers.GPTNeoXForCausalLM(config))

    def buffers(state: dict[str, torch.Tensor]) -> None:
        for i in range(2):
            name = f"gpt_neox.layers.{i}.attention"
            state[f"{name}.bias"] = torch.ones(64, 64, dtype=torch.bool).tril()[None, None].contiguous()
            state[f"{name}.masked_bias"] = torch.tensor(-1e9)
            state[f"{name}.rotary_emb.inv_freq"] = torch.rand(2)

    folder = rewritten(original, tmp_path / "m", buffers)
    made = view(folder, tmp_path)
    assert len(made.unread) == 6
    assert names_in(made.folder) == names_in(original)
    assert made.parameters == loaded_parameters(original)
    assert torch.equal(answers(made.folder), answers(folder))


def test_a_missing_weight_is_one_sentence(plain: Path, tmp_path: Path) -> None:
    for name in (NORM, "lm_head.weight", "model.layers.1.mlp.down_proj.weight"):
        folder = rewritten(plain, tmp_path / name, lambda s, name=name: s.pop(name))  # type: ignore[misc]
        with pytest.raises(BadInput, match=f"the weights of {name} are missing"):
            view(folder, tmp_path)


def test_a_weight_of_another_shape_is_one_sentence(plain: Path, tmp_path: Path) -> None:
    folder = rewritten(plain, tmp_path / "m", lambda s: s.update({NORM: torch.ones(65)}))
    with pytest.raises(BadInput, match=r"model\.norm\.weight: stored in another shape than config\.json says"):
        view(folder, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight_scale_inv",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.down_proj.lora_A.weight",
        "lm_head.weight_scale",
    ],
)
def test_a_tensor_of_a_loaded_layer_that_nothing_reads_is_refused_by_name(name: str, plain: Path, tmp_path: Path) -> None:
    """Scales of a quantization that the config does not name, biases and norms that the class does not have."""
    folder = rewritten(plain, tmp_path / "m", lambda s: s.update({name: torch.ones(2)}))
    with pytest.raises(BadInput, match=rf"{name.replace('.', '[.]')}: stored with layers that are loaded, but nothing reads it"):
        view(folder, tmp_path)


def test_a_model_that_needs_code_of_its_own_is_refused_with_the_reason(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "m")
    edit(tmp_path / "m" / "config.json", model_type="mymodel", auto_map={"AutoConfig": "configuration_mymodel.MyConfig"})
    with pytest.raises(BadInput, match=r"cannot load the model type 'mymodel' .* code of its own .auto_map., which is never run"):
        view(tmp_path / "m", tmp_path)
    edit(tmp_path / "m" / "config.json", auto_map=None)
    with pytest.raises(BadInput, match="cannot load the model type 'mymodel'"):
        view(tmp_path / "m", tmp_path)


def test_a_view_whose_links_are_broken_is_none(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "m")
    made = view(tmp_path / "m", tmp_path)
    (tmp_path / "m" / "model.safetensors").unlink()
    assert source.known(made.folder) is None
    assert source.known(tmp_path) is None


def fused(**changes: Any) -> Any:
    """Mixtral: transformers loads the stored experts as one tensor."""
    config = transformers.MixtralConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, max_position_embeddings=64, **changes,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def test_experts_that_are_stored_one_by_one_and_loaded_as_one_tensor_are_all_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", model=fused())
    made = view(folder, tmp_path)
    assert made.unread == ()
    assert made.parameters == loaded_parameters(folder)


def test_a_checkpoint_without_the_prefix_of_its_class_is_read(tmp_path: Path) -> None:
    """GPT-2 as published."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=64))
    original = checkpoint(tmp_path / "original", model=model)

    def published(state: dict[str, torch.Tensor]) -> None:
        for name in list(state):
            state[name.removeprefix("transformer.")] = state.pop(name)
        for i in range(2):
            state[f"h.{i}.attn.bias"] = torch.ones(64, 64).tril()[None, None].contiguous()

    folder = rewritten(original, tmp_path / "m", published)
    made = view(folder, tmp_path)
    assert made.unread == ("h.0.attn.bias", "h.1.attn.bias")
    assert made.parameters == loaded_parameters(original)
    assert torch.equal(answers(made.folder), answers(original))


def test_the_rows_of_the_embedding_are_known(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", model=llama(hidden_size=64, vocab_size=576))
    assert view(folder, tmp_path).rows == 576 > len(tokenizer())


def test_a_plan_counts_what_is_loaded_without_loading_it(tied: Path, tmp_path: Path) -> None:
    def odd(state: dict[str, torch.Tensor]) -> None:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        state.update({k.replace("layers.1.", "layers.2."): v.clone() for k, v in state.items() if ".layers.1." in k})
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(8)
        state["model.layers.0.self_attn.mask"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)

    folder = rewritten(tied, tmp_path / "m", odd)
    known, plain = find.shape_of(folder), find.shape_of(tied)
    assert known.parameters == plain.parameters == loaded_parameters(tied)
    assert known.linears == plain.linears
