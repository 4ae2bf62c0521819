"""torchao: PyTorch's own quantized tensors, without calibration.

`type` chooses the format. `int` is weights only, as the width's own tensor stores them: 8 bits one int8 per weight; 4 bits two
codes to a byte in groups, computed by ATen's int4 kernel (the library calls this CPU format a prototype); 6, 5, 3 and 2 bits the
values of an intx tensor, *which the library keeps in one byte each*: the accuracy is that of the width, size and memory are
those of 8 bits, and that is what the ledger and the estimate say. `intx` takes that tensor at 8 and 4 bits too. `dynamic` (8
bits) rounds the activations of each token to int8 as well and multiplies integers. `float` (8 bits) is e4m3.

The library's tensors are rebuilt from plain ones: the artifact holds their parts as safetensors and `torchao.json` with what
they are. Its 4-bit tensor is laid out for the instruction set of the CPU it was made on, so codes are stored in row order and
laid out on load: an artifact means the same on every machine.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, LayerKernel, ModelShape, StoredTensor
from harness.formats import library_tensors, safetensors_file
from harness.formats.safetensors_file import brief
from harness.methods import against_source, refusals, reload
from harness.methods._kernels import proof
from harness.methods.base import LoadRequest, Method, Option, QuantizeRequest
from harness.models import build
from harness.spec import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torchao.core.config import AOBaseConfig
    from torchao.utils import TorchAOBaseTensor
    from transformers import PreTrainedModel

BITS = (8.0, 6.0, 5.0, 4.0, 3.0, 2.0)
TYPES = ("int", "intx", "dynamic", "float")
GROUPS = (-1, 32, 64, 128)

META = "torchao.json"
_PARTS = ("qdata", "scale", "zero_point", "scale_and_zero")


def kind(scheme: Scheme) -> str:
    """The library's tensor of a scheme: Int8, Int8Dynamic, Int4, Intx or Float8."""
    wish = str(scheme.options["type"])
    if wish == "int":
        return {8.0: "Int8", 4.0: "Int4"}.get(scheme.bits, "Intx")
    return {"intx": "Intx", "dynamic": "Int8Dynamic", "float": "Float8"}[wish]


def _config(scheme: Scheme) -> AOBaseConfig:
    import torch
    from torchao import quantization as ao
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm
    from torchao.quantization.quantize_.workflows.intx.intx_choose_qparams_algorithm import IntxChooseQParamsAlgorithm

    group, search = int(scheme.options["group_size"]), bool(scheme.options["scale_search"])
    rows = ao.PerRow() if group < 0 else ao.PerGroup(group)
    # set_inductor_config changes how the whole process multiplies float32 matrices, for compiled models only.
    if kind(scheme) == "Int8":
        return ao.Int8WeightOnlyConfig(granularity=rows, set_inductor_config=False)
    if kind(scheme) == "Int8Dynamic":
        return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    if kind(scheme) == "Float8":
        return ao.Float8WeightOnlyConfig(granularity=rows, set_inductor_config=False)
    if kind(scheme) == "Int4":
        fit4 = Int4ChooseQParamsAlgorithm.HQQ if search else Int4ChooseQParamsAlgorithm.TINYGEMM
        return PrototypeInt4WeightOnlyConfig(group_size=group, int4_choose_qparams_algorithm=fit4, set_inductor_config=False)
    return ao.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{scheme.bits:g}"),
        granularity=ao.PerAxis(0) if group < 0 else rows,
        intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY if search else IntxChooseQParamsAlgorithm.AFFINE,
    )


def quantize(request: QuantizeRequest) -> None:
    import torch
    from torchao.quantization import quantize_

    model = build.plain(request.model_dir, torch.bfloat16, request.device)
    state: dict[str, Tensor] = {}
    linears = build.decoder_linears(model)
    packed = kind(request.scheme) == "Int4"
    for name, linear in linears.items():
        with _packed_codes() if packed else nullcontext([]) as codes:
            quantize_(linear, _config(request.scheme), filter_fn=lambda module, _: isinstance(module, torch.nn.Linear))
        weight = linear.weight
        for part in _PARTS:
            tensor = getattr(weight, part, None)
            if tensor is not None and not (packed and part == "qdata"):
                state[f"{name}.{part}"] = tensor.detach().cpu().contiguous()
        if packed:
            state[f"{name}.qdata"] = (codes[0][:, ::2] | codes[0][:, 1::2] << 4).to(torch.uint8).contiguous()
    rows = reload.rows_for(reload.vocabulary(model), None)
    # The same kernel on the same weights: nothing but the order of sums may differ, so the floor is none.
    reload.write(model, rows, request.out_dir, by="the quantizing library's model in memory")
    for linear in linears.values():
        linear.register_parameter("weight", None)  # it is stored in parts
    state.update(build.own_state(model))
    settings = {"tensor": kind(request.scheme), "bits": request.scheme.bits, **request.scheme.options, "layers": list(linears)}
    library_tensors.write(request.out_dir, state, settings=settings, name=META, source=request.model_dir)


def _packed_codes() -> AbstractContextManager[list[Tensor]]:
    """Inside, the list that it yields receives the codes [outputs, inputs] (int32) of each int4 weight as it is packed: what the
    packing makes of them depends on the CPU."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Codes(TorchDispatchMode):
        def __enter__(self) -> list[Tensor]:
            super().__enter__()  # type: ignore[no-untyped-call]
            self.seen: list[Tensor] = []
            return self.seen

        def __torch_dispatch__(
            self,
            func: Callable[..., object],
            types: object,
            args: tuple[Tensor, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            if func is torch.ops.aten._convert_weight_to_int4pack_for_cpu.default:
                self.seen.append(args[0].clone())
            return func(*args, **(kwargs or {}))

    codes: AbstractContextManager[list[Tensor]] = Codes()  # type: ignore[no-untyped-call]
    return codes


def load(request: LoadRequest) -> PreTrainedModel:
    import torch

    meta, state = library_tensors.read(request.artifact_dir, name=META, device=request.device)
    rest = {n: t for n, t in state.items() if n.rpartition(".")[2] not in _PARTS}
    model = build.without(request.artifact_dir, meta["layers"], rest, device=request.device)
    for name in meta["layers"]:
        parts = {part: state.pop(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in state}
        weight = _tensor(meta["tensor"], parts, float(meta["bits"]), int(meta["group_size"]))
        model.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)
    model.eval()
    return model


def _tensor(tensor: str, parts: dict[str, Tensor], bits: float, group: int) -> TorchAOBaseTensor:
    """The library's tensor subclass from its stored parts."""
    import torch
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.quantization import Float8Tensor, Int8Tensor, IntxUnpackedToInt8Tensor, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    codes = parts.pop("qdata")
    rows, columns = codes.shape
    if tensor == "Int4":
        wide = torch.stack((codes & 15, codes >> 4), dim=-1).reshape(rows, 2 * columns).to(torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(wide, 1)
        return Int4OpaqueTensor(packed, parts["scale_and_zero"], [1, group], torch.Size((rows, 2 * columns)))
    block = [1, columns if group < 0 else group]
    if tensor == "Float8":
        return Float8Tensor(codes, parts["scale"], block_size=block, dtype=torch.bfloat16)
    if tensor == "Intx":
        target = getattr(torch, f"int{bits:g}")
        return IntxUnpackedToInt8Tensor(codes, parts["scale"], parts["zero_point"], target, tuple(block), torch.bfloat16, None)
    act = QuantizeTensorToInt8Kwargs(granularity=PerRow()) if tensor == "Int8Dynamic" else None
    return Int8Tensor(codes, parts["scale"], block, torch.bfloat16, zero_point=parts["zero_point"], act_quant_kwargs=act)


def kernels(model: PreTrainedModel) -> list[LayerKernel]:
    proofs = []
    for name, module in build.decoder_linears(model).items():
        weight = module.weight
        held = getattr(weight, "qdata", weight)  # a plain weight is its own storage
        op = "dequantize + aten::mm"
        if held is weight:
            op = "aten::linear"
        elif type(weight).__name__ == "Int4OpaqueTensor":
            op = "aten::_weight_int4pack_mm_for_cpu"
        elif getattr(weight, "act_quant_kwargs", None) is not None:
            op = "aten::_int_mm"
        proofs.append(proof(name, "Linear" if held is weight else f"Linear({type(weight).__name__})", held, op=op))
    return proofs


_roles = safetensors_file.by_suffix({"qdata": "weight", "scale": "scale", "zero_point": "zero", "scale_and_zero": "scale"})


def _ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return safetensors_file.ledger(artifact_dir, _roles)


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    codes = {
        t.name.removesuffix(".qdata"): t.shape for t in safetensors_file.stored(request.out_dir) if t.name.endswith(".qdata")
    }
    packed = 2 if kind(request.scheme) == "Int4" else 1  # codes to a byte, along the inputs
    rows = _ledger(request.out_dir, request.scheme)
    return against_source.held(request.out_dir, rows, lambda layer: (codes[layer][0], codes[layer][1] * packed))


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    wish, group = str(scheme.options["type"]), int(scheme.options["group_size"])
    if reason := refusals.quantized(shape):
        return reason
    if wish in ("dynamic", "float") and scheme.bits != 8:
        return f"type {wish} is an 8-bit format; write bits: 8, or leave type out"
    if wish == "intx" and scheme.bits not in (8, 4):
        return f"{scheme.bits:g} bits are stored as intx already; leave type out"
    if wish == "dynamic" and group > 0:
        return "type dynamic has one scale per output channel; leave group_size out"
    tensor = kind(scheme)
    if tensor in ("Int8", "Int8Dynamic", "Float8") and scheme.options["scale_search"]:
        return "scale_search belongs to intx and 4-bit tensors; 8-bit scales follow from the largest weight"
    if tensor == "Int4" and device.startswith("cuda"):
        return "packed 4 bits are this library's CPU format; on CUDA take type: intx, or another method at 4 bits"
    derived = [w.name for w in (shape.body if shape is not None else None) or () if w.kind == "derived"]
    if tensor == "Int4" and derived:
        return f"{brief(derived)}: a layer of the model's own class, which packed 4 bits cannot run; take type: intx"
    if tensor == "Int4" and group < 0:
        return "packed 4 bits come in groups; write group_size: 32, 64 or 128"
    packing = refusals.undivided(shape, rows=16, columns=2) if tensor == "Int4" else None
    return refusals.undivided_groups(shape, group) or packing


def _bits_per_weight(scheme: Scheme) -> float:
    """What is stored: a byte per weight except for packed 4 bits; per group a bf16 scale and a byte of zero point (intx), a
    float32 scale and a byte (int), a float32 scale (float), a bf16 scale and zero (4 bits). Per row all that is left out."""
    tensor, group = kind(scheme), int(scheme.options["group_size"])
    codes = 4.0 if tensor == "Int4" else 8.0
    return codes + ({"Intx": 24, "Int8": 40, "Float8": 32, "Int4": 32}[tensor] / group if group > 0 else 0)


METHOD = Method(
    name="torchao",
    title="torchao",
    bits=BITS,
    options={
        "type": Option(
            default="int",
            choices=TYPES,
            help="int = weights only; intx = the library's tensor for any width, kept in bytes; dynamic = activations to int8 "
            "too; float = e4m3 weights (the last two at 8 bits)",
        ),
        "group_size": Option(
            default=64, defaults={8.0: -1}, choices=GROUPS, help="weights that share one scale; -1 = an output channel"
        ),
        "scale_search": Option(default=False, choices=(True, False), help="fit scales half-quadratically (the library's HQQ)"),
    },
    kernel_cpu={8.0: "slow", 6.0: "slow", 5.0: "slow", 4.0: "real", 3.0: "slow", 2.0: "slow"},
    kernel_cuda=dict.fromkeys(BITS, "slow"),
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=_bits_per_weight,
    ledger=_ledger,
    weights=_weights,
    kernels=kernels,
    requirements=("torchao>=0.18,<0.19",),
    extra="torchao",
    modules=("torch", "transformers", "torchao"),
    preload=("torchao.quantization",),
    summary="int8, int4, float8 and odd widths of PyTorch; int8 also with dynamic activations; needs no data",
    source="pytorch.org/ao",
)
