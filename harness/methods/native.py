"""fp32, bf16, fp16: the unquantized rows. bf16 is what every quantized cell is compared with.

The artifact points at the source's weights (absolute links) when every tensor already has that dtype; otherwise it is a cast
copy, written one tensor at a time, so that a model larger than the memory left can still be cast. No tensor is cast twice:
fp32 of a bf16 source is exact, fp16 of a bf16 source may overflow, which is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.artifact import LayerKernel, Shape, StoredTensor
from harness.errors import Unsupported
from harness.formats import safetensors_file
from harness.methods import reload
from harness.methods.base import Kernel, LoadRequest, Method, QuantizeRequest
from harness.models import build
from harness.spec import Scheme

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_DTYPES = {"fp32": ("float32", "F32"), "bf16": ("bfloat16", "BF16"), "fp16": ("float16", "F16")}
"""Row -> torch's name, safetensors' name."""


def quantize(request: QuantizeRequest) -> None:
    torch_name, stored_name = _DTYPES[request.scheme.method]
    config = json.loads((request.model_dir / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise Unsupported("this checkpoint is already quantized, so it has no unquantized weights to measure")
    for name in ("torch_dtype", "dtype"):
        config.pop(name, None)
    config["dtype"] = torch_name
    for path in sorted(request.model_dir.glob("*.json")):
        if path.name not in {"config.json", "artifact.json"} and not path.name.startswith(("model", "pytorch_model")):
            (request.out_dir / path.name).symlink_to(path.resolve())
    (request.out_dir / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    index = request.model_dir / "model.safetensors.index.json"
    if index.is_file():
        (request.out_dir / index.name).write_text(index.read_text(encoding="utf-8"), encoding="utf-8")
    files = safetensors_file.weight_files(request.model_dir)
    for path in files:
        target = request.out_dir / (path.name if index.is_file() or len(files) > 1 else "model.safetensors")
        if all(t.dtype == stored_name or t.dtype not in _FLOATS for t in safetensors_file.header(path)):
            target.symlink_to(path.resolve())
        else:
            _cast(path, target, torch_name, stored_name)
    reload.skip(request.out_dir, "unquantized: the weights are the source's own")


def _cast(source: Path, target: Path, torch_name: str, stored_name: str) -> None:
    """Writes `source` with all floating-point tensors in another dtype; holds one tensor at a time."""
    import torch
    from safetensors import safe_open

    dtype = getattr(torch, torch_name)
    rows = safetensors_file.header(source)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for row in rows:
        kept = row.dtype not in _FLOATS
        size = row.bits // 8 if kept else row.bits // safetensors_file.BITS[row.dtype] * safetensors_file.BITS[stored_name] // 8
        name = row.dtype if kept else stored_name
        header[row.name] = {"dtype": name, "shape": list(row.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out, safe_open(str(source), framework="pt", device="cpu") as weights:
        out.write(struct.pack("<Q", len(text)) + text)
        for row in rows:
            tensor = weights.get_tensor(row.name)
            if row.dtype in _FLOATS:
                cast = tensor.to(dtype)
                if bool((torch.isfinite(tensor) & ~torch.isfinite(cast)).any()):
                    raise Unsupported(f"{row.name} holds values beyond the range of {torch_name}; measure it in bf16 or fp32")
                tensor = cast
            out.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def load(request: LoadRequest) -> Any:
    import torch

    torch_name, _ = _DTYPES[request.scheme.method]
    return build.plain(request.artifact_dir, getattr(torch, torch_name), request.device)


def _supports(scheme: Scheme, shape: Shape | None, device: str) -> str | None:
    if shape is not None and "quantization_config" in shape.config:
        return "the checkpoint is already quantized, so it has no unquantized weights to measure"
    return None


def _ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return [
        StoredTensor(name=t.name, layer="", role="other", bits=t.bits)
        for path in safetensors_file.weight_files(artifact_dir)
        for t in safetensors_file.header(path)
    ]


def _kernels(model: Any) -> list[LayerKernel]:
    """The linear layers of the decoder: nothing is quantized, so nothing is dequantized."""
    return list(_linears(model))


def _linears(model: Any) -> Iterator[LayerKernel]:
    import torch

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            dtype = str(module.weight.dtype).removeprefix("torch.")
            yield LayerKernel(layer=name, module=type(module).__name__, op="aten::linear", stored_dtype=dtype, dequantized=False)


def _method(name: str, title: str, bits: int, summary: str) -> Method:
    kernels: dict[float, Kernel] = {bits: "real"}
    return Method(
        name=name,
        title=title,
        version="1",
        bits=(bits,),
        options={},
        engine="transformers",
        kernel_cpu=kernels,
        kernel_cuda=kernels,
        quantize=quantize,
        load=load,
        supports=_supports,
        bits_per_weight=lambda scheme: float(bits),
        ledger=_ledger,
        kernels=_kernels,
        modules=("torch", "transformers", "safetensors"),
        unquantized=True,
        summary=summary,
    )


FP32 = _method("fp32", "float32", 32, "unquantized, single precision: what rounding to 16 bits costs")
BF16 = _method("bf16", "bfloat16", 16, "unquantized, as most checkpoints are published; the usual baseline")
FP16 = _method("fp16", "float16", 16, "unquantized, half precision: more digits and less range than bf16")
