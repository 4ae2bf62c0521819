"""The least time that a decoded token can take: every active weight is read once, at the bandwidth measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.engines.base import EngineFacts
from harness.errors import BadInput
from harness.formats import attention_rules, config_json
from harness.measure import bandwidth
from harness.models.find import shape_of, tensors
from harness.probes.base import Session

_ELEMENT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_TABLES = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """What bounds a decode step from below: the weights that it reads, the bandwidth at that working set (see `Bandwidth`), and
    the seconds that this takes at least."""

    active_weight_bytes: int
    resident_weight_bytes: int
    bandwidth_bytes_per_second: float
    bandwidth_kernel: str
    bandwidth_by_kernel: Mapping[str, float]
    bandwidth_working_set_bytes: int
    level: str
    others_cpu_share: float | None
    floor_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRoofline:
    """Why there is no such bound."""

    reason: str


def floor(session: Session, engine: EngineFacts) -> Roofline | NoRoofline:
    """The bound of one decode step of the loaded cell. The bandwidth is measured once for each working set."""
    resident = engine.resident_weight_bytes
    if resident <= 0:
        return NoRoofline(reason="the engine does not say how many bytes it holds")
    active = engine.details.get("active_weight_bytes")
    if active is None:
        active = active_weight_bytes(session.model_dir, resident)
    if isinstance(active, str):
        return NoRoofline(reason=active)
    memo = f"bandwidth {active}"
    if memo not in session.memo:
        cache = getattr(session, "cache", None)
        try:
            session.memo[memo] = bandwidth.bandwidth(
                active, device=session.device, cache=None if cache is None else Path(cache) / "machine"
            )
        except ImportError as error:
            session.memo[memo] = NoRoofline(reason=f"bandwidth cannot be measured here: {error}")
    measured = session.memo[memo]
    if not isinstance(measured, bandwidth.Bandwidth):
        return NoRoofline(reason=measured.reason)
    return Roofline(
        active_weight_bytes=active,
        resident_weight_bytes=resident,
        bandwidth_bytes_per_second=measured.bytes_per_second,
        bandwidth_kernel=measured.kernel,
        bandwidth_by_kernel=measured.by_kernel,
        bandwidth_working_set_bytes=measured.working_set_bytes,
        level=measured.level,
        others_cpu_share=measured.others_cpu_share,
        floor_seconds=active / measured.bytes_per_second,
    )


def active_weight_bytes(model_dir: Path, resident: int) -> int | str:
    """Of the bytes an engine holds, those that every decode step reads, or why that cannot be said.

    All but the input embedding, of which a step reads a row per sequence, unless it is the output head too (tied). It is taken
    at its size in the source model: methods leave it as it is. Where a step reads only some experts there is no one number.
    """
    try:
        shape = shape_of(model_dir)
        stored = tensors(model_dir)
    except (BadInput, OSError) as error:
        return f"the source model's shape cannot be read: {error}"
    config = config_json.text_part(attention_rules.complete(shape.config))
    if config_json.integer(config, "num_experts", "num_local_experts", "n_routed_experts"):
        return "a mixture of experts: how many weights a step reads depends on the token"
    if shape.tied:
        return resident
    tables = [
        math.prod(sizes) * _ELEMENT_BYTES.get(dtype, 0) for name, (dtype, sizes) in stored.items() if name.endswith(_TABLES)
    ]
    return max(0, resident - max(tables, default=0))
