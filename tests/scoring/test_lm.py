"""FastLM against lm-eval's own Hugging Face backend, request by request."""

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from harness.errors import Unsupported
from harness.scoring import FastLM
from harness.scoring.execute import Executor, batches
from tests.scoring import tiny

MOST = 120
"""Longest input here: some requests and most documents are longer and get cut."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def report_of(lm: FastLM) -> dict[str, Any]:
    return lm.report()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def theirs(model: Any, tokenizer: Any, batch_size: int = 8, **more: Any) -> Any:
    # logits_cache off: with it, lm-eval 0.4.13 scores the wrong positions for a request whose text is that of another one, cut
    # elsewhere (it gathers from the front of the longer continuation's logits).
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=MOST, logits_cache=False, **more)


def ours(model: Any, tokenizer: Any, **more: Any) -> FastLM:
    return FastLM(model, tokenizer=tokenizer, **{"max_length": MOST, **more})


def log_likelihoods(lm: Any, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    return lm.loglikelihood(tiny.instances("loglikelihood", pairs), disable_tqdm=True)


def difference(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> float:
    assert [flag for _, flag in ours] == [flag for _, flag in theirs]
    return max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))


def greedy_continuations(lm: Any, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Requests whose continuation is what the model would say: without them no greedy flag is ever true."""
    contexts = sorted({context for context, _ in pairs if context})[:3]
    texts = lm.generate_until(tiny.instances("generate_until", [(c, {"until": [], "max_gen_toks": 2}) for c in contexts]))
    return [(context, text) for context, text in zip(contexts, texts, strict=True) if text]


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_log_likelihoods_are_those_of_lm_eval(name: str, tokenizer: Any) -> None:
    model = tiny.model(name)
    fast = ours(model, tokenizer)
    pairs = tiny.questions() + tiny.corner_cases()
    pairs += greedy_continuations(fast, pairs)
    before = report_of(fast)
    found = log_likelihoods(fast, pairs)
    assert difference(found, log_likelihoods(theirs(model, tokenizer), pairs)) <= 1e-4
    after = report_of(fast)
    assert after["prefix_sharing"] == (name in tiny.SHARING)
    run = after["tokens_run"] - before["tokens_run"]
    plain = after["tokens_of_plain_rows"] - before["tokens_of_plain_rows"]
    assert (run < plain / 2) == (name in tiny.SHARING)
    assert after["prefix_sharing"] or any("plain rows" in note for note in after["notes"])


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "OPT", "Mamba"])
def test_rolling_log_likelihoods_are_those_of_lm_eval(name: str, tokenizer: Any) -> None:
    model = tiny.model(name)
    source = random.Random(5)
    documents = [(tiny.sentence(source, words),) for words in (3, 40, 300, 120)] + [("",)]
    requests = tiny.instances("loglikelihood_rolling", documents)
    expected = theirs(model, tokenizer).loglikelihood_rolling(requests, disable_tqdm=True)
    found = ours(model, tokenizer).loglikelihood_rolling(requests)
    assert min(found) < -1000
    for ours_, theirs_ in zip(found, expected, strict=True):
        assert ours_ == pytest.approx(theirs_, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "GPTNeoX", "OPT", "Mistral", "Bloom", "Mamba"])
def test_generations_are_those_of_lm_eval_one_at_a_time(name: str, tokenizer: Any) -> None:
    model = tiny.model(name)
    model.generation_config.pad_token_id = 0
    contexts = [*sorted({context for context, _ in tiny.questions(each=3)}), "the river", "a", "the river"]
    kwargs = {"until": ["\n", " stone", "birds"], "max_gen_toks": 12}
    requests = tiny.instances("generate_until", [(context, kwargs) for context in contexts])
    expected = theirs(model, tokenizer, batch_size=1).generate_until(requests, disable_tqdm=True)
    found = ours(model, tokenizer).generate_until(requests)
    assert found == expected
    assert len(set(found)) > 2


def test_a_prefix_shared_by_prompts_is_prefilled_once(tokenizer: Any) -> None:
    model = tiny.model("Llama")
    fast = ours(model, tokenizer)
    header = tiny.sentence(random.Random(1), 60)
    requests = tiny.instances("generate_until", [(f"{header} {word}", {"max_gen_toks": 1}) for word in tiny.WORDS])
    before = report_of(fast)["tokens_with_padding"]
    fast.generate_until(requests)
    prompt = len(tokenizer(header)["input_ids"])
    assert report_of(fast)["tokens_with_padding"] - before < prompt + 10 * len(requests)
    assert prompt > 60


def test_sampling_and_penalties_go_through_transformers(tokenizer: Any) -> None:
    model = tiny.model("Llama")
    fast = ours(model, tokenizer)
    contexts = ["the river runs", "the green stone", "which city has more water"]
    requests = tiny.instances("generate_until", [(c, {"max_gen_toks": 8, "repetition_penalty": 1.8}) for c in contexts])
    plain = tiny.instances("generate_until", [(c, {"max_gen_toks": 8}) for c in contexts])
    expected = theirs(model, tokenizer, batch_size=1).generate_until(requests, disable_tqdm=True)
    assert fast.generate_until(requests) == expected
    assert fast.generate_until(plain) != expected
    sampled = tiny.instances(
        "generate_until", [(c, {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0}) for c in contexts]
    )
    assert all(isinstance(text, str) for text in fast.generate_until(sampled))


def test_answers_do_not_depend_on_order_company_or_batch(tokenizer: Any) -> None:
    model = tiny.model("Llama")
    pairs = tiny.questions() + tiny.corner_cases()
    fast = ours(model, tokenizer)
    expected = log_likelihoods(fast, pairs)
    order = list(range(len(pairs)))
    random.Random(2).shuffle(order)
    shuffled = log_likelihoods(fast, [pairs[i] for i in order])
    assert difference(shuffled, [expected[i] for i in order]) <= 1e-4
    assert difference([log_likelihoods(fast, [pair])[0] for pair in pairs], expected) <= 1e-4
    fast.executor.budget_tokens = 1
    assert difference(log_likelihoods(fast, pairs), expected) <= 1e-4


def test_the_same_question_twice_gives_the_same_bits(tokenizer: Any) -> None:
    fast = ours(tiny.model("Qwen2"), tokenizer)
    pairs = tiny.questions()
    assert log_likelihoods(fast, pairs) == log_likelihoods(fast, pairs)


def test_headers_run_from_the_cache_give_the_answers_of_plain_rows(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("Llama", max_position_embeddings=2048)
    pairs = tiny.questions(subjects=3, each=24, shots=12)
    fast = ours(model, tokenizer, max_length=1000)
    seen: list[int] = []
    run = Executor.run

    def spied(self: Executor, plan: Any) -> Any:
        seen.append(len(plan.headers))
        return run(self, plan)

    monkeypatch.setattr(Executor, "run", spied)
    found = log_likelihoods(fast, pairs)
    assert seen[0] >= 2
    assert difference(found, log_likelihoods(ours(model, tokenizer, max_length=1000, share=False), pairs)) <= 1e-4


def test_inputs_longer_than_the_sliding_window_are_plain_and_right(tokenizer: Any) -> None:
    model = tiny.model("Mistral", sliding_window=64)
    fast = ours(model, tokenizer)
    pairs = [*tiny.questions(), ("which city has", " more water"), ("which city has", " less sand")]
    assert max(len(tokenizer(c)["input_ids"]) for c, _ in pairs) > 64
    found = log_likelihoods(fast, pairs)
    assert difference(found, log_likelihoods(theirs(model, tokenizer), pairs)) <= 1e-4
    report = report_of(fast)
    assert report["prefix_sharing"]
    assert report["prefix_sharing_limit"] == 64
    assert any("sliding window of 64" in note for note in report["notes"])


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_packs_wrongly_is_found_out_by_the_canary(tokenizer: Any, ignored: str, dtype: torch.dtype) -> None:
    model = tiny.model("Llama").to(dtype)
    assert ours(model, tokenizer).share, "told from the model that packs well"
    inner = model.model.forward

    def careless(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(ignored, None)
        return inner(*args, **kwargs)

    model.model.forward = careless
    fast = ours(model, tokenizer)
    assert not fast.share
    assert any("canary" in note for note in report_of(fast)["notes"])
    pairs = tiny.questions()
    expected = log_likelihoods(theirs(tiny.model("Llama").to(dtype), tokenizer, softmax_dtype="float32"), pairs)
    if dtype == torch.float32:
        assert difference(log_likelihoods(fast, pairs), expected) <= 1e-4


def test_a_model_that_packs_wrongly_only_at_depth_is_found_out_on_the_data(tokenizer: Any) -> None:
    model = tiny.model("Llama")
    inner = model.model.forward

    def forgets(*args: Any, **kwargs: Any) -> Any:
        # Stands for an undeclared window: packed masks are misread from the 60th token on.
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.shape[-1] > 60:
            kwargs["attention_mask"] = torch.where(torch.arange(mask.shape[-1]) > 20, mask, torch.finfo(mask.dtype).min)
            kwargs["attention_mask"][:, :, :21, :21] = mask[:, :, :21, :21]
        return inner(*args, **kwargs)

    model.model.forward = forgets
    fast = ours(model, tokenizer)
    assert fast.share
    pairs = tiny.questions()
    found = log_likelihoods(fast, pairs)
    assert not fast.share
    assert any("packed hidden states differ" in note for note in report_of(fast)["notes"])
    assert difference(found, log_likelihoods(theirs(tiny.model("Llama"), tokenizer), pairs)) <= 1e-4


def test_out_of_memory_halves_the_batch_and_changes_no_answer(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("Llama")
    fast = ours(model, tokenizer)
    pairs = tiny.questions(each=12)
    expected = log_likelihoods(fast, pairs)
    forward = Executor._forward

    def scarce(self: Executor, rows: Any, header: Any) -> Any:
        if sum(len(row.tokens) for row in rows) > 300 and len(rows) > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory")
        return forward(self, rows, header)

    monkeypatch.setattr(Executor, "_forward", scarce)
    assert difference(log_likelihoods(fast, pairs), expected) <= 1e-4
    assert report_of(fast)["out_of_memory_retries"] > 0


def test_no_call_of_the_model_is_larger_than_the_token_budget(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = ours(tiny.model("Llama"), tokenizer, share=False)
    pairs = tiny.questions(each=12)
    log_likelihoods(fast, pairs)
    fast.executor.budget_tokens = 400
    shapes: list[tuple[int, int]] = []
    body = Executor.body

    def spied(self: Executor, ids: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(ids.shape))
        return body(self, ids, **kwargs)

    monkeypatch.setattr(Executor, "body", spied)
    log_likelihoods(fast, pairs)
    assert max(rows for rows, _ in shapes) > 2
    assert all(rows * width <= 400 or rows == 1 for rows, width in shapes)


def test_an_error_that_is_not_about_memory_is_not_swallowed(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = ours(tiny.model("Llama"), tokenizer)
    monkeypatch.setattr(Executor, "_forward", lambda *_: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        log_likelihoods(fast, tiny.questions())


def test_batches_hold_every_row_once_within_the_budget() -> None:
    from harness.scoring.plan import make_plan

    source = random.Random(0)
    plan = make_plan(
        [([source.randrange(9) for _ in range(source.randrange(1, 90))], [1]) for _ in range(80)],
        max_length=99,
        hidden_size=64,
        share=False,
    )
    cut = batches(plan.rows, range(len(plan.rows)), 200, 16)
    assert sorted(n for batch in cut for n in batch) == list(range(len(plan.rows)))
    widths = [max(len(plan.rows[n].tokens) for n in batch) for batch in cut]
    assert all(len(batch) * width <= 200 or len(batch) == 1 for batch, width in zip(cut, widths, strict=True))
    assert len(cut) < len(plan.rows) / 2


def test_plans_are_found_again_by_another_model_with_the_same_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    pairs = tiny.questions() + tiny.corner_cases()
    first = ours(tiny.model("Llama"), tokenizer, plan_folder=tmp_path)
    expected = log_likelihoods(first, pairs)
    second = ours(tiny.model("Llama", seed=1), tokenizer, plan_folder=tmp_path)
    second.tok_encode = None  # type: ignore[method-assign,assignment]  # nothing is tokenized again
    assert log_likelihoods(second, pairs) != expected
    assert (report_of(first)["plans_made"], report_of(first)["plans_from_disk"]) == (1, 0)
    assert (report_of(second)["plans_made"], report_of(second)["plans_from_disk"]) == (0, 1)
    again = ours(tiny.model("Llama"), tokenizer, plan_folder=tmp_path)
    assert log_likelihoods(again, pairs) == expected
    log_likelihoods(again, pairs[:-1])
    assert report_of(again)["plans_made"] == 1, "other requests are another plan"


def test_a_damaged_plan_is_made_again(tokenizer: Any, tmp_path: Path) -> None:
    pairs = tiny.questions()
    model = tiny.model("Llama")
    expected = log_likelihoods(ours(model, tokenizer, plan_folder=tmp_path), pairs)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    fast = ours(model, tokenizer, plan_folder=tmp_path)
    assert log_likelihoods(fast, pairs) == expected
    assert report_of(fast)["plans_made"] == 1


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_the_beginning_of_sequence_is_handled_as_lm_eval_handles_it(tokenizer: Any, add_bos_token: bool | None) -> None:
    fast = ours(tiny.model("Llama"), tokenizer, add_bos_token=add_bos_token)
    slow = theirs(tiny.model("Llama"), tokenizer, add_bos_token=add_bos_token)
    for text in ("the river", "<s>the river", ""):
        for flag in (None, True, False):
            assert fast.tok_encode(text, add_special_tokens=flag) == slow.tok_encode(text, add_special_tokens=flag)
    assert fast.prefix_token_id == slow.prefix_token_id
    pairs = tiny.corner_cases()
    assert difference(log_likelihoods(fast, pairs), log_likelihoods(slow, pairs)) <= 1e-4


def test_bfloat16_scores_are_taken_in_float32(tokenizer: Any) -> None:
    model = tiny.model("Llama").bfloat16()
    pairs = tiny.questions()
    fast = ours(model, tokenizer)
    assert fast.share
    found = log_likelihoods(fast, pairs)
    expected = log_likelihoods(theirs(model, tokenizer, softmax_dtype="float32"), pairs)
    gaps = [
        abs(a - b) / len(tokenizer(text)["input_ids"]) for (a, _), (b, _), (_, text) in zip(found, expected, pairs, strict=True)
    ]
    assert sum(gaps) / len(gaps) < 0.05


def test_the_report_is_plain_data(tokenizer: Any) -> None:
    fast = ours(tiny.model("Llama"), tokenizer)
    log_likelihoods(fast, tiny.questions())
    report = report_of(fast)
    assert json.loads(json.dumps(report)) == report
    assert report["tokens_run"] > 0
    assert report["tokens_scored"] > 0


def test_a_model_is_loaded_from_a_folder_and_by_lm_evals_registry(tokenizer: Any, tmp_path: Path) -> None:
    from lm_eval.api.registry import get_model

    model = tiny.model("Llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = get_model("fastlm").create_from_arg_string(
        f"pretrained={tmp_path},dtype=float32", {"device": "cpu", "batch_size": 4}
    )
    pairs = tiny.questions(each=2)
    direct = FastLM(model, tokenizer=tokenizer)
    assert loaded.max_length == 256
    assert difference(log_likelihoods(loaded, pairs), log_likelihoods(direct, pairs)) <= 1e-5
    with pytest.raises(TypeError, match="serve loading"):
        FastLM(model, tokenizer=tokenizer, load_in_4bit=True)


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="code that a checkpoint brings is never run"):
        FastLM(str(tmp_path), trust_remote_code=True)


def test_lm_evals_metrics_are_identical(tokenizer: Any, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    source = random.Random(3)
    lines = []
    for number in range(30):
        question = f"{tiny.sentence(source, 6)} ?"
        choices = [tiny.sentence(source, source.randrange(1, 4)) for _ in range(3)]
        lines.append(json.dumps({"question": question, "choices": choices, "gold": number % 3}))
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    (tmp_path / "tiny_choice.yaml").write_text(
        f"""
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{tmp_path}/items.jsonl"}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1}}
"""
    )
    model = tiny.model("Llama")

    def results(lm: Any) -> Any:
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        out = lm_eval.simple_evaluate(model=lm, tasks=["tiny_choice"], num_fewshot=2, task_manager=manager, bootstrap_iters=0)
        return {k: v for k, v in out["results"]["tiny_choice"].items() if k.startswith("acc")}

    found = results(ours(model, tokenizer, max_length=250))
    expected = results(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=250))
    assert found == expected
    assert 0 < found["acc,none"] < 1
