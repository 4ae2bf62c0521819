"""Under which licence a model is given, read from the card beside its weights. Nothing is guessed from a name.

Only the front matter of a README.md is read, and of that only the three entries that the hub has for licences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from harness.artifact import Licence
from harness.errors import BadInput
from harness.models import find, hub, repository
from harness.spec import Model

CHANGES_NUMBERS = False
"""What may be done with a model changes no measurement of it."""

CARD = "README.md"

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
_LINK = re.compile(r"https://[A-Za-z0-9./_%#?=&~+-]{1,300}|[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
READ_AT_MOST = 1 << 16
"""Bytes of a card."""


def of(model: Model, *, fetch: bool = False) -> Licence | None:
    """The licence of a model; None where its card is not here or names none. `fetch`: one on the hub may be fetched."""
    if model.random:
        return None
    path = _card(model, fetch=fetch)
    return None if path is None else read(path)


def read(card: Path) -> Licence | None:
    """What the front matter of a card says; None where it says nothing that can be repeated."""
    import yaml

    with card.open("rb") as file:
        text = file.read(READ_AT_MOST).decode("utf-8", errors="replace")
    front = _FRONT.match(text)
    if front is None:
        return None
    try:
        said = yaml.safe_load(front[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(said, Mapping):
        return None
    given = said.get("license")
    identifier = given[0] if isinstance(given, list) and given else given
    if not isinstance(identifier, str) or not _IDENTIFIER.fullmatch(identifier):
        return None
    name, link = said.get("license_name"), said.get("license_link")
    return Licence(
        identifier=identifier,
        name=name if isinstance(name, str) and _IDENTIFIER.fullmatch(name) else "",
        link=link if isinstance(link, str) and _LINK.fullmatch(link) else "",
    )


def _card(model: Model, *, fetch: bool) -> Path | None:
    folder = find.locate(model)
    here = None if folder is None else (folder if folder.is_dir() else folder.parent) / CARD
    if here is not None and here.is_file():
        return here
    snapshot = repository.snapshot_of(model)
    if snapshot is None or not fetch or hub.offline():
        return None
    try:
        return hub.one(snapshot, CARD, what=f"model {model.name!r}")
    except BadInput:  # no card, or none for us
        return None
