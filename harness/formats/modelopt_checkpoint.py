"""What NVIDIA's Model Optimizer exports for TensorRT-LLM and vLLM: what is stored, and what it means.

Per linear layer of N outputs and K inputs, in groups of g inputs, by the names of modelopt.py's types:

    w8a16, w8a8_sq             `weight` int8 [N, K], `weight_scale` [N]
    fp8                        `weight` e4m3 [N, K], `weight_scale` []
    w4a16, w4a16_awq, w4a8_awq `weight` uint8 [N/2, K]: output 2i in the low half, 2i+1 in the high one, two's complement;
                               `weight_scale` [N, K/g]; w4a8_awq rounds what that gives to e4m3 in steps of `weight_scale_2` []
    nvfp4, w4a16_nvfp4         `weight` uint8 [N, K/2]: e2m1, the first input low; `weight_scale` e4m3 [N, K/16] times
                               `weight_scale_2` []

with `pre_quant_scale` [K], by which inputs are multiplied first (SmoothQuant, AWQ), and `input_scale` [], the step by which they
are rounded: to int8, to e4m3 (fp8, w4a8_awq), or in blocks of 16 to e2m1 (nvfp4). Scales without a dtype here are float32,
`pre_quant_scale` has the model's.

`dequantize` and `rounded` are this project's own reading, the independent side of the reload check.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from harness.artifact import Role, StoredTensor
from harness.errors import BadInput
from harness.formats import fp4, safetensors_file
from harness.spec import Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LayerParts: TypeAlias = "Mapping[str, Tensor]"
"""The stored tensors of one quantized layer, by the names of `_ROLES`."""

_ROLES: dict[str, Role] = {
    "weight": "weight",
    "weight_scale": "scale",
    "weight_scale_2": "scale",
    "pre_quant_scale": "scale",
    "input_scale": "scale",
}


def read(folder: Path) -> tuple[dict[str, LayerParts], dict[str, Tensor]]:
    """The stored parts of every quantized layer by its name, those of `_ROLES` that it has; and all other tensors."""
    rest = safetensors_file.tensors(folder)
    names = [n.removesuffix(".weight_scale") for n in rest if n.endswith(".weight_scale")]
    return {n: {part: rest.pop(f"{n}.{part}") for part in _ROLES if f"{n}.{part}" in rest} for n in names}, rest


def dequantize(layers: Mapping[str, LayerParts], rest: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What was read as dense tensors in `dtype` under the source's names, weights as [outputs, inputs].

    BadInput names a layer whose parts are not those of a layout above."""
    state = {name: tensor.to(dtype) for name, tensor in rest.items()}
    for layer, parts in layers.items():
        try:
            state[f"{layer}.weight"] = _dense(parts).to(dtype)
        except (KeyError, RuntimeError) as error:
            raise BadInput(f"the parts of {layer} are of no layout known here: {sorted(parts)} ({error!r})") from None
    return state


def _dense(parts: LayerParts) -> Tensor:
    """One layer's weight, float32."""
    import torch

    weight, scale = parts["weight"], parts["weight_scale"].float()
    if weight.dtype == torch.int8:
        return weight.float() * scale[:, None]
    if weight.dtype == torch.float8_e4m3fn:
        return weight.float() * scale
    if parts["weight_scale"].dtype == torch.float8_e4m3fn:
        values = fp4.unpacked(weight)
        return values * (scale * parts["weight_scale_2"]).repeat_interleave(values.shape[1] // scale.shape[1], 1)
    codes = (torch.stack((weight & 15, weight >> 4), dim=1).flatten(0, 1).int() ^ 8) - 8
    values = codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)
    second = parts.get("weight_scale_2")
    return values if second is None else (values / second).clamp(-448, 448).to(torch.float8_e4m3fn).float() * second


def inputs_of(parts: LayerParts) -> str | None:
    """What a layer's inputs are rounded to, or None."""
    import torch

    if "input_scale" not in parts:
        return None
    if parts["weight"].dtype == torch.int8:
        return "int8"
    return "e2m1" if parts["weight_scale"].dtype == torch.float8_e4m3fn else "e4m3"


def rounded(x: Tensor, parts: LayerParts) -> Tensor:
    """Inputs [..., K] as the layer takes them: multiplied in their dtype and rounded in float32, as its parts say."""
    import torch

    kind = inputs_of(parts)
    if "pre_quant_scale" in parts:
        x = x * parts["pre_quant_scale"].to(x.dtype)
    if kind is None:
        return x
    wide, step = x.float(), parts["input_scale"].float()
    if kind == "int8":
        wide = (wide / step).round().clamp(-128, 127) * step
    elif kind == "e4m3":
        wide = (wide / step).clamp(-448, 448).to(torch.float8_e4m3fn).float() * step
    else:
        blocks = wide.reshape(*x.shape[:-1], -1, 16)
        largest = blocks.abs().amax(dim=-1, keepdim=True)
        steps = (largest / (6 * step)).clamp(2**-9, 448).to(torch.float8_e4m3fn).float() * step
        values = torch.tensor(fp4.MAGNITUDES)
        between = (values[1:] + values[:-1]) / 2
        share = blocks.abs() / steps
        below, above = (torch.bucketize(share, between, right=up) for up in (False, True))  # these differ in ties, which go to
        wide = (values[torch.where(below % 2 == 0, below, above)] * blocks.sign() * steps).flatten(-2)  # the even code
    return wide.to(x.dtype)


def weight(folder: Path, layer: str) -> Tensor:
    """What inputs are multiplied by in one layer, before they are rounded: [outputs, inputs], float32."""
    names = {f"{layer}.{part}": part for part in _ROLES}
    parts = {names[e.name]: safetensors_file.tensor(e) for e in safetensors_file.stored(folder) if e.name in names}
    dense = _dense(parts)
    return dense * parts["pre_quant_scale"].float() if "pre_quant_scale" in parts else dense


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    layers = {t.name.rpartition(".")[0] for t in safetensors_file.stored(artifact_dir) if t.name.endswith(".weight_scale")}
    return safetensors_file.ledger(artifact_dir, safetensors_file.by_suffix(_ROLES, layers))
