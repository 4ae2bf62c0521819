"""The quantization that a checkpoint's config.json names, and the format that it is in."""

from __future__ import annotations

from collections.abc import Mapping

from harness.spec import Json


def entry(config: Mapping[str, Json]) -> Mapping[str, Json] | None:
    """The quantization entry of a config.json, or None when the checkpoint is not quantized."""
    found = config.get("quantization_config") or config.get("compression_config")
    return found if isinstance(found, dict) else None


def format_of(quantization: Mapping[str, Json]) -> str:
    """The format's name, e.g. "gptq"; "?" when the entry names none."""
    named = quantization.get("quant_method")
    if named is None and ("load_in_4bit" in quantization or "load_in_8bit" in quantization):
        named = "bitsandbytes"
    return str(named or "?")
