"""Which cell to deploy, under a reader's limits: one specification (docs/recommend.md), here and in the page's script.

`decide(candidates, limits)` is total and deterministic: every cell gets a verdict, every limit that it does not keep is
named with its number. `say(candidates, limits, recommendation)` puts it in words. `report/assets/decide.js` has the same
functions over the same JSON; `tests/decide/cases.jsonl.gz` holds cases that both must answer alike. Standard library only.
"""

from __future__ import annotations

from harness.decide.rules import decide, memory_at
from harness.decide.types import (
    CONFIDENCES,
    KINDS,
    PREFERENCES,
    Cache,
    Candidate,
    Change,
    Decision,
    Kind,
    Limits,
    Loss,
    Memory,
    Number,
    Obstacle,
    Prefer,
    Recommendation,
    Sentences,
    Settle,
    Speed,
    Verdict,
)
from harness.decide.words import say

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this package: it is no part of the source digest (run/source.py)."""

__all__ = [
    "CONFIDENCES",
    "KINDS",
    "PREFERENCES",
    "Cache",
    "Candidate",
    "Change",
    "Decision",
    "Kind",
    "Limits",
    "Loss",
    "Memory",
    "Number",
    "Obstacle",
    "Prefer",
    "Recommendation",
    "Sentences",
    "Settle",
    "Speed",
    "Verdict",
    "decide",
    "memory_at",
    "say",
]
