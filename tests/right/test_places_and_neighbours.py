"""An input's answer is the one that it gets alone, whatever it is packed or batched with: on models whose rules go by place in a
row, by distance, by the longest input of a batch, or by a state that is carried along. Each is asked in the scorer that runs use,
and alone in plain transformers."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import transformers

from harness.engines.transformers import Transformers
from harness.formats import attention_rules
from harness.scoring import FastLM
from harness.scoring.requests import Generation
from tests.tiny_llama import VOCAB, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

WINDOW = 64
LAYERS = 4

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": WINDOW, "factor": 8.0}
HALF = 8
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "no window": ("Llama", SIZES),
    "local attention by place in the row": (
        "GPTNeo",
        {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_layers": LAYERS, "num_heads": 4}
        | {"attention_types": [[["global", "local"], LAYERS // 2]], "window_size": WINDOW, "max_position_embeddings": 512, **ENDS}
        | {"attention_dropout": 0.0, "embed_dropout": 0.0, "resid_dropout": 0.0},
    ),
    "sliding window": ("Mistral", {**SIZES, "sliding_window": WINDOW}),
    "sliding window in every second layer": ("Gemma2", {**SIZES, "head_dim": 16, "sliding_window": WINDOW}),
    "sliding window in five of six layers": (
        "Gemma3",
        {**SIZES, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": WINDOW},
    ),
    "sliding window and no positions elsewhere": ("Cohere2", {**SIZES, "sliding_window": WINDOW}),
    "sliding window with sinks": (
        "GptOss",
        {**SIZES, "head_dim": 16, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "chunked attention": (
        "Llama4",
        {**SIZES, "head_dim": 16, "intermediate_size_mlp": 96, "num_local_experts": 2, "attention_chunk_size": WINDOW}
        | {"no_rope_layers": [1, 1, 1, 0], "attn_temperature_tuning": True, "floor_scale": WINDOW, "pad_token_id": 0},
    ),
    "linear biases of Bloom": ("Bloom", {"vocab_size": VOCAB, "hidden_size": 64, "n_layer": 2, "n_head": 4, **ENDS}),
    "linear biases of MPT": (
        "Mpt",
        {"vocab_size": VOCAB, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 512, **ENDS},
    ),
    "linear biases of Falcon": (
        "Falcon",
        {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True, **ENDS},
    ),
    "learned positions": ("GPT2", {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, **ENDS}),
    "positions counted on the mask": (
        "OPT",
        {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64},
    ),
    "positions by the longest of a batch": (
        "Phi3",
        {**SIZES, "original_max_position_embeddings": WINDOW, "sliding_window": None}
        | {"rope_parameters": {**ROPE, "rope_type": "longrope", "short_factor": [1.0] * HALF, "long_factor": [8.0] * HALF}},
    ),
    "positions by the longest input so far": (
        "Llama",
        {**SIZES, "max_position_embeddings": WINDOW, "rope_parameters": {**ROPE, "rope_type": "dynamic", "rope_theta": 100.0}},
    ),
    "a mask that goes by the longest of a batch": (
        "Doge",
        {**SIZES, "num_hidden_layers": 2, "keep_window_size": WINDOW},
    ),
    "recurrent state beside attention": (
        "Jamba",
        {**SIZES, "num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8}
        | {"num_experts_per_tok": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    ),
    "recurrent state": ("Mamba", {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, **ENDS}),
    "recurrent state that is wrong in a batch": (
        "Rwkv",
        {"vocab_size": VOCAB, "hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": LAYERS, "context_length": 512}
        | {"rescale_every": 0, **ENDS},
    ),
}


def model(name: str) -> Any:
    """Random weights large enough that every token of an input moves the answer."""
    kind, settings = MODELS[name]
    config = (getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config"))(**settings)
    torch.manual_seed(0)
    built = transformers.AutoModelForCausalLM.from_config(config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.15)
    built.tie_weights()
    return built


def pairs() -> list[tuple[list[int], list[int]]]:
    """Questions with choices below few prefixes: short inputs that fill rows far beyond the window, and inputs beyond it."""
    draw = random.Random(3)

    def ids(count: int) -> list[int]:
        return [draw.randrange(3, VOCAB) for _ in range(count)]

    asked = []
    for length in (12, 30, 90, 140):
        prefix = ids(length)
        for _ in range(7):
            question = prefix + ids(draw.randrange(2, 8))
            asked += [(question, ids(draw.randrange(1, 4))) for _ in range(4)]
    return asked + [(ids(length), ids(1)) for length in range(52, 80, 4)]


def alone(of: Any, context: list[int], continuation: list[int]) -> float:
    """Log-probability of the continuation, the input being all that a new copy of the model has seen."""
    with torch.no_grad():
        logits = copy.deepcopy(of)(input_ids=torch.tensor([[*context, *continuation][:-1]]), use_cache=False).logits
    scores = torch.log_softmax(logits[0].float(), -1)[len(context) - 1 :]
    return float(scores.gather(1, torch.tensor(continuation)[:, None]).sum())


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_and_batched_input_is_answered_as_it_is_alone(name: str) -> None:
    built, asked = model(name), pairs()
    expected = [alone(built, *pair) for pair in asked]
    lm = FastLM(built, tokenizer=tokenizer(), max_length=500)
    found = [value for value, _ in lm._token_answers(asked)]
    worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    assert worst < 2e-3, (worst, lm.report()["notes"])
    # And once more, after all others.
    again = [value for value, _ in lm._token_answers(asked[:5])]
    assert max(abs(a - b) for a, b in zip(again, expected[:5], strict=True)) < 2e-3


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_among_others_goes_on_as_it_does_alone(name: str) -> None:
    built, draw = model(name), random.Random(4)
    prefix = [draw.randrange(3, VOCAB) for _ in range(40)]
    prompts = [[*prefix, *(draw.randrange(3, VOCAB) for _ in range(count))] for count in (3, 3, 3, 9, 9, 20, 30, 30)]
    most = 6
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = copy.deepcopy(built).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=0
        )
        expected.append(out[0, len(prompt) :].tolist())
    lm = FastLM(built, tokenizer=tokenizer(), max_length=500)
    asked = Generation(until=[], most=most, end=None, sampling={"do_sample": False})
    assert lm._generate(prompts, asked) == expected, lm.report()["notes"]
    assert len({tuple(new) for new in expected}) > 3


def test_a_rule_that_the_configuration_does_not_name_is_seen_on_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-Neo's window under a name that nobody knows: the canary is shorter than it, the data is not."""
    monkeypatch.setattr(attention_rules, "_windows", lambda *_: [])
    built, asked = model("local attention by place in the row"), pairs()
    lm = FastLM(built, tokenizer=tokenizer(), max_length=500)
    assert lm.share_limit > 500
    found = [value for value, _ in lm._token_answers(asked)]
    assert not lm.share
    assert any("packed hidden states differ" in note for note in lm.notes)
    expected = [alone(built, *pair) for pair in asked]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_by_place_is_seen_before_rows_reach_beyond_it(dtype: torch.dtype) -> None:
    """No input is longer than the window, but the rows that they are packed in are."""
    built = model("local attention by place in the row").to(dtype)
    short = [pair for pair in pairs() if len(pair[0]) + len(pair[1]) <= WINDOW]
    lm = FastLM(built, tokenizer=tokenizer(), max_length=500)
    assert lm.share
    lm._token_answers(short[:4])
    assert lm.share
    lm._token_answers(short)
    assert not lm.share
    assert any(f"more than {WINDOW} places from its prefix" in note for note in lm.notes)


def test_what_a_batch_changes_is_said() -> None:
    rwkv = FastLM(model("recurrent state that is wrong in a batch"), tokenizer=tokenizer(), max_length=500)
    asked = Generation(until=[], most=3, end=None, sampling={"do_sample": False})
    rwkv._generate([[5, 6, 7], [8, 9, 10]], asked)
    assert any("generation one prompt at a time" in note for note in rwkv.report()["notes"])  # type: ignore[attr-defined]
    doge = FastLM(model("a mask that goes by the longest of a batch"), tokenizer=tokenizer(), max_length=500)
    doge._token_answers(pairs())
    assert any("one input at a time" in note for note in doge.report()["notes"])  # type: ignore[attr-defined]
    assert not doge.report()["batches"]


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_takes_the_steps_that_are_timed_and_says_what_it_holds(name: str) -> None:
    """A state is kept as keys and values, as `cache_params` or, RWKV's, as `state`; facts are read after a first step."""
    engine = Transformers(model(name), tokenizer())
    first, cache = engine._step(engine._prompt(4, 1, 0), None)
    second, _ = engine._step(first, cache)
    assert first.shape == second.shape == (1, 1)
    assert engine.facts().resident_weight_bytes > 0
