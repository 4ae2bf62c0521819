"""GPTQ and AWQ packing: the tensors of a packed layer, and the weights that they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.formats import safetensors_file

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed_layers(folder: Path) -> set[str]:
    return {t.name.removesuffix(".qweight") for t in safetensors_file.stored(folder) if t.name.endswith(".qweight")}


def unpack(words: Any, bits: int, count: int) -> Any:
    """Little-endian bit stream along the last axis: int32 [..., words] -> int32 codes [..., count]; codes may cross words."""
    import torch

    wide = words.to(torch.int64) & 0xFFFFFFFF
    wide = torch.cat([wide, torch.zeros_like(wide[..., :1])], dim=-1)  # a code in the last word may look one further
    start = torch.arange(count) * bits
    word, shift = start // 32, start % 32
    pair = wide[..., word] | (wide[..., word + 1] << 32)
    return ((pair >> shift) & ((1 << bits) - 1)).to(torch.int32)


def dequantize(folder: Path, dtype: Any) -> dict[str, Any]:
    """All weights of a GPTQ or AWQ checkpoint as dense tensors [out, in] in `dtype` under the source names; the rest as stored.

    BadInput names a layout that this does not read (mixed bits, AWQ kernels' own orders)."""
    import torch
    from safetensors import safe_open

    quantization = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    bits, method = int(quantization["bits"]), str(quantization["quant_method"])
    named = (quantization.get(key) for key in ("checkpoint_format", "format", "version"))
    layout = str(next(filter(None, named), "gemm" if method == "awq" else "gptq")).lower()
    if layout not in (("gemm",) if method == "awq" else ("gptq", "gptq_v2")) or quantization.get("dynamic"):
        kind = "mixed bits" if quantization.get("dynamic") else f"checkpoint format {layout!r}"
        raise BadInput(f"{folder}: {kind}, which this does not read")
    state: dict[str, Any] = {}
    packed = packed_layers(folder)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                state[name] = file.get_tensor(name)
    for layer in packed:
        words, zeros, scales = (state.pop(f"{layer}.{part}") for part in ("qweight", "qzeros", "scales"))
        outputs = scales.shape[1]
        if method == "awq":
            state[f"{layer}.weight"] = _awq_weight(words, zeros, scales, bits).to(dtype)
            continue
        inputs = words.shape[0] * 32 // bits
        index = state.pop(f"{layer}.g_idx", torch.arange(inputs) // (inputs // zeros.shape[0])).long()
        codes = unpack(words.t().contiguous(), bits, index.numel()).t()  # [in, out]
        one = 1 if layout == "gptq" else 0  # the first format stores zero points minus one
        offsets = (unpack(zeros, bits, outputs) + one) & ((1 << bits) - 1)
        state[f"{layer}.weight"] = ((codes - offsets[index]).float() * scales.float()[index]).t().contiguous().to(dtype)
    return state


def _awq_weight(words: Any, zeros: Any, scales: Any, bits: int) -> Any:
    groups, outputs = scales.shape
    codes, offsets = unpack(words, bits, outputs), unpack(zeros, bits, outputs)
    if bits == 4:
        codes, offsets = _in_order(codes), _in_order(offsets)
    size = words.shape[0] // groups
    dense = (codes - offsets.repeat_interleave(size, 0)).float() * scales.float().repeat_interleave(size, 0)
    return dense.t().contiguous()


def _in_order(codes: Any) -> Any:
    """Undoes the interleaving of 4-bit AWQ: position j of each eight holds output `_AWQ_ORDER[j]`."""
    import torch

    eights = codes.reshape(*codes.shape[:-1], -1, 8)
    out = torch.empty_like(eights)
    out[..., list(_AWQ_ORDER)] = eights
    return out.reshape(codes.shape)
