"""Frozen types from JSON: the inverse of `spec.to_json` for every dataclass whose fields say what they hold.

    decode(Record, json.loads(line))

Understood are dataclasses, unions of dataclasses that a text in their field `kind` tells apart, `tuple[X, ...]`,
`Mapping[str, X]`, `Literal` of texts, `X | None`, unions of plain types, text, numbers, `bool`, `Path`
(written as text), and `Any` for plain data, which is passed on as it is. A float may be written as an integer, or as "nan", "inf"
or "-inf". A field with a default may be missing, so that a type can grow without making older files unreadable; any other
difference raises `DecodeError`, which says where it stands and what was expected there.

Each type is looked at once: what it says becomes a tree of functions that later calls reuse. Standard library only, because
children import this in environments that have none of our dependencies.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from harness.spec import to_json

T = TypeVar("T")

_NONFINITE = ("nan", "inf", "-inf")


class DecodeError(ValueError):
    """Data that is not what its type says. `path` is where, as in `cell.origin.scheme.bits` or `measurements[2].value`, or
    '' for all of it; `problem` is what was expected there and what stands there instead."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.problem = problem
        self.path = path

    def inside(self, place: str | int) -> DecodeError:
        """The same error, seen from the object or list that holds the place."""
        step = f"[{place}]" if isinstance(place, int) else place
        between = "." if self.path and not self.path.startswith("[") else ""
        return DecodeError(self.problem, f"{step}{between}{self.path}")


def decode(cls: type[T], data: object) -> T:
    """The value of type `cls` that plain data describes, as `json.loads` returns it. DecodeError where it describes none."""
    return cast(T, _rule(cast(Any, cls)).convert(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """How one type is read. Values whose type is in `as_is` need no conversion; all others are given to `convert`."""

    as_is: frozenset[type]
    convert: Callable[[object], object]


@functools.cache
def _rule(hint: Any) -> _Rule:
    """The rule of a type as an annotation says it. TypeError for one that this module cannot read: a mistake in our code."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if dataclasses.is_dataclass(hint):
        return _Rule(as_is=frozenset(), convert=_fields(cast(type, hint)))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _Rule(as_is=frozenset(), convert=_sequence(_rule(arguments[0])))
    if origin is Mapping and arguments[0] is str:
        if arguments[1] is Any:
            return _Rule(as_is=frozenset({dict}), convert=_refuse("an object"))
        return _Rule(as_is=frozenset(), convert=_mapping(_rule(arguments[1])))
    if origin is Literal and all(isinstance(choice, str) for choice in arguments):
        return _Rule(as_is=frozenset(), convert=_choice(arguments))
    if origin in (types.UnionType, typing.Union) and len(arguments) == 2 and type(None) in arguments:
        (other,) = (a for a in arguments if a is not type(None))
        inner = _rule(other)
        return _Rule(as_is=inner.as_is | {type(None)}, convert=_or_none(inner))
    if origin in (types.UnionType, typing.Union) and all(dataclasses.is_dataclass(a) for a in arguments):
        return _Rule(as_is=frozenset(), convert=_one_of(arguments))
    if origin in (types.UnionType, typing.Union):  # plain values: what an option can be set to
        plain = frozenset().union(*(_PLAIN[a].as_is if a is not type(None) else frozenset({a}) for a in arguments))
        return _Rule(as_is=plain, convert=_refuse(" or ".join(sorted(kind.__name__ for kind in plain))))
    raise TypeError(f"{hint!r} is no type that can be read from JSON")


def _fields(cls: type) -> Callable[[object], object]:
    """Reads one frozen, slotted dataclass. Run files hold thousands of objects of one class. So which fields must be converted is
    remembered by the types of their values (mostly none: one look-up), and slots are filled as the class's own `__init__` fills
    them, without going through names again."""
    hints = typing.get_type_hints(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))
    rules = tuple(_rule(hints[name]) for name in names)
    slots: tuple[Callable[[object, object], None], ...] = tuple(cls.__dict__[name].__set__ for name in names)
    values_of = _values(names)
    after: Callable[[object], None] | None = getattr(cls, "__post_init__", None)
    remembered: dict[tuple[type, ...], list[tuple[int, Callable[[object], object]]]] = {}

    def convert(data: object) -> object:
        if type(data) is not dict:
            raise DecodeError(f"expected an object, not {_said(data)}")
        try:
            values = values_of(data)
        except KeyError:
            return convert(_completed(cls, data))
        kinds = tuple(map(type, values))
        conversions = remembered.get(kinds)
        if conversions is None:
            there = enumerate(zip(rules, kinds, strict=True))
            conversions = remembered[kinds] = [(i, rule.convert) for i, (rule, kind) in there if kind not in rule.as_is]
        if len(data) != len(names):
            raise _unknown(cls, data)
        if conversions:
            values, index = list(values), 0
            try:
                for index, inner in conversions:
                    values[index] = inner(values[index])
            except DecodeError as error:
                raise error.inside(names[index]) from None
        made: object = object.__new__(cls)
        for put, value in zip(slots, values):  # noqa: B905 - strict costs a tenth of all, and both have one entry per name
            put(made, value)
        if after is not None:
            after(made)
        return made

    return convert


def _values(names: tuple[str, ...]) -> Callable[[dict[str, object]], Sequence[object]]:
    """All values of an object in the order of `names`; KeyError when one is missing."""
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda data: [data[name] for name in names]


def _completed(cls: type, data: dict[str, object]) -> dict[str, object]:
    """The object with the defaults of fields that it does not hold, as plain data."""
    defaults: dict[str, object] = {}
    for field in dataclasses.fields(cls):
        if field.name not in data:
            if field.default is not dataclasses.MISSING:
                defaults[field.name] = to_json(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                defaults[field.name] = to_json(field.default_factory())
            else:
                raise DecodeError(f"is missing; {cls.__name__} needs it", field.name)
    return {**data, **defaults}


def _unknown(cls: type, data: Mapping[str, object]) -> DecodeError:
    names = [field.name for field in dataclasses.fields(cls)]
    strange = next(str(key) for key in data if key not in names)
    return DecodeError(f"unknown field; {cls.__name__} has {', '.join(names)}", strange)


def _sequence(rule: _Rule) -> Callable[[object], object]:
    as_is, inner = rule.as_is, rule.convert

    def convert(data: object) -> object:
        if type(data) is not list:
            raise DecodeError(f"expected a list, not {_said(data)}")
        index = 0
        values = []
        try:
            for index, value in enumerate(data):  # noqa: B007 - the index is where an error stands
                values.append(value if type(value) in as_is else inner(value))
        except DecodeError as error:
            raise error.inside(index) from None
        return tuple(values)

    return convert


def _mapping(rule: _Rule) -> Callable[[object], object]:
    as_is, inner = rule.as_is, rule.convert

    def convert(data: object) -> object:
        if type(data) is not dict:
            raise DecodeError(f"expected an object, not {_said(data)}")
        key = ""
        values = {}
        try:
            for key, value in data.items():
                values[key] = value if type(value) in as_is else inner(value)
        except DecodeError as error:
            raise error.inside(str(key)) from None
        return values

    return convert


def _choice(choices: tuple[str, ...]) -> Callable[[object], object]:
    def convert(data: object) -> object:
        if data not in choices:
            raise DecodeError(f"expected one of {', '.join(choices)}, not {_said(data)}")
        return data

    return convert


def _one_of(classes: tuple[Any, ...]) -> Callable[[object], object]:
    """Reads one of several dataclasses, told apart by the text in the field `kind`, which is each one's default."""
    kinds = [next(str(f.default) for f in dataclasses.fields(cls) if f.name == "kind") for cls in classes]
    by_kind = {kind: _rule(cls).convert for kind, cls in zip(kinds, classes, strict=True)}

    def convert(data: object) -> object:
        if type(data) is not dict:
            raise DecodeError(f"expected an object, not {_said(data)}")
        kind = data.get("kind")
        if not isinstance(kind, str) or kind not in by_kind:
            raise DecodeError(f"expected one of {', '.join(by_kind)}, not {_said(kind)}", "kind")
        return by_kind[kind](data)

    return convert


def _or_none(rule: _Rule) -> Callable[[object], object]:
    def convert(data: object) -> object:
        return None if data is None else rule.convert(data)

    return convert


def _refuse(expected: str) -> Callable[[object], object]:
    def convert(data: object) -> object:
        raise DecodeError(f"expected {expected}, not {_said(data)}")

    return convert


def _float(data: object) -> object:
    if type(data) is int or (type(data) is str and data in _NONFINITE):
        return float(data)
    raise DecodeError(f"expected a number, not {_said(data)}")


def _path(data: object) -> object:
    if type(data) is str:
        return Path(data)
    raise DecodeError(f"expected a path, not {_said(data)}")


def _said(data: object) -> str:
    """What stands there, short enough for a message."""
    if data is None or isinstance(data, bool):
        return {None: "null", True: "true", False: "false"}[data]
    if isinstance(data, (dict, list)):
        return "an object" if isinstance(data, dict) else "a list"
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."


_PLAIN: dict[object, _Rule] = {
    str: _Rule(as_is=frozenset({str}), convert=_refuse("text")),
    bool: _Rule(as_is=frozenset({bool}), convert=_refuse("true or false")),
    int: _Rule(as_is=frozenset({int}), convert=_refuse("a whole number")),
    float: _Rule(as_is=frozenset({float}), convert=_float),
    Path: _Rule(as_is=frozenset(), convert=_path),
    Any: _Rule(as_is=frozenset({str, bool, int, float, dict, list, type(None)}), convert=_refuse("plain data")),
}
