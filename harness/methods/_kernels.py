"""The kernel proof of layers that transformers runs: what computes each of them, and in which type it holds its weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.artifact import LayerKernel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def held_wide(weight: Tensor) -> bool:
    """Whether a weight is held in floating point of 16 bits or wider: dequantized, or never quantized."""
    return weight.dtype.is_floating_point and weight.dtype.itemsize >= 2


def proof(layer: str, module: str, weight: Tensor, *, op: str, dequantized: bool | None = None) -> LayerKernel:
    """The proof of one layer: `module` names its class, `op` what computes it, `weight` is what it holds. `dequantized` is said
    where the type of `weight` does not tell."""
    return LayerKernel(
        layer=layer,
        module=module,
        op=op,
        stored_dtype=str(weight.dtype).removeprefix("torch."),
        dequantized=held_wide(weight) if dequantized is None else dequantized,
    )


def of_modules(model: PreTrainedModel) -> list[LayerKernel]:
    """The proof of any model: for every module of the decoder that holds a matrix, its class and its largest tensor."""
    import torch

    apart = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    proofs = []
    for name, module in model.named_modules():
        own = [t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if t.dim() >= 2]
        if id(module) in apart or not own:
            continue
        kind, largest = type(module).__name__, max(own, key=lambda t: t.numel())
        wide = held_wide(largest) and type(largest.data) is torch.Tensor
        proofs.append(proof(name, kind, largest, op="aten::linear" if wide else f"{kind}.forward", dequantized=wide))
    return proofs


def among(proofs: Iterable[LayerKernel], packed: Collection[str]) -> list[LayerKernel]:
    """The proofs of a model of whose layers the artifact holds these `packed`: a layer that it keeps in 16 bits or wider is
    held so because it was never quantized, which simulates nothing."""
    return [replace(each, dequantized=each.dequantized and each.layer in packed) for each in proofs]
