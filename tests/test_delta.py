"""Delta debugging: the one difference that makes a good state bad is found in few questions, also where sets have no answer."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest

from harness.run.delta import Answer, first_bad, isolate


class Asked:
    """A test that counts how often it was asked, and refuses to be asked the same twice."""

    def __init__(self, answer: Callable[[Sequence[int]], Answer]) -> None:
        self.answer = answer
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, changes: Sequence[int]) -> Answer:
        assert tuple(changes) not in self.seen
        self.seen.append(tuple(changes))
        return self.answer(changes)


def red_with(cause: set[int]) -> Callable[[Sequence[int]], Answer]:
    return lambda changes: "red" if cause <= set(changes) else "green"


def from_table(table: dict[tuple[int, ...], Answer]) -> Callable[[Sequence[int]], Answer]:
    return lambda changes: table[tuple(changes)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 40, 100])
def test_one_cause_among_many_is_found_in_about_two_questions_for_each_halving(count: int) -> None:
    for cause in range(count):
        asked = Asked(red_with({cause}))
        assert isolate(range(count), asked).cause == (cause,)
        assert len(asked.seen) <= 2 * math.ceil(math.log2(count)) if count > 1 else not asked.seen


def test_of_two_that_are_bad_together_only_one_is_named_as_the_last_step_from_green_to_red() -> None:
    for pair in itertools.combinations(range(6), 2):
        found = isolate(range(6), red_with(set(pair)))
        assert len(found.cause) == 1
        assert set(pair) - set(found.cause) <= set(found.green)
        assert set(found.cause) < set(pair)


def test_packages_that_must_be_installed_together_stay_together_in_the_answer() -> None:
    def answer(changes: Sequence[int]) -> Answer:
        if (2 in changes) != (3 in changes):
            return "unresolved"
        return "red" if 3 in changes else "green"

    assert isolate(range(8), answer).cause == (2, 3)


def test_what_is_named_always_lies_between_a_green_and_a_red_set() -> None:
    chance = random.Random(0)
    for _ in range(300):
        count = chance.randint(1, 9)
        table: dict[tuple[int, ...], Answer] = {
            subset: chance.choice(["green", "red", "unresolved"])
            for size in range(count + 1)
            for subset in itertools.combinations(range(count), size)
        }
        table[()], table[tuple(range(count))] = "green", "red"
        asked = Asked(from_table(table))
        found = isolate(range(count), asked)
        assert table[found.green] == "green"
        assert table[tuple(sorted((*found.green, *found.cause)))] == "red"


@pytest.mark.parametrize("count", [1, 2, 3, 9, 64])
def test_the_first_bad_commit_is_found_by_halving(count: int) -> None:
    for bad in range(count):
        asked: list[int] = []

        def answer(commit: int, bad: int = bad, asked: list[int] = asked) -> Answer:
            asked.append(commit)
            return "red" if commit >= bad else "green"

        assert first_bad(range(count), answer) == (bad,)
        assert len(asked) <= math.ceil(math.log2(count)) + 1


def test_commits_that_do_not_run_are_stepped_over_and_named_where_the_cause_may_be_among_them() -> None:
    def answer(commit: int) -> Answer:
        return "unresolved" if commit in (4, 5) else "red" if commit >= 6 else "green"

    assert first_bad(range(12), answer) == (4, 5, 6)
    assert first_bad(range(12), lambda c: "unresolved" if c == 5 else "red" if c >= 8 else "green") == (8,)
