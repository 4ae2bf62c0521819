"""Answers to a plan from a runtime that gives logits: llama.cpp and OpenVINO."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from harness.scoring.plan import Ints, Plan


class PlanAnswers:
    """`logprob` (nats, float32) and `greedy` (bool) of every pair of a plan, filled as logits come; NaN until then."""

    def __init__(self, plan: Plan) -> None:
        self.logprob = np.full(len(plan.target), np.nan, np.float32)
        self.greedy = np.zeros(len(plan.target), bool)
        self._plan = plan
        self._first = np.searchsorted(plan.position, np.arange(len(plan.owner) + 1))

    def take(self, scored: Ints, logits: NDArray[np.float32]) -> None:
        """`scored` [n]: index of the scored position of each row of logits [n, vocabulary]."""
        first, target = self._first, self._plan.target
        counts = first[scored + 1] - first[scored]
        pairs = np.concatenate([np.arange(first[p], first[p + 1]) for p in scored])
        rows = torch.log_softmax(torch.from_numpy(logits), dim=-1)
        at = torch.from_numpy(np.repeat(np.arange(len(scored)), counts))
        wanted = torch.from_numpy(target[pairs].astype(np.int64))
        self.logprob[pairs] = rows[at, wanted].numpy()
        # argmax gives the first of equal logits, as lm-eval's comparison does
        self.greedy[pairs] = (rows.argmax(dim=-1)[at] == wanted).numpy()
