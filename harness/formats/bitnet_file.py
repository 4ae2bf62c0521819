"""The packed layers of a BitNet checkpoint, as transformers stores them (integrations/bitnet.py): -1, 0 and 1 in 2 bits each,
four rows to a byte, and one number `weight_scale` for a matrix.

What the number means depends on the class that reads it: `bitlinear` divides by it, `autobitlinear` multiplies by it. Read and
written here without transformers' code: the independent side of the reload check.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.formats import config_json, safetensors_file
from harness.formats.quantization_config import quantization
from harness.formats.safetensors_file import HeaderEntry

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "bitnet"

SCALE = "weight_scale"

SETTINGS = {"quant_method": FORMAT, "linear_class": "bitlinear", "quantization_mode": "offline"}
"""What an artifact's config.json says: the class that keeps its weights packed."""

ROWS = 4
"""Rows of weights that share a row of bytes."""


def pack(levels: Tensor) -> Tensor:
    """[rows, columns] of -1, 0 and 1 -> [rows / 4, columns] of bytes: row r and those a quarter, a half and three quarters of the
    rows further on, from the lowest bits up. Rows have to be a multiple of 4."""
    import torch

    quarters = (levels.to(torch.int16) + 1).to(torch.uint8).chunk(ROWS)
    packed = torch.zeros_like(quarters[0])
    for place, quarter in enumerate(quarters):
        packed |= quarter << (2 * place)
    return packed


def unpack(packed: Tensor) -> Tensor:
    """Inverse of `pack`, as float32. BadInput for a code that stands for no level."""
    import torch

    codes = torch.cat([packed >> (2 * place) & 3 for place in range(ROWS)])
    if bool((codes == 3).any()):
        raise BadInput("a packed matrix holds a code that is none of -1, 0 and 1; it is damaged, or of another format")
    return codes.float() - 1


def packed_layers(folder: Path) -> dict[str, HeaderEntry]:
    """The packed weights of a checkpoint by layer."""
    stored = safetensors_file.checkpoint(folder)
    layers = [name.removesuffix(f".{SCALE}") for name in stored if name.endswith(f".{SCALE}")]
    weights = {layer: stored.get(f"{layer}.weight") for layer in layers}
    return {layer: entry for layer, entry in weights.items() if entry is not None and entry.dtype == "U8"}


def why_unread(folder: Path) -> str | None:
    """Why a given checkpoint's answers do not follow from its packed weights alone; None where they do."""
    named = quantization(config_json.read(folder))
    if named is not None and named.settings.get("use_rms_norm"):
        return "its layers normalize their inputs by weights of their own"
    return None if packed_layers(folder) else "its weights are not packed, and are rounded whenever it runs"


def dequantized(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(stored name, tensor) of a checkpoint, its packed layers as float32 matrices; one at a time."""
    divides = _divides(folder)
    stored, packed = safetensors_file.checkpoint(folder), packed_layers(folder)
    for name, entry in stored.items():
        layer, _, part = name.rpartition(".")
        if layer in packed and part == "weight":
            scale = safetensors_file.tensor(stored[f"{layer}.{SCALE}"]).float()
            levels = unpack(safetensors_file.tensor(entry))
            yield name, levels / scale if divides else levels * scale
        elif layer not in packed or part != SCALE:
            yield name, safetensors_file.tensor(entry)


def shape(entry: HeaderEntry) -> tuple[int, ...]:
    """The shape of the matrix that a packed weight stands for."""
    return (ROWS * entry.shape[0], *entry.shape[1:])


def _divides(folder: Path) -> bool:
    named = quantization(config_json.read(folder))
    if named is None or named.format != FORMAT:
        raise BadInput(f"{folder}: config.json names no BitNet quantization")
    return named.settings.get("linear_class", "bitlinear") == "bitlinear"
