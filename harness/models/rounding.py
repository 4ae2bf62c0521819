"""Plain rounding of weights to the steps of their groups, as `rtn` and GPTQModel's quantizers do before anything cleverer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def in_groups(rows: Tensor, *, bits: float, group: int, symmetric: bool = True) -> Tensor:
    """`rows` [n, columns] on the 2^bits steps of their groups. Symmetric: scale = 2 max|w| / (steps - 1), zero point in the
    middle; else scale = (max - min) / (steps - 1), where 0 is always between the two, and stays 0. A group that does not divide
    the columns, or is not above 0, is the whole row."""
    import torch

    columns = rows.shape[1]
    group = group if group > 0 and columns % group == 0 else columns
    steps = max(2, round(2**bits))
    wide = rows.float().reshape(-1, group)
    zero: Tensor | int = steps // 2
    if symmetric:
        scale = (2 * wide.abs().amax(dim=1, keepdim=True) / (steps - 1)).clamp_min(1e-12)
    else:
        low, high = wide.amin(dim=1, keepdim=True).clamp_max(0), wide.amax(dim=1, keepdim=True).clamp_min(0)
        scale = ((high - low) / (steps - 1)).clamp_min(1e-12)
        zero = torch.round(-low / scale)
    codes = torch.clamp(torch.round(wide / scale) + zero, 0, steps - 1)
    return ((codes - zero) * scale).reshape(rows.shape).to(rows.dtype)
