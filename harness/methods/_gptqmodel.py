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

from harness.artifact import LayerKernel, ModelShape, StoredTensor
from harness.formats import safetensors_file
from harness.formats.gptq_file import dequantize, packed_layers
from harness.methods import reload
from harness.methods.base import Kernel, LoadRequest, QuantizeRequest
from harness.models import build
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
    parameters = sum(math.prod(t.shape) for t in safetensors_file.stored(request.model_dir))
    state = dequantize(request.out_dir, build.reference_dtype(parameters))
    reload.write_dense(request, state, "the packed weights, unpacked and run in float32")


def _tidy(request: QuantizeRequest) -> None:
    """Unquantized floating-point tensors as the source stores them; config.json says so; logs of the library removed."""
    import torch
    from safetensors.torch import load_file, save_file

    dtypes = {t.name: t.dtype for t in safetensors_file.stored(request.model_dir)}
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


_roles = safetensors_file.by_suffix({"qweight": "weight", "scales": "scale", "qzeros": "zero", "g_idx": "index"})


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return safetensors_file.ledger(artifact_dir, _roles)


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    """Reasons that hold for every format here."""
    group = int(scheme.options["group_size"])
    if shape is not None and "quantization_config" in shape.config:
        return "the checkpoint is already quantized; quantize its unquantized source instead"
    if group > 0:
        reason = safetensors_file.undivided(shape, columns=group)
        if reason:
            return f"{reason}; choose a smaller group_size"
    return safetensors_file.undivided(shape, columns=32, rows=32)


KERNEL_CUDA: dict[float, Kernel] = {8: "real", 4: "real", 3: "slow", 2: "real"}
"""GPTQ format: Marlin, Machete, ExLlama or Triton at 8, 4 and (Triton) 2 bits; other widths run on the torch kernel."""


def batch_size(request: QuantizeRequest) -> int:
    """Calibration rows per forward: about 2048 tokens, which keeps a CPU busy and activations small."""
    length = max(map(len, request.calibration)) if request.calibration else 1
    return max(1, 2048 // length)


def kernel_cpu(bits: tuple[int, ...]) -> dict[float, Kernel]:
    return {b: "real" if b == 4 else "slow" for b in bits}
