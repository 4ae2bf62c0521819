"""fp32, bf16, fp16: the unquantized rows. bf16 is what every quantized cell is compared with.

The artifact points at the source's weights (absolute links) when every tensor already has that dtype; otherwise it is a cast
copy, written one tensor at a time, so that a model larger than the memory left can still be cast. No tensor is cast twice:
fp32 of a bf16 source is exact, fp16 of a bf16 source may overflow, which is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import LayerKernel, ModelShape, StoredTensor
from harness.errors import Unsupported
from harness.formats import config_json, safetensors_file
from harness.formats.quantization_config import quantization
from harness.methods import reload
from harness.methods._kernels import proof
from harness.methods.base import Kernel, LoadRequest, Method, QuantizeRequest
from harness.models import build
from harness.spec import Scheme

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.formats.safetensors_file import HeaderEntry

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_DTYPES = {"fp32": ("float32", "F32"), "bf16": ("bfloat16", "BF16"), "fp16": ("float16", "F16")}
"""Row -> torch's name, safetensors' name."""

_QUANTIZED = "this checkpoint is already quantized, so it has no unquantized weights to measure"


def quantize(request: QuantizeRequest) -> None:
    torch_name, stored_name = _DTYPES[request.scheme.method]
    config = config_json.read(request.model_dir)
    if quantization(config) is not None:
        raise Unsupported(_QUANTIZED)
    for name in ("torch_dtype", "dtype"):
        config.pop(name, None)
    for path in sorted(request.model_dir.glob("*.json")):
        if path.name not in {"config.json", "artifact.json"} and not path.name.startswith(("model", "pytorch_model")):
            (request.out_dir / path.name).symlink_to(path.resolve())
    config_json.write({**config, "dtype": torch_name}, request.out_dir)
    index = request.model_dir / safetensors_file.INDEX
    if index.is_file():
        (request.out_dir / index.name).write_text(index.read_text(encoding="utf-8"), encoding="utf-8")
    files = safetensors_file.weight_files(request.model_dir)
    for path in files:
        target = request.out_dir / (path.name if index.is_file() or len(files) > 1 else safetensors_file.MODEL)
        if all(t.dtype == stored_name or t.dtype not in _FLOATS for t in safetensors_file.header(path)):
            target.symlink_to(path.resolve())
        else:
            _cast(path, target, torch_name, stored_name)
    reload.skip(request.out_dir, "unquantized: the weights are the source's own")


def _cast(source: Path, target: Path, torch_name: str, stored_name: str) -> None:
    """Writes `source` with all floating-point tensors in another dtype; holds one tensor at a time."""
    import torch

    dtype: torch.dtype = getattr(torch, torch_name)
    rows = safetensors_file.header(source)

    def cast(row: HeaderEntry) -> Tensor:
        tensor = safetensors_file.tensor(row)
        if row.dtype not in _FLOATS:
            return tensor
        narrow = tensor.to(dtype)
        if bool((torch.isfinite(tensor) & ~torch.isfinite(narrow)).any()):
            raise Unsupported(f"{row.name} holds values beyond the range of {torch_name}; measure it in bf16 or fp32")
        return narrow

    kept = [(row.name, row.dtype if row.dtype not in _FLOATS else stored_name, row.shape) for row in rows]
    safetensors_file.write(target, kept, map(cast, rows))


def load(request: LoadRequest) -> PreTrainedModel:
    import torch

    torch_name, _ = _DTYPES[request.scheme.method]
    return build.plain(request.artifact_dir, getattr(torch, torch_name), request.device)


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    return None if shape is None or quantization(shape.config) is None else _QUANTIZED


def _ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    stored = safetensors_file.checkpoint(artifact_dir).values()
    return [StoredTensor(name=t.name, layer="", role="other", bits=t.bits) for t in stored]


def _kernels(model: PreTrainedModel) -> list[LayerKernel]:
    """The linear layers of the decoder: nothing is quantized, so nothing is dequantized."""
    return [
        proof(name, type(module).__name__, module.weight, op="aten::linear", dequantized=False)
        for name, module in build.decoder_linears(model).items()
    ]


def _method(name: str, title: str, bits: int, summary: str) -> Method:
    kernels: dict[float, Kernel] = {bits: "real"}
    return Method(
        name=name,
        title=title,
        bits=(bits,),
        kernel_cpu=kernels,
        kernel_cuda=kernels,
        quantize=quantize,
        load=load,
        supports=_supports,
        bits_per_weight=lambda scheme: float(bits),
        ledger=_ledger,
        kernels=_kernels,
        modules=("torch", "transformers", "safetensors"),
        native=True,
        summary=summary,
    )


FP32 = _method("fp32", "float32", 32, "unquantized, single precision: what rounding to 16 bits costs")
BF16 = _method("bf16", "bfloat16", 16, "unquantized, as most checkpoints are published; the usual baseline")
FP16 = _method("fp16", "float16", 16, "unquantized, half precision: more digits and less range than bf16")
