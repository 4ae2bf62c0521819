"""prequantized: a checkpoint that is quantized already, measured as it is.

It is recognised from its config.json, and its scheme (format, bits, group size) is read from there; nothing is quantized and no
weight is copied: the artifact links to the checkpoint's files. GPTQ and AWQ load through GPTQModel, bitsandbytes as bnb.py says,
every other format through transformers, which may unpack it to plain layers: the kernel proof says so, and such a cell is
simulated.

What the weights mean is read a second time by this project's own code for GPTQ and AWQ, and compared after every load (see
reload.py). Of other formats there is no second reading; give the unquantized model as well (`of` in the suite), and the
divergence from it tells a sound checkpoint from garbage.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.artifact import LayerKernel, Role, Shape, StoredTensor
from harness.errors import BadInput, MissingPackage, Unsupported
from harness.formats import gptq_file, safetensors_file
from harness.formats.quantization_config import entry, format_of
from harness.methods import _gptqmodel, bnb, gguf_file, reload
from harness.methods.base import LoadRequest, Method, QuantizeRequest
from harness.models import build, find
from harness.spec import Given, Json, Model, Scheme

NAME = "prequantized"

_OURS = re.compile(rf"artifact\.json|verified-\w+\.json|{re.escape(reload.FILE)}")
"""What an artifact of this project holds beside the checkpoint's own files."""

_LINKED = {".json", ".jinja", ".txt", ".model"}


def _grouped(q: Mapping[str, Json]) -> tuple[float, dict[str, Json]]:
    bits, group = q.get("bits", q.get("w_bit")), q.get("group_size", q.get("q_group_size", -1))
    return float(bits or 0), {"group_size": int(group)}


def _bitsandbytes(q: Mapping[str, Json]) -> tuple[float, dict[str, Json]]:
    if not q.get("load_in_4bit"):
        return 8.0, {}
    return 4.0, {"type": str(q.get("bnb_4bit_quant_type")), "double_quant": bool(q.get("bnb_4bit_use_double_quant"))}


def _hqq(q: Mapping[str, Json]) -> tuple[float, dict[str, Json]]:
    weights = q["quant_config"].get("weight_quant_params", {})
    return float(weights["nbits"]), {"group_size": int(weights.get("group_size") or -1)}


def _compressed(q: Mapping[str, Json]) -> tuple[float, dict[str, Json]]:
    """Bits and group of the first group of layers; `mixed` where another group has other bits."""
    weights = [group["weights"] for group in q["config_groups"].values() if group.get("weights")]
    acts = [group.get("input_activations") for group in q["config_groups"].values()]
    options: dict[str, Json] = {"type": str(weights[0].get("type", "int")), "group_size": int(weights[0].get("group_size") or -1)}
    if any(acts):
        options["activations"] = next(int(a["num_bits"]) for a in acts if a)
    if len({w["num_bits"] for w in weights}) > 1:
        options["mixed"] = True
    return float(weights[0]["num_bits"]), options


def _aqlm(q: Mapping[str, Json]) -> tuple[float, dict[str, Json]]:
    return q["num_codebooks"] * q["nbits_per_codebook"] / q["in_group_size"], {"group_size": int(q["in_group_size"])}


def _torchao(q: Mapping[str, Json]) -> tuple[float, dict[str, Json]]:
    kind = str(q["quant_type"]["default"]["_type"])
    width = re.search(r"(\d)weight", kind.lower())
    return float(width.group(1)) if width else 0.0, {"type": kind.removesuffix("Config")}


def _quanto(q: Mapping[str, Json]) -> tuple[float, dict[str, Json]]:
    kind = str(q["weights"])
    return float(kind[-1]), {"type": kind}


_READERS: dict[str, Callable[[Mapping[str, Json]], tuple[float, dict[str, Json]]]] = {
    "gptq": _grouped,
    "awq": _grouped,
    "auto-round": _grouped,
    "bitsandbytes": _bitsandbytes,
    "hqq": _hqq,
    "compressed-tensors": _compressed,
    "aqlm": _aqlm,
    "torchao": _torchao,
    "quanto": _quanto,
    "bitnet": lambda q: (1.58, {}),
    "fp8": lambda q: (8.0, {}),
    "fbgemm_fp8": lambda q: (8.0, {}),
    "mxfp4": lambda q: (4.0, {"group_size": 32}),
}

_PACKAGES = {
    "gptq": ("gptqmodel", 'pip install "quant-harness[gptqmodel]"'),
    "awq": ("gptqmodel", 'pip install "quant-harness[gptqmodel]"'),
    "auto-round": ("auto_round", 'pip install "quant-harness[autoround]"'),
    "bitsandbytes": ("bitsandbytes", 'pip install "quant-harness[bnb]"'),
    "hqq": ("hqq", 'pip install "quant-harness[hqq]"'),
    "torchao": ("torchao", 'pip install "quant-harness[torchao]"'),
    "compressed-tensors": ("compressed_tensors", "pip install compressed-tensors"),
    "aqlm": ("aqlm", "pip install aqlm"),
    "quanto": ("optimum", 'pip install "quant-harness[quanto]"'),
}
"""What loads a format beside transformers, and the command that adds it."""


def scheme(config: Mapping[str, Json]) -> Scheme:
    """The scheme that a quantized checkpoint's config describes, its format among the options. Unsupported names a format that
    cannot be read."""
    quantization = entry(config)
    if quantization is None:
        raise BadInput("its config.json names no quantization, so it is no quantized checkpoint")
    name = format_of(quantization)
    if name not in _READERS:
        raise Unsupported(f"it is quantized in a format that is not known here ({name}); known: {', '.join(sorted(_READERS))}")
    try:
        bits, read = _READERS[name](quantization)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise Unsupported(f"its quantization ({name}) is described in a way that cannot be read: {error!r}") from None
    if not 0 < bits <= 16:
        raise Unsupported(f"its quantization ({name}) names no bit width")
    return Scheme(method=NAME, bits=bits, options={"format": name, **read})


def origin(checkpoint: Model, config: Mapping[str, Json]) -> Given:
    """A quantized checkpoint, or a GGUF file whose header gave `config`. Unsupported names a format that cannot be read."""
    is_file = checkpoint.path is not None and find.is_gguf(Path(checkpoint.path))
    return Given(scheme=gguf_file.scheme(config) if is_file else scheme(config), checkpoint=checkpoint)


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
    return " ".join(parts)


def quantize(request: QuantizeRequest) -> None:
    """Links to the checkpoint in `request.model_dir`, and leaves the reload check."""
    name = str(request.scheme.options["format"])
    package, install = _PACKAGES.get(name, ("transformers", ""))
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(package, f"a {name} checkpoint", install)
    for path in sorted(request.model_dir.iterdir()):
        if path.suffix in _LINKED and not _OURS.fullmatch(path.name):
            (request.out_dir / path.name).symlink_to(path.resolve())
    for path in safetensors_file.weight_files(request.model_dir):
        (request.out_dir / path.name).symlink_to(path.resolve())
    if name not in ("gptq", "awq"):
        reload.skip(request.out_dir, f"{name}: given as it is, and read by nothing but its own library")
        return
    import torch

    try:
        small = sum(t.bits for t in safetensors_file.stored(request.out_dir)) < 8 * 2 * 10**9
        state = gptq_file.dequantize(request.out_dir, torch.float32 if small else torch.bfloat16)
    except BadInput as error:
        reload.skip(request.out_dir, f"{name}: given as it is, in a layout that only its own library reads: {error}")
        return
    reload.write_dense(request, state, "the packed weights, unpacked and run in float32")


def load(request: LoadRequest) -> Any:
    import torch

    name = str(request.scheme.options["format"])
    if name in ("gptq", "awq"):
        model = _gptqmodel.load(request)
    elif name == "bitsandbytes":
        model = bnb.METHOD.load(request)
    else:
        model = build.plain(request.artifact_dir, torch.bfloat16, request.device)
    model.prequantized_format = name
    return model


def _kernels(model: Any) -> list[LayerKernel]:
    known = {"gptq": _gptqmodel.kernels, "awq": _gptqmodel.kernels, "bitsandbytes": bnb.METHOD.kernels}
    return known.get(model.prequantized_format, _any_kernels)(model)


def _any_kernels(model: Any) -> list[LayerKernel]:
    """Of every module of the decoder that holds a matrix: its class, and the dtype of its largest tensor."""
    import torch

    apart = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    found = []
    for name, module in model.named_modules():
        own = [t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if t.dim() >= 2]
        if id(module) in apart or not own:
            continue
        kind, largest = type(module).__name__, max(own, key=lambda t: t.numel())
        held = largest.dtype.is_floating_point and largest.dtype.itemsize >= 2 and type(largest.data) is torch.Tensor
        dtype = str(largest.dtype).removeprefix("torch.")
        op = "aten::linear" if held else f"{kind}.forward"
        found.append(LayerKernel(layer=name, module=kind, op=op, stored_dtype=dtype, dequantized=held))
    return found


_SUFFIXES: dict[str, Role] = {
    "weight_packed": "weight", "qweight": "weight", "W_q": "weight", "codes": "weight", "_data": "weight",
    "weight_scale": "scale", "weight_scale_inv": "scale", "scales": "scale", "scale": "scale", "_scale": "scale",
    "weight_global_scale": "scale", "weight_scale_2": "scale", "absmax": "scale", "SCB": "scale",
    "weight_zero_point": "zero", "qzeros": "zero", "zero": "zero", "_shift": "zero",
    "codebooks": "codebook", "quant_map": "codebook", "g_idx": "index", "weight_g_idx": "index", "weight_shape": "index",
}  # fmt: skip

_NARROW = {"I8", "U8", "F8_E4M3", "F8_E5M2"}


def _ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    name = str(scheme.options["format"])
    if name in ("gptq", "awq", "auto-round"):
        return _gptqmodel.ledger(artifact_dir, scheme)
    if name == "bitsandbytes":
        return bnb.METHOD.ledger(artifact_dir, scheme)
    packed = {
        t.name.rpartition(".")[0]
        for t in safetensors_file.stored(artifact_dir)
        if _SUFFIXES.get(t.name.rpartition(".")[2]) == "weight" or (t.name.endswith(".weight") and t.dtype in _NARROW)
    }

    def roles(tensor: str) -> tuple[str, Role]:
        layer, _, suffix = tensor.rpartition(".")
        if layer not in packed or suffix == "bias":
            return "", "other"
        return layer.removesuffix(".weight"), "weight" if suffix == "weight" else _SUFFIXES.get(suffix, "other")

    return safetensors_file.ledger(artifact_dir, roles)


def _supports(scheme: Scheme, shape: Shape | None, device: str) -> str | None:
    if shape is not None and entry(shape.config) is None:
        return "the checkpoint is not quantized; measure it as bf16, or quantize it with another method"
    return None


def _bits_per_weight(scheme: Scheme) -> float:
    """bits + (16-bit scale + zero point of `bits`) / group where the config names a group."""
    group = int(scheme.options.get("group_size", -1))
    return scheme.bits + ((16 + scheme.bits) / group if group > 0 else 0)


METHOD = Method(
    name=NAME,
    title="Quantized already",
    version="1",
    bits=(),
    options={},
    engine="transformers",
    kernel_cpu={},
    kernel_cuda={},
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=_bits_per_weight,
    ledger=_ledger,
    kernels=_kernels,
    requirements=(*_gptqmodel.REQUIREMENTS, *bnb.METHOD.requirements),  # a link is checked again when these change
    modules=("torch", "transformers"),
    preload=_gptqmodel.PRELOAD,
    origin="given",
    summary="a given checkpoint that is quantized already (GPTQ, AWQ, bitsandbytes, compressed-tensors, ...), as it is",
)
