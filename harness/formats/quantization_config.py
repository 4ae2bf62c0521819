"""The quantization that a checkpoint's config.json names: whether there is one, its format, and what it says of the weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from harness.errors import Unsupported
from harness.formats.config_json import ModelConfig, integer, mapping, number

KEY = "quantization_config"
"""Where transformers keeps it in a config.json, and as an attribute of a configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """A checkpoint's quantization. `format` is its name, e.g. "gptq", or "?" where none is named; `settings` its own words."""

    format: str
    settings: ModelConfig


Options: TypeAlias = dict[str, str | int | bool]
"""What tells two quantizations of the same bits apart, as the options of a scheme: group size, type, ..."""


def quantization(config: ModelConfig) -> Quantization | None:
    """The quantization of the checkpoint that `config` belongs to; None where its weights are unquantized."""
    settings = mapping(config, KEY) or mapping(config, "compression_config")
    if not settings:
        return None
    named = settings.get("quant_method")
    if named is None and ("load_in_4bit" in settings or "load_in_8bit" in settings):
        named = "bitsandbytes"
    return Quantization(format=str(named or "?"), settings=settings)


def bits_and_options(checkpoint: Quantization) -> tuple[float, Options]:
    """Bits of a checkpoint's codes, and its options. Unsupported names a format or settings that cannot be read."""
    name = checkpoint.format
    if name not in _READERS:
        raise Unsupported(f"it is quantized in a format that is not known here ({name}); known: {', '.join(sorted(_READERS))}")
    try:
        bits, options = _READERS[name](checkpoint.settings)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise Unsupported(f"its quantization ({name}) is described in a way that cannot be read: {error!r}") from None
    if not 0 < bits <= 16:
        raise Unsupported(f"its quantization ({name}) names no bit width")
    return bits, options


def _needed(settings: ModelConfig, name: str) -> ModelConfig:
    """The object under `name`. KeyError where there is none."""
    entries = mapping(settings, name)
    if not entries:
        raise KeyError(name)
    return entries


_OUTSIDE = re.compile(r"(lm_head|embed_tokens|embed_out|embeddings?|output|wte|shared)(\.weight)?\$?$")
"""Names, or ends of patterns, of what is no layer of the body: head and embeddings, which most formats leave alone."""


def _mixed(*named: object) -> Options:
    """`mixed` where settings name layers of the body that are quantized otherwise than the others, or not at all: by lists of
    names or patterns, or by mappings of such."""
    names = [str(name) for given in named if isinstance(given, (list, tuple, dict)) for name in given]
    return {"mixed": True} if any(not _OUTSIDE.search(name) for name in names) else {}


def _grouped(q: ModelConfig) -> tuple[float, Options]:
    others = _mixed(q.get("dynamic"), q.get("modules_to_not_convert"), q.get("extra_config"))
    return number(q, "bits", "w_bit"), {"group_size": integer(q, "group_size", "q_group_size", default=-1), **others}


def _bitsandbytes(q: ModelConfig) -> tuple[float, Options]:
    others = _mixed(q.get("llm_int8_skip_modules"))
    if not q.get("load_in_4bit"):
        return 8.0, others
    return 4.0, {
        "type": str(q.get("bnb_4bit_quant_type")),
        "double_quant": bool(q.get("bnb_4bit_use_double_quant")),
        **others,
    }


def _hqq(q: ModelConfig) -> tuple[float, Options]:
    weights = _needed(_needed(q, "quant_config"), "weight_quant_params")
    return number(weights, "nbits"), {"group_size": integer(weights, "group_size", default=-1), **_mixed(q.get("skip_modules"))}


def _compressed_tensors(q: ModelConfig) -> tuple[float, Options]:
    """Bits and group of the first group of layers; `mixed` where another group has other bits, or layers of the body are
    left out."""
    groups = _needed(q, "config_groups")
    weights = [given for name in groups if (given := mapping(mapping(groups, name), "weights"))]
    activations = [given for name in groups if (given := mapping(mapping(groups, name), "input_activations"))]
    first = weights[0]
    options: Options = {"type": str(first.get("type", "int")), "group_size": integer(first, "group_size", default=-1)}
    if activations:
        options["activations"] = integer(activations[0], "num_bits")
    if len({number(each, "num_bits") for each in weights}) > 1:
        options["mixed"] = True
    return number(first, "num_bits"), {**options, **_mixed(q.get("ignore"))}


def _aqlm(q: ModelConfig) -> tuple[float, Options]:
    group = integer(q, "in_group_size")
    return number(q, "num_codebooks") * number(q, "nbits_per_codebook") / group, {"group_size": group}


def _torchao(q: ModelConfig) -> tuple[float, Options]:
    kind = str(_needed(_needed(q, "quant_type"), "default")["_type"])
    width = re.search(r"(\d)weight", kind.lower())
    return float(width.group(1)) if width else 0.0, {"type": kind.removesuffix("Config")}


def _quanto(q: ModelConfig) -> tuple[float, Options]:
    kind = str(q["weights"])
    return float(kind[-1]), {"type": kind}


_READERS: dict[str, Callable[[ModelConfig], tuple[float, Options]]] = {
    "gptq": _grouped,
    "awq": _grouped,
    "auto-round": _grouped,
    "bitsandbytes": _bitsandbytes,
    "hqq": _hqq,
    "compressed-tensors": _compressed_tensors,
    "aqlm": _aqlm,
    "torchao": _torchao,
    "quanto": _quanto,
    "bitnet": lambda q: (1.58, {}),
    "fp8": lambda q: (8.0, {}),
    "fbgemm_fp8": lambda q: (8.0, {}),
    "mxfp4": lambda q: (4.0, {"group_size": 32}),
}
