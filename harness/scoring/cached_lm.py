"""`CachedLM`: lm-eval's requests answered by a transformers model whose keys and values are kept in another type.

A request's context goes through the model in one call; what follows it, the choice that is scored, in a second one, which reads
the context from the cache. One request at a time, because a cache may have one scale for all its rows, and nothing is shared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import Unsupported
from harness.scoring.answers import PlanAnswers
from harness.scoring.generate import Stops, is_greedy
from harness.scoring.head import Split
from harness.scoring.kv_cache import new_cache
from harness.scoring.plan import Ints, Plan
from harness.scoring.planned import PlannedLM, PlanRules
from harness.scoring.requests import Generation, ends_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHOLE_TEXTS = (
    "this task scores a text from its first token on, so that nothing is read from the cache; name the text under `corpora`, "
    "with definition: cached-W+R"
)


class CachedExecutor:
    """Answers plans of unbranched rows, each in two calls with a cache of type `kv` between them."""

    def __init__(self, cut: Split, kv: str) -> None:
        self.cut = cut
        self.kv = kv
        self.calls = 0

    def run(self, plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(log-probability in nats float32, is-the-argmax bool) of every pair of the plan."""
        answers = PlanAnswers(plan)
        for number, row in enumerate(plan.rows):
            scored = plan.scored(number, len(row.tokens))
            places = np.flatnonzero(scored >= 0)
            if not len(places):
                continue
            hidden = self._hidden(row.tokens, int(places[0]))
            for chosen in np.array_split(places, -(-len(places) // self.cut.chunk_rows())):
                logits = self.cut.head(hidden[torch.from_numpy(chosen - places[0]).to(hidden.device)])
                answers.take(scored[chosen], logits.cpu().numpy())
        return answers.logprob, answers.greedy

    def _hidden(self, tokens: Ints, context: int) -> torch.Tensor:
        """Hidden states [T - context, H] of the tokens after the first `context` ones."""
        ids = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))[None].to(self.cut.device)
        cache = new_cache(self.cut.model.config, self.kv)
        if context:
            self.body(ids[:, :context], cache)
        return self.body(ids[:, context:], cache)[0]

    def body(self, ids: torch.Tensor, cache: object) -> torch.Tensor:
        self.calls += 1
        with torch.inference_mode():
            return self.cut.body(ids, past_key_values=cache, use_cache=True)  # type: ignore[arg-type]


class CachedLM(PlannedLM):
    """An `lm_eval.api.model.LM` over a cut model and a type of keys and values. Generation is greedy, one prompt after another,
    a prompt in one call; sampling is Unsupported, and so is what scores whole texts."""

    def __init__(
        self,
        cut: Split,
        kv: str,
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        plan_folder: Path | None = None,
    ) -> None:
        from harness.scoring.requests import HfSettings

        self.executor = CachedExecutor(cut, kv)
        config = cut.model.config
        super().__init__(
            tokenizer,
            config=config,
            executor=self.executor,
            rules=PlanRules(
                name=("cached",),
                hidden_size=int(getattr(config.get_text_config(), "hidden_size", cut.hidden_size)),
                share_limit=0,
                row_tokens=0,
            ),
            plan_folder=plan_folder,
            share=False,
            device=cut.device,
            settings=HfSettings(max_length=max_length),
        )

    def report(self) -> dict[str, object]:
        """What was done, as plain data for a record."""
        return {"engine": "cached", "kv": self.executor.kv, **self._planned(), "model_calls": self.executor.calls}

    def loglikelihood_rolling(self, requests: list[object], disable_tqdm: bool = False) -> list[float]:
        raise Unsupported(WHOLE_TEXTS)

    def _generate(self, prompts: list[list[int]], asked: Generation) -> list[list[int]]:
        config = getattr(self.executor.cut.model, "generation_config", None)
        if not is_greedy(asked.sampling, config):
            raise Unsupported("this task samples or penalizes; through a cache of another type, generation is greedy only")
        stops = Stops(self.tokenizer, asked.until, ends_of(config))
        return [self._continue(prompt, asked.most, stops) for prompt in prompts]

    def _continue(self, prompt: list[int], most: int, stops: Stops) -> list[int]:
        cut = self.executor.cut
        cache = new_cache(cut.model.config, self.executor.kv)
        new: list[int] = []
        ids = prompt
        while len(new) < most and not stops(new):
            hidden = self.executor.body(torch.tensor([ids], dtype=torch.long, device=cut.device), cache)
            new.append(int(cut.head(hidden[0, -1:]).argmax()))
            ids = new[-1:]
        return new
