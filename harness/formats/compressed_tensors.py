"""The compressed-tensors format, as llm-compressor writes and vLLM reads it: what is stored, and what its weights mean.

Per linear layer of N outputs and K inputs, groups of g inputs: `weight_packed` int32 [N, K*bits/32], a little-endian bit stream
of codes plus 2^(bits-1) along each row; `weight_scale` [N, K/g]; `weight_zero_point` int32 [N*bits/32, K/g] (packed along the
rows, the same offset; absent where steps are symmetric). Eight bits with rounded activations and FP8 keep `weight` as int8 or
e4m3 with one scale per row. FP4 packs two e2m1 codes to a byte, the first in the low half: NVFP4 with e4m3 scales per 16 inputs
over one float32 `weight_global_scale` that divides, MXFP4 with power-of-two exponents (bias 127) per 32 inputs.

`dequantize` is this project's own reading, the independent side of the reload check. It holds what is stored and nothing of
how activations are rounded while a model runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import Role, StoredTensor
from harness.errors import BadInput
from harness.formats import fp4, safetensors_file
from harness.formats.gptq_file import unpack
from harness.spec import Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ROLES: dict[str, Role] = {
    "weight_packed": "weight",
    "weight": "weight",
    "weight_scale": "scale",
    "weight_global_scale": "scale",
    "input_global_scale": "scale",
    "input_scale": "scale",
    "weight_zero_point": "zero",
    "weight_shape": "index",
    "weight_g_idx": "index",
}


def quantized_layers(folder: Path) -> set[str]:
    """Names of the layers that have a scale."""
    return {t.name.removesuffix(".weight_scale") for t in safetensors_file.stored(folder) if t.name.endswith(".weight_scale")}


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return safetensors_file.ledger(artifact_dir, safetensors_file.by_suffix(_ROLES, quantized_layers(artifact_dir)))


def dequantize(folder: Path, bits: int | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights of a checkpoint as dense tensors [outputs, inputs] in `dtype` under the source's names; the rest as stored.

    `bits` of the integer codes; None: those of each layer, by its shape. BadInput names a layer whose parts are not those of a
    layout above."""
    state = safetensors_file.tensors(folder)
    for layer in sorted(quantized_layers(folder)):
        for part in _ROLES:
            state.pop(f"{layer}.{part}", None)
        state[f"{layer}.weight"] = weight(folder, layer, bits).to(dtype)
    return state


def weight(folder: Path, layer: str, bits: int | None) -> Tensor:
    """One layer's weight [outputs, inputs], float32. BadInput as `dequantize`."""
    names = {f"{layer}.{part}": part for part in _ROLES}
    parts = {names[e.name]: safetensors_file.tensor(e) for e in safetensors_file.stored(folder) if e.name in names}
    try:
        return _dense(parts, bits)
    except (KeyError, RuntimeError) as error:
        raise BadInput(f"{folder}: the parts of {layer} are of no layout known here: {sorted(parts)} ({error!r})") from None


def _dense(parts: Mapping[str, Tensor], bits: int | None) -> Tensor:
    """One layer's weight, float32."""
    import torch

    scale = parts["weight_scale"]
    if "weight" in parts:  # int8 or e4m3, a scale per row or per group
        values = parts["weight"].float()
        if scale.dim() == 2 and scale.shape[1] > 1:
            scale = scale.float().repeat_interleave(values.shape[1] // scale.shape[1], 1)
        return values * scale.float()
    packed = parts["weight_packed"]
    if packed.dtype == torch.uint8:
        values = fp4.unpacked(packed)
        if scale.dtype == torch.uint8:
            steps = torch.pow(2.0, scale.float() - 127)
        else:
            steps = scale.float() / parts["weight_global_scale"].float()
        return values * steps.repeat_interleave(values.shape[1] // steps.shape[1], 1)
    rows, columns = (int(n) for n in parts["weight_shape"])
    bits = _bits(packed.shape[1], columns) if bits is None else bits
    middle = 1 << (bits - 1)
    codes = unpack(packed, bits, columns) - middle
    order = parts.get("weight_g_idx")  # the group of each column, where the groups do not follow one another
    group = torch.arange(columns) // (columns // scale.shape[1]) if order is None else order.long()
    if "weight_zero_point" in parts:
        zeros = unpack(parts["weight_zero_point"].t().contiguous(), bits, rows).t() - middle
        codes = codes - zeros[:, group]
    return codes.float() * scale.float()[:, group]


def _bits(words: int, columns: int) -> int:
    """The bits of codes of which `columns` take so many words of 32 bits. KeyError where that leaves a choice."""
    fitting = [bits for bits in range(1, 9) if -(-columns * bits // 32) == words]
    if len(fitting) != 1:
        raise KeyError(f"{columns} codes in {words} words have no one width")
    return fitting[0]
