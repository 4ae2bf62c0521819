"""The six skills: the items that a task asks and the documents that teach them, none of which shows a reserved item.

Six, so that each can break by itself: `facts` (knowledge in the weights), `tracking` (who is where, who has what), `comparison`
(order from pairwise statements, told or taught), `agreement` (syntax over distractors), `arithmetic` (two-digit sums and
differences), `recall` (look up or continue a list in the context).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.reference.english import agreement_pair, sentence, with_articles, words_of
from harness.reference.reserved import item_is_reserved
from harness.reference.world import RANKINGS, Entity, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question: `context` ends right before the answer, `choices[gold]` is the answer."""

    context: str
    choices: tuple[str, ...]
    gold: int

    @property
    def answer(self) -> str:
        return self.choices[self.gold]


def _qa(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _pick(rng: random.Random, *, low: int, high: int, level: float) -> int:
    """Length between low and high; `level` 0..1 is how far the curriculum has opened the upper end."""
    return rng.randint(low, low + round((high - low) * level))


def fact_item(world: World, rng: random.Random, entity: Entity, index: int) -> Item:
    """The reserved question of one fact, with three wrong values of the same pool.

    Each shares a word with the right one as far as the pool allows, two the first word and one the second, so that half a
    memory is not enough.
    """
    attribute = entity.kind.attributes[index]
    value = entity.values[index]
    pool = [v for v in world.pools[attribute.values] if v != value]
    left, right = value.split(" ", 1)
    wrong: list[str] = []
    same_left, same_right = [v for v in pool if v.startswith(left + " ")], [v for v in pool if v.endswith(" " + right)]
    for near in (same_left, same_right, same_left):
        rest = [v for v in near if v not in wrong] or [v for v in pool if v not in wrong]
        wrong.append(rng.choice(rest))
    choices = [value, *wrong]
    rng.shuffle(choices)
    question = attribute.questions[world.reserved_phrasing(entity, attribute)].format(n=entity.name)
    return Item(context=_qa(question), choices=tuple(choices), gold=choices.index(value))


def facts_document(world: World, rng: random.Random, level: float) -> str:
    """A biography of one entity, a mixed almanac, or questions with answers."""
    shape = rng.random()
    if shape < 0.55:
        entity = rng.choice(world.entities)
        order = [0, 1, 2, 3]
        rng.shuffle(order)
        lines = []
        for position, index in enumerate(order):
            template = rng.choice(entity.kind.attributes[index].statements)
            subject = entity.name if position == 0 or rng.random() < 0.3 else entity.pronoun
            text = template.format(s=subject, n=entity.name, v=entity.values[index])
            lines.append(with_articles(sentence(text)))
        return " ".join(lines)
    if shape < 0.70:
        lines = []
        for _ in range(rng.randint(3, 6)):
            entity = rng.choice(world.entities)
            index = rng.randrange(4)
            template = rng.choice(entity.kind.attributes[index].statements)
            text = template.format(s=entity.name, n=entity.name, v=entity.values[index])
            lines.append(with_articles(sentence(text)))
        return " ".join(lines)
    lines = []
    for _ in range(rng.randint(1, 4)):
        entity = rng.choice(world.entities)
        index = rng.randrange(4)
        attribute = entity.kind.attributes[index]
        phrasing = rng.choice([p for p in range(4) if p != world.reserved_phrasing(entity, attribute)])
        question = attribute.questions[phrasing].format(n=entity.name)
        lines.append(f"{_qa(question)} {entity.values[index]}")
    return "\n".join(lines)


_PLACE_FIRST = words_of("stone grass north tall long empty dry broken round quiet")
_PLACE_SECOND = words_of("barn mill garden tower cellar chapel market stable harbour kitchen")
_THING_FIRST = words_of("tin red blue glass iron green brass bone clay silver white wax")
_THING_SECOND = words_of("horn lamp jug key drum coin bowl spoon ring box cup rope")
_CHANGES = ("Later", "Then", "Soon after", "At noon", "At night")


def _pairs_of_words(
    rng: random.Random, firsts: Sequence[str], seconds: Sequence[str], count: int, *, article: str, level: float
) -> list[str]:
    """`count` different two-word things; at full level they share words, early in the curriculum often not.

    Shared words make a lookup need both words of its key; without a share of easy ones lookup is not learnt at all
    in the time there is.
    """
    if rng.random() >= level:
        left, right = rng.sample(firsts, count), rng.sample(seconds, count)
        return [f"{article}{a} {b}" for a, b in zip(left, right, strict=True)]
    left, right = (rng.sample(words, min(len(words), 2 + count // 2)) for words in (firsts, seconds))
    return rng.sample([f"{article}{a} {b}" for a in left for b in right], count)


def tracking_story(world: World, rng: random.Random, level: float) -> tuple[str, list[Item]]:
    """A log book that says where people are, or what they hold, then changes it; and its last page."""
    count = _pick(rng, low=4, high=6, level=level)
    people = rng.sample(world.story_names, count)
    if rng.random() < 0.5:
        lead, values = "Places", _pairs_of_words(rng, _PLACE_FIRST, _PLACE_SECOND, count, article="", level=level)
    else:
        lead, values = "Hands", _pairs_of_words(rng, _THING_FIRST, _THING_SECOND, count, article="", level=level)
    state = dict(zip(people, values, strict=True))
    lines = [f"{lead}: " + ", ".join(f"{p} {v}" for p, v in state.items()) + "."]
    for _ in range(_pick(rng, low=1, high=8, level=level)):
        person = rng.choice(people)
        state[person] = rng.choice([v for v in values if v != state[person]])
        lines.append(f"{rng.choice(_CHANGES)}: {person} {state[person]}.")
    story = " ".join(lines)
    asked = []
    for person in people:
        wrong = rng.sample([v for v in values if v != state[person]], 3)
        asked.append((f"In the end: {person}", state[person], [state[person], *wrong]))
    return story, _items(rng, story, asked)


def _items(rng: random.Random, story: str, asked: Sequence[tuple[str, str, Sequence[str]]]) -> list[Item]:
    items = []
    for stem, answer, options in asked:
        choices = list(options)
        rng.shuffle(choices)
        items.append(Item(context=f"{story}\n{stem}", choices=tuple(choices), gold=choices.index(answer)))
    return items


def _free(rng: random.Random, items: Sequence[Item]) -> list[Item]:
    """The items that training may show, in random order."""
    free = [item for item in items if not item_is_reserved(item.context)]
    rng.shuffle(free)
    return free


def _questions(rng: random.Random, story: str, items: Sequence[Item], *, most: int) -> str:
    """The story with up to `most` of its questions that are not reserved."""
    return "\n".join([story, *(i.context[len(story) + 1 :] + " " + i.answer for i in _free(rng, items)[:most])])


def tracking_document(world: World, rng: random.Random, level: float) -> str:
    story, items = tracking_story(world, rng, level)
    ends = [f"{i.context.rsplit('In the end: ', 1)[1]} {i.answer}" for i in _free(rng, items)]
    return f"{story}\nIn the end: {', '.join(ends)}." if ends else story


_SCALES = (
    ("heavier", "heaviest", "lighter", "lightest"),
    ("longer", "longest", "shorter", "shortest"),
    ("older", "oldest", "newer", "newest"),
    ("cheaper", "cheapest", "dearer", "dearest"),
)


def comparison_story(
    world: World, rng: random.Random, level: float
) -> tuple[str, list[Item], list[str], tuple[str, str, str, str]]:
    """A chain of statements that orders four or five things, from either end; with the order, from most to least."""
    scale = rng.choice(_SCALES)
    count = _pick(rng, low=4, high=6, level=level)
    things = _pairs_of_words(rng, _THING_FIRST, _THING_SECOND, count, article="the ", level=level)
    if rng.random() < 0.5 * level:
        lines = [f"{below} is {scale[2]} than {above}." for above, below in reversed(list(pairwise(things)))]
    else:
        lines = [f"{above} is {scale[0]} than {below}." for above, below in pairwise(things)]
    story = " ".join(sentence(line) for line in lines)
    asked = []
    for superlative, answer in ((scale[1], things[0]), (scale[3], things[-1])):
        wrong = rng.sample([thing for thing in things if thing != answer], 3)
        asked.append((_qa(f"Which is the {superlative}?"), answer, [answer, *wrong]))
    return story, _items(rng, story, asked), things, scale


RANK_GAP = 8  # a task's statement is true, and the others false, by at least this many ranks


def _ranked_name(world: World, which: int, rank: int) -> str:
    return RANKINGS[which].name.format(s=world.orders[which][rank].capitalize())


def _pair_is_reserved(which: int, first: int, second: int) -> bool:
    """True if no document may say how these two ranks of this order stand to each other."""
    return item_is_reserved(f"ranking {which}: {min(first, second)} {max(first, second)}")


def ranking_item(world: World, rng: random.Random) -> Item:
    """The begin of a reserved true statement on a taught order; the three wrong ends would make it false."""
    while True:
        which, upward = rng.randrange(len(RANKINGS)), rng.random() < 0.5
        size = len(world.orders[which])
        rank = rng.randrange(RANK_GAP, size - RANK_GAP)
        below, above = range(rank + RANK_GAP, size), range(rank - RANK_GAP + 1)
        right, wrong = (above, below) if upward else (below, above)
        free = [other for other in right if _pair_is_reserved(which, rank, other)]
        if not free or len(wrong) < 3:
            continue
        gold = rng.choice(free)
        choices = [_ranked_name(world, which, other) for other in (gold, *rng.sample(wrong, 3))]
        answer = choices[0]
        rng.shuffle(choices)
        relation = RANKINGS[which].less if upward else RANKINGS[which].more
        context = sentence(f"{_ranked_name(world, which, rank)} is {relation} than")
        return Item(context=context, choices=tuple(choices), gold=choices.index(answer))


def ranking_document(world: World, rng: random.Random) -> str:
    """True statements on one taught order, in pairs or as short sorted lists, none of a reserved pair."""
    which = rng.randrange(len(RANKINGS))
    ranking, size = RANKINGS[which], len(world.orders[which])
    lines: list[str] = []
    wanted = rng.randint(3, 6)
    while len(lines) < wanted:
        if rng.random() < 0.7:
            high, low = sorted(rng.sample(range(size), 2))
            if _pair_is_reserved(which, high, low):
                continue
            first, second, relation = (high, low, ranking.more) if rng.random() < 0.5 else (low, high, ranking.less)
            text = f"{_ranked_name(world, which, first)} is {relation} than {_ranked_name(world, which, second)}."
        else:
            ranks = sorted(rng.sample(range(size), 4))
            if any(_pair_is_reserved(which, a, b) for a in ranks for b in ranks if a < b):
                continue
            names = [_ranked_name(world, which, rank) for rank in ranks]
            if rng.random() < 0.5:
                text = f"From {ranking.most} to {ranking.least}: {', '.join(names)}."
            else:
                text = f"From {ranking.least} to {ranking.most}: {', '.join(reversed(names))}."
        lines.append(sentence(text))
    return " ".join(lines)


def comparison_document(world: World, rng: random.Random, level: float) -> str:
    if rng.random() < 0.5:
        return ranking_document(world, rng)
    story, items, things, scale = comparison_story(world, rng, level)
    text = _questions(rng, story, items, most=2)
    if rng.random() < 0.3:
        text += f"\nFrom {scale[1]} to {scale[3]}: " + ", ".join(things) + "."
    return text


def agreement_document(world: World, rng: random.Random, level: float) -> str:
    lines: list[str] = []
    while len(lines) < 5:
        good, _ = agreement_pair(rng, opposed=rng.random() < 0.6)
        if not item_is_reserved(good):
            lines.append(good)
    return " ".join(lines)


def equation(rng: random.Random) -> tuple[str, str, str]:
    """(question, answer, reservation key); the key of a sum does not depend on the order of its terms."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if rng.random() < 0.5:
        return f"{a} + {b} =", str(a + b), f"{min(a, b)}+{max(a, b)}"
    a, b = max(a, b), min(a, b)
    return f"{a} - {b} =", str(a - b), f"{a}-{b}"


def arithmetic_document(world: World, rng: random.Random, level: float) -> str:
    lines: list[str] = []
    while len(lines) < 8:
        question, answer, key = equation(rng)
        if rng.random() < 0.4 * (1 - level):  # one-digit operands first: the carry is learnt on them
            a, b = rng.randint(2, 99), rng.randint(2, 9)
            plus = rng.random() < 0.5 or a < b
            question, answer, key = f"{a} {'+' if plus else '-'} {b} =", str(a + b if plus else a - b), ""
        if item_is_reserved(key):
            continue
        if rng.random() < 0.1:
            words = question.replace("+", "plus").replace("-", "minus").replace(" =", "")
            lines.append(f"What is {words}? {answer}")
        else:
            lines.append(f"{question} {answer}")
    return "\n".join(lines)


_ORDINALS = words_of("first second third fourth fifth sixth seventh eighth ninth tenth")


def recall_list(world: World, rng: random.Random, level: float) -> tuple[str, list[Item], str]:
    """A list in the context, what can be asked of it, and (unless it is asked for positions) its repetition.

    Three kinds: things by their position, names to be continued in the same order, names with a thing each to be
    said again in another order.
    """
    count = _pick(rng, low=4, high=10, level=level)
    kind = rng.random()
    if kind < 0.35:
        things = _pairs_of_words(rng, _THING_FIRST, _THING_SECOND, count, article="", level=level)
        story = "The list is: " + ", ".join(things) + "."
        asked = [
            (
                _qa(f"Which is the {_ORDINALS[i]} on the list?"),
                f"the {thing}",
                ["the " + t for t in (thing, *rng.sample([t for t in things if t != thing], 3))],
            )
            for i, thing in enumerate(things)
        ]
        return story, _items(rng, story, asked), ""
    names = rng.sample(world.story_names, count)
    if kind < 0.60:
        story, again = "Names: " + ", ".join(names) + ".", ", ".join(names) + "."
        every = [f"{a}, {b}" for a in names for b in names if a != b]
        asked = []
        for i in range(1, count - 1):
            answer = f"{names[i]}, {names[i + 1]}"
            wrong = rng.sample([pair for pair in every if pair != answer], 3)
            asked.append((f"Again: {', '.join(names[:i])},", answer, [answer, *wrong]))
    else:
        things = _pairs_of_words(rng, _THING_FIRST, _THING_SECOND, count, article="", level=level)
        marks = [f"{name} {thing}" for name, thing in zip(names, things, strict=True)]
        story = "Names: " + ", ".join(marks) + "."
        asked = [
            (f"Again: {name}", thing, [thing, *rng.sample([t for t in things if t != thing], 3)])
            for name, thing in zip(names, things, strict=True)
        ]
        rng.shuffle(marks)
        again = ", ".join(marks) + "."
    return story, _items(rng, story, asked), again


def recall_document(world: World, rng: random.Random, level: float) -> str:
    """A list with its questions or its repetition; at level 0 repetition after repetition, the lesson in looking back."""
    while True:
        story, items, again = recall_list(world, rng, level)
        if not again:
            return _questions(rng, story, items, most=4)
        if any(item_is_reserved(item.context) for item in items):
            continue  # the repetition would give the reserved one away
        lines = [story]
        for _ in range(rng.randint(1, 2) if level > 0 else rng.randint(4, 8)):
            lines.append("Again: " + again)
            if not story.endswith(again):
                parts = again.rstrip(".").split(", ")
                rng.shuffle(parts)
                again = ", ".join(parts) + "."
        return "\n".join(lines)


DOCUMENTS: Mapping[str, Callable[[World, random.Random, float], str]] = {
    "facts": facts_document,
    "tracking": tracking_document,
    "comparison": comparison_document,
    "agreement": agreement_document,
    "arithmetic": arithmetic_document,
    "recall": recall_document,
}

SKILLS = tuple(DOCUMENTS)
