"""A recipe of one's own, read when a suite is planned: `gptq: {dynamic: mine.yaml}`, in the library's own words.

The file lies under the suite's folder, or at the absolute path that the suite writes. It is somebody else's text: `safe_load`, at
most MOST_BYTES, plain data only (mappings with texts for keys, lists, texts, numbers, truth values, null), no anchors, no key
twice. What the library makes of it the library says; here is refused what it would pass over without a word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from harness import recipes
from harness.errors import BadInput
from harness.methods import METHODS
from harness.methods.base import Method, RecipeFile
from harness.recipes import RECIPE, UNKNOWN_BITS
from harness.spec import Scheme
from harness.suite import mistakes
from harness.suite.file import SuiteFile

MOST_BYTES = 1 << 16
MOST_DEPTH = 16
_NAME = 24
"""Characters of a file's name that a label shows."""

Axes = Mapping[str, Sequence[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A scheme with its recipe, and what a label says of it: `by mine@1a2b3c4d`."""

    scheme: Scheme
    words: str


def key_of(method: Method) -> str:
    """How a suite names the recipe of this method; '' where it takes none."""
    return "" if method.recipe is None else method.recipe.key


def check(method: Method, axes: Axes, where: str) -> None:
    """BadInput where a recipe is said of a method that takes none, or stands beside what it says itself."""
    rows = {row.recipe.key: name for name, row in METHODS.items() if row.recipe is not None}
    for key in axes:
        if key in rows and key != key_of(method) and key not in method.options:
            raise BadInput(f"{where}: {method.name} takes no {key}: it belongs to {_takers(key)}")
    file = method.recipe
    if file is None or file.key not in axes:
        return
    if "target_bits" in axes:
        raise BadInput(f"{where}: {method.name}: {file.key} and target_bits both choose widths by layer; keep one")
    if file.whole and (others := [name for name in axes if name in method.options and name not in file.beside]):
        raise BadInput(
            f"{where}: {method.name}: {file.key} says all of the scheme, so {others[0]} means nothing beside it; write it in the "
            "recipe"
        )


def _takers(key: str) -> str:
    return ", ".join(name for name, row in METHODS.items() if key_of(row) == key)


def bits(method: Method, axes: Axes, where: str) -> Sequence[object] | None:
    """The bits of an entry's cells where its recipe alone says them: as the entry writes them, or unknown; None for all
    others. BadInput for what is no width."""
    if method.recipe is None or not method.recipe.whole or method.recipe.key not in axes:
        return None
    for width in axes.get("bits", ()):
        if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= 16:
            raise BadInput(
                f"{where}: {method.name}: bits: {mistakes.shown(width)} is no bit width; leave it out, and the bits of "
                f"{method.recipe.key} are read back from the artifact"
            )
    return axes.get("bits", [UNKNOWN_BITS])


def applied(method: Method, plain: Scheme, given: Mapping[str, object], suite: SuiteFile, where: str) -> Written:
    """The scheme with the recipe that `given` names, or as it was. BadInput for a file that cannot be a recipe."""
    file = method.recipe
    if file is None or file.key not in given:
        return Written(scheme=plain, words="")
    name = given[file.key]
    if not isinstance(name, str) or not name:
        raise BadInput(f"{where}: {method.name}: {file.key}: {mistakes.shown(name)} is no file; write {file.key}: mine.yaml")
    path = _place(name, suite.folder, f"{where}: {method.name}: {file.key}")
    made = recipes.made(_content(path, file))
    options = {name: value for name, value in plain.options.items() if not file.whole or name in file.beside}
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)[:_NAME]
    scheme = Scheme(method=plain.method, bits=plain.bits, options={**options, RECIPE: recipes.option(made)})
    return Written(scheme=scheme, words=f"by {stem}@{made.short}")


def _place(name: str, folder: Path, said: str) -> Path:
    """The file that is meant. A relative one that leads out of the suite's folder is refused, through a link too."""
    path = Path(name)
    if not path.is_absolute():
        path = folder / path
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{said}: {name!r} lies outside of the suite's folder; move it there, or write its absolute path")
    if not path.is_file():
        raise BadInput(f"{said}: {path} is no file; a relative name counts from the suite's folder")
    return path


def _content(path: Path, file: RecipeFile) -> dict[str, object]:
    """What the file says. BadInput with file and line where it is no recipe of this kind."""
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_node(path, node, 0)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadInput(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise BadInput(f"{path}: nested too deep for a recipe; write at most {MOST_DEPTH} levels") from None
    except ValueError as error:  # a date that is none, an integer of too many digits
        raise BadInput(f"{path}: holds a value that cannot be read ({error})") from None
    if again := mistakes.twice(node):
        key, first, second = again
        raise BadInput(f"{path}, line {second}: {key!r} is written twice, first in line {first}; keep one")
    if not isinstance(data, dict) or not data:
        raise BadInput(f"{path}, line 1: a recipe is a mapping; write {file.example}")
    why = file.check(data)
    if why is not None:
        raise BadInput(f"{path}, line {_line(node, why.key)}: {why.words}")
    return data


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise BadInput(f"{path}, line 1: a recipe has at most {MOST_BYTES // 1024} KiB, and this file has more")
        return raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as text ({error})") from None


_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}


def _check_node(path: Path, node: yaml.Node | None, depth: int, seen: set[int] | None = None) -> None:
    """BadInput for what is no plain data, before anything is made of it."""
    if node is None:
        return
    seen = set() if seen is None else seen
    place = f"{path}, line {node.start_mark.line + 1}"
    if id(node) in seen:  # an alias: it can grow without end
        raise BadInput(f"{place}: a recipe takes no anchors (&) and no aliases (*); write it out")
    seen.add(id(node))
    if depth > MOST_DEPTH:
        raise BadInput(f"{place}: nested deeper than {MOST_DEPTH} levels")
    if node.tag not in _PLAIN:
        raise BadInput(
            f"{place}: {node.tag.removeprefix('tag:yaml.org,2002:')!r} is no plain data; a recipe holds texts, numbers, true, "
            "false, null, lists and mappings"
        )
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise BadInput(f"{path}, line {key.start_mark.line + 1}: {_brief(key)} is a key and no text; write it in quotes")
            _check_node(path, key, depth + 1, seen)
            _check_node(path, value, depth + 1, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_node(path, item, depth + 1, seen)
    elif node.tag.endswith(":float") and not math.isfinite(float(yaml.safe_load(node.value))):
        raise BadInput(f"{place}: {node.value} is no number that can be used")


def _brief(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"


def _line(node: yaml.Node | None, key: str) -> int:
    """The line of a key, wherever it stands first; 1 where it stands nowhere."""
    todo = [node]
    while todo:
        at = todo.pop(0)
        if isinstance(at, yaml.MappingNode):
            for own, value in at.value:
                if own.value == key:
                    return int(own.start_mark.line) + 1
                todo.append(value)
        elif isinstance(at, yaml.SequenceNode):
            todo += at.value
    return 1
