"""modelopt: NVIDIA's Model Optimizer, in an environment of its own (it is held to an older transformers).

The artifact is the library's own export (`export_hf_checkpoint`): the safetensors that TensorRT-LLM and vLLM are given, and never
the pickles of its own saves; formats/modelopt_checkpoint.py says what they hold. Before it writes, the export lets layers of one
input share a scale of inputs (the mean of theirs; AWQ's moves into the norm before them), and it divides FP8 codes out in bf16,
which puts a few in a hundred on the neighbouring code. So what is measured is what would be served, not quite the model that was
calibrated. SmoothQuant and AWQ run as the library has them by default: strength 1, and a search in steps of 0.1.

On a CPU all of it is simulated: `load` gives the library's own linear layers weights that are unpacked to bf16, and their input
quantizers the stored scales. NVFP4's rounding of inputs is a CUDA kernel there; here the library's tensor code does it, through
its registry of backends.

Reload check: weight-only artifacts are unpacked by this project and run in float32. Where inputs are rounded, float32 would be as
far from bf16 as no rounding at all, because a little noise moves inputs by whole steps: there the same reading runs in bf16, and
the library's layers have to answer as it does, without noise.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, LayerKernel, ModelShape
from harness.formats import safetensors_file
from harness.formats.modelopt_checkpoint import dequantize, inputs_of, ledger, read, rounded, weight
from harness.methods import against_source, refusals, reload
from harness.methods._gptqmodel import batch_size
from harness.methods._kernels import proof
from harness.methods.base import Kernel, LoadRequest, Method, Option, QuantizeRequest
from harness.models import build
from harness.spec import Scheme

if TYPE_CHECKING:
    from modelopt.torch.quantization.nn import TensorQuantizer
    from torch import Tensor
    from transformers import PreTrainedModel

BITS = (8.0, 4.0)
_PRESETS = {
    "w8a8_sq": "INT8_SMOOTHQUANT_CFG",
    "w8a16": "INT8_WEIGHT_ONLY_CFG",
    "fp8": "FP8_DEFAULT_CFG",
    "w4a16_awq": "INT4_AWQ_CFG",
    "w4a16": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "w4a16_nvfp4": "W4A16_NVFP4_CFG",
}
_EIGHT = ("w8a8_sq", "w8a16", "fp8")
_BLOCKS = {"w8a8_sq": -1, "w8a16": -1, "fp8": 0, "nvfp4": 16, "w4a16_nvfp4": 16}  # of the types that have no choice
_INPUTS: dict[str, dict[str, object]] = {
    "int8": {"num_bits": 8, "axis": None},
    "e4m3": {"num_bits": (4, 3), "axis": None},
    "e2m1": {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}, "backend": "tensor_code"},
}
_LARGEST = {"int8": 127.0, "e4m3": 448.0, "e2m1": 6.0 * 448.0}  # of an input, in steps of `input_scale`


def quantize(request: QuantizeRequest) -> None:
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    from harness.scoring.widened import products

    kind, group = str(request.scheme.options["type"]), int(request.scheme.options["group_size"])
    settings = copy.deepcopy(getattr(mtq, _PRESETS[kind]))
    if kind not in _BLOCKS:
        for entry in settings["quant_cfg"]:
            stages = entry.get("cfg") or {}
            for stage in stages if isinstance(stages, list) else [stages]:
                if "block_sizes" in stage:
                    stage["block_sizes"][-1] = group
    model = build.plain(request.model_dir, torch.bfloat16, request.device)
    rows, step = [list(row) for row in request.calibration or ()], batch_size(request)

    def calibrate(model: PreTrainedModel) -> None:
        for start in range(0, len(rows), step):
            model(input_ids=torch.tensor(rows[start : start + step], device=request.device), use_cache=False)

    with torch.inference_mode(), products(torch.device(request.device), torch.bfloat16):
        export_hf_checkpoint(mtq.quantize(model, settings, calibrate), export_dir=request.out_dir)
    del model
    layers, rest = read(request.out_dir)
    rounds = any(inputs_of(parts) for parts in layers.values())
    dtype = torch.bfloat16 if rounds else build.unpacked_dtype(safetensors_file.parameters(request.model_dir))
    reference = build.dense(request.model_dir, dequantize(layers, rest, dtype), dtype)
    for name, parts in layers.items():
        reference.get_submodule(name).register_forward_pre_hook(lambda _, given, parts=parts: rounded(given[0], parts))
    reload.write(
        reference,
        reload.rows_for(int(reference.config.vocab_size), request.calibration),
        request.out_dir,
        by="the packed weights, unpacked, and inputs rounded as stored",
        noisy=None if rounds else lambda: reference.bfloat16(),
    )


def load(request: LoadRequest) -> PreTrainedModel:
    """The library's own layers in bf16: weights unpacked, input quantizers with the artifact's scales."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.quantization.nn import register_quant_backend

    register_quant_backend("tensor_code", _on_cpu)
    layers, rest = read(request.artifact_dir)
    model = build.dense(request.artifact_dir, dequantize(layers, rest, torch.bfloat16), torch.bfloat16)
    mtq.quantize(model, {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None})
    for name, parts in layers.items():
        quantizer: TensorQuantizer = model.get_submodule(name).input_quantizer
        kind = inputs_of(parts)
        if "pre_quant_scale" in parts:
            quantizer.pre_quant_scale = parts["pre_quant_scale"]
        if kind is not None:
            quantizer.set_from_attribute_config({**_INPUTS[kind], "enable": True})
            quantizer.amax = parts["input_scale"] * _LARGEST[kind]
    model.eval()
    return model


def _on_cpu(x: Tensor, quantizer: TensorQuantizer) -> Tensor:
    """NVFP4 of inputs by the library's tensor code, where its fake quantization wants CUDA."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    packed, scale, second = NVFP4QTensor.quantize(x, 16, None, quantizer.amax.float() / _LARGEST["e2m1"])
    widened: Tensor = packed.dequantize(dtype=x.dtype, scale=scale, double_scale=second, block_sizes=quantizer.block_sizes)
    return widened


def _kernels(model: PreTrainedModel) -> list[LayerKernel]:
    proofs = []
    for name, module in build.decoder_linears(model).items():
        quantizer: TensorQuantizer = module.input_quantizer
        op = "inputs rounded and widened + aten::linear" if quantizer.is_enabled else "unpacked once + aten::linear"
        proofs.append(proof(name, type(module).__name__, module.weight, op=op, dequantized=True))
    return proofs


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    def dense(layer: str) -> Tensor:
        return weight(request.out_dir, layer)

    def shape(layer: str) -> tuple[int, ...]:
        return tuple(dense(layer).shape)

    return against_source.held(request.out_dir, ledger(request.out_dir, request.scheme), shape, dense)


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    kind, group = str(scheme.options["type"]), int(scheme.options["group_size"])
    bits = 8.0 if kind in _EIGHT else 4.0
    if reason := refusals.quantized(shape):
        return reason
    if device != "cpu":
        return "it was tried on the CPU only, and is offered there"
    if scheme.bits != bits:
        return f"type {kind} is a format of {bits:g} bits; write bits: {bits:g}, or leave type out"
    if kind in _BLOCKS and group != _BLOCKS[kind]:
        return f"type {kind} has groups of its own; write group_size: {_BLOCKS[kind]}"
    if kind not in _BLOCKS and group < 32:
        return f"type {kind} comes in larger groups; write group_size: 32, 64 or 128"
    reason = refusals.undivided(shape, columns=max(group, 1), rows=1 if kind in _BLOCKS else 2)
    return f"{reason}; choose a smaller group_size" if reason and kind not in _BLOCKS else reason


def _bits_per_weight(scheme: Scheme) -> float:
    """Codes and, in groups, a float32 scale each, at NVFP4 a byte. What rows and layers have once is left out."""
    kind = str(scheme.options["type"])
    if kind in _EIGHT:
        return 8.0
    return 4.0 + (8 if kind in _BLOCKS else 32) / int(scheme.options["group_size"])


_SIMULATED: dict[float, Kernel] = dict.fromkeys(BITS, "simulated")

METHOD = Method(
    name="modelopt",
    title="NVIDIA ModelOpt",
    bits=BITS,
    options={
        "type": Option(
            default="w4a16_awq",
            defaults={8.0: "w8a8_sq"},
            choices=tuple(_PRESETS),
            named=True,
            help="bits of weights and activations, sq = SmoothQuant; fp8, w4a8_awq and nvfp4 round activations to floats",
        ),
        "group_size": Option(
            default=128,
            defaults={8.0: -1},
            choices=(-1, 0, 16, 32, 64, 128),
            help="weights that share one scale; -1 = an output channel, 0 = a layer (fp8), 16 = nvfp4's blocks",
        ),
    },
    kernel_cpu=_SIMULATED,
    kernel_cuda=dict.fromkeys(BITS, "none"),
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=_bits_per_weight,
    ledger=ledger,
    weights=_weights,
    folds=True,
    kernels=_kernels,
    calibrated=True,
    environment="modelopt",
    requirements=("nvidia-modelopt==0.47.0", "torch==2.13.0", "transformers==5.14.1", "accelerate>=1.10", "lm-eval==0.4.13"),
    modules=("torch", "transformers", "modelopt"),
    summary="SmoothQuant W8A8, INT4 AWQ, W4A8, FP8, NVFP4 as TensorRT-LLM and vLLM are given them; simulated here",
    source="github.com/NVIDIA/Model-Optimizer",
)
