"""Time to first token, time per output token, throughput and energy at a declared shape."""

from __future__ import annotations

from harness.metrics.group import Group
from harness.spec import Metric, Places

TTFT = Metric(
    name="ttft",
    title="Time to first token",
    unit="s",
    better="lower",
    definition="prefill to first token, median",
    scale="log",
    description="From the prompt's token ids to the first new token, at the prompt length and batch of the shape.",
    axis="cost",
    places=Places(axis=70, headline=110),
    when_simulated=False,
)
TPOT = Metric(
    name="tpot",
    title="Time per output token",
    unit="s",
    better="lower",
    definition="(end to end - first token) / (new tokens - 1), median",
    scale="log",
    description="One decode step of the whole batch, after the prompt of the shape.",
    short="per\ntoken",
    axis="cost",
    places=Places(axis=60, headline=100, terminal=60),
    when_simulated=False,
)
THROUGHPUT = Metric(
    name="throughput",
    title="Decode throughput",
    unit="tokens/s",
    better="higher",
    definition="batch / time per output token, median (tg)",
    scale="log",
    description="New tokens per second over all rows of the batch: what llama-bench calls tg, here after the prompt.",
    axis="cost",
    places=Places(headline=120),
    when_simulated=False,
)
PREFILL = Metric(
    name="prefill_throughput",
    title="Prefill throughput",
    unit="tokens/s",
    better="higher",
    definition="batch x prompt / time to first token, median (pp)",
    scale="log",
    description="Prompt tokens per second over all rows of the batch: what llama-bench calls pp.",
    axis="cost",
    when_simulated=False,
)


def _percentile(name: str, title: str, over: str) -> Metric:
    """Seconds at a percentile: the nearest rank over all runs, or over all steps of all runs."""
    definition = f"nearest rank over {over}"
    return Metric(name=name, title=title, unit="s", better="lower", definition=definition, axis="cost", when_simulated=False)


def _ratio(name: str, title: str) -> Metric:
    return Metric(
        name=name,
        title=f"{title} against the baseline",
        unit="x",
        better="lower",
        definition="cell / baseline within one round, median over rounds",
        description="Below 1 is faster than the baseline. The two runs of a round follow each other at once.",
        axis="cost",
        when_simulated=False,
    )


TTFT_P90 = _percentile("ttft_p90", "Time to first token, p90", "runs")
TTFT_P99 = _percentile("ttft_p99", "Time to first token, p99", "runs")
STEP_P90 = _percentile("step_p90", "Decode step, p90", "all steps of all runs")
STEP_P99 = _percentile("step_p99", "Decode step, p99", "all steps of all runs")
TTFT_RATIO = _ratio("ttft_ratio", "Time to first token")
TPOT_RATIO = _ratio("tpot_ratio", "Time per output token")

ROOFLINE = Metric(
    name="roofline_share",
    title="Share of the roofline",
    unit="1",
    better="higher",
    definition="floor / time per output token, floor = active weight bytes / bandwidth measured at that size",
    description="1 would be decoding as fast as the weights can be read. Low shares are the kernel's, not the machine's.",
    when_simulated=False,
)
ENERGY_PER_TOKEN = Metric(
    name="energy_per_token",
    title="Energy per new token",
    unit="J",
    better="lower",
    definition="(counted - idle power x seconds) / (batch x (new tokens - 1)) from the first token to the end, median",
    scale="log",
    description="What decoding takes beyond the idle machine, from hardware counters. They count all that the processor does.",
    axis="cost",
    places=Places(headline=125),
    when_simulated=False,
)
ENERGY_PREFILL = Metric(
    name="energy_prefill",
    title="Energy per prompt",
    unit="J",
    better="lower",
    definition="(counted - idle power x seconds) / batch until the first token, median",
    scale="log",
    description="What reading a prompt takes beyond the idle machine, from hardware counters.",
    axis="cost",
    when_simulated=False,
)
ENERGY = (ENERGY_PER_TOKEN, ENERGY_PREFILL)
METRICS = (TTFT, TPOT, THROUGHPUT, PREFILL, TPOT_RATIO, TTFT_RATIO, ROOFLINE, TTFT_P90, TTFT_P99, STEP_P90, STEP_P99, *ENERGY)
GROUP = Group(title="Latency", metrics=METRICS)
