"""Memory at a declared context."""

from __future__ import annotations

from dataclasses import dataclass

from harness.metrics.group import Group
from harness.spec import Axis, Metric, Places

HOST = "largest resident set within the phase beyond the process before load, code pages apart (VmHWM)"
DEVICE = "largest bytes allocated on the device within the phase (torch.cuda.max_memory_allocated)"
_PEAK = "peak\nmemory"
"""Heading of the one column that shows whichever of the peaks was measured."""


def _bytes(
    name: str,
    title: str,
    definition: str,
    description: str,
    *,
    short: str = "",
    axis: Axis | None = "cost",
    places: Places | None = None,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit="B",
        better="lower",
        definition=definition,
        scale="log",
        description=description,
        short=short,
        axis=axis,
        places=places or Places(),
        when_simulated=False,
    )


PEAK_LOAD = _bytes("peak_load_bytes", "Peak memory, load", HOST, "From an idle process to a model that can answer.")
PEAK_PREFILL = _bytes(
    "peak_prefill_bytes", "Peak memory, prefill", HOST, "Reading the prompt to the first token, weights included."
)
PEAK_DECODE = _bytes(
    "peak_decode_bytes",
    "Peak memory, decode",
    HOST,
    "Generating after the prompt, weights and KV cache included.",
    short=_PEAK,
    places=Places(axis=50, terminal=50),
)
PEAK_HOST = _bytes(
    "peak_host_bytes",
    "Peak host memory",
    "largest of load, prefill and decode on the host, beyond the process before load, code pages apart (VmHWM)",
    "What a machine must have free beyond the runtime to load this cell and answer at the declared context and batch.",
    short=_PEAK,
    places=Places(axis=40, headline=90, terminal=50),
)
PEAK_DEVICE = _bytes(
    "peak_device_bytes",
    "Peak device memory",
    "largest of load, prefill and decode, allocated (torch.cuda.max_memory_allocated)",
    "Bytes that the allocator handed out on the GPU at most; what it reserved beyond that is in the facts.",
    short=_PEAK,
    places=Places(axis=30, headline=80, terminal=50),
)
WEIGHTS = _bytes(
    "weight_bytes_resident", "Weights, resident", "tensor storages held by the engine", "Each storage once, after load."
)
KV_CACHE = _bytes(
    "kv_cache_bytes",
    "KV cache",
    "tensor storages of the cache at the end of decode",
    "Grows with context and batch.",
    axis=None,  # the same for every cell of a model, whatever its weights
)
KV_POOL = _bytes(
    "kv_pool_bytes",
    "KV pool",
    "bytes that the engine has reserved for keys and values, used or not",
    "Set aside by a server for all its requests, and part of every peak: its operator's choice (in vLLM kv_cache_gib), and no "
    "need of the weights.",
    axis=None,
)
REST = Metric(
    name="rest_bytes",
    title="Rest",
    unit="B",
    better="lower",
    definition="peak of decode less resident weights and KV cache",
    description="Activations, dequantized copies, the allocator's slack. Negative if part of the weights was never touched.",
    when_simulated=False,
)
SERVER = _bytes(
    "server_bytes",
    "Server processes",
    "proportional set size of the server's processes after answering the declared shape (smaps_rollup)",
    "All host memory of a running server: runtime, weights, cache. What its caches keep from earlier requests is in it.",
)
SERVER_RSS = _bytes(
    "server_rss_bytes",
    "Server processes, resident sets",
    "resident sets of the server's processes added up, after answering the declared shape (VmRSS)",
    "Pages that two of its processes share count twice.",
)
RUNTIME = _bytes(
    "runtime_bytes",
    "Runtime",
    "resident set before load plus the code pages touched since",
    "Python, torch and the libraries: needed whatever the model; already subtracted from every other figure.",
    axis=None,
)
METRICS = (
    PEAK_DECODE,
    PEAK_PREFILL,
    PEAK_LOAD,
    PEAK_HOST,
    PEAK_DEVICE,
    WEIGHTS,
    KV_CACHE,
    KV_POOL,
    REST,
    RUNTIME,
    SERVER,
    SERVER_RSS,
)
GROUP = Group(title="Memory", metrics=METRICS)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """`layers` of attention, each with a key and a value of `kv_heads` x `head_size` numbers for each token; `windowed` of
    them keep the last `window` tokens only."""

    layers: int
    kv_heads: int
    head_size: int
    windowed: int = 0
    window: int | None = None
