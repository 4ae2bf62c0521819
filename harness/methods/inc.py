"""inc: Intel Neural Compressor's weight-only rounding, in an environment of its own.

The library computes in float32 and packs its own variant of the GPTQ format: 32 // bits codes to an int32 along the inputs (so
3 bits take 3.2, and 8, 4 and 2 bits no more than they say), float16 `scales` [K/g, N], `qzeros` stored minus one and packed along
the outputs. Its layer unpacks the weights to float32 at the first forward and keeps them, so every cell is simulated.

The library saves by pickling; the same tensors are kept here as safetensors, with `inc.json`, and put back into the library's own
layers on load. `_dense` reads the packed weights a second time: where the library's layers answer otherwise, the reload check
says so. It does at 8 bits with zero points: what is packed is right, and the library's layer then takes code minus zero point,
up to 255 either way, for an int8. Those cells fail in their reload; the library alone would answer thirteen times the perplexity.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, LayerKernel, ModelShape, Role, StoredTensor
from harness.formats import library_tensors, safetensors_file
from harness.methods import against_source, refusals, reload
from harness.methods._gptqmodel import batch_size
from harness.methods._kernels import proof
from harness.methods.base import Kernel, LoadRequest, Method, Option, QuantizeRequest
from harness.models import build, source
from harness.spec import Scheme

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BITS = (8.0, 4.0, 3.0, 2.0)
META = "inc.json"
_ROLES: dict[str, Role] = {
    "qweight": "weight",
    "scales": "scale",
    "qzeros": "zero",
    "g_idx": "index",
    "scale_bf16_to_fp8": "scale",
}
_BIAS = "bias"  # the library's layer has one, of zeros where the model has none


def quantize(request: QuantizeRequest) -> None:
    import torch
    from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear
    from neural_compressor.torch.quantization import GPTQConfig, RTNConfig, convert, prepare

    options, bits = request.scheme.options, int(request.scheme.bits)
    settings = {"bits": bits, "group_size": int(options["group_size"]), "use_sym": bool(options["sym"]), "use_layer_wise": False}
    model = build.plain(request.model_dir, torch.float32, request.device)
    learned = options["algorithm"] == "gptq"
    model = prepare(model, (GPTQConfig if learned else RTNConfig)(dtype="int", **settings))
    if learned:
        rows, step = [list(row) for row in request.calibration or ()], batch_size(request)
        with torch.inference_mode():
            for start in range(0, len(rows), step):
                model(torch.tensor(rows[start : start + step], device=request.device))
    model = convert(model)
    packed = {name: m for name, m in model.named_modules() if isinstance(m, INCWeightOnlyLinear)}
    kept = source.kept(request.model_dir)
    state = {
        name: tensor if name.rpartition(".")[0] in packed else kept(name, tensor)
        for name, tensor in build.own_state(model).items()
    }
    layers = {name: [m.in_features, m.out_features, m.g_idx is not None] for name, m in packed.items()}
    meta = {"bits": bits, "group_size": settings["group_size"], "layers": layers}
    library_tensors.write(request.out_dir, state, settings=meta, name=META, source=request.model_dir)
    reload.write_dense(request, dequantize(request.out_dir), "the packed weights, unpacked and run in float32")


def dequantize(folder: Path) -> dict[str, Tensor]:
    """All weights as dense float32 tensors [outputs, inputs] under the source's names; the rest as stored."""
    meta, state = library_tensors.read(folder, name=META, device="cpu")
    for layer, (inputs, *_) in meta["layers"].items():
        parts = {part: state.pop(f"{layer}.{part}") for part in (*_ROLES, _BIAS) if f"{layer}.{part}" in state}
        state[f"{layer}.weight"] = _dense(parts, int(meta["bits"]), inputs)
        if _BIAS in parts and bool(parts[_BIAS].any()):
            state[f"{layer}.bias"] = parts[_BIAS]
    return state


def _dense(parts: Mapping[str, Tensor], bits: int, inputs: int) -> Tensor:
    """One layer's weight [outputs, inputs], float32, from its parts [inputs, outputs]."""
    import torch

    scales = parts["scales"].float()
    groups, outputs = scales.shape
    codes = _codes(parts["qweight"].t(), bits).t()[:inputs]  # the last word of a row may be part empty
    zeros = (_codes(parts["qzeros"], bits)[:, :outputs] + 1) & ((1 << bits) - 1)
    index = parts["g_idx"].long() if "g_idx" in parts else torch.arange(inputs) // (inputs // groups)
    return ((codes - zeros[index]).float() * scales[index]).t().contiguous()


def _codes(words: Tensor, bits: int) -> Tensor:
    """int32 [rows, words] -> codes [rows, words * (32 // bits)], the lowest bits of a word first; left-over bits are unused."""
    import torch

    starts = torch.arange(32 // bits) * bits
    return ((words.to(torch.int64)[..., None] >> starts) & ((1 << bits) - 1)).flatten(-2).to(torch.int32)


def load(request: LoadRequest) -> PreTrainedModel:
    """The library's own layers with the artifact's tensors, in float32; unpacked at the first forward, which happens here."""
    import torch
    from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear

    meta, state = library_tensors.read(request.artifact_dir, name=META, device=request.device)
    layers = meta["layers"]
    rest = {n: t for n, t in state.items() if n.rpartition(".")[0] not in layers}
    model: PreTrainedModel = build.without(request.artifact_dir, layers, rest, device=request.device, bias=False).float()
    for name, (inputs, outputs, ordered) in layers.items():
        own = {part: state[f"{name}.{part}"] for part in (*_ROLES, _BIAS) if f"{name}.{part}" in state}
        layer = INCWeightOnlyLinear(
            inputs,
            outputs,
            bits=int(meta["bits"]),
            group_size=int(meta["group_size"]),
            zp=True,
            bias=True,
            g_idx=ordered,
            device=request.device,
        )
        layer.load_state_dict(own)
        model.set_submodule(name, layer)
    with torch.inference_mode():
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=request.device), use_cache=False)
    model.eval()
    return model


def _kernels(model: PreTrainedModel) -> list[LayerKernel]:
    import torch
    from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear

    head, proofs = model.get_output_embeddings(), []
    for name, module in model.named_modules():
        if not isinstance(module, (INCWeightOnlyLinear, torch.nn.Linear)) or module is head:
            continue
        held: Tensor | None = getattr(module, "weight", None)
        op = "unpacked once + aten::linear" if held is not None else "unpacked + aten::linear"
        weight: Tensor = getattr(module, "qweight") if held is None else held  # noqa: B009 - only the library's layers have it
        proofs.append(proof(name, type(module).__name__, weight, op=op, dequantized=held is not None))
    return proofs


def _ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return safetensors_file.ledger(artifact_dir, safetensors_file.by_suffix(_ROLES))


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    layers = library_tensors.settings(request.out_dir, META)["layers"]
    rows = _ledger(request.out_dir, request.scheme)
    return against_source.held(request.out_dir, rows, lambda layer: (layers[layer][1], layers[layer][0]))


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if device != "cpu":
        return refusals.quantized(shape) or "it is offered on the CPU only"
    return refusals.quantized(shape) or refusals.undivided_groups(shape, int(scheme.options["group_size"]))


def _bits_per_weight(scheme: Scheme) -> float:
    """Codes (3 bits: ten to an int32), a float16 scale and a packed zero point per group."""
    stored = 32 / (32 // int(scheme.bits))
    return stored + (16 + stored) / int(scheme.options["group_size"])


_SIMULATED: dict[float, Kernel] = dict.fromkeys(BITS, "simulated")

METHOD = Method(
    name="inc",
    version="2",
    title="Intel Neural Compressor",
    bits=BITS,
    options={
        "algorithm": Option(default="rtn", choices=("rtn", "gptq"), help="how the weights are rounded"),
        "group_size": Option(default=128, choices=(32, 64, 128), help="weights that share one scale and zero point"),
        "sym": Option(default=True, choices=(True, False), help="symmetric steps around zero; otherwise with a zero point"),
    },
    kernel_cpu=_SIMULATED,
    kernel_cuda=dict.fromkeys(BITS, "none"),
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=_bits_per_weight,
    ledger=_ledger,
    weights=_weights,
    worse={8.0: "Neural Compressor's own rounding to 8 bits is known to be that far off (docs/environments.md)"},
    kernels=_kernels,
    calibrated=True,
    sees_text=lambda scheme: scheme.options["algorithm"] == "gptq",
    environment="inc",
    requirements=("neural-compressor-pt==3.10", "torch==2.13.0", "transformers==5.23.0", "accelerate>=1.10", "lm-eval==0.4.13"),
    modules=("torch", "transformers", "neural_compressor"),
    summary="weight-only rounding of Intel's toolkit; simulated: its layers keep float32 weights",
    source="github.com/intel/neural-compressor",
)
