"""What a cell is called: `gptq 4-bit g64`, then whatever differs from the method's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.engines import ENGINES
from harness.methods.base import Method, Option, running_values
from harness.recipes import UNKNOWN_BITS
from harness.spec import Running, Scheme
from harness.suite import kv_axis, mixed


def flags_of(method: Method, engine: str) -> Mapping[str, Option]:
    """The options of running that a cell in this engine has."""
    return method.running_options if engine == method.engine else ENGINES[engine].flags


def label(method: Method, scheme: Scheme, running: Running, kept: kv_axis.Kept | None = None, recipe: str = "") -> str:
    """`gptq 4-bit g64`, then whatever differs from the method's defaults, of quantizing first and of running last; in another
    engine than the method's own, that one's name before what differs from its defaults. `recipe`: what is said of a recipe of
    one's own."""
    if kept is not None:
        return label(method, scheme, kv_axis.without(running, flags_of(method, running.engine)), None, recipe) + kept.suffix
    values = {**scheme.options, **running_values(running)}
    flags = flags_of(method, running.engine)
    bits = [] if method.unquantized or scheme.bits == UNKNOWN_BITS else [*mixed.words(method, scheme), f"{scheme.bits:g}-bit"]
    parts = [method.name, *bits]
    parts += [] if method.unquantized else _differing(method.options, scheme, values)
    parts += [*mixed.more_words(method, scheme), *([recipe] if recipe else [])]
    parts += [] if running.engine == method.engine else ["in", running.engine]
    parts += [] if method.unquantized and running.engine == method.engine else _differing(flags, scheme, values)
    return " ".join(parts)


def flag_words(running: Running) -> str:
    """What the label of a given checkpoint says of the settings of an engine that is not its method's own."""
    flags = ENGINES[running.engine].flags
    return "".join(f" {word}" for word in _differing(flags, Scheme(method="", bits=0), running_values(running)))


def _differing(options: Mapping[str, Option], scheme: Scheme, values: Mapping[str, Any]) -> list[str]:
    """The words of the options that differ from their defaults, and of those that are always named."""
    parts = []
    for name, option in options.items():
        if name not in values:  # a mixture chooses it by layer
            continue
        value = values[name]
        if name == "group_size":
            if scheme.bits >= 16:  # unquantized: nothing has a scale
                continue
            parts.append({-1: "per-channel", None: "per-channel", 0: "per-layer"}.get(value, f"g{value}"))
        elif value != option.at(scheme.bits) or (option.named and option.applies(scheme.bits)):
            switched_off = value is False or (isinstance(value, (int, float)) and value == 0)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            said = f"{name}={short(value)}" if number else short(value)
            parts.append(name if value is True else f"no-{name}" if switched_off else said)
    return parts


def short(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}:{short(v)}" for k, v in sorted(value.items()))
    return f"{value:g}" if isinstance(value, float) else str(value)
