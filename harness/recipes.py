"""Recipes of one's own: settings in a library's own words, which a scheme carries as they are, and what is noted of them.

A recipe is a file beside a suite (suite/recipe.py reads it). The scheme holds its content as one JSON text, because the order of
its keys can matter to the library: the first pattern that matches a layer decides. The text is in the scheme's identity; the
file's name is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.files import write_atomically
from harness.spec import Json, Scheme

RECIPE = "recipe"
"""The option of a scheme that holds a recipe."""

FILE = "recipe.json"
"""Beside an artifact, as a note of the harness: what the library found for the recipe's patterns."""

UNKNOWN_BITS = 0.0
"""Bits of a scheme whose recipe alone says them, where the suite writes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`text`: the content as JSON, keys in the order of the file; `digest`: its SHA-256."""

    text: str
    digest: str

    @property
    def content(self) -> dict[str, Json]:
        """The content anew, so that a library may change it."""
        content: dict[str, Json] = json.loads(self.text)
        return content

    @property
    def short(self) -> str:
        """The digest as labels have it."""
        return self.digest[:8]


def made(content: Mapping[str, Json]) -> Recipe:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Recipe(text=text, digest=hashlib.sha256(text.encode()).hexdigest())


def option(recipe: Recipe) -> Json:
    """A recipe as the option of a scheme."""
    return {"text": recipe.text, "digest": recipe.digest}


def of(scheme: Scheme) -> Recipe | None:
    """The recipe that a scheme is made by; None for one without, and where something else stands under that name."""
    said = scheme.options.get(RECIPE)
    if not isinstance(said, Mapping) or not all(isinstance(said.get(name), str) for name in ("text", "digest")):
        return None
    return Recipe(text=said["text"], digest=said["digest"])


def note(folder: Path, unmatched: Iterable[str]) -> None:
    """Leaves beside an artifact the patterns of its recipe that match no layer of the model."""
    write_atomically(folder / FILE, json.dumps({"unmatched": list(unmatched)}))


def unmatched(folder: Path) -> tuple[str, ...]:
    """The patterns that match no layer, as `note` left them; none where nothing was noted."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    return tuple(map(str, json.loads(text)["unmatched"]))
