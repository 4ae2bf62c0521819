"""The items whose answers flipped, with what was asked and how near the answers were: texts that the probes kept.

The texts of a task's items lie once, in the side-car of the model's baseline (`probes/items.py`); what a cell answered lies
in its own. Side-cars of older runs hold no texts, and raw samples may not be on this disk: then an item is named by its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.gate import words
from harness.gate.types import Finding, Flip
from harness.series import square_identity
from harness.spec import Json, Record
from harness.store import Run

MOST = 12
"""Items that are shown of one finding, those that were lost first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An item that flipped. `prompt` is the end of what was asked, `right` the right answer, `wrong` the other choices, `place`
    where it stands in the task's data; '' and none where they were not kept. `before`, `after`: what is known of the two answers:
    what was written, or how far the right choice was ahead in nats (negative: behind)."""

    flip: Flip
    place: str
    prompt: str = ""
    right: str = ""
    wrong: tuple[str, ...] = ()
    before: str = ""
    after: str = ""


Examples = Callable[[Finding], Sequence[Example]]


def bare(f: Finding) -> Sequence[Example]:
    """The flipped items by their names alone: where no run is at hand."""
    return [Example(flip=flip, place=f"item {flip.item}") for flip in _chosen(f)]


def of_runs(base: Run, candidate: Run, accepted: Run | None = None) -> Examples:
    """What shows the items of a finding from the stored runs. Each side-car is read once."""
    sides = {"base": _Side(base), "accepted": _Side(accepted) if accepted is not None else None}
    now = _Side(candidate)

    def examples(f: Finding) -> Sequence[Example]:
        then = sides[f.against]
        return [_example(f, flip, then, now) for flip in _chosen(f)]

    return examples


def _chosen(f: Finding) -> Sequence[Flip]:
    lost, won = words.flips(f)
    return (*lost, *won)[:MOST]


def _example(f: Finding, flip: Flip, then: _Side | None, now: _Side) -> Example:
    own = now.row(f.square.identity, flip)
    earlier = {} if then is None else then.row(f.square.identity, flip)
    asked = now.asked(f.square.model, flip) or ({} if then is None else then.asked(f.square.model, flip))
    text = asked.get("text")
    text = text if isinstance(text, dict) else {}
    choices, gold, doc = text.get("choices"), asked.get("gold", own.get("gold")), own.get("doc")
    right, wrong = str(text.get("target", "")), list[str]()
    if isinstance(choices, list) and type(gold) is int and 0 <= gold < len(choices):
        right, wrong = str(choices[gold]), [str(c) for place, c in enumerate(choices) if place != gold]
    return Example(
        flip=flip,
        place=f"item {doc + 1} of {flip.task}" if type(doc) is int else f"item {flip.item}",
        prompt=str(text.get("prompt", "")),
        right=right,
        wrong=tuple(wrong),
        before=_answered(earlier),
        after=_answered(own),
    )


def _answered(row: Mapping[str, Json]) -> str:
    """What is known of an answer: what was written, else by how much the right choice led."""
    said, margin = row.get("said"), row.get("margin")
    if isinstance(said, str):
        return said
    if isinstance(margin, (int, float)) and not isinstance(margin, bool):
        return f"{'ahead' if margin > 0 else 'behind'} by {abs(margin):.3g} nats"
    return ""


class _Side:
    """The items of one run: rows by task and id, for each cell and for the side-cars that hold texts."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._baselines = {square_identity(p.cell) for p in run.plan.cells if p.baseline}
        self._records: dict[tuple[str, str], Record] = {}
        self._asked: dict[tuple[str, str], Record] = {}
        known: dict[str, str] = {}
        for record in run.records:
            written = repr(record.cell)
            if written not in known:
                known[written] = square_identity(record.cell)
            identity, subject = known[written], record.question.subject
            if _blob(record):
                self._records[identity, subject] = record
                if identity in self._baselines:
                    self._asked[record.cell.model.name, subject] = record
        self._rows: dict[str, dict[str, dict[str, Json]]] = {}

    def row(self, identity: str, flip: Flip) -> Mapping[str, Json]:
        """A cell's answer to an item; empty where it is not kept."""
        return self._found(self._records.get((identity, flip.task)), flip)

    def asked(self, model: str, flip: Flip) -> Mapping[str, Json]:
        """The baseline's row of an item, which holds its text; empty where it is not kept."""
        return self._found(self._asked.get((model, flip.task)), flip)

    def _found(self, record: Record | None, flip: Flip) -> Mapping[str, Json]:
        name = "" if record is None else _blob(record)
        if name and name not in self._rows:
            self._rows[name] = self._read(name)
        return self._rows.get(name, {}).get(flip.item, {})

    def _read(self, name: str) -> dict[str, dict[str, Json]]:
        try:
            kept = json.loads(self._run.blob(name))
        except (OSError, HarnessError, ValueError, RecursionError):
            return {}
        rows = kept.get("items") if isinstance(kept, dict) else None
        return {str(row.get("id")): row for row in rows if isinstance(row, dict)} if isinstance(rows, list) else {}


def _blob(record: Record) -> str:
    """The side-car of items of a record; '' where it has none."""
    if record.answer is None:
        return ""
    return next((m.blob for m in record.answer.measurements if m.blob is not None and m.blob.endswith(".json")), "")
