"""The transformers engine against plain forwards of the same models, summed in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.artifact import LayerKernel
from harness.engines import ENGINES, moments
from harness.engines.base import Loaded, Rerun
from harness.engines.held_bytes import bytes_of
from harness.engines.transformers import Transformers
from harness.errors import Unsupported
from tests.engines.plain import engine, joined, plain_logprobs, scaled
from tests.tiny_llama import VOCAB, llama, nudged, tokenizer, windows

# torch warns of its own use of torch.jit when parts of it are first imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


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
    found.store_baseline(rows, tmp_path / "baseline")
    wanted = joined(list(found.score_windows(rows, tmp_path / "baseline")), "nll")
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
    found.store_baseline(rows, tmp_path / "baseline")
    before = model.config._attn_implementation
    name, scores = found.rerun_windows(rows, tmp_path / "baseline")
    floor = joined(list(scores), "kl").mean()
    cell = joined(list(engine(nudged(model, 0.4)).score_windows(rows, tmp_path / "baseline")), "kl").mean()
    assert "one window per forward" in name
    assert 0 < floor < cell / 10  # rounding is seen, and is far below what noise on the weights does
    assert model.config._attn_implementation == before


def test_generation_is_greedy_and_exactly_as_long_as_asked() -> None:
    model = llama()
    found = engine(model)
    told: list[str] = []
    with moments.heard(told.append):
        timing = found.time_generation(prompt_tokens=12, new_tokens=5, batch=3, seed=4)
    assert told == ["begin", "first token", "end"]
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
    module.__dict__["meta"] = {"scale": torch.zeros(10), "nested": [torch.zeros(6)], "view": module.weight[0]}
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
