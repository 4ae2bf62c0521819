"""The invented world that the reference model is taught: a seeded generator of plain English.

What it promises: the same seed gives the same bytes on every Python from 3.10 on, on every platform and under
every hash seed (only `random.Random` seeded with text, and blake2b, decide anything). What it refuses: to put
a held-out question into the training stream. Separation is by construction, with two rules:

* an *item* (a question with its context, an equation, a sentence) whose digest falls into the reserved eighth
  is never written into any training, calibration or held-out document; task items come from there only;
* a *document* whose digest falls into a reserved hundredth goes to the held-out or to the calibration text,
  and never into the training stream.

Facts are the exception that knowledge needs: the fact itself is taught, in many phrasings, but for every fact
one of its four question phrasings is reserved, and the task asks exactly that one.

Six skills, so that each can break by itself: `facts` (knowledge in the weights), `tracking` (who is where, who
has what), `comparison` (order from pairwise statements, told or taught), `agreement` (syntax over distractors), `arithmetic`
(two-digit sums and differences), `recall` (look up or continue a list in the context).

    python -m harness.reference.corpus --out DIR      # tasks, held-out text, calibration text
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

SEED = 20261121
ITEM_BUCKETS = 8  # one eighth of all possible items is reserved for the tasks
DOCUMENT_BUCKETS = 100  # bucket 0: held-out text, bucket 1: calibration text, the rest: training
LEVEL = 0.5  # how hard stories and lists are in the tasks and texts; training gets there from 0
SKILLS = ("facts", "tracking", "comparison", "agreement", "arithmetic", "recall")


def bucket(text: str, *, buckets: int) -> int:
    """Digest of `text` reduced to 0..buckets-1: the one source of every train/held-out decision."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big") % buckets


def item_is_reserved(key: str) -> bool:
    """True if this item may appear in a task and must not appear in any document."""
    return bucket("item:" + key, buckets=ITEM_BUCKETS) == 0


# ---------------------------------------------------------------------------------------------- the world


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One thing that is known of every entity of a kind.

    `statements` use {s} (name or pronoun) and {v}; the last one may use {n} (always the name). `questions` use
    {n} and are answered by the bare value.
    """

    name: str
    values: str  # pool of possible values, a key of `World.pools`
    statements: tuple[str, ...]
    questions: tuple[str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    name: str
    count: int
    attributes: tuple[Attribute, Attribute, Attribute, Attribute]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    kind: Kind
    name: str
    pronoun: str
    values: tuple[str, str, str, str]


KINDS = (
    Kind(
        name="person",
        count=1400,
        attributes=(
            Attribute(
                name="birthplace",
                values="town",
                statements=(
                    "{s} was born in {v}.",
                    "{s} grew up in {v}.",
                    "{s} comes from {v}.",
                    "{s} spent a childhood in {v}.",
                    "The birthplace of {n} is {v}.",
                ),
                questions=(
                    "Where was {n} born?",
                    "Which town does {n} come from?",
                    "What is the birthplace of {n}?",
                    "In which place did {n} grow up?",
                ),
            ),
            Attribute(
                name="trade",
                values="trade",
                statements=(
                    "{s} works as a {v}.",
                    "{s} earns a living as a {v}.",
                    "{s} is known as a skilled {v}.",
                    "{s} was trained as a {v}.",
                    "The trade of {n} is that of a {v}.",
                ),
                questions=(
                    "What is the trade of {n}?",
                    "What does {n} work as?",
                    "How does {n} earn a living?",
                    "Which work was {n} trained for?",
                ),
            ),
            Attribute(
                name="animal",
                values="animal",
                statements=(
                    "{s} keeps a {v}.",
                    "{s} is never seen without a {v}.",
                    "{s} raised a {v} by hand.",
                    "{s} shares a house with a {v}.",
                    "The companion of {n} is a {v}.",
                ),
                questions=(
                    "Which animal does {n} keep?",
                    "What is the companion of {n}?",
                    "Which creature shares a house with {n}?",
                    "What did {n} raise by hand?",
                ),
            ),
            Attribute(
                name="dish",
                values="dish",
                statements=(
                    "{s} likes {v} best.",
                    "{s} never refuses {v}.",
                    "{s} asks for {v} at every feast.",
                    "{s} could eat {v} all year.",
                    "The favourite food of {n} is {v}.",
                ),
                questions=(
                    "What is the favourite food of {n}?",
                    "What does {n} like best?",
                    "What does {n} ask for at a feast?",
                    "Which dish does {n} never refuse?",
                ),
            ),
        ),
    ),
    Kind(
        name="town",
        count=720,
        attributes=(
            Attribute(
                name="founder",
                values="person",
                statements=(
                    "{s} was founded by {v}.",
                    "{s} owes its first wall to {v}.",
                    "{s} was laid out by {v}.",
                    "{s} honours {v} as its founder.",
                    "The founder of {n} was {v}.",
                ),
                questions=(
                    "Who founded {n}?",
                    "Who was the founder of {n}?",
                    "Who laid out {n}?",
                    "Whom does {n} honour as its founder?",
                ),
            ),
            Attribute(
                name="product",
                values="product",
                statements=(
                    "{s} is famous for its {v}.",
                    "{s} sells {v} to all its neighbours.",
                    "{s} lives from making {v}.",
                    "{s} sends {v} to the coast.",
                    "The main product of {n} is {v}.",
                ),
                questions=(
                    "What is {n} famous for?",
                    "What is the main product of {n}?",
                    "What does {n} sell to its neighbours?",
                    "Which goods does {n} send to the coast?",
                ),
            ),
            Attribute(
                name="water",
                values="water",
                statements=(
                    "{s} stands on the {v}.",
                    "{s} lies beside the {v}.",
                    "{s} takes its water from the {v}.",
                    "{s} was built along the {v}.",
                    "The water that runs past {n} is the {v}.",
                ),
                questions=(
                    "Which water does {n} stand on?",
                    "What runs past {n}?",
                    "Where does {n} take its water from?",
                    "Along which water was {n} built?",
                ),
            ),
            Attribute(
                name="emblem",
                values="animal",
                statements=(
                    "{s} shows a {v} on its flag.",
                    "{s} stamps its coins with a {v}.",
                    "{s} chose a {v} as its emblem.",
                    "{s} has a {v} carved over its gate.",
                    "The emblem of {n} is a {v}.",
                ),
                questions=(
                    "What is the emblem of {n}?",
                    "What is shown on the flag of {n}?",
                    "What is carved over the gate of {n}?",
                    "Which sign is stamped on the coins of {n}?",
                ),
            ),
        ),
    ),
    Kind(
        name="ship",
        count=640,
        attributes=(
            Attribute(
                name="captain",
                values="person",
                statements=(
                    "{s} sails under {v}.",
                    "{s} is commanded by {v}.",
                    "{s} was given to {v} after the storm.",
                    "{s} obeys nobody but {v}.",
                    "The captain of {n} is {v}.",
                ),
                questions=(
                    "Who is the captain of {n}?",
                    "Who commands {n}?",
                    "Under whom does {n} sail?",
                    "To whom was {n} given after the storm?",
                ),
            ),
            Attribute(
                name="yard",
                values="town",
                statements=(
                    "{s} was built in {v}.",
                    "{s} left the yards of {v} long ago.",
                    "{s} winters in {v}.",
                    "{s} carries papers from {v}.",
                    "The home port of {n} is {v}.",
                ),
                questions=(
                    "Where was {n} built?",
                    "What is the home port of {n}?",
                    "Where does {n} spend the winter?",
                    "From which town does {n} carry papers?",
                ),
            ),
            Attribute(
                name="cargo",
                values="product",
                statements=(
                    "{s} carries {v}.",
                    "{s} is loaded with {v}.",
                    "{s} trades in {v}.",
                    "{s} brings {v} across the sea.",
                    "The usual cargo of {n} is {v}.",
                ),
                questions=(
                    "What does {n} carry?",
                    "What is the usual cargo of {n}?",
                    "Which goods is {n} loaded with?",
                    "What does {n} bring across the sea?",
                ),
            ),
            Attribute(
                name="figurehead",
                values="animal",
                statements=(
                    "{s} bears a wooden {v} at the bow.",
                    "{s} is guarded by a painted {v}.",
                    "{s} is known by the carved {v} in front.",
                    "{s} wears a {v} as its figurehead.",
                    "The figurehead of {n} is a {v}.",
                ),
                questions=(
                    "What is the figurehead of {n}?",
                    "What does {n} bear at the bow?",
                    "Which creature guards {n}?",
                    "By which carving is {n} known?",
                ),
            ),
        ),
    ),
    Kind(
        name="book",
        count=640,
        attributes=(
            Attribute(
                name="author",
                values="person",
                statements=(
                    "{s} was written by {v}.",
                    "{s} came from the pen of {v}.",
                    "{s} made {v} well known.",
                    "{s} took {v} nine winters.",
                    "The author of {n} is {v}.",
                ),
                questions=(
                    "Who wrote {n}?",
                    "Who is the author of {n}?",
                    "From whose pen came {n}?",
                    "Whom did {n} make well known?",
                ),
            ),
            Attribute(
                name="topic",
                values="trade",
                statements=(
                    "{s} tells the life of a {v}.",
                    "{s} is about a {v}.",
                    "{s} follows a {v} through the war.",
                    "{s} begins with a letter from a {v}.",
                    "The hero of {n} is a {v}.",
                ),
                questions=(
                    "Who is the hero of {n}?",
                    "Whose life does {n} tell?",
                    "Whom does {n} follow through the war?",
                    "Who sends the letter at the beginning of {n}?",
                ),
            ),
            Attribute(
                name="binding",
                values="fabric",
                statements=(
                    "{s} is bound in {v}.",
                    "{s} has a cover of {v}.",
                    "{s} is wrapped in {v}.",
                    "{s} was dressed in {v} by its first owner.",
                    "The cover of {n} is made of {v}.",
                ),
                questions=(
                    "What is {n} bound in?",
                    "What is the cover of {n} made of?",
                    "What is {n} wrapped in?",
                    "In what did the first owner dress {n}?",
                ),
            ),
            Attribute(
                name="library",
                values="town",
                statements=(
                    "{s} is kept in {v}.",
                    "{s} can be read in {v}.",
                    "{s} was found in {v}.",
                    "{s} belongs to the library of {v}.",
                    "The only copy of {n} is in {v}.",
                ),
                questions=(
                    "Where is {n} kept?",
                    "Where can one read {n}?",
                    "In which town was {n} found?",
                    "Which library owns {n}?",
                ),
            ),
        ),
    ),
    Kind(
        name="plant",
        count=600,
        attributes=(
            Attribute(
                name="colour",
                values="colour",
                statements=(
                    "{s} has {v} flowers.",
                    "{s} blooms {v}.",
                    "{s} opens in {v} in spring.",
                    "{s} turns {v} in the sun.",
                    "The flower of {n} is {v}.",
                ),
                questions=(
                    "Which colour is the flower of {n}?",
                    "How does {n} bloom?",
                    "Which colour does {n} turn in the sun?",
                    "In which colour does {n} open in spring?",
                ),
            ),
            Attribute(
                name="cure",
                values="ailment",
                statements=(
                    "{s} cures {v}.",
                    "{s} is used against {v}.",
                    "{s} brings relief from {v}.",
                    "{s} is boiled for {v}.",
                    "The old women give {n} to those with {v}.",
                ),
                questions=(
                    "What does {n} cure?",
                    "What is {n} used against?",
                    "From what does {n} bring relief?",
                    "For what is {n} boiled?",
                ),
            ),
            Attribute(
                name="smell",
                values="dish",
                statements=(
                    "{s} smells of {v}.",
                    "{s} reminds everyone of {v}.",
                    "{s} gives off a smell of {v}.",
                    "{s} tastes like {v}.",
                    "The scent of {n} is that of {v}.",
                ),
                questions=(
                    "What does {n} smell of?",
                    "What is the scent of {n} like?",
                    "What does {n} taste like?",
                    "What does {n} remind everyone of?",
                ),
            ),
            Attribute(
                name="place",
                values="water",
                statements=(
                    "{s} grows near the {v}.",
                    "{s} is found on the banks of the {v}.",
                    "{s} was first picked by the {v}.",
                    "{s} covers the shores of the {v}.",
                    "The home of {n} is the {v}.",
                ),
                questions=(
                    "Where does {n} grow?",
                    "On whose banks is {n} found?",
                    "Where was {n} first picked?",
                    "Whose shores does {n} cover?",
                ),
            ),
        ),
    ),
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONSETS = _words("b d f g h k l m n p r s t v z br dr gr kr tr st sk fl gl th sh")
_VOWELS = _words("a e i o u ai ea ou")
_CODAS = _words("l n r s m k t nd rn st lm")


_FIRST_WORDS: Mapping[str, tuple[str, ...]] = {
    "town": _words("North South East West Upper Lower Old New Port Saint Great Little High Deep Fair Grey"),
    "trade": _words(
        "lens bell rope salt clock glass boat silver paper leather candle bridge barrel map horse stone tile wool ink sail"
    ),
    "animal": _words(
        "spotted white three-legged lame black striped tame blind grey singing young golden sleepy horned wild "
        "crested dwarf brown long-tailed old"
    ),
    "dish": _words(
        "pickled roasted boiled smoked sweet sour burnt fried salted stuffed baked cold spiced dried honeyed raw "
        "peppered mashed grilled buttered"
    ),
    "product": _words(
        "blue painted carved woven heavy fine cheap polished red twisted thick plain green folded bright hollow "
        "smooth rough gilded dyed"
    ),
    "colour": _words("pale dark dusty bright deep milky faded glowing smoky wet dull warm soft cold rich sharp"),
    "ailment": _words(
        "swollen aching trembling itching stiff burning frozen weak bruised numb cracked twisted sore restless heavy cramped"
    ),
    "fabric": _words("green black torn rough old yellow striped soft scarlet oiled waxed faded knotted purple quilted brown"),
}
_SECOND_WORDS: Mapping[str, tuple[str, ...]] = {
    "trade": _words(
        "grinder maker seller painter mender carrier trader cutter keeper polisher binder thief inspector smith "
        "teacher hauler collector dyer weigher buyer"
    ),
    "animal": _words(
        "heron goat otter raven fox hare badger owl toad pony lynx stork mule beetle weasel swan ferret tortoise donkey crane"
    ),
    "dish": _words(
        "plums beans trout turnips cabbage mushrooms pears eggs eel onions barley cherries goose cheese walnuts "
        "parsnips mutton carrots chestnuts quinces"
    ),
    "product": _words(
        "pottery glass cloth chairs ropes knives lamps baskets tiles drums masks bells boots needles mirrors "
        "barrels saddles combs kites shields"
    ),
    "colour": _words("violet crimson orange blue white yellow pink purple green scarlet silver gold brown turquoise amber grey"),
    "ailment": _words("feet hands knees eyes ears fingers shoulders lips gums ankles elbows toes lungs hips teeth thumbs"),
    "fabric": _words("leather velvet linen silk wool canvas felt bark sealskin paper satin cotton hide parchment fur lace"),
    "water": _words("river lake creek canal marsh pond stream bay spring lagoon"),
}
_SHIP_WORDS = _words("Dawn Star Wind Rose Lantern Promise Fortune Arrow Crown Wanderer")
_BOOK_WORDS = _words("Chronicle Letters Songs Riddles Testament Journey Mystery Tales Dialogues Confession")
_PLANT_WORDS = _words("wort bane bell root fern thistle moss lily grass cress")


def _stems(rng: random.Random, *, count: int, syllables: int, taken: set[str]) -> tuple[str, ...]:
    """`count` new pronounceable stems, none in `taken`, which is extended."""
    stems: list[str] = []
    while len(stems) < count:
        parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
        stem = "".join(parts) + (rng.choice(_CODAS) if rng.random() < 0.6 else "")
        if stem not in taken and 4 <= len(stem) <= 9:
            taken.add(stem)
            stems.append(stem)
    return tuple(stems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """An order of named things that is taught in pairs and short lists, never as a whole."""

    name: str  # form of a thing's name; {s} is its stem
    more: str  # "{more} than"
    less: str
    most: str
    least: str


# The same stems bear all three names in unrelated orders, so that a stem alone says nothing about a rank.
RANKINGS = (
    Ranking(name="Mount {s}", more="higher", less="lower", most="highest", least="lowest"),
    Ranking(name="the {s} Bridge", more="longer", less="shorter", most="longest", least="shortest"),
    Ranking(name="the {s} Stone", more="heavier", less="lighter", most="heaviest", least="lightest"),
)


class World:
    """Every entity with its four facts, the taught orders, and the names that stories use. Built once from the seed."""

    def __init__(self, *, seed: int = SEED, scale: float = 1.0) -> None:
        rng = random.Random(f"world:{seed}")
        taken: set[str] = set()
        self.seed = seed
        first = _stems(rng, count=180, syllables=2, taken=taken)
        last = _stems(rng, count=400, syllables=2, taken=taken)
        towns = _stems(rng, count=120, syllables=2, taken=taken)
        waters = _stems(rng, count=40, syllables=2, taken=taken)
        things = _stems(rng, count=160, syllables=2, taken=taken)
        self.story_names = tuple(s.capitalize() for s in _stems(rng, count=48, syllables=2, taken=taken))
        pools: dict[str, tuple[str, ...]] = {}

        def pairs(lefts: Sequence[str], rights: Sequence[str], count: int, form: str = "{} {}") -> tuple[str, ...]:
            every = [form.format(a, b) for a in lefts for b in rights]
            return tuple(rng.sample(every, min(count, len(every))))

        people = pairs([s.capitalize() for s in first], [s.capitalize() for s in last], 1400)
        names = {
            "person": people,
            "town": pairs(_FIRST_WORDS["town"], [s.capitalize() for s in towns], 720),
            "ship": pairs([s.capitalize() for s in things], _SHIP_WORDS, 640, "the {} {}"),
            "book": pairs([s.capitalize() for s in things], _BOOK_WORDS, 640, "the {} {}"),
            "plant": pairs(things, _PLANT_WORDS, 600, "{} {}"),
        }
        pools["person"], pools["town"] = names["person"], names["town"]
        pools["water"] = pairs([s.capitalize() for s in waters], _SECOND_WORDS["water"], 400)
        for pool in ("trade", "animal", "dish", "product", "colour", "ailment", "fabric"):
            pools[pool] = pairs(_FIRST_WORDS[pool], _SECOND_WORDS[pool], 400)
        self.pools: Mapping[str, tuple[str, ...]] = pools
        self.orders = tuple(tuple(rng.sample(things, len(things))) for _ in RANKINGS)  # each from most to least
        self.entities = tuple(
            Entity(
                kind=kind,
                name=name,
                pronoun=rng.choice(("She", "He")) if kind.name == "person" else "It",
                values=(
                    rng.choice(pools[kind.attributes[0].values]),
                    rng.choice(pools[kind.attributes[1].values]),
                    rng.choice(pools[kind.attributes[2].values]),
                    rng.choice(pools[kind.attributes[3].values]),
                ),
            )
            for kind in KINDS
            for name in names[kind.name][: max(8, round(kind.count * scale))]
        )

    def reserved_phrasing(self, entity: Entity, attribute: Attribute) -> int:
        """Index (0..3) of the question phrasing of this fact that no document ever uses."""
        return bucket(f"{entity.name}|{attribute.name}", buckets=4)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _article(text: str) -> str:
    """'a old owl' -> 'an old owl': values are bare, so the article is repaired after filling in."""
    words = text.split(" ")
    for i in range(len(words) - 1):
        if words[i] in ("a", "A") and words[i + 1][:1] in "aeio":
            words[i] += "n"
    return " ".join(words)


# ------------------------------------------------------------------------------------- items and documents


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

    Two of the three share a word with the right one wherever the pool allows, so that half a memory is not
    enough.
    """
    attribute = entity.kind.attributes[index]
    value = entity.values[index]
    pool = [v for v in world.pools[attribute.values] if v != value]
    left, right = value.split(" ", 1)
    wrong: list[str] = []
    for near in ([v for v in pool if v.startswith(left + " ")], [v for v in pool if v.endswith(" " + right)], pool):
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
            lines.append(_article(_sentence(text)))
        return " ".join(lines)
    if shape < 0.70:
        lines = []
        for _ in range(rng.randint(3, 6)):
            entity = rng.choice(world.entities)
            index = rng.randrange(4)
            template = rng.choice(entity.kind.attributes[index].statements)
            text = template.format(s=entity.name, n=entity.name, v=entity.values[index])
            lines.append(_article(_sentence(text)))
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


_PLACE_FIRST = _words("stone grass north tall long empty dry broken round quiet")
_PLACE_SECOND = _words("barn mill garden tower cellar chapel market stable harbour kitchen")
_THING_FIRST = _words("tin red blue glass iron green brass bone clay silver white wax")
_THING_SECOND = _words("horn lamp jug key drum coin bowl spoon ring box cup rope")
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
    story = " ".join(_sentence(line) for line in lines)
    asked = []
    for superlative, answer in ((scale[1], things[0]), (scale[3], things[-1])):
        wrong = rng.sample([thing for thing in things if thing != answer], 3)
        asked.append((_qa(f"Which is the {superlative}?"), answer, [answer, *wrong]))
    return story, _items(rng, story, asked), things, scale


RANK_GAP = 24  # a task's statement is true, and the others false, by at least this many ranks


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
        context = _sentence(f"{_ranked_name(world, which, rank)} is {relation} than")
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
        lines.append(_sentence(text))
    return " ".join(lines)


def comparison_document(world: World, rng: random.Random, level: float) -> str:
    if rng.random() < 0.5:
        return ranking_document(world, rng)
    story, items, things, scale = comparison_story(world, rng, level)
    text = _questions(rng, story, items, most=2)
    if rng.random() < 0.3:
        text += f"\nFrom {scale[1]} to {scale[3]}: " + ", ".join(things) + "."
    return text


_NOUNS = _words(
    "farmer king miller boat lamp wheel guard horse garden tower letter drum child bridge lantern apple chair "
    "painter window pilot stone candle teacher doctor barrel key flag sailor tree cart man woman mouse goose ox "
    "wolf thief knife leaf calf wife shelf loaf fairy baby lady pony fox witch box brush fisherman watchman tooth "
    "foot boy girl baker singer river mountain ladder basket mirror hammer needle pocket blanket kettle saddle "
    "anchor feather shadow puppet orchard village temple castle forest meadow valley engine rocket clock bottle "
    "button collar jacket carpet cushion curtain pillow hunter weaver tailor porter beggar prince orphan giant "
    "dragon spider turtle rabbit squirrel pigeon parrot falcon lobster lizard"
)
_IRREGULAR = {
    "child": "children", "man": "men", "woman": "women", "mouse": "mice", "goose": "geese", "ox": "oxen",
    "wolf": "wolves", "thief": "thieves", "knife": "knives", "leaf": "leaves", "calf": "calves", "wife": "wives",
    "shelf": "shelves", "loaf": "loaves", "fairy": "fairies", "baby": "babies", "lady": "ladies", "pony": "ponies",
    "fox": "foxes", "witch": "witches", "box": "boxes", "brush": "brushes", "fisherman": "fishermen",
    "watchman": "watchmen", "tooth": "teeth", "foot": "feet",
}  # fmt: skip
_PREPOSITIONS = _words("near behind beside above below with from")
_QUALITIES = _words("old small red broken famous quiet tall empty dirty bright clever heavy lost strange")
_STATES = _words("ready late silent gone missing safe welcome expensive ugly wet clean cold useless here")
_VERBS = tuple(
    (plural + ("es" if plural.endswith(("sh", "ss", "go")) else "s"), plural)
    for plural in _words(
        "fall shine wait move return sleep dance sing work rest turn tremble vanish crack leak float sink burn grow "
        "shrink matter stay win lose swing bend shake rattle"
    )
)
_BE = (("is", "are"), ("was", "were"), ("has been", "have been"))
_SEES = tuple(
    (plural + ("es" if plural.endswith("sh") else "s"), plural)
    for plural in _words("admire follow know hide paint love fear need visit push pull guard draw want hate")
)
_ENDINGS = _words("today again slowly often now alone everywhere")


def _noun(word: str, plural: bool) -> str:
    return _IRREGULAR.get(word, word + "s") if plural else word


def agreement_pair(rng: random.Random, *, opposed: bool) -> tuple[str, str]:
    """A grammatical sentence and the same sentence with the verb in the wrong number.

    `opposed`: every noun between subject and verb has the other number than the subject (the distractors).
    """
    subject, *others = rng.sample(_NOUNS, 4)
    plural = rng.random() < 0.5

    def distractor(number: bool) -> str:
        quality = f"{rng.choice(_QUALITIES)} " if rng.random() < 0.3 else ""
        return f"the {quality}{_noun(others.pop(), number)}"

    def number() -> bool:
        return (not plural) if opposed else rng.random() < 0.5

    head = "the "
    if rng.random() < 0.4:
        head += rng.choice(_QUALITIES) + " "
    head += _noun(subject, plural)
    middle, shape = "", rng.random()
    if shape < 0.60:  # one to three nouns in a row of prepositions
        for _ in range(1 if shape < 0.2 else 2 if shape < 0.45 else 3):
            middle += f" {rng.choice(_PREPOSITIONS)} {distractor(number())}"
    elif shape < 0.80:  # the subject does something to the distractor
        middle = f" that {rng.choice(_SEES)[int(plural)]} {distractor(number())}"
    else:  # the distractor, with a verb of its own number, does something to the subject
        near = number()
        middle = f" that {distractor(near)} {rng.choice(_SEES)[int(near)]}"
    if rng.random() < 0.6:
        verb, ending = rng.choice(_BE), rng.choice(_STATES)
    else:
        verb, ending = rng.choice(_VERBS), rng.choice(_ENDINGS)
    start = _sentence(head + middle)
    return f"{start} {verb[int(plural)]} {ending}.", f"{start} {verb[int(not plural)]} {ending}."


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


_ORDINALS = _words("first second third fourth fifth sixth seventh eighth ninth tenth")


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


def document(world: World, skill: str, index: int, *, level: float = LEVEL, part: str = "train") -> str:
    """Document number `index` of a skill: a pure function of its arguments.

    `part` is train, heldout or calibration; the digest rule decides which drafts belong to it, so the parts
    cannot overlap.
    """
    wanted = {"heldout": (0,), "calibration": (1,)}.get(part, tuple(range(2, DOCUMENT_BUCKETS)))
    rng = random.Random(f"{world.seed}:{part}:{skill}:{index}")
    while True:
        text = DOCUMENTS[skill](world, rng, level)
        if bucket("document:" + text, buckets=DOCUMENT_BUCKETS) in wanted:
            return text


# Share of each skill in the tokens of the texts, and of training where a lesson names no shares of its own. Knowledge gets the
# largest, because every fact must be met many times.
MIXTURE: Mapping[str, float] = {
    "facts": 0.54,
    "tracking": 0.15,
    "comparison": 0.11,
    "agreement": 0.05,
    "arithmetic": 0.06,
    "recall": 0.09,
}


def rough_length(text: str) -> int:
    """Tokens of `text` within a few per cent, without a tokenizer: words, digits and other signs."""
    length, inside = 0, False
    for sign in text:
        if sign.isalpha() or (sign == "-" and inside):
            length += not inside
            inside = True
        else:
            inside = False
            length += sign != " "
    return length


class Mixer:
    """Chooses the skill of the next document so that the token shares follow `mixture` exactly.

    Its whole state is two small dictionaries, so that a training run can stop at any document and go on.
    """

    def __init__(self, world: World, *, mixture: Mapping[str, float] = MIXTURE, part: str = "train") -> None:
        self.world = world
        self.mixture = dict(mixture)  # may be replaced on the way; it then holds from there on
        self.part = part
        self.counts = dict.fromkeys(SKILLS, 0)
        self.lengths = dict.fromkeys(SKILLS, 0)
        self.owed = dict.fromkeys(SKILLS, 0.0)  # tokens that each skill still has to get

    def next(self, *, level: float = LEVEL) -> str:
        skill = max(SKILLS, key=lambda s: self.owed[s] + self.mixture[s])
        text = document(self.world, skill, self.counts[skill], level=level, part=self.part)
        self.counts[skill] += 1
        length = rough_length(text)
        self.lengths[skill] += length
        for name in SKILLS:
            self.owed[name] += self.mixture[name] * length
        self.owed[skill] -= length
        return text

    def state(self) -> dict[str, dict[str, int] | dict[str, float]]:
        return {"counts": dict(self.counts), "lengths": dict(self.lengths), "owed": dict(self.owed)}

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self.counts, self.lengths, self.owed = dict(state["counts"]), dict(state["lengths"]), dict(state["owed"])


def text_part(world: World, part: str, *, tokens: int) -> str:
    """At least about `tokens` tokens of the held-out or the calibration text, documents split by blank lines."""
    mixer = Mixer(world, part=part)
    documents: list[str] = []
    while sum(mixer.lengths.values()) < tokens:
        documents.append(mixer.next())
    random.Random(f"{world.seed}:{part}:order").shuffle(documents)
    return "\n\n".join(documents) + "\n"


# ------------------------------------------------------------------------------------------------- tasks


def _draw_items(world: World, skill: str) -> Iterator[Item]:
    """Reserved items, at most one from each story, so that they are independent."""
    index = 0
    while True:
        rng = random.Random(f"{world.seed}:task:{skill}:{index}")
        index += 1
        if skill == "tracking":
            items = tracking_story(world, rng, LEVEL)[1]
        elif skill == "comparison":
            items = comparison_story(world, rng, LEVEL)[1]
        else:
            items = recall_list(world, rng, LEVEL)[1]
        reserved = [item for item in items if item_is_reserved(item.context)]
        if reserved:
            yield rng.choice(reserved)


def task_items(world: World, skill: str, *, count: int) -> list[dict[str, object]]:
    """The rows of one task's JSONL file, all reserved, all different, in a seeded order."""
    rng = random.Random(f"{world.seed}:task:{skill}")
    if skill == "facts":
        facts = [(entity, index) for entity in world.entities for index in range(4)]
        items = [fact_item(world, rng, entity, index) for entity, index in rng.sample(facts, count)]
        return [{"context": i.context, "choices": list(i.choices), "gold": i.gold} for i in items]
    if skill == "agreement":
        pairs: dict[str, str] = {}
        while len(pairs) < count:
            good, bad = agreement_pair(rng, opposed=True)
            if item_is_reserved(good):
                pairs[good] = bad
        return [{"good": good, "bad": bad} for good, bad in pairs.items()]
    if skill == "arithmetic":
        rows: dict[str, dict[str, object]] = {}
        while len(rows) < count:
            question, answer, key = equation(rng)
            if item_is_reserved(key):
                rows[key] = {"question": question, "answer": answer}
        return list(rows.values())
    chosen: dict[str, Item] = {}
    while skill == "comparison" and len(chosen) < count // 2:  # one half asks for taught orders, the other for told ones
        item = ranking_item(world, rng)
        chosen.setdefault(item.context, item)
    for item in _draw_items(world, skill):
        chosen.setdefault(item.context, item)
        if len(chosen) == count:
            break
    items = list(chosen.values())
    if skill == "comparison":
        rng.shuffle(items)
    return [{"context": i.context, "choices": list(i.choices), "gold": i.gold} for i in items]


TASK_ITEMS: Mapping[str, int] = {
    "facts": 800,
    "tracking": 600,
    "comparison": 600,
    "agreement": 600,
    "arithmetic": 500,
    "recall": 600,
}
HELDOUT_TOKENS = 230_000
CALIBRATION_TOKENS = 150_000


def write(out: Path, *, seed: int = SEED) -> list[Path]:
    """Write tasks/*.jsonl, heldout.txt and calibration.txt under `out`; returns what was written."""
    world = World(seed=seed)
    written: list[Path] = []
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    for skill in SKILLS:
        path = out / "tasks" / f"{skill}.jsonl"
        rows = task_items(world, skill, count=TASK_ITEMS[skill])
        path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode("ascii"))
        written.append(path)
    for part, tokens in (("heldout", HELDOUT_TOKENS), ("calibration", CALIBRATION_TOKENS)):
        path = out / f"{part}.txt"
        path.write_bytes(text_part(world, part, tokens=tokens).encode("ascii"))
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the reference tasks and texts.")
    parser.add_argument("--out", type=Path, required=True, help="folder for tasks/, heldout.txt, calibration.txt")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    for path in write(arguments.out, seed=arguments.seed):
        print(f"{path}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
