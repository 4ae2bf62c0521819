"""What quantizing cost."""

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
METRICS = (SECONDS, PEAK)
GROUP = Group(title="Quantizing", metrics=METRICS)
