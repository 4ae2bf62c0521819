"""Requests that share what requests can share: answered packed and alone, they show whether an executor shares well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import is_out_of_memory
from harness.scoring.plan import Plan, make_plan

TOKENS = 96
"""Token ids that the requests are made of."""

SHARE_OF_SPREAD = 0.05
"""How far packed answers of another engine may be from answers alone, in standard deviations of the answers: such engines round
inputs, keys and values to 16 bits or less. A branch that sees what it must not, or misses something, is off by about one."""

Requests = list[tuple[list[int], list[int]]]


class PlanExecutor(Protocol):
    """What runs plans."""

    def run(self, plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(log-probability in nats, is-the-argmax) of every pair of the plan."""


def requests(ids: Sequence[int]) -> Requests:
    """Twelve (context, continuation) of a prefix, four questions and three choices each, from `TOKENS` ids."""
    asked: Requests = []
    for question in range(4):
        context = [*ids[:20], *ids[20 + question : 30 + 2 * question]]
        asked += [(context, list(ids[50 + 7 * choice + question : 54 + 8 * choice + question])) for choice in range(3)]
    return asked


def packed(asked: Requests, *, row_tokens: int) -> Plan:
    """A plan with headers, and with trees where `row_tokens` lets rows branch."""
    plan = make_plan(asked, max_length=4096, hidden_size=256, header_overhead=0.0, row_tokens=row_tokens)
    assert plan.headers, "the canary exercises headers"
    return plan


def plain(asked: Requests) -> Plan:
    return make_plan(asked, max_length=4096, hidden_size=256, share=False)


def answers(executor: PlanExecutor, plan: Plan) -> NDArray[np.float64]:
    """The sums of log-probabilities of a plan's requests."""
    return np.array([value for value, _ in plan.collect(*executor.run(plan))])


def plans_differ(executor: PlanExecutor, *, vocabulary: int, row_tokens: int) -> str | None:
    """Why an executor's packed answers are not those of each input alone, or None."""
    asked = requests([(k * 7919) % vocabulary for k in range(1, TOKENS + 1)])

    def differs() -> str | None:
        alone = np.concatenate([answers(executor, plain([one])) for one in asked])
        together = answers(executor, packed(asked, row_tokens=min(row_tokens, 40)))
        gap, allowed = float(np.sqrt(((together - alone) ** 2).mean())), SHARE_OF_SPREAD * float(alone.std())
        if gap <= allowed or not np.isfinite(alone).all():
            return None
        return f"packed answers of the canary batch differ by {gap:.3g} nats from those of each input alone"

    return caught("packed rows failed on the canary batch", differs)


def caught(what: str, proof: Callable[[], str | None]) -> str | None:
    """What a proof says. A failure inside a foreign model means the same as a difference; running out of memory does not."""
    try:
        return proof()
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        return f"{what} ({type(problem).__name__}: {problem})"
