"""What lies in a GGUF file, read from its header: every tensor's name, type, shape and bytes, and the plain metadata.

Format: the magic, a version, counts, the metadata as (key, type, value), the tensors as (name, dimensions, type, offset),
padding, the data (ggml's docs/gguf.md). Nothing of the weights is read and no vocabulary is kept, so this costs milliseconds
and little memory; a loader that measures memory may call it. The sizes of ggml's blocks are written out here, from their C
structs.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harness.artifact import ModelShape
from harness.errors import BadInput, Unsupported
from harness.formats import gguf_reader, gguf_types
from harness.formats.gguf_types import FILE_TYPE_NAMES, TYPES
from harness.spec import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor of a file; `shape` has the rows first, as numpy and torch have it; `offset` is from the file's beginning."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """`metadata` by key; of an array only its length."""

    metadata: Mapping[str, Json]
    tensors: tuple[GgufTensor, ...]


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


def header(path: Path) -> GgufHeader:
    """The header of one GGUF file. BadInput when it is damaged, cut off, or holds types that this version does not know."""
    try:
        with path.open("rb") as file:
            return _header(_Reader(file), path.stat().st_size)
    except (ValueError, KeyError, struct.error, OverflowError) as error:
        why = f"unknown type {error}" if isinstance(error, KeyError) else str(error)
        raise BadInput(f"{path}: is no GGUF file that this version reads: {why}; delete it and run again") from None


def _header(reader: _Reader, file_bytes: int) -> GgufHeader:
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
        tensors.append(GgufTensor(name=name, type=block.name, shape=shape, offset=data + offset, bytes=size))
    return GgufHeader(metadata=metadata, tensors=tuple(tensors))


def shape_of(path: Path) -> ModelShape:
    """What the file's header says, in the words of a checkpoint. Its linear layers are not listed: the source's are."""
    header = gguf_reader.header(path)
    meta = header.metadata
    kind = str(meta.get("general.architecture", "?"))
    found = _file_type(header)
    return ModelShape(
        architecture=kind,
        parameters=sum(math.prod(tensor.shape) for tensor in header.tensors),
        linears=(),
        hidden=_number(meta.get(f"{kind}.embedding_length")),
        layers=_number(meta.get(f"{kind}.block_count")),
        vocab=next((tensor.shape[0] for tensor in header.tensors if tensor.name == "token_embd.weight"), 0),
        tied=not any(tensor.name == "output.weight" for tensor in header.tensors),
        dtype=found,
        config={"quantization_config": {"quant_method": "gguf", "type": found}},
    )


def _file_type(header: gguf_reader.GgufHeader) -> str:
    """The file's type as its header names it, or its most frequent block in the decoder's layers and `mixed`."""
    named = FILE_TYPE_NAMES.get(_number(header.metadata.get("general.file_type"), -1))
    weights: Counter[str] = Counter()
    for tensor in header.tensors:
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            weights[tensor.type] += math.prod(tensor.shape)
    if not weights:
        raise Unsupported("it holds no decoder layers")
    # Who quantizes with overrides leaves any number there: a type that the file does not hold at all is not its type.
    if named is not None and gguf_types.FILE_TYPES[named][1][0] in weights:
        return named
    return f"{weights.most_common(1)[0][0]} mixed"


def _number(value: Json, otherwise: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
