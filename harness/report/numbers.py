"""How numbers are written for people: by unit, with as many digits as carry meaning, and an interval in the same digits.

One place, used by tables, hover texts, axes and the terminal, so that the same number reads the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MINUS = "\u2212"
DASH = "\u2013"
THIN = "\u202f"

_BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
_LABELS = {"1": "", "nat": "nats", "bit": "bits", "bit/weight": "bits/weight", "x": "×", "bit/byte": "bits/byte", "verdict": ""}
VERDICTS = {1.0: "within", -1.0: "worse", 0.0: "undecided"}
"""Values of the unit "verdict" (`probes/sequential.py`) as words."""
_SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
_JOULES = (("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """A unit as shown: stored value x `factor` in `label`, at least `decimals` digits after the point (None: significant)."""

    factor: float
    label: str
    decimals: int | None = None


def display(unit: str, values: Iterable[float]) -> Display:
    """How to show values of one unit together (one column, one axis): the prefix follows the median magnitude."""
    finite = sorted(abs(v) for v in values if math.isfinite(v) and v != 0)
    middle = finite[len(finite) // 2] if finite else 1.0
    if unit in {"B", "bytes"}:
        name, size = next((pair for pair in _BYTES if middle >= pair[1]), _BYTES[-1])
        return Display(factor=1 / size, label=name, decimals=0 if name == "B" else None)
    if unit in {"s", "seconds", "J"}:
        prefixes = _JOULES if unit == "J" else _SECONDS
        name, size = next((pair for pair in prefixes if middle >= pair[1]), prefixes[-1])
        return Display(factor=1 / size, label=name)
    if unit in {"fraction", "share"}:
        return Display(factor=100.0, label="%", decimals=1)
    if unit == "points":
        return Display(factor=1.0, label="points", decimals=1)
    if unit in {"count", "items", "tokens"}:
        return Display(factor=1.0, label=unit, decimals=0)
    if unit == "p":
        return Display(factor=1.0, label="p")
    return Display(factor=1.0, label=_LABELS.get(unit, unit))


def show(value: float | None, unit: str, how: Display | None = None, *, signed: bool = False) -> str:
    """The number with its unit's own notation, without the unit: 92.48, 61.2, 0.0031, < 0.001, -1.4."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: f"{MINUS}∞"}.get(value, "not a number")
    if unit == "verdict":
        return VERDICTS.get(value, "not a verdict")
    how = how or display(unit, [value])
    if how.label == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    scaled = value * how.factor
    return _decimal(scaled, _digits(scaled) if how.decimals is None else how.decimals, signed)


def show_interval(low: float | None, high: float | None, unit: str, how: Display, *, value: float, signed: bool = False) -> str:
    """`low to high` in the digits of its value; empty where there is no interval."""
    if low is None or high is None or low == high or not all(map(math.isfinite, (low, high, value))):
        return ""
    digits = how.decimals if how.decimals is not None else _digits(value * how.factor)
    return f"{_decimal(low * how.factor, digits, signed)} to {_decimal(high * how.factor, digits, signed)}"


def with_unit(number: str, how: Display) -> str:
    """`61.2 %`, `4.13 bits`; a number without unit stays alone."""
    if not number or not how.label or how.label == "p":
        return number
    return f"{number}{THIN}%" if how.label == "%" else f"{number} {how.label}"


def _digits(value: float) -> int:
    """Digits after the point that leave four significant ones, at most 6."""
    if value == 0:
        return 0
    return max(0, min(6, 3 - math.floor(math.log10(abs(value)))))


def _decimal(value: float, digits: int, signed: bool) -> str:
    written = f"{abs(value):,.{digits}f}".replace(",", THIN)
    zero = not any(c in "123456789" for c in written)
    if zero:
        return f"±{written}" if signed and value != 0 and digits else written
    return (MINUS if value < 0 else "+" if signed else "") + written
