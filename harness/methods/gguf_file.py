"""gguf_file: a GGUF file that somebody made, measured as it is by llama.cpp.

A model of the suite whose `path` is a .gguf file, `of` the model that it was made of: that one's tokenizer gives the ids, and its
baseline is what the file is compared with. File type and bits are read from the file's header; the artifact is a link.

Nothing here reads the weights a second time: who made the file may have converted it otherwise than this project does. Before
anything is measured its shape is compared with the source's, and the divergence tells a sound file from garbage.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from harness.artifact import ModelShape
from harness.errors import BadInput, MissingPackage
from harness.formats import config_json, gguf_types
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
    """The scheme of a file whose `shape_of` gave `config`."""
    file_type = str(config_json.mapping(config, KEY)["type"])
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
    path = request.artifact_dir / gguf.FILE
    ours, text = shape_of(path), config_json.text_part(config_json.read(request.model_dir))
    for what, has, name in (("layers", ours.layers, "num_hidden_layers"), ("hidden units", ours.hidden, "hidden_size")):
        if name in text and text[name] != has:
            raise BadInput(
                f"{path.resolve()} has {has} {what} and the model it is given as a quantization `of` has {text[name]}: "
                "it was made of another one; correct `of`"
            )
    return gguf.load(request)


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if shape is not None and quantization(shape.config) is None:
        return "the checkpoint is not quantized; quantize it to GGUF with the method gguf"
    kind = str(scheme.options.get("type", ""))
    if kind in gguf.TERNARY and device.startswith("cuda"):
        return f"llama.cpp has no CUDA kernel for {kind}"
    return None


METHOD = Method(
    name=NAME,
    title="GGUF file, as given",
    engine="llamacpp",
    quantize=quantize,
    load=load,
    supports=_supports,
    ledger=gguf.ledger,
    kernels=gguf.kernels,
    requirements=gguf.METHOD.requirements,
    extra=gguf.METHOD.extra,
    modules=gguf.METHOD.modules,
    origin="given",
    running_options=gguf.METHOD.running_options,
    summary="a given .gguf file as it is, its type read from its header",
    source=gguf.METHOD.source,
)
