"""gguf_file: a GGUF file that somebody made, measured as it is by llama.cpp.

A model of the suite whose `path` is a .gguf file, `of` the model that it was made of: that one's tokenizer gives the ids, and its
baseline is what the file is compared with. File type and bits are read from the file's header; the artifact is a link.

Nothing here reads the weights a second time: who made the file may have converted it otherwise than `gguf_convert` does. Before
anything is measured its shape is compared with the source's, and the divergence tells a sound file from garbage.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from harness.artifact import Shape
from harness.errors import BadInput, MissingPackage
from harness.formats import gguf_types
from harness.formats.gguf_reader import shape_of
from harness.methods import gguf, reload
from harness.methods.base import LoadRequest, Method, QuantizeRequest
from harness.spec import Json, Scheme

NAME = "gguf_file"
FORMAT = "gguf"


def scheme(config: Mapping[str, Json]) -> Scheme:
    """The scheme of a file whose `shape_of` gave `config`."""
    kind = str(config["quantization_config"]["type"])
    if kind in gguf_types.FILE_TYPES:
        bits = gguf_types.FILE_TYPES[kind][0]
    else:  # a mixture without a name: its most frequent block
        bits = round(gguf_types.BLOCKS[kind.partition(" ")[0]].bits_per_weight, 2)
    return Scheme(method=NAME, bits=float(bits), options={"format": FORMAT, "type": kind})


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
    origin="given",
    running_options=gguf.METHOD.running_options,
    summary="a given .gguf file as it is, its type read from its header",
    source=gguf.METHOD.source,
)
