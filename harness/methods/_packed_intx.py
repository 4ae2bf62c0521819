"""torchao's symmetric intx rounding in groups, stored in the bits that it is named after.

torchao keeps every width of its intx tensors in a byte for each code. Its codes and scales are those of the GPTQ format with its
zero point in the middle, so artifacts are written in that format, and hold exactly the weights that torchao rounded to: `write`
unpacks what it has written and compares it with torchao's own dequantized tensors bit by bit.

`type: weights` loads them through GPTQModel's kernels, as rtn's. `type: dynamic` also rounds the activations of each token to
int8, which is torchao's to compute: the codes are unpacked into its tensors on load, a byte each, so that the file has the
scheme's size and the memory is that of 8 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from harness.artifact import LayerKernel, ModelShape
from harness.errors import BadReload
from harness.formats import gptq_file, gptq_pack, safetensors_file
from harness.formats.gptq_pack import Codes
from harness.methods import _gptqmodel, layer_errors, reload, torchao
from harness.methods.base import LoadRequest, Option, QuantizeRequest
from harness.models import build
from harness.spec import Scheme

if TYPE_CHECKING:
    from torch import Tensor
    from torchao.core.config import AOBaseConfig
    from torchao.quantization import IntxUnpackedToInt8Tensor
    from transformers import PreTrainedModel

BITS = (8.0, 4.0, 3.0, 2.0)

OPTIONS = {
    "type": Option(
        default="weights",
        choices=("weights", "dynamic"),
        help="weights = they alone are rounded; dynamic = the activations of each token to int8 too (at 4 bits)",
    ),
    "group_size": Option(default=64, choices=_gptqmodel.GROUPS, help="weights that share one scale"),
}


def config(scheme: Scheme) -> AOBaseConfig:
    """The library's configuration of a scheme, for rounding and for training with rounded weights alike."""
    import torch
    from torchao import quantization as ao

    dtype, groups = getattr(torch, f"int{scheme.bits:g}"), ao.PerGroup(int(scheme.options["group_size"]))
    if scheme.options["type"] == "dynamic":
        return ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=groups)
    return ao.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=groups)


def write(request: QuantizeRequest, weights: Path) -> None:
    """Rounds the weights of the model in the folder `weights` and writes the artifact with its reload check."""
    import torch
    from torchao.quantization import quantize_

    bits, group = int(request.scheme.bits), int(request.scheme.options["group_size"])
    model = build.plain(weights, torch.bfloat16, request.device)
    linears = build.decoder_linears(model)
    state: dict[str, Tensor] = {}
    rounded: dict[str, Tensor] = {}
    for name, linear in linears.items():
        quantize_(linear, config(request.scheme), filter_fn=lambda module, _: isinstance(module, torch.nn.Linear))
        weight = cast("IntxUnpackedToInt8Tensor", linear.weight)
        if bool(weight.zero_point.any()):
            raise BadReload(f"{name}: torchao has rounded around a zero point, which this format is not written with")
        state |= gptq_pack.tensors(name, Codes(codes=weight.qdata.cpu(), scales=weight.scale.cpu()), bits)
        rounded[name] = weight.dequantize().cpu()
    if request.scheme.options["type"] == "dynamic":
        rows = reload.rows_for(reload.vocabulary(model), request.calibration)
        # The same arithmetic on the same codes: nothing but the order of sums may differ, so the floor is none.
        reload.write(model, rows, request.out_dir, by="the quantizing library's model in memory")
    for linear in linears.values():
        linear.register_parameter("weight", None)  # it is stored in parts
    state |= build.own_state(model)
    gptq_pack.write(request.out_dir, state, bits=bits, group_size=group, source=weights)
    _same(request.out_dir, rounded)
    if request.scheme.options["type"] != "dynamic":
        reload.write_dense(
            request, gptq_file.dequantize(request.out_dir, torch.float32), "the packed weights, unpacked and run in float32"
        )
    (request.out_dir / layer_errors.FILE).unlink(missing_ok=True)  # against the source they would tell of training as well


def _same(folder: Path, rounded: dict[str, Tensor]) -> None:
    """BadReload unless the packed layers unpack to exactly the library's own weights."""
    read = gptq_file.Reader(folder)
    for name, theirs in rounded.items():
        if not bool((read.weight(name).to(theirs.dtype) == theirs).all()):
            raise BadReload(f"{name}: the packed weights are not those that torchao has rounded to; this is a defect of ours")


def load(request: LoadRequest) -> PreTrainedModel:
    if request.scheme.options["type"] != "dynamic":
        return _gptqmodel.load(request)
    import torch
    from torchao.quantization import IntxUnpackedToInt8Tensor
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8TensorActivationQuantization as Activations,
    )

    read = gptq_file.Reader(request.artifact_dir)
    entries = safetensors_file.stored(request.artifact_dir)
    rest = {e.name: safetensors_file.tensor(e).to(request.device) for e in entries if not read.part(e.name)}
    model = _without(request, read.layers, rest)
    target, group = getattr(torch, f"int{request.scheme.bits:g}"), int(request.scheme.options["group_size"])
    for name in read.layers:
        codes, scales = read.codes(name)
        scales = scales.to(torch.bfloat16).to(request.device)
        weight = IntxUnpackedToInt8Tensor(
            codes.to(request.device),
            scales,
            torch.zeros_like(scales, dtype=torch.int8),
            target,
            (1, group),
            torch.bfloat16,
            Activations.INT8_ASYM_PER_TOKEN,
        )
        model.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)
    model.eval()
    return model


def _without(request: LoadRequest, layers: list[str], rest: dict[str, Tensor]) -> PreTrainedModel:
    """The source's architecture with the kept weights. The artifact's config.json names packed layers, which transformers would
    build; the source's names none."""
    return build.without(request.model_dir, layers, rest, device=request.device)


def kernels(model: PreTrainedModel) -> list[LayerKernel]:
    linears = build.decoder_linears(model)
    if any(hasattr(linear.weight, "qdata") for linear in linears.values()):
        return torchao.kernels(model)
    return _gptqmodel.kernels(model)


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if scheme.options["type"] == "dynamic" and scheme.bits != 4:
        return "type dynamic is int8 activations with int4 weights; write bits: 4, or leave type out"
    return _gptqmodel.supports(scheme, shape, device) or _unlike(shape, scheme.method)


def _unlike(shape: ModelShape | None, method: str) -> str | None:
    """Why a model cannot be where torchao rounds other layers than GPTQModel's loader expects to be packed."""
    taken = _gptqmodel.taken_of(shape)
    weights = (shape.body if shape is not None else None) or ()
    others = [weight.name for weight in weights if (weight.kind == "linear") != taken(weight)]
    if not others:
        return None
    return (
        f"{safetensors_file.brief(others)}: torchao rounds linear layers, and the loader of the packed format takes others of "
        f"this architecture, so {method} has no artifact that loads; train a model whose blocks are linear layers"
    )
