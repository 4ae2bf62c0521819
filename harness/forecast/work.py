"""The work of a cell, piece by piece, and where in the history each piece is looked up.

A piece is a stage (`start` of an environment's process, `source`, `sample` of a text that the model writes, `quantize`, `load`,
`verify`, and the `rest` between the others) or a question. It is looked up in places, the most telling first: where the same
was done before; where the same cell was asked of the same corpus or task with another limit; then the same scheme for another
model, the same method at other bits, another method on the same engine; and where none was asked of that corpus or task, any
question of the probe.

What is found for another model is scaled by parameters, what grows with the model (its own seconds) to a range: from not at all
to in proportion, because a small model does not keep a machine busy. Where another question was asked, all of it is scaled by
the tokens or items that were asked for. Of what was found for several models, those of the nearest size count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from harness.costs import Source
from harness.spec import Cell, Question, digest
from harness.suite.plan import PlannedCell

REST = "rest"
"""What a cell's time holds beside its other pieces: processes that start and end, answers that are stored."""


Standing: TypeAlias = Mapping[Source, str]
"""What a cell shares with others, by the source that it makes of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One entry of the history. `alike`: what is there was asked the same, so that tokens and items need no scaling."""

    source: Source
    key: str
    alike: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A piece that is still to be done. `model` tells models apart, `parameters` counts theirs."""

    what: str
    subject: str
    question: str
    places: tuple[Place, ...]
    model: str
    parameters: int | None
    units: float | None
    scored_tokens: int | None = None

    @property
    def entry(self) -> str:
        return entry(self.what, self.question)

    @property
    def name(self) -> str:
        return f"{self.what} {self.subject}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Todo:
    """What is left to do for a cell. `stages` are done beside its questions, each with its subject ('' for most)."""

    planned: PlannedCell
    questions: tuple[Question, ...]
    stages: tuple[tuple[str, str], ...] = ()

    @property
    def makes_artifact(self) -> bool:
        return any(what == "quantize" for what, _ in self.stages)

    @property
    def work(self) -> tuple[Work, ...]:
        """Its pieces in order; none where every question is answered."""
        if not self.questions:
            return ()
        shared = standing(self.planned.cell, baseline=self.planned.baseline)
        before = [_piece(self.planned, shared, what, subject, None) for what, subject in self.stages]
        questions = [_piece(self.planned, shared, question.probe, question.subject, question) for question in self.questions]
        return (*before, *questions, _piece(self.planned, shared, REST, "", None))


def asked(question: Question) -> str:
    """What tells two questions apart."""
    return digest(question)[:16]


def model_of(cell: Cell) -> str:
    """What tells two models apart."""
    return digest(cell.model)[:16]


def units(cell: Cell, what: str, question: Question | None) -> float | None:
    """What the time of a piece goes with, beside the model: tokens that are scored or seen, items, seconds
    that the suite grants; None where nobody can say."""
    if question is None:
        rows = cell.scheme.options.get("calibration") if what in ("quantize", "sample") else None
        return float(rows["samples"] * rows["length"]) if rows else 1.0
    options = question.options
    if "budget_seconds" in options:  # it ends by the clock
        return float(options["budget_seconds"])
    if {"prompt", "new", "batch"} <= options.keys():
        return float((options["prompt"] + options["new"]) * options["batch"])
    wanted = options.get("tokens") or options.get("limit")
    return float(wanted) if isinstance(wanted, int) else None


def standing(cell: Cell, *, baseline: bool) -> Standing:
    """What a cell shares with others, from what makes it itself to the engine alone. A baseline answers questions in another
    way than those that are compared with it."""
    role, engine = "baseline" if baseline else "cell", cell.running.engine
    return {
        "same": digest([role, cell.identity()])[:16],
        "scheme": digest([role, cell.scheme.identity(), cell.running])[:16],
        "method": f"{role} {engine} {cell.method}",
        "engine": f"{role} {engine}",
    }


def entry(what: str, question: str) -> str:
    """The name under which a piece is kept: a probe may be called as a stage is."""
    return f"ask {what}" if question else what


def places(what: str, question: str, subject: str, shared: Standing) -> tuple[Place, ...]:
    """Where a piece is kept in the history, and where it is looked for, the most telling place first. `what` is its `entry`;
    `question` its digest, or for what a whole cell holds the digest of all that it is asked; `subject` what people call it."""
    if what == "quantize":  # one method's time says nothing of another's, and other options mean other calibration rows
        levels: tuple[Source, ...] = ("same", "scheme", "method")
        return tuple(_place(what, "", shared, level, alike=level != "method") for level in levels)
    if not question:
        return tuple(_place(what, subject, shared, level, alike=True) for level in shared)
    alike = {level: _place(what, question, shared, level, alike=True) for level in shared}
    called = {level: _place(what, f"called {subject}", shared, level, alike=False) for level in shared}
    other = {level: _place(what, "", shared, level, alike=False) for level in shared}
    return (
        alike["same"],
        replace(called["same"], source="scheme"),
        *(alike["scheme"], called["scheme"], alike["method"], called["method"], alike["engine"], called["engine"]),
        replace(other["same"], source="scheme"),
        *(other["scheme"], other["method"], other["engine"]),
    )


def _place(what: str, question: str, shared: Standing, level: Source, *, alike: bool) -> Place:
    return Place(source=level, alike=alike, key=f"{what}|{question}|{level}|{shared[level]}")


def _piece(planned: PlannedCell, shared: Standing, what: str, subject: str, question: Question | None) -> Work:
    cell, own = planned.cell, "" if question is None else asked(question)
    tokens = None if question is None else question.options.get("tokens")
    return Work(
        what=what,
        subject=subject,
        question=own,
        places=places(entry(what, own), own, subject, shared),
        model=model_of(cell),
        parameters=planned.parameters,
        units=units(cell, what, question),
        scored_tokens=tokens if isinstance(tokens, int) else None,
    )
