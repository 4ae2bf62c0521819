"""A task's items, answered: what a side-car keeps of each, and what a cell's are compared with.

The baseline's side-car also holds what was asked, shortened: the same for all cells, so that it is kept once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.spec import Json, to_json

PROMPT_CHARACTERS, ANSWER_CHARACTERS, CHOICES = 400, 120, 12
"""What is kept of a text: the end of a prompt (its examples come first), the beginning of an answer, the first choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemText:
    """What an item asks, shortened for people: the end of its `prompt`, its `choices` where it has some, else the `target`."""

    prompt: str
    choices: tuple[str, ...] = ()
    target: str = ""

    def row(self) -> dict[str, Json]:
        parts: dict[str, Json] = {"prompt": self.prompt, "choices": list(self.choices), "target": self.target}
        return {name: value for name, value in parts.items() if value}


def text_of(arguments: Sequence[Sequence[object]], target: object, *, choices: bool) -> ItemText:
    """The text of an item from the arguments of its requests: (context, continuation) of each choice, or (context, settings)."""
    prompt = _shortened(str(arguments[0][0]), PROMPT_CHARACTERS, end=True)
    if not choices:
        return ItemText(prompt=prompt, target=_shortened(str(target), ANSWER_CHARACTERS))
    said = tuple(_shortened(str(one[1]), ANSWER_CHARACTERS) for one in arguments[:CHOICES] if len(one) > 1)
    return ItemText(prompt=prompt, choices=said)


def _shortened(text: str, limit: int, *, end: bool = False) -> str:
    """At most `limit` characters of a text, its end or its beginning; an ellipsis says where some are left out."""
    if len(text) <= limit:
        return text
    return f"\u2026{text[-limit:]}" if end else f"{text[:limit]}\u2026"


def said_of(response: object) -> str:
    """What a model wrote, shortened."""
    return _shortened(str(response), ANSWER_CHARACTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One answered item. `id` names its content, `doc` is its place in the data, `task` the task that it is of where a group has
    several. `correct` is 0 or 1, a share of credit, or None where a task knows no right and wrong; `correct_norm` the same by
    length-normalized choice. `loglikelihoods` of the choices in nats, `gold` the right one, `margin` its distance from the best
    other one. `cluster`: what it shares with other items (a passage). `text`: what it asks; `said`: what was written in answer,
    where the task has the model write."""

    id: str
    doc: int
    correct: float | None
    correct_norm: float | None = None
    loglikelihoods: tuple[float, ...] | None = None
    nonfinite: bool = False
    gold: int | None = None
    margin: float | None = None
    cluster: str | None = None
    task: str | None = None
    text: ItemText | None = None
    said: str | None = None

    @property
    def passage(self) -> str | None:
        """What it shares with others, told apart by task."""
        return None if self.cluster is None else f"{self.task or ''}|{self.cluster}"

    def row(self) -> dict[str, Json]:
        """The item as a side-car keeps it: what it does not have is left out."""
        parts: dict[str, Json] = {
            "id": self.id,
            "doc": self.doc,
            "correct_norm": self.correct_norm,
            "loglikelihoods": self.loglikelihoods,
            "nonfinite": self.nonfinite or None,
            "gold": self.gold,
            "margin": self.margin,
            "correct": self.correct,
            "cluster": self.cluster,
            "task": self.task,
            "text": None if self.text is None else self.text.row(),
            "said": self.said,
        }
        return {name: value for name, value in parts.items() if value is not None or name == "correct"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineItems:
    """The baseline's answers to all items: the `definition` that they were measured under, and lm-eval's name of the metric."""

    items: tuple[Item, ...]
    metric: str
    definition: str


def item_of(row: Mapping[str, Json]) -> Item:
    """Inverse of `Item.row`, as far as items are compared: their log-likelihoods and texts are left where they are."""
    return Item(
        id=str(row["id"]),
        doc=int(row["doc"]),
        correct=row["correct"],
        cluster=row.get("cluster"),
        task=row.get("task"),
    )


def baseline_items(kept: Mapping[str, Json]) -> BaselineItems:
    """What a session hands out as `baseline_items`."""
    items = tuple(item_of(row) for row in kept["items"])
    return BaselineItems(items=items, metric=str(kept["metric"]), definition=str(kept["definition"]))


def side_car(items: Sequence[Item], **head: str) -> bytes:
    """The side-car of these items: `head`, then their rows."""
    data = {**head, "items": [item.row() for item in items]}
    return json.dumps(to_json(data), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
