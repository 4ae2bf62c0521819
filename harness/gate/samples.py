"""Raw samples of an answer, as a gate compares them: items with their ids, or windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from harness.errors import HarnessError
from harness.frontier import Floats
from harness.report.derivation import Absent, Items
from harness.store import Run

T = TypeVar("T")


class Unpaired(Exception):
    """Two answers cannot be paired; the message says why."""


class Lost(Unpaired):
    """Raw samples that an answer had are gone or damaged: nothing can be said of a number that was there."""


def read(run: Run, name: str | None) -> bytes:
    """The raw samples of that name. Unpaired where none were kept, Lost where they are not there or not as they were stored."""
    if name is None:
        raise Unpaired("no raw samples were kept with this answer")
    try:
        return run.blob(name)
    except (OSError, HarnessError) as error:
        why = "not there any more" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        raise Lost(f"its raw samples of the run {run.header.run} are {why}") from None


def parsed(reader: Callable[[bytes], T], run: Run, name: str | None) -> T:
    """Raw samples as the report reads them (`items_of`, `table_of`). Lost where they cannot be read."""
    try:
        return reader(read(run, name))
    except Absent as why:
        raise Lost(f"{why} (run {run.header.run})") from None


def same_order(before: Items, after: Items) -> Floats:
    """The scores of `after` in the order of `before`. Unpaired where they are not of the same items."""
    if before.ids == after.ids:
        return after.correct
    place = {name: i for i, name in enumerate(after.ids)}
    if place.keys() != set(before.ids):
        if place.keys() < set(before.ids):
            raise Lost(f"{len(before.ids) - len(place)} of the {len(before.ids)} items have no answer any more")
        extra, gone = len(place.keys() - set(before.ids)), len(set(before.ids) - place.keys())
        raise Unpaired(f"the two runs answered different items ({gone} of the first are gone, {extra} are new)")
    scores: Floats = after.correct[[place[name] for name in before.ids]]
    return scores


def change(before: Floats, after: Floats) -> Floats:
    """after - before [windows, tokens], NaN where `before` is not finite. Unpaired for other shapes, Lost where windows are gone
    or `after` is not finite where `before` is."""
    if before.shape[1:] == after.shape[1:] and len(after) < len(before):
        raise Lost(f"{len(before) - len(after)} of the {len(before)} windows are gone")
    if before.shape != after.shape:
        raise Unpaired(f"the two runs scored different windows: {_shape(before.shape)} against {_shape(after.shape)}")
    both = np.isfinite(before) & np.isfinite(after)
    if gone := int((np.isfinite(before) & ~both).sum()):
        raise Lost(f"{gone} of {int(np.isfinite(before).sum())} tokens hold no finite number any more")
    difference: Floats = np.subtract(after, before, out=np.full(before.shape, np.nan), where=both)
    return difference


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
