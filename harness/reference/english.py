"""The English that needs no world: sentences and articles, and pairs of sentences that differ in the number of their verb."""

from __future__ import annotations

import random


def words_of(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def with_articles(text: str) -> str:
    """'a old owl' -> 'an old owl': values are bare, so the article is repaired after filling in."""
    words = text.split(" ")
    for i in range(len(words) - 1):
        if words[i] in ("a", "A") and words[i + 1][:1] in "aeio":
            words[i] += "n"
    return " ".join(words)


_NOUNS = words_of(
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
_PREPOSITIONS = words_of("near behind beside above below with from")
_QUALITIES = words_of("old small red broken famous quiet tall empty dirty bright clever heavy lost strange")
_STATES = words_of("ready late silent gone missing safe welcome expensive ugly wet clean cold useless here")
_VERBS = tuple(
    (plural + ("es" if plural.endswith(("sh", "ss", "go")) else "s"), plural)
    for plural in words_of(
        "fall shine wait move return sleep dance sing work rest turn tremble vanish crack leak float sink burn grow "
        "shrink matter stay win lose swing bend shake rattle"
    )
)
_BE = (("is", "are"), ("was", "were"), ("has been", "have been"))
_SEES = tuple(
    (plural + ("es" if plural.endswith("sh") else "s"), plural)
    for plural in words_of("admire follow know hide paint love fear need visit push pull guard draw want hate")
)
_ENDINGS = words_of("today again slowly often now alone everywhere")


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
    start = sentence(head + middle)
    return f"{start} {verb[int(plural)]} {ending}.", f"{start} {verb[int(not plural)]} {ending}."
