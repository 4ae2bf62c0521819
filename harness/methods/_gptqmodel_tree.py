"""Which layers of an architecture GPTQModel quantizes, read from the text of the library: its definitions say it in literals, and
importing it takes ten seconds and starts threads, which `plan` must not.

A definition is a tree of names: `["model", "layers", "#", {"self_attn": ("q_proj:0", "o_proj:1"), "mlp|ffn:moe": {"gate":
("gate:!",), "experts": {"#": ("up_proj|w3:0",)}}}]`. `#` is a number, `|` stands between other names of the same, `:!` after what
is left alone. The library takes the experts of a mixture out of the one parameter that transformers holds them in, by the names
in its tree.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.artifact import BodyWeight

_Tree = list[object] | dict[str, object]


def taken(kind: str) -> Callable[[BodyWeight], bool] | None:
    """Whether the library quantizes a weight of a model of this `model_type`; None where its text does not say."""
    pattern = _pattern(kind)
    if pattern is None:
        return None
    known = re.compile(pattern)

    def takes(weight: BodyWeight) -> bool:
        inner = re.sub(r"^.*?\.\d+\.", "", weight.name)  # within its block: checkpoints differ in what stands before
        if weight.kind != "experts":
            return weight.kind != "other" and known.fullmatch(inner) is not None
        place, _, name = inner.rpartition(".")
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(name, ())
        return bool(parts) and all(known.fullmatch(f"{place}.0.{part}") for part in parts)

    return takes


@functools.cache
def _pattern(kind: str) -> str | None:
    """A regular expression for the names within a block of the layers that are quantized."""
    package = importlib.util.find_spec("gptqmodel")
    if package is None or package.origin is None:
        return None
    models = Path(package.origin).parent / "models"
    try:
        name = _class_of(kind, models / "auto.py")
        tree = None if name is None else _attribute(name, "module_tree", models / "definitions")
    except (OSError, SyntaxError, ValueError):
        return None
    if not isinstance(tree, list):
        return None
    leaves = [leaf for leaf in _leaves(tree) if leaf]
    return "|".join(f"(?:{leaf})" for leaf in leaves) or None


def _class_of(kind: str, file: Path) -> str | None:
    """The name of the class that the library's table gives to a model type."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and _named(node.targets[0]) == "MODEL_MAP":
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == kind:
                    return _named(value)
    return None


def _attribute(name: str, wanted: str, folder: Path) -> object:
    """A literal that a class of the definitions or one of its bases binds; None where none does."""
    for file in sorted(folder.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if f"class {name}(" not in text:
            continue
        node = next(n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == name)
        for statement in node.body:
            if isinstance(statement, ast.Assign) and _named(statement.targets[0]) == wanted:
                return ast.literal_eval(statement.value)
        bases = [base for base in map(_named, node.bases) if base]
        return next((value for base in bases if (value := _attribute(base, wanted, folder)) is not None), None)
    return None


def _named(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _leaves(tree: list[object]) -> Iterator[str]:
    """Patterns of the leaves after the first `#`, the block's own number."""
    inside = tree[tree.index("#") + 1 :] if "#" in tree else []
    for part in inside:
        yield from _below(part, "")


def _below(part: object, before: str) -> Iterator[str]:
    if isinstance(part, str):
        names, left = _names(part)
        if not left:
            yield before + names
    elif isinstance(part, dict):
        for key, value in part.items():
            names, left = _names(str(key))
            # A leaf that repeats its place ("gate": ("gate:!",)) is the place itself.
            for item in value if isinstance(value, (tuple, list)) else (value,):
                own, _ = _names(item) if isinstance(item, str) else ("", False)
                start = before if own in (names, "") and isinstance(item, str) else f"{before}{names}\\."
                if not left:
                    yield from _below(item, start if names else before)
    elif isinstance(part, (tuple, list)):
        for item in part:
            yield from _below(item, before)


def _names(word: str) -> tuple[str, bool]:
    """The pattern of one name in a tree, and whether it is left alone."""
    names, *flags = word.split(":")
    alternatives = [r"\d+" if name == "#" else re.escape(name) for name in names.split("|")]
    return (f"(?:{'|'.join(alternatives)})" if len(alternatives) > 1 else alternatives[0]), "!" in flags
