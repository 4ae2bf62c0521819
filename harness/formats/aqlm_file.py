"""The packed layers of an AQLM checkpoint (additive quantization; Egiazarian et al. 2024, arXiv:2401.06118, section 3).

A matrix is cut into groups of `in_group` inputs by `out_group` outputs. Each group is the sum of one vector out of each codebook,
times the scale of its outputs. Read here without the library's code: the independent side of the reload check.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.formats import safetensors_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PARTS = ("codes", "codebooks", "scales")


def packed_layers(folder: Path) -> list[str]:
    """The layers that the checkpoint holds packed."""
    names = safetensors_file.checkpoint(folder).keys()
    return sorted(name.removesuffix(".codes") for name in names if name.endswith(".codes"))


def dequantize(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by name, its packed layers as matrices of `dtype`."""
    stored, layers = safetensors_file.checkpoint(folder), packed_layers(folder)
    state: dict[str, Tensor] = {}
    for name, entry in stored.items():
        layer, _, part = name.rpartition(".")
        if layer in layers and part in PARTS:
            continue
        state[name] = safetensors_file.tensor(entry)
    for layer in layers:
        missing = [part for part in PARTS if f"{layer}.{part}" not in stored]
        if missing:
            raise BadInput(f"{layer}: the checkpoint holds its codes and no {missing[0]}; fetch it again")
        codes, codebooks, scales = (safetensors_file.tensor(stored[f"{layer}.{part}"]) for part in PARTS)
        state[f"{layer}.weight"] = matrix(codes, codebooks, scales).to(dtype)
    return state


def matrix(codes: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
    """[outputs, inputs] in float32 of codes [output groups, input groups, codebooks], codebooks [codebooks, entries, out_group,
    in_group] and scales [output groups, 1, 1, 1]. Codes are stored as signed integers of the codebook's bits."""
    entries = codebooks.shape[1]
    places = codes.long() % entries  # -1 is the last entry: the stored type has no room for it as a positive number
    groups = sum(codebooks[k].float()[places[..., k]] for k in range(codebooks.shape[0]))
    scaled = groups * scales.float()  # [output groups, input groups, out_group, in_group]
    whole: Tensor = scaled.permute(0, 2, 1, 3).reshape(scaled.shape[0] * scaled.shape[2], -1)
    return whole
