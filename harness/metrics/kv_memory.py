"""What a token of context takes in memory, weighed from outside."""

from __future__ import annotations

from harness.metrics.group import Group
from harness.spec import Metric

KV_BYTES_PER_TOKEN = Metric(
    name="kv_bytes_per_token",
    title="Keys and values of a token",
    unit="B",
    better="lower",
    definition="growth of the anonymous resident set between two contexts, by tokens of all rows; median of fills but the first",
    scale="log",
    description="What a token of context takes in a process that has answered before. Low and high are extremes of the fills.",
    when_simulated=False,
)
METRICS = (KV_BYTES_PER_TOKEN,)
GROUP = Group(title="Keys and values, weighed", metrics=METRICS)
