"""The probes: what is measured, one row each. What their numbers are is in `harness.metrics`.

The fake probe, for tests, is there where QUANT_HARNESS_FAKES is set in the environment.
"""

from __future__ import annotations

import os

from harness.probes import (
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
from harness.probes.base import Probe

PROBES: dict[str, Probe] = {
    "quantize": quantize.PROBE,
    "size": size.PROBE,
    "sensitivity": sensitivity.PROBE,
    "perplexity": perplexity.PROBE,
    "divergence": divergence.PROBE,
    "tasks": tasks.PROBE,
    "memory": memory.PROBE,
    "kv_memory": kv_memory.PROBE,
    "latency": latency.PROBE,
    "serving": serving.PROBE,
}
if os.environ.get("QUANT_HARNESS_FAKES"):
    PROBES["fake"] = fake.PROBE
