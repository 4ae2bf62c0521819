"""Long-context recall: texts of a fixed length, words told at spread places, and a guess that is worth one in four."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from harness import reference
from harness.reference import long_recall
from harness.reference.long_recall import LENGTHS, NEEDLES
from harness.reference.world import World

TASKS = tuple(LENGTHS)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def rows(task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (reference.TASKS_DIR / f"{task}.jsonl").read_text("utf-8").splitlines()]


def told(item: dict[str, Any]) -> dict[str, str]:
    """Whose secret word is what, as the text says it."""
    return dict(re.findall(r"The secret word of (\w+) is (\w+)\.", item["context"]))


def test_they_are_the_long_tasks_of_the_embedded_folder() -> None:
    assert reference.LONG_TASKS == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_the_committed_items_are_what_the_generator_writes(world: World, task: str) -> None:
    assert long_recall.recall_items(world, task) == rows(task)


@pytest.mark.parametrize("task", TASKS)
def test_fifty_different_texts_are_as_long_as_the_task_says(task: str) -> None:
    items = rows(task)
    assert len({item["context"] for item in items}) == len(items) == 50
    assert all(LENGTHS[task] - 90 < len(item["context"]) <= LENGTHS[task] for item in items)


@pytest.mark.parametrize("task", TASKS)
def test_the_text_says_the_answer_once_and_never_what_is_asked_for_of_another(task: str) -> None:
    for item in rows(task):
        known = told(item)
        asked = item["context"].rpartition("The secret word of ")[2].removesuffix(" is")
        assert len(known) == NEEDLES
        assert known[asked] == item["choices"][item["gold"]]
        assert item["context"].count(asked) == 2  # where it is told, and where it is asked


@pytest.mark.parametrize("task", TASKS)
def test_every_choice_is_a_secret_word_of_the_text_so_that_knowing_the_kind_of_word_is_a_guess(task: str) -> None:
    items = rows(task)
    for item in items:
        assert len(set(item["choices"])) == 4
        assert set(item["choices"]) <= set(told(item).values())
        assert all(item["context"].count(f" {word}") == 1 for word in item["choices"])
    gold = Counter(item["gold"] for item in items)
    assert all(gold[place] >= 6 for place in range(4)), gold


@pytest.mark.parametrize("task", TASKS)
def test_what_is_asked_stands_at_the_beginning_in_the_middle_and_at_the_end_alike(task: str) -> None:
    depths = [item["depth"] for item in rows(task)]
    parts = Counter(min(2, int(3 * depth)) for depth in depths)
    assert all(13 <= parts[part] <= 21 for part in range(3)), parts
    assert min(depths) < 0.1
    assert max(depths) > 0.85


def test_the_long_texts_are_no_document_that_the_embedded_model_was_trained_or_is_measured_on(world: World) -> None:
    texts = reference.HELDOUT_TEXT.read_text("utf-8") + reference.CALIBRATION_TEXT.read_text("utf-8")
    assert "secret word" not in texts
