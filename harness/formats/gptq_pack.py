"""Codes and scales as a checkpoint in the GPTQ format (formats/gptq_file.py): the way back of its `unpack`.

For roundings that a library computes and stores in a byte for each code: here a code takes the bits that it is named after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Unsupported
from harness.formats import config_json, quantization_config, safetensors_file

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """A layer's weight as symmetric codes: `codes` int8 [outputs, inputs] from -2^(bits - 1) on, `scales` [outputs, groups]; the
    weight is code * scale."""

    codes: Tensor
    scales: Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Non-negative codes int [..., count] -> int32 [..., count * bits / 32], a little-endian bit stream along the last axis;
    count * bits divides by 32, and so may codes cross words."""
    import torch

    count = codes.shape[-1]
    words = count * bits // 32
    start = torch.arange(count) * bits
    word, shift = start // 32, start % 32
    wide = codes.to(torch.int64) << shift
    packed = torch.zeros((*codes.shape[:-1], words + 1), dtype=torch.int64)
    packed.index_add_(-1, word, wide & 0xFFFFFFFF)
    packed.index_add_(-1, word + 1, wide >> 32)
    low = packed[..., :words] & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)


def tensors(layer: str, held: Codes, bits: int) -> dict[str, Tensor]:
    """The tensors of one packed layer. Unsupported where a scale is none that float16 holds exactly: the weights would be others
    than those that the library has rounded to."""
    import torch

    outputs, inputs = held.codes.shape
    groups = held.scales.shape[1]
    scales = held.scales.to(torch.float16)
    if not torch.equal(scales.to(held.scales.dtype), held.scales):
        raise Unsupported(f"{layer}: its scales are beyond the range of float16, in which the GPTQ format stores them")
    half = 1 << (bits - 1)
    zeros = torch.full((groups, outputs), half - 1, dtype=torch.int64)  # the format stores zero points minus one
    return {
        f"{layer}.qweight": pack(held.codes.to(torch.int64) + half, bits).t().contiguous(),
        f"{layer}.qzeros": pack(zeros, bits),
        f"{layer}.scales": scales.t().contiguous(),
        f"{layer}.g_idx": torch.arange(inputs, dtype=torch.int32) // (inputs // groups),
    }


def write(folder: Path, state: Mapping[str, Tensor], *, bits: int, group_size: int, source: Path) -> None:
    """A checkpoint of packed layers and of what is kept, `state`, with the config.json of the `source`."""
    settings = {
        "bits": bits,
        "group_size": group_size,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
    }
    safetensors_file.save(state, folder / safetensors_file.MODEL)
    config = {name: value for name, value in config_json.read(source).items() if name != "torch_dtype"}
    config_json.write({**config, "dtype": "bfloat16", quantization_config.KEY: settings}, folder)
    (folder / "quantize_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
