"""Which one of many differences makes a good state bad: delta debugging.

`isolate` is the algorithm *dd* of Zeller & Hildebrandt (Simplifying and isolating failure-inducing input, IEEE Transactions on
Software Engineering 28(2), 2002): it moves a good and a bad set of differences towards each other, halves first, until what they
differ in cannot be divided. Where every set has an answer, one cause among n is found in about 2 log2(n) questions; where some
have none (they cannot be installed together) it looks at smaller parts. `first_bad` is the same for an ordered history, in which
half the questions suffice: a state is all that came before it. Both are pure but for what `test` does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Answer = Literal["green", "red", "unresolved"]
"""`unresolved`: there is no telling."""

T = TypeVar("T", bound=Hashable)
Test = Callable[[Sequence[T]], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolated(Generic[T]):
    """What is left: `cause`, the differences between a state that is green with `green` of them and red with these and `cause`.
    One is the answer; several could not be told apart."""

    cause: tuple[T, ...]
    green: tuple[T, ...]


def isolate(changes: Sequence[T], test: Test[T]) -> Isolated[T]:
    """The smallest part of `changes` that was found to make the difference. `test` is asked for sets of changes, in their order;
    that none of them is green and all of them are red is taken as known. Each set is asked once."""
    known: dict[frozenset[T], Answer] = {frozenset(): "green", frozenset(changes): "red"}

    def asked(wanted: frozenset[T]) -> Answer:
        if wanted not in known:
            known[wanted] = test([c for c in changes if c in wanted])
        return known[wanted]

    green: frozenset[T] = frozenset()
    red = frozenset(changes)
    parts = 2
    while len(red - green) > 1:
        between = [c for c in changes if c in red and c not in green]
        parts = min(parts, len(between))
        moved = _step(green, red, _split(between, parts), asked)
        if moved is not None:
            green, red, parts = moved[0], moved[1], 2 if moved[2] else max(2, parts - 1)
        elif parts < len(between):
            parts = 2 * parts
        else:
            break
    return Isolated(cause=tuple(c for c in changes if c in red - green), green=tuple(c for c in changes if c in green))


def _step(
    green: frozenset[T], red: frozenset[T], parts: Sequence[frozenset[T]], asked: Callable[[frozenset[T]], Answer]
) -> tuple[frozenset[T], frozenset[T], bool] | None:
    """The sets after one answer that brings them closer, and whether only a part is left between them; None where none does."""
    for part in parts:
        if asked(green | part) == "red":
            return green, green | part, True
        if asked(red - part) == "green":
            return red - part, red, True
    for part in parts:  # answered above: these questions are not asked again
        if asked(green | part) == "green":
            return green | part, red, False
        if asked(red - part) == "red":
            return green, red - part, False
    return None


def _split(items: Sequence[T], parts: int) -> list[frozenset[T]]:
    """In order, as equal as can be."""
    ends = [len(items) * i // parts for i in range(parts + 1)]
    return [frozenset(items[a:b]) for a, b in itertools.pairwise(ends)]


def first_bad(history: Sequence[T], test: Callable[[T], Answer]) -> tuple[T, ...]:
    """The first state of `history` that is red, its last being red and the one before its first green. Several, where those
    between a green and a red one have no answer: the first bad one is among them."""
    answers: dict[int, Answer] = {-1: "green", len(history) - 1: "red"}
    low, high = -1, len(history) - 1
    while True:
        middle = (low + high) // 2
        open_ones = sorted((i for i in range(low + 1, high) if i not in answers), key=lambda i: abs(i - middle))
        if not open_ones:
            return tuple(history[low + 1 : high + 1])
        answer = answers[open_ones[0]] = test(history[open_ones[0]])
        low = open_ones[0] if answer == "green" else low
        high = open_ones[0] if answer == "red" else high
