"""Perplexity against loops written out here, and lm-eval's own wikitext path."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.engines.transformers import Transformers
from harness.errors import BadInput, Nonfinite
from harness.metrics import METRICS
from harness.probes import PROBES
from harness.probes.perplexity import PROBE
from harness.probes.requests import CorpusRequest, ProbeRequests
from harness.spec import Answer, Measurement
from tests.intervals import high, low
from tests.tiny_llama import TinySession, corpus_question, llama, text, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def session(tmp_path: Path, model: Any = None, corpus: str | None = None, bos: bool = True) -> TinySession:
    engine = Transformers(llama() if model is None else model, tokenizer(bos))
    return TinySession(engine, tmp_path, corpus=text(120) if corpus is None else corpus)


def measured(answer: Answer, metric: str) -> Measurement:
    return next(m for m in answer.measurements if m.metric == metric)


def mean_nll(model: Any, windows: list[list[int]], first: int = 0) -> float:
    """One window at a time, targets from `first` on, float64."""
    values = []
    for window in windows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window])).logits[0].double()
        logprobs = torch.log_softmax(logits, dim=-1)
        values += [-float(logprobs[i, window[i + 1]]) for i in range(first, len(window) - 1)]
    return sum(values) / len(values)


def test_every_metric_name_is_unique_and_every_probe_is_in_the_table() -> None:
    assert {"quantize", "size", "perplexity", "divergence", "tasks", "memory", "latency"} <= set(PROBES)
    assert len(METRICS) == sum(len(probe.metrics) for probe in PROBES.values())
    assert all(name == probe.name for name, probe in PROBES.items())


def test_a_corpus_of_the_suite_becomes_one_question() -> None:
    corpus = CorpusRequest(name="a", window=128, tokens=5000, digest="d", definition="gptq-128")
    (question,) = PROBE.questions(ProbeRequests(corpora=(corpus,)))
    assert question.subject == "a"
    assert question.options == {"definition": "gptq-128", "window": 128, "tokens": 5000, "corpus_digest": "d"}


def test_gptq_perplexity_equals_an_independent_loop(tmp_path: Path) -> None:
    asked = session(tmp_path)
    question = corpus_question("perplexity")
    answer = PROBE.measure(asked, question)
    windows = asked.windows(question)
    assert len(windows) > 10
    assert windows[0][0] == 1
    found = measured(answer, "perplexity")
    assert found.value == pytest.approx(math.exp(mean_nll(asked.loaded.model, windows)), rel=1e-5)
    assert found.definition == "gptq-64"
    assert found.n == len(windows) * 63
    assert low(found) < found.value < high(found)
    assert measured(answer, "nonfinite_tokens").value == 0
    assert "marked" not in answer.facts


def test_gptq_2048_equals_lm_evals_own_log_likelihoods(tmp_path: Path) -> None:
    """Each window as one request of lm-eval's Hugging Face model: the first token is given, the other 2,047 are scored."""
    from lm_eval.models.huggingface import HFLM

    model = llama(max_position_embeddings=2048)
    asked = session(tmp_path, model, corpus=text(700))
    question = corpus_question("perplexity", definition="gptq-2048", window=2048)
    found = measured(PROBE.measure(asked, question), "perplexity")
    windows = asked.windows(question)
    assert len(windows) >= 2
    assert (found.definition, found.n) == ("gptq-2048", len(windows) * 2047)
    lm = HFLM(pretrained=model, tokenizer=tokenizer(), max_length=2048, batch_size=1)
    requests = [(("", ""), window[:1], window[1:]) for window in windows]
    total = sum(logprob for logprob, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True))
    assert found.value == pytest.approx(math.exp(-total / found.n), rel=1e-4)


def test_the_raw_samples_are_one_float32_table_of_windows(tmp_path: Path) -> None:
    asked = session(tmp_path)
    found = measured(PROBE.measure(asked, corpus_question("perplexity")), "perplexity")
    table = np.load(io.BytesIO(asked.blobs[str(found.blob)]), allow_pickle=False)
    assert table.dtype == np.float32
    assert table.shape[1] == 63
    assert table.size == found.n
    assert math.exp(table.astype(np.float64).mean()) == pytest.approx(found.value, rel=1e-7)


def test_a_token_limit_takes_the_first_windows(tmp_path: Path) -> None:
    asked = session(tmp_path)
    answer = PROBE.measure(asked, corpus_question("perplexity", tokens=200))
    assert answer.facts["windows"] == 3


@pytest.mark.parametrize("bos", [True, False], ids=["tokenizer with BOS", "tokenizer without"])
def test_llamacpp_perplexity_scores_the_second_half_after_bos(bos: bool, tmp_path: Path) -> None:
    asked = session(tmp_path, bos=bos)
    question = corpus_question("perplexity", definition="llamacpp-64")
    found = measured(PROBE.measure(asked, question), "perplexity")
    windows = [[1, *window[1:]] if bos else window for window in asked.windows(question)]
    assert found.value == pytest.approx(math.exp(mean_nll(asked.loaded.model, windows, first=32)), rel=1e-5)
    assert found.n == len(windows) * 31
    assert found.definition == "llamacpp-64"


def test_bits_per_byte_is_the_loss_in_bits_over_the_bytes_of_the_scored_tokens(tmp_path: Path) -> None:
    asked = session(tmp_path)
    question = corpus_question("perplexity")
    answer = PROBE.measure(asked, question)
    windows = asked.windows(question)
    scored = sum(len(str(asked.loaded.tokenizer.decode(window[1:])).encode()) for window in windows)
    nats = mean_nll(asked.loaded.model, windows) * len(windows) * 63
    found = measured(answer, "bits_per_byte")
    assert found.value == pytest.approx(nats / math.log(2) / scored, rel=1e-4)
    assert low(found) < found.value < high(found)


def page() -> str:
    """A text that lm-eval's WikiText detokenizer leaves as it is, so that its path and ours see the same bytes."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    found = text(60, seed=3)
    assert wikitext_detokenizer({"page": found}) == found
    return found


@pytest.mark.parametrize("definition", ["rolling-word", "rolling-byte", "bits-per-byte"])
def test_rolling_perplexity_equals_lm_evals_own_wikitext_path(definition: str, tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    doc = {"page": page()}
    asked = session(tmp_path, corpus=doc["page"])
    answer = PROBE.measure(asked, corpus_question("perplexity", definition=definition))
    lm = HFLM(pretrained=asked.loaded.model, tokenizer=tokenizer(), max_length=64, batch_size=1)
    request = Instance(request_type="loglikelihood_rolling", doc=doc, arguments=(wikitext_detokenizer(doc),), idx=0)
    results = process_results(doc, lm.loglikelihood_rolling([request], disable_tqdm=True))
    wanted = {
        "rolling-word": weighted_perplexity([results["word_perplexity"]]),
        "rolling-byte": weighted_perplexity([results["byte_perplexity"]]),
        "bits-per-byte": bits_per_byte([results["bits_per_byte"]]),
    }
    values = {m.definition.split(",")[0]: m.value for m in answer.measurements}
    assert set(wanted) < set(values)
    for name, value in wanted.items():
        assert values[name] == pytest.approx(value, rel=1e-4)
    asked_for = next(m for m in answer.measurements if m.metric != "nonfinite_tokens" and m.definition.startswith(definition))
    assert asked_for.definition == f"{definition}, windows of 64"


def test_rolling_scores_every_token_once_whatever_the_length(tmp_path: Path) -> None:
    for sentences in (1, 5, 14):
        asked = session(tmp_path, corpus=text(sentences))
        answer = PROBE.measure(asked, corpus_question("perplexity", definition="rolling-word"))
        assert answer.facts["tokens"] == len(asked.loaded.tokenizer(text(sentences))["input_ids"])
        assert np.load(io.BytesIO(asked.blobs["nll.npy"])).size == answer.facts["tokens"]


def poisoned(token: int) -> Any:
    """A model that answers NaN from the first time it has seen `token` in a window."""
    model = llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    return model


def test_tokens_that_are_not_finite_in_the_baseline_are_excluded_counted_and_mark_it(tmp_path: Path) -> None:
    corpus = f"{text(60)} Ω {text(60, seed=1)}"
    question = corpus_question("perplexity")
    windows = session(tmp_path, corpus=corpus).windows(question)
    rare = tokenizer(bos=False)("Ω")["input_ids"][0]
    (place,) = [i for i, window in enumerate(windows) if rare in window]
    position = windows[place].index(rare)
    asked = session(tmp_path, poisoned(rare), corpus=corpus)
    asked.is_baseline = True
    answer = PROBE.measure(asked, question)
    bad = measured(answer, "nonfinite_tokens").value
    # Some attention kernels multiply masked values by 0, which spreads NaN to the front of the window too.
    assert bad in (63 - position, 63)
    assert answer.facts["marked"] == "nonfinite"
    finite = np.isfinite(np.load(io.BytesIO(asked.blobs["nll.npy"])))
    assert (~finite).sum() == bad
    assert not finite[place, position:].any()
    clean = session(tmp_path, llama(tie_word_embeddings=False), corpus=corpus)
    PROBE.measure(clean, question)
    wanted = np.load(io.BytesIO(clean.blobs["nll.npy"])).astype(np.float64)[finite].mean()
    assert measured(answer, "perplexity").value == pytest.approx(math.exp(wanted), rel=1e-5)
    assert measured(answer, "perplexity").n == len(windows) * 63 - bad


@pytest.mark.parametrize("definition", ["gptq-64", "llamacpp-64", "rolling-word"])
def test_nan_weights_give_a_typed_failure_and_no_number(definition: str, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(Nonfinite, match="the artifact is broken"):
        PROBE.measure(session(tmp_path, model), corpus_question("perplexity", definition=definition))


def test_nan_weights_of_the_source_are_the_sources(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(Nonfinite, match=r"the source is broken: NaN or infinity is stored in model\.norm\.weight"):
        PROBE.measure(session(tmp_path, model), corpus_question("perplexity"))


def test_a_corpus_shorter_than_a_window_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="fewer than one window of 64"):
        PROBE.measure(session(tmp_path, corpus="The river runs."), corpus_question("perplexity"))


@pytest.mark.parametrize("definition", ["gptq-2048", "word", "llamacpp-x", "gptq"])
def test_an_unknown_definition_is_bad_input_and_names_the_nearest_or_all(definition: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"did you mean '(gptq|llamacpp)-64'|gptq-64, llamacpp-64, rolling-word"):
        PROBE.measure(session(tmp_path), corpus_question("perplexity", definition=definition))


def test_a_whole_text_definition_cannot_be_limited(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="drop `tokens`"):
        PROBE.measure(session(tmp_path), corpus_question("perplexity", definition="rolling-word", tokens=64))
