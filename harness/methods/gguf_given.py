"""gguf_file: a GGUF file that somebody made, measured as it is by llama.cpp.

A model of the suite whose `path` is a .gguf file, `of` the model that it was made of: that one's tokenizer gives the ids, and its
baseline is what the file is compared with. File type and bits are read from the file's header; the artifact is a link.

Nothing here reads the weights a second time: who made the file may have converted it otherwise than `gguf_convert` does. Before
anything is measured its shape is compared with the source's, and the divergence tells a sound file from garbage.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from harness.errors import BadInput, MissingPackage, Unsupported
from harness.methods import gguf, gguf_file, reload
from harness.methods.base import LoadRequest, Method, QuantizeRequest, Shape
from harness.spec import Json, Scheme

NAME = "gguf_file"
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
}  # fmt: skip
"""general.file_type -> llama.cpp's name (llama.h, llama_ftype)."""


def shape_of(path: Path) -> Shape:
    """What the file's header says, in the words of a checkpoint. Its linear layers are not listed: the source's are."""
    header = gguf_file.header(path)
    meta = header.metadata
    kind = str(meta.get("general.architecture", "?"))
    found = _file_type(header)
    return Shape(
        architecture=kind,
        parameters=sum(math.prod(tensor.shape) for tensor in header.tensors),
        linears=(),
        hidden=_number(meta.get(f"{kind}.embedding_length")),
        layers=_number(meta.get(f"{kind}.block_count")),
        vocab=next((tensor.shape[0] for tensor in header.tensors if tensor.name == "token_embd.weight"), 0),
        tied=not any(tensor.name == "output.weight" for tensor in header.tensors),
        dtype=found,
        config={"quantization_config": {"quant_method": "gguf", "type": found}},
    )


def scheme(config: Json, checkpoint: str) -> Scheme:
    """The scheme of a file whose `shape_of` gave `config`."""
    found = str(config["quantization_config"]["type"])
    if found in gguf.FILE_TYPES:
        bits = gguf.FILE_TYPES[found][0]
    else:  # a mixture without a name: its most frequent block
        bits = round(gguf_file.BLOCKS[found.partition(" ")[0]].bits_per_weight, 2)
    options: dict[str, Json] = {"format": "gguf", "type": found, "kv_cache": "f16", "checkpoint": checkpoint}
    return Scheme(method=NAME, bits=float(bits), options=options, label=f"{checkpoint} gguf {found}")


def _file_type(header: gguf_file.Header) -> str:
    """The file's type as its header names it, or its most frequent block in the decoder's layers and `mixed`."""
    named = _FILE_TYPES.get(_number(header.metadata.get("general.file_type"), -1))
    weights: Counter[str] = Counter()
    for tensor in header.tensors:
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            weights[tensor.type] += math.prod(tensor.shape)
    if not weights:
        raise Unsupported("it holds no decoder layers")
    # Who quantizes with overrides leaves any number there: a type that the file does not hold at all is not its type.
    if named is not None and gguf.FILE_TYPES[named][1][0] in weights:
        return named
    return f"{weights.most_common(1)[0][0]} mixed"


def _number(value: Json, otherwise: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def quantize(request: QuantizeRequest) -> None:
    """Links to the file, which `request.model_dir` is."""
    for package in ("llama_cpp", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(package, "a GGUF file", 'pip install "quant-harness[gguf]"')
    (request.out_dir / gguf.FILE).symlink_to(request.model_dir.resolve())
    reload.skip(request.out_dir, "gguf: given as it is, and read by nothing but llama.cpp")


def load(request: LoadRequest) -> Any:
    """The file in llama.cpp, once its shape is that of the source model."""
    path = request.artifact_dir / gguf.FILE
    ours, config = shape_of(path), json.loads((request.model_dir / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    for what, found, name in (("layers", ours.layers, "num_hidden_layers"), ("hidden units", ours.hidden, "hidden_size")):
        if name in text and text[name] != found:
            raise BadInput(
                f"{path.resolve()} has {found} {what} and the model it is given as a quantization `of` has {text[name]}: "
                "it was made of another one; correct `of`"
            )
    return gguf.METHOD.load(request)


def _supports(scheme: Scheme, shape: Shape | None, device: str) -> str | None:
    if shape is not None and "quantization_config" not in shape.config:
        return "the checkpoint is not quantized; quantize it to GGUF with the method gguf"
    kind = str(scheme.options.get("type", ""))
    if kind in gguf.TERNARY and device.startswith("cuda"):
        return f"llama.cpp has no CUDA kernel for {kind}"
    return None


METHOD = Method(
    name=NAME,
    title="GGUF file, as given",
    version="1",
    bits=(),
    options={},
    engine="llamacpp",
    kernel_cpu={},
    kernel_cuda={},
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=lambda scheme: scheme.bits,
    ledger=gguf.METHOD.ledger,
    kernels=gguf.METHOD.kernels,
    requirements=gguf.METHOD.requirements,
    extra=gguf.METHOD.extra,
    modules=gguf.METHOD.modules,
    prequantized=True,
    summary="a given .gguf file as it is, its type read from its header",
    source=gguf.METHOD.source,
)
