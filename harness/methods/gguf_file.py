"""What lies in a GGUF file, read from its header: every tensor's name, type, shape and bytes, and the plain metadata.

Format: the magic, a version, counts, the metadata as (key, type, value), the tensors as (name, dimensions, type, offset),
padding, the data (ggml's docs/gguf.md). Nothing of the weights is read and no vocabulary is kept, so this costs milliseconds
and little memory; a loader that measures memory may call it. The sizes of ggml's blocks are written out here, from their C
structs.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harness.errors import BadInput
from harness.spec import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One ggml type: `weights` consecutive numbers of a row are stored in `size` bytes, scales included."""

    name: str
    weights: int
    size: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size / self.weights


def _block(name: str, weights: int, size: int) -> Block:
    return Block(name=name, weights=weights, size=size)


TYPES: dict[int, Block] = {
    0: _block("F32", 1, 4),
    1: _block("F16", 1, 2),
    30: _block("BF16", 1, 2),
    # blocks of 32: a 16-bit scale (two in the _1 types), fifth bits apart
    2: _block("Q4_0", 32, 2 + 16),
    3: _block("Q4_1", 32, 4 + 16),
    6: _block("Q5_0", 32, 2 + 4 + 16),
    7: _block("Q5_1", 32, 4 + 4 + 16),
    8: _block("Q8_0", 32, 2 + 32),
    20: _block("IQ4_NL", 32, 2 + 16),
    # super-blocks of 256: codes, packed scales of the 8 or 16 inner blocks, one or two 16-bit scales
    10: _block("Q2_K", 256, 16 + 64 + 4),
    11: _block("Q3_K", 256, 32 + 64 + 12 + 2),
    12: _block("Q4_K", 256, 4 + 12 + 128),
    13: _block("Q5_K", 256, 4 + 12 + 32 + 128),
    14: _block("Q6_K", 256, 128 + 64 + 16 + 2),
    16: _block("IQ2_XXS", 256, 2 + 64),
    17: _block("IQ2_XS", 256, 2 + 64 + 8),
    22: _block("IQ2_S", 256, 2 + 32 + 32 + 8 + 8),
    18: _block("IQ3_XXS", 256, 2 + 96),
    21: _block("IQ3_S", 256, 2 + 64 + 8 + 32 + 4),
    19: _block("IQ1_S", 256, 2 + 32 + 16),
    29: _block("IQ1_M", 256, 32 + 16 + 8),
    23: _block("IQ4_XS", 256, 2 + 2 + 4 + 128),
    34: _block("TQ1_0", 256, 48 + 4 + 2),
    35: _block("TQ2_0", 256, 64 + 2),
}
"""ggml's type number -> the block it stores."""

BLOCKS = {block.name: block for block in TYPES.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a file; `shape` has the rows first, as numpy and torch have it; `offset` is from the file's beginning."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """`metadata` by key; of an array only its length."""

    metadata: Mapping[str, Json]
    tensors: tuple[Tensor, ...]


_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST_STRING = 1 << 24


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def scalar(self, layout: str) -> Json:
        size = struct.calcsize(layout)
        data = self.file.read(size)
        if len(data) != size:
            raise ValueError("it ends within its header")
        return struct.unpack(layout, data)[0]

    def text(self) -> str:
        length = int(self.scalar("<Q"))
        if length > _LONGEST_STRING:
            raise ValueError(f"it claims a string of {length} bytes")
        data = self.file.read(length)
        if len(data) != length:
            raise ValueError("it ends within its header")
        return data.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Json:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, count = int(self.scalar("<I")), int(self.scalar("<Q"))
        if inner in _SCALARS:
            self.file.seek(count * struct.calcsize(_SCALARS[inner]), 1)
        elif inner == _STRING:
            for _ in range(count):
                self.text()
        else:
            raise ValueError(f"it holds an array of type {inner}")
        return count


def header(path: Path) -> Header:
    """The header of one GGUF file. BadInput when it is damaged, cut off, or holds types that this version does not know."""
    try:
        with path.open("rb") as file:
            return _header(_Reader(file), path.stat().st_size)
    except (ValueError, KeyError, struct.error, OverflowError) as error:
        why = f"unknown type {error}" if isinstance(error, KeyError) else str(error)
        raise BadInput(f"{path}: is no GGUF file that this version reads: {why}; delete it and run again") from None


def _header(reader: _Reader, file_bytes: int) -> Header:
    if reader.file.read(4) != b"GGUF":
        raise ValueError("its first bytes are not GGUF")
    version = int(reader.scalar("<I"))
    if version not in (2, 3):
        raise ValueError(f"it has version {version}")
    tensor_count, entries = int(reader.scalar("<Q")), int(reader.scalar("<Q"))
    metadata: dict[str, Json] = {}
    for _ in range(entries):
        key = reader.text()
        metadata[key] = reader.value(int(reader.scalar("<I")))
    found = []
    for _ in range(tensor_count):
        name = reader.text()
        dimensions = int(reader.scalar("<I"))
        if not 1 <= dimensions <= 4:
            raise ValueError(f"{name} has {dimensions} dimensions")
        # The fastest dimension comes first in the file.
        shape = tuple(int(reader.scalar("<Q")) for _ in range(dimensions))[::-1]
        block, offset = TYPES[int(reader.scalar("<I"))], int(reader.scalar("<Q"))
        if shape[-1] % block.weights:
            raise ValueError(f"{name} has rows of {shape[-1]}, which are no whole blocks of {block.name}")
        found.append((name, block, shape, offset))
    alignment = int(metadata.get("general.alignment", 32))
    data = -(-reader.file.tell() // alignment) * alignment
    tensors = []
    for name, block, shape, offset in found:
        size = math.prod(shape) // block.weights * block.size
        if data + offset + size > file_bytes:
            raise ValueError(f"{name} reaches beyond its end")
        tensors.append(Tensor(name=name, type=block.name, shape=shape, offset=data + offset, bytes=size))
    return Header(metadata=metadata, tensors=tuple(tensors))
