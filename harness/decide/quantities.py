"""Limits as people write them: `6GiB`, `40ms`, `1pp`, `recovery:1%`, `kl:0.02`. A mistake is answered with what is right."""

from __future__ import annotations

import math
import re

from harness.decide.types import CONFIDENCES, Kind
from harness.errors import BadInput

_BYTES = {
    "b": 1.0,
    **{f"{letter}b": 1000.0**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024.0**power for power, letter in enumerate("kmgt", start=1)},
}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([^\s0-9.]*)\s*", re.ASCII)


def parse_bytes(text: str, option: str) -> tuple[float, bool]:
    """(bytes, whether they were written in a power of two) of `6GiB`, `6GB`, `500 MB`."""
    value, unit = _split(text, option, "a size like 6GiB (1024 x 1024 x 1024 bytes each) or 6GB (1,000,000,000 each)")
    size = _BYTES.get(unit.lower())
    if size is None:
        raise BadInput(f"{option} {text!r}: {_unknown(unit, 'size', 'GiB, MiB, KiB, GB, MB, kB, B')}; write it like 6GiB or 6GB")
    return _positive(value * size, text, option), unit.lower().endswith("ib")


def parse_seconds(text: str, option: str) -> float:
    """Seconds of `40ms`, `1.5s`."""
    value, unit = _split(text, option, "a time like 40ms or 1.5s")
    size = _SECONDS.get(unit.lower())
    if size is None:
        raise BadInput(f"{option} {text!r}: {_unknown(unit, 'time', 's, ms, us')}; write it like 40ms or 1.5s")
    return _positive(value * size, text, option)


def parse_loss(text: str, option: str) -> tuple[Kind, float]:
    """(kind, size in its unit) of `1pp`, `recovery:1%`, `kl:0.02`."""
    forms = "1pp (points of mean accuracy), recovery:1% (of the baseline's accuracy) or kl:0.02 (nats of divergence)"
    name, colon, rest = text.strip().partition(":")
    kind: Kind | None = "pp" if not colon else "recovery" if name == "recovery" else "kl" if name == "kl" else None
    if kind is None:
        raise BadInput(f"{option} {text!r}: there is no loss called {name!r}; write {forms}")
    value, unit = _split(rest if colon else name, option, forms)
    expected = {"pp": "pp", "recovery": "%", "kl": ""}[kind]
    if unit != expected and not (kind == "kl" and unit in {"nat", "nats"}):
        unclear = "" if unit != "%" or kind != "pp" else ": a percentage may be points of accuracy or a share of the baseline's"
        raise BadInput(f"{option} {text!r} has {'no unit' if not unit else f'the unit {unit!r}'}{unclear}; write {forms}")
    return kind, _positive(value, text, option)


def parse_confidence(value: float, option: str) -> float:
    """One of the confidences that limits are made at; 95 stands for 0.95."""
    shared = value / 100 if value > 1 else value
    found = next((c for c in CONFIDENCES if math.isclose(c, shared)), None)
    if found is None:
        raise BadInput(f"{option} {value:g}: limits of a loss are made at {', '.join(f'{c:g}' for c in CONFIDENCES)}; choose one")
    return found


def _split(text: str, option: str, forms: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise BadInput(f"{option} {text!r} is not understood; write {forms}")
    return float(match.group(1)), match.group(2)


def _unknown(unit: str, what: str, known: str) -> str:
    return f"{unit!r} is no unit of {what} (there are {known})" if unit else f"the unit is missing (there are {known})"


def _positive(value: float, text: str, option: str) -> float:
    if not 0 < value < math.inf:
        raise BadInput(f"{option} {text!r} leaves nothing to choose from; give a number above zero")
    return value
