"""The values that a suite writes for an option of a method -> the one that is meant, of which there is one for each meaning, or a
sentence that says how it is written right.

YAML has texts, numbers and truth values, and Python takes `True`, `1` and `1.0` for the same: here they are not, so that equal
cells have one value, and a value of another kind is refused.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from types import NoneType

from harness.methods.base import Option
from harness.spec import OptionValue
from harness.suite.mistakes import shown

_FEW = 8
"""So many values are listed beside the one that is meant."""

_TRUE, _FALSE = ("true", "yes", "on", "1", "y"), ("false", "no", "off", "0", "n")


def same(one: object, other: object) -> bool:
    """Whether two values are equal and of one kind: `4` and `4.0` are, `1` and `true` are not."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def value(option: Option, name: str, written: object) -> OptionValue:
    """The option's value that is meant: one of its choices, or of its default's type. ValueError with the sentence."""
    if not isinstance(written, (bool, int, float, str, NoneType)):
        raise ValueError(f"{name}: {shown(written)} is neither a number nor a text")
    if isinstance(written, float) and not math.isfinite(written):
        raise ValueError(f"{name}: {written} is no number that can be used; write {name}: {shown(option.default)}")
    if (meant := channel(option, name, written)) is not None:
        return meant
    if option.choices is None:
        return _within(option, name, _of_the_kind(option, name, written))
    for choice in option.choices:
        if same(choice, written):
            return choice
    raise ValueError(f"{name}: {refusal(option.choices, name, written)}")


CHANNEL, WHOLE = "channel", -1
"""`group_size: channel`: all weights of an output channel share one scale, which methods call -1."""


def channel(option: Option, name: str, written: object) -> OptionValue:
    """What `channel` means as a group size; None for all else. ValueError where the method has no such groups."""
    if name != "group_size" or written != CHANNEL:
        return None
    if WHOLE in (option.choices or ()):
        return WHOLE
    sizes = ", ".join(plain(size) for size in option.choices or () if size is not None)
    raise ValueError(f"{name}: channel is not offered: this method's groups are smaller than a channel; write one of {sizes}")


def refusal(choices: Sequence[object], name: str, written: object) -> str:
    """Why a value is none of the choices, and which one is meant, or which there are."""
    meant = _meant(choices, written)
    if meant is not None and isinstance(written, str) and not isinstance(meant, str):
        return f"{shown(written)} is a text; write {name}: {shown(meant)}, without quotes"
    if meant is not None and isinstance(meant, bool):
        return f"{shown(written)} is neither true nor false; write {name}: {shown(meant)}"
    words = [CHANNEL if name == "group_size" and same(choice, WHOLE) else plain(choice) for choice in choices]
    takes = f"it takes {', '.join(words)}"
    if meant is None:
        return f"{shown(written)} is not one of its values; {takes}"
    also = f"; {takes}" if len(choices) <= _FEW else ""
    return f"{shown(written)} is not one of its values; did you mean {name}: {plain(meant)}?{also}"


def plain(choice: object) -> str:
    """A value as YAML takes it: a text that is one without quotes stands without them."""
    return choice if isinstance(choice, str) and choice else shown(choice)


def _meant(choices: Sequence[object], written: object) -> object:
    """The choice that a value of another kind or spelling means; None where that cannot be told."""
    truth = [choice for choice in choices if isinstance(choice, bool)]
    text = str(written).strip().lower()
    for choice in choices:
        if plain(choice).lower() == text:
            return choice
    for right, words in ((True, _TRUE), (False, _FALSE)):
        if text in words and right in truth:
            return right
    near = {choice.lower(): choice for choice in choices if isinstance(choice, str)}
    found = difflib.get_close_matches(text, near, n=1, cutoff=0.6) if isinstance(written, str) else []
    return near[found[0]] if found else None


def _within(option: Option, name: str, value: OptionValue) -> OptionValue:
    """The value, unless it is a number that the method's library refuses, or changes without a word."""
    if option.within is None or not isinstance(value, (int, float)) or value in option.within:
        return value
    raise ValueError(f"{name}: {value:g} is no number {option.within}; write {name}: {option.default:g}")


def _of_the_kind(option: Option, name: str, written: OptionValue) -> OptionValue:
    """A value of an option without choices, in its default's type."""
    default = option.default
    kinds = option.types or ((type(default),) if default is not None else ())
    number = isinstance(written, (int, float)) and not isinstance(written, bool)
    if number and isinstance(default, float):
        return float(written or 0)
    if isinstance(written, float) and isinstance(default, int) and written.is_integer() and float not in kinds:
        return int(written)
    if not kinds or (isinstance(written, kinds) and (bool in kinds or not isinstance(written, bool))):
        return written
    wanted = (
        "a number" if float in kinds else "a whole number" if int in kinds else "true or false" if bool in kinds else "a text"
    )
    raise ValueError(f"{name}: {shown(written)} is not {wanted}; write {name}: {shown(default)}")
