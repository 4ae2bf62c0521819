"""An input that is longer than its model is cut alike in every engine, counted and said. One that fits the model and not the
artifact is refused: cut there and whole elsewhere, equal weights would answer otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from harness.errors import Unsupported
from harness.formats import attention_rules, config_json, openvino_export
from harness.methods import METHODS
from harness.models import find
from tests.right.cases import cell, checkpoint, edit, loaded, quantized
from tests.tiny_llama import VOCAB, llama, text

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch", "ignore::FutureWarning"
)

LONGEST, WINDOW = 256, 64


def mistral(**changes: Any) -> Any:
    torch.manual_seed(0)
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=VOCAB,
            hidden_size=256,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LONGEST,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.08,
            **changes,
        )
    )


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=number) for number, one in enumerate(arguments)]


def scorer(source: Path, folder: Path, method: str, bits: float) -> Any:
    asked = cell(method, bits)
    return loaded(source, quantized(source, folder / method, asked), asked).lm()


SHORT = [("the river", " runs"), ("seven birds", " by the house")]
OVER_THE_WINDOW = [(text(12), " runs"), *SHORT]
OVER_THE_MODEL = [(text(60), " runs"), *SHORT]


def test_what_a_gguf_file_cannot_hold_is_refused_and_the_rest_is_that_of_the_model(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    source = checkpoint(tmp_path / "m", model=mistral(sliding_window=WINDOW), dtype=torch.float32)
    theirs = scorer(source, tmp_path, "gguf", 32)
    ours = scorer(source, tmp_path, "fp32", 32)
    assert ours.max_length == theirs.max_length == LONGEST
    short = instances("loglikelihood", SHORT)
    expected = [value for value, _ in ours.loglikelihood(short)]
    assert [value for value, _ in theirs.loglikelihood(short)] == pytest.approx(expected, abs=1e-2)
    over = instances("loglikelihood", OVER_THE_WINDOW)
    assert len(ours.loglikelihood(over)) == 3
    with pytest.raises(Unsupported, match=rf"does not fit the context of {WINDOW} .* the model itself takes {LONGEST}"):
        theirs.loglikelihood(over)
    longer = instances("generate_until", [(text(12), {"until": ["."], "max_gen_toks": 4})])
    assert len(ours.generate_until(longer)) == 1
    with pytest.raises(Unsupported, match=f"does not fit the context of {WINDOW}"):
        theirs.generate_until(longer)
    with pytest.raises(Unsupported, match=f"does not fit the context of {WINDOW}"):
        theirs.loglikelihood_rolling(instances("loglikelihood_rolling", [(text(12),)]))


@pytest.mark.filterwarnings("ignore")  # torch warns in the middle of tracing, where an error is no warning any more
@pytest.mark.parametrize(("method", "bits"), [("fp32", 32), ("gguf", 32), ("openvino", 16)])
def test_what_is_longer_than_the_model_is_cut_alike_in_every_engine_and_said(method: str, bits: float, tmp_path: Path) -> None:
    for package in {"gguf": ("gguf", "llama_cpp"), "openvino": ("openvino", "nncf")}.get(method, ()):
        pytest.importorskip(package)
    source = checkpoint(tmp_path / "m", model=llama(max_position_embeddings=LONGEST), dtype=torch.float32)
    lm = scorer(source, tmp_path, method, bits)
    assert lm.max_length == LONGEST
    lm.loglikelihood(instances("loglikelihood", SHORT))
    assert not any("cut" in note for note in lm.report()["notes"])
    lm.loglikelihood(instances("loglikelihood", OVER_THE_MODEL))
    lm.generate_until(instances("generate_until", [(text(60), {"until": ["."], "max_gen_toks": 3})]))
    report = lm.report()
    assert (report["longest_input"], report["inputs"], report["inputs_cut"]) == (LONGEST, 6, 2)
    assert any(f"2 of 6 inputs are longer than the {LONGEST} tokens" in note for note in report["notes"])


def test_plans_on_disk_remember_what_was_cut(tmp_path: Path) -> None:
    from harness.scoring import FastLM
    from tests.tiny_llama import tokenizer

    for made in (1, 0):
        lm = FastLM(llama(max_position_embeddings=LONGEST), tokenizer=tokenizer(), plan_folder=tmp_path)
        lm.loglikelihood(instances("loglikelihood", OVER_THE_MODEL))
        report = lm.report()
        assert (report["plans_made"], report["inputs_cut"]) == (made, 1)


# ---- a window that config.json does not name ----


def without_its_window(folder: Path, **changes: Any) -> Path:
    """Mistral's class has a window of 4,096 tokens where config.json names none."""
    source = checkpoint(folder / "m", model=mistral(sliding_window=4096), dtype=torch.float32)
    edit(source / "config.json", sliding_window=None, **changes)
    assert "sliding_window" not in json.loads((source / "config.json").read_text())
    assert transformers.AutoConfig.from_pretrained(source).sliding_window == 4096
    return source


def test_a_plan_refuses_an_export_for_a_window_that_is_a_class_default(tmp_path: Path) -> None:
    source = without_its_window(tmp_path, max_position_embeddings=8192)
    why = METHODS["openvino"].supports(cell("openvino", 16).scheme, find.shape_of(source), "cpu")
    assert why is not None
    assert "sliding_window: 4096 tokens" in why


def test_an_export_itself_refuses_what_the_plan_could_not_see(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    source = without_its_window(tmp_path, max_position_embeddings=8192)
    with pytest.raises(Unsupported, match="sliding_window: 4096 tokens"):
        quantized(source, tmp_path / "artifact", cell("openvino", 16))


def test_a_window_that_no_input_reaches_is_no_obstacle(tmp_path: Path) -> None:
    source = without_its_window(tmp_path)
    assert openvino_export.refusal(attention_rules.complete(config_json.read(source))) is None


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen2", {"use_sliding_window": True, "num_hidden_layers": 30}),
        ("qwen3", {}),
        ("gemma2", {}),
        ("gpt_neo", {}),
        ("llama4_text", {}),
        ("llama", {}),
        ("falcon", {"alibi": True}),
        ("starcoder2", {}),
        ("phi3", {"sliding_window": 2047}),
    ],
)
def test_rules_read_without_transformers_are_those_of_the_loaded_configuration(kind: str, given: dict[str, Any]) -> None:
    theirs = attention_rules.of_loaded(transformers.AutoConfig.for_model(kind, **given))
    ours = attention_rules.of(attention_rules.complete({"model_type": kind, **given}))
    assert ours.windows == theirs.windows
    assert ours.alibi == theirs.alibi
    assert ours.edges == theirs.edges


def test_a_model_type_that_nobody_knows_is_left_as_it_is() -> None:
    for kind in ("no_such_model", "../mistral", ""):
        config = {"model_type": kind, "sliding_window": 7}
        assert attention_rules.complete(config) == config
