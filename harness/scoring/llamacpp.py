"""`LlamaCppLM`: lm-eval's requests answered by llama.cpp, with the plans of every planned scorer.

The same plans as for torch, executed in llama.cpp's own way: a header is decoded once and stays in the KV cache; the trees of
rows below it are decoded level by level, a branch being a sequence of its own that shares the cells of what is above it.
Tokenization, requests and sums are those of `harness.scoring.requests`, so the ids are those of every other engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.errors import Unsupported
from harness.models import build
from harness.runtimes.llama_cpp import BATCH, MOST_SEQUENCES, Context, Weights
from harness.scoring.answers import PlanAnswers
from harness.scoring.generate import Stops, is_greedy
from harness.scoring.plan import Ints, Plan, common_prefix, header_order
from harness.scoring.planned import PlannedLM, PlanRules
from harness.scoring.requests import Generation, ends_of, source_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROW_TOKENS = 192
"""Rows with several branches stay below this, so that no forest of them has more branches than llama.cpp has sequences."""

Segment = tuple[int, int, int]
"""A stretch of tokens without branches: first, end, and the segment above it (-1: none)."""

Decode = Callable[[Ints, Ints, Ints, Ints], None]
"""Runs tokens at places of sequences; the last array is the index of each token's scored position, or -1."""


def segments(last: Ints) -> list[Segment]:
    """The stretches of a forest in depth-first order (`last` = end of each token's subtree), parents before children."""
    stretches: list[Segment] = []
    todo = [(0, len(last), -1)]
    while todo:
        first, end, above = todo.pop()
        while first < end:
            stop = int(last[first])
            place = first
            while place + 1 < stop and last[place + 1] == stop:
                place += 1
            stretches.append((first, place + 1, above))
            if place + 1 < stop:
                todo.append((place + 1, stop, len(stretches) - 1))
            first = stop
    return stretches


class LlamaExecutor:
    """Answers plans with one file. Counts what it ran in `calls` and `tokens`."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.calls = 0
        self.tokens = 0

    def run(self, plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(log-probability in nats float32, is-the-argmax bool) of every pair of the plan."""
        answers = PlanAnswers(plan)
        if not len(plan.target):
            return answers.logprob, answers.greedy
        below: dict[int, list[int]] = {}
        for number, row in enumerate(plan.rows):
            below.setdefault(row.header, []).append(number)
        groups = {header: _groups(plan, numbers) for header, numbers in below.items()}
        cells, branches = self._room(plan, groups)
        context = self.weights.context(cells, rows=branches + 1, shared=True)

        def decode(tokens: Ints, places: Ints, sequences: Ints, scored: Ints) -> None:
            for start, end in _calls(scored >= 0, context):
                part = slice(start, end)
                wanted = scored[part] >= 0
                logits = context.decode(tokens[part], places[part], sequences[part], wanted)
                if wanted.any():
                    answers.take(scored[part][wanted], logits)

        self._forests(plan, groups.get(-1, []), context, decode, under=False)
        for number, enter in header_order(plan):
            header = plan.headers[number]
            if not enter:
                if not context.forget(0, header.start):
                    raise RuntimeError("llama.cpp cannot drop a part of this model's state")
                continue
            places = header.start + np.arange(len(header.tokens))
            decode(header.tokens, places, np.zeros(len(places), np.int32), plan.scored(-1 - number, len(places)))
            self._forests(plan, groups.get(number, []), context, decode, under=True)
        self.calls += context.calls
        self.tokens += context.tokens
        context.calls = context.tokens = 0
        return answers.logprob, answers.greedy

    def _forests(self, plan: Plan, groups: list[list[int]], context: Context, decode: Decode, *, under: bool) -> None:
        """Rows of one header, forest by forest; `under`: the header is in sequence 0."""
        for numbers in groups:
            rows = [plan.rows[n] for n in numbers]
            before = np.cumsum([0, *(len(row.tokens) for row in rows)])
            tokens = np.concatenate([row.tokens for row in rows])
            depth = np.concatenate([row.depth for row in rows])
            last = np.concatenate([row.last + start for row, start in zip(rows, before[:-1], strict=True)])
            scored = np.concatenate([plan.scored(n, len(row.tokens)) for n, row in zip(numbers, rows, strict=True)])
            stretches = segments(last)
            sequence, used = np.zeros(len(stretches), np.int32), 0
            level = np.zeros(len(stretches), np.int32)
            taken: set[int] = set()
            for index, (_, _, above) in enumerate(stretches):
                # The first branch goes on in the sequence above it, the others get one of their own.
                goes_on = above >= 0 and above not in taken
                taken.add(above)
                used += not goes_on
                sequence[index] = sequence[above] if goes_on else used
                level[index] = 0 if above < 0 else level[above] + 1
            for depth_of_tree in range(int(level.max()) + 1):
                members = np.flatnonzero(level == depth_of_tree)
                for index in members:
                    above = stretches[index][2]
                    if above < 0 and under:
                        context.share(0, int(sequence[index]))
                    elif above >= 0 and sequence[index] != sequence[above]:
                        context.share(int(sequence[above]), int(sequence[index]))
                at = np.concatenate([np.arange(*stretches[index][:2]) for index in members])
                which = np.concatenate([np.full(stretches[i][1] - stretches[i][0], sequence[i]) for i in members])
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


def _calls(wanted: NDArray[np.bool_], context: Context) -> list[tuple[int, int]]:
    """Cuts tokens into calls of at most `context.batch` tokens and `context.outputs` wanted ones."""
    cuts = [0]
    outputs = 0
    for place, one in enumerate(wanted.tolist()):
        if place - cuts[-1] == context.batch or outputs + one > context.outputs:
            cuts.append(place)
            outputs = 0
        outputs += one
    return list(zip(cuts, [*cuts[1:], len(wanted)], strict=True))


class LlamaCppLM(PlannedLM):
    """An `lm_eval.api.model.LM` over a GGUF file. `model_dir`: the source model, for its limits and end-of-sequence ids.

    Generation is greedy, one prompt after another, what neighbours have in common kept in the cache; sampling is Unsupported.
    """

    def __init__(
        self, weights: Weights, *, tokenizer: PreTrainedTokenizerBase, model_dir: Path, plan_folder: Path | None = None
    ) -> None:
        config = source_config(model_dir)
        self.weights = weights
        self.generation_config = build.generation_config(model_dir)
        self.llama = LlamaExecutor(weights)
        super().__init__(
            tokenizer,
            config=config,
            executor=self.llama,
            rules=PlanRules(
                name=("llamacpp", ROW_TOKENS),
                hidden_size=int(config.get_text_config().hidden_size),
                share_limit=weights.context_length,
                row_tokens=ROW_TOKENS,
            ),
            plan_folder=plan_folder,
            context_length=weights.context_length,
        )

    def report(self) -> dict[str, object]:
        """What was done, as plain data for a record."""
        return {"engine": "llamacpp", **self._planned(), "model_calls": self.llama.calls}

    def _generate(self, prompts: list[list[int]], asked: Generation) -> list[list[int]]:
        if not is_greedy(asked.sampling, self.generation_config):
            raise Unsupported("this task samples or penalizes; the llama.cpp engine generates greedily only")
        stops = Stops(self.tokenizer, asked.until, ends_of(self.generation_config))
        most = asked.most
        context = self.weights.context(max(map(len, prompts)) + most, outputs=1)
        answers: list[list[int]] = [[] for _ in prompts]
        held: list[int] = []  # what sequence 0 holds
        for number in sorted(range(len(prompts)), key=prompts.__getitem__):
            prompt = prompts[number]
            keep = min(common_prefix(held, prompt), len(prompt) - 1)
            if not context.forget(0, keep):  # a recurrent state: begin anew
                context.clear()
                keep = 0
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
