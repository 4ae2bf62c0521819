"""How far a model's layers look back, and where its positions change their meaning: read off a configuration.

Scoring asks before it packs inputs into one row or into one batch, exports ask before they write a mask. Ask about a
configuration that transformers has loaded, or one that `complete` has filled: a class has defaults that its config.json need not
name (Mistral's window of 4,096 tokens).
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.formats.config_json import ModelConfig, integer, mapping, text_part, words

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PLAIN_LAYERS = frozenset({"full_attention", "attention"})
"""Kinds of layers that see every earlier token through keys and values."""

KV_LAYERS = PLAIN_LAYERS | {"sliding_attention", "chunked_attention"}
"""Kinds of layers that see earlier tokens through keys and values."""

_WINDOW = re.compile(r"window|chunk|span|local_att|look_?back|block_size|floor_scale")
"""Names of settings after whose number of tokens attention changes: sliding and local windows, chunks, and the length at which
Llama 4 sharpens attention. A name too many costs speed, one too few costs a proof."""

_NO_WINDOW = re.compile(r"max_window_layers|pattern|num_|layers|indexes|indices|feed_forward|mamba|conv|image|vision|audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRules:
    """`windows`: tokens after which attention changes, by the name of the setting. `other_layers`: kinds of layers that keep no
    keys and values. `alibi`: whether distances are biases. `rope`: rotary positions that change with the length of the input
    (`dynamic`, `longrope`), or ''; they are the plain ones up to `original` tokens."""

    windows: Mapping[str, int]
    other_layers: tuple[str, ...]
    alibi: bool
    rope: str
    original: int

    @property
    def edges(self) -> tuple[int, ...]:
        """Lengths after which some rule acts, in tokens, ascending."""
        return tuple(sorted({*self.windows.values(), *((self.original,) if self.rope else ())}))

    def side(self, length: int) -> int:
        """Inputs of the same side get the same rotary positions in one batch, whichever of them is the longest.

        `longrope` takes the long factors for a whole batch whose longest input is beyond `original`, `dynamic` stretches all of
        it to its longest input (transformers' `dynamic_rope_update`)."""
        if not self.rope or length <= self.original:
            return 0
        return 1 if self.rope == "longrope" else length


def of(config: ModelConfig) -> AttentionRules:
    """The rules of a complete configuration; of one with several parts, those of its language model."""
    text = text_part(config)
    layers = words(text, "layer_types")
    rope, original = _changing_rope(text)
    attention = [value for name, value in text.items() if "att" in name and isinstance(value, dict)]  # MPT nests it
    return AttentionRules(
        windows=dict(_windows(text, layers)),
        other_layers=tuple(sorted(set(layers) - KV_LAYERS)),
        alibi=any(bool(part.get("alibi")) for part in (text, *attention)),
        rope=rope,
        original=original,
    )


def of_loaded(config: PreTrainedConfig) -> AttentionRules:
    """The rules of a configuration that transformers has loaded."""
    text = config.get_text_config()
    return of({**text.to_dict(), "layer_types": getattr(text, "layer_types", None)})  # a property, in some classes


def _windows(text: ModelConfig, layers: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    local = words(text, "attention_layers")  # GPT-Neo's kinds of layers
    for name, value in text.items():
        if not _WINDOW.search(name) or _NO_WINDOW.search(name):
            continue
        if "sliding" in name and (text.get("use_sliding_window") is False or (layers and "sliding_attention" not in layers)):
            continue
        if "chunk" in name and layers and "chunked_attention" not in layers:
            continue
        if name == "window_size" and local and "local" not in local:
            continue
        sizes = value if isinstance(value, (list, tuple)) else [value]
        tokens = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and size > 0]
        if tokens:
            yield name, min(tokens)


def _changing_rope(text: ModelConfig) -> tuple[str, int]:
    """(kind, tokens up to which positions are plain) of rotary positions that change with the length; ('', 0) of others."""
    given = mapping(text, "rope_parameters") or mapping(text, "rope_scaling")
    for part in (given, *(value for value in given.values() if isinstance(value, dict))):  # some have one per kind of layer
        kind = str(part.get("rope_type", part.get("type", "")))
        if kind == "longrope" or "dynamic" in kind:
            name = "original_max_position_embeddings"
            original = integer(part, name) or integer(text, name, "max_position_embeddings")
            return ("longrope" if kind == "longrope" else "dynamic"), original
    return "", 0


# ---- class defaults, for decisions without torch ----


def complete(config: ModelConfig) -> ModelConfig:
    """A config.json with the defaults of its class, which transformers would fill in. They are read as text from the installed
    package, which is not imported: that takes seconds, and torch. Where nothing is installed, `config` as it is."""
    filled = {**_defaults(str(config.get("model_type", ""))), **config}
    text = mapping(config, "text_config")
    return {**filled, "text_config": {**_defaults(str(text.get("model_type", ""))), **text}} if text else filled


@cache
def _defaults(model_type: str) -> Mapping[str, object]:
    """The plain values that the configuration class of a type of models names: numbers, words, True, False, None."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None or not re.fullmatch(r"[a-z0-9_]+", model_type):
        return {}
    for folder in (model_type, model_type.removesuffix("_text")):
        path = Path(spec.origin).parent / "models" / folder / f"configuration_{folder}.py"
        if path.is_file():
            return _class_values(ast.parse(path.read_text(encoding="utf-8")), model_type)
    return {}


def _class_values(module: ast.Module, model_type: str) -> dict[str, object]:
    for node in module.body:
        if not isinstance(node, ast.ClassDef):
            continue
        values: dict[str, object] = {}
        for line in node.body:
            if not isinstance(line, (ast.Assign, ast.AnnAssign)):
                continue
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            for target in targets:
                if isinstance(target, ast.Name) and isinstance(line.value, ast.Constant):
                    values[target.id] = line.value.value
        if values.get("model_type") == model_type:
            return values
    return {}
