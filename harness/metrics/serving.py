"""A running server under load."""

from __future__ import annotations

from harness.metrics.group import Group
from harness.spec import Metric

TTFT = Metric(
    name="served_ttft",
    title="Time to first token, served",
    unit="s",
    better="lower",
    definition="request sent to first streamed text, median over requests",
    scale="log",
    description="As a client sees it: queue, tokenizer and HTTP included.",
    axis="cost",
)
TPOT = Metric(
    name="served_tpot",
    title="Time per output token, served",
    unit="s",
    better="lower",
    definition="(end of the answer - first streamed text) / (new tokens - 1), median over requests",
    scale="log",
    description="As one client sees it while the others are served too.",
    axis="cost",
)
THROUGHPUT = Metric(
    name="served_throughput",
    title="Throughput, served",
    unit="tokens/s",
    better="higher",
    definition="new tokens of all requests / seconds from the first sent to the last answered",
    scale="log",
    description="Of all clients together, prompts included in the time.",
    axis="cost",
)
TTFT_P90 = Metric(
    name="served_ttft_p90",
    title="Time to first token, served, p90",
    unit="s",
    better="lower",
    definition="nearest rank over requests",
    axis="cost",
)
TPOT_P90 = Metric(
    name="served_tpot_p90",
    title="Time per output token, served, p90",
    unit="s",
    better="lower",
    definition="nearest rank over requests",
    axis="cost",
)
FAILED = Metric(
    name="served_failed",
    title="Requests that failed",
    unit="share",
    better="lower",
    definition="requests that ended in an error / requests sent",
)
METRICS = (TTFT, TPOT, THROUGHPUT, TTFT_P90, TPOT_P90, FAILED)
GROUP = Group(title="Serving", metrics=METRICS)
