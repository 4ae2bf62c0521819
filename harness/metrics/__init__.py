"""What the numbers are: every metric of every probe as a row, without the code that measures it.

Probes measure them, the report shows them. They stand apart from both, so that a report is made where nothing can be measured.
"""

from __future__ import annotations

import os

from harness.metrics import (
    divergence,
    fake,
    kv_memory,
    latency,
    memory,
    perplexity,
    quantize,
    sensitivity,
    serving,
    size,
    tasks,
)
from harness.metrics.group import Group
from harness.spec import Metric

__all__ = ["GROUPS", "METRICS", "Group"]

GROUPS: dict[str, Group] = {
    "quantize": quantize.GROUP,
    "size": size.GROUP,
    "sensitivity": sensitivity.GROUP,
    "perplexity": perplexity.GROUP,
    "divergence": divergence.GROUP,
    "tasks": tasks.GROUP,
    "memory": memory.GROUP,
    "kv_memory": kv_memory.GROUP,
    "latency": latency.GROUP,
    "serving": serving.GROUP,
}
"""By probe, in the order of columns."""

if os.environ.get("QUANT_HARNESS_FAKES"):  # the scripted probe of the tests
    GROUPS["fake"] = fake.GROUP

METRICS: dict[str, Metric] = {metric.name: metric for group in GROUPS.values() for metric in group.metrics}
"""Every metric by its name, which is unique."""
