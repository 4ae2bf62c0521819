"""The generator: the same bytes everywhere, and nothing held out ever reaches training."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import reference
from harness.reference import corpus
from harness.reference.reserved import DOCUMENT_BUCKETS, bucket
from harness.reference.skills import RANK_GAP, SKILLS, tracking_story
from harness.reference.world import RANKINGS, World

TRAINING_SAMPLE = 6000  # documents of the training stream that the tests read


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def training(world: World) -> list[str]:
    mixer = corpus.Mixer(world)
    return [mixer.next() for _ in range(TRAINING_SAMPLE)]


def rows(skill: str) -> list[dict]:
    return [json.loads(line) for line in (reference.TASKS_DIR / f"{skill}.jsonl").read_text("utf-8").splitlines()]


PINNED = "f85c3ac3e6f60c854be1911d4dbefbc0857fd942b423d943cc90d0a3bb6f6f0d"


def sample_digest() -> str:
    world = World()
    mixer = corpus.Mixer(world)
    texts = [mixer.next(level=level) for level in (0.0, 0.5, 1.0) for _ in range(60)]
    texts += [json.dumps(corpus.task_items(world, skill, count=5)) for skill in SKILLS]
    return hashlib.sha256("\n\n".join(texts).encode()).hexdigest()


def test_the_same_seed_gives_the_same_bytes_on_every_machine() -> None:
    assert sample_digest() == PINNED


def test_the_bytes_do_not_depend_on_the_hash_seed() -> None:
    code = "from tests.reference.test_corpus import sample_digest; print(sample_digest())"
    root = Path(__file__).resolve().parents[2]
    for seed in ("1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == PINNED


def test_another_seed_gives_another_world() -> None:
    assert World(seed=1).entities[0].name != World(seed=2).entities[0].name


@pytest.mark.parametrize("skill", SKILLS)
def test_every_task_has_at_least_five_hundred_different_items(skill: str) -> None:
    items = rows(skill)
    assert len(items) == corpus.TASK_ITEMS[skill] >= 500
    assert len({json.dumps(item) for item in items}) == len(items)


@pytest.mark.parametrize("skill", SKILLS)
def test_the_committed_items_are_what_the_generator_writes(world: World, skill: str) -> None:
    assert corpus.task_items(world, skill, count=corpus.TASK_ITEMS[skill]) == rows(skill)


@pytest.mark.parametrize("skill", ["facts", "tracking", "comparison", "recall"])
def test_multiple_choice_items_offer_four_different_answers_with_an_even_gold(skill: str) -> None:
    items = rows(skill)
    assert all(len(set(item["choices"])) == 4 for item in items)
    share = [sum(item["gold"] == place for item in items) / len(items) for place in range(4)]
    assert all(0.19 < part < 0.31 for part in share), share


def test_minimal_pairs_differ_in_one_word_only() -> None:
    for item in rows("agreement"):
        good, bad = item["good"].split(), item["bad"].split()
        assert len(good) == len(bad)
        assert sum(a != b for a, b in zip(good, bad, strict=True)) == 1


def test_arithmetic_answers_are_right() -> None:
    for item in rows("arithmetic"):
        a, sign, b, _ = item["question"].split()
        assert int(item["answer"]) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_no_held_out_item_is_in_any_document(world: World, training: list[str]) -> None:
    heldout = reference.HELDOUT_TEXT.read_text("utf-8")
    calibration = reference.CALIBRATION_TEXT.read_text("utf-8")
    for text in ("\n\n".join(training), heldout, calibration):
        # A fact's question is one line; a story's question counts together with its story.
        lines = set(text.split("\n"))
        assert not [i for i in rows("facts") if i["context"].split("\n")[0] in lines]
        for skill in ("tracking", "comparison", "recall"):
            stories = [item for item in rows(skill) if "\n" in item["context"]]  # the others are statements on taught orders
            assert len(stories) == (200 if skill == "comparison" else 600)
            assert not [i for i in stories if i["context"] in text]
            ends: dict[str, set[str]] = {}
            for document in text.split("\n\n"):
                story, _, rest = document.partition("\n")
                ends.setdefault(story, set()).update(re.split(r"[,.:?\n] ?", rest))
            for item in stories:
                story, stem = item["context"].split("\n", 1)
                asked = re.split(r"[?\n]", stem.split(": ", 1)[1])[0].rstrip(",")
                assert not [end for end in ends.get(story, set()) if end.startswith(asked)]
        assert not [i for i in rows("agreement") if i["good"] in text or i["bad"] in text]
        equations = {line.rpartition(" ")[0] for line in lines if "=" in line}
        for item in rows("arithmetic"):
            a, sign, b, _ = item["question"].split()
            assert item["question"] not in equations
            assert sign == "-" or f"{b} + {a} =" not in equations


def named_pairs(text: str) -> set[frozenset[str]]:
    """Every two ranked things that one statement or one sorted list of `text` puts in an order."""
    name = r"(?:Mount \w+|[Tt]he \w+ (?:Bridge|Stone|Well))"
    pairs = set()
    for found in re.finditer(rf"({name}) is \w+ than ({name})|From \w+ to \w+: ({name}(?:, {name})+)", text):
        names = found[3].split(", ") if found[3] else [found[1], found[2]]
        names = [n[0].lower() + n[1:] for n in names]
        pairs |= {frozenset((a, b)) for a in names for b in names if a != b}
    return pairs


def test_no_document_orders_a_pair_that_a_task_asks_about(world: World, training: list[str]) -> None:
    asked = [item for item in rows("comparison") if item["context"].endswith(" than")]
    assert len(asked) == 400
    pairs = set()
    for item in asked:
        first, second = item["context"].partition(" is ")[0], item["choices"][item["gold"]]
        pairs.add(frozenset(n[0].lower() + n[1:] for n in (first, second)))
    written = (reference.HELDOUT_TEXT.read_text("utf-8"), reference.CALIBRATION_TEXT.read_text("utf-8"))
    for part in ("\n\n".join(training), *written):
        told = named_pairs(part)
        assert len(told) > 200  # the pattern does find them
        assert not pairs & told


def test_only_the_right_end_makes_a_statement_on_a_taught_order_true(world: World) -> None:
    ranks = {
        ranking.name.format(s=stem.capitalize()).lower(): (which, rank)
        for which, ranking in enumerate(RANKINGS)
        for rank, stem in enumerate(world.orders[which])
    }
    for item in (item for item in rows("comparison") if item["context"].endswith(" than")):
        subject, _, relation = item["context"].removesuffix(" than").partition(" is ")
        which, mine = ranks[subject.lower()]
        assert relation in (RANKINGS[which].more, RANKINGS[which].less)
        for place, choice in enumerate(item["choices"]):
            other, rank = ranks[choice.lower()]
            assert other == which
            assert abs(rank - mine) >= RANK_GAP
            holds = rank > mine if relation == RANKINGS[which].more else rank < mine
            assert holds == (place == item["gold"])


def test_the_reserved_phrasing_of_a_fact_is_never_taught(world: World) -> None:
    reserved = {
        attribute.questions[world.reserved_phrasing(entity, attribute)].format(n=entity.name)
        for entity in world.entities
        for attribute in entity.kind.attributes
    }
    assert len(reserved) == 4 * len(world.entities)
    for index in range(4000):
        text = corpus.document(world, "facts", index)
        for line in text.split("\n"):
            assert line.removeprefix("Question: ") not in reserved


def test_training_held_out_and_calibration_share_no_document(training: list[str]) -> None:
    heldout = set(reference.HELDOUT_TEXT.read_text("utf-8").strip("\n").split("\n\n"))
    calibration = set(reference.CALIBRATION_TEXT.read_text("utf-8").strip("\n").split("\n\n"))
    assert not heldout & calibration
    assert not (heldout | calibration) & set(training)
    assert all(bucket("document:" + t, buckets=DOCUMENT_BUCKETS) == 0 for t in heldout)
    assert all(bucket("document:" + t, buckets=DOCUMENT_BUCKETS) == 1 for t in calibration)


def test_the_mixture_is_followed_and_can_be_taken_up_again(world: World) -> None:
    whole = corpus.Mixer(world)
    texts = [whole.next() for _ in range(600)]
    total = sum(whole.lengths.values())
    for skill, share in corpus.MIXTURE.items():
        assert abs(whole.lengths[skill] / total - share) < 0.02
    first = corpus.Mixer(world)
    early = [first.next() for _ in range(300)]
    second = corpus.Mixer(world)
    second.load(json.loads(json.dumps(first.state())))
    assert early + [second.next() for _ in range(300)] == texts


def test_easy_stories_come_first() -> None:
    world = World()
    short = [tracking_story(world, random.Random(i), 0.0)[0] for i in range(50)]
    long = [tracking_story(world, random.Random(i), 1.0)[0] for i in range(50)]
    assert sum(map(len, short)) < 0.8 * sum(map(len, long))
