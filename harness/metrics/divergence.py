"""How far next-token distributions are from the baseline's."""

from __future__ import annotations

from harness.metrics.group import Group
from harness.spec import Metric, Places

QUANTILES = (("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99_9", 0.999))
DELTA_QUANTILES = (("p01", 0.01), ("p05", 0.05), ("p25", 0.25), ("median", 0.5), ("p75", 0.75), ("p95", 0.95), ("p99", 0.99))
BUCKETS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.95), (0.95, 1.0))
"""By the baseline's top probability: a flipped guess costs nothing where the baseline guesses too."""


KL_MEAN, KL_MAX, KL_FLOOR, KV_KL_MEAN = "kl_mean", "kl_max", "kl_floor", "kv_kl_mean"


def kl_percentile(name: str) -> str:
    """The metric of one of QUANTILES."""
    return f"kl_{name}"


def bucket(low: float, high: float) -> str:
    return f"kl_confidence_{round(low * 100):02d}_{round(high * 100):02d}"


LN_PPL_RATIO = Metric(
    name="ln_ppl_ratio",
    title="ln(perplexity / baseline's)",
    unit="nat",
    better="lower",
    definition="mean paired difference of negative log-likelihoods",
    description="Mean extra loss per token: 0.01 is one percent of perplexity. Tokens not finite in either are left out.",
    axis="quality",
    places=Places(axis=50, ladder=60),
    signed=True,
)
METRICS = (
    Metric(
        name="kl_mean",
        title="KL divergence",
        unit="nat",
        better="lower",
        definition="mean KL(baseline || cell)",
        scale="log",
        description="Mean over scored tokens of the Kullback-Leibler divergence from the baseline's next-token distribution to "
        "the cell's, over the full vocabulary.",
        short="KL",
        axis="quality",
        places=Places(axis=40, headline=40, ladder=30, terminal=30),
        samples="tokens",
        monotone=True,
        floor="kl_floor",
    ),
    *(
        Metric(
            name=f"kl_{name}",
            title=f"KL divergence, {name.replace('_', '.')}",
            unit="nat",
            better="lower",
            definition=f"{name.replace('_', '.')} of KL(baseline || cell) over tokens",
            scale="log",
            # The others order the cells as the mean or the 99th percentile does.
            axis="quality" if name == "p99" else None,
            places=Places(ladder=40 if name == "p99" else None),
        )
        for name, _ in (*QUANTILES, ("max", 1.0))
    ),
    *(
        Metric(
            name=bucket(low, high),
            title=f"KL divergence where the baseline's top probability is {low:g} to {high:g}",
            unit="nat",
            better="lower",
            definition=f"mean KL(baseline || cell), baseline top probability {low:g} to {high:g}",
            scale="log",
        )
        for low, high in BUCKETS
    ),
    Metric(
        name="same_top",
        title="Same top token",
        unit="share",
        better="higher",
        definition="share of tokens with equal argmax",
        description="Share of scored tokens at which the cell's most likely next token is the baseline's.",
        axis="quality",
        places=Places(headline=50, ladder=50),
    ),
    Metric(
        name="delta_p_mean",
        title="Change in the true token's probability, mean",
        unit="probability",
        better="higher",
        definition="mean of p(cell) - p(baseline) of the true token",
        signed=True,
    ),
    Metric(
        name="delta_p_rms",
        title="Change in the true token's probability, RMS",
        unit="probability",
        better="lower",
        definition="root mean square of p(cell) - p(baseline) of the true token",
    ),
    *(
        Metric(
            name=f"delta_p_{name}",
            title=f"Change in the true token's probability, {name}",
            unit="probability",
            better="higher" if level < 0.5 else "neither",
            definition=f"{name} of p(cell) - p(baseline) of the true token",
            signed=True,
        )
        for name, level in DELTA_QUANTILES
    ),
    LN_PPL_RATIO,
    Metric(
        name=KV_KL_MEAN,
        title="KL divergence by quantized keys and values",
        unit="nat",
        better="lower",
        definition="mean KL(own weights, unquantized keys and values || cell)",
        scale="log",
        description="What the type of keys and values costs by itself: the cell against its own weights at unquantized ones, "
        "both read through the cache.",
        short="KL\nby KV",
        samples="tokens",
    ),
    Metric(
        name="kv_same_top",
        title="Same top token with unquantized keys and values",
        unit="share",
        better="higher",
        definition="share of tokens with the argmax of the same weights at unquantized keys and values",
    ),
    Metric(
        name="kv_ln_ppl_ratio",
        title="ln(perplexity / own with unquantized keys and values)",
        unit="nat",
        better="lower",
        definition="mean paired difference from the same weights at unquantized keys and values",
        signed=True,
    ),
    Metric(
        name="kl_floor",
        title="Noise floor of the KL divergence",
        unit="nat",
        better="neither",
        definition="mean KL(baseline || baseline executed otherwise)",
        scale="log",
        description="Measured on the baseline's own cell: the same weights under another legitimate execution. Below it, a cell "
        "is indistinguishable from the baseline.",
    ),
)
GROUP = Group(title="Divergence from the baseline", metrics=METRICS)
