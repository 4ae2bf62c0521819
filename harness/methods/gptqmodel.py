"""What rtn, gptq and awq share: GPTQModel writes their packed artifacts and loads them through its own kernels.

GPTQ format (rtn, gptq), per linear layer of K inputs and N outputs, groups of g inputs: `qweight` int32 [K*bits/32, N] and
`qzeros` int32 [K/g, N*bits/32] (stored minus one), each a little-endian bit stream along its packed axis; `scales` float16
[K/g, N]; `g_idx` int32 [K], the group of each input. AWQ format (GEMM): `qweight` int32 [K, N*bits/32], `qzeros` int32
[K/g, N*bits/32], `scales` float16 [K/g, N]; 4-bit codes are interleaved in eights. `dequantize` unpacks both with this file's own
code: it is the independent side of the reload check.

Quantizing runs in float32 (gptq, rtn) or as awq.py says, on weights that are stored as they were: what is not quantized
goes back to the source's dtype before the artifact counts as written.

Kernels on a CPU: 4 bits in groups of 16, 32, 64 or 128 run on ATen's int4 kernel (packed; scales rounded to bf16); all other
widths on the library's torch kernel (packed, dequantized at each call). Its `gptq_torch_int8` kernel is not
used: it rounds the weights a second time to one int8 scale per output channel, so it holds other weights than the artifact.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.methods import reload, tensors
from harness.methods.base import Kernel, LayerKernel, LoadRequest, QuantizeRequest, Shape, StoredTensor
from harness.spec import Scheme

GROUPS = (16, 32, 64, 128)
"""Group sizes that every kernel takes."""

REQUIREMENTS = ("gptqmodel>=7.6,<7.7",)
MODULES = ("torch", "transformers", "gptqmodel")
PRELOAD = (
    "torch",
    "torch.utils.cpp_extension",
    "transformers.models.auto.modeling_auto",
    "transformers.generation.continuous_batching.utils",
    "transformers.processing_utils",
    "transformers.quantizers.auto",
    "accelerate",
    "threadpoolctl",
    "tokenicer",
)
"""What importing GPTQModel spends most of its time on, and other methods' cells may have imported too."""
APART = ("harness.methods.gptqmodel_import",)
"""GPTQModel itself, which starts threads when it is imported and changes transformers."""

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_JUNK = ("quant_log.csv",)


def settle() -> None:
    """Imports gptqmodel as it has to be. Its thread pool refuses to start with one CPU worker, its default on two cores. It
    imports OpenVINO, if that is here, to change it for its own ends; that costs memory and time, and OpenVINO reports each
    import home."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 2) // 2)))
    os.environ.setdefault("GPTQMODEL_DISABLE_GIL_WARNING", "1")
    kept_out = "gptqmodel" not in sys.modules and "openvino" not in sys.modules
    if kept_out:
        sys.modules["openvino"] = None  # type: ignore[assignment]  # None = cannot be imported
    try:
        importlib.import_module("gptqmodel")
    finally:
        if kept_out:
            del sys.modules["openvino"]


def quantize(request: QuantizeRequest, config: Any, *, float32: bool, **arguments: Any) -> None:
    """Quantizes with a GPTQModel config, saves, puts unquantized tensors back to the source's dtype, writes the reload check.

    `arguments` go to the library's `quantize`. `float32` computes in float32, otherwise in float16.
    """
    import torch
    from gptqmodel import GPTQModel

    dtype = torch.float32 if float32 else torch.float16
    model = GPTQModel.load(str(request.model_dir), config, device=request.device, dtype=dtype, trust_remote_code=False)
    rows = None
    if request.calibration is not None:
        rows = [{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in request.calibration]
    model.quantize(rows, **arguments)
    model.save(str(request.out_dir))
    del model
    _tidy(request)
    parameters = sum(math.prod(t.shape) for t in tensors.stored(request.model_dir))
    state = dequantize(request.out_dir, reload.reference_dtype(parameters))
    reload.write_dense(request, state, "the packed weights, unpacked and run in float32")


def _tidy(request: QuantizeRequest) -> None:
    """Unquantized floating-point tensors as the source stores them; config.json says so; logs of the library removed."""
    import torch
    from safetensors.torch import load_file, save_file

    dtypes = {t.name: t.dtype for t in tensors.stored(request.model_dir)}
    names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    packed = packed_layers(request.out_dir)
    for path in sorted(request.out_dir.glob("*.safetensors")):
        state = load_file(str(path))
        for name, tensor in state.items():
            if tensor.is_floating_point() and name.rpartition(".")[0] not in packed:
                state[name] = tensor.to(names.get(dtypes.get(name, "BF16"), torch.bfloat16)).contiguous()
        draft = path.with_suffix(".draft")
        save_file(state, str(draft), metadata={"format": "pt"})
        draft.replace(path)
    for name in ("config.json", "quantize_config.json"):
        path = request.out_dir / name
        config = json.loads(path.read_text(encoding="utf-8"))
        inner = config.get("quantization_config", config)
        inner.get("meta", {}).pop("offload_to_disk_path", None)  # a temporary folder's name
        if name == "config.json":
            config["dtype"] = "bfloat16"
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in _JUNK:
        (request.out_dir / name).unlink(missing_ok=True)


def load(request: LoadRequest) -> Any:
    """The artifact through GPTQModel's own loader; activations in bf16."""
    settle()
    import torch
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(
        str(request.artifact_dir), device=request.device, dtype=torch.bfloat16, backend=BACKEND.AUTO, trust_remote_code=False
    )
    model = loaded.model.eval()
    if request.device == "cpu":
        # The torch kernel wraps its dequantization in torch.compile: tens of seconds of C++ compilation in every process.
        for _, module in quantized_modules(model):
            vars(module).pop("dequantize_weight", None)
    return model


def quantized_modules(model: Any) -> Iterator[tuple[str, Any]]:
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    for name, module in model.named_modules():
        if isinstance(module, BaseQuantLinear):
            yield name, module


def kernels(model: Any) -> list[LayerKernel]:
    """Kernel proof per quantized layer, and every decoder layer that is a plain Linear after load (dequantized)."""
    import torch

    found = []
    for name, module in quantized_modules(model):
        weight = module.qweight
        kind = type(module).__name__
        op = "aten::_weight_int4pack_mm_for_cpu" if "Aten" in kind else "dequantize + aten::matmul" if "Torch" in kind else kind
        stored = str(weight.dtype).removeprefix("torch.")
        held = weight.dtype.is_floating_point and weight.dtype.itemsize >= 2
        found.append(LayerKernel(layer=name, module=kind, op=op, stored_dtype=stored, dequantized=held))
    quantized = {layer.layer for layer in found}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        inside = any(name.startswith(layer + ".") for layer in quantized)
        if isinstance(module, torch.nn.Linear) and module is not head and name not in quantized and not inside:
            stored = str(module.weight.dtype).removeprefix("torch.")
            found.append(LayerKernel(layer=name, module="Linear", op="aten::linear", stored_dtype=stored, dequantized=True))
    return found


# ------------------------------------------------------------------------------------------------ what is stored

_roles = tensors.by_suffix({"qweight": "weight", "scales": "scale", "qzeros": "zero", "g_idx": "index"})


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return tensors.ledger(artifact_dir, _roles)


def packed_layers(folder: Path) -> set[str]:
    return {t.name.removesuffix(".qweight") for t in tensors.stored(folder) if t.name.endswith(".qweight")}


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


# ------------------------------------------------------------------------------------------------ what is offered


def supports(scheme: Scheme, shape: Shape | None, device: str) -> str | None:
    """Reasons that hold for every format here."""
    group = int(scheme.options["group_size"])
    if shape is not None and "quantization_config" in shape.config:
        return "the checkpoint is already quantized; quantize its unquantized source instead"
    if group > 0:
        reason = tensors.undivided(shape, columns=group)
        if reason:
            return f"{reason}; choose a smaller group_size"
    return tensors.undivided(shape, columns=32, rows=32)


KERNEL_CUDA: dict[float, Kernel] = {8: "real", 4: "real", 3: "slow", 2: "real"}
"""GPTQ format: Marlin, Machete, ExLlama or Triton at 8, 4 and (Triton) 2 bits; other widths run on the torch kernel."""


def batch_size(request: QuantizeRequest) -> int:
    """Calibration rows per forward: about 2048 tokens, which keeps a CPU busy and activations small."""
    length = max(map(len, request.calibration)) if request.calibration else 1
    return max(1, 2048 // length)


def kernel_cpu(bits: tuple[int, ...]) -> dict[float, Kernel]:
    return {b: "real" if b == 4 else "slow" for b in bits}
