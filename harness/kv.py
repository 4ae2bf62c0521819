"""What keys and values are kept in, in words that mean the same to every engine, and how a text is scored through them.

A suite says `kv: [bf16, int8, {key: int8, value: int4}]`; `Running.kv` holds one word, or `KEY/VALUE` where the two differ. Each
engine has a table of the words it knows, with its own name for them: docs/kv.md shows it. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KvType:
    """A type of keys or values in one engine. `native`: the engine's own name. `bits` of one number, without what `shared` bits
    are kept beside each `group` of numbers (0: the numbers of one head of one token)."""

    native: str
    bits: float
    shared: float = 0.0
    group: int = 0
    said: str = ""

    def bytes_of(self, heads: int, size: int) -> float:
        """Bytes of one token in one layer: `heads` heads of `size` numbers."""
        return heads * (size * self.bits + self.shared * size / (self.group or size)) / 8


PLAIN: Mapping[str, KvType] = {
    "bf16": KvType(native="bf16", bits=16),
    "f16": KvType(native="f16", bits=16),
    "f32": KvType(native="f32", bits=32),
}
"""Unquantized types: what the others are compared with."""


def _hqq(bits: int, stored: float | None = None) -> KvType:
    """A scale and a zero point of 16 bits for each 64 numbers of a head; of 3 bits, ten lie in a word of 32."""
    return KvType(native=f"hqq {bits}", bits=stored or bits, shared=32, group=64, said="QuantizedCache, HQQ, one axis of a head")


_TRANSFORMERS = {
    **PLAIN,
    "int8": _hqq(8),
    "int4": _hqq(4),
    "int3": _hqq(3, 3.2),
    "int2": _hqq(2),
    "int1": _hqq(1),
    "quanto4": KvType(native="quanto 4", bits=4, shared=32, group=64, said="QuantizedCache, optimum-quanto"),
    "quanto2": KvType(native="quanto 2", bits=2, shared=32, group=64, said="QuantizedCache, optimum-quanto"),
    "fp8": KvType(native="float8_e4m3fn", bits=8, said="QuantizedCache, one scale for a layer, frozen by its first call"),
}
_LLAMA = {
    **PLAIN,
    "int8": KvType(native="q8_0", bits=8, shared=16, group=32),
    "int4": KvType(native="q4_0", bits=4, shared=16, group=32),
    "q8_0": KvType(native="q8_0", bits=8, shared=16, group=32),
    "q5_1": KvType(native="q5_1", bits=5, shared=32, group=32),
    "q5_0": KvType(native="q5_0", bits=5, shared=16, group=32),
    "q4_1": KvType(native="q4_1", bits=4, shared=32, group=32),
    "q4_0": KvType(native="q4_0", bits=4, shared=16, group=32),
}
_OPENVINO = {
    **PLAIN,
    "int8": KvType(native="u8", bits=8, shared=64, said="a float32 scale and zero point for each group"),
    "int4": KvType(native="u4", bits=4, shared=64, said="a float32 scale and zero point for each group"),
    "turbo4": KvType(native="u4 TURBO", bits=4, shared=32, said="TurboQuant: rotated, a codebook, a float32 norm for each head"),
    "turbo3": KvType(native="u3 TURBO", bits=3, shared=32, said="TurboQuant: rotated, a codebook, a float32 norm for each head"),
}

ENGINES: dict[str, Mapping[str, KvType]] = {"transformers": _TRANSFORMERS, "llamacpp": _LLAMA, "openvino": _OPENVINO}
"""The words that each engine knows. One that is missing here has no KV type that could be set."""

if os.environ.get("QUANT_HARNESS_FAKES"):  # the tests' scripted engine
    ENGINES["fake"] = {"f16": PLAIN["f16"], "int8": _LLAMA["int8"], "int4": _LLAMA["int4"]}

BY_FLAG: Mapping[str, str] = {"vllm": "fp8"}
"""Engines that take a type as a flag of theirs, with an example, and are no part of the axis."""

LEFT_ALONE: Mapping[str, str] = {"openvino": "u8"}
"""What engines quantize to when nothing is said. All others keep 16 bits or the model's own type."""


def words() -> list[str]:
    """Every word that any engine knows, in the order of their tables."""
    return list(dict.fromkeys(word for table in ENGINES.values() for word in table))


def halves(kv: str) -> tuple[str, str]:
    """The words of keys and values."""
    key, _, value = kv.partition("/")
    return key, value or key


def joined(key: str, value: str) -> str:
    return key if key == value else f"{key}/{value}"


def quantized(kv: str) -> bool:
    """Whether keys or values are kept in fewer bits than 16. False where nothing is said."""
    return any(word not in ("", *PLAIN) for word in halves(kv))


def types(engine: str, kv: str) -> tuple[KvType, KvType]:
    """The types of keys and values of an engine. KeyError for a word that it does not know."""
    key, value = (ENGINES[engine][word] for word in halves(kv))
    return key, value


def said(engine: str, kv: str) -> dict[str, str]:
    """What an engine is told, by its own names, for a record."""
    key, value = types(engine, kv)
    return {"key": key.native, "value": value.native}


def note(engine: str, kv: str) -> str:
    """The same in words."""
    told = said(engine, kv)
    return f"keys in {told['key']}, values in {told['value']}"


def bytes_per_token(engine: str, kv: str, *, layers: int, heads: int, size: int) -> float:
    """Keys and values of one token: `layers` of `heads` heads of `size` numbers each, for keys and again for values."""
    return layers * sum(kind.bytes_of(heads, size) for kind in types(engine, kv))


# ---- scoring through the cache ----

_DEFINITION = re.compile(r"cached-(\d+)\+(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedSplit:
    """How a window is fed so that what was cached is read: `warm_up` tokens in one call, the rest in calls of `step`. Only the
    rest is scored: in one call from an empty cache, most engines answer from the keys and values as they were computed."""

    warm_up: int
    step: int

    @property
    def name(self) -> str:
        return f"cached-{self.warm_up}+{self.step}"

    def calls(self, inputs: int) -> Iterator[tuple[int, int]]:
        """First and end of each call for `inputs` tokens, the warm-up's first."""
        yield 0, self.warm_up
        for start in range(self.warm_up, inputs, self.step):
            yield start, min(start + self.step, inputs)

    def scored(self, window: int) -> int:
        """Scored tokens of a window of so many ids: the last is never an input, and the warm-up's answers are not looked at."""
        return window - 1 - self.warm_up

    def wrong(self, window: int) -> str | None:
        """Why windows of so many ids cannot be scored like this; None where they can."""
        if self.warm_up < 1 or self.step < 1:
            return f"{self.name}: warm-up and step are at least 1 token"
        if self.scored(window) < 1:
            return f"{self.name} scores nothing in windows of {window} tokens; write cached-{max(1, window // 2)}+{self.step}"
        return None


def split_of(definition: str) -> CachedSplit | None:
    """The split that a definition `cached-W+R` names; None for any other definition."""
    found = _DEFINITION.fullmatch(definition)
    return None if found is None else CachedSplit(warm_up=int(found[1]), step=int(found[2]))


def default_split(window: int) -> CachedSplit:
    """Half of the window is the warm-up; the rest comes in calls of 64, or of a quarter of the window where that is less."""
    return CachedSplit(warm_up=max(1, window // 2), step=max(1, min(64, window // 4)))
