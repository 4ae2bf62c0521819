"""The llama.cpp engine against plain transformers forwards of the same weights, and against llama-cpp-python's own class."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from harness.engines import ENGINES, moments
from harness.engines.base import Loaded, Rerun, WindowScores
from harness.engines.transformers import Transformers
from harness.errors import BadInput, Unsupported
from harness.formats import gguf_export, gguf_vocabulary
from harness.measure import memory_phases
from harness.probes import memory
from harness.probes.perplexity import PROBE as PERPLEXITY
from harness.spec import Model, Phase, Question, Running, Scheme
from tests.scoring import tiny
from tests.squares import square
from tests.tiny_llama import TinySession, corpus_question, llama, nudged, text, tokenizer, windows

for package in ("llama_cpp", "gguf"):
    pytest.importorskip(package, reason=f"{package} is not installed (it compiles for minutes): pip install -e '.[gguf]'")
llamacpp: Any = importlib.import_module("harness.engines.llamacpp")
llama_runtime: Any = importlib.import_module("harness.runtimes.llama_cpp")
segments: Any = importlib.import_module("harness.scoring.llamacpp").segments

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::FutureWarning")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SHAPE |= {
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama untied": ("Llama", {"tie_word_embeddings": False}),
    "Llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama with scaled frequencies": ("Llama", {"rope_parameters": LLAMA3}),
    "Llama with linear positions": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "Llama with wide heads": ("Llama", {"head_dim": 64}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", {"head_dim": 64}),
}


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # lm-eval's
    yield
    logging.disable(logging.NOTSET)


def convert(model: Any, folder: Path, dtype: str = "F32") -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    gguf_export.convert(
        folder,
        folder / "m.gguf",
        dtype=dtype,
        same_ids=lambda path, ids: llama_runtime.same_ids(path, gguf_vocabulary.SAMPLE, ids),
    )
    return folder / "m.gguf"


def engine(path: Path, kv_type: str = "f32") -> Any:
    return llamacpp.LlamaCpp(llama_runtime.Weights(path, kv_type=kv_type), tokenizer(), model_dir=path.parent)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A float32 Llama and its GGUF file."""
    model = llama()
    return model, convert(model, tmp_path_factory.mktemp("base"))


def plain_logprobs(model: Any, window: list[int]) -> np.ndarray:
    """Log-probabilities [T-1, V] in float64 from one plain forward of one window."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([window])).logits[0, :-1].double()
    return torch.log_softmax(logits, dim=-1).numpy()


def joined(scores: list[WindowScores], name: str) -> np.ndarray:
    return np.stack([getattr(score, name) for score in scores])


def test_the_table_has_the_engine_and_it_keeps_the_protocol(base: tuple[Any, Path]) -> None:
    assert "llama_cpp" in ENGINES["llamacpp"].modules
    found = engine(base[1])
    protocol = {name for name in vars(Loaded) if not name.startswith("_")}
    assert protocol
    assert all(hasattr(found, name) for name in protocol)
    assert isinstance(found, Rerun)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_converted_model_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    kind, changes = VARIANTS[name]
    torch.manual_seed(3)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # biases and norms start at 0 and 1, where a mistake would not show
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
            assert bool(torch.isfinite(parameter).all()), key
    rows = windows(3, 150)
    found = joined(list(engine(convert(model, tmp_path)).score_windows(rows, None)), "nll")
    wanted = np.stack([-plain_logprobs(model, row)[range(149), row[1:]] for row in rows])
    assert wanted.std() > 0.5  # the model tells tokens apart
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4)


def test_windows_of_different_lengths_come_back_in_order(base: tuple[Any, Path]) -> None:
    model, path = base
    rows = [*windows(2, 20), *windows(1, 200, seed=5), *windows(1, 2, seed=6)]
    found = list(engine(path).score_windows(rows, None))
    assert [len(score.nll) for score in found] == [19, 19, 199, 1]
    for score, row in zip(found, rows, strict=True):
        wanted = -plain_logprobs(model, row)[range(len(row) - 1), row[1:]]
        np.testing.assert_allclose(score.nll, wanted, rtol=1e-4, atol=1e-4)
        assert score.nll.dtype == np.float32


def test_a_context_that_was_made_for_less_takes_all_that_it_has_room_for(base: tuple[Any, Path]) -> None:
    """What the worker does: the reload check's short rows first, then windows in the same context."""
    found = engine(base[1])
    (row,) = windows(1, 200)
    short = found.model.log_probabilities([row[:9]])
    long = found.model.log_probabilities([row])
    assert long.shape == (199, 512)
    torch.testing.assert_close(long[:8], short, rtol=0, atol=1e-5)
    (scores,) = found.score_windows([row], None)
    np.testing.assert_allclose(scores.nll, -long[range(199), row[1:]].numpy(), rtol=1e-5, atol=1e-5)


def test_a_wide_vocabulary_is_scored_in_parts_with_the_same_answers(
    base: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = windows(2, 100)
    wanted = joined(list(engine(base[1]).score_windows(rows, None)), "nll")
    monkeypatch.setattr("harness.runtimes.llama_cpp.LOGIT_BYTES", 32 * 4 * 512)
    found = engine(base[1])
    np.testing.assert_allclose(joined(list(found.score_windows(rows, None)), "nll"), wanted, rtol=1e-5, atol=1e-5)
    assert found.model.context(99).outputs == 32


def test_the_divergence_from_a_torch_baseline_is_next_to_nothing_in_float32(base: tuple[Any, Path], tmp_path: Path) -> None:
    model, path = base
    rows = windows(5, 120)
    Transformers(model, tokenizer()).store_baseline(rows, tmp_path / "baseline")
    found = list(engine(path).score_windows(rows, tmp_path / "baseline"))
    assert 0 <= np.abs(joined(found, "kl")).max() < 1e-6
    assert joined(found, "same_top").mean() > 0.999
    assert joined(found, "same_top").dtype == bool
    assert np.abs(joined(found, "delta_p")).max() < 1e-4


def test_comparison_with_a_torch_baseline_equals_float64_sums(base: tuple[Any, Path], tmp_path: Path) -> None:
    """The file of a changed model against the reference of the unchanged one."""
    model, _ = base
    other = nudged(model, 0.4)
    rows = windows(4, 80)
    Transformers(model, tokenizer()).store_baseline(rows, tmp_path / "baseline")
    found = list(engine(convert(other, tmp_path / "other")).score_windows(rows, tmp_path / "baseline"))
    theirs = np.stack([plain_logprobs(model, row) for row in rows])
    ours = np.stack([plain_logprobs(other, row) for row in rows])
    wanted = (np.exp(theirs) * (theirs - ours)).sum(axis=2)
    assert wanted.mean() > 1e-3
    np.testing.assert_allclose(joined(found, "kl"), wanted, rtol=5e-3, atol=1e-6)
    np.testing.assert_allclose(joined(found, "base_top"), np.exp(theirs.max(axis=2)), rtol=1e-4)


def test_in_bf16_the_divergence_is_that_of_rounding(tmp_path: Path) -> None:
    model = llama(dtype=torch.bfloat16)
    rows = windows(4, 100)
    exact = llama(dtype=torch.bfloat16).float()
    Transformers(exact, tokenizer()).store_baseline(rows, tmp_path / "baseline")
    torch_floor = joined(list(Transformers(model, tokenizer()).score_windows(rows, tmp_path / "baseline")), "kl").mean()
    ours = engine(convert(model, tmp_path / "m", "BF16"), "f16").score_windows(rows, tmp_path / "baseline")
    assert 0 < joined(list(ours), "kl").mean() < 2 * torch_floor


def test_a_file_against_itself_has_zero_divergence_and_a_small_floor(base: tuple[Any, Path], tmp_path: Path) -> None:
    found = engine(base[1], "f16")
    rows = windows(6, 130)
    meta = found.store_baseline(rows, tmp_path / "baseline")
    assert meta["kind"] == "logits"
    scores = list(engine(base[1], "f16").score_windows(rows, tmp_path / "baseline"))
    assert (joined(scores, "kl") == 0).all()
    np.testing.assert_array_equal(joined(scores, "nll"), joined(scores, "base_nll"))
    name, again = found.rerun_windows(rows, tmp_path / "baseline")
    floor = np.abs(joined(list(again), "kl")).mean()
    assert "calls of 64 tokens" in name
    assert 0 < floor < 1e-4


def test_other_tokens_another_vocabulary_and_long_windows_are_refused(base: tuple[Any, Path], tmp_path: Path) -> None:
    rows = windows(3, 20)
    Transformers(llama(), tokenizer()).store_baseline(rows, tmp_path / "a")
    Transformers(llama(vocab_size=640), tokenizer()).store_baseline(rows, tmp_path / "b")
    found = engine(base[1])
    with pytest.raises(Unsupported, match="other tokens"):
        list(found.score_windows(windows(3, 20, seed=1), tmp_path / "a"))
    with pytest.raises(Unsupported, match="640 logits"):
        list(found.score_windows(rows, tmp_path / "b"))
    with pytest.raises(Unsupported, match="windows of 258 tokens do not fit the model's context of 256"):
        list(found.score_windows(windows(1, 258), None))
    with pytest.raises(BadInput, match="at least 2"):
        list(found.score_windows([[5]], None))
    assert len(list(found.score_windows(windows(1, 257), None))) == 1


def test_a_window_of_mistral_ends_where_its_attention_does(tmp_path: Path) -> None:
    config = transformers.MistralConfig(**{**SHAPE, "sliding_window": 64})
    found = engine(convert(transformers.MistralForCausalLM(config).eval(), tmp_path))
    with pytest.raises(Unsupported, match="context of 64"):
        list(found.score_windows(windows(1, 100), None))


# ---------------------------------------------------------------------- perplexity as llama.cpp's tool defines it


def test_llamacpp_perplexity_equals_llama_cpp_pythons_own_logits_over_the_second_half(
    base: tuple[Any, Path], tmp_path: Path
) -> None:
    """llama-perplexity: windows of n_ctx, the first token BOS, successors of positions n_ctx/2 .. n_ctx-2 scored."""
    from llama_cpp import Llama

    found = engine(base[1])
    session: Any = TinySession(found, tmp_path, corpus=text(120))
    question = corpus_question("perplexity", definition="llamacpp-64")
    answer = PERPLEXITY.measure(session, question)
    (measured,) = [m for m in answer.measurements if m.metric == "perplexity"]
    llm = Llama(str(base[1]), n_ctx=64, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1, type_k=0, type_v=0)
    losses = []
    for window in session.windows(question):
        llm.reset()
        llm.eval([1, *window[1:]])
        for place in range(32, 63):
            row = llm.scores[place].astype(np.float64)
            losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[window[place + 1]])
    assert measured.definition == "llamacpp-64"
    assert measured.n == len(losses)
    assert measured.value == pytest.approx(math.exp(float(np.mean(losses))), rel=1e-5)
    llm.close()


# ---------------------------------------------------------------------- lm-eval


def theirs(model: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=4, max_length=256, logits_cache=False)


def test_segments_cut_a_forest_at_its_branches() -> None:
    #            0 root, 1 its only child, branches 2-3 and 4; 5 another root with branches 6 and 7
    last = np.array([5, 5, 4, 4, 5, 8, 7, 8])
    found = segments(last)
    assert sorted((first, end) for first, end, _ in found) == [(0, 2), (2, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    for first, end, above in found:
        wanted = [j for j in range(first) if j < first < last[j]]
        path: list[int] = []
        while above >= 0:
            path = [*range(found[above][0], found[above][1]), *path]
            above = found[above][2]
        assert path == wanted
        assert (last[first:end] == last[first]).all()


def test_log_likelihoods_are_those_of_lm_eval_and_prefixes_are_decoded_once(base: tuple[Any, Path]) -> None:
    model, path = base
    lm = engine(path).lm()
    pairs = tiny.questions(shots=4, each=8) + tiny.corner_cases()
    wanted = theirs(model).loglikelihood(tiny.instances("loglikelihood", pairs), disable_tqdm=True)
    contexts = sorted({context for context, _ in pairs if context})[:6]
    asked = tiny.instances("generate_until", [(c, {"until": [], "max_gen_toks": 2}) for c in contexts])
    said = zip(contexts, lm.generate_until(asked), strict=True)  # without what it would say no flag is ever true
    greedy = [(context, text) for context, text in said if len(lm._pair(context, text)[1]) > 0]
    assert greedy
    more = theirs(model).loglikelihood(tiny.instances("loglikelihood", greedy), disable_tqdm=True)
    found = lm.loglikelihood(tiny.instances("loglikelihood", pairs + greedy))
    assert [flag for _, flag in found] == [flag for _, flag in wanted + more]
    assert any(flag for _, flag in found)
    assert not all(flag for _, flag in found)
    np.testing.assert_allclose([a for a, _ in found], [a for a, _ in wanted + more], rtol=1e-4, atol=1e-3)
    report = lm.report()
    assert report["tokens_run"] < report["tokens_of_plain_rows"] / 2
    assert report["model_calls"] > 1


def test_trees_with_many_branches_stay_within_llama_cpps_sequences(base: tuple[Any, Path]) -> None:
    """Two thousand one-word answers to one question: more branches than llama.cpp has sequences."""
    model, path = base
    lm = engine(path).lm()
    words = sorted({f" {a}{b}" for a in tiny.WORDS for b in tiny.WORDS})
    pairs = [("the river runs", word + " sand") for word in words]
    found = lm.loglikelihood(tiny.instances("loglikelihood", pairs))
    some = random.Random(0).sample(range(len(pairs)), 40)
    wanted = theirs(model).loglikelihood(tiny.instances("loglikelihood", [pairs[i] for i in some]), disable_tqdm=True)
    assert len(pairs) > 1000
    np.testing.assert_allclose([found[i][0] for i in some], [a for a, _ in wanted], rtol=1e-4, atol=1e-3)


def test_rolling_log_likelihoods_are_those_of_lm_eval(base: tuple[Any, Path]) -> None:
    model, path = base
    source = random.Random(5)
    documents = [(tiny.sentence(source, words),) for words in (3, 40, 400)]
    requests = tiny.instances("loglikelihood_rolling", documents)
    wanted = theirs(model).loglikelihood_rolling(requests, disable_tqdm=True)
    np.testing.assert_allclose(engine(path).lm().loglikelihood_rolling(requests), wanted, rtol=1e-5)


def test_generations_are_those_of_lm_eval_one_at_a_time(base: tuple[Any, Path]) -> None:
    from lm_eval.models.huggingface import HFLM

    model, path = base
    contexts = [*sorted({context for context, _ in tiny.questions(each=3)}), "the river", "a", "the river"]
    kwargs = {"until": ["\n", " stone", "birds"], "max_gen_toks": 12}
    requests = tiny.instances("generate_until", [(context, kwargs) for context in contexts])
    alone = HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=1, max_length=256)
    found = engine(path).lm().generate_until(requests)
    assert found == alone.generate_until(requests, disable_tqdm=True)
    assert len(set(found)) > 2


def test_sampling_is_refused(base: tuple[Any, Path]) -> None:
    kwargs = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 4}
    with pytest.raises(Unsupported, match="greedily only"):
        engine(base[1]).lm().generate_until(tiny.instances("generate_until", [("the river", kwargs)]))


def test_plans_are_kept_and_found_again(base: tuple[Any, Path], tmp_path: Path) -> None:
    requests = tiny.instances("loglikelihood", tiny.questions())
    first = engine(base[1]).lm(plans=tmp_path)
    second = engine(base[1]).lm(plans=tmp_path)
    assert first.loglikelihood(requests) == second.loglikelihood(requests)
    assert (first.report()["plans_made"], second.report()["plans_from_disk"]) == (1, 1)


# ---------------------------------------------------------------------- cost


def test_generation_is_greedy_and_exactly_as_long_as_asked(base: tuple[Any, Path]) -> None:
    model, path = base
    found = engine(path)
    told: list[str] = []
    with moments.heard(told.append):
        timing = found.time_generation(prompt_tokens=40, new_tokens=6, batch=3, seed=4)
    assert told == ["begin", "first token", "end"]
    assert timing.ttft_seconds > 0
    assert len(timing.step_seconds) == 5
    assert min(timing.step_seconds) > 0
    context, prompt = found._generation(40, 6, 3, 4)
    chosen = [context.prefill(prompt).argmax(axis=1)]
    for place in range(40, 45):
        chosen.append(llamacpp._step(context, chosen[-1], place))
    ids = torch.from_numpy(prompt)
    wanted = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert np.array_equal(np.stack(chosen, axis=1), wanted[:, 40:].numpy())
    assert np.array_equal(prompt, Transformers(model, tokenizer())._prompt(40, 3, 4).numpy())


def test_the_cache_is_as_large_as_its_shape_says(base: tuple[Any, Path]) -> None:
    asked = {"prompt_tokens": 300 - 60, "new_tokens": 10, "batch": 2, "seed": 0}
    sizes = {}
    for kind in ("f16", "q8_0"):
        found = engine(base[1], kind)
        prefill = found.run_phase("prefill", **asked)
        decode = found.run_phase("decode", **asked)
        assert decode["continued"]
        assert not prefill["continued"]
        assert prefill["kv_cache_bytes"] == decode["kv_cache_bytes"]
        sizes[kind] = decode["kv_cache_bytes"]
    per_token = 2 * 2 * 2 * 64  # layers, key and value, heads, head dimension
    assert sizes["f16"] == 2 * 256 * per_token * 2  # two rows of 250 tokens, in cells of 256, two bytes
    assert sizes["q8_0"] == 2 * 256 * per_token * 34 / 32
    with pytest.raises(ValueError, match="unknown phase"):
        engine(base[1]).run_phase("load", prompt_tokens=1, new_tokens=1, batch=1, seed=0)
    with pytest.raises(Unsupported, match="do not fit the model's context of 256"):
        engine(base[1]).run_phase("prefill", prompt_tokens=250, new_tokens=10, batch=1, seed=0)


def test_a_quantized_cache_changes_the_answers_a_little(base: tuple[Any, Path], tmp_path: Path) -> None:
    rows = windows(3, 120)
    engine(base[1], "f32").store_baseline(rows, tmp_path / "baseline")
    found = {
        kind: joined(list(engine(base[1], kind).score_windows(rows, tmp_path / "baseline")), "kl").mean()
        for kind in ("f16", "q8_0", "q4_0")
    }
    assert 0 <= found["f16"] < found["q8_0"] < found["q4_0"] < 0.5


class Weighed:
    """`probes.base.Session` for a GGUF file in a folder beside the model that it was made of."""

    def __init__(self, path: Path) -> None:
        self.cell = square(
            Scheme(method="gguf", bits=8),
            model=Model(name="m", path=str(path.parent)),
            running=Running(engine="llamacpp", kv="f16"),
        )
        self.artifact_dir = self.model_dir = path.parent
        self.device, self.seed = "cpu", 0
        self._path = path
        self._loaded: Any = None
        self._phases: list[Phase] = []

    @property
    def loaded(self) -> Any:
        if self._loaded is None:
            self._loaded = engine(self._path, "f16")
        return self._loaded

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with memory_phases.measure(name) as meter:
            yield
        assert meter.phase is not None
        self._phases.append(meter.phase)

    def phases(self) -> tuple[Phase, ...]:
        return tuple(self._phases)


def weigh_each(path: Path) -> None:
    """Prints the memory probe's figures for the file mapped and read, each from a forked process of its own."""
    defaults = llama_runtime.lib.llama_model_default_params
    for mode in (llama_runtime.lib.LLAMA_LOAD_MODE_MMAP, llama_runtime.lib.LLAMA_LOAD_MODE_NONE):

        def params(mode: int = mode) -> Any:
            found = defaults()
            found.load_mode = mode
            return found

        child = os.fork()
        if not child:
            llama_runtime.lib.llama_model_default_params = params
            question = Question(probe="memory", subject="", options={"prompt": 32, "new": 4, "batch": 1})
            answer = memory.measure(Weighed(path), question)  # type: ignore[arg-type]
            found = {m.metric: m.value for m in answer.measurements}
            print(json.dumps({**found, "mapped": answer.facts["phases"]["decode"]["mapped_weights_bytes"]}), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


@pytest.mark.skipif(memory_phases.resident() is None, reason="the kernel's counters are Linux's")
def test_a_file_needs_the_same_memory_mapped_and_read_within_three_percent(tmp_path: Path) -> None:
    shape = {"hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 8}
    path = convert(llama(dtype=torch.bfloat16, **shape), tmp_path, "BF16")
    code = f"from pathlib import Path; from tests.engines.test_llamacpp import weigh_each; weigh_each(Path({str(path)!r}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 2, done.stderr[-3000:]
    mapped, read = lines
    print({name: (round(value / 2**20, 1), round(read.get(name, 0) / 2**20, 1)) for name, value in mapped.items()})
    size = path.stat().st_size
    assert size > 170 * 2**20, "3 % of that is more than an allocator's slack"
    assert (mapped["mapped"], read["mapped"]) == (pytest.approx(size, rel=0.01), 0)
    for metric in ("peak_load_bytes", "peak_prefill_bytes", "peak_decode_bytes", "peak_host_bytes"):
        assert mapped[metric] == pytest.approx(read[metric], rel=0.03), metric


def test_facts_say_what_is_held(base: tuple[Any, Path], tmp_path: Path) -> None:
    model, path = base
    facts = engine(path).facts()
    assert facts.engine == "llamacpp"
    assert facts.device == "cpu"
    assert facts.resident_weight_bytes == sum(p.numel() * 4 for p in model.parameters())
    assert facts.details["active_weight_bytes"] == facts.resident_weight_bytes  # tied: the table is the head
    assert facts.details["threads"] == 1
    untied = llama(tie_word_embeddings=False)
    facts = engine(convert(untied, tmp_path)).facts()
    assert facts.details["active_weight_bytes"] == sum(p.numel() * 4 for p in untied.parameters()) - 512 * 256 * 4


def test_unknown_caches_and_devices_without_a_build_are_refused(base: tuple[Any, Path]) -> None:
    import llama_cpp

    with pytest.raises(BadInput, match="unknown type of KV cache"):
        llama_runtime.Weights(base[1], kv_type="int3")
    if not llama_cpp.llama_supports_gpu_offload():
        with pytest.raises(Unsupported, match="built without CUDA"):
            llama_runtime.Weights(base[1], device="cuda")


def test_a_file_that_llama_cpp_cannot_load_is_bad_input(base: tuple[Any, Path], tmp_path: Path) -> None:
    data = base[1].read_bytes()
    (tmp_path / "m.gguf").write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"))
    with pytest.raises(BadInput, match=r"m\.gguf: llama\.cpp cannot load it: .*attn_q"):
        llama_runtime.Weights(tmp_path / "m.gguf")


def test_the_engine_loads_a_cell_without_torch_weights(base: tuple[Any, Path], tmp_path: Path) -> None:
    """The whole way of a cell: quantize, then the engine's own load in a fresh process."""
    code = (
        "from pathlib import Path; import sys\n"
        "from harness.engines import ENGINES; from harness.methods import METHODS\n"
        "from harness.methods.base import LoadRequest, QuantizeRequest, resolve_options, running_of\n"
        "from harness.spec import Quantized, Scheme\n"
        "out, source = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "scheme = Scheme(method='gguf', bits=8.0, options=resolve_options(METHODS['gguf'], {}, 8.0))\n"
        "origin = Quantized(scheme=scheme)\n"
        "METHODS['gguf'].quantize(QuantizeRequest(model_dir=source, out_dir=out, origin=origin, calibration=None,\n"
        "    device='cpu', seed=0))\n"
        "running = running_of(METHODS['gguf'], {}, 8.0)\n"
        "request = LoadRequest(artifact_dir=out, model_dir=source, origin=origin, running=running, device='cpu')\n"
        "loaded = ENGINES['llamacpp'].load(METHODS['gguf'], request)\n"
        "facts = loaded.facts()\n"
        "assert {k.stored_dtype for k in facts.kernels} == {'Q8_0'}, facts.kernels\n"
        "assert not facts.simulated\n"
        "assert len(next(iter(loaded.score_windows([[1, 2, 3, 4]], None))).nll) == 3\n"
    )
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(base[1].parent)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
