"""gguf_file: a GGUF file that somebody made, measured as it is by llama.cpp.

A model of the suite whose `path` is a .gguf file, `of` the model that it was made of: that one's tokenizer gives the ids, and its
baseline is what the file is compared with. File type and bits are read from the file's header; the artifact is a link.

Nothing here reads the weights a second time: who made the file may have converted it otherwise than this project does. Before
anything is measured its shape is compared with the source's, and the divergence tells a sound file from garbage.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import ModelShape, StoredTensor
from harness.errors import BadInput, MissingPackage, Unsupported
from harness.formats import config_json, gguf_export, gguf_reader, gguf_types
from harness.formats.config_json import ModelConfig
from harness.formats.gguf_reader import shape_of
from harness.formats.quantization_config import KEY, quantization
from harness.methods import gguf, reload
from harness.methods.base import LoadRequest, Method, QuantizeRequest
from harness.spec import Scheme

if TYPE_CHECKING:
    from harness.runtimes.llama_cpp import Weights

NAME = "gguf_file"
FORMAT = "gguf"


def scheme(config: ModelConfig) -> Scheme:
    """The scheme of a file whose `shape_of` gave `config`. Unsupported names why a file cannot be measured."""
    described = config_json.mapping(config, KEY)
    if described.get("refused"):
        raise Unsupported(str(described["refused"]))
    file_type = str(described["type"])
    if file_type in gguf_types.FILE_TYPES:
        bits = gguf_types.FILE_TYPES[file_type][0]
    else:  # a mixture without a name: its most frequent block
        bits = round(gguf_types.BLOCKS[file_type.partition(" ")[0]].bits_per_weight, 2)
    return Scheme(method=NAME, bits=float(bits), options={"format": FORMAT, "type": file_type})


def quantize(request: QuantizeRequest) -> None:
    """Links to the file, which `request.model_dir` is."""
    for package in ("llama_cpp", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(package, "a GGUF file", 'pip install "llm-quant-harness[gguf]"')
    # Not resolved further: the name of the first part tells of the others, and a hub's cache keeps bytes under other names.
    (request.out_dir / gguf.FILE).symlink_to(request.model_dir.absolute())
    reload.skip(request.out_dir, "gguf: given as it is, and read by nothing but llama.cpp")


def load(request: LoadRequest) -> Weights:
    """The file in llama.cpp, once its shape is that of the source model."""
    path, config = request.artifact_dir / gguf.FILE, config_json.read(request.model_dir)
    if why := another_model(shape_of(path), config):
        raise BadInput(f"{path.resolve()} {why}; correct `of`")
    weights, text = gguf.load(request), config_json.text_part(config)
    # What the file says is not the model's: with less than the source has, its inputs would be cut otherwise than the baseline's.
    weights.context_length = max(weights.context_length, config_json.integer(text, "max_position_embeddings"))
    return weights


def another_model(ours: ModelShape, config: ModelConfig) -> str | None:
    """Why a file of this shape was not made of the model with this config.json, or None."""
    text = config_json.text_part(config)
    for what, has, name in (("layers", ours.layers, "num_hidden_layers"), ("hidden units", ours.hidden, "hidden_size")):
        if name in text and text[name] != has:
            return (
                f"has {has} {what} and the model it is given as a quantization `of` has {text[name]}: it was made of another one"
            )
    return None


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    """As gguf's, but by their own names alone where the architecture is none whose source names are known here."""
    rows = gguf.ledger(artifact_dir, scheme)
    kind = gguf_reader.header(artifact_dir / gguf.FILE).metadata.get("general.architecture")
    if kind in gguf_export.ARCHITECTURES.values():
        return rows
    return [StoredTensor(name=row.name, layer="", role="other", bits=row.bits) for row in rows]


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if shape is not None and quantization(shape.config) is None:
        return "the checkpoint is not quantized; quantize it to GGUF with the method gguf"
    kind = str(scheme.options.get("type", ""))
    if kind in gguf.TERNARY and device.startswith("cuda"):
        return f"llama.cpp has no CUDA kernel for {kind}"
    return None


def _bits_per_weight(scheme: Scheme) -> float:
    """Of a file type that llama.cpp names its usual mixture, else the bits of the most frequent block."""
    return gguf.bits_per_weight(scheme) if scheme.options.get("type") in gguf_types.FILE_TYPES else float(scheme.bits)


METHOD = Method(
    name=NAME,
    title="GGUF file, as given",
    engine="llamacpp",
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=_bits_per_weight,
    ledger=ledger,
    weights=None,
    kernels=gguf.kernels,
    requirements=gguf.METHOD.requirements,
    extra=gguf.METHOD.extra,
    modules=gguf.METHOD.modules,
    origin="given",
    running_options=gguf.METHOD.running_options,
    summary="a given .gguf file as it is, its type read from its header",
    source=gguf.METHOD.source,
)
