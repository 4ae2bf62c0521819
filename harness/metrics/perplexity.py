"""How well a text is predicted."""

from __future__ import annotations

from harness.metrics.group import Group
from harness.spec import Metric, Places

PERPLEXITY = "perplexity"

METRICS = (
    Metric(
        name=PERPLEXITY,
        title="Perplexity",
        unit="",
        better="lower",
        definition="gptq-L",
        scale="log",
        description="exp of the mean negative log-likelihood per token (or per word or byte, as the definition says). Token "
        "perplexities of different tokenizers are never compared.",
        short="PPL",
        axis="quality",
        places=Places(axis=20, headline=30, ladder=10, terminal=20),
        samples="losses",
        monotone=True,
    ),
    Metric(
        name="bits_per_byte",
        title="Bits per byte",
        unit="bit/byte",
        better="lower",
        definition="bits-per-byte",
        description="Negative log-likelihood in bits over the bytes of the scored text: comparable between tokenizers.",
        axis="quality",
        places=Places(axis=30, ladder=20),
    ),
    Metric(
        name="nonfinite_tokens",
        title="Non-finite tokens",
        unit="tokens",
        better="lower",
        definition="scored tokens whose log-likelihood is NaN or infinite",
        description="Of the baseline, and left out of all cells of the model; any other number than 0 marks the cell. A cell "
        "that has others fails.",
    ),
)
GROUP = Group(title="Perplexity", metrics=METRICS)
