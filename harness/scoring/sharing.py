"""Whether a model may share prefixes and batches: what its loaded configuration says, and proofs.

A packed row or a cached header shows every token all its ancestors, with positions of its own branch. That is the model's own
attention as long as no layer looks back less far, every layer looks back through keys and values, and no rule goes by a token's
place in the row: a later branch stands further from its prefix there than it does alone. A configuration can be silent about it,
so packed answers are compared with plain ones before they are used: on a small canary when a model comes, beyond every length
after which its configuration says that a rule acts before rows reach so far, and on the furthest rows of the data. A batch is
compared with its shortest row alone in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.formats import attention_rules
from harness.scoring import plan_canary
from harness.scoring.execute import Executor
from harness.scoring.head import allowed_deviation, canary_ids
from harness.scoring.plan import Header, Plan, Row
from harness.scoring.plan_canary import caught

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CANARY_DEPTH = 48
"""The canary's inputs are not longer than this; a model that looks back less far runs plain rows."""

PREFIX = 16
"""Tokens that the branches of a displaced canary share."""


def share_limit(config: PreTrainedConfig) -> tuple[int, str]:
    """(longest input that may share prefixes, 0 for none; why it is limited or ''). Read off a loaded configuration."""
    rules = attention_rules.of_loaded(config)
    if rules.other_layers:
        return 0, f"layers that keep no plain keys and values: {', '.join(rules.other_layers)}"
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in (None, "sdpa", "eager"):
        return 0, f"attention implementation {implementation!r} takes no mask of ours"
    if rules.alibi:
        return 0, "ALiBi positions"
    limit, reasons = 1 << 30, []
    for name, tokens in rules.windows.items():
        limit = min(limit, tokens)
        said = name.replace("_", " ") if name == "sliding_window" else name
        reasons.append(f"inputs longer than the {said} of {tokens} tokens run as plain rows")
    if rules.rope:
        limit = min(limit, rules.original)
        reasons.append(f"positions change their meaning in inputs beyond {rules.original} tokens: these run as plain rows")
    return limit, "; ".join(reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why a plan must not run packed, and why its rows must not share a batch; None where they may."""

    packed: str | None
    company: str | None


class Sharing:
    """What one model may share, proven as far as its data needs.

    `limit`: the longest input that may share prefixes, 0 for none. `remark`: why it is limited, or ''.
    """

    def __init__(self, model: PreTrainedModel, executor: Executor, *, wanted: bool = True) -> None:
        self._model = model
        self._executor = executor
        self._allowed = allowed_deviation(model, executor.split.hidden_dtype)
        self._edges = attention_rules.of_loaded(model.config).edges
        self._proven_edge = 0
        self._proven_reach = 0
        self._proven_generation = 0
        self.limit, self.remark = self._begin() if wanted else (0, "prefix sharing is switched off")

    def _begin(self) -> tuple[int, str]:
        """`share_limit`, if a canary batch gives the same answers packed and plain; 0 and why if not."""
        limit, reason = share_limit(self._model.config)
        if limit < CANARY_DEPTH:
            return 0, f"plain rows: {reason}"
        why = caught("packed rows failed on the canary batch", lambda: _canary_differs(self._model, self._executor))
        return (limit, reason) if why is None else (0, f"plain rows: {why}")

    def check(self, plan: Plan) -> Refused:
        """What of packing and of batches must not be used on a plan. Asked again only where data reaches further than what was
        proven: beyond the next length at which a rule acts, or twice as far."""
        reach = max((plan.reach(number) for number in range(len(plan.rows))), default=0)
        edge = max((edge for edge in self._edges if edge < reach), default=0)
        packed = None
        if plan.shared and edge > self._proven_edge:
            packed = caught(f"rows of more than {edge} tokens failed", lambda: self._beyond(edge))
            self._proven_edge = edge
        if packed is not None or reach <= 2 * self._proven_reach:
            return Refused(packed=packed, company=None)
        far = self._executor.deviation(plan)
        company = None
        if far.packed > self._allowed:
            packed = f"at {reach} tokens, packed hidden states differ from plain ones by {far.packed:.3g} of their size"
        else:
            self._proven_reach = reach
        if far.company > self._allowed:
            company = (
                f"in a batch, an input differs from the same input alone by {far.company:.3g} of the size of its hidden states"
            )
        return Refused(packed=packed, company=company)

    def _beyond(self, edge: int) -> str | None:
        """Whether a branch keeps its answer where its prefix stands more than `edge` places before it."""
        gap = max(self._executor.deviation(plan).packed for plan in _displaced(self._model, edge))
        if gap <= self._allowed:
            return None
        return (
            f"more than {edge} places from its prefix in a row, a branch differs from the same input alone by {gap:.3g} of the "
            "size of its hidden states"
        )

    def why_not_generate(self, deepest: int, company: Callable[[], float]) -> str | None:
        """Why prompts must not go on from a shared cache, or None. `company` measures it; asked again where prompts and their new
        tokens are twice as long as what was proven."""
        if deepest <= 2 * self._proven_generation:
            return None

        def differs() -> str | None:
            gap = company()
            return None if gap <= self._allowed else f"cached states differ from plain ones by {gap:.3g} of their size"

        why = caught("generation from a shared cache failed", differs)
        if why is None:
            self._proven_generation = deepest
        return why


def _displaced(model: PreTrainedModel, edge: int) -> Iterator[Plan]:
    """A prefix with branches, the last of them more than `edge` places from it: in one row, and as a header with a row below."""
    branch = CANARY_DEPTH - PREFIX
    count = (edge + PREFIX) // branch + 2
    ids = canary_ids(model, 1, PREFIX + count * branch)[0].cpu().numpy()
    depth = np.concatenate([np.arange(PREFIX), np.tile(np.arange(PREFIX, CANARY_DEPTH), count)])
    last = np.concatenate([np.full(PREFIX, len(ids)), PREFIX + np.repeat(np.arange(1, count + 1) * branch, branch)])
    row = Row(header=-1, tokens=ids, depth=depth, last=last)
    yield _unasked((), row)
    below = Row(header=0, tokens=ids[PREFIX:], depth=depth[PREFIX:], last=last[PREFIX:] - PREFIX)
    yield _unasked((Header(parent=-1, start=0, tokens=ids[:PREFIX]),), below)


def _unasked(headers: tuple[Header, ...], row: Row) -> Plan:
    """A plan that is only looked at: nothing in it is scored."""
    none = np.empty(0, np.int64)
    return Plan(
        headers=headers,
        rows=(row,),
        owner=none,
        offset=none,
        position=none,
        target=none,
        request_pairs=none,
        request_start=np.zeros(1, np.int64),
        plain_tokens=len(row.tokens),
        deepest=CANARY_DEPTH,
        asked=0,
        cut=0,
    )


def _canary_differs(model: PreTrainedModel, executor: Executor) -> str | None:
    difference, allowed = _canary(model, executor)
    return None if difference <= allowed else f"packed and plain answers of the canary batch differ by {difference:.3g} nats"


def _canary(model: PreTrainedModel, executor: Executor) -> tuple[float, float]:
    """(root mean square difference in nats of packed from plain answers, what may pass) on a fixed tree of 4 levels.

    What may pass follows from the model's own noise (plain rows alone against plain rows in a batch) and its precision.
    """
    asked = plan_canary.requests(canary_ids(model, 1, plan_canary.TOKENS)[0].tolist())
    packed = plan_canary.packed(asked, row_tokens=40)
    assert any(not row.chain for row in packed.rows), "the canary exercises trees"
    answers = plan_canary.answers(executor, packed)
    expected = plan_canary.answers(executor, plan_canary.plain(asked))
    alone = float(plan_canary.answers(executor, plan_canary.plain(asked[-1:]))[0])
    fine = np.isfinite(expected)
    if not (fine == np.isfinite(answers)).all():
        return float("inf"), 0.0
    if not fine.any():
        return 0.0, 0.0  # nothing but NaN either way
    noise = float(np.nan_to_num(alone - expected[-1]))
    precision = float(torch.finfo(executor.split.hidden_dtype).eps)
    spread = float(expected[fine].std())
    allowed = max(4 * abs(noise), max(1e-3, 4 * precision) * spread, 1e-4)
    return float(np.sqrt(((answers - expected)[fine] ** 2).mean())), allowed
