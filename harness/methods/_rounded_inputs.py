"""What runtimes do to the inputs of packed products: rounded to 8 bits, block by block. A reload check's floor has it too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def round_inputs_of(layers: Iterable[torch.nn.Module], *, blocks: Sequence[int]) -> None:
    """From now on the layers get inputs that are rounded to 8 bits, in blocks of the first of these sizes that divides them, or
    of the whole row where none does."""
    for layer in layers:
        layer.register_forward_pre_hook(_rounding(blocks))


def _rounding(blocks: Sequence[int]) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        (x,) = inputs
        width = x.shape[-1]
        block = next((size for size in blocks if width % size == 0), width)
        parts = x.float().reshape(*x.shape[:-1], -1, block)
        scale = (parts.abs().amax(dim=-1, keepdim=True) / 127).clamp_min(1e-12)
        return (((parts / scale).round() * scale).flatten(-2).to(x.dtype),)

    return hook
