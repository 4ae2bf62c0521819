"""What lies in an artifact's safetensors files, read from their headers: every tensor's name, dtype, shape and bits.

A header is eight bytes of little-endian length and that many bytes of JSON (safetensors format description). Nothing of the
weights is read, so this works without torch and costs milliseconds. A ledger built from it can only say what is stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.artifact import ModelShape, Role, StoredTensor
from harness.errors import BadInput

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Bits of one element by safetensors dtype name."""

_HEADER_LIMIT = 100 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor of a file as its header describes it; `file` is the file that holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int
    file: Path


def header(path: Path) -> list[Stored]:
    """All tensors of one safetensors file. BadInput when the file is damaged, or when the header and the bytes disagree."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _HEADER_LIMIT:
            raise BadInput(f"{path}: its header claims {length} bytes, so it is no safetensors file or it is damaged")
        try:
            entries = json.loads(file.read(length))
        except ValueError:
            raise BadInput(f"{path}: its header is not JSON, so it is no safetensors file or it is damaged") from None
    found = []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = entry["data_offsets"]
            bits = math.prod(entry["shape"]) * BITS[entry["dtype"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: its header describes {name} as no tensor this version knows ({error!r})") from None
        if bits != 8 * (end - begin):
            raise BadInput(f"{path}: {name} is {entry['shape']} {entry['dtype']} but occupies {end - begin} bytes")
        found.append(Stored(name=name, dtype=entry["dtype"], shape=tuple(entry["shape"]), bits=bits, file=path))
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that make the checkpoint: those of the index where there is one, because a folder may hold the same weights
    twice (a consolidated twin beside the shards). BadInput when one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{index}: is damaged; fetch the model again") from None
        paths = [folder / Path(str(name)).name for name in names]
    elif (folder / "model.safetensors").is_file():
        paths = [folder / "model.safetensors"]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise BadInput(f"{folder}: weight files are missing: {common(missing) or 'model.safetensors'}; fetch the model again")
    return paths


def stored(folder: Path) -> list[Stored]:
    """All tensors of the checkpoint in `folder` (its `*.safetensors`, links followed), by name."""
    return sorted((tensor for path in sorted(folder.glob("*.safetensors")) for tensor in header(path)), key=lambda t: t.name)


def ledger(folder: Path, roles: Callable[[str], tuple[str, Role]]) -> list[StoredTensor]:
    """The ledger of an artifact: `roles` maps a tensor's name to (quantized layer or '', role)."""
    rows = []
    for tensor in stored(folder):
        layer, role = roles(tensor.name)
        rows.append(StoredTensor(name=tensor.name, layer=layer, role=role, bits=tensor.bits))
    return rows


def by_suffix(suffixes: dict[str, Role]) -> Callable[[str], tuple[str, Role]]:
    """A `roles` for `ledger`: the part of a name after its last dot decides (`...q_proj.qweight` -> weight of `...q_proj`)."""

    def roles(name: str) -> tuple[str, Role]:
        layer, _, suffix = name.rpartition(".")
        return (layer, suffixes[suffix]) if suffix in suffixes else ("", "other")

    return roles


def undivided(shape: ModelShape | None, *, columns: int = 1, rows: int = 1) -> str | None:
    """Why a layer of the model cannot be cut into groups of `columns` input features and `rows` output features, or None."""
    for layer in shape.linears if shape else ():
        if layer.columns % columns:
            return f"{layer.name} has {layer.columns} input features, which do not divide into groups of {columns}"
        if layer.rows % rows:
            return f"{layer.name} has {layer.rows} output features, which do not divide by {rows} as the packing needs"
    return None


def common(names: Iterable[str]) -> str:
    """Names for a message: the first three and how many more."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
