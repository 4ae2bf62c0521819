"""Raw samples of an answer, as a gate compares them: items with their ids, or windows of tokens."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError

Floats: TypeAlias = NDArray[np.float64]
Blob: TypeAlias = Callable[[str], bytes]

BLOCK = 256
"""Tokens that are taken together where samples are one long row: neighbours are correlated."""


class Unpaired(Exception):
    """Two answers cannot be paired; the message says why."""


class Lost(Unpaired):
    """Raw samples that an answer had are gone or damaged: nothing can be said of a number that was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """Answers to a task: `ids` [items] in order, `correct` float [items], `clusters` [items] where items share a passage."""

    ids: tuple[str, ...]
    correct: Floats
    clusters: tuple[str, ...] | None

    @property
    def binary(self) -> bool:
        return bool(np.all((self.correct == 0.0) | (self.correct == 1.0)))


def read(blob: Blob, name: str | None) -> bytes:
    """The raw samples of that name. Unpaired where none were kept, Lost where they are not there or not as they were stored."""
    if name is None:
        raise Unpaired("no raw samples were kept with this answer")
    try:
        return blob(name)
    except (OSError, HarnessError) as error:
        why = "not there any more" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        raise Lost(f"its raw samples are {why}") from None


def items(data: bytes) -> Items:
    """Unpaired where they cannot be read, are none, name one twice or are not finite."""
    try:
        rows = json.loads(data)["items"]
        ids = tuple(str(row["id"]) for row in rows)
        correct = np.array([float(row["correct"]) for row in rows])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unpaired("its raw samples cannot be read") from None
    if not ids or len(set(ids)) != len(ids):
        raise Unpaired("its items are none, or have the same id twice")
    if not np.isfinite(correct).all():
        raise Unpaired("its items hold scores that are not finite")
    clusters = None
    if any("cluster" in row for row in rows):
        clusters = tuple(f"{row.get('task', '')}|{row['cluster']}" if "cluster" in row else f"#{row['id']}" for row in rows)
    return Items(ids=ids, correct=correct, clusters=clusters)


def same_order(before: Items, after: Items) -> Floats:
    """The scores of `after` in the order of `before`. Unpaired where they are not of the same items."""
    if before.ids == after.ids:
        return after.correct
    place = {name: i for i, name in enumerate(after.ids)}
    if place.keys() != set(before.ids):
        extra, gone = len(place.keys() - set(before.ids)), len(set(before.ids) - place.keys())
        raise Unpaired(f"the two runs answered different items ({gone} of the first are gone, {extra} are new)")
    scores: Floats = after.correct[[place[name] for name in before.ids]]
    return scores


def windows(data: bytes) -> Floats:
    """Samples [windows, tokens]; one long row is cut into blocks, NaN at the end. Unpaired where they are no such table."""
    try:
        table = np.asarray(np.load(io.BytesIO(data), allow_pickle=False), dtype=np.float64)
    except (ValueError, OSError, EOFError):
        raise Unpaired("its raw samples cannot be read") from None
    if table.ndim == 1:
        blocks = -(-table.size // BLOCK)
        table = np.concatenate([table, np.full(blocks * BLOCK - table.size, np.nan)]).reshape(blocks, BLOCK)
    if table.ndim != 2 or not table.size:
        raise Unpaired("its raw samples are no table of windows and tokens")
    return table


def change(before: Floats, after: Floats) -> Floats:
    """after - before [windows, tokens], NaN where either is not finite. Unpaired for other shapes."""
    if before.shape != after.shape:
        raise Unpaired(f"the two runs scored different windows: {_shape(before.shape)} against {_shape(after.shape)}")
    both = np.isfinite(before) & np.isfinite(after)
    difference: Floats = np.subtract(after, before, out=np.full(before.shape, np.nan), where=both)
    return difference


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
