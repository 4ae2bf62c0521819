"""The corpus of the reference model: a seeded generator of plain English about an invented world.

What it promises: the same seed gives the same bytes on every Python from 3.10 on, on every platform and under
every hash seed (only `random.Random` seeded with text, and blake2b, decide anything). What it refuses: to put
a held-out question into the training stream (`reserved.py`). Here documents of all skills (`skills.py`) are mixed, and the tasks
and texts are written:

    python -m harness.reference.corpus --out DIR      # tasks, held-out text, calibration text
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.reference.english import agreement_pair
from harness.reference.long_recall import LENGTHS, recall_items
from harness.reference.reserved import DOCUMENT_BUCKETS, bucket, item_is_reserved
from harness.reference.skills import (
    DOCUMENTS,
    SKILLS,
    Item,
    comparison_story,
    equation,
    fact_item,
    ranking_item,
    recall_list,
    tracking_story,
)
from harness.reference.world import SEED, World

LEVEL = 0.8  # how hard stories and lists are in the tasks and texts; training gets there from 0


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
    while skill == "comparison" and len(chosen) < count * 2 // 3:  # these ask for taught orders, the others for told ones
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


def _write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode("ascii"))
    return path


def write(out: Path, *, seed: int = SEED) -> list[Path]:
    """Write tasks/*.jsonl, heldout.txt and calibration.txt under `out`; returns what was written."""
    world = World(seed=seed)
    written: list[Path] = []
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    for skill in SKILLS:
        path = out / "tasks" / f"{skill}.jsonl"
        rows = task_items(world, skill, count=TASK_ITEMS[skill])
        written.append(_write_rows(path, rows))
    for task in LENGTHS:
        written.append(_write_rows(out / "tasks" / f"{task}.jsonl", recall_items(world, task)))
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
