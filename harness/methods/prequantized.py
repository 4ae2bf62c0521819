"""prequantized: a checkpoint that is quantized already, measured as it is.

It is recognised from its config.json, and its scheme (format, bits, group size) is read from there; nothing is quantized and no
weight is copied: the artifact links to the checkpoint's files. GPTQ and AWQ load through GPTQModel, bitsandbytes as bnb.py says,
every other format through transformers, which may unpack it to plain layers: the kernel proof says so, and such a cell is
simulated.

What the weights mean is read a second time by this project's own code for GPTQ, AWQ, BitNet and AQLM, and compared after every
load (see reload.py). Of other formats there is no second reading; give the unquantized model as well (`of` in the suite), and the
divergence from it tells a sound checkpoint from garbage.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import LayerKernel, ModelShape, StoredTensor
from harness.errors import BadInput, MissingPackage
from harness.formats import aqlm_file, bitnet_file, gptq_file, packed_names, safetensors_file
from harness.formats.config_json import ModelConfig
from harness.formats.quantization_config import KEY, bits_and_options, quantization
from harness.methods import _defaults, _gptqmodel, _kernels, bitnet, bnb, gguf_file, reload
from harness.methods.base import Elsewhere, LoadRequest, Method, QuantizeRequest
from harness.models import find
from harness.spec import Given, Model, Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "prequantized"

_OURS = re.compile(rf"artifact\.json|verified-\w+\.json|{re.escape(reload.FILE)}")
"""What an artifact of this project holds beside the checkpoint's own files."""

_FORMAT = "prequantized_format"
"""The attribute by which a loaded model keeps its checkpoint's format for the kernel proof."""

_PACKED = "checkpoint_layers"
"""The attribute by which it keeps the names of its packed layers."""

_LINKED = {".json", ".jinja", ".txt", ".model"}

_PACKAGES = {
    "gptq": ("gptqmodel", 'pip install "llm-quant-harness[gptqmodel]"'),
    "awq": ("gptqmodel", 'pip install "llm-quant-harness[gptqmodel]"'),
    "auto-round": ("auto_round", 'pip install "llm-quant-harness[autoround]"'),
    "bitsandbytes": ("bitsandbytes", 'pip install "llm-quant-harness[bnb]"'),
    "hqq": ("hqq", 'pip install "llm-quant-harness[hqq]"'),
    "torchao": ("torchao", 'pip install "llm-quant-harness[torchao]"'),
    "compressed-tensors": ("compressed_tensors", "pip install compressed-tensors"),
    "aqlm": ("aqlm", "pip install 'aqlm[cpu]'"),
    "quanto": ("optimum", 'pip install "llm-quant-harness[quanto]"'),
}
"""What loads a format beside transformers, and the command that adds it."""


_READ = {"gptq": gptq_file.dequantize, "awq": gptq_file.dequantize, "aqlm": aqlm_file.dequantize}
"""The formats that are read a second time, by this project's own code."""


def scheme(config: ModelConfig) -> Scheme:
    """The scheme that a quantized checkpoint's config describes, its format among the options. Unsupported names a format that
    cannot be read."""
    given = quantization(config)
    if given is None:
        raise BadInput("its config.json names no quantization, so it is no quantized checkpoint")
    bits, options = bits_and_options(given)
    return Scheme(method=NAME, bits=bits, options={"format": given.format, **options})


def origin(checkpoint: Model, config: ModelConfig) -> Given:
    """A quantized checkpoint, or a GGUF file whose header gave `config`. Unsupported names a format that cannot be read."""
    read = gguf_file.scheme if find.is_one_file(checkpoint) else scheme
    return Given(scheme=read(config), checkpoint=checkpoint)


def label(name: str, scheme: Scheme) -> str:
    """What people call a cell of the checkpoint `name`: the name and what its scheme says."""
    options = scheme.options
    if options["format"] == gguf_file.FORMAT:
        return f"{name} gguf {options['type']}"
    parts = [name, str(options["format"]), f"{scheme.bits:g}-bit"]
    if int(options.get("group_size", -1)) > 0:
        parts.append(f"g{options['group_size']}")
    parts += [str(options["type"])] if options.get("type") not in (None, "int") else []
    parts += [f"a{options['activations']}"] if "activations" in options else []
    parts += ["mixed"] if options.get("mixed") else []
    return " ".join(parts)


def missing(scheme: Scheme) -> MissingPackage | None:
    """The package that checkpoints of this format need and that is not installed here."""
    name = str(scheme.options["format"])
    package, install = _PACKAGES.get(name, ("transformers", ""))
    return MissingPackage(package, f"a {name} checkpoint", install) if importlib.util.find_spec(package) is None else None


def quantize(request: QuantizeRequest) -> None:
    """Links to the checkpoint in `request.model_dir`, and leaves the reload check. What reads its format need not be here:
    another engine may bring its own."""
    name = str(request.scheme.options["format"])
    for path in sorted(request.model_dir.iterdir()):
        if path.suffix in _LINKED and not _OURS.fullmatch(path.name):
            (request.out_dir / path.name).symlink_to(path.resolve())
    for path in safetensors_file.weight_files(request.model_dir):
        (request.out_dir / path.name).symlink_to(path.resolve())
    if name == "awq":
        _say_what_is_left(request.out_dir)
    if name == "bitnet":
        why = bitnet_file.why_unread(request.out_dir)
        if why is None:
            bitnet.write_answers(request)
        else:
            reload.skip(request.out_dir, f"bitnet: given as it is, and read by nothing but transformers: {why}")
        return
    if name not in _READ:
        reload.skip(request.out_dir, f"{name}: given as it is, and read by nothing but its own library")
        return
    import torch

    try:
        small = sum(t.bits for t in safetensors_file.stored(request.out_dir)) < 8 * 2 * 10**9
        state = _READ[name](request.out_dir, torch.float32 if small else torch.bfloat16)
    except BadInput as error:
        reload.skip(request.out_dir, f"{name}: given as it is, in a layout that only its own library reads: {error}")
        return
    reload.write_dense(request, state, "the packed weights, unpacked and run in float32")


def _say_what_is_left(folder: Path) -> None:
    """Has the loader leave alone what an AWQ checkpoint holds unpacked: it takes no notice of `modules_to_not_convert`, and would
    make a packed layer of random codes. The tensors tell, whatever the config says."""
    packed = gptq_file.packed_layers(folder)
    shapes = {e.name.removesuffix(".weight"): e.shape for e in safetensors_file.stored(folder) if e.name.endswith(".weight")}
    kinds = {layer.rpartition(".")[2] for layer in packed}
    inside = {layer.rpartition(".")[0] for layer in packed}
    left = sorted(
        layer
        for layer, shape in shapes.items()
        if len(shape) == 2 and layer not in packed and (layer.rpartition(".")[0] in inside or layer.rpartition(".")[2] in kinds)
    )
    if not left:
        return
    for name in ("config.json", "quantize_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        config = json.loads(path.read_text(encoding="utf-8"))
        settings = config.get(KEY, config)
        settings["dynamic"] = {**(settings.get("dynamic") or {}), **{f"-:^{re.escape(layer)}$": {} for layer in left}}
        path.unlink()  # a link to the checkpoint's own
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def load(request: LoadRequest) -> PreTrainedModel:
    if (lacking := missing(request.scheme)) is not None:
        raise lacking
    name = str(request.scheme.options["format"])
    if name in ("gptq", "awq"):
        model = _gptqmodel.load(request)
    elif name == "bitsandbytes":
        model = bnb.load(request)
    elif name == "bitnet":
        model = bitnet.load(request)
    else:
        model = _defaults.load(request)
    vars(model)[_FORMAT] = name
    vars(model)[_PACKED] = {row.layer for row in ledger(request.artifact_dir, request.scheme) if row.layer}
    return model


def kernels(model: PreTrainedModel) -> list[LayerKernel]:
    """As the loader of the checkpoint's format proves them; layers that the checkpoint keeps in 16 bits are not dequantized."""
    known = {"gptq": _gptqmodel.kernels, "awq": _gptqmodel.kernels, "bitsandbytes": bnb.kernels}
    proofs = known.get(vars(model)[_FORMAT], _kernels.of_modules)(model)
    packed = vars(model)[_PACKED]
    return _kernels.among(proofs, packed) if packed else proofs


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    name = str(scheme.options["format"])
    if name in ("gptq", "awq", "auto-round"):
        return gptq_file.ledger(artifact_dir)
    return bnb.ledger(artifact_dir, scheme) if name == "bitsandbytes" else packed_names.ledger(artifact_dir)


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if shape is not None and quantization(shape.config) is None:
        return "the checkpoint is not quantized; measure it as bf16, or quantize it with another method"
    return None


def _bits_per_weight(scheme: Scheme) -> float:
    """bits + (16-bit scale + zero point of `bits`) / group where the config names a group. A group of AQLM's has its codes alone:
    codebooks and scales belong to a layer."""
    if scheme.options["format"] == "aqlm":
        return scheme.bits
    group = int(scheme.options.get("group_size", -1))
    return scheme.bits + ((16 + scheme.bits) / group if group > 0 else 0)


METHOD = Method(
    name=NAME,
    title="Quantized already",
    version="2",
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=_bits_per_weight,
    ledger=ledger,
    weights=None,
    kernels=kernels,
    requirements=(*_gptqmodel.REQUIREMENTS, *bnb.METHOD.requirements),  # a link is checked again when these change
    preload=_gptqmodel.PRELOAD,
    engines={"vllm": Elsewhere(cpu={}, cuda={})},  # what vLLM loads of it, it says itself
    origin="given",
    summary="a given checkpoint that is quantized already (GPTQ, AWQ, bitsandbytes, compressed-tensors, ...), as it is",
)
