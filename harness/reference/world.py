"""The invented world: its entities with their facts, its taught orders and its names, built from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.reference.english import words_of
from harness.reference.kinds import KINDS, Attribute, Kind
from harness.reference.reserved import bucket

SEED = 20261121


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    kind: Kind
    name: str
    pronoun: str
    values: tuple[str, str, str, str]


_ONSETS = words_of("b d f g h k l m n p r s t v z br dr gr kr tr st sk fl gl th sh")
_VOWELS = words_of("a e i o u ai ea ou")
_CODAS = words_of("l n r s m k t nd rn st lm")


_FIRST_WORDS: Mapping[str, tuple[str, ...]] = {
    "town": words_of("North South East West Upper Lower Old New Port Saint Great Little High Deep Fair Grey"),
    "trade": words_of(
        "lens bell rope salt clock glass boat silver paper leather candle bridge barrel map horse stone tile wool ink sail"
    ),
    "animal": words_of(
        "spotted white three-legged lame black striped tame blind grey singing young golden sleepy horned wild "
        "crested dwarf brown long-tailed old"
    ),
    "dish": words_of(
        "pickled roasted boiled smoked sweet sour burnt fried salted stuffed baked cold spiced dried honeyed raw "
        "peppered mashed grilled buttered"
    ),
    "product": words_of(
        "blue painted carved woven heavy fine cheap polished red twisted thick plain green folded bright hollow "
        "smooth rough gilded dyed"
    ),
    "colour": words_of("pale dark dusty bright deep milky faded glowing smoky wet dull warm soft cold rich sharp"),
    "ailment": words_of(
        "swollen aching trembling itching stiff burning frozen weak bruised numb cracked twisted sore restless heavy cramped"
    ),
    "fabric": words_of("green black torn rough old yellow striped soft scarlet oiled waxed faded knotted purple quilted brown"),
}
_SECOND_WORDS: Mapping[str, tuple[str, ...]] = {
    "trade": words_of(
        "grinder maker seller painter mender carrier trader cutter keeper polisher binder thief inspector smith "
        "teacher hauler collector dyer weigher buyer"
    ),
    "animal": words_of(
        "heron goat otter raven fox hare badger owl toad pony lynx stork mule beetle weasel swan ferret tortoise donkey crane"
    ),
    "dish": words_of(
        "plums beans trout turnips cabbage mushrooms pears eggs eel onions barley cherries goose cheese walnuts "
        "parsnips mutton carrots chestnuts quinces"
    ),
    "product": words_of(
        "pottery glass cloth chairs ropes knives lamps baskets tiles drums masks bells boots needles mirrors "
        "barrels saddles combs kites shields"
    ),
    "colour": words_of(
        "violet crimson orange blue white yellow pink purple green scarlet silver gold brown turquoise amber grey"
    ),
    "ailment": words_of("feet hands knees eyes ears fingers shoulders lips gums ankles elbows toes lungs hips teeth thumbs"),
    "fabric": words_of("leather velvet linen silk wool canvas felt bark sealskin paper satin cotton hide parchment fur lace"),
    "water": words_of("river lake creek canal marsh pond stream bay spring lagoon"),
}
_SHIP_WORDS = words_of("Dawn Star Wind Rose Lantern Promise Fortune Arrow Crown Wanderer")
_BOOK_WORDS = words_of("Chronicle Letters Songs Riddles Testament Journey Mystery Tales Dialogues Confession")
_PLANT_WORDS = words_of("wort bane bell root fern thistle moss lily grass cress")


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


# The same stems bear all these names in unrelated orders, so that a stem alone says nothing about a rank.
RANKINGS = (
    Ranking(name="Mount {s}", more="higher", less="lower", most="highest", least="lowest"),
    Ranking(name="the {s} Bridge", more="longer", less="shorter", most="longest", least="shortest"),
    Ranking(name="the {s} Stone", more="heavier", less="lighter", most="heaviest", least="lightest"),
    Ranking(name="the {s} Well", more="deeper", less="shallower", most="deepest", least="shallowest"),
)


class World:
    """Every entity with its four facts, the taught orders, and the names that stories use. Built once from the seed."""

    def __init__(self, *, seed: int = SEED, scale: float = 1.0) -> None:
        rng = random.Random(f"world:{seed}")
        taken: set[str] = set()
        self.seed = seed
        first = _stems(rng, count=200, syllables=2, taken=taken)
        last = _stems(rng, count=480, syllables=2, taken=taken)
        towns = _stems(rng, count=180, syllables=2, taken=taken)
        waters = _stems(rng, count=40, syllables=2, taken=taken)
        things = _stems(rng, count=240, syllables=2, taken=taken)
        self.story_names = tuple(s.capitalize() for s in _stems(rng, count=48, syllables=2, taken=taken))
        pools: dict[str, tuple[str, ...]] = {}

        def pairs(lefts: Sequence[str], rights: Sequence[str], count: int, form: str = "{} {}") -> tuple[str, ...]:
            every = [form.format(a, b) for a in lefts for b in rights]
            return tuple(rng.sample(every, min(count, len(every))))

        counts = {kind.name: kind.count for kind in KINDS}
        capitals = [s.capitalize() for s in things]
        names = {
            "person": pairs([s.capitalize() for s in first], [s.capitalize() for s in last], counts["person"]),
            "town": pairs(_FIRST_WORDS["town"], [s.capitalize() for s in towns], counts["town"]),
            "ship": pairs(capitals, _SHIP_WORDS, counts["ship"], "the {} {}"),
            "book": pairs(capitals, _BOOK_WORDS, counts["book"], "the {} {}"),
            "plant": pairs(things, _PLANT_WORDS, counts["plant"]),
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
