"""FP4 (e2m1): four-bit floats, two to a byte, the first in the low half (OCP Microscaling Formats 1.0, section 5.3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the low three bits of a code stand for; the fourth is the sign."""


def unpacked(pairs: Tensor) -> Tensor:
    """uint8 [..., n] -> float32 [..., 2n]."""
    import torch

    codes = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2).long()
    return torch.tensor(MAGNITUDES)[codes & 7] * torch.where(codes > 7, -1.0, 1.0)
