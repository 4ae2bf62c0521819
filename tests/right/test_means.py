"""A mean is over the same tokens in every cell of a model, or there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.engines.transformers import Transformers
from harness.errors import Nonfinite
from harness.probes import divergence, perplexity
from harness.spec import Answer
from tests.tiny_llama import TinySession, corpus_question, llama, nudged, text, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CORPUS = f"{text(60)} Ω {text(60, seed=1)}"
DEFINITIONS = ("gptq-64", "llamacpp-64", "rolling-word")


def poisoned(model: Any, sign: str = "Ω") -> Any:
    """A copy that answers NaN from the first time it has seen a rare character in a window."""
    other = nudged(model, 0.0)
    with torch.no_grad():
        other.model.embed_tokens.weight[tokenizer(bos=False)(sign)["input_ids"][0]] = float("nan")
    return other


def overflowing(model: Any) -> Any:
    """A copy that answers NaN to almost everything."""
    return poisoned(model, ".")


def session(tmp_path: Path, model: Any, *, is_baseline: bool = False, reference: bool = True) -> TinySession:
    folder = tmp_path / "baseline" if reference else None
    return TinySession(Transformers(model, tokenizer()), tmp_path, corpus=CORPUS, baseline=folder, is_baseline=is_baseline)


def n_of(answer: Answer, metric: str) -> int | None:
    return next(m.n for m in answer.measurements if m.metric == metric)


@pytest.fixture
def model() -> Any:
    return llama(tie_word_embeddings=False)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("reference", [True, False], ids=["after divergence", "alone"])
def test_a_cell_that_is_not_finite_where_the_baseline_is_gets_no_perplexity(
    reference: bool, definition: str, model: Any, tmp_path: Path
) -> None:
    question = corpus_question("perplexity", definition=definition)
    if reference:
        divergence.PROBE.measure(session(tmp_path, model, is_baseline=True), question)
    with pytest.raises(Nonfinite, match=r"\d+ of \d+ .*tokens of 'text' are NaN or infinite"):
        perplexity.PROBE.measure(session(tmp_path, poisoned(model), reference=reference), question)
    with pytest.raises(Nonfinite, match="the artifact is broken"):
        perplexity.PROBE.measure(session(tmp_path, overflowing(model), reference=reference), question)


def test_nor_a_divergence(model: Any, tmp_path: Path) -> None:
    question = corpus_question("divergence")
    divergence.PROBE.measure(session(tmp_path, model, is_baseline=True), question)
    with pytest.raises(Nonfinite, match="no mean over the others is given"):
        divergence.PROBE.measure(session(tmp_path, poisoned(model)), question)


def test_tokens_that_the_baseline_lacks_are_left_out_of_every_cell(model: Any, tmp_path: Path) -> None:
    """A cell that answers them all the same is measured on what both answer."""
    question = corpus_question("perplexity")
    baseline = session(tmp_path, poisoned(model), is_baseline=True)
    divergence.PROBE.measure(baseline, question)
    own = perplexity.PROBE.measure(baseline, question)
    lost = next(m.value for m in own.measurements if m.metric == "nonfinite_tokens")
    assert lost > 0
    for other in (model, poisoned(model)):
        cell = session(tmp_path, other)
        answer = perplexity.PROBE.measure(cell, question)
        assert {n_of(answer, "perplexity"), n_of(divergence.PROBE.measure(cell, question), "kl_mean")} == {
            n_of(own, "perplexity")
        }
        assert answer.facts["marked"] == "nonfinite"
        values = {m.metric: m.value for m in answer.measurements}
        assert values["nonfinite_tokens"] == lost
        assert np.isfinite(values["perplexity"])


def test_a_rolling_sum_that_lacks_a_token_is_none_for_the_baseline_too(model: Any, tmp_path: Path) -> None:
    question = corpus_question("perplexity", definition="rolling-word")
    with pytest.raises(Nonfinite, match="so the text has no sum"):
        perplexity.PROBE.measure(session(tmp_path, poisoned(model), is_baseline=True), question)
