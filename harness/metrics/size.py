"""What is stored: bits per weight and bytes on disk."""

from __future__ import annotations

from harness.metrics.group import Group
from harness.spec import Metric, Places

NOMINAL = Metric(
    name="nominal_bits",
    title="Nominal bits",
    unit="bit",
    better="lower",
    definition="as the scheme says",
    description="Bits per weight that the scheme is named after; scales, zero points and whatever is not quantized come on top.",
)
QUANTIZED = Metric(
    name="bpw_quantized",
    title="Bits per weight, quantized layers",
    unit="bit/weight",
    better="lower",
    definition="stored bits of the quantized linear weights with scales, zero points, codebooks and indices / their parameters",
    description="What a quantized weight really takes. Symmetric 4-bit in groups of 128 with 16-bit scales is 4.125.",
    axis="cost",
)
SHARE = Metric(
    name="quantized_share",
    title="Quantized share",
    unit="share",
    better="neither",
    definition="weights of the body's linear maps that are stored quantized / all weights of the body's linear maps",
    description="The body is the decoder without embedding and head. Below 1, some of its layers are as they were in the source: "
    "the others alone carry the scheme's bits.",
    places=Places(headline=25),
)
MODEL = Metric(
    name="bpw_model",
    title="Bits per weight, whole model",
    unit="bit/weight",
    better="lower",
    definition="all stored tensor bits / all parameters of the source model",
    description="Embeddings, norms and the head included. Parameters that are tied are stored, and counted, once.",
    short="bits per\nweight of\nthe model",
    axis="cost",
    places=Places(axis=10, headline=10, terminal=10),
)
FILE = Metric(
    name="file_bytes",
    title="File size",
    unit="B",
    better="lower",
    definition="files on disk that carry tensors",
    scale="log",
    description="Bytes of the tensor-carrying files that deploying this cell would copy, links resolved, each file once.",
    axis="cost",
    places=Places(axis=20, headline=20),
)
COMPRESSION = Metric(
    name="compression",
    title="Compression",
    unit="x",
    better="higher",
    definition="16 bits x parameters / all stored tensor bits",
    description="How many times smaller than the same model in 16 bits.",
)
METRICS = (NOMINAL, QUANTIZED, SHARE, MODEL, FILE, COMPRESSION)
GROUP = Group(title="Size", metrics=METRICS)
