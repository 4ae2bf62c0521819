"""The ledger of a packed checkpoint whose format is not known further: by the names that libraries give to a layer's parts."""

from __future__ import annotations

from pathlib import Path

from harness.artifact import Role, StoredTensor
from harness.formats import safetensors_file

_SUFFIXES: dict[str, Role] = {
    "weight_packed": "weight", "qweight": "weight", "W_q": "weight", "codes": "weight", "_data": "weight",
    "weight_scale": "scale", "weight_scale_inv": "scale", "scales": "scale", "scale": "scale", "_scale": "scale",
    "weight_global_scale": "scale", "weight_scale_2": "scale", "absmax": "scale", "SCB": "scale",
    "weight_zero_point": "zero", "qzeros": "zero", "zero": "zero", "_shift": "zero",
    "codebooks": "codebook", "quant_map": "codebook", "g_idx": "index", "weight_g_idx": "index", "weight_shape": "index",
}  # fmt: skip

_NARROW = {"I8", "U8", "F8_E4M3", "F8_E5M2"}


def ledger(folder: Path) -> list[StoredTensor]:
    """A layer is packed where it stores a part by a name of packed weights, or its `weight` in a byte or less."""
    packed = {
        t.name.rpartition(".")[0]
        for t in safetensors_file.stored(folder)
        if _SUFFIXES.get(t.name.rpartition(".")[2]) == "weight" or (t.name.endswith(".weight") and t.dtype in _NARROW)
    }

    def roles(tensor: str) -> tuple[str, Role]:
        layer, _, suffix = tensor.rpartition(".")
        if layer not in packed or suffix == "bias":
            return "", "other"
        return layer.removesuffix(".weight"), "weight" if suffix == "weight" else _SUFFIXES.get(suffix, "other")

    return safetensors_file.ledger(folder, roles)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that packed layers stand for, of those that tell: a byte or more for each weight, or a
    `weight_shape`."""
    told: dict[str, tuple[int, ...]] = {}
    for entry in safetensors_file.stored(folder):
        layer, _, part = entry.name.rpartition(".")
        if part in ("weight", "codes") and entry.dtype in _NARROW - {"U8"} and len(entry.shape) == 2:
            told[layer] = entry.shape
        elif part == "weight_shape":
            told[layer] = tuple(int(size) for size in safetensors_file.tensor(entry))
    return told
