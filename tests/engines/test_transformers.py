"""The transformers engine against plain forwards of the same models, summed in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_llama import VOCAB, llama, nudged, tokenizer, windows

from harness.engines import ENGINES
from harness.engines.base import Loaded, Rerun, WindowScores
from harness.engines.transformers import Transformers, bytes_of, divergence
from harness.errors import BadInput, Unsupported
from harness.methods.base import LayerKernel
from harness.scoring.widened import products

# torch warns of its own use of torch.jit when parts of it are first imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

SCALED: dict[str, Any] = {
    "Gemma2": {"final_logit_softcapping": 5.0, "head_dim": 16, "sliding_window": 512},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.25},
    "Phi": {},  # a head with a bias
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 32},  # a projection between body and head
    "Mamba": {},  # no attention, no key-value cache
}


def scaled(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    common = {"vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.2}
    attention = {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = getattr(transformers, f"{name}Config")(**common, **({} if name == "Mamba" else attention), **SCALED[name])
    return getattr(transformers, f"{name}ForCausalLM")(config).to(dtype).eval()


def engine(model: Any) -> Transformers:
    return Transformers(model, tokenizer())


def plain_logprobs(model: Any, window: list[int]) -> np.ndarray:
    """Log-probabilities [T-1, V] in float64 from one plain forward of one window."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([window])).logits[0, :-1].double()
    return torch.log_softmax(logits, dim=-1).numpy()


def joined(scores: list[WindowScores], name: str) -> np.ndarray:
    return np.stack([getattr(score, name) for score in scores])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_table_has_the_engine_and_it_keeps_the_protocol() -> None:
    assert ENGINES["transformers"].modules == ("torch", "transformers")
    found = engine(llama())
    protocol = {name for name in vars(Loaded) if not name.startswith("_")}
    assert protocol
    assert all(hasattr(found, name) for name in protocol)
    assert isinstance(found, Rerun)


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


def test_tokens_that_the_baseline_rules_out_add_nothing_and_those_the_cell_rules_out_are_infinite() -> None:
    half = torch.tensor([[0.5, 0.5, 0.0]]).log()
    sure = torch.tensor([[1.0, 0.0, 0.0]]).log()
    assert divergence(sure, half).item() == pytest.approx(np.log(2))
    assert divergence(half, sure).item() == float("inf")


def test_windows_score_as_a_plain_loop_does() -> None:
    model = llama()
    rows = windows(70, 48)  # two batches and a rest
    found = joined(list(engine(model).score_windows(rows, None)), "nll")
    wanted = np.stack([-plain_logprobs(model, row)[range(47), row[1:]] for row in rows])
    assert found.dtype == np.float32
    assert found.shape == (70, 47)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_windows_of_different_lengths_come_back_in_order() -> None:
    model = llama()
    rows = [*windows(3, 20), *windows(2, 33, seed=5), *windows(1, 2, seed=6), *windows(2, 20, seed=7)]
    found = list(engine(model).score_windows(rows, None))
    assert [len(score.nll) for score in found] == [19, 19, 19, 32, 32, 1, 19, 19]
    for score, row in zip(found, rows, strict=True):
        np.testing.assert_allclose(score.nll, -plain_logprobs(model, row)[range(len(row) - 1), row[1:]], rtol=1e-5, atol=1e-5)


WIDE = 20_000  # a vocabulary that is scored in blocks


@pytest.mark.parametrize("vocab", [VOCAB, WIDE])
def test_comparison_with_a_stored_baseline_equals_float64_sums_over_full_logits(vocab: int, tmp_path: Path) -> None:
    base = llama(vocab_size=vocab)
    cell = nudged(base, 0.4)
    rows = windows(9, 40, vocab=vocab)
    assert (engine(base).split.block is not None) == (vocab == WIDE)
    engine(base).write_reference(rows, tmp_path / "reference")
    found = list(engine(cell).score_windows(rows, tmp_path / "reference"))
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
    loaded().write_reference(rows, tmp_path / "reference")
    found = list(loaded().score_windows(rows, tmp_path / "reference"))
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
    meta = engine(model).write_reference(rows, tmp_path / "reference")
    assert meta["kind"] == "final hidden states"
    found = list(engine(model).score_windows(rows, tmp_path / "reference"))
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
    meta = engine(model).write_reference(rows, tmp_path / "reference")
    assert meta["kind"] == "logits"
    assert meta["head"] is None
    assert (joined(list(engine(model).score_windows(rows, tmp_path / "reference")), "kl") == 0).all()


def test_the_store_is_as_small_as_hidden_states_are_and_says_both_sizes(tmp_path: Path) -> None:
    model = llama(dtype=torch.bfloat16, vocab_size=40_000)
    meta = engine(model).write_reference(windows(6, 100), tmp_path / "reference")
    assert meta["states_bytes"] == (tmp_path / "reference" / "states.safetensors").stat().st_size
    assert meta["head_bytes"] == (tmp_path / "reference" / "head.safetensors").stat().st_size
    assert meta["float16_logit_bytes"] == 6 * 99 * 40_000 * 2
    assert 0 < meta["states_bytes"] - 6 * 99 * 256 * 2 < 1024  # the states and a header
    assert meta["times_smaller_than_logits"] > 150
    assert json.loads((tmp_path / "reference" / "reference.json").read_text()) == meta


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
    meta = engine(model).write_reference(rows, tmp_path / "reference")
    print(meta["states_bytes"], meta["float16_logit_bytes"], meta["times_smaller_than_logits"])
    assert meta["float16_logit_bytes"] == 2 * 64 * vocab * 2
    assert meta["float16_logit_bytes"] >= 50 * (tmp_path / "reference" / "states.safetensors").stat().st_size
    assert meta["times_smaller_than_logits"] >= 50


def test_the_states_file_is_ordinary_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = llama(dtype=torch.bfloat16)
    rows = windows(4, 30)
    engine(model).write_reference(rows, tmp_path / "reference")
    states = load_file(tmp_path / "reference" / "states.safetensors")["states"]
    with torch.no_grad(), products(torch.device("cpu"), torch.bfloat16):
        wanted = model.model(input_ids=torch.tensor(rows)[:, :-1]).last_hidden_state
    assert states.dtype == torch.bfloat16
    torch.testing.assert_close(states, wanted, rtol=0, atol=0)


def test_another_vocabulary_is_refused_and_never_compared(tmp_path: Path) -> None:
    rows = windows(3, 20)
    engine(llama()).write_reference(rows, tmp_path / "reference")
    with pytest.raises(Unsupported, match=f"vocabulary of {VOCAB} logits, this cell of 640"):
        list(engine(llama(vocab_size=640)).score_windows(rows, tmp_path / "reference"))


def test_other_tokens_are_refused_and_never_compared(tmp_path: Path) -> None:
    found = engine(llama())
    found.write_reference(windows(3, 20), tmp_path / "reference")
    with pytest.raises(Unsupported, match="other tokens"):
        list(found.score_windows(windows(3, 20, seed=1), tmp_path / "reference"))


def test_a_missing_baseline_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="run the baseline"):
        list(engine(llama()).score_windows(windows(3, 20), tmp_path / "nothing"))


def test_windows_of_unequal_length_make_no_reference(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="one length"):
        engine(llama()).write_reference([*windows(1, 20), *windows(1, 21)], tmp_path / "reference")


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
        found.write_reference(windows(100, 64), tmp_path / "reference")
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_who_writes_second_leaves_the_first_store_as_it_is(tmp_path: Path) -> None:
    found = engine(llama())
    rows = windows(3, 20)
    found.write_reference(rows, tmp_path / "reference")
    before = (tmp_path / "reference" / "states.safetensors").stat()
    found.write_reference(rows, tmp_path / "reference")
    assert (tmp_path / "reference" / "states.safetensors").stat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


def test_running_out_of_memory_halves_the_batch_and_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = engine(llama())
    rows = windows(40, 64)
    wanted = joined(list(found.score_windows(rows, None)), "nll")
    body, sizes = found.split.body, []

    def greedy(ids: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        if len(ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(ids)

    monkeypatch.setattr(found.split, "body", greedy)
    np.testing.assert_allclose(joined(list(found.score_windows(rows, None)), "nll"), wanted, rtol=1e-5, atol=1e-5)
    assert sizes[:4] == [32, 16, 8, 4]
    assert set(sizes[4:]) == {4}


def test_a_window_that_alone_runs_out_of_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = engine(llama())

    def never(ids: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(found.split, "body", never)
    with pytest.raises(torch.OutOfMemoryError):
        list(found.score_windows(windows(3, 20), None))


def test_the_head_sees_one_chunk_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = engine(llama())
    rows = windows(4, 50)
    found.write_reference(rows, tmp_path / "reference")
    wanted = joined(list(found.score_windows(rows, tmp_path / "reference")), "nll")
    head, sizes = found.split.head, []

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(hidden.shape))
        return head(hidden)

    monkeypatch.setattr(found.split, "head", watched)
    monkeypatch.setattr(found.split, "chunk_rows", lambda: 7)
    np.testing.assert_allclose(joined(list(found.score_windows(rows, None)), "nll"), wanted, rtol=1e-5, atol=1e-5)
    assert sum(shape[0] for shape in sizes) == 4 * 49
    assert max(shape[0] for shape in sizes) == 7


def test_the_noise_floor_runs_the_same_weights_otherwise_and_puts_the_model_back(tmp_path: Path) -> None:
    model = llama(dtype=torch.bfloat16)
    found = engine(model)
    rows = windows(40, 64)
    found.write_reference(rows, tmp_path / "reference")
    before = model.config._attn_implementation
    name, scores = found.rerun_windows(rows, tmp_path / "reference")
    floor = joined(list(scores), "kl").mean()
    cell = joined(list(engine(nudged(model, 0.4)).score_windows(rows, tmp_path / "reference")), "kl").mean()
    assert "one window per forward" in name
    assert 0 < floor < cell / 10  # rounding is seen, and is far below what noise on the weights does
    assert model.config._attn_implementation == before


def test_generation_is_greedy_and_exactly_as_long_as_asked() -> None:
    model = llama()
    found = engine(model)
    timing = found.time_generation(prompt_tokens=12, new_tokens=5, batch=3, seed=4)
    assert timing.ttft_seconds > 0
    assert len(timing.step_seconds) == 4
    assert min(timing.step_seconds) > 0
    prompt = found._prompt(12, 3, 4)
    token, cache = found._step(prompt, None)
    mine = [token]
    for _ in range(4):
        token, cache = found._step(token, cache)
        mine.append(token)
    wanted = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(torch.cat(mine, dim=1), wanted[:, 12:])


def test_the_cache_is_as_large_as_its_shape_says() -> None:
    found = engine(llama())
    prefill = found.run_phase("prefill", prompt_tokens=20, new_tokens=6, batch=2, seed=0)
    decode = found.run_phase("decode", prompt_tokens=20, new_tokens=6, batch=2, seed=0)
    per_token = 2 * 2 * 2 * 64 * 4 * 2  # layers, key and value, heads, head dimension, float32, batch
    assert prefill["kv_cache_bytes"] == 20 * per_token
    assert decode["kv_cache_bytes"] == 25 * per_token
    with pytest.raises(ValueError, match="unknown phase"):
        found.run_phase("load", prompt_tokens=1, new_tokens=1, batch=1, seed=0)


def test_what_is_timed_or_weighed_never_runs_the_canary() -> None:
    found = engine(llama())
    found.facts()
    found.run_phase("decode", prompt_tokens=4, new_tokens=2, batch=1, seed=0)
    found.time_generation(prompt_tokens=4, new_tokens=2, batch=1, seed=0)
    assert found._split is None


def test_windows_longer_than_the_context_are_unsupported() -> None:
    with pytest.raises(Unsupported, match="context of 256; choose a smaller `window`"):
        list(engine(llama()).score_windows(windows(1, 258), None))
    assert len(list(engine(llama()).score_windows(windows(1, 257), None))) == 1


@pytest.mark.filterwarnings("ignore:.*falling back to its reference.*")
def test_recurrent_models_generate_too() -> None:
    timing = engine(scaled("Mamba")).time_generation(prompt_tokens=6, new_tokens=3, batch=1, seed=0)
    assert len(timing.step_seconds) == 2


def test_resident_weights_are_counted_once_per_storage() -> None:
    tied = llama()
    parameters = sum(p.numel() * 4 for p in tied.parameters())  # tied ones once
    buffers = sum(b.numel() * b.element_size() for b in tied.buffers())
    assert bytes_of(tied) - parameters == pytest.approx(buffers, abs=1024)
    untied = llama(tie_word_embeddings=False)
    assert bytes_of(untied) - bytes_of(tied) == VOCAB * 256 * 4


def test_tensors_in_plain_attributes_are_counted_too() -> None:
    module = torch.nn.Linear(4, 4, bias=False)
    module.meta = {"scale": torch.zeros(10), "nested": [torch.zeros(6)], "view": module.weight[0]}
    assert bytes_of(module) == (16 + 10 + 6) * 4


def test_a_cell_with_dequantized_layers_is_simulated() -> None:
    def kernels(dequantized: bool) -> list[LayerKernel]:
        return [LayerKernel(layer="a", module="Linear", op="mm", stored_dtype="bfloat16", dequantized=dequantized)]

    model = llama()
    facts = Transformers(model, tokenizer(), kernels=lambda: kernels(True)).facts()
    assert facts.simulated
    assert facts.engine == "transformers"
    assert facts.device == "cpu"
    assert facts.resident_weight_bytes == bytes_of(model)
    assert not Transformers(model, tokenizer(), kernels=lambda: kernels(False)).facts().simulated
