"""llm-compressor's recipes as files: what of them is refused before the library is asked, and what the library is kept from.

The library builds modifiers by name from its own registry, and passes over whatever is not `NAME_stage: {NAME_modifiers: {...}}`.
Its registry of observers imports a Python file where a name holds a colon, and its pruning modifiers evaluate an expression: a
recipe can reach neither here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn
from unittest import mock

from harness.methods.base import RecipeFile, Refused
from harness.spec import Json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXAMPLE = "quant_stage: {quant_modifiers: {QuantizationModifier: {targets: [Linear], ignore: [lm_head], scheme: W4A16}}}"
_PRUNING = ("Pruning", "SparseGPT")


def check(content: Mapping[str, Json]) -> Refused | None:
    """Why a recipe is not handed to the library, or None."""
    for stage, groups in content.items():
        if not stage.endswith("_stage") or not isinstance(groups, dict):
            return _passed_over(stage)
        for group, modifiers in groups.items():
            if not group.endswith("_modifiers") or not isinstance(modifiers, dict):
                return _passed_over(group)
            for name, said in modifiers.items():
                refused = _modifier(name, said)
                if refused is not None:
                    return refused
    return None


def _passed_over(key: str) -> Refused:
    return Refused(key=key, words=f"LLM Compressor passes over {key!r} without a word; it reads {EXAMPLE}")


def _modifier(name: str, said: Json) -> Refused | None:
    if not isinstance(said, dict):
        return Refused(key=name, words=f"{name} is a modifier; write its settings as a mapping: {name}: {{targets: [Linear]}}")
    if any(part in name for part in _PRUNING):
        return Refused(key=name, words=f"{name} takes weights away, and cells here are quantized only; leave it out")
    key = _names_code(said)
    return (
        None
        if key is None
        else Refused(key=key, words=f"{key} names a Python file, and a recipe brings no code; name a known one")
    )


def _names_code(value: Json, key: str = "") -> str | None:
    """The key of a value that the library would import a file for: the name of an observer with a colon in it."""
    if isinstance(value, dict):
        return next((found for own, below in value.items() if (found := _names_code(below, own)) is not None), None)
    if isinstance(value, list):
        return next((found for below in value if (found := _names_code(below, key)) is not None), None)
    return key if isinstance(value, str) and ":" in value and ("observer" in key or ".py:" in value) else None


FILE = RecipeFile(key="recipe", example=EXAMPLE, check=check, whole=True)


@contextmanager
def without_code() -> Iterator[None]:
    """Inside, the library's registries import no file."""

    def refuse(module_path: str, value_name: str) -> NoReturn:
        raise ValueError(f"{value_name} of {module_path}: a recipe brings no code")

    with mock.patch("compressed_tensors.registry.registry._import_and_get_value_from_module", refuse):
        yield


def rounds_activations(model: PreTrainedModel) -> bool:
    """Whether a layer of the quantized model rounds its inputs or outputs while it runs."""
    schemes = [scheme for module in model.modules() if (scheme := getattr(module, "quantization_scheme", None)) is not None]
    return any(scheme.input_activations is not None or scheme.output_activations is not None for scheme in schemes)


def quantizes_head(model: PreTrainedModel) -> bool:
    """Whether the head's weight got a scheme."""
    scheme = getattr(model.get_output_embeddings(), "quantization_scheme", None)
    return scheme is not None and scheme.weights is not None
