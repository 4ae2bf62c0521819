"""Layers at 4 and at 8 bits for OpenVINO, as NNCF mixes them: `ratio`, the share of the weights at 4 bits, follows from the
target, and NNCF's own sensitivity metric says which layers get 8.

The bits of both kinds of layers are counted with the scales and zero points of groups; those of an 8-bit channel are left out,
as they are few. What was reached is counted in the file, and may miss the target: NNCF takes whole layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.methods.base import Mixing, Width
from harness.spec import Scheme

FREE = "weight_quantization_error"
"""The only metric that needs no text."""

WAYS = (
    "max_activation_variance",
    FREE,
    "hessian_input_activation",
    "mean_activation_variance",
    "mean_activation_magnitude",
)
"""nncf.SensitivityMetric, NNCF's own default for a text first."""


def bits(width: Width, options: Mapping[str, Any]) -> float:
    """A float16 scale and, if asymmetric, 4 bits of zero point for each group at 4 bits."""
    group = int(options["group_size"])
    if int(width) == 8 or group < 0:
        return float(width)
    return 4 + (20 if options["type"] == "int4_asym" else 16) / group


def ratio(scheme: Scheme) -> float:
    """The share of the weights at 4 bits: as the scheme says, or as its target needs."""
    if scheme.mixture is None:
        return float(scheme.options["ratio"])
    four, eight = bits(4, scheme.options), bits(8, scheme.options)
    return min(1.0, max(0.0, (eight - scheme.bits) / (eight - four)))


MIXING = Mixing(
    widths=(4, 8),
    known=(4, 8),
    bits=bits,
    options=("type", "group_size", "awq", "scale_estimation", "gptq", "lora_correction"),
    beside=(8, 4),
    ways=WAYS,
    only_at={"type": 4.0},
)
