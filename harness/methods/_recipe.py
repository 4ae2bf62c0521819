"""What rows that take a recipe of one's own share: the library's refusal in its own words, and GPTQModel's `dynamic`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from harness import recipes
from harness.errors import HarnessError, Unsupported, is_out_of_memory
from harness.formats import config_json, safetensors_file
from harness.methods.base import QuantizeRequest, RecipeFile, Refused
from harness.spec import Json

_WORDS = 300
"""Characters of a library's message that are told."""

_REFUSALS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


def explained(quantize: Callable[[QuantizeRequest], None], library: str) -> Callable[[QuantizeRequest], None]:
    """`quantize` that says Unsupported, with the library's words, where the library fails on a scheme with a recipe."""

    @functools.wraps(quantize)
    def with_words(request: QuantizeRequest) -> None:
        recipe = recipes.of(request.scheme)
        try:
            quantize(request)
        except HarnessError:
            raise
        except _REFUSALS as error:
            if recipe is None or is_out_of_memory(error):
                raise
            words = " ".join(f"{type(error).__name__}: {error}".split())
            short = words if len(words) <= _WORDS else f"{words[:_WORDS]} ..."
            raise Unsupported(f"{library} refuses the recipe @{recipe.short}: {short}") from error

    return with_words


def tied(model_dir: Path) -> bool:
    """Whether a model's head is its embedding."""
    said = config_json.read(model_dir)
    return bool(config_json.text_part(said).get("tie_word_embeddings", said.get("tie_word_embeddings", False)))


TIED = (
    "the recipe quantizes the head, which this model ties to its embedding: the artifact would hold it twice, once in each form; "
    "leave lm_head out of it"
)


def dynamic_file(keys: Collection[str]) -> RecipeFile:
    """GPTQModel's `dynamic` as a file: patterns of layers' names, each with what is other there; `-:` before a pattern leaves its
    layers alone. `keys`: what the library reads there; it passes over all else without a word."""

    def check(content: Mapping[str, Json]) -> Refused | None:
        for pattern, said in content.items():
            if not isinstance(said, dict):
                return Refused(key=pattern, words=f"{pattern!r} is a pattern of layers; write {pattern!r}: {{bits: 8}}")
            unknown = [key for key in said if key not in keys]
            if unknown and not pattern.startswith("-:"):
                known = ", ".join(sorted(keys))
                return Refused(key=unknown[0], words=f"GPTQModel takes no notice of {unknown[0]!r} here; it reads {known}")
        return None

    return RecipeFile(key="dynamic", example='"+:.*down_proj": {bits: 8}', check=check)


def note_unmatched(request: QuantizeRequest) -> None:
    """Leaves beside an artifact of GPTQModel which patterns of its recipe match no layer, as the library itself matches them."""
    recipe = recipes.of(request.scheme)
    if recipe is None:
        return
    from gptqmodel.quantization.config import dynamic_get

    layers = {entry.name.rpartition(".")[0] for entry in safetensors_file.stored(request.out_dir)}
    missed = [
        pattern
        for pattern, said in recipe.content.items()
        if all(dynamic_get({pattern: said}, layer) is None for layer in layers)
    ]
    recipes.note(request.out_dir, missed)
