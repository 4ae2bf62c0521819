"""Divergence statistics against numpy over full distributions."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.engines.transformers import Transformers
from harness.errors import Nonfinite, Unsupported
from harness.probes import divergence, perplexity
from harness.spec import Answer, Measurement
from tests.intervals import high, low
from tests.tiny_llama import TinySession, corpus_question, llama, nudged, text, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

QUESTION = corpus_question("divergence")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base() -> Any:
    return llama(initializer_range=0.3)  # confident here, unsure there: all buckets are met


CORPUS = f"{text(70)} Ω {text(80, seed=1)}"


def session(tmp_path: Path, model: Any, *, baseline: str | None = "baseline", is_baseline: bool = False) -> TinySession:
    folder = None if baseline is None else tmp_path / baseline
    return TinySession(Transformers(model, tokenizer()), tmp_path, corpus=CORPUS, baseline=folder, is_baseline=is_baseline)


def measured(answer: Answer, metric: str) -> Measurement:
    return next(m for m in answer.measurements if m.metric == metric)


def distributions(model: Any, windows: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(windows)).logits[:, :-1].double()
    return torch.log_softmax(logits, dim=-1).numpy()


def test_a_model_against_itself_has_zero_divergence_and_full_agreement(base: Any, tmp_path: Path) -> None:
    answer = divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    for name in ("kl_mean", "kl_median", "kl_p99_9", "kl_max", "delta_p_mean", "delta_p_rms", "ln_ppl_ratio"):
        found = measured(answer, name)
        assert (found.value, found.definition.endswith("gptq-64 windows")) == (0.0, True)
    assert measured(answer, "kl_mean").low == measured(answer, "kl_mean").high == 0.0
    assert measured(answer, "same_top").value == 1.0
    kept = answer.facts["stored_baseline"]
    assert kept["kind"] == "final hidden states"
    assert kept["float16_logit_bytes"] == answer.facts["tokens"] * 512 * 2
    assert kept["states_bytes"] == (tmp_path / "baseline" / "states.safetensors").stat().st_size


def test_the_noise_floor_is_measured_on_the_baseline_only(base: Any, tmp_path: Path) -> None:
    own = divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    floor = measured(own, "kl_floor")
    assert 0 < floor.value < 1e-6  # float32: rounding only
    assert "one window per forward" in floor.definition
    assert "one window per forward" in own.facts["floor"]
    other = divergence.PROBE.measure(session(tmp_path, nudged(base, 0.2)), QUESTION)
    assert not [m for m in other.measurements if m.metric == "kl_floor"]
    assert low(measured(other, "kl_mean")) > high(floor)


def test_every_statistic_equals_numpy_over_full_distributions(base: Any, tmp_path: Path) -> None:
    cell = nudged(base, 0.3)
    divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    asked = session(tmp_path, cell)
    answer = divergence.PROBE.measure(asked, QUESTION)
    windows = asked.windows(QUESTION)
    p, q = distributions(base, windows), distributions(cell, windows)
    kl = (np.exp(p) * (p - q)).sum(axis=2)
    targets = np.array(windows)[:, 1:, None]
    true_p, true_q = np.take_along_axis(p, targets, 2)[..., 0], np.take_along_axis(q, targets, 2)[..., 0]
    delta = np.exp(true_q) - np.exp(true_p)
    top = np.exp(p.max(axis=2))
    wanted = {
        "kl_mean": kl.mean(),
        "kl_median": np.median(kl),
        "kl_p90": np.quantile(kl, 0.9),
        "kl_p95": np.quantile(kl, 0.95),
        "kl_p99": np.quantile(kl, 0.99),
        "kl_p99_9": np.quantile(kl, 0.999),
        "kl_max": kl.max(),
        "kl_confidence_00_25": kl[top < 0.25].mean(),
        "kl_confidence_25_50": kl[(top >= 0.25) & (top < 0.5)].mean(),
        "kl_confidence_50_75": kl[(top >= 0.5) & (top < 0.75)].mean(),
        "kl_confidence_75_95": kl[(top >= 0.75) & (top < 0.95)].mean(),
        "kl_confidence_95_100": kl[top >= 0.95].mean(),
        "same_top": (p.argmax(axis=2) == q.argmax(axis=2)).mean(),
        "delta_p_mean": delta.mean(),
        "delta_p_rms": np.sqrt((delta**2).mean()),
        "delta_p_p01": np.quantile(delta, 0.01),
        "delta_p_median": np.median(delta),
        "delta_p_p99": np.quantile(delta, 0.99),
        "ln_ppl_ratio": (true_p - true_q).mean(),
    }
    assert kl.mean() > 0.01
    for name, value in wanted.items():
        assert measured(answer, name).value == pytest.approx(value, rel=2e-4, abs=1e-6), name
    assert set(wanted) <= {metric.name for metric in divergence.PROBE.metrics}
    assert sum(answer.facts["tokens_by_confidence"].values()) == kl.size


def test_estimates_lie_within_their_intervals_and_within_what_they_can_be(base: Any, tmp_path: Path) -> None:
    divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    answer = divergence.PROBE.measure(session(tmp_path, nudged(base, 0.3)), QUESTION)
    bounded = [m for m in answer.measurements if m.low is not None and m.high is not None]
    assert len(bounded) > 12
    for found in bounded:
        assert low(found) <= found.value <= high(found), found.metric
        if found.metric.startswith("kl_") or found.metric in ("same_top", "delta_p_rms"):
            assert low(found) >= 0
    assert high(measured(answer, "same_top")) <= 1


def test_the_raw_samples_carry_the_statistics(base: Any, tmp_path: Path) -> None:
    divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    asked = session(tmp_path, nudged(base, 0.3))
    answer = divergence.PROBE.measure(asked, QUESTION)
    arrays = {name: data for name, data in asked.blobs.items() if name.endswith(".npy")}
    blobs = {name: np.load(io.BytesIO(data), allow_pickle=False) for name, data in arrays.items()}
    assert set(blobs) == {"kl.npy", "same_top.npy", "delta_p.npy", "base_top.npy"}
    assert len({blob.shape for blob in blobs.values()}) == 1
    assert blobs["kl.npy"].astype(np.float64).mean() == pytest.approx(measured(answer, "kl_mean").value, rel=1e-6)
    assert blobs["same_top.npy"].mean() == pytest.approx(measured(answer, "same_top").value)
    assert measured(answer, "kl_mean").blob == "kl.npy"


def test_the_tokens_furthest_from_the_baseline_are_kept_with_what_stands_before_them(base: Any, tmp_path: Path) -> None:
    divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    asked = session(tmp_path, nudged(base, 0.05))
    answer = divergence.PROBE.measure(asked, QUESTION)
    worst = json.loads(asked.blobs[str(measured(answer, "kl_max").blob)])["tokens"]
    kl = np.load(io.BytesIO(asked.blobs[str(measured(answer, "kl_mean").blob)]))
    assert [one["kl"] for one in worst] == sorted(kl.ravel().tolist(), reverse=True)[: len(worst)]
    assert len(worst) == divergence.WORST
    assert worst[0]["kl"] == measured(answer, "kl_max").value
    windows = asked.windows(QUESTION)
    for one in worst:
        ids = windows[one["window"]][: one["position"] + 1]
        assert one["kl"] == kl[one["window"], one["position"] - 1]
        assert one["before"] == tokenizer().decode(ids[:-1][-divergence.CONTEXT :])
        assert one["token"] == tokenizer().decode(ids[-1:])
        assert 0 <= one["p"] <= 1 >= one["p_base"] >= 0


def test_perplexity_and_divergence_share_one_pass(base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    asked = session(tmp_path, nudged(base, 0.3))
    passes: list[Any] = []
    score = asked.loaded.score_windows

    def counted(*given: Any) -> Any:
        passes.append(given)
        return score(*given)

    monkeypatch.setattr(asked.loaded, "score_windows", counted)
    first = perplexity.PROBE.measure(asked, corpus_question("perplexity"))
    second = divergence.PROBE.measure(asked, QUESTION)
    assert len(passes) == 1
    alone = TinySession(asked.loaded, tmp_path, corpus=CORPUS)
    question = corpus_question("perplexity")
    base_ppl = measured(perplexity.PROBE.measure(session(tmp_path, base, baseline=None), question), "perplexity")
    cell_ppl = measured(perplexity.PROBE.measure(alone, question), "perplexity")
    assert measured(first, "perplexity").value == pytest.approx(cell_ppl.value, rel=1e-6)
    assert measured(second, "ln_ppl_ratio").value == pytest.approx(np.log(cell_ppl.value / base_ppl.value), abs=1e-5)


def test_asking_for_perplexity_alone_stores_no_baseline(base: Any, tmp_path: Path) -> None:
    perplexity.PROBE.measure(session(tmp_path, base, is_baseline=True), corpus_question("perplexity"))
    assert not (tmp_path / "baseline").exists()


def test_without_a_baseline_there_is_no_divergence(base: Any, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no baseline"):
        divergence.PROBE.measure(session(tmp_path, base, baseline=None), QUESTION)


def test_more_noise_on_the_weights_is_more_divergence(base: Any, tmp_path: Path) -> None:
    divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    found = [divergence.PROBE.measure(session(tmp_path, nudged(base, size)), QUESTION) for size in (0.05, 0.15, 0.45)]
    assert high(measured(found[0], "kl_mean")) < low(measured(found[1], "kl_mean"))
    assert high(measured(found[1], "kl_mean")) < low(measured(found[2], "kl_mean"))
    assert measured(found[0], "same_top").value > measured(found[2], "same_top").value


def test_nan_weights_give_a_typed_failure_and_no_number(base: Any, tmp_path: Path) -> None:
    divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    broken = nudged(base, 0.0)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(Nonfinite, match="broken"):
        divergence.PROBE.measure(session(tmp_path, broken), QUESTION)


def test_tokens_that_are_not_finite_in_the_baseline_are_excluded_counted_and_mark_every_cell(base: Any, tmp_path: Path) -> None:
    broken = llama(initializer_range=0.3, tie_word_embeddings=False)
    rare = tokenizer(bos=False)("Ω")["input_ids"][0]
    with torch.no_grad():
        broken.model.embed_tokens.weight[rare] = float("nan")
    divergence.PROBE.measure(session(tmp_path, broken, is_baseline=True), QUESTION)
    asked = session(tmp_path, nudged(broken, 0.0))
    windows = asked.windows(QUESTION)
    (place,) = [i for i, window in enumerate(windows) if rare in window]
    answer = divergence.PROBE.measure(asked, QUESTION)
    bad = answer.facts["nonfinite_tokens"]
    assert bad in (63 - windows[place].index(rare), 63)
    assert answer.facts["marked"] == "nonfinite"
    assert measured(answer, "kl_mean").value == 0.0  # what is left equals the baseline
    assert measured(answer, "kl_mean").n == len(windows) * 63 - bad
    assert measured(answer, "same_top").value == 1.0


def test_one_perturbed_layer_is_found_and_a_rerun_is_not(base: Any, tmp_path: Path) -> None:
    own = divergence.PROBE.measure(session(tmp_path, base, is_baseline=True), QUESTION)
    again = divergence.PROBE.measure(session(tmp_path, nudged(base, 0.0)), QUESTION)
    perturbed = nudged(base, 0.0)
    with torch.no_grad():
        perturbed.model.layers[1].mlp.down_proj.weight *= 1.01
    changed = divergence.PROBE.measure(session(tmp_path, perturbed), QUESTION)
    floor = measured(own, "kl_floor")
    assert measured(again, "kl_mean").value <= floor.value
    assert low(measured(changed, "kl_mean")) > high(floor)
