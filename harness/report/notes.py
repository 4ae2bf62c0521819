"""What to know before a number is trusted, by kind: each note once, the cells that it is about behind a fold.

Notes that differ in their numbers only are one note, with the least and the largest of each number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.report.cells import NOT_RUN, OK, CellView, Column, Outcome, Value, plain_table
from harness.report.charts import series
from harness.report.derived import MINIMUM_DETECTABLE_EFFECT
from harness.report.markup import Markup, el, join
from harness.report.numbers import display, show, with_unit
from harness.report.section import Section
from harness.report.view import View

RUN, DOUBT, TELL, WITHHELD, SOURCE = "This run", "Suspicious", "What can be told apart", "Withheld", "The source model"
ENGINE = "Engines and artifacts"

_NUMBER = re.compile(r"\d+(?:[.,\u202f]\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing to know. `lines`: what it says of which cell, where it does not say so itself."""

    kind: str
    text: str
    lines: tuple[str, ...] = ()


def section(view: View) -> Section | None:
    kinds: dict[str, list[Note]] = {}
    for note in notes(view):
        kinds.setdefault(note.kind, []).append(note)
    if not kinds:
        return None
    return Section(
        id="notes",
        nav="Notes",
        title="Before you trust a number",
        lead="What was noted while measuring and what this page found in the numbers, each once.",
        body=join(*(join(el("h3", kind), el("ul", *map(_item, listed), cls="notes")) for kind, listed in kinds.items())),
    )


def _item(note: Note) -> Markup:
    if not note.lines:
        return el("li", note.text)
    count = "1 answer" if len(note.lines) == 1 else f"{len(note.lines)} answers"
    return el("li", note.text, el("details", el("summary", count), el("ul", *(el("li", line) for line in note.lines))))


def notes(view: View) -> list[Note]:
    """All of them: what puts a number in doubt first, then what probes noted themselves."""
    said = [*_of_the_run(view), *(Note(kind=DOUBT, text=text) for text in _suspicious(view)), *_told_apart(view)]
    said += _withheld(view)
    said += [Note(kind=SOURCE, text=grid.warning(model)) for model, grid in sorted(view.source_grids.items())]
    said += _by_probes(view)
    return list(dict.fromkeys(said))


def _of_the_run(view: View) -> list[Note]:
    said = []
    if not view.ended:
        missing = sum(o.status == NOT_RUN for c in view.cells for o in c.outcomes)
        said.append(
            f"This run has not ended: {missing} planned questions have no answer yet. Run the same command again to go on."
        )
    said += _unanswered(view)
    if view.unplanned:
        said.append(
            f"{view.unplanned} stored outcomes belong to cells that the last plan no longer asks for; they are not shown."
        )
    said += [f"{note[:1].upper()}{note[1:]}." for note in view.notes]
    listed = [Note(kind=RUN, text=text) for text in said]
    if view.derived.missing:
        text = f"Raw samples of {len(view.derived.missing)} answers are not on disk, so their paired comparisons are absent."
        listed.append(Note(kind=RUN, text=text, lines=tuple(view.derived.missing)))
    return listed


def _told_apart(view: View) -> list[Note]:
    return [Note(kind=TELL, text=text) for text in _resolution(view)] + _floor(view)


def _withheld(view: View) -> list[Note]:
    said = []
    if any(c.simulated for c in view.cells):
        text = "Simulated at run time (weights held dequantized), so without memory and latency"
        said.append(_about(view, WITHHELD, text, [c for c in view.cells if c.simulated]))
    random = sorted({c.model for c in view.cells if c.cell.model.random})
    if random:
        text = (
            f"Without quality: {', '.join(random)}. The shape is filled with random weights: size, memory and speed are its own."
        )
        said.append(Note(kind=WITHHELD, text=text))
    energies = (plain_table(o.facts.get("energy")).get("unsupported") for c in view.cells for o in c.outcomes)
    reasons = dict.fromkeys(str(reason) for reason in energies if reason)
    said += [Note(kind=WITHHELD, text=f"No energy is shown (unsupported): {reason}.") for reason in reasons]
    return said


def _name(view: View, cell: CellView) -> str:
    return cell.label if len(view.models) == 1 else cell.cell.name


def _about(view: View, kind: str, text: str, cells: Sequence[CellView], after: str = "") -> Note:
    """A sentence that names its cells where they are few, and keeps them behind a fold where they are many."""
    labels = [_name(view, c) for c in cells]
    if len(labels) <= FEW:
        return Note(kind=kind, text=f"{text}: {', '.join(labels)}.{after}")
    return Note(kind=kind, text=f"{text}: {len(labels)} cells.{after}", lines=tuple(_name(view, c) for c in cells))


FEW = 4
"""Cells that a sentence names itself."""


def _unanswered(view: View) -> list[str]:
    """Tasks that no cell of a finished run answered: they are in no mean."""
    tasks: dict[str, list[Outcome]] = {}
    for cell in view.cells:
        for outcome in cell.outcomes:
            if any(metric.samples == "items" for metric in outcome.metrics):
                tasks.setdefault(outcome.question.subject, []).append(outcome)
    none = [task for task, outcomes in tasks.items() if not any(o.status == OK for o in outcomes)]
    if not none or len(none) == len(tasks):
        return []
    return [f"No cell has an answer to {', '.join(none)}: left out of the mean accuracy."]


def _resolution(view: View) -> list[str]:
    """The smallest loss that single tasks could show."""
    effects = [
        cell.values[column.key].value
        for column in view.of(MINIMUM_DETECTABLE_EFFECT.name)
        for cell in view.cells
        if cell.values[column.key].status == OK
    ]
    if not effects:
        return []
    middle = sorted(effects)[len(effects) // 2]
    return [
        f"A single task shows a loss only if it is larger than about {show(middle, 'points')} points here "
        f"(80 % power, median over cells and tasks). Smaller losses go unseen, so none is called absent."
    ]


def _floor(view: View) -> list[Note]:
    """Cells whose divergence is inside the baseline's own noise floor."""
    said = []
    for column in view.columns:
        floor = view.column(column.metric.floor, column.subject) if column.metric.floor else None
        for model in view.models if floor is not None else ():
            assert floor is not None
            base = view.baseline_of(model)
            if base is None or base.values[floor.key].status != OK:
                continue
            limit = base.values[floor.key].value
            how = display(floor.metric.unit, [limit])
            inside = [c for c in view.cells if c.model == model and not c.baseline and _inside(c.values[column.key], limit)]
            if inside:
                text = (
                    f"Indistinguishable from the baseline on {column.subject} (divergence inside the noise floor of "
                    f"{with_unit(show(limit, floor.metric.unit, how), how)})"
                )
                said.append(_about(view, TELL, text, inside, " Choose among them by cost."))
    return said


def _suspicious(view: View) -> list[str]:
    """A cell that is worse beyond the noise than one of its own method and options with fewer bits: most likely a broken path."""
    said = []
    lines: dict[str, list[CellView]] = {}
    for cell in view.cells:
        lines.setdefault(series(cell), []).append(cell)
    for column in (c for c in view.columns if c.metric.monotone):
        for twins in lines.values():
            measured = [c for c in twins if c.values[column.key].status == OK]
            for cell in measured:
                for other in measured:
                    fewer = cell.cell.bits > other.cell.bits
                    if fewer and _worse(column, cell.values[column.key], other.values[column.key]):
                        name = _lower(column.title)
                        said.append(f"Suspicious: {cell.label} has a worse {name} than {other.label}, which has fewer bits.")
    return said


def _lower(title: str) -> str:
    return title if title[:2].isupper() or title.startswith("ln") else title[:1].lower() + title[1:]


def _inside(value: Value, limit: float) -> bool:
    return value.status == OK and value.value <= limit


def _worse(column: Column, value: Value, other: Value) -> bool:
    """Whether the intervals lie apart, with `value` on the worse side."""
    if column.metric.better == "higher":
        return value.high is not None and other.low is not None and value.high < other.low
    return value.low is not None and other.high is not None and value.low > other.high


def _by_probes(view: View) -> list[Note]:
    """What probes noted themselves, notes of one form together."""
    forms: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cell in view.cells:
        name = _name(view, cell)
        for outcome in cell.outcomes:
            probe = view.probes.get(outcome.question.probe)
            kind = outcome.question.probe.capitalize() if probe is None else probe.title
            noted, engine = _notes_of(outcome)
            about = ", ".join(part for part in (name, outcome.question.subject) if part)
            for its, who, notes_of_it in ((kind, about, noted), (ENGINE, name, engine)):
                for note in notes_of_it:
                    forms.setdefault((its, _NUMBER.sub("#", note)), {}).setdefault(note, []).append(who)
    kinds = dict.fromkeys(kind for kind, _ in forms)
    return [_of_one_form(kind, texts) for kind in kinds for (its, _), texts in forms.items() if its == kind]


def _of_one_form(kind: str, texts: dict[str, list[str]]) -> Note:
    if len(texts) == 1:
        ((text, about),) = texts.items()
        return Note(kind=kind, text=f"{text[:1].upper()}{text[1:]}", lines=tuple(dict.fromkeys(about)))
    text = ranged(list(texts))
    lines = dict.fromkeys(f"{about}: {one}" for one, abouts in texts.items() for about in abouts)
    return Note(kind=kind, text=f"{text[:1].upper()}{text[1:]}", lines=tuple(lines))


def ranged(texts: Sequence[str]) -> str:
    """Texts that differ in their numbers only, as one: where a number is not the same in all, the least and the largest."""
    numbers = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    spans = [_span(column) for column in numbers]
    parts = _NUMBER.split(texts[0])
    return "".join(part + (spans[place] if place < len(spans) else "") for place, part in enumerate(parts))


def _span(numbers: Iterable[str]) -> str:
    ordered = sorted(dict.fromkeys(numbers), key=lambda n: (_amount(n), n))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _amount(written: str) -> float:
    """What a number amounts to; a version (`1.2.3`) has no amount and stands last."""
    try:
        return float(written.replace(",", "").replace("\u202f", ""))
    except ValueError:
        return float("inf")


def _notes_of(outcome: Outcome) -> tuple[list[str], list[str]]:
    """What was noted of an answer, and of the cell itself: its engine and its artifact, which say the same with every answer."""
    facts = outcome.facts
    noted = [*_texts(facts.get("notes")), *(f"withheld: {n}" for n in _texts(facts.get("withheld")))]
    if facts.get("marked") == "nonfinite":
        noted.append("some answers were NaN or infinite; they are left out or counted as wrong")
    engine = [*_texts(plain_table(facts.get("engine")).get("notes")), *_texts(facts.get("marks"))]
    return noted, [*engine, *_texts(plain_table(facts.get("lm")).get("notes"))]


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, dict):
        return [f"{k}: {v}" for k, v in value.items() if v]
    return [str(v) for v in value if v] if isinstance(value, list) else []
