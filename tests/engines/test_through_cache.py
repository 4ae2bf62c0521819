"""Keys and values in other types: transformers' caches read back, compared with plain forwards and with one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from harness.child import effect
from harness.engines.base import ThroughCache, through_cache
from harness.engines.transformers import Transformers
from harness.errors import NoEffect, Unsupported
from harness.kv import CachedSplit
from harness.scoring import FastLM, kv_cache
from harness.scoring.cached_lm import CachedLM
from harness.spec import Model, Quantized, Running, Scheme
from tests.engines.plain import plain_logprobs, scaled
from tests.tiny_llama import llama, text, tokenizer, windows

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch", "ignore::FutureWarning"
)
SPLIT = CachedSplit(warm_up=16, step=8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def engine(word: str, model: Any = None) -> Transformers:
    return Transformers(llama() if model is None else model, tokenizer(), kv=word)


def own(word: str, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """KL of a type of keys and values against unquantized ones [windows, tokens]."""
    found = [one.own for one in engine(word).score_cached(rows, SPLIT, None)]
    kl = [one.kl for one in found if one is not None and one.kl is not None]
    assert len(kl) == len(rows)
    return np.stack(kl)


def test_unquantized_keys_and_values_answer_through_the_cache_as_in_one_pass() -> None:
    model, rows = llama(), windows(2, 33)
    found = list(engine("f32", model).score_cached(rows, SPLIT, None))
    assert [len(one.scores.nll) for one in found] == [16, 16]
    assert all(one.own is None for one in found)
    for one, row in zip(found, rows, strict=True):
        np.testing.assert_allclose(one.scores.nll, -plain_logprobs(model, row)[range(16, 32), row[17:]], rtol=1e-4, atol=1e-4)


def test_a_baseline_through_the_cache_is_exactly_nothing_from_itself(tmp_path: Any) -> None:
    rows = windows(3, 33)
    found = engine("")
    facts = found.store_cached(rows, SPLIT, tmp_path / "kept")
    assert facts["float16_logit_bytes"] == 2 * 3 * 16 * facts["vocab_size"]
    again = [one.scores.kl for one in found.score_cached(rows, SPLIT, tmp_path / "kept")]
    assert all(kl is not None and not kl.any() for kl in again)


def test_fewer_bits_cost_more_and_keys_and_values_count_apart() -> None:
    rows = windows(3, 49)
    cost = {word: float(own(word, rows).mean()) for word in ("int8", "int8/int4", "int4", "int3", "int2", "fp8")}
    assert 0 < cost["int8"] < cost["int8/int4"] < cost["int4"] < cost["int3"] < cost["int2"]
    assert cost["int8"] < cost["fp8"] < cost["int2"]


@pytest.mark.slow
def test_quanto_is_another_quantizer_of_the_same_width() -> None:
    rows = windows(2, 49)
    four, other = own("quanto4", rows), own("int4", rows)
    assert 0 < four.mean() < own("quanto2", rows).mean()
    assert not np.array_equal(four, other)


def test_one_pass_does_not_see_the_type_at_all() -> None:
    model, rows = llama(), windows(2, 33)
    plain, blind = (list(engine(word, model).score_windows(rows, None)) for word in ("", "int2"))
    assert all(np.array_equal(one.nll, other.nll) for one, other in zip(plain, blind, strict=True))


def cell(word: str) -> Any:
    from harness.spec import Cell

    origin = Quantized(scheme=Scheme(method="bf16", bits=16))
    return Cell(model=Model(name="m"), origin=origin, running=Running(engine="transformers", kv=word))


def test_a_type_that_is_ignored_fails_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    effect.prove(cell("int8"), engine("int8"))
    effect.prove(cell(""), engine(""))
    real = kv_cache.new_cache
    monkeypatch.setattr(kv_cache, "new_cache", lambda config, word: real(config, ""))
    with pytest.raises(NoEffect, match="setting had no effect: with kv int8, 32 fixed tokens are answered bit for bit"):
        effect.prove(cell("int8"), engine("int8"))


def test_a_quantized_cache_of_transformers_is_neither_timed_nor_weighed() -> None:
    asked = {"prompt_tokens": 8, "new_tokens": 4, "batch": 1, "seed": 0}
    with pytest.raises(Unsupported, match="its memory and speed are not those of the type; its quality is measured"):
        engine("int8").time_generation(**asked)
    with pytest.raises(Unsupported, match="kv int8"):
        engine("int8").run_phase("prefill", **asked)
    assert engine("f32").run_phase("prefill", **asked)["kv_cache_tokens"] == 8


def test_models_without_keys_and_values_are_refused_in_words() -> None:
    mamba = Transformers(scaled("Mamba"), tokenizer(), kv="")
    with pytest.raises(Unsupported, match="keeps a state and no keys and values"):
        next(mamba.score_cached(windows(1, 33), SPLIT, None))
    gemma = Transformers(scaled("Gemma2"), tokenizer(), kv="int8")
    row = [[place % 160 for place in range(33)]]
    with pytest.raises(Unsupported, match="only the keys and values of full attention"):
        next(gemma.score_cached(row, SPLIT, None))


def test_an_engine_that_offers_no_calls_of_one_text_says_so() -> None:
    assert isinstance(engine(""), ThroughCache)
    with pytest.raises(Unsupported, match="gives no scores in several calls"):
        through_cache(object())  # type: ignore[arg-type]


def test_choices_are_scored_from_the_cached_context() -> None:
    model, words = llama(), tokenizer()
    requests = [(text(4, seed=seed), f" {text(1, seed=seed + 50)}") for seed in range(4)]
    found = engine("f32", model).split
    exact, coarse = (_answers(CachedLM(found, word, tokenizer=words), requests) for word in ("f32", "int2"))
    wanted = _answers(FastLM(pretrained=model, tokenizer=words), requests)
    np.testing.assert_allclose(exact, wanted, rtol=1e-3)
    assert not np.allclose(coarse, wanted, rtol=1e-3)


def _answers(lm: Any, requests: Sequence[tuple[str, str]]) -> list[float]:
    from lm_eval.api.instance import Instance

    asked = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in requests]
    return [score for score, _ in lm.loglikelihood(asked)]


def test_whole_texts_and_sampling_are_refused_through_the_cache() -> None:
    lm = CachedLM(engine("").split, "int8", tokenizer=tokenizer())
    with pytest.raises(Unsupported, match="with definition: cached-W"):
        lm.loglikelihood_rolling([])


def test_a_greedy_continuation_reads_the_cache_it_has_made() -> None:
    from harness.scoring.requests import Generation

    model, words = llama(), tokenizer()
    prompt = windows(1, 24)[0]
    lm = CachedLM(engine("", model).split, "f32", tokenizer=words)
    new = lm._generate([prompt], Generation(until=[], sampling={}, most=6, end=None))[0]
    with torch.no_grad():
        wanted = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert new == wanted[0, 24:].tolist()[: len(new)]
