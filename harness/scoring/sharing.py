"""Whether a model may share prefixes: what its configuration says, and the proof on a canary batch.

A packed row or a cached header shows every token all its ancestors, with positions of its own branch. That is the model's own
attention as long as no layer looks back less far, and every layer looks back through keys and values. A configuration can be
silent about it, so packed answers are compared with plain ones before they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.errors import is_out_of_memory
from harness.scoring.execute import Executor
from harness.scoring.head import canary_ids
from harness.scoring.plan import Plan, make_plan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CANARY_DEPTH = 48
"""The canary's inputs are shorter than this; a model that looks back less far runs plain rows."""

DEVIATION = 1e-3
DEVIATION_16_BITS = 0.05
"""How far packed final hidden states may be from plain ones, relative to their size. Seen on a trained model: 5e-7 in float32,
7e-3 in bfloat16 if all is well, 0.5 in either if masks or positions are wrong."""

KV_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


def share_limit(config: PreTrainedConfig) -> tuple[int, str]:
    """(longest input that may share prefixes, 0 for none; why it is limited or ''). Read off a transformers configuration."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    if layers - KV_LAYERS:
        return 0, f"layers that keep no plain keys and values: {', '.join(sorted(layers - KV_LAYERS))}"
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in (None, "sdpa", "eager"):
        return 0, f"attention implementation {implementation!r} takes no mask of ours"
    if getattr(text, "alibi", False):
        return 0, "ALiBi positions"
    limit, reasons = 1 << 30, []
    window = getattr(text, "sliding_window", None)
    if window and getattr(text, "use_sliding_window", True) is not False and (not layers or "sliding_attention" in layers):
        limit = min(limit, int(window))
        reasons.append(f"inputs longer than the sliding window of {window} tokens run as plain rows")
    chunk = getattr(text, "attention_chunk_size", None)
    if chunk and (not layers or "chunked_attention" in layers):
        limit = min(limit, int(chunk))
        reasons.append(f"inputs longer than the attention chunk of {chunk} tokens run as plain rows")
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope"):
        first = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        first = int(first or text.max_position_embeddings)
        limit = min(limit, first)
        reasons.append(f"positions change their meaning in inputs beyond {first} tokens: these run as plain rows")
    return limit, "; ".join(reasons)


def proven_limit(model: PreTrainedModel, executor: Executor) -> tuple[int, str]:
    """`share_limit` if a canary batch gives the same answers packed and plain too; 0 and why if not."""
    limit, reason = share_limit(model.config)
    if limit < CANARY_DEPTH:
        return 0, f"plain rows: {reason}"
    try:
        difference, allowed = _canary(model, executor)
    except Exception as problem:  # any other failure inside a foreign model means the same: it cannot run packed
        if is_out_of_memory(problem):
            raise
        return 0, f"plain rows: packed rows failed on the canary batch ({type(problem).__name__}: {problem})"
    if difference > allowed:
        return 0, f"plain rows: packed and plain answers of the canary batch differ by {difference:.3g} nats"
    return limit, reason


def allowed_deviation(dtype: torch.dtype) -> float:
    """How far packed final hidden states of a dtype may be from plain ones, relative to their size."""
    return DEVIATION if dtype == torch.float32 else DEVIATION_16_BITS


def _canary(model: PreTrainedModel, executor: Executor) -> tuple[float, float]:
    """(root mean square difference in nats of packed from plain answers, what may pass) on a fixed tree of 4 levels.

    What may pass follows from the model's own noise (plain rows alone against plain rows in a batch) and its precision.
    """
    ids = canary_ids(model, 1, 96)[0].tolist()
    requests = []
    for question in range(4):
        context = ids[:20] + ids[20 + question : 30 + 2 * question]
        requests += [(context, ids[50 + 7 * choice + question : 54 + 8 * choice + question]) for choice in range(3)]

    def plain_rows(asked: Sequence[tuple[list[int], list[int]]]) -> Plan:
        return make_plan(asked, max_length=4096, hidden_size=256, share=False)

    packed = make_plan(requests, max_length=4096, hidden_size=256, header_overhead=0.0, row_tokens=40)
    assert packed.headers, "the canary exercises headers"
    assert any(not row.chain for row in packed.rows), "and trees"
    plain = plain_rows(requests)
    answers = np.array([a for a, _ in packed.collect(*executor.run(packed))])
    expected = np.array([a for a, _ in plain.collect(*executor.run(plain))])
    one = plain_rows(requests[-1:])
    alone = one.collect(*executor.run(one))[0][0]
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
