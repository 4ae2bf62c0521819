"""The moments of a timed generation, told to whoever listens: when it begins, when its first token is there, when it has ended.

An engine tells them outside of what it times, so that listening (reading an energy counter, say) costs its figures nothing. An
engine that tells none is timed all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Moment = Literal["begin", "first token", "end"]

_listeners: list[Callable[[Moment], None]] = []


def tell(moment: Moment) -> None:
    """Says that it is this moment. The device has done all that it was given."""
    for listener in _listeners:
        listener(moment)


@contextmanager
def heard(listener: Callable[[Moment], None]) -> Iterator[None]:
    """Inside, `listener` hears each moment at once, in the thread that generates."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
