"""hqq: fits scale and zero point of each group to the weights alone, under a norm that forgives outliers (Badri & Shaji, HQQ,
2023). No calibration.

The library saves with pickle, which is never loaded here: the artifact holds the same tensors as safetensors (`W_q` packed,
`scale` and `zero` in bf16) and `hqq.json` with what a layer needs to be rebuilt. On load every `HQQLinear` is built from
those; its kernel unpacks and dequantizes at each call (packed memory, no speed).

What is really stored: 8, 6 and 5 bits in one byte each, 4 bits two to a byte, 3 bits ten to an int32 (3.2), 2 and 1.58 bits
four to a byte, 1 bit eight to a byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, LayerKernel, ModelShape, StoredTensor
from harness.formats import library_tensors, safetensors_file
from harness.methods import against_source, refusals, reload
from harness.methods._kernels import proof
from harness.methods.base import Kernel, LoadRequest, Method, Option, QuantizeRequest
from harness.models import build
from harness.spec import Scheme

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BITS = (8.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.58, 1.0)
STORED_BITS = {8.0: 8.0, 6.0: 8.0, 5.0: 8.0, 4.0: 4.0, 3.0: 3.2, 2.0: 2.0, 1.58: 2.0, 1.0: 1.0}
"""Bits that one weight takes in the packed tensor, by nominal bits."""

META = "hqq.json"
_SLOW: dict[float, Kernel] = dict.fromkeys(BITS, "slow")


def _bits(scheme: Scheme) -> float | int:
    return int(scheme.bits) if float(scheme.bits).is_integer() else float(scheme.bits)


def _config(scheme: Scheme) -> dict[str, object]:
    from hqq.core.quantize import BaseQuantizeConfig

    options = scheme.options
    settings: dict[str, object] = BaseQuantizeConfig(
        nbits=_bits(scheme), group_size=int(options["group_size"]), axis=int(options["axis"])
    )
    return settings


def quantize(request: QuantizeRequest) -> None:
    import torch
    from hqq.core.quantize import HQQLinear

    model = build.plain(request.model_dir, torch.bfloat16, "cpu")
    state: dict[str, Tensor] = {}
    dense: dict[str, Tensor] = {}
    layers: dict[str, dict[str, object]] = {}
    for name, linear in build.decoder_linears(model).items():
        layer = HQQLinear(linear, _config(request.scheme), compute_dtype=torch.bfloat16, device=request.device, del_orig=False)
        meta = layer.meta
        state[f"{name}.W_q"] = layer.W_q.data.cpu().contiguous()
        for part in ("scale", "zero"):
            state[f"{name}.{part}"] = meta[part].to(torch.bfloat16).cpu().contiguous()
        layers[name] = {"shape": list(meta["shape"]), "packing": meta["packing"]}
        dense[f"{name}.weight"] = layer.dequantize().cpu()  # bf16, as the kernel has it
        linear.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    rest = {n: t for n, t in build.own_state(model).items() if n.removesuffix(".weight") not in layers}
    settings = {"bits": _bits(request.scheme), **request.scheme.options, "layers": layers}
    library_tensors.write(request.out_dir, {**state, **rest}, settings=settings, name=META, source=request.model_dir)
    reload.write_dense(request, {**dense, **rest}, "the quantizing library's weights, dequantized by it and run in float32")


def load(request: LoadRequest) -> PreTrainedModel:
    import torch
    from hqq.core.quantize import HQQLinear, Quantizer

    meta, state = library_tensors.read(request.artifact_dir, name=META, device=request.device)
    packed = {f"{name}.{part}" for name in meta["layers"] for part in ("W_q", "scale", "zero")}
    rest = {name: tensor for name, tensor in state.items() if name not in packed}
    model = build.without(request.artifact_dir, meta["layers"], rest, device=request.device)
    for name, entry in meta["layers"].items():
        plain = model.get_submodule(name)
        layer = HQQLinear(
            None, _config(request.scheme), compute_dtype=torch.bfloat16, device=request.device, initialize=False, del_orig=True
        )
        layer.W_q = torch.nn.Parameter(state[f"{name}.W_q"], requires_grad=False)
        layer.bias = plain.bias
        layer.meta = {
            "nbits": meta["bits"],
            "group_size": meta["group_size"],
            "axis": meta["axis"],
            "shape": torch.Size(entry["shape"]),
            "packing": entry["packing"],
            "unpack_view_dtype": Quantizer.unpack_view_dtype[entry["packing"]],
            "view_as_float": False,
            "quant_scale": False,
            "quant_zero": False,
            "compute_dtype": torch.bfloat16,
            "scale": state[f"{name}.scale"],
            "zero": state[f"{name}.zero"],
        }
        layer.out_features, layer.in_features = entry["shape"]
        layer.in_gpu = request.device != "cpu"
        layer.ready = True
        model.set_submodule(name, layer)
    model.eval()
    return model


def _kernels(model: PreTrainedModel) -> list[LayerKernel]:
    from hqq.core.quantize import HQQLinear

    packed = [(name, module) for name, module in model.named_modules() if isinstance(module, HQQLinear)]
    return [
        proof(
            name,
            "HQQLinear",
            module.W_q,
            op=f"{module.forward.__name__}: dequantize + aten::matmul",
            dequantized=module.W_q.dtype.is_floating_point,
        )
        for name, module in packed
    ]


_roles = safetensors_file.by_suffix({"W_q": "weight", "scale": "scale", "zero": "zero"})


def _ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return safetensors_file.ledger(artifact_dir, _roles)


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    layers = library_tensors.settings(request.out_dir, META)["layers"]
    rows = _ledger(request.out_dir, request.scheme)
    return against_source.held(request.out_dir, rows, lambda layer: tuple(layers[layer]["shape"]))


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    group = int(scheme.options["group_size"])
    along = group if int(scheme.options["axis"]) == 1 else 1
    reason = refusals.quantized(shape) or refusals.undivided_groups(shape, along)
    if reason:
        return reason
    for layer in shape.linears if shape else ():
        if layer.rows * layer.columns % (8 * group):
            return f"{layer.name} has {layer.rows} x {layer.columns} weights, which do not pack into bytes in groups of {group}"
    return None


def _bits_per_weight(scheme: Scheme) -> float:
    """Packed bits + a 16-bit scale and a 16-bit zero point per group."""
    return STORED_BITS[float(scheme.bits)] + 32 / int(scheme.options["group_size"])


METHOD = Method(
    name="hqq",
    title="HQQ",
    bits=BITS,
    options={
        "group_size": Option(default=64, choices=(8, 16, 32, 64, 128, 256), help="weights that share one scale and zero point"),
        "axis": Option(default=1, choices=(0, 1), help="1 groups along the inputs (what kernels take); 0 across output channels"),
    },
    kernel_cpu=_SLOW,
    kernel_cuda=_SLOW,
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=_bits_per_weight,
    ledger=_ledger,
    weights=_weights,
    kernels=_kernels,
    requirements=("hqq>=0.2.8",),
    extra="hqq",
    modules=("torch", "transformers", "hqq"),
    preload=("hqq.core.quantize",),
    summary="half-quadratic fit of scale and zero point to the weights; needs no data",
    source="Badri & Shaji 2023, mobiusml.github.io/hqq_blog; hqq",
)
