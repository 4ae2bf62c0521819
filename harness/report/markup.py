"""HTML that cannot be written unescaped: elements are built from children, and every plain string among them is escaped.

`Markup` marks text that is HTML already. Only `el`, `join` and `raw` make it, and `raw` is for literals of this package.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import gzip
import html
import json
import re

_VOID = frozenset({"meta", "br", "hr", "input", "col", "link", "img"})
_NAME = re.compile(r"[a-z][a-zA-Z0-9-]*")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def raw(text: str) -> Markup:
    """Marks a literal of this package as HTML. Never for anything that came from a suite, a record or a model."""
    return Markup(text)


DIRECTIONS = {
    ord(c): f"\u27e8U+{ord(c):04X}\u27e9" for c in "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
}
"""Marks that turn the direction of text around them, and what stands in their place: with them one name can look like another."""
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_VISIBLE = _CONTROLS | DIRECTIONS


@functools.lru_cache(maxsize=1 << 14)  # a page of many cells says the same words over and over
def text(value: str) -> Markup:
    """Escaped for content and for quoted attributes; NUL and other control characters become U+FFFD (HTML forbids them), marks
    that turn the direction of text become their code in brackets."""
    visible = value.translate(_VISIBLE)
    return Markup(html.escape(visible.encode("utf-8", "replace").decode(), quote=True))


def join(*children: str | None) -> Markup:
    """Children one after another; plain strings are escaped, None is left out."""
    return Markup("".join(c if isinstance(c, Markup) else text(c) for c in children if c is not None))


def el(name: str, /, *children: str | None, **attributes: str | int | bool | None) -> Markup:
    """One element. Attribute names: `cls` is class, `_` becomes `-`; True writes a bare attribute, None and False none."""
    parts = [name]
    for key, value in attributes.items():
        attribute = _attribute(key)
        if value is True:
            parts.append(attribute)
        elif value is not None and value is not False:
            parts.append(f'{attribute}="{text(str(value))}"')
    opening = Markup(f"<{' '.join(parts)}>")
    return opening if name in _VOID else Markup(f"{opening}{join(*children)}</{name}>")


@functools.cache  # there are some dozen, in our own code
def _attribute(key: str) -> str:
    attribute = "class" if key == "cls" else key.rstrip("_").replace("_", "-")
    if not _NAME.fullmatch(attribute):
        raise ValueError(f"{attribute!r} is no attribute name")
    return attribute


_ESCAPED = re.compile(rf"(?<!\\)((?:\\\\)*)\\u({'|'.join(f'{code:04x}' for code in DIRECTIONS)})")
"""Such a mark as JSON writes it; a backslash that is itself escaped begins none."""


def data_block(identifier: str, value: object) -> Markup:
    """Plain data and dataclasses as JSON in an inert block, packed; marks of direction are replaced as in `text`. `<`, `>`, `&`
    and line separators are escaped in it: unpacked it is harmless as well. ValueError on numbers that JSON does not have."""
    body = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_fields)
    body = _ESCAPED.sub(lambda found: f"{found[1]}{DIRECTIONS[int(found[2], 16)]}", body) if _ESCAPED.search(body) else body
    body = body.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return packed_block(identifier, body)


def packed_block(identifier: str, content: str) -> Markup:
    """Text as an inert block that a script unpacks: gzip in base64, whose letters end no element. Equal text, equal bytes.

    Level 5: the levels above make a page of two megabytes smaller by one part in a hundred, in twice the time."""
    packed = base64.b64encode(gzip.compress(content.encode(), compresslevel=5, mtime=0)).decode()
    return Markup(f'<script type="application/gzip" id="{text(identifier)}">{packed}</script>')


def _fields(value: object) -> dict[str, object]:
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{type(value).__name__} is not plain data: {value!r}")
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
