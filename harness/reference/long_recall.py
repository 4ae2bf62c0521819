"""Long-context recall: what six people's secret words are, told at spread places of a long text, one of them asked at its end.

Tasks of any model whose context allows them, made for what quantized keys and values break (docs/kv.md). All other sentences say
what people bought, in one form. Each choice is a secret word of the same text, so that whoever only knows what kind of word is
wanted guesses at chance. A choice is one common English word, in most tokenizers one token, so that an engine runs a text once
for all its choices.

The length is fixed in characters, so that every model reads the same text; how many tokens those are is its tokenizer's affair.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from harness.reference.english import words_of
from harness.reference.world import World

LENGTHS: Mapping[str, int] = {"recall_1k": 4_000, "recall_2k": 8_000, "recall_4k": 16_000}
"""Characters of a task's texts at most: in English, somewhat less than 1,024, 2,048 and 4,096 tokens."""

ITEMS = 50
NEEDLES = 6
CHOICES = 4

_SECRETS = words_of(
    "horse sheep goat dog cat bird fish bear wolf hammer knife bell clock chair table lamp key ring book drum boat wheel rope "
    "box coin bottle hat coat shoe mirror brush candle"
)
_GOODS = words_of("bread cheese butter honey salt rice corn sugar wood paper cotton wool leather glass iron silver gold stone")
_TOLD = "The secret word of {name} is {word}."
_BOUGHT = "{name} went to the market and bought some {word} for the evening."


def recall_items(world: World, task: str) -> list[dict[str, object]]:
    """The rows of a task of `LENGTHS`: `context` ends right before the answer, `choices[gold]` is the answer, `depth` (0 to 1)
    the share of the text before the sentence that tells it. Each of the needles' places is asked equally often, within one."""
    people = list(dict.fromkeys(entity.name.split(" ")[0] for entity in world.entities if entity.kind.name == "person"))
    return [_item(random.Random(f"{world.seed}:{task}:{number}"), people, LENGTHS[task], number) for number in range(ITEMS)]


def _item(rng: random.Random, people: list[str], length: int, number: int) -> dict[str, object]:
    """One item. The needles' places are those of even parts of the text, within one sentence."""
    named = rng.sample(people, NEEDLES)
    others = [name for name in people if name not in named]
    words = rng.sample(_SECRETS, NEEDLES)
    told = [_TOLD.format(name=name, word=word) for name, word in zip(named, words, strict=True)]
    asked = number % NEEDLES
    question = told[asked].rpartition(" ")[0]
    lines: list[str] = []
    left = length - len(question) - sum(len(line) + 1 for line in told)
    while True:
        line = _BOUGHT.format(name=rng.choice(others), word=rng.choice(_GOODS))
        if len(line) + 1 > left:
            break
        left -= len(line) + 1
        lines.append(line)
    for place in reversed(range(NEEDLES)):
        lines.insert(round((place + rng.random()) / NEEDLES * len(lines)), told[place])
    choices = [words[asked], *rng.sample([word for word in words if word != words[asked]], CHOICES - 1)]
    rng.shuffle(choices)
    text = " ".join(lines)
    return {
        "context": f"{text}\n{question}",
        "choices": choices,
        "gold": choices.index(words[asked]),
        "depth": round(text.index(told[asked]) / len(text), 3),
    }
