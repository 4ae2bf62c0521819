"""Numbers as sentences write them, with the same digits here and in the page's script.

Rounding is a floor of a product, which IEEE arithmetic gives alike in both languages; their own formatting rounds halves apart.
"""

from __future__ import annotations

import math

THIN = "\u202f"
_POWERS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
_DECIMAL = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_BINARY = (("GiB", 1073741824.0), ("MiB", 1048576.0), ("KiB", 1024.0))


def fixed(value: float, digits: int, *, up: bool = False, above: bool = False) -> str:
    """|value| with `digits` (0 to 6) after the point. `up`: rounded up; `above`: to a number that is larger than it."""
    scaled = abs(value) * _POWERS[digits]
    whole = math.floor(scaled) + 1 if above else math.ceil(scaled) if up else math.floor(scaled + 0.5)
    written = str(int(whole)).rjust(digits + 1, "0")
    head, tail = (written[: len(written) - digits], written[len(written) - digits :])
    return grouped(head) + (f".{tail}" if digits else "")


def grouped(digits: str) -> str:
    """Digits in groups of three, from the right."""
    first = len(digits) % 3
    groups = ([digits[:first]] if first else []) + [digits[i : i + 3] for i in range(first, len(digits), 3)]
    return THIN.join(groups)


def significant(value: float, *, up: bool = False) -> str:
    """|value| with three digits that carry meaning, at most six after the point, without zeros at the end."""
    size = abs(value)
    digits = 0
    while digits < 6 and size * _POWERS[digits] < 100:
        digits += 1
    return trimmed(fixed(value, digits, up=up))


def trimmed(written: str) -> str:
    """Without zeros after the point."""
    return written.rstrip("0").rstrip(".") if "." in written else written


def amount(value: float, *, binary: bool, up: bool = False) -> str:
    """Bytes: 4.12 GB, or GiB."""
    for name, size in _BINARY if binary else _DECIMAL:
        if abs(value) >= size:
            return f"{significant(value / size, up=up)} {name}"
    return f"{fixed(value, 0, up=up)} B"


def duration(value: float, *, up: bool = False) -> str:
    """Seconds: 1.2 s, 41.3 ms."""
    return f"{significant(value, up=up)} s" if abs(value) >= 1 else f"{significant(value * 1000, up=up)} ms"


def rounded_up(count: int) -> int:
    """A count to two digits, upwards: 587 to 590."""
    step = 1
    while count > 100 * step:
        step *= 10
    return -(-count // step) * step
