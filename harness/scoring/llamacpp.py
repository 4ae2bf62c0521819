"""`LlamaCppLM`: lm-eval's requests answered by llama.cpp, with the plans of `FastLM`.

The same plans as for torch, executed in llama.cpp's own way: a header is decoded once and stays in the KV cache; the trees of
rows below it are decoded level by level, a branch being a sequence of its own that shares the cells of what is above it.
Tokenization, requests and sums are `FastLM`'s, so the ids are those of every other engine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import configure_pad_token, resolve_max_length
from numpy.typing import NDArray

from harness.errors import Unsupported
from harness.runtimes.llama_cpp import BATCH, MOST_SEQUENCES, Context, Weights
from harness.scoring.generate import Stops, is_greedy
from harness.scoring.lm import FastLM, Pair
from harness.scoring.plan import HEADER_OVERHEAD, Plan, common_prefix, header_order, make_plan
from harness.scoring.plan_cache import PlanCache

ROW_TOKENS = 192
"""Rows with several branches stay below this, so that no forest of them has more branches than llama.cpp has sequences."""

Segment = tuple[int, int, int]
"""A stretch of tokens without branches: first, end, and the segment above it (-1: none)."""


def segments(last: NDArray[Any]) -> list[Segment]:
    """The stretches of a forest in depth-first order (`last` = end of each token's subtree), parents before children."""
    found: list[Segment] = []
    todo = [(0, len(last), -1)]
    while todo:
        first, end, above = todo.pop()
        while first < end:
            stop = int(last[first])
            place = first
            while place + 1 < stop and last[place + 1] == stop:
                place += 1
            found.append((first, place + 1, above))
            if place + 1 < stop:
                todo.append((place + 1, stop, len(found) - 1))
            first = stop
    return found


class LlamaExecutor:
    """Answers plans with one file. Counts what it ran in `calls` and `tokens`."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.calls = 0
        self.tokens = 0

    def run(self, plan: Plan) -> tuple[NDArray[Any], NDArray[Any]]:
        """(log-probability in nats float32, is-the-argmax bool) of every pair of the plan."""
        logprob = np.full(len(plan.target), np.nan, np.float32)
        greedy = np.zeros(len(plan.target), bool)
        if not len(plan.target):
            return logprob, greedy
        first = np.searchsorted(plan.position, np.arange(len(plan.owner) + 1))
        below: dict[int, list[int]] = {}
        for number, row in enumerate(plan.rows):
            below.setdefault(row.header, []).append(number)
        groups = {header: _groups(plan, numbers) for header, numbers in below.items()}
        cells, branches = self._room(plan, groups)
        context = self.weights.context(cells, rows=branches + 1, shared=True)

        def answer(owners: NDArray[Any], logits: NDArray[np.float32]) -> None:
            """`owners`: index of the scored position of each row of logits."""
            counts = first[owners + 1] - first[owners]
            pairs = np.concatenate([np.arange(first[p], first[p + 1]) for p in owners])
            rows = torch.log_softmax(torch.from_numpy(logits), dim=-1)
            at = torch.from_numpy(np.repeat(np.arange(len(owners)), counts))
            wanted = torch.from_numpy(plan.target[pairs].astype(np.int64))
            logprob[pairs] = rows[at, wanted].numpy()
            # argmax gives the first of equal logits, as lm-eval's comparison does
            greedy[pairs] = (rows.argmax(dim=-1)[at] == wanted).numpy()

        def decode(tokens: NDArray[Any], places: NDArray[Any], sequences: NDArray[Any], scored: NDArray[Any]) -> None:
            """Runs tokens; `scored` [n] is the index of a token's scored position, or -1."""
            for start, end in _calls(scored >= 0, context):
                part = slice(start, end)
                wanted = scored[part] >= 0
                logits = context.decode(tokens[part], places[part], sequences[part], wanted)
                if wanted.any():
                    answer(scored[part][wanted], logits)

        self._forests(plan, groups.get(-1, []), context, decode, under=False)
        for number, enter in header_order(plan):
            header = plan.headers[number]
            if not enter:
                context.forget(0, header.start)
                continue
            places = header.start + np.arange(len(header.tokens))
            decode(header.tokens, places, np.zeros(len(places)), _scored(plan, -1 - number, len(places)))
            self._forests(plan, groups.get(number, []), context, decode, under=True)
        self.calls += context.calls
        self.tokens += context.tokens
        context.calls = context.tokens = 0
        return logprob, greedy

    def _forests(self, plan: Plan, groups: list[list[int]], context: Context, decode: Any, *, under: bool) -> None:
        """Rows of one header, forest by forest; `under`: the header is in sequence 0."""
        for numbers in groups:
            rows = [plan.rows[n] for n in numbers]
            before = np.cumsum([0, *(len(row.tokens) for row in rows)])
            tokens = np.concatenate([row.tokens for row in rows])
            depth = np.concatenate([row.depth for row in rows])
            last = np.concatenate([row.last + start for row, start in zip(rows, before[:-1], strict=True)])
            scored = np.concatenate([_scored(plan, n, len(row.tokens)) for n, row in zip(numbers, rows, strict=True)])
            found = segments(last)
            sequence, used = np.zeros(len(found), np.int32), 0
            level = np.zeros(len(found), np.int32)
            taken: set[int] = set()
            for index, (_, _, above) in enumerate(found):
                # The first branch goes on in the sequence above it, the others get one of their own.
                goes_on = above >= 0 and above not in taken
                taken.add(above)
                used += not goes_on
                sequence[index] = sequence[above] if goes_on else used
                level[index] = 0 if above < 0 else level[above] + 1
            for depth_of_tree in range(int(level.max()) + 1):
                members = np.flatnonzero(level == depth_of_tree)
                for index in members:
                    above = found[index][2]
                    if above < 0 and under:
                        context.share(0, int(sequence[index]))
                    elif above >= 0 and sequence[index] != sequence[above]:
                        context.share(int(sequence[above]), int(sequence[index]))
                at = np.concatenate([np.arange(*found[index][:2]) for index in members])
                which = np.concatenate([np.full(found[i][1] - found[i][0], sequence[i]) for i in members])
                decode(tokens[at], depth[at], which, scored[at])
            for number in range(1, used + 1):
                context.forget(number, 0)

    def _room(self, plan: Plan, groups: dict[int, list[list[int]]]) -> tuple[int, int]:
        """Most cells that are in use at once, and most branches of one forest."""
        cells = max((header.start + len(header.tokens) for header in plan.headers), default=1)
        branches = 1
        for number, forests in groups.items():
            above = 0 if number < 0 else plan.headers[number].start + len(plan.headers[number].tokens)
            for rows in forests:
                cells = max(cells, above + sum(len(plan.rows[n].tokens) for n in rows))
                branches = max(branches, sum(_branches(plan, n) for n in rows))
        return cells, branches


def _branches(plan: Plan, number: int) -> int:
    """Leaves of a row's tree."""
    last = plan.rows[number].last
    return int((last == np.arange(1, len(last) + 1)).sum())


def _groups(plan: Plan, numbers: Sequence[int]) -> list[list[int]]:
    """Rows that are decoded together: neighbours, up to one call's tokens and the sequences that llama.cpp has."""
    groups: list[list[int]] = []
    tokens = branches = 0
    for number in numbers:
        size, leaves = len(plan.rows[number].tokens), _branches(plan, number)
        if not groups or tokens + size > BATCH or branches + leaves > MOST_SEQUENCES - 2:
            groups.append([])
            tokens = branches = 0
        groups[-1].append(number)
        tokens, branches = tokens + size, branches + leaves
    return groups


def _scored(plan: Plan, owner: int, length: int) -> NDArray[Any]:
    """For each token of a row (or header -1 - owner) the index of its scored position, or -1."""
    low, high = np.searchsorted(plan.owner, [owner, owner + 1])
    found = np.full(length, -1, np.int64)
    found[plan.offset[low:high]] = np.arange(low, high)
    return found


def _calls(wanted: NDArray[Any], context: Context) -> list[tuple[int, int]]:
    """Cuts tokens into calls of at most `context.batch` tokens and `context.outputs` wanted ones."""
    cuts = [0]
    outputs = 0
    for place, one in enumerate(wanted.tolist()):
        if place - cuts[-1] == context.batch or outputs + one > context.outputs:
            cuts.append(place)
            outputs = 0
        outputs += one
    return list(zip(cuts, [*cuts[1:], len(wanted)], strict=True))


class LlamaCppLM(FastLM):
    """An `lm_eval.api.model.LM` over a GGUF file. `model_dir`: the source model, for its limits and end-of-sequence ids.

    Generation is greedy, one prompt after another, what neighbours have in common kept in the cache; sampling is Unsupported.
    """

    def __init__(self, weights: Weights, *, tokenizer: Any, model_dir: Path, plan_folder: Path | None = None) -> None:
        TemplateLM.__init__(self)  # not FastLM's: that one takes a torch model
        self.weights = weights
        self.config = transformers.AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
        try:
            self.generation_config = transformers.GenerationConfig.from_pretrained(str(model_dir))
        except OSError:  # the folder has none
            self.generation_config = transformers.GenerationConfig.from_model_config(self.config)
        self.tokenizer = configure_pad_token(tokenizer, model_config=self.config)
        self.add_bos_token = None
        self.think_end_token = None
        self.chat_template_args = {}
        self._prefix_token_id = None
        self._max_length = None
        self._encoded = {}
        self._prefix_text = (-1, "")
        self._tokenizer_digest = None
        self._tokens = {"plain": 0, "run": 0, "scored": 0}
        self._device = torch.device("cpu")
        self.notes = []
        self.plans = PlanCache(plan_folder, self.notes)
        self.model_seconds = 0.0
        self.share, self.share_limit = True, weights.context_length
        self.llama = LlamaExecutor(weights)

    @property
    def max_length(self) -> int:
        """Longest input in tokens: the source's limit, and no more than the file's."""
        return min(int(resolve_max_length(self.config, self.tokenizer)), self.weights.context_length)

    def report(self) -> dict[str, Any]:
        """What was done, as plain data for a record."""
        return {
            "engine": "llamacpp",
            "prefix_sharing": self.share,
            "notes": list(self.notes),
            "plans_made": self.plans.made,
            "plans_from_disk": self.plans.from_disk,
            "tokens_of_plain_rows": self._tokens["plain"],
            "tokens_run": self._tokens["run"],
            "tokens_scored": self._tokens["scored"],
            "model_calls": self.llama.calls,
        }

    def _hidden_size(self) -> int:
        return int(self.config.get_text_config().hidden_size)

    def _plan_settings(self) -> list[Any]:
        return ["llamacpp", ROW_TOKENS]

    def _make(self, pairs: Sequence[Pair], bounds: Sequence[int] | None) -> Plan:
        plan = make_plan(
            pairs,
            max_length=self.max_length,
            hidden_size=self._hidden_size(),
            header_overhead=HEADER_OVERHEAD,
            row_tokens=ROW_TOKENS,
        )
        return plan if bounds is None else self._summed(plan, bounds)

    def _holds(self, plan: Plan) -> bool:
        return True  # llama.cpp's sequences see exactly what is theirs: there is nothing to prove

    def _run(self, plan: Plan) -> list[tuple[float, bool]]:
        self._count(plan)
        began = time.perf_counter()
        answers = plan.collect(*self.llama.run(plan))
        self.model_seconds += time.perf_counter() - began
        return answers

    def _generate(self, prompts: list[list[int]], kwargs: dict[str, Any], until: list[str], most: int) -> list[list[int]]:
        if not is_greedy(kwargs, self.generation_config):
            raise Unsupported("this task samples or penalizes; the llama.cpp engine generates greedily only")
        ends = self.generation_config.eos_token_id
        stops = Stops(self.tokenizer, until, [] if ends is None else [ends] if isinstance(ends, int) else list(ends))
        context = self.weights.context(max(map(len, prompts)) + most, outputs=1)
        answers: list[list[int]] = [[] for _ in prompts]
        held: list[int] = []  # what sequence 0 holds
        for number in sorted(range(len(prompts)), key=prompts.__getitem__):
            prompt = prompts[number]
            keep = min(common_prefix(held, prompt), len(prompt) - 1)
            context.forget(0, keep)
            answers[number] = self._continue(context, prompt, keep, most, stops)
            held = [*prompt, *answers[number][:-1]]
        return answers

    def _continue(self, context: Context, prompt: list[int], keep: int, most: int, stops: Stops) -> list[int]:
        """New ids after a prompt of which the first `keep` tokens are in the cache."""
        for start in range(keep, len(prompt), context.batch):
            part = prompt[start : start + context.batch]
            last = np.zeros(len(part), bool)
            last[-1] = start + len(part) == len(prompt)
            logits = context.decode(part, np.arange(start, start + len(part)), np.zeros(len(part)), last)
        new = [int(logits[0].argmax())]
        while len(new) < most and not stops(new):
            logits = context.decode([new[-1]], [len(prompt) + len(new) - 1], [0], [True])
            new.append(int(logits[0].argmax()))
        return new
