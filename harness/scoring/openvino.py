"""`OpenVinoLM`: lm-eval's requests answered by the OpenVINO runtime, with the plans of `FastLM`.

A header is run once and its state kept; the rows below it are run together, each going on from the kept row. The IR's mask is
that of plain causal attention, so rows have no branches here: one input, one row.
"""

from __future__ import annotations

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
from harness.runtimes.openvino import BATCH, Program
from harness.scoring.execute import CALL_TOKENS, batches
from harness.scoring.generate import Stops, is_greedy
from harness.scoring.lm import FastLM, Pair
from harness.scoring.plan import HEADER_OVERHEAD, Plan, header_order, make_plan
from harness.scoring.plan_cache import PlanCache

BATCH_TOKENS = 4 * BATCH


class OpenVinoExecutor:
    """Answers plans of unbranched rows with one program."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def run(self, plan: Plan) -> tuple[NDArray[Any], NDArray[Any]]:
        """(log-probability in nats float32, is-the-argmax bool) of every pair of the plan."""
        logprob = np.full(len(plan.target), np.nan, np.float32)
        greedy = np.zeros(len(plan.target), bool)
        first = np.searchsorted(plan.position, np.arange(len(plan.owner) + 1))
        program = self.program

        def answer(scored: NDArray[Any], logits: NDArray[np.float32]) -> None:
            """`scored`: index of the scored position of each row of logits."""
            counts = first[scored + 1] - first[scored]
            pairs = np.concatenate([np.arange(first[p], first[p + 1]) for p in scored])
            rows = torch.log_softmax(torch.from_numpy(logits), dim=-1)
            at = torch.from_numpy(np.repeat(np.arange(len(scored)), counts))
            wanted = torch.from_numpy(plan.target[pairs].astype(np.int64))
            logprob[pairs] = rows[at, wanted].numpy()
            # argmax gives the first of equal logits, as lm-eval's comparison does
            greedy[pairs] = (rows.argmax(dim=-1)[at] == wanted).numpy()

        def decode(ids: NDArray[Any], scored: NDArray[Any], rows: NDArray[Any] | None) -> None:
            """Runs ids [B, T]; `scored` [B, T] is the index of a token's scored position, or -1. In shorter calls where the
            logits would be too many for one."""
            batch, length = ids.shape
            step = length if (scored >= 0).sum() <= program.most_logits else max(1, program.most_logits // batch)
            for start in range(0, length, step):
                part = np.ascontiguousarray(scored[:, start : start + step]).reshape(-1)
                places = np.flatnonzero(part >= 0)
                logits = program.run(ids[:, start : start + step], places, rows=rows if start == 0 else None)
                if len(places):
                    answer(part[places], logits)

        below: dict[int, list[int]] = {}
        for number, row in enumerate(plan.rows):
            below.setdefault(row.header, []).append(number)
        kept: dict[int, Any] = {}

        def run_rows(header: int) -> None:
            for batch in batches(plan.rows, below.get(header, []), BATCH_TOKENS, CALL_TOKENS):
                width = max(len(plan.rows[n].tokens) for n in batch)
                # Causal attention never looks right: padding needs no mask.
                ids, scored = np.zeros((len(batch), width), np.int64), np.full((len(batch), width), -1, np.int64)
                for line, number in enumerate(batch):
                    tokens = plan.rows[number].tokens
                    ids[line, : len(tokens)] = tokens
                    scored[line, : len(tokens)] = _scored(plan, number, len(tokens))
                if header < 0:
                    program.clear()
                    decode(ids, scored, None)
                else:
                    program.restore(kept[header])
                    decode(ids, scored, np.zeros(len(batch), np.int32))

        run_rows(-1)
        for number, enter in header_order(plan):
            if not enter:
                del kept[number]
                continue
            header = plan.headers[number]
            if header.parent < 0:
                program.clear()
            else:
                program.restore(kept[header.parent])
            decode(header.tokens[None], _scored(plan, -1 - number, len(header.tokens))[None], None)
            kept[number] = program.keep()
            run_rows(number)
        return logprob, greedy


def _scored(plan: Plan, owner: int, length: int) -> NDArray[Any]:
    """For each token of a row (or header -1 - owner) the index of its scored position, or -1."""
    low, high = np.searchsorted(plan.owner, [owner, owner + 1])
    found = np.full(length, -1, np.int64)
    found[plan.offset[low:high]] = np.arange(low, high)
    return found


class OpenVinoLM(FastLM):
    """An `lm_eval.api.model.LM` over an IR. `model_dir`: the source model, for its limits and end-of-sequence ids.

    Generation is greedy, one prompt after another; sampling is Unsupported.
    """

    def __init__(self, program: Program, *, tokenizer: Any, model_dir: Path, plan_folder: Path | None = None) -> None:
        TemplateLM.__init__(self)  # not FastLM's: that one takes a torch model
        self.program = program
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
        self.model_seconds = 0.0
        self.notes = []
        self.plans = PlanCache(plan_folder, self.notes)
        self.share, self.share_limit = True, program.context_length
        self.executor: Any = OpenVinoExecutor(program)

    @property
    def max_length(self) -> int:
        """Longest input in tokens: the source's limit, and no more than the model's context."""
        return min(int(resolve_max_length(self.config, self.tokenizer)), self.program.context_length)

    def report(self) -> dict[str, Any]:
        """What was done, as plain data for a record."""
        return {
            "engine": "openvino",
            "prefix_sharing": self.share,
            "notes": list(self.notes),
            "plans_made": self.plans.made,
            "plans_from_disk": self.plans.from_disk,
            "tokens_of_plain_rows": self._tokens["plain"],
            "tokens_run": self._tokens["run"],
            "tokens_with_padding": self.program.tokens,
            "tokens_scored": self._tokens["scored"],
            "model_calls": self.program.calls,
        }

    def _hidden_size(self) -> int:
        return int(self.config.get_text_config().hidden_size)

    def _plan_settings(self) -> list[Any]:
        return ["openvino"]

    def _make(self, pairs: Sequence[Pair], bounds: Sequence[int] | None) -> Plan:
        plan = make_plan(
            pairs,
            max_length=self.max_length,
            hidden_size=self._hidden_size(),
            header_overhead=HEADER_OVERHEAD,
            row_tokens=0,
        )
        return plan if bounds is None else self._summed(plan, bounds)

    def _holds(self, plan: Plan) -> bool:
        return True  # a kept state is the runtime's own: there is nothing to prove

    def _generate(self, prompts: list[list[int]], kwargs: dict[str, Any], until: list[str], most: int) -> list[list[int]]:
        if not is_greedy(kwargs, self.generation_config):
            raise Unsupported("this task samples or penalizes; the OpenVINO engine generates greedily only")
        ends = self.generation_config.eos_token_id
        stops = Stops(self.tokenizer, until, [] if ends is None else [ends] if isinstance(ends, int) else list(ends))
        return [self._continue(prompt, most, stops) for prompt in prompts]

    def _continue(self, prompt: list[int], most: int, stops: Stops) -> list[int]:
        self.program.clear()
        logits = self.program.run(np.array([prompt]), np.array([len(prompt) - 1]))
        new = [int(logits[0].argmax())]
        while len(new) < most and not stops(new):
            new.append(int(self.program.run(np.array([new[-1:]]), np.zeros(1, np.int64))[0].argmax()))
        return new
