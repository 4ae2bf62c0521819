"""AutoRound's `scheme` and `layer_config` as a file, and what GPTQModel is told of the artifact that comes of them.

The artifact is in the GPTQ format, whose export stores the zero point 0 as 1: what is not symmetric, not of integers, or rounds
activations is refused before the library is asked. Which layer got which bits and groups is read from the artifact.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness import recipes
from harness.errors import Unsupported
from harness.formats import gptq_file
from harness.methods import _recipe
from harness.methods.base import QuantizeRequest, RecipeFile, Refused
from harness.models import body, build
from harness.spec import Json

KEYS = ("scheme", "layer_config", "ignore_layers")
_PRESET = re.compile(r"W[2-8]A16", re.IGNORECASE)
_ALLOWED: dict[str, tuple[object, ...]] = {"sym": (True,), "data_type": ("int",), "act_bits": (16,)}


def check(content: Mapping[str, Json]) -> Refused | None:
    """Why a file is not handed to the library, or None."""
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        return Refused(key=unknown[0], words=f"{unknown[0]!r} is none of {', '.join(KEYS)}; write {EXAMPLE}")
    if not isinstance(content.get("ignore_layers", ""), str):
        return Refused(key="ignore_layers", words="ignore_layers is one text, names with commas between them")
    layers = content.get("layer_config", {})
    if not isinstance(layers, dict):
        return Refused(key="layer_config", words=f"layer_config is a mapping of layers; write {EXAMPLE}")
    for key, said in (("scheme", content.get("scheme", "W4A16")), *layers.items()):
        why = _unlike_the_format(said)
        if why is not None:
            return Refused(key=key, words=why)
    return None


def _unlike_the_format(said: Json) -> str | None:
    """Why the GPTQ format does not hold what a layer is to be, or None."""
    if isinstance(said, dict):
        named = said.get("scheme")
        wrong = next((name for name, taken in _ALLOWED.items() if name in said and said[name] not in taken), None)
        if wrong is not None and int(_number(said.get("bits"))) < 16:
            return f"{wrong}: {said[wrong]!r} cannot be stored in the GPTQ format that this artifact is in; leave {wrong} out"
        return None if named is None else _unlike_the_format(named)
    if isinstance(said, str) and _PRESET.fullmatch(said):
        return None
    return f"{said!r} is no scheme that the GPTQ format holds; write W2A16 to W8A16, or {{bits: 4, group_size: 128}}"


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


EXAMPLE = "layer_config: {down_proj: {bits: 8}}"
FILE = RecipeFile(key="scheme_file", example=EXAMPLE, check=check, whole=True, beside=("iters", "opt_rtn"))


def settings(request: QuantizeRequest) -> dict[str, Any]:
    """What GPTQModel is told: bits and groups of most layers, and what single ones have instead, as the file holds them."""
    read = gptq_file.Reader(request.out_dir)
    held = {layer: (read.bits(layer), _named(read.group(layer), read.shape(layer)[1])) for layer in read.layers}
    bits, group = Counter(held.values()).most_common(1)[0][0]
    other = {
        f"+:^{re.escape(layer)}$": {"bits": own, "group_size": groups}
        for layer, (own, groups) in held.items()
        if (own, groups) != (bits, group)
    }
    weights = body.of_model(build.hollow(request.model_dir)[0])
    left: dict[str, dict[str, int]] = {f"-:^{re.escape(weight.name)}$": {} for weight in weights if weight.name not in held}
    return {"bits": bits, "group_size": group, "dynamic": {**left, **other}}


def _named(group: int, inputs: int) -> int:
    """A group size as GPTQModel knows it: -1 for a whole channel of no usual size."""
    return -1 if group == inputs and group not in (16, 32, 64, 128, 256, 512, 1024) else group


def arguments(request: QuantizeRequest) -> dict[str, Json] | None:
    """The file's content as arguments of AutoRound; None for a scheme without one. Unsupported where it names a tied head."""
    recipe = recipes.of(request.scheme)
    if recipe is None:
        return None
    if _recipe.tied(request.model_dir) and any("lm_head" in name for name in recipe.content.get("layer_config", {})):
        raise Unsupported(_recipe.TIED)  # the library would leave it as it is, with a line in its log
    return recipe.content
