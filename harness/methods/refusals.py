"""Reasons why methods cannot take a model, known before anything runs: each is one sentence for people, or None."""

from __future__ import annotations

from harness.artifact import ModelShape
from harness.formats.quantization_config import quantization


def quantized(shape: ModelShape | None) -> str | None:
    """Why a checkpoint that is quantized already is not quantized once more."""
    if shape is None or quantization(shape.config) is None:
        return None
    return "the checkpoint is already quantized; quantize its unquantized source instead"


def undivided(shape: ModelShape | None, *, columns: int = 1, rows: int = 1) -> str | None:
    """Why a layer of the model cannot be cut into groups of `columns` input features and `rows` output features."""
    for layer in shape.linears if shape else ():
        if layer.columns % columns:
            return f"{layer.name} has {layer.columns} input features, which do not divide into groups of {columns}"
        if layer.rows % rows:
            return f"{layer.name} has {layer.rows} output features, which do not divide by {rows} as the packing needs"
    return None


def undivided_groups(shape: ModelShape | None, group: int, *, rows: int = 1) -> str | None:
    """As `undivided`, for a method whose group size can be chosen; `group` -1 = an output channel, which always divides."""
    reason = undivided(shape, columns=group, rows=rows) if group > 0 else None
    return f"{reason}; choose a smaller group_size" if reason else None
