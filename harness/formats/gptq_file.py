"""GPTQ and AWQ packing: the tensors of a packed layer, and the weights that they stand for.

GPTQ format, per linear layer of K inputs and N outputs, groups of g inputs: `qweight` int32 [K*bits/32, N] and `qzeros` int32
[K/g, N*bits/32] (stored minus one), each a little-endian bit stream along its packed axis; `scales` float16 [K/g, N]; `g_idx`
int32 [K], the group of each input. AWQ format (GEMM): `qweight` int32 [K, N*bits/32], `qzeros` int32 [K/g, N*bits/32], `scales`
float16 [K/g, N]; 4-bit codes are interleaved in eights.

`dequantize` is this project's own reading, the independent side of the reload check.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import Role, StoredTensor
from harness.errors import BadInput
from harness.formats import config_json, safetensors_file
from harness.formats.quantization_config import Quantization, quantization

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ROLES: dict[str, Role] = {"qweight": "weight", "scales": "scale", "qzeros": "zero", "g_idx": "index"}
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed_layers(folder: Path) -> set[str]:
    return {t.name.removesuffix(".qweight") for t in safetensors_file.stored(folder) if t.name.endswith(".qweight")}


def ledger(folder: Path) -> list[StoredTensor]:
    """Every tensor stored in `folder`, with its part in a packed layer."""
    return safetensors_file.ledger(folder, safetensors_file.by_suffix(_ROLES))


def stored_bits(*, outputs: int, inputs: int, bits: int, group: int) -> int:
    """Bits that a layer takes in the GPTQ format: codes, a 16-bit scale and a zero point for each group of an output, and the
    32-bit group of each input."""
    groups = -(-inputs // group)
    words = -(-inputs * bits // 32) * outputs + groups * -(-outputs * bits // 32)
    return 32 * words + 16 * groups * outputs + 32 * inputs


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Little-endian bit stream along the last axis: int32 [..., words] -> int32 codes [..., count]; codes may cross words."""
    import torch

    wide = packed.to(torch.int64) & 0xFFFFFFFF
    wide = torch.cat([wide, torch.zeros_like(wide[..., :1])], dim=-1)  # a code in the last word may look one further
    start = torch.arange(count) * bits
    word, shift = start // 32, start % 32
    pair = wide[..., word] | (wide[..., word + 1] << 32)
    return ((pair >> shift) & ((1 << bits) - 1)).to(torch.int32)


def dequantize(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights of a GPTQ or AWQ checkpoint as dense tensors [out, in] in `dtype` under the source names; the rest as stored.

    BadInput names a layout that this does not read (AWQ kernels' own orders)."""
    read = Reader(folder)
    state = {e.name: safetensors_file.tensor(e) for e in safetensors_file.stored(folder) if not read.part(e.name)}
    for layer in read.layers:
        state[f"{layer}.weight"] = read.weight(layer).to(dtype)
    return state


class Reader:
    """The packed layers of a checkpoint, read one at a time. Layers may differ in their bits, which the shapes of their
    parts tell."""

    def __init__(self, folder: Path) -> None:
        """BadInput names a layout that this does not read."""
        checkpoint = quantization(config_json.read(folder))
        if checkpoint is None:
            raise BadInput(f"{folder}: its config.json names no quantization")
        self._layout = _layout(checkpoint, folder)
        self._entries = {entry.name: entry for entry in safetensors_file.stored(folder)}
        self.layers = sorted(packed_layers(folder))
        self._known = set(self.layers)

    def part(self, name: str) -> bool:
        """Whether a tensor is a part of a packed layer's weight."""
        layer, _, kind = name.rpartition(".")
        return kind in _ROLES and layer in self._known

    def bits(self, layer: str) -> int:
        outputs = self._entries[f"{layer}.scales"].shape[1]
        return self._entries[f"{layer}.qzeros"].shape[1] * 32 // outputs

    def shape(self, layer: str) -> tuple[int, int]:
        """(outputs, inputs) of a layer's weight."""
        rows, outputs = self._entries[f"{layer}.qweight"].shape[0], self._entries[f"{layer}.scales"].shape[1]
        return outputs, rows if self._layout == "gemm" else rows * 32 // self.bits(layer)

    def group(self, layer: str) -> int:
        """How many inputs of a layer share a scale."""
        return self.shape(layer)[1] // self._entries[f"{layer}.scales"].shape[0]

    def codes(self, layer: str) -> tuple[Tensor, Tensor]:
        """(codes int8 [outputs, inputs] about zero, scales [outputs, groups]) of a layer in the GPTQ format whose groups follow
        one another."""
        import torch

        words, zeros, scales = (safetensors_file.tensor(self._entries[f"{layer}.{p}"]) for p in ("qweight", "qzeros", "scales"))
        bits, (outputs, inputs) = self.bits(layer), self.shape(layer)
        offsets = (unpack(zeros, bits, outputs) + 1) & ((1 << bits) - 1)
        index = torch.arange(inputs) // (inputs // zeros.shape[0])
        held = unpack(words.t().contiguous(), bits, inputs) - offsets.t()[:, index]
        return held.to(torch.int8), scales.t().contiguous()

    def weight(self, layer: str) -> Tensor:
        """A layer's weight [outputs, inputs], float32."""
        import torch

        names = (f"{layer}.{part}" for part in ("qweight", "qzeros", "scales"))
        words, zeros, scales = (safetensors_file.tensor(self._entries[name]) for name in names)
        bits, (outputs, inputs) = self.bits(layer), self.shape(layer)
        if self._layout == "gemm":
            return _awq_weight(words, zeros, scales, bits)
        own = self._entries.get(f"{layer}.g_idx")
        index = torch.arange(inputs) // (inputs // zeros.shape[0]) if own is None else safetensors_file.tensor(own).long()
        codes = unpack(words.t().contiguous(), bits, index.numel()).t()  # [in, out]
        one = 1 if self._layout == "gptq" else 0  # the first format stores zero points minus one
        offsets = (unpack(zeros, bits, outputs) + one) & ((1 << bits) - 1)
        return ((codes - offsets[index]).float() * scales.float()[index]).t().contiguous()


def _layout(checkpoint: Quantization, folder: Path) -> str:
    """`gptq` (zero points stored minus one), `gptq_v2` (as they are), or `gemm`, AWQ's."""
    settings, awq = checkpoint.settings, checkpoint.format == "awq"
    named = (settings.get(key) for key in ("checkpoint_format", "format", "version"))
    layout = str(next(filter(None, named), "gemm" if awq else "gptq")).lower()
    if layout not in (("gemm",) if awq else ("gptq", "gptq_v2")):
        raise BadInput(f"{folder}: checkpoint format {layout!r}, which this does not read")
    return layout


def _awq_weight(words: Tensor, zeros: Tensor, scales: Tensor, bits: int) -> Tensor:
    groups, outputs = scales.shape
    codes, offsets = unpack(words, bits, outputs), unpack(zeros, bits, outputs)
    if bits == 4:
        codes, offsets = _in_order(codes), _in_order(offsets)
    size = words.shape[0] // groups
    dense = (codes - offsets.repeat_interleave(size, 0)).float() * scales.float().repeat_interleave(size, 0)
    return dense.t().contiguous()


def _in_order(codes: Tensor) -> Tensor:
    """Undoes the interleaving of 4-bit AWQ: position j of each eight holds output `_AWQ_ORDER[j]`."""
    import torch

    eights = codes.reshape(*codes.shape[:-1], -1, 8)
    out = torch.empty_like(eights)
    out[..., list(_AWQ_ORDER)] = eights
    return out.reshape(codes.shape)
