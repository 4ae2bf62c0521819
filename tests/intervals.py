"""The bounds of a measurement or an interval that must have them."""

from __future__ import annotations

from typing import Protocol


class Bounded(Protocol):
    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


def low(found: Bounded) -> float:
    """Its lower bound; a missing one fails the test."""
    assert found.low is not None
    return found.low


def high(found: Bounded) -> float:
    """Its upper bound; a missing one fails the test."""
    assert found.high is not None
    return found.high
