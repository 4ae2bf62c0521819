"""FastLM against lm-eval's `hf`, side by side: the same model object, the same requests, each at its best batch size.

    python tests/benchmarks/bench_scoring.py                          # a small model of 6 M parameters, all shapes
    python tests/benchmarks/bench_scoring.py --model medium           # 85 M parameters besides the embeddings
    python tests/benchmarks/bench_scoring.py --model medium --vocab 150000 --shapes hellaswag,rolling
    python tests/benchmarks/bench_scoring.py --constants              # what the planner's cost model assumes, measured
    python tests/benchmarks/bench_scoring.py --branching              # choices packed into a row, or rows on the context's cache

Weights are random, and requests are random token ids whose lengths are drawn to the histograms of the real tasks: scoring does
not depend on what is said. Planning is inside FastLM's time. The extra memory is the rise of the process's peak resident memory
(VmHWM, reset before each run) over what it holds before. Times are the best of `--repeats`; on a shared machine take `--threads 1
--cpu-time`: ratios of CPU seconds do not depend on who else is running.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers

clock: Callable[[], float] = time.perf_counter
Request = tuple[object, list[int], list[int]]

MODELS = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "medium": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
}


def around(source: random.Random, mean: float, spread: float, least: int = 1) -> int:
    """A length from a log-normal, as token counts of texts are."""
    return max(least, round(mean * source.lognormvariate(-(spread**2) / 2, spread)))


def ids(source: random.Random, count: int, vocab: int) -> list[int]:
    return [source.randrange(3, vocab) for _ in range(count)]


def pairs(contexts_and_choices: list[tuple[list[int], list[list[int]]]]) -> list[Request]:
    return [(("c", "t"), context, choice) for context, choices in contexts_and_choices for choice in choices]


def hellaswag(source: random.Random, vocab: int, items: int) -> list[Request]:
    """0-shot: context about 60 tokens, 4 endings of about 27."""
    return pairs(
        [
            (ids(source, around(source, 60, 0.45, 12), vocab), [ids(source, around(source, 27, 0.4, 4), vocab) for _ in range(4)])
            for _ in range(items)
        ]
    )


def arc_25(source: random.Random, vocab: int, items: int) -> list[Request]:
    """ARC 25-shot: shots drawn anew for every question (about 33 tokens each), 4 choices of about 5."""
    found = []
    for _ in range(items):
        shots = [token for _ in range(25) for token in ids(source, around(source, 33, 0.4, 12), vocab)]
        question = ids(source, around(source, 28, 0.5, 8), vocab)
        found.append((shots + question, [ids(source, around(source, 5, 0.6), vocab) for _ in range(4)]))
    return pairs(found)


def mmlu_5(source: random.Random, vocab: int, items: int) -> list[Request]:
    """MMLU 5-shot: one header of about 550 tokens for the subject, questions of about 90, 4 choices of one token."""
    header = ids(source, 550, vocab)
    letters = ids(source, 4, vocab)
    return pairs(
        [(header + ids(source, around(source, 90, 0.5, 25), vocab), [[letter] for letter in letters]) for _ in range(items)]
    )


def quick(source: random.Random, vocab: int, items: int) -> list[Request]:
    """The quick suite: six tasks of short questions, context 15 to 40 tokens, 2 to 4 choices of 1 to 8."""
    found: list[Request] = []
    for context, choices, length in ((16, 4, 2), (24, 4, 3), (40, 4, 8), (30, 2, 6), (20, 4, 1), (36, 3, 4)):
        shared = ids(source, 5, vocab)
        for _ in range(items):
            question = shared + ids(source, around(source, context, 0.3, 6), vocab)
            found += pairs([(question, [ids(source, around(source, length, 0.4), vocab) for _ in range(choices)])])
    return found


def rolling(source: random.Random, vocab: int, items: int) -> list[Request]:
    """WikiText-style: every token of windows of 1024 is scored."""
    return [(("", "t"), ids(source, 1, vocab), ids(source, 1024, vocab)) for _ in range(items)]


SHAPES: dict[str, tuple[Callable[[random.Random, int, int], list[Request]], dict[str, int]]] = {
    "hellaswag": (hellaswag, {"small": 100, "medium": 12}),
    "arc_25": (arc_25, {"small": 24, "medium": 4}),
    "mmlu_5": (mmlu_5, {"small": 60, "medium": 24}),
    "quick": (quick, {"small": 120, "medium": 20}),
    "rolling": (rolling, {"small": 24, "medium": 4}),
}


def build(size: str, vocab: int, dtype: str) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {**MODELS[size]}
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **shape,
    )
    return transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()


def tokenizer() -> Any:
    """Never used for text here, but both sides want one."""
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def measured(work: Callable[[], Any], repeats: int) -> tuple[Any, float, int]:
    """(answer, best seconds, extra peak bytes of the first run)."""
    best, extra, answer = float("inf"), 0, None
    for number in range(repeats):
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_bytes()
        start = clock()
        answer = work()
        best = min(best, clock() - start)
        if number == 0:
            extra = peak_bytes() - before
    return answer, best, extra


def compare(
    size: str, vocab: int, dtype: str, names: list[str], repeats: int, scale: float, sizes: list[int]
) -> list[dict[str, Any]]:
    from lm_eval.models.huggingface import HFLM

    from harness.scoring import FastLM

    model, text = build(size, vocab, dtype), tokenizer()
    precise = None if dtype == "float32" else "float32"
    theirs = {
        batch: HFLM(pretrained=model, tokenizer=text, batch_size=batch, max_length=2048, softmax_dtype=precise) for batch in sizes
    }
    start = clock()
    ours = FastLM(model, tokenizer=text, max_length=2048)
    print(f"{size}, vocabulary {vocab}, {dtype}: FastLM ready after {clock() - start:.2f} s", flush=True)
    rows = []
    for name in names:
        make, items = SHAPES[name]
        requests = make(random.Random(0), vocab, max(2, round(items[size] * scale)))
        # Once per loaded model FastLM proves packed against plain rows at this depth: said apart.
        start = clock()
        deepest = max(requests, key=lambda request: len(request[1]) + len(request[2]))
        warm = [request for request in requests if request[1] == deepest[1]]
        ours._loglikelihood_tokens(warm)
        proof = clock() - start
        theirs[sizes[0]]._loglikelihood_tokens(warm, True)
        plain: dict[str, Any] = ours.report()
        before = 0
        answers, mine, my_bytes = measured(partial(ours._loglikelihood_tokens, requests), repeats)
        after: dict[str, Any] = ours.report()
        best: tuple[float, int, int] | None = None
        for batch, lm in theirs.items():
            expected, seconds, before = measured(partial(lm._loglikelihood_tokens, requests, True), 1)
            if best is None or seconds < best[0]:
                best = (seconds, batch, before)
        assert best is not None
        for _ in range(repeats - 1):
            _, seconds, _ = measured(partial(theirs[best[1]]._loglikelihood_tokens, requests, True), 1)
            best = (min(best[0], seconds), best[1], best[2])
        row = {
            "shape": name,
            "requests": len(requests),
            "hf_seconds": round(best[0], 3),
            "hf_batch": best[1],
            "fast_seconds": round(mine, 3),
            "fast_first_proof_seconds": round(proof, 3),
            "times_faster": round(best[0] / mine, 2),
            "hf_extra_mib": round(best[2] / 2**20, 1),
            "fast_extra_mib": round(my_bytes / 2**20, 1),
            "plain_tokens": (after["tokens_of_plain_rows"] - plain["tokens_of_plain_rows"]) // repeats,
            "run_tokens": (after["tokens_run"] - plain["tokens_run"]) // repeats,
            "with_padding": (after["tokens_with_padding"] - plain["tokens_with_padding"]) // repeats,
            "calls": (after["model_calls"] - plain["model_calls"]) // repeats,
            "largest_difference": max(abs(a[0] - b[0]) for a, b in zip(answers, expected, strict=True)),
            "greedy_flags_that_differ": sum(a[1] != b[1] for a, b in zip(answers, expected, strict=True)),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def constants(size: str) -> None:
    """Seconds per token and per call against row length and cached tokens: the planner's KEYS_PER_TOKEN and COPY_COST."""
    from harness.scoring.execute import Executor, new_cache, tree_mask
    from harness.scoring.head import split

    cut = split(build(size, 4096, "float32"))
    executor, hidden = Executor(cut), MODELS[size]["hidden_size"]

    def seconds(rows: int, width: int, before: int) -> float:
        grid = torch.randint(3, 4096, (rows, width))
        header: Any = None
        if before:
            filled: Any = new_cache(None, 1)
            executor.body(torch.randint(3, 4096, (1, before)), past_key_values=filled, use_cache=True)
            header = [(layer.keys, layer.values) for layer in filled.layers]
        mask = tree_mask(torch.full((rows, width), width), before, torch.float32)
        place = (torch.arange(width) + before).expand(rows, -1)
        best = float("inf")
        for _ in range(4):
            start = clock()
            cache = None if header is None else new_cache(header, rows)
            executor.body(grid, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=cache is not None)
            best = min(best, clock() - start)
        return best

    one = seconds(1, 1, 0)
    print(f"{size}: a call of one token {one * 1e3:.2f} ms")
    base = seconds(64, 32, 0) / 2048
    for rows, width, before in ((32, 64, 0), (16, 128, 0), (8, 256, 0), (4, 512, 0), (2, 1024, 0), (16, 128, 512), (4, 512, 512)):
        each = seconds(rows, width, before) / (rows * width)
        keys = width + before - 32
        print(
            f"rows {rows:3} x {width:4} tokens after {before:4}: {each * 1e6:7.2f} us per token = {each / base:.2f} x shortest;"
            f" keys per token of cost / hidden size: {keys / max(each / base - 1, 1e-9) / hidden:.2f}"
        )


def branching(size: str) -> None:
    """A question's choices as a tree in one row, against a pass over the context and one row per choice on its expanded cache."""
    from harness.scoring.execute import Executor, new_cache, tree_mask
    from harness.scoring.head import split

    executor = Executor(split(build(size, 4096, "float32")))
    for questions, context, choices, length in ((8, 60, 4, 27), (16, 24, 4, 4), (8, 128, 4, 8), (2, 512, 4, 8), (1, 900, 4, 5)):
        width = context + choices * length
        ends = [width] * context + [context + (c + 1) * length for c in range(choices) for _ in range(length)]
        places = [*range(context), *(list(range(context, context + length)) * choices)]
        last, depth = torch.tensor([ends] * questions), torch.tensor([places] * questions)
        ids, head = torch.randint(3, 4096, (questions, width)), torch.randint(3, 4096, (questions, context))
        tails = torch.randint(3, 4096, (questions * choices, length))

        def packed(ids: Any = ids, last: Any = last, depth: Any = depth) -> None:
            executor.body(ids, attention_mask=tree_mask(last, 0, torch.float32), position_ids=depth)

        def expanded(head: Any = head, tails: Any = tails, choices: int = choices) -> None:
            cache = new_cache(None, 1)
            executor.body(head, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(choices)
            executor.body(tails, past_key_values=cache, use_cache=True)

        _, one, _ = measured(packed, 4)
        _, two, _ = measured(expanded, 4)
        print(
            f"{size}: {questions} questions, context {context}, {choices} choices of {length}: packed {one * 1e3:.1f} ms,"
            f" expanded {two * 1e3:.1f} ms, expanded / packed {two / one:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of items")
    parser.add_argument("--batches", default="4,16,64", help="batch sizes tried for hf")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead of wall seconds: for a machine that is busy")
    parser.add_argument("--constants", action="store_true")
    parser.add_argument("--branching", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if given.cpu_time:
        global clock
        clock = time.process_time
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.constants:
        constants(given.model)
        return
    if given.branching:
        branching(given.model)
        return
    batch_sizes = [int(size) for size in given.batches.split(",")]
    compare(given.model, given.vocab, given.dtype, given.shapes.split(","), given.repeats, given.scale, batch_sizes)


if __name__ == "__main__":
    main()
