"""Bytes that keys and values take for each token of context, as the growth of the resident set between two contexts.

For engines that hold keys and values where nobody can count them: OpenVINO's state of few bits must not be read (docs/kv.md), and
arithmetic does not know what a runtime keeps beside it. An empty cache of so many rows is filled to a short context and on to a
long one; what is freed is given back, and the anonymous resident set is read, at both. It is done again with a new cache each
time: the first fill also grows the runtime's own scratch memory, which the later ones find there, so that it is left out. Rows
are as many as it takes for the growth to be far above what a heap keeps by chance.

A growth that is small all the same, or that differs between fills, is no number: Unsupported, with what was seen.

Version 1 (2026-11-30): first definition.
"""

from __future__ import annotations

import ctypes
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict

from harness import kv
from harness.engines.base import Fills
from harness.errors import BadInput, Unsupported
from harness.formats import cache_shape, config_json
from harness.measure import memory_phases
from harness.metrics.kv_memory import GROUP, KV_BYTES_PER_TOKEN
from harness.metrics.memory import CacheShape
from harness.probes.base import Probe, Session
from harness.probes.memory import give_back_free_heap
from harness.probes.requests import ProbeRequests
from harness.spec import Answer, Measurement, Question

LONGEST = 1024
"""Tokens of the long context at most: as many as the model takes, if those are fewer. The short one is a sixteenth of it."""

GROWTH = 16 << 20
"""Bytes that the cache should grow by."""

NOISE = 4 << 20
"""Bytes; 2.6 MB were seen that a heap kept or gave back by chance between two readings. Less growth is no measurement."""

SPREAD = 0.1
"""Share of the median by which fills may differ."""

FILLS = 4
MOST_ROWS = 256


def questions(requests: ProbeRequests) -> list[Question]:
    return [Question(probe="kv_memory", subject="", options={})]


def measure(session: Session, question: Question) -> Answer:
    memory_phases.require()
    shape, longest = _shape(session)
    settled = _have_blocks_given_back()
    loaded = session.loaded
    if loaded.facts().simulated:
        raise Unsupported("simulated: the engine holds these weights dequantized, so its memory is not that of the scheme")
    if not isinstance(loaded, Fills):
        raise Unsupported("this engine cannot be asked to hold the keys and values of so many tokens")
    contexts = (longest // 16, longest)
    each = _arithmetic(session, shape)
    tokens = contexts[1] - contexts[0]
    rows = min(MOST_ROWS, math.ceil(GROWTH / (each * tokens)))
    with session.phase("fill"):
        grown = [_growth(loaded, contexts, rows=rows, seed=session.seed + number) for number in range(FILLS)]
    facts = {
        "contexts": list(contexts),
        "rows": rows,
        "growth_bytes": grown,
        "arithmetic_bytes_per_token": each,
        "kv_shape": asdict(shape),
        "blocks_given_back": settled,
    }
    return Answer(measurements=(measurement(grown[1:], rows * tokens),), facts=facts)


def measurement(grown: Sequence[int], tokens: int) -> Measurement:
    """Bytes of a token, of growths by so many `tokens` each. Unsupported where they are within the noise."""
    middle = statistics.median(grown)
    seen = f"the resident set grew by {', '.join(f'{value:,}' for value in grown)} bytes with {tokens:,} tokens"
    if min(grown) < NOISE:
        raise Unsupported(f"{seen}: less than the {NOISE:,} bytes that a heap keeps or gives back by chance")
    if max(grown) - min(grown) > SPREAD * middle:
        raise Unsupported(f"{seen}: the fills differ by more than {SPREAD:.0%}, so that none of them is to be believed")
    return Measurement(
        metric=KV_BYTES_PER_TOKEN.name,
        value=middle / tokens,
        low=min(grown) / tokens,
        high=max(grown) / tokens,
        n=len(grown),
        definition=KV_BYTES_PER_TOKEN.definition,
        unit=KV_BYTES_PER_TOKEN.unit,
    )


def _have_blocks_given_back() -> bool:
    """Has the C library give every block of 64 KiB and more back at once when it is freed; False where it cannot be told to.

    glibc raises that limit to 32 MiB as blocks are freed. From then on a state that grows comes out of a heap whose pages are
    resident already, and the room that a runtime keeps ahead counts as if it were used: 6,857 and 7,150 bytes a token were seen
    where 5,211 and 5,213 are held."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 64 << 10))
    except (OSError, AttributeError):  # not glibc
        return False


_M_MMAP_THRESHOLD = -3
"""mallopt(3)."""


def _growth(engine: Fills, contexts: tuple[int, int], *, rows: int, seed: int) -> int:
    """Bytes by which the resident set grows from the first context to the second."""
    held = []
    for _ in engine.fill(contexts, rows=rows, seed=seed):
        give_back_free_heap()
        held.append(memory_phases.require().anonymous)
    return held[1] - held[0]


def _shape(session: Session) -> tuple[CacheShape, int]:
    """The shape of the model's cache, and the longest context to fill. Unsupported where the configuration does not say it."""
    try:
        config = config_json.read(session.model_dir)
        shape = cache_shape.cache_shape(config)
    except BadInput as error:
        raise Unsupported(f"the number of rows follows from the shape of the cache, and that is not known: {error}") from None
    longest = config.get("max_position_embeddings")
    if shape is None or shape.windowed or not isinstance(longest, int) or longest < 64:
        raise Unsupported("the model's configuration does not say that every layer keeps keys and values of all tokens")
    return shape, min(LONGEST, longest)


def _arithmetic(session: Session, shape: CacheShape) -> float:
    """Bytes of a token by arithmetic; at 16 bits where the suite says nothing of the type."""
    running = session.cell.running
    word = running.kv or "f16"
    return kv.bytes_per_token(running.engine, word, layers=shape.layers, heads=shape.kv_heads, size=shape.head_size)


PROBE = Probe(
    name="kv_memory",
    title=GROUP.title,
    version="1",
    metrics=GROUP.metrics,
    isolation="memory",
    questions=questions,
    measure=measure,
    engines=("openvino",),
)
