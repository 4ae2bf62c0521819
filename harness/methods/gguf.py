"""gguf: llama.cpp's formats. Legacy types (blocks of 32), K-quants and I-quants (super-blocks of 256), ternary types, one-bit and
4-bit float types.

A file type such as Q4_K_M is a mixture that llama.cpp chooses tensor by tensor; embeddings and head are quantized too. The
source is converted (`formats/gguf_export.py`), quantized by `llama_model_quantize`, and runs in the engine `llamacpp`.

The importance matrix is llama.cpp's: the mean of the squared inputs of each column of a linear layer, over the calibration
tokens. It is computed here, by one pass of the source model, and handed over in memory. Types that llama.cpp refuses
without one take it by default, others do on `imatrix: true`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness import kv
from harness.artifact import HeldWeight, LayerKernel, ModelShape, Role, StoredTensor
from harness.formats import (
    attention_rules,
    gguf_export,
    gguf_names,
    gguf_reader,
    gguf_types,
    gguf_weights,
    safetensors_file,
)
from harness.formats.gguf_types import FILE_TYPES
from harness.formats.gguf_vocabulary import SAMPLE
from harness.methods import _gguf_mixture, _mixture, refusals, reload
from harness.methods._rounded_inputs import round_inputs_of
from harness.methods.base import Kernel, LoadRequest, Method, Option, QuantizeRequest
from harness.models import build
from harness.spec import Running, Scheme

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.runtimes.llama_cpp import Weights

FILE = "model.gguf"

FACTS = "gguf.json"

DEFAULTS = {
    32.0: "F32", 16.0: "BF16", 8.0: "Q8_0", 6.0: "Q6_K", 5.0: "Q5_K_M", 4.0: "Q4_K_M", 3.0: "Q3_K_M", 2.0: "Q2_K",
    1.58: "TQ1_0", 1.0: "IQ1_M",
}  # fmt: skip

UNQUANTIZED = ("F32", "BF16", "F16")

TERNARY = ("TQ1_0", "TQ2_0")

AROUND = {"MXFP4": "MXFP4_MOE", "NVFP4": "Q8_0"}
"""Types that no file type of llama.cpp gives to the layers of a dense model, and the file type of everything else: its own one of
MXFP4 means the experts of a mixture, and it makes none of NVFP4. They are asked for tensor by tensor."""

IMATRIX_TYPES = frozenset({"IQ3_XXS", "IQ3_XS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
"""File types with tensors that llama.cpp refuses to quantize without an importance matrix."""

_PARTS = {"q": 1.0, "k": 0.25, "v": 0.25, "o": 1.0, "gate": 3.5, "up": 3.5, "down": 3.5}
"""Relative sizes of a block's linear layers in a usual shape (Llama 3 8B): what a mixture's estimate weighs with."""


def with_matrix(scheme: Scheme) -> bool:
    """Whether this scheme uses an importance matrix: as asked, or where its type requires one."""
    wish = scheme.options["imatrix"]
    return bool(scheme.options.get("type") in IMATRIX_TYPES if wish == "auto" else wish)


def quantize(request: QuantizeRequest) -> None:
    from harness.runtimes import llama_cpp

    mixed = request.scheme.mixture is not None
    kind = _gguf_mixture.BASE if mixed else str(request.scheme.options["type"])
    target, source = request.out_dir / FILE, request.out_dir / "source.gguf"
    plain = kind in UNQUANTIZED
    written = gguf_export.convert(
        request.model_dir,
        target if plain else source,
        dtype=kind if plain else None,
        same_ids=lambda path, ids: llama_cpp.same_ids(path, SAMPLE, ids),
    )
    matrix = importance(request) if with_matrix(request.scheme) and not plain else {}
    mixture = _gguf_mixture.of(request, matrix) if mixed else None
    if not plain:
        types = _everywhere(kind, source) if mixture is None else _gguf_mixture.overrides(mixture)
        llama_cpp.quantize(source, target, file_type=AROUND.get(kind, kind), importance=matrix, types=types)
        source.unlink()
    if mixture is not None:
        _mixture.check(request.out_dir, mixture, ledger(request.out_dir, request.scheme))
    described = {
        "dtype": written.dtype,
        "tokenizer": written.tokenizer,
        "type": "mixed" if mixed else kind,
        "importance_entries": len(matrix),
    }
    (request.out_dir / FACTS).write_text(json.dumps(described, indent=1), encoding="utf-8")
    _write_answers(request, target, plain=plain)


def _everywhere(kind: str, source: Path) -> dict[str, str]:
    """Pattern of a GGUF tensor's name -> its type, for every linear layer of a file, where no file type gives it to them."""
    names = [tensor.name for tensor in gguf_reader.header(source).tensors] if kind in AROUND else []
    return {f"^{re.escape(name)}$": kind for name in names if gguf_names.linear(name) is not None}


def importance(request: QuantizeRequest) -> dict[str, NDArray[np.float32]]:
    """GGUF tensor name -> mean squared input by column (numpy float32) of every decoder linear over the calibration tokens."""
    import torch

    if not request.calibration:
        raise ValueError("an importance matrix needs calibration rows")
    model = build.plain(request.model_dir, build.unpacked_dtype(_parameters(request.model_dir)), request.device)
    sums: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].float().flatten(0, -2).square().sum(dim=0, dtype=torch.float64)
            sums[name] = squares if name not in sums else sums[name] + squares

        return hook

    for name, linear in build.decoder_linears(model).items():
        linear.register_forward_pre_hook(listen(name))
    tokens = 0
    with torch.inference_mode():
        for row in request.calibration:
            ids = torch.tensor([list(row)], dtype=torch.long, device=request.device)
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
            tokens += len(row)
    return {str(gguf_names.gguf_name(f"{n}.weight")): (s / tokens).float().cpu().numpy() for n, s in sums.items()}


def _parameters(model_dir: Path) -> int:
    return sum(entry.parameters for entry in safetensors_file.checkpoint(model_dir).values())


def _write_answers(request: QuantizeRequest, path: Path, *, plain: bool) -> None:
    """The reload check's answers: the file's own weights, unpacked in Python and run by transformers.

    llama.cpp rounds the inputs of a quantized product to 8 bits by block (Q8_0, Q8_K), so the floor is the distance of the same
    weights in bf16 with inputs rounded like that.
    """
    import torch

    state = gguf_weights.unpacked(path, gguf_export.decoder_of(request.model_dir))
    dtype = build.unpacked_dtype(sum(t.numel() for t in state.values()))
    model = build.dense(request.model_dir, state, dtype)
    rows = reload.rows_for(int(model.config.vocab_size), request.calibration)
    name = str(dtype).removeprefix("torch.")

    def noisy() -> PreTrainedModel:
        rough = model.bfloat16()
        if not plain:
            round_inputs_of((m for m in rough.modules() if isinstance(m, torch.nn.Linear)), blocks=(256, 32))
        return rough

    reload.write(
        model, rows, request.out_dir, by=f"the file's blocks, unpacked by the gguf package and run in {name}", noisy=noisy
    )


def load(request: LoadRequest) -> Weights:
    from harness.runtimes.llama_cpp import Weights

    return Weights(request.artifact_dir / FILE, device=request.device, kv_type=request.running.kv)


def kernels(weights: Weights) -> list[LayerKernel]:
    layers = [(gguf_names.linear(tensor.name), tensor.type) for tensor in weights.header.tensors]
    return [
        LayerKernel(layer=layer, module="llama.cpp", op="ggml_mul_mat", stored_dtype=kind, dequantized=False)
        for layer, kind in layers
        if layer is not None
    ]


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    """One row per tensor of the file. A block holds codes and scales together, so a quantized weight is one row with both."""
    rows = []
    for tensor in gguf_reader.header(artifact_dir / FILE).tensors:
        layer = gguf_names.linear(tensor.name)
        role: Role = "other" if layer is None else "weight"
        rows.append(StoredTensor(name=tensor.name, layer=layer or "", role=role, bits=8 * tensor.bytes))
    return rows


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    """Every tensor of the file but Llama-3's divisors of frequencies, its rows in the source's order. Types of 16 bits and more
    are kept, at their own precision."""
    path, model = request.out_dir / FILE, gguf_export.decoder_of(request.model_dir)

    def held(tensor: gguf_reader.GgufTensor, name: str) -> HeldWeight:
        plain = tensor.type in UNQUANTIZED
        return HeldWeight(
            name=name,
            shape=tensor.shape,
            quantized=not plain,
            read=(lambda: gguf_weights.values(path, tensor, name, model)) if plain else None,
        )

    named = [(tensor, gguf_names.source_name(tensor.name)) for tensor in gguf_reader.header(path).tensors]
    return [held(tensor, name) for tensor, name in named if name is not None]


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if scheme.mixture is not None:
        return _unreadable(shape) or _gguf_mixture.refusal(scheme, shape)
    kind = str(scheme.options["type"])
    bits = FILE_TYPES[kind][0]
    if bits != scheme.bits:
        return f"type {kind} belongs to {bits:g} bits"
    if scheme.options["imatrix"] is False and kind in IMATRIX_TYPES:
        return f"llama.cpp refuses {kind} without an importance matrix; drop `imatrix: false`"
    if scheme.options["imatrix"] is True and kind in UNQUANTIZED:
        return f"{kind} is not quantized, so an importance matrix has no use; drop `imatrix: true`"
    if kind in TERNARY and device.startswith("cuda"):
        return f"llama.cpp has no CUDA kernel for {kind}"
    why = _unreadable(shape)
    if why is not None or kind in UNQUANTIZED:
        return why
    reason = refusals.undivided(shape, columns=gguf_types.BLOCKS[FILE_TYPES[kind][1][0]].weights)
    if reason is None:
        return None
    # llama.cpp itself would quietly store such a tensor in another type.
    small = "Q8_0, Q5_0, Q5_1, Q4_0, Q4_1 and IQ4_NL have blocks of 32"
    return f"{reason}, the blocks of {kind}; choose another type: {small}"


def _unreadable(shape: ModelShape | None) -> str | None:
    """Why a model cannot become a GGUF file here."""
    if shape is None:
        return None
    if reason := refusals.quantized(shape):
        return reason
    return gguf_export.refusal({**attention_rules.complete(shape.config), "architectures": [shape.architecture]})


def runs(running: Running, shape: ModelShape | None) -> str | None:
    """Why llama.cpp cannot keep the keys and values in the type that is asked for: a row of a head is cut into blocks."""
    if shape is None or not kv.quantized(running.kv):
        return None
    head = refusals.head_size(shape)
    blocks = max(gguf_types.BLOCKS[kind.native.upper()].weights for kind in kv.types("llamacpp", running.kv))
    if head % blocks == 0:
        return None
    return (
        f"llama.cpp cuts the keys and values of a head into blocks of {blocks} for {running.kv}, and the heads of this "
        f"model have {head} numbers; write kv_cache: f16"
    )


def bits_per_weight(scheme: Scheme) -> float:
    """Bits of the types' blocks (`gguf_types.BLOCKS`), weighed by the mixture in a usual shape; of a mixture by layer its
    target."""
    if scheme.mixture is not None:
        return float(scheme.bits)
    main, others = FILE_TYPES[str(scheme.options["type"])][1]
    total = 0.0
    for part, size in _PARTS.items():
        other, share = others.get(part, (main, 0.0))
        total += size * (share * gguf_types.BLOCKS[other].bits_per_weight + (1 - share) * gguf_types.BLOCKS[main].bits_per_weight)
    return total / sum(_PARTS.values())


_REAL: dict[float, Kernel] = dict.fromkeys(DEFAULTS, "real")

METHOD = Method(
    name="gguf",
    title="GGUF (llama.cpp)",
    bits=tuple(DEFAULTS),
    options={
        "type": Option(
            default="Q4_K_M",
            defaults=DEFAULTS,
            choices=tuple(FILE_TYPES),
            named=True,
            help="llama.cpp's file type, which belongs to one bit width; by default the K-quant of that width",
        ),
        "imatrix": Option(
            default="auto",
            choices=("auto", True, False),
            help="weigh errors with an importance matrix of the calibration text; auto: where the type requires one",
        ),
    },
    running_options={
        "kv_cache": Option(
            default="f16",
            choices=("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
            help="what llama.cpp keeps keys and values in when it answers",
        ),
    },
    engine="llamacpp",
    kernel_cpu=_REAL,
    kernel_cuda={**_REAL, 1.58: "none"},
    quantize=quantize,
    load=load,
    supports=_supports,
    runs=runs,
    bits_per_weight=bits_per_weight,
    ledger=ledger,
    weights=_weights,
    kernels=kernels,
    calibrated=True,
    mixing=_gguf_mixture.MIXING,
    sees_text=with_matrix,
    requirements=("llama-cpp-python>=0.3.36", "gguf>=0.19"),
    extra="gguf",
    modules=("torch", "transformers", "safetensors", "llama_cpp", "gguf"),
    summary="llama.cpp's formats, legacy, K- and I-quants, with or without an importance matrix",
    source="ggml-org/llama.cpp; llama-cpp-python",
)
