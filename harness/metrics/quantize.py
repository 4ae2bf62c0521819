"""What quantizing cost, and how far it moved the weights."""

from __future__ import annotations

from harness.metrics.group import Group
from harness.spec import Metric, Places

SECONDS = Metric(
    name="quantize_seconds",
    title="Time to quantize",
    unit="s",
    better="lower",
    definition="wall time of the quantizing call",
    scale="log",
    description="From the call of the library to the packed artifact on disk: loading the source, calibrating, packing, saving.",
    axis="cost",
    places=Places(headline=130),
)
PEAK = Metric(
    name="quantize_peak_bytes",
    title="Peak memory to quantize",
    unit="B",
    better="lower",
    definition="VmHWM of the quantizing process within the call",
    scale="log",
    description="Largest resident set of the quantizing process, counted by the kernel; what it held before is included.",
    axis="cost",
)
WEIGHT_ERROR = Metric(
    name="weight_error",
    title="Relative weight error",
    unit="1",
    better="lower",
    definition="Frobenius norm of W' - W over that of W, all quantized layers as one",
    scale="log",
    description="How far the quantized weights are from the source's. It says nothing of what that does to answers: a method "
    "that calibrates may move weights further and lose less.",
)
LAYERS = "layers"
"""The key in the raw samples of `WEIGHT_ERROR` under which the layers stand, each with its norms and relative error."""
METRICS = (SECONDS, PEAK, WEIGHT_ERROR)
GROUP = Group(title="Quantizing", metrics=METRICS)
