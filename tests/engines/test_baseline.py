"""The stored baseline: kept and recomputed exactly, compared as float64 sums over full logits are, refused where it must be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from harness.engines.stored_baseline import divergence
from harness.engines.transformers import Transformers
from harness.errors import BadInput, Unsupported
from harness.scoring.widened import products
from tests.engines.plain import SCALED, engine, joined, plain_logprobs, scaled
from tests.tiny_llama import VOCAB, llama, nudged, windows

# torch warns of its own use of torch.jit when parts of it are first imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

WIDE = 20_000  # a vocabulary that is scored in blocks


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_kl_equals_a_direct_float64_sum_over_random_logits() -> None:
    source = np.random.default_rng(0)
    ours, theirs = source.normal(0, 4, (40, 1000)), source.normal(0, 4, (40, 1000))
    p, q = np.exp(theirs), np.exp(ours)
    p /= p.sum(axis=1, keepdims=True)
    q /= q.sum(axis=1, keepdims=True)
    wanted = (p * np.log(p / q)).sum(axis=1)
    log_p = torch.log_softmax(torch.tensor(theirs, dtype=torch.float32), dim=-1)
    log_q = torch.log_softmax(torch.tensor(ours, dtype=torch.float32), dim=-1)
    np.testing.assert_allclose(divergence(log_p, log_q).numpy(), wanted, rtol=2e-6)
    assert (divergence(log_p, log_p) == 0).all()


def test_kl_of_two_nearly_equal_distributions_is_no_rounding_noise() -> None:
    source = np.random.default_rng(1)
    theirs = source.normal(0, 3, (20, 4000)).astype(np.float32)
    ours = theirs + source.normal(0, 1e-4, theirs.shape).astype(np.float32)
    log_p, log_q = (torch.log_softmax(torch.tensor(logits.astype(np.float64)), dim=-1) for logits in (theirs, ours))
    wanted = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # about 5e-9 nats
    in_float32 = divergence(*(torch.log_softmax(torch.tensor(logits), dim=-1) for logits in (theirs, ours)))
    assert bool((in_float32 > 0).all())
    np.testing.assert_allclose(in_float32.numpy(), wanted.numpy(), rtol=3e-3)


@pytest.mark.parametrize("apart", [10.0, 19.0, 25.0, 85.0, 200.0])
def test_kl_where_the_cell_believes_in_a_token_that_the_baseline_all_but_rules_out(apart: float) -> None:
    theirs, ours = torch.tensor([[0.0, -apart, -1.0]]), torch.tensor([[0.0, 1.0, -1.0]])
    log_p, log_q = torch.log_softmax(theirs.double(), -1), torch.log_softmax(ours.double(), -1)
    wanted = float((log_p.exp() * (log_p - log_q)).sum())
    assert divergence(log_p.float(), log_q.float()).item() == pytest.approx(wanted, rel=2e-6)


def test_a_nan_on_either_side_is_a_nan() -> None:
    good, bad = torch.log_softmax(torch.zeros(1, 3), -1), torch.tensor([[float("nan"), -1.0, -1.0]])
    assert divergence(good, bad).isnan().all()
    assert divergence(bad, good).isnan().all()


def test_tokens_that_the_baseline_rules_out_add_nothing_and_those_the_cell_rules_out_are_infinite() -> None:
    half = torch.tensor([[0.5, 0.5, 0.0]]).log()
    sure = torch.tensor([[1.0, 0.0, 0.0]]).log()
    assert divergence(sure, half).item() == pytest.approx(np.log(2))
    assert divergence(half, sure).item() == float("inf")


@pytest.mark.parametrize("vocab", [VOCAB, WIDE])
def test_comparison_with_a_stored_baseline_equals_float64_sums_over_full_logits(vocab: int, tmp_path: Path) -> None:
    base = llama(vocab_size=vocab)
    cell = nudged(base, 0.4)
    rows = windows(9, 40, vocab=vocab)
    assert (engine(base).split.block is not None) == (vocab == WIDE)
    engine(base).store_baseline(rows, tmp_path / "baseline")
    found = list(engine(cell).score_windows(rows, tmp_path / "baseline"))
    theirs = np.stack([plain_logprobs(base, row) for row in rows])
    ours = np.stack([plain_logprobs(cell, row) for row in rows])
    targets = np.array(rows)[:, 1:, None]
    true_ours, true_theirs = np.take_along_axis(ours, targets, 2)[..., 0], np.take_along_axis(theirs, targets, 2)[..., 0]
    wanted = (np.exp(theirs) * (theirs - ours)).sum(axis=2)
    assert wanted.mean() > 1e-3  # the noise is there to be found
    np.testing.assert_allclose(joined(found, "kl"), wanted, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(joined(found, "same_top"), ours.argmax(axis=2) == theirs.argmax(axis=2))
    np.testing.assert_allclose(joined(found, "base_top"), np.exp(theirs.max(axis=2)), rtol=1e-4)
    np.testing.assert_allclose(joined(found, "delta_p"), np.exp(true_ours) - np.exp(true_theirs), atol=1e-6)
    np.testing.assert_allclose(joined(found, "base_nll"), -true_theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(joined(found, "nll"), -true_ours, rtol=1e-5, atol=1e-5)
    assert joined(found, "same_top").dtype == bool


@pytest.mark.parametrize("vocab", [VOCAB, WIDE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_model_against_itself_has_zero_divergence(dtype: torch.dtype, vocab: int, tmp_path: Path) -> None:
    llama(dtype=dtype, vocab_size=vocab).save_pretrained(tmp_path / "model")

    def loaded() -> Transformers:
        return engine(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype).eval())

    rows = windows(67 if vocab == VOCAB else 9, 64, vocab=vocab)
    loaded().store_baseline(rows, tmp_path / "baseline")
    found = list(loaded().score_windows(rows, tmp_path / "baseline"))
    assert (joined(found, "kl") == 0).all()
    assert joined(found, "same_top").all()
    assert (joined(found, "delta_p") == 0).all()
    np.testing.assert_array_equal(joined(found, "nll"), joined(found, "base_nll"))


@pytest.mark.filterwarnings("ignore:.*falling back to its reference.*")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SCALED)
def test_scaled_capped_and_biased_heads_are_stored_and_recomputed_exactly(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = scaled(name, dtype)
    rows = windows(5, 24, vocab=160)
    meta = engine(model).store_baseline(rows, tmp_path / "baseline")
    assert meta["kind"] == "final hidden states"
    found = list(engine(model).score_windows(rows, tmp_path / "baseline"))
    assert (joined(found, "kl") == 0).all()
    assert joined(found, "same_top").all()
    if dtype == torch.float32:
        wanted = np.stack([-plain_logprobs(model, row)[range(23), row[1:]] for row in rows])
        np.testing.assert_allclose(joined(found, "nll"), wanted, rtol=1e-4, atol=1e-4)


def test_a_head_that_is_no_matrix_is_kept_as_logits_and_labelled_so(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=False)
    linear = model.lm_head

    class Bent(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.sin(linear(hidden)) * 3

    model.lm_head = Bent()
    rows = windows(5, 24)
    meta = engine(model).store_baseline(rows, tmp_path / "baseline")
    assert meta["kind"] == "logits"
    assert meta["head"] is None
    assert (joined(list(engine(model).score_windows(rows, tmp_path / "baseline")), "kl") == 0).all()


def test_the_store_is_as_small_as_hidden_states_are_and_says_both_sizes(tmp_path: Path) -> None:
    model = llama(dtype=torch.bfloat16, vocab_size=40_000)
    meta = engine(model).store_baseline(windows(6, 100), tmp_path / "baseline")
    assert meta["states_bytes"] == (tmp_path / "baseline" / "states.safetensors").stat().st_size
    assert meta["head_bytes"] == (tmp_path / "baseline" / "head.safetensors").stat().st_size
    assert meta["float16_logit_bytes"] == 6 * 99 * 40_000 * 2
    assert 0 < meta["states_bytes"] - 6 * 99 * 256 * 2 < 1024  # the states and a header
    assert meta["times_smaller_than_logits"] > 150
    assert json.loads((tmp_path / "baseline" / "baseline.json").read_text()) == meta


@pytest.mark.parametrize(
    ("vocab", "hidden"), [(151_936, 1024), (128_256, 2048), (49_152, 576)], ids=["Qwen3", "Llama 3.2", "SmolLM2"]
)
def test_at_vocabulary_and_width_of_real_models_the_store_is_at_least_fifty_times_smaller_than_logits(
    tmp_path: Path, vocab: int, hidden: int
) -> None:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    with torch.device("meta"):
        model = llama(
            dtype=torch.bfloat16, vocab_size=vocab, hidden_size=hidden, intermediate_size=32, num_hidden_layers=1, **heads
        )
    model = model.to_empty(device="cpu")
    for weight in model.parameters():
        torch.nn.init.constant_(weight, 0.01)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    rows = windows(2, 65)
    meta = engine(model).store_baseline(rows, tmp_path / "baseline")
    assert meta["float16_logit_bytes"] == 2 * 64 * vocab * 2
    assert meta["float16_logit_bytes"] >= 50 * (tmp_path / "baseline" / "states.safetensors").stat().st_size
    assert meta["times_smaller_than_logits"] >= 50


def test_the_states_file_is_ordinary_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = llama(dtype=torch.bfloat16)
    rows = windows(4, 30)
    engine(model).store_baseline(rows, tmp_path / "baseline")
    states = load_file(tmp_path / "baseline" / "states.safetensors")["states"]
    with torch.no_grad(), products(torch.device("cpu"), torch.bfloat16):
        wanted = model.model(input_ids=torch.tensor(rows)[:, :-1]).last_hidden_state
    assert states.dtype == torch.bfloat16
    torch.testing.assert_close(states, wanted, rtol=0, atol=0)


def test_another_vocabulary_is_refused_and_never_compared(tmp_path: Path) -> None:
    rows = windows(3, 20)
    engine(llama()).store_baseline(rows, tmp_path / "baseline")
    with pytest.raises(Unsupported, match=f"vocabulary of {VOCAB} logits, this cell of 640"):
        list(engine(llama(vocab_size=640)).score_windows(rows, tmp_path / "baseline"))


def test_other_tokens_are_refused_and_never_compared(tmp_path: Path) -> None:
    found = engine(llama())
    found.store_baseline(windows(3, 20), tmp_path / "baseline")
    with pytest.raises(Unsupported, match="other tokens"):
        list(found.score_windows(windows(3, 20, seed=1), tmp_path / "baseline"))


def test_a_missing_baseline_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="run the baseline"):
        list(engine(llama()).score_windows(windows(3, 20), tmp_path / "nothing"))


def test_windows_of_unequal_length_make_no_reference(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="one length"):
        engine(llama()).store_baseline([*windows(1, 20), *windows(1, 21)], tmp_path / "baseline")


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = engine(llama())
    body, calls = found.split.body, []

    def failing(ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        if len(calls) > 2:
            raise KeyboardInterrupt
        return body(ids)

    monkeypatch.setattr(found.split, "body", failing)
    with pytest.raises(KeyboardInterrupt):
        found.store_baseline(windows(100, 64), tmp_path / "baseline")
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_who_writes_second_leaves_the_first_store_as_it_is(tmp_path: Path) -> None:
    found = engine(llama())
    rows = windows(3, 20)
    found.store_baseline(rows, tmp_path / "baseline")
    before = (tmp_path / "baseline" / "states.safetensors").stat()
    found.store_baseline(rows, tmp_path / "baseline")
    assert (tmp_path / "baseline" / "states.safetensors").stat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["baseline"]
