"""Some questions of a plan by themselves: which ones are meant, and the plan that holds nothing else.

A question is meant by its key (a record's key; a unique beginning of at least 8 digits is enough), or by its name, `MODEL / CELL:
PROBE SUBJECT`, which stays the same when a new version or another day gives it another key. `MODEL / CELL` means all of its
questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.errors import BadInput, UnknownName
from harness.probes import sequential
from harness.run.identity import Inputs
from harness.spec import Cell, Question, Served
from harness.suite.plan import Plan, PlannedCell

FEWEST_DIGITS = 8
"""Of a key's 64: among a million questions two share as many by a chance of one in nine thousand for each."""

APART = "confirm"
"""The folder, in a suite's own, of run files that hold some questions only: no night, and never taken for one."""

_KEY = re.compile(r"[0-9a-f]+")


def question_name(cell: Cell, question: Question) -> str:
    """What people call a question, the same in every run: `tiny / rtn 4-bit: perplexity reference`."""
    return f"{cell.name}: {question.probe} {question.subject}".rstrip()


def narrow(inputs: Inputs, wanted: Sequence[str]) -> Inputs:
    """The inputs with a plan that holds the wanted questions, those of the baseline that these are paired with item by item, and
    each model's baseline, which others are held against. BadInput for a name that means no question, or several."""
    known = [
        (number, question, inputs.key(planned.cell, question))
        for number, planned in enumerate(inputs.plan.cells)
        for question in planned.questions
    ]
    names: dict[str, list[str]] = {}
    for number, question, key in known:
        cell = inputs.plan.cells[number].cell
        names.setdefault(cell.name, []).append(key)
        names.setdefault(question_name(cell, question), []).append(key)
    keys = {key for text in wanted for key in _meant(text, [key for _, _, key in known], names)}
    keys |= {
        inputs.baseline_key(inputs.plan.cells[number].cell, question)
        for number, question, key in known
        if key in keys and sequential.settings(question) is not None
    }
    asked: dict[int, list[Question]] = {}
    for number, question, key in known:
        if key in keys:
            asked.setdefault(number, []).append(question)
    return replace(inputs, plan=_plan_of(inputs.plan, asked, wanted))


def _plan_of(plan: Plan, asked: dict[int, list[Question]], wanted: Sequence[str]) -> Plan:
    models = {plan.cells[number].cell.model for number in asked}
    wishes = [plan.cells[number].cell for number in asked]
    artifacts = {(c.model, c.origin.artifact) for c in wishes if isinstance(c.origin, Served)}
    cells: list[PlannedCell] = []
    for number, planned in enumerate(plan.cells):
        served = (planned.cell.model, planned.cell.label) in artifacts
        if number in asked or served or (planned.baseline and planned.cell.model in models):
            cells.append(replace(planned, questions=tuple(asked.get(number, ()))))
    count = sum(map(len, asked.values()))
    note = (
        f"Asked by name: {count} question{'s' if count != 1 else ''} of the suite, and none of its others. "
        "This is no whole run of the suite."
    )
    return replace(plan, cells=tuple(cells), unsupported=(), notes=(*plan.notes, note), only=tuple(wanted))


def _meant(text: str, keys: Iterable[str], names: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The keys that a text means."""
    if text in names:
        return names[text]
    if not _KEY.fullmatch(text):
        raise UnknownName("question", text, names, where="--only")
    if len(text) < FEWEST_DIGITS:
        raise BadInput(f"--only {text}: {len(text)} digits are too few to tell questions apart; give at least {FEWEST_DIGITS}")
    found = sorted({key for key in keys if key.startswith(text)})
    if len(found) > 1:
        raise BadInput(
            f"--only {text}: {len(found)} questions begin so; give more digits, for example {found[0][: len(text) + 8]}"
        )
    if not found:
        raise BadInput(
            f"--only {text}: no question of this suite has such a key; keys change with weights, versions and definitions, so "
            "look the present ones up with: quant-harness plan SUITE --json, or name the question, as in "
            f"--only {next((name for name in names if ': ' in name), 'MODEL / CELL: PROBE SUBJECT')!r}"
        )
    return found
