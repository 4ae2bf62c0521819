"""What lies in an artifact's safetensors files: every tensor's name, dtype, shape and bits, and the tensors themselves.

Names, dtypes and shapes come from the header (eight bytes of little-endian length, that many bytes of JSON), which the library
reads and checks against the file's size. Nothing of the weights is read for that, so it works without torch and costs
milliseconds. A ledger built from it can only say what is stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import Role, StoredTensor
from harness.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of one element by safetensors dtype name."""

BY_TORCH = {"format": "pt"}
"""Metadata of a file that torch wrote. transformers refuses a file without it."""

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEntry:
    """One tensor of a file as its header describes it; `file` is the file that holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def parameters(self) -> int:
        """Numbers that the tensor holds."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        return self.parameters * BITS[self.dtype]


def header(path: Path) -> list[HeaderEntry]:
    """All tensors of one safetensors file, in the file's order. BadInput when it is damaged, cut off or of a newer format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            parts = [(name, file.get_slice(name)) for name in file.offset_keys()]
            entries = [HeaderEntry(name=n, dtype=s.get_dtype(), shape=tuple(s.get_shape()), file=path) for n, s in parts]
    except SafetensorError as error:
        if is_lfs_pointer(path):
            raise BadInput(
                f"{path}: is a Git LFS pointer in the place of the file; run where it was cloned: git lfs pull"
            ) from None
        raise BadInput(f"{path}: is no safetensors file or it is damaged ({error}); fetch or make it again") from None
    unknown = sorted({entry.dtype for entry in entries} - BITS.keys())
    if unknown:
        raise BadInput(f"{path}: holds numbers of a type that this version does not know: {', '.join(unknown)}")
    return entries


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in the place of a large one where its extension LFS is not installed."""
    try:
        with path.open("rb") as file:
            return file.read(40).startswith(b"version https://git-lfs.github.com/spec/")
    except OSError:
        return False


def header_bytes(tensors: Iterable[tuple[str, str, Sequence[int]]], *, metadata: Mapping[str, str] | None = None) -> bytes:
    """The beginning of a file that holds these tensors (name, dtype, shape) one after the other: for whoever writes a file piece
    by piece. The library itself wants all tensors in memory. `metadata`: BY_TORCH where transformers is to read the file."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def write(path: Path, tensors: Sequence[tuple[str, str, Sequence[int]]], parts: Iterable[Tensor]) -> None:
    """Writes one file with these tensors (name, dtype, shape) one at a time; `parts` are they, in the same order."""
    import torch

    with path.open("wb") as file:
        file.write(header_bytes(tensors, metadata=BY_TORCH))
        for part in parts:
            file.write(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def weight_files(folder: Path) -> list[Path]:
    """The files that make the checkpoint: those of the index where there is one, because a folder may hold the same weights
    twice (a consolidated twin beside the shards). BadInput when one is missing."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{index}: is damaged; fetch the model again") from None
        paths = [folder / Path(str(name)).name for name in names]
    elif (folder / MODEL).is_file():
        paths = [folder / MODEL]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise BadInput(f"{folder}: weight files are missing: {brief(missing) or MODEL}; fetch the model again")
    return paths


def checkpoint(folder: Path) -> dict[str, HeaderEntry]:
    """Every tensor of the checkpoint in `folder` by name: what `weight_files` hold."""
    return {entry.name: entry for path in weight_files(folder) for entry in header(path)}


def stored(folder: Path) -> list[HeaderEntry]:
    """All tensors in `folder` (its `*.safetensors`, links followed), by name."""
    return sorted((entry for path in sorted(folder.glob("*.safetensors")) for entry in header(path)), key=lambda t: t.name)


def parameters(folder: Path) -> int:
    """Numbers that the checkpoint in `folder` stores."""
    return sum(entry.parameters for entry in stored(folder))


def tensor(entry: HeaderEntry) -> Tensor:
    """One tensor, on the CPU."""
    from safetensors import safe_open

    with safe_open(str(entry.file), framework="pt", device="cpu") as file:
        held: Tensor = file.get_tensor(entry.name)
    return held


def nonfinite(folder: Path) -> list[str]:
    """The stored tensors of the checkpoint in `folder` that hold NaN or infinity; reads them all."""
    import torch

    floats = [entry for entry in checkpoint(folder).values() if entry.dtype in ("F64", "F32", "F16", "BF16")]
    return sorted(entry.name for entry in floats if not bool(torch.isfinite(tensor(entry)).all()))


def tensors(folder: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """All tensors of the checkpoint in `folder` by name."""
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        state.update(load_file(str(path), device=device))
    return state


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of one file by name."""
    from safetensors.torch import load_file

    held: dict[str, Tensor] = load_file(str(path))
    return held


def save(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes one file with these tensors."""
    from safetensors.torch import save_file

    save_file({name: held.contiguous() for name, held in state.items()}, str(path), metadata=BY_TORCH)


def ledger(folder: Path, roles: Callable[[str], tuple[str, Role]]) -> list[StoredTensor]:
    """The ledger of an artifact: `roles` maps a tensor's name to (quantized layer or '', role)."""
    rows = []
    for entry in stored(folder):
        layer, role = roles(entry.name)
        rows.append(StoredTensor(name=entry.name, layer=layer, role=role, bits=entry.bits))
    return rows


def by_suffix(suffixes: Mapping[str, Role], layers: Iterable[str] | None = None) -> Callable[[str], tuple[str, Role]]:
    """A `roles` for `ledger`: the part of a name after its last dot decides (`...q_proj.qweight` -> weight of `...q_proj`); where
    `layers` are given, of those layers only."""
    known = None if layers is None else set(layers)

    def roles(name: str) -> tuple[str, Role]:
        layer, _, suffix = name.rpartition(".")
        mine = suffix in suffixes and (known is None or layer in known)
        return (layer, suffixes[suffix]) if mine else ("", "other")

    return roles


def brief(names: Iterable[str]) -> str:
    """Names for a message: the first three, and how many more."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
