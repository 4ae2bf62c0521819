"""What lies in a GGUF file, read from its header: every tensor's name, type, shape and bytes, and the plain metadata.

Format: the magic, a version, counts, the metadata as (key, type, value), the tensors as (name, dimensions, type, offset),
padding, the data (ggml's docs/gguf.md). Nothing of the weights is read and no vocabulary is kept, so this costs milliseconds
and little memory; a loader that measures memory may call it. The sizes of ggml's blocks are written out here, from their C
structs.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from harness.artifact import ModelShape
from harness.errors import BadInput, Unsupported
from harness.formats import gguf_names
from harness.formats.gguf_types import FILE_TYPE_NAMES, FILE_TYPES, TYPES

Value: TypeAlias = str | int | float | bool | tuple[int | float | bool, ...]
"""One metadata value. An array of numbers is a tuple where it has one entry for each layer, or fewer than LISTED; of others,
which are vocabularies, only the length is kept."""

LISTED = 4096


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
    """`metadata` by key; of long arrays and those of texts only the length."""

    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]


_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}

_STRING, _ARRAY = 8, 9

_LONGEST_STRING = 1 << 24


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def scalar(self, layout: str) -> int | float | bool:
        data = self._exactly(struct.calcsize(layout))
        value: int | float | bool = struct.unpack(layout, data)[0]
        return value

    def count(self, layout: str = "<Q") -> int:
        return int(self.scalar(layout))

    def text(self) -> str:
        length = self.count()
        if length > _LONGEST_STRING:
            raise ValueError(f"it claims a string of {length} bytes")
        return self._exactly(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, length = self.count("<I"), self.count()
        if inner in _SCALARS and length <= LISTED:
            return tuple(self.scalar(_SCALARS[inner]) for _ in range(length))
        if inner in _SCALARS:
            self.file.seek(length * struct.calcsize(_SCALARS[inner]), 1)
        elif inner == _STRING:
            for _ in range(length):
                self.text()
        else:
            raise ValueError(f"it holds an array of type {inner}")
        return length

    def _exactly(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) != size:
            raise ValueError("it ends within its header")
        return data


def is_gguf(path: Path) -> bool:
    """Whether a model's path is a GGUF file: a model in one file, instead of a folder."""
    return path.suffix.lower() == ".gguf"


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def part_names(name: str) -> list[str]:
    """The names of all files of a model whose first file is called `name`: itself alone, or, of one that was written in parts
    (`big-00001-of-00003.gguf`), all of them in order. BadInput for the name of another part than the first."""
    split = _PART.fullmatch(name)
    if split is None:
        return [name]
    if int(split[2]) != 1:
        raise BadInput(f"{name}: is a part of a model; name its first one: {split[1]}-00001-of-{split[3]}.gguf")
    return [f"{split[1]}-{number:05d}-of-{split[3]}.gguf" for number in range(1, int(split[3]) + 1)]


def parts(path: Path) -> list[Path]:
    """All files of the model at `path` (links are followed to the name that tells of parts). BadInput when one is missing."""
    place = path
    while len(names := part_names(place.name)) == 1 and place.is_symlink():
        place = place.parent / os.readlink(place)
    if len(names) == 1:
        return [path]
    files = [place.with_name(name) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise BadInput(f"{place}: of its {len(files)} parts are missing: {', '.join(missing)}; put them beside it")
    return files


def header(path: Path) -> GgufHeader:
    """The header of a GGUF file, of one in parts that of all. BadInput when one is damaged, cut off or missing, Unsupported
    when one holds types that this version does not know."""
    headers = []
    for part in parts(path):
        with part.open("rb") as file:
            headers.append(read(file, part.stat().st_size, str(part)))
    return joined(headers, str(path))


def read(file: BinaryIO, size: int, name: str) -> GgufHeader:
    """The header of an open file of `size` bytes. `name` begins the message of a BadInput or an Unsupported."""
    try:
        return _header(_Reader(file), size)
    except KeyError as error:
        raise Unsupported(f"{name}: it holds the type {error}, which this version does not know") from None
    except (ValueError, struct.error, OverflowError) as error:
        raise BadInput(f"{name}: is no GGUF file that this version reads: {error}; fetch or make it again") from None


def joined(headers: Sequence[GgufHeader], name: str) -> GgufHeader:
    """The headers of a model's parts as one. BadInput where the first says that there are more: a part was renamed."""
    said = _number(headers[0].metadata.get("split.count"), 1)
    if said > len(headers):
        raise BadInput(
            f"{name}: is the first of {said} parts; give all of them the names that they had (NAME-00001-of-{said:05d}.gguf)"
        )
    return GgufHeader(metadata=headers[0].metadata, tensors=tuple(tensor for part in headers for tensor in part.tensors))


def _header(reader: _Reader, file_bytes: int) -> GgufHeader:
    if reader.file.read(4) != b"GGUF":
        raise ValueError("its first bytes are not GGUF")
    version = reader.count("<I")
    if version not in (2, 3):
        raise ValueError(f"it has version {version}")
    tensor_count, entries = reader.count(), reader.count()
    metadata: dict[str, Value] = {}
    for _ in range(entries):
        key = reader.text()
        metadata[key] = reader.value(reader.count("<I"))
    described = []
    for _ in range(tensor_count):
        name = reader.text()
        dimensions = reader.count("<I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"{name} has {dimensions} dimensions")
        # The fastest dimension comes first in the file.
        shape = tuple(reader.count() for _ in range(dimensions))[::-1]
        block, offset = TYPES[reader.count("<I")], reader.count()
        if shape[-1] % block.weights:
            raise ValueError(f"{name} has rows of {shape[-1]}, which are no whole blocks of {block.name}")
        described.append((name, block, shape, offset))
    alignment = _number(metadata.get("general.alignment"), 32)
    data = -(-reader.file.tell() // alignment) * alignment
    tensors = []
    for name, block, shape, offset in described:
        size = math.prod(shape) // block.weights * block.size
        if data + offset + size > file_bytes:
            raise ValueError(f"{name} reaches beyond its end")
        tensors.append(GgufTensor(name=name, type=block.name, shape=shape, offset=data + offset, bytes=size))
    return GgufHeader(metadata=metadata, tensors=tuple(tensors))


def shape_of(path: Path) -> ModelShape:
    """What the file's header says, in the words of a checkpoint. Its linear layers are not listed: the source's are. Of a file
    that cannot be measured the quantization names the reason, under `refused`."""
    try:
        return shape(header(path))
    except Unsupported as error:
        refused = {"quant_method": "gguf", "type": "?", "refused": str(error)}
        return ModelShape(
            architecture="?",
            parameters=0,
            linears=(),
            hidden=0,
            layers=0,
            vocab=0,
            tied=False,
            dtype="?",
            config={"quantization_config": refused},
        )


def shape(read: GgufHeader) -> ModelShape:
    """What a header says, as `shape_of` has it. Unsupported where it holds no decoder layers."""
    file_type = _file_type(read)
    meta = read.metadata
    kind = str(meta.get("general.architecture", "?"))
    return ModelShape(
        architecture=kind,
        parameters=sum(math.prod(tensor.shape) for tensor in read.tensors),
        linears=(),
        hidden=_number(meta.get(f"{kind}.embedding_length")),
        layers=_number(meta.get(f"{kind}.block_count")),
        vocab=next((tensor.shape[0] for tensor in read.tensors if tensor.name == "token_embd.weight"), 0),
        tied=not any(tensor.name == "output.weight" for tensor in read.tensors),
        dtype=file_type,
        config={"quantization_config": {"quant_method": "gguf", "type": file_type}},
    )


def kv_widths(header: GgufHeader) -> list[tuple[int, int]]:
    """(numbers of a key, numbers of a value) that a token takes in each layer of the file; layers without attention have 0 heads.

    `head_count` and `head_count_kv` are one number or one for each layer; `key_length` and `value_length` are optional, and then
    the hidden units divided by the heads (ggml's docs/gguf.md)."""
    meta, kind = header.metadata, header.metadata.get("general.architecture")

    def by_layer(name: str, default: Sequence[float]) -> list[int]:
        value = meta.get(f"{kind}.{name}")
        if isinstance(value, tuple):
            return [int(each) for each in value]
        return [int(each) for each in default] if value is None else [_number(value)] * layers

    layers = _number(meta.get(f"{kind}.block_count"))
    hidden = _number(meta.get(f"{kind}.embedding_length"))
    heads = by_layer("attention.head_count", [1] * layers)
    kv_heads = by_layer("attention.head_count_kv", heads)
    usual = hidden // max(1, *heads)
    key, value = (by_layer(f"attention.{name}_length", [usual] * layers) for name in ("key", "value"))
    return [(kv_heads[i] * key[i], kv_heads[i] * value[i]) for i in range(layers)]


def bits_per_weight(path: Path) -> float | None:
    """Bits that a weight of the decoder's linear layers takes in the file, scales included; None where it has no such layer."""
    layers = [tensor for tensor in header(path).tensors if gguf_names.linear(tensor.name) is not None]
    weights = sum(math.prod(tensor.shape) for tensor in layers)
    return 8 * sum(tensor.bytes for tensor in layers) / weights if weights else None


def _file_type(header: GgufHeader) -> str:
    """The file's type as its header names it, or its most frequent block in the decoder's layers and `mixed`."""
    named = FILE_TYPE_NAMES.get(_number(header.metadata.get("general.file_type"), -1))
    weights: Counter[str] = Counter()
    for tensor in header.tensors:
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            weights[tensor.type] += math.prod(tensor.shape)
    if not weights:
        raise Unsupported("it holds no decoder layers")
    # Who quantizes with overrides leaves any number there: a type that the file does not hold at all is not its type.
    if named is not None and FILE_TYPES[named][1][0] in weights:
        return named
    return f"{weights.most_common(1)[0][0]} mixed"


def _number(value: object, otherwise: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
