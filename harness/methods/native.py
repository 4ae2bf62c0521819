"""fp32, bf16, fp16: the unquantized rows. bf16 is what every quantized cell is compared with.

The artifact points at the source's weights (absolute links) when every tensor already has that dtype; otherwise it is a cast
copy, written one tensor at a time, so that a model larger than the memory left can still be cast. No tensor is cast twice:
fp32 of a bf16 source is exact, fp16 of a bf16 source may overflow, which is refused. What transformers holds in float32 in a
model of another dtype stays as it is stored: the baseline is transformers' own load in that dtype.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, LayerKernel, ModelShape, StoredTensor
from harness.errors import Unsupported
from harness.formats import config_json, safetensors_file
from harness.formats.quantization_config import quantization
from harness.methods import against_source, reload
from harness.methods._kernels import proof
from harness.methods.base import Elsewhere, Kernel, LoadRequest, Method, QuantizeRequest
from harness.models import build, source
from harness.spec import Scheme

if TYPE_CHECKING:
    import torch
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
    stored = safetensors_file.checkpoint(request.model_dir).values()
    uniform = all(row.dtype == stored_name for row in stored if row.dtype in _FLOATS)
    wide = set() if uniform else source.float32_names(request.model_dir, _torch_dtype(request.scheme.method))
    for path in files:
        target = request.out_dir / (path.name if index.is_file() or len(files) > 1 else safetensors_file.MODEL)
        dtypes = {row.name: _dtype_of(row, stored_name, wide) for row in safetensors_file.header(path)}
        if all(row.dtype == dtypes[row.name] for row in safetensors_file.header(path)):
            target.symlink_to(path.resolve())
        else:
            _cast(path, target, dtypes)
    reload.skip(request.out_dir, "unquantized: the weights are the source's own")


def _dtype_of(row: HeaderEntry, stored_name: str, wide: Collection[str]) -> str:
    """The dtype of a tensor in the artifact: the row's; or, of those that transformers holds in float32 all the same (`wide`),
    the one that it is stored in."""
    if row.dtype not in _FLOATS:
        return row.dtype
    if row.name in wide:
        return row.dtype if row.dtype in ("F32", "F16", "BF16") else "F32"
    return stored_name


def _cast(path: Path, target: Path, dtypes: Mapping[str, str]) -> None:
    """Writes the file `path` with its tensors in these dtypes (safetensors' names); holds one tensor at a time."""
    import torch

    rows = safetensors_file.header(path)
    named = {stored: getattr(torch, name) for name, stored in _DTYPES.values()}

    def cast(row: HeaderEntry) -> Tensor:
        tensor = safetensors_file.tensor(row)
        if dtypes[row.name] == row.dtype:
            return tensor
        narrow = tensor.to(named[dtypes[row.name]])
        wider = tensor.float() if row.dtype.startswith("F8") else tensor  # torch cannot say of float8 what is finite
        if bool((torch.isfinite(wider) & ~torch.isfinite(narrow)).any()):
            name = str(narrow.dtype).removeprefix("torch.")
            raise Unsupported(f"{row.name} holds values beyond the range of {name}; measure it in bf16 or fp32")
        return narrow

    safetensors_file.write(target, [(row.name, dtypes[row.name], row.shape) for row in rows], map(cast, rows))


def _torch_dtype(method: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, _DTYPES[method][0])
    return dtype


def load(request: LoadRequest) -> PreTrainedModel:
    return build.plain(request.artifact_dir, _torch_dtype(request.scheme.method), request.device)


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    return None if shape is None or quantization(shape.config) is None else _QUANTIZED


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    stored = safetensors_file.checkpoint(artifact_dir).values()
    return [StoredTensor(name=t.name, layer="", role="other", bits=t.bits) for t in stored]


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    return against_source.held(request.out_dir, ledger(request.out_dir, request.scheme))


def kernels(model: PreTrainedModel) -> list[LayerKernel]:
    """The linear layers of the decoder: nothing is quantized, so nothing is dequantized."""
    return [
        proof(name, type(module).__name__, module.weight, op="aten::linear", dequantized=False)
        for name, module in build.decoder_linears(model).items()
    ]


def _method(name: str, title: str, bits: int, summary: str) -> Method:
    real: dict[float, Kernel] = {bits: "real"}
    return Method(
        name=name,
        title=title,
        version="2",
        bits=(bits,),
        kernel_cpu=real,
        kernel_cuda=real,
        engines={"vllm": Elsewhere(cpu=real, cuda=real)},
        quantize=quantize,
        load=load,
        supports=_supports,
        bits_per_weight=lambda scheme: float(bits),
        ledger=ledger,
        weights=_weights,
        kernels=kernels,
        modules=("torch", "transformers", "safetensors"),
        unquantized=True,
        summary=summary,
    )


FP32 = _method("fp32", "float32", 32, "unquantized, single precision: what rounding to 16 bits costs")
BF16 = _method("bf16", "bfloat16", 16, "unquantized, as most checkpoints are published; the usual baseline")
FP16 = _method("fp16", "float16", 16, "unquantized, half precision: more digits and less range than bf16")
