"""`VllmLM`: lm-eval's requests answered by vLLM, each input a row of its own.

Nothing is shared between rows: vLLM would share by its cache of prefixes, which gives no states of what it finds there. Rows are
asked together as far as one step of vLLM takes them; the same requests make the same steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.errors import Unsupported
from harness.models import build
from harness.runtimes.vllm import Core
from harness.scoring.answers import PlanAnswers
from harness.scoring.generate import Stops, is_greedy
from harness.scoring.plan import Plan
from harness.scoring.planned import PlannedLM, PlanRules
from harness.scoring.requests import Generation, ends_of, source_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VllmExecutor:
    """Answers plans of plain rows with one model."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def run(self, plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(log-probability in nats float32, is-the-argmax bool) of every pair of the plan."""
        if plan.shared:
            raise ValueError("a plan of plain rows is wanted")
        answers = PlanAnswers(plan)
        states = self.core.hidden([row.tokens.tolist() for row in plan.rows])
        for number, hidden in enumerate(states):
            scored = plan.scored(number, len(hidden))
            places = np.flatnonzero(scored >= 0)
            for start, logits in self.core.logits(hidden[places]):
                answers.take(scored[places[start : start + len(logits)]], logits.numpy())
        return answers.logprob, answers.greedy


class VllmLM(PlannedLM):
    """An `lm_eval.api.model.LM` over a model in vLLM. `model_dir`: the source model, for its limits and end-of-sequence ids.

    Generation is greedy, all prompts at once as vLLM schedules them; sampling is Unsupported.
    """

    def __init__(
        self, core: Core, *, tokenizer: PreTrainedTokenizerBase, model_dir: Path, plan_folder: Path | None = None
    ) -> None:
        config = source_config(model_dir)
        self.core = core
        self.generation_config = build.generation_config(model_dir)
        super().__init__(
            tokenizer,
            config=config,
            executor=VllmExecutor(core),
            rules=PlanRules(
                name=("vllm",),
                hidden_size=int(config.get_text_config().hidden_size),
                share_limit=core.context_length,
                row_tokens=0,
            ),
            plan_folder=plan_folder,
            share=False,
            context_length=core.context_length,
        )

    def report(self) -> dict[str, object]:
        """What was done, as plain data for a record."""
        return {"engine": "vllm", **self._planned()}

    def _generate(self, prompts: list[list[int]], asked: Generation) -> list[list[int]]:
        if not is_greedy(asked.sampling, self.generation_config):
            raise Unsupported("this task samples or penalizes; the vLLM engine generates greedily only")
        stops = Stops(self.tokenizer, asked.until, ends_of(self.generation_config))
        return self.core.generate(prompts, most=asked.most, finished=stops)
