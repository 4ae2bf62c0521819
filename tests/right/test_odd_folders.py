"""Folders as people have them, through a whole run: every cell reads one checkpoint, and sizes are those of what is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from harness.errors import BadInput
from tests.right import families
from tests.right.cases import cell, checkpoint, edit, failures, loaded, quantized, run, values
from tests.tiny_llama import llama, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

State = dict[str, torch.Tensor]
METHODS_ASKED = (
    "rtn: {bits: 4, group_size: 64}, gptq: {bits: 4, group_size: 64}, awq: {bits: 4, group_size: 64}, "
    "autoround: {bits: 4, group_size: 64, iters: 0}, hqq: {bits: 4}, bnb: {bits: 4}, torchao: {bits: 4}, quanto: {bits: 4}"
)


def with_other_tensors(original: Path, folder: Path, change: Callable[[State], None]) -> Path:
    shutil.copytree(original, folder)
    state = load_file(original / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def one_layer_more(state: State) -> None:
    state.update({k.replace("layers.1.", "layers.2."): v.clone() for k, v in state.items() if ".layers.1." in k})


def a_copy_of_the_head(state: State) -> None:
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()


def another_head(state: State) -> None:
    state["lm_head.weight"] = state["model.embed_tokens.weight"].roll(7, 0).contiguous()


@pytest.mark.slow
def test_what_is_stored_and_not_loaded_changes_no_answer_and_no_size(tmp_path: Path) -> None:
    clean = checkpoint(tmp_path / "clean")
    edit(with_other_tensors(clean, tmp_path / "more", one_layer_more) / "config.json", num_nextn_predict_layers=1)
    with_other_tensors(clean, tmp_path / "copy", a_copy_of_the_head)
    stored = run(tmp_path, models="[{path: clean}, {path: more}, {path: copy}]", methods=METHODS_ASKED)
    assert not failures(stored)
    for metric in ("perplexity", "kl_mean", "bpw_model", "bpw_quantized", "compression"):
        found = values(stored, metric)
        assert len(found) in (24, 27)
        for name in (n for n in found if n.startswith("clean")):
            assert found[name.replace("clean", "more")] == found[name.replace("clean", "copy")] == found[name], metric
    assert values(stored, "bpw_model")["clean / bf16"] == 16.0
    for record in stored.records:
        if record.question.probe == "size" and record.answer is not None:
            said = str(record.answer.facts["not_loaded"])
            assert ("model.layers.2" in said, "lm_head.weight" in said) == (
                record.cell.model.name == "more",
                record.cell.model.name == "copy",
            )


@pytest.mark.slow
def test_a_head_that_is_stored_beside_the_embedding_it_is_said_to_be_tied_to_is_kept_by_every_method(tmp_path: Path) -> None:
    """Against the same weights with a config that says what is so."""
    clean = checkpoint(tmp_path / "clean")
    odd = with_other_tensors(clean, tmp_path / "odd", another_head)
    shutil.copytree(odd, tmp_path / "said")
    config = json.loads((odd / "config.json").read_text())
    (tmp_path / "said" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    stored = run(tmp_path, models="[{path: odd}, {path: said}]", methods=METHODS_ASKED)
    assert not failures(stored)
    for metric in ("perplexity", "kl_mean", "bpw_model"):
        found = values(stored, metric)
        for name in (n for n in found if n.startswith("odd")):
            assert found[name.replace("odd", "said")] == found[name], (metric, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("model.norm.weight"), "the weights of model.norm.weight are missing"),
        (lambda s: s.update({"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1)}), "but nothing reads it"),
    ],
    ids=["a weight is missing", "a scale that nothing reads"],
)
def test_what_cannot_be_read_is_one_sentence_before_anything_runs(
    change: Callable[[State], None], said: str, tmp_path: Path
) -> None:
    with_other_tensors(checkpoint(tmp_path / "clean"), tmp_path / "odd", change)
    with pytest.raises(BadInput, match=said):
        run(tmp_path, models="[{path: odd}]", methods=METHODS_ASKED)
    assert not list(tmp_path.rglob("*.jsonl"))


def larger_than_its_model() -> tuple[Any, int]:
    """A tokenizer with one token more than the embedding has rows, and these."""
    words = tokenizer()
    rows = len(words)
    words.add_tokens(["river"])
    return words, rows


@pytest.mark.slow
def test_a_text_with_tokens_beyond_the_embedding_is_refused_before_anything_is_quantized(tmp_path: Path) -> None:
    words, rows = larger_than_its_model()
    checkpoint(tmp_path / "m", words=words, model=llama(vocab_size=rows))
    stored = run(tmp_path, models="[{path: m}]", methods="hqq: {bits: 4}")
    assert len(failures(stored)) == len(stored.records) == 6
    for record in failures(stored):
        assert record.failure is not None
        assert f"gives the id {rows} ('river'), and the model's embedding has {rows} rows" in record.failure.message
    assert not list((tmp_path / "cache").glob("artifacts/*"))


def test_an_input_with_such_a_token_is_refused_in_words(tmp_path: Path) -> None:
    """A task's text, say, which is not known before."""
    words, rows = larger_than_its_model()
    source = checkpoint(tmp_path / "m", words=words, model=llama(hidden_size=64, vocab_size=rows))
    asked = cell("bf16", 16)
    artifact = quantized(source, tmp_path / "artifact", asked)
    engine = loaded(source, artifact, asked)
    assert len(list(engine.score_windows([[5, 6, 7, 8]], None))) == 1
    with pytest.raises(BadInput, match=rf"gives the id {rows} \('river'\)"):
        list(engine.score_windows([[5, rows, 7, 8]], None))


@pytest.mark.slow
def test_a_config_that_asks_for_attention_weights_is_saved_by_every_library(tmp_path: Path) -> None:
    """transformers saves no model that asks for them; they change no answer."""
    for name in ("plain", "asks"):
        checkpoint(tmp_path / name)
    edit(tmp_path / "asks" / "config.json", output_attentions=True)
    stored = run(tmp_path, models="[{path: plain}, {path: asks}]", methods="bnb: {bits: 4}, rtn: {bits: 4, group_size: 64}")
    assert not failures(stored), [r.failure for r in failures(stored)]
    apart = values(stored, "kl_mean")
    for scheme in ("bnb 4-bit nf4", "rtn 4-bit g64"):
        assert apart[f"asks / {scheme}"] == apart[f"plain / {scheme}"] > 0


@pytest.mark.slow
def test_a_padding_token_beyond_the_embedding_stops_no_library(tmp_path: Path) -> None:
    """Qwen2's tokenizer class adds `<|endoftext|>` to a vocabulary without it, and GPTQModel takes it for padding."""
    words = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>")
    config = hf.Qwen2Config(**{**families.GROUPED, "pad_token_id": None, "vocab_size": len(words)}, intermediate_size=128)
    folder = checkpoint(tmp_path / "m", model=families.sharpened(hf.Qwen2ForCausalLM(config)), words=words)
    beyond = hf.AutoTokenizer.from_pretrained(folder).pad_token_id
    assert beyond is not None
    assert beyond >= config.vocab_size, "else the library has nothing to fail on"
    stored = run(
        tmp_path, models="[{path: m}]", methods="rtn: {bits: 8, group_size: 64}, autoround: {bits: 8, group_size: 64, iters: 0}"
    )
    assert not failures(stored), [r.failure for r in failures(stored)]
    assert all(value < 0.05 for value in values(stored, "kl_mean").values())
