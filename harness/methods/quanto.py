"""quanto: optimum-quanto's weight formats (the library is in maintenance mode). No calibration.

8 bits: int8 or float8 (e4m3), one bf16 scale per output channel. 4 and 2 bits: unsigned codes in groups with a bf16 scale and
shift, two or four to a byte. `optimizer: hqq` shifts each group half-quadratically instead of to its smallest weight.

The library's own reload of 4 bits fails (it looks for the scale in a tensor that has merged it into its kernel's layout), and
its own save goes through that layout too, which rounds the shift once more. So weights are quantized into the library's
kernel-agnostic tensor, whose parts the artifact holds as safetensors beside `quanto.json`; on load that tensor is rebuilt, and
4 bits in groups of 128 are then turned into the kernel's layout by the library itself.

On a CPU the library unpacks 2 bits (and 4 bits in other groups) with C++ that it compiles on first use, into its own
installation. `_unpack` takes the place of that: no compiler is needed, and nothing is written.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, LayerKernel, ModelShape, StoredTensor
from harness.formats import library_tensors, safetensors_file
from harness.methods import against_source, refusals, reload
from harness.methods._kernels import proof
from harness.methods.base import LoadRequest, Method, Option, QuantizeRequest
from harness.models import build
from harness.spec import Scheme

if TYPE_CHECKING:
    import torch
    from optimum.quanto import QTensor, qtype
    from torch import Tensor
    from transformers import PreTrainedModel

BITS = (8.0, 4.0, 2.0)
GROUPS = (-1, 32, 64, 128)
META = "quanto.json"
_PARTS = ("data", "scale", "shift")


def _unpack_in_python() -> None:
    """Puts a function of torch's own operations in the place of quanto's C++ and CUDA extensions, which it would compile here."""
    from optimum.quanto.library.extensions import get_extension, is_extension_available

    for name in ("quanto_cpp", "quanto_cuda"):
        if is_extension_available(name):
            get_extension(name)._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes of a packed uint8 tensor, along its first axis: the lowest bits of every byte first, then the next, ..."""
    import torch

    return torch.cat([packed >> start & (1 << bits) - 1 for start in range(0, 8, bits)])


def _qtype(bits: float, kind: str) -> qtype:
    from optimum.quanto import qfloat8, qint2, qint4, qint8

    return qfloat8 if kind == "float" else {8: qint8, 4: qint4, 2: qint2}[int(bits)]


def quantize(request: QuantizeRequest) -> None:
    _unpack_in_python()
    import torch
    from optimum.quanto import AbsmaxOptimizer, HqqOptimizer, MaxOptimizer, quantize_weight

    bits, options = request.scheme.bits, request.scheme.options
    kind, group = _qtype(bits, str(options["type"])), int(options["group_size"])
    model = build.plain(request.model_dir, torch.bfloat16, request.device)
    state: dict[str, Tensor] = {}
    dense: dict[str, Tensor] = {}
    linears = build.decoder_linears(model)
    for name, linear in linears.items():
        weight = linear.weight.detach()
        if bits == 8:
            scale, shift = AbsmaxOptimizer()(weight, qtype=kind, axis=0), None
        else:
            fit = HqqOptimizer() if options["optimizer"] == "hqq" else MaxOptimizer()
            scale, shift = fit(weight, qtype=kind, axis=0, group_size=group)
        quantized = quantize_weight(
            weight, kind, 0, scale, shift, group_size=group if bits < 8 else None, activation_qtype=None, optimized=False
        )
        codes = quantized._data if bits == 8 else quantized._data._data
        parts = {"data": codes, "scale": scale, "shift": shift}
        state.update({f"{name}.{part}": t.detach().cpu().contiguous() for part, t in parts.items() if t is not None})
        dense[f"{name}.weight"] = quantized.dequantize().detach().cpu()
        linear.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    rest = {n: t for n, t in build.own_state(model).items() if n not in dense}
    shapes = {name: list(dense[f"{name}.weight"].shape) for name in linears}
    settings = {"bits": bits, **options, "layers": shapes}
    library_tensors.write(request.out_dir, {**state, **rest}, settings=settings, name=META, source=request.model_dir)
    reload.write_dense(request, {**dense, **rest}, "the quantizing library's weights, dequantized by it and run in float32")


def load(request: LoadRequest) -> PreTrainedModel:
    _unpack_in_python()
    import torch
    from optimum.quanto.tensor.weights import WeightQBitsTensor

    meta, state = library_tensors.read(request.artifact_dir, name=META, device=request.device)
    packed = {f"{name}.{part}" for name in meta["layers"] for part in _PARTS}
    rest = {n: t for n, t in state.items() if n not in packed}
    model = build.without(request.artifact_dir, meta["layers"], rest, device=request.device)
    linears = build.decoder_linears(model)
    for name, size in meta["layers"].items():
        parts = {part: state.pop(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in state}
        weight = _tensor(parts, torch.Size(size), float(meta["bits"]), str(meta["type"]), int(meta["group_size"]))
        linear = linears[name]
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        if type(weight) is WeightQBitsTensor:
            linear.forward = partial(_forward, linear)  # type: ignore[method-assign]  # of this layer
    model.eval()
    return model


def _forward(linear: torch.nn.Linear, inputs: Tensor) -> Tensor:
    """What the library does for weights without a kernel, but not through a transposed view of its tensor: inference mode
    refuses that."""
    import torch

    return torch.nn.functional.linear(inputs, linear.weight.dequantize(), linear.bias)


def _tensor(parts: dict[str, Tensor], size: torch.Size, bits: float, kind: str, group: int) -> QTensor:
    """The library's weight tensor from its stored parts; 4 bits in groups of 128 in the layout of their kernel."""
    from optimum.quanto.tensor.packed import PackedTensor
    from optimum.quanto.tensor.weights import WeightQBitsTensor, WeightQBytesTensor

    rows, columns = size
    stored, stride = _qtype(bits, kind), (columns, 1)
    if bits == 8:
        # A file's tensors may start at any multiple of 8, and torch's int8 kernel crashes on codes that are not at one of 16.
        return WeightQBytesTensor(stored, 0, size, stride, parts["data"].clone(), parts["scale"], None)
    codes = PackedTensor(parts["data"], int(bits), (rows * columns // group, group), (group, 1))
    plain = WeightQBitsTensor(stored, 0, group, size, stride, codes, parts["scale"], parts["shift"])
    return plain.optimize() if bits == 4 else plain


def _kernels(model: PreTrainedModel) -> list[LayerKernel]:
    import torch
    from optimum.quanto import QTensor

    proofs = []
    for name, module in build.decoder_linears(model).items():
        weight = module.weight
        if not isinstance(weight, QTensor):
            proofs.append(proof(name, "Linear", weight, op="aten::linear", dequantized=True))
            continue
        data = weight._data
        data = getattr(data, "_data", data)  # packed codes lie one level deeper
        kind, on_cpu, op = type(weight).__name__, weight.device.type == "cpu", "dequantize + aten::matmul"
        if kind == "TinyGemmWeightQBitsTensor":
            op = "aten::_weight_int4pack_mm_for_cpu" if on_cpu else "aten::_weight_int4pack_mm"
        elif data.dtype == torch.int8 and on_cpu and module.in_features % 4 == 0:
            op = "aten::_weight_int8pack_mm"
        proofs.append(proof(name, f"Linear({kind})", data, op=op, dequantized=False))
    return proofs


_roles = safetensors_file.by_suffix({"data": "weight", "scale": "scale", "shift": "zero"})


def _ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return safetensors_file.ledger(artifact_dir, _roles)


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    layers = library_tensors.settings(request.out_dir, META)["layers"]
    rows = _ledger(request.out_dir, request.scheme)
    return against_source.held(request.out_dir, rows, lambda layer: tuple(layers[layer]))


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    group = int(scheme.options["group_size"])
    if reason := refusals.quantized(shape):
        return reason
    if scheme.bits == 8:
        if group > 0 or scheme.options["optimizer"] != "max":
            return "group_size and optimizer belong to 4 and 2 bits; at 8 bits each output channel has one scale"
        return _unaligned(shape) if device == "cpu" and scheme.options["type"] == "int" else None
    if scheme.options["type"] == "float":
        return "type float is an 8-bit format; write bits: 8, or leave type out"
    if group < 0:
        return f"{scheme.bits:g} bits come in groups; write group_size: 32, 64 or 128"
    return refusals.undivided_groups(shape, group, rows=16)


def _unaligned(shape: ModelShape | None) -> str | None:
    """Why torch's int8 kernel would end the process: it takes rows of a multiple of 4 bytes, and reads them by 16. (Other widths
    go another way.)"""
    for name, columns in refusals.widths(shape):
        if columns % 4 == 0 and columns % 16:
            return (
                f"{name} has {columns} input features, a multiple of 4 and not of 16, on which torch's int8 kernel for CPUs "
                "ends the process; choose another method at 8 bits"
            )
    return None


def _bits_per_weight(scheme: Scheme) -> float:
    """8 bits: a bf16 scale per row is left out (16 / columns). 4 and 2 bits: a bf16 scale and a bf16 shift per group."""
    return 8.0 if scheme.bits == 8 else float(scheme.bits) + 32 / int(scheme.options["group_size"])


METHOD = Method(
    name="quanto",
    title="optimum-quanto",
    bits=BITS,
    options={
        "type": Option(default="int", choices=("int", "float"), help="int, or at 8 bits float8 (e4m3)"),
        "group_size": Option(
            default=128,
            defaults={8.0: -1},
            choices=GROUPS,
            bits=(4.0, 2.0),
            help="weights that share one scale and shift; -1 = an output channel",
        ),
        "optimizer": Option(
            default="max", choices=("max", "hqq"), bits=(4.0, 2.0), help="how 4 and 2 bits fit scale and shift to a group"
        ),
    },
    kernel_cpu={8.0: "real", 4.0: "real", 2.0: "slow"},
    kernel_cuda={8.0: "slow", 4.0: "real", 2.0: "slow"},
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=_bits_per_weight,
    ledger=_ledger,
    weights=_weights,
    kernels=_kernels,
    requirements=("optimum-quanto>=0.2.7",),
    extra="quanto",
    modules=("torch", "transformers", "optimum.quanto"),
    preload=("optimum.quanto",),
    summary="int8, float8, int4, int2 of a library in maintenance mode; needs no data",
    source="github.com/huggingface/optimum-quanto",
)
