"""`OpenVinoLM`: lm-eval's requests answered by the OpenVINO runtime, with the plans of every planned scorer.

A header is run once and its state kept; the rows below it are run together, each going on from the kept row. The IR's mask is
that of plain causal attention, so rows have no branches here: one input, one row.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness import kv
from harness.errors import Unsupported
from harness.models import build
from harness.runtimes.openvino import BATCH, Program, State
from harness.scoring.answers import PlanAnswers
from harness.scoring.cached_lm import WHOLE_TEXTS
from harness.scoring.execute import CALL_TOKENS, batches
from harness.scoring.generate import Stops, is_greedy
from harness.scoring.plan import Ints, Plan, header_order
from harness.scoring.planned import PlannedLM, PlanRules
from harness.scoring.requests import Generation, ends_of, source_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_TOKENS = 4 * BATCH


class OpenVinoExecutor:
    """Answers plans of unbranched rows with one program. Where its keys and values are of a quantized type that the suite names,
    rows run one by one, the context in a call of its own, so that what is scored reads it from the cache."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.apart = kv.quantized(program.kv)

    def run(self, plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(log-probability in nats float32, is-the-argmax bool) of every pair of the plan."""
        answers = PlanAnswers(plan)
        program = self.program

        def decode(ids: Ints, scored: Ints, rows: Ints | None) -> None:
            """Runs ids [B, T]; `scored` [B, T] is the index of a token's scored position, or -1. In shorter calls where the
            logits would be too many for one."""
            if self.apart and (context := int((scored[0] >= 0).argmax())):  # one row: its context, and then what is scored
                program.run(ids[:, :context], np.empty(0, np.int64), rows=rows)
                ids, scored, rows = ids[:, context:], scored[:, context:], None
            batch, length = ids.shape
            step = length if (scored >= 0).sum() <= program.most_logits else max(1, program.most_logits // batch)
            for start in range(0, length, step):
                part = np.ascontiguousarray(scored[:, start : start + step]).reshape(-1)
                places = np.flatnonzero(part >= 0)
                logits = program.run(ids[:, start : start + step], places, rows=rows if start == 0 else None)
                if len(places):
                    answers.take(part[places], logits)

        below: dict[int, list[int]] = {}
        for number, row in enumerate(plan.rows):
            below.setdefault(row.header, []).append(number)
        kept: dict[int, State] = {}

        def run_rows(header: int) -> None:
            numbers = below.get(header, [])
            cuts = [[n] for n in numbers] if self.apart else batches(plan.rows, numbers, BATCH_TOKENS, CALL_TOKENS)
            for batch in cuts:
                width = max(len(plan.rows[n].tokens) for n in batch)
                ids, scored = _side_by_side(plan, batch, width)
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
            decode(header.tokens[None], plan.scored(-1 - number, len(header.tokens))[None], None)
            kept[number] = program.keep()
            run_rows(number)
        return answers.logprob, answers.greedy


def _side_by_side(plan: Plan, numbers: list[int], width: int) -> tuple[Ints, Ints]:
    """Ids of rows [rows, width], and the index of each token's scored position or -1. Causal attention never looks right: padding
    needs no mask."""
    ids, scored = np.zeros((len(numbers), width), np.int64), np.full((len(numbers), width), -1, np.int64)
    for line, number in enumerate(numbers):
        tokens = plan.rows[number].tokens
        ids[line, : len(tokens)] = tokens
        scored[line, : len(tokens)] = plan.scored(number, len(tokens))
    return ids, scored


class OpenVinoLM(PlannedLM):
    """An `lm_eval.api.model.LM` over an IR. `model_dir`: the source model, for its limits and end-of-sequence ids.

    Generation is greedy, one prompt after another; sampling is Unsupported.
    """

    def __init__(
        self, program: Program, *, tokenizer: PreTrainedTokenizerBase, model_dir: Path, plan_folder: Path | None = None
    ) -> None:
        config = source_config(model_dir)
        self.program = program
        self.generation_config = build.generation_config(model_dir)
        super().__init__(
            tokenizer,
            config=config,
            executor=OpenVinoExecutor(program),
            rules=PlanRules(
                name=("openvino",),
                hidden_size=int(config.get_text_config().hidden_size),
                share_limit=program.context_length,
                row_tokens=0,
            ),
            plan_folder=plan_folder,
            context_length=program.context_length,
        )

    def report(self) -> dict[str, object]:
        """What was done, as plain data for a record."""
        return {
            "engine": "openvino",
            **self._planned(),
            "tokens_with_padding": self.program.tokens,
            "model_calls": self.program.calls,
        }

    def loglikelihood_rolling(self, requests: list[object], disable_tqdm: bool = False) -> list[float]:
        if kv.quantized(self.program.kv):
            raise Unsupported(WHOLE_TEXTS)
        return super().loglikelihood_rolling(requests, disable_tqdm)

    def _generate(self, prompts: list[list[int]], asked: Generation) -> list[list[int]]:
        if not is_greedy(asked.sampling, self.generation_config):
            raise Unsupported("this task samples or penalizes; the OpenVINO engine generates greedily only")
        stops = Stops(self.tokenizer, asked.until, ends_of(self.generation_config))
        return [self._continue(prompt, asked.most, stops) for prompt in prompts]

    def _continue(self, prompt: list[int], most: int, stops: Stops) -> list[int]:
        self.program.clear()
        logits = self.program.run(np.array([prompt]), np.array([len(prompt) - 1]))
        new = [int(logits[0].argmax())]
        while len(new) < most and not stops(new):
            new.append(int(self.program.run(np.array([new[-1:]]), np.zeros(1, np.int64))[0].argmax()))
        return new
