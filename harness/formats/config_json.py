"""A checkpoint's config.json: read once, and asked for numbers and words by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from harness.errors import BadInput

ModelConfig: TypeAlias = Mapping[str, object]
"""What a config.json holds: the checkpoint's own words, so no value is taken for granted."""


def read(folder: Path) -> dict[str, object]:
    """The config.json in `folder`. BadInput when it is missing, damaged or no object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise BadInput(f"{path}: holds a {type(config).__name__} where a model's configuration is an object")
    return config


def write(config: ModelConfig, folder: Path) -> None:
    """Writes `config` as the config.json of `folder`."""
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def text_part(config: ModelConfig) -> ModelConfig:
    """The part that describes the language model: `text_config` where a model has other parts as well, else all of it."""
    return mapping(config, "text_config") or config


def context(config: ModelConfig) -> int | None:
    """The longest input, in tokens, that the model's positions are made for; None where it names none."""
    said = text_part(config).get("max_position_embeddings")
    return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else None


def architecture(config: ModelConfig) -> str:
    """transformers' class of the model, e.g. "LlamaForCausalLM"; "?" where none is named."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "?"


def integer(config: ModelConfig, *names: str, default: int = 0) -> int:
    """The first of `names` that holds a number other than 0, else `default`."""
    return int(number(config, *names, default=default))


def number(config: ModelConfig, *names: str, default: float = 0.0) -> float:
    """The first of `names` that holds a number other than 0, else `default`."""
    for name in names:
        value = config.get(name)
        if isinstance(value, (int, float)) and value:
            return float(value)
    return default


def mapping(config: ModelConfig, name: str) -> ModelConfig:
    """The object under `name`; empty where there is none."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def words(config: ModelConfig, name: str) -> tuple[str, ...]:
    """The list of words under `name`; empty where there is none."""
    value = config.get(name)
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()
