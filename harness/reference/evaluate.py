"""Score a checkpoint on the reference tasks with plain transformers code, and check the quantization ladder.

    python -m harness.reference.evaluate --model DIR [--limit N] [--ladder]

This is the trainer's own yardstick, independent of lm-eval and of the pipeline: a multiple-choice item counts as
right if the gold answer has the highest summed log-likelihood (lm-eval's `acc`), an arithmetic item if the greedy
continuation up to the line's end equals the answer (`exact_match`). The ladder rounds every linear layer but the
head plainly (min-max, groups of 64 inputs; symmetric unless told otherwise) and scores again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.reference import HELDOUT_TEXT, MODEL_DIR, TASKS_DIR
from harness.reference.skills import SKILLS

BITS = (8, 4, 3, 2)
GROUP = 64
TOKENS_PER_BATCH = 8192
ITEMS_PER_BATCH = 64


def rounded_plainly(weight: Tensor, *, bits: int, symmetric: bool, group: int = GROUP) -> Tensor:
    """Round-to-nearest on the min-max grid of each group of `group` inputs; weight [outputs, inputs].

    Symmetric as GPTQ's code does it: steps of 2 max|w| / (2^bits - 1) with the zero at level 2^(bits-1).
    """
    grouped = weight.float().reshape(weight.shape[0], -1, group)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    zero = torch.full_like(step, 2 ** (bits - 1)) if symmetric else (-low / step).round()
    levels = ((grouped / step).round() + zero).clamp(0, 2**bits - 1)
    back: torch.Tensor = (levels - zero) * step
    return back.reshape(weight.shape).to(weight.dtype)


@torch.no_grad()
def quantize_in_place(model: nn.Module, *, bits: int, symmetric: bool) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            module.weight.copy_(rounded_plainly(module.weight, bits=bits, symmetric=symmetric))


@torch.no_grad()
def continuation_scores(model: Any, items: Sequence[tuple[list[int], list[list[int]]]]) -> list[list[float]]:
    """Summed log-likelihood (nats) of each continuation after its context.

    A context runs once and its keys and values are shared by its continuations; contexts of equal length run together,
    so that nothing is padded before a scored token.
    """
    scores: list[list[float]] = [[] for _ in items]
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (context, continuations) in enumerate(items):
        groups.setdefault((len(context), len(continuations)), []).append(i)
    for (_, ways), members in groups.items():
        for start in range(0, len(members), ITEMS_PER_BATCH):
            batch = members[start : start + ITEMS_PER_BATCH]
            first = model(torch.tensor([items[i][0] for i in batch]), use_cache=True)
            cache = first.past_key_values
            cache.batch_repeat_interleave(ways)
            rows = [ids for i in batch for ids in items[i][1]]
            width = max(map(len, rows))
            tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids in rows])
            after = model(tokens, past_key_values=cache).logits
            begin = first.logits[:, -1:].repeat_interleave(ways, 0)
            logp = F.log_softmax(torch.cat([begin, after[:, :-1]], 1).float(), -1)
            chosen = logp.gather(-1, tokens[..., None])[..., 0]
            sums = [float(chosen[row, : len(ids)].sum()) for row, ids in enumerate(rows)]
            for place, i in enumerate(batch):
                scores[i] = sums[place * ways : (place + 1) * ways]
    return scores


@torch.no_grad()
def greedy_lines(model: Any, tokenizer: Any, prompts: Sequence[str], *, new_tokens: int = 6) -> list[str]:
    """Greedy continuation of each prompt up to the first line break, stripped."""
    encoded = [cast(list[int], tokenizer(p).input_ids) for p in prompts]
    texts = [""] * len(prompts)
    for length in sorted({len(ids) for ids in encoded}):  # equal lengths need no padding
        rows = [i for i, ids in enumerate(encoded) if len(ids) == length]
        tokens = torch.tensor([encoded[i] for i in rows])
        for _ in range(new_tokens):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)], 1)
        for row, i in enumerate(rows):
            text = tokenizer.decode(tokens[row, length:], skip_special_tokens=False)
            texts[i] = text.split("\n")[0].split(tokenizer.eos_token)[0].strip()
    return texts


def load_items(skill: str, *, limit: int | None = None) -> list[dict[str, Any]]:
    lines = (TASKS_DIR / f"{skill}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:limit]]


def task_outcomes(model: Any, tokenizer: Any, skill: str, *, limit: int | None = None) -> list[bool]:
    """Right or wrong for each item of a task."""
    items = load_items(skill, limit=limit)
    if skill == "arithmetic":
        answers = greedy_lines(model, tokenizer, [item["question"] for item in items])
        return [answer == item["answer"] for answer, item in zip(answers, items, strict=True)]
    requests: list[tuple[list[int], list[list[int]]]] = []
    for item in items:
        if skill == "agreement":
            start, texts = [tokenizer.eos_token_id], [item["good"], item["bad"]]
        else:
            start, texts = tokenizer(item["context"]).input_ids, [" " + choice for choice in item["choices"]]
        requests.append((start, [tokenizer(text).input_ids for text in texts]))
    scores = continuation_scores(model, requests)
    return [mine.index(max(mine)) == item.get("gold", 0) for mine, item in zip(scores, items, strict=True)]


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str, *, window: int = 256, limit_windows: int | None = None) -> float:
    """`gptq-L` of DEFINITIONS.md: non-overlapping windows, exp of the mean over the window-1 targets of each."""
    ids = torch.tensor(tokenizer(text).input_ids)
    rows = ids[: len(ids) // window * window].view(-1, window)[:limit_windows]
    total = 0.0
    for batch in rows.split(max(1, TOKENS_PER_BATCH // window)):
        logits = model(batch).logits[:, :-1].float()
        total += float(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / (rows.shape[0] * (window - 1)))


def score(
    model_dir: Path, *, bits: int | None, limit: int | None, symmetric: bool = True, window: int = 256
) -> Mapping[str, float]:
    """Accuracy of every task, their mean, and held-out perplexity, at `bits` (None: as stored)."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    if bits is not None:
        quantize_in_place(model, bits=bits, symmetric=symmetric)
    result: dict[str, float] = {}
    for skill in SKILLS:
        outcomes = task_outcomes(model, tokenizer, skill, limit=limit)
        result[skill] = sum(outcomes) / len(outcomes)
    result["mean"] = sum(result.values()) / len(SKILLS)
    text = HELDOUT_TEXT.read_text(encoding="utf-8")
    result["perplexity"] = perplexity(model, tokenizer, text, window=window, limit_windows=None if limit is None else limit)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a checkpoint on the reference tasks.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--limit", type=int, help="items per task and windows of text (default: all)")
    parser.add_argument("--ladder", action="store_true", help="also plain rounding at 8, 4, 3 and 2 bits")
    parser.add_argument("--asymmetric", action="store_true", help="round with a zero point")
    arguments = parser.parse_args()
    columns = (*SKILLS, "mean", "perplexity")
    print("| weights | " + " | ".join(columns) + " |")
    print("|" + "---|" * (len(columns) + 1))
    for bits in (None, *BITS) if arguments.ladder else (None,):
        result = score(arguments.model, bits=bits, limit=arguments.limit, symmetric=not arguments.asymmetric)
        cells = [f"{100 * result[c]:.1f}" for c in columns[:-1]] + [f"{result['perplexity']:.3f}"]
        print(f"| {'bf16' if bits is None else f'{bits} bits'} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
