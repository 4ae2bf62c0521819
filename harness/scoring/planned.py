"""Scorers that plan: the pairs of a set of requests become one plan, kept on disk, which an executor runs.

A plan says which tokens are computed once for many requests, and where the output head is needed (`harness.scoring.plan`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.models.corpora import tokenizer_digest
from harness.scoring.plan import HEADER_OVERHEAD, ROW_TOKENS, Plan, make_plan
from harness.scoring.plan_cache import PlanCache
from harness.scoring.plan_canary import PlanExecutor, plans_differ
from harness.scoring.requests import Answer, Encoded, HfSettings, Pair, RequestsLM, Text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRules:
    """What a scorer asks of its plans; see `make_plan`. `name`: how the rules stand in a plan's key on disk."""

    name: tuple[str | int, ...]
    hidden_size: int
    share_limit: int
    header_overhead: float = HEADER_OVERHEAD
    row_tokens: int = ROW_TOKENS


@dataclass(slots=True, kw_only=True)
class Work:
    """Tokens counted so far: of the requests as plain rows, those of the plans, and those that were scored."""

    plain: int = 0
    run: int = 0
    scored: int = 0


class PlannedLM(RequestsLM):
    """A scorer that plans its requests. `plan_folder`: where plans are kept and found again, per tokenizer and requests (None:
    nowhere). `share`: whether inputs may share prefixes at all. Further keywords are those of `RequestsLM`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        config: PreTrainedConfig,
        executor: PlanExecutor,
        rules: PlanRules,
        plan_folder: Path | None,
        share: bool = True,
        device: torch.device | None = None,
        context_length: int | None = None,
        settings: HfSettings | None = None,
    ) -> None:
        super().__init__(tokenizer, config=config, device=device, context_length=context_length, settings=settings)
        self.plan_executor = executor
        self.rules = rules
        self.share = share
        self.plans = PlanCache(plan_folder, self.notes)
        self._tokenizer_digest: str | None = None
        self._work = Work()
        self._proven = False

    def tokenizer_digest(self) -> str:
        """SHA-256 of all that decides how the tokenizer encodes."""
        if self._tokenizer_digest is None:
            self._tokenizer_digest = tokenizer_digest(self.tokenizer)
        return self._tokenizer_digest

    def _holds(self, plan: Plan) -> bool:
        """Whether the executor answers this plan as it would answer plain rows. False only where it has just switched `share`
        off, so that the plan is made again. Here: a canary, packed and each of its inputs alone, before anything is shared."""
        if self._proven or not plan.shared:
            return True
        self._proven = True
        vocabulary = int(self.config.get_text_config().vocab_size)
        why = plans_differ(self.plan_executor, vocabulary=vocabulary, row_tokens=self.rules.row_tokens)
        if why is None:
            return True
        self.share = False
        self.notes.append(f"plain rows: {why}")
        return False

    def _answers(self, kind: str, texts: Sequence[Text], encode: Callable[[], Encoded]) -> list[Answer]:
        return self._run(self._checked(lambda: self._load_or_make(kind, texts, encode)))

    def _token_answers(self, pairs: Sequence[Pair]) -> list[Answer]:
        encoded = Encoded(pairs=pairs)
        return self._run(self._checked(lambda: self._make(encoded)))

    def _checked(self, make: Callable[[], Plan]) -> Plan:
        plan = make()
        while not self._holds(plan):
            plan = make()
        return plan

    def _load_or_make(self, kind: str, texts: Sequence[Text], encode: Callable[[], Encoded]) -> Plan:
        """Found on disk, or made (and kept there)."""

        def key() -> list[object]:
            asked: list[object] = [self.tokenizer_digest(), kind, self.prefix_token_id, self.add_bos_token, self.max_length]
            rules = self.rules
            return [*asked, rules.hidden_size, self.share, rules.share_limit, *rules.name, texts]

        return self.plans.find_or_make(key, lambda: self._make(encode()))

    def _make(self, encoded: Encoded) -> Plan:
        rules = self.rules
        plan = make_plan(
            encoded.pairs,
            max_length=self.max_length,
            hidden_size=rules.hidden_size,
            share=self.share,
            share_limit=rules.share_limit,
            header_overhead=rules.header_overhead,
            row_tokens=rules.row_tokens,
        )
        if encoded.bounds is None:
            return plan
        return dataclasses.replace(plan, request_start=plan.request_start[np.array(encoded.bounds)])

    def _run(self, plan: Plan) -> list[Answer]:
        self._must_fit(plan.deepest)
        self._count(plan.asked, plan.cut)
        self._work.plain += plan.plain_tokens
        self._work.run += plan.tokens
        self._work.scored += len(plan.target)
        began = time.perf_counter()
        answers = plan.collect(*self.plan_executor.run(plan))
        self.model_seconds += time.perf_counter() - began
        return answers

    def _planned(self) -> dict[str, object]:
        """The part of `report` that all planned scorers have."""
        return {
            "prefix_sharing": self.share,
            "notes": self._said(),
            **self._limits(),
            "plans_made": self.plans.made,
            "plans_from_disk": self.plans.from_disk,
            "tokens_of_plain_rows": self._work.plain,
            "tokens_run": self._work.run,
            "tokens_scored": self._work.scored,
        }
