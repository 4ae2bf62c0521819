"""What a model loses by each of its layers alone, which decides the widths of a mixture."""

from __future__ import annotations

from harness.metrics.group import Group
from harness.spec import Metric

KL_OF_LAYERS = Metric(
    name="kl_of_layers",
    title="KL of its layers alone, added up",
    unit="nat",
    better="lower",
    definition="sum over the layers of mean KL(source || source with this layer alone rounded to its width)",
    scale="log",
    description="What a mixture of widths was expected to lose, on calibration rows: each layer is rounded to its width by "
    "itself in the unquantized model, and the losses are added. What the cell really loses is its KL divergence.",
)
LAYERS = "layers"
"""The key in the raw samples of `KL_OF_LAYERS` under which the layers stand: `layer`, `parameters`, `chosen` (a width's name),
and by width `losses` (nats per token) and `bits` (stored)."""
METRICS = (KL_OF_LAYERS,)
GROUP = Group(title="Sensitivity of layers", metrics=METRICS)
