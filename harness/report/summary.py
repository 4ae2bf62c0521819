"""The answer first: what to deploy, what it costs and loses, what would change that; then what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.answer import Offer, answers
from harness.report.cells import NOT_RUN, OK, Column, Outcome, Value, plain_table, withheld
from harness.report.charts import series
from harness.report.derived import MINIMUM_DETECTABLE_EFFECT
from harness.report.markup import el, join
from harness.report.numbers import display, show, with_unit
from harness.report.section import Section
from harness.report.view import View


def section(view: View, offered: Offer) -> Section | None:
    said = answers(view, offered)
    asked = el("div", *(el("p", line) for line in _progress(view)), cls="progress")
    parts = [el("div", *said, id="answer", aria_live="polite"), asked]
    return Section(id="summary", nav="Answer", title=view.title or view.suite or "Results", lead=_lead(view), body=join(*parts))


def _lead(view: View) -> str:
    models = ", ".join(view.models) or "no model"
    machine = plain_table(view.context.get("machine"))
    listed = machine.get("gpus")
    gpus = [plain_table(gpu) for gpu in listed] if isinstance(listed, list) else []
    on_gpu = gpus and str(view.context.get("device", "")).startswith("cuda")
    device = str(gpus[0].get("name")) if on_gpu else str(machine.get("cpu") or "")
    threads = view.context.get("threads")
    where = f" on {device}" if device else ""
    using = f" with {threads} threads" if threads and not gpus else ""
    when = f", {view.started_at[:10]}" if view.started_at else ""
    return f"{len(view.cells)} quantizations of {models}, each measured on its own packed artifact{where}{using}{when}."


def _progress(view: View) -> list[str]:
    """How much of what was asked is answered, withheld, failed, and not run."""
    asked = [o for c in view.cells for o in c.outcomes]
    answered = sum(o.status == OK for o in asked)
    whole = sum(all(o.status == OK or withheld(o) for o in c.outcomes) for c in view.cells)
    line = f"{whole} of {len(view.cells)} cells complete: {answered} of {len(asked)} questions answered"
    held = [count for c in view.cells if (count := sum(map(withheld, c.outcomes)))]
    if held:
        those = "one cell" if len(held) == 1 else f"{len(held)} cells"
        line += f"; {sum(held)} on memory and speed are withheld, because the weights of {those} are simulated"
    lines = [f"{line}."]
    failed = [count for c in view.cells if (count := sum(o.failure is not None and not withheld(o) for o in c.outcomes))]
    missing = sum(o.status == NOT_RUN for o in asked)
    if failed:
        cells = f"{len(failed)} {'cell' if len(failed) == 1 else 'cells'}"
        lines.append(f"{cells} with failures: {sum(failed)} questions failed, {missing} not run; reasons below.")
    elif missing:
        lines.append(f"{missing} questions not run: the run was stopped, and the same command goes on.")
    return lines


def _lower(title: str) -> str:
    return title if title[:2].isupper() or title.startswith("ln") else title[:1].lower() + title[1:]


# ---------------------------------------------------------------------- warnings


def _warnings(view: View) -> list[str]:
    said = []
    if not view.ended:
        missing = sum(o.status == NOT_RUN for c in view.cells for o in c.outcomes)
        said.append(
            f"This run has not ended: {missing} planned questions have no answer yet. Run the same command again to go on."
        )
    said += [grid.warning(model) for model, grid in sorted(view.source_grids.items())]
    said += _unanswered(view)
    said += _resolution(view)
    said += _floor(view)
    said += _suspicious(view)
    simulated = [c.label for c in view.cells if c.simulated]
    if simulated:
        said.append(f"Simulated at run time (weights held dequantized), so without memory and latency: {', '.join(simulated)}.")
    random = sorted({c.model for c in view.cells if c.cell.model.random})
    if random:
        said.append(
            f"Without quality: {', '.join(random)}. The shape is filled with random weights: size, memory and speed are its own."
        )
    if view.derived.missing:
        count = len(view.derived.missing)
        first = view.derived.missing[0]
        said.append(f"Raw samples of {count} answers are not on disk, so their paired comparisons are absent, e.g. {first}.")
    if view.unplanned:
        said.append(
            f"{view.unplanned} stored outcomes belong to cells that the last plan no longer asks for; they are not shown."
        )
    said += [f"{note[:1].upper()}{note[1:]}." for note in view.notes]
    return said + _notes(view)


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


def _floor(view: View) -> list[str]:
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
            inside = [c.label for c in view.cells if c.model == model and not c.baseline and _inside(c.values[column.key], limit)]
            if inside:
                said.append(
                    f"Indistinguishable from the baseline on {column.subject} (divergence inside the noise floor of "
                    f"{with_unit(show(limit, floor.metric.unit, how), how)}): {', '.join(inside)}. Choose among them by cost."
                )
    return said


def _inside(value: Value, limit: float) -> bool:
    return value.status == OK and value.value <= limit


def _suspicious(view: View) -> list[str]:
    """A cell that is worse beyond the noise than one of its own method and options with fewer bits: most likely a broken path."""
    said = []
    for column in (c for c in view.columns if c.metric.monotone):
        measured = [c for c in view.cells if c.values[column.key].status == OK]
        for cell in measured:
            for other in measured:
                twins = cell.cell.bits > other.cell.bits and series(cell) == series(other)
                if twins and _worse(column, cell.values[column.key], other.values[column.key]):
                    name = _lower(column.title)
                    said.append(f"Suspicious: {cell.label} has a worse {name} than {other.label}, which has fewer bits.")
    return said


def _worse(column: Column, value: Value, other: Value) -> bool:
    """Whether the intervals lie apart, with `value` on the worse side."""
    if column.metric.better == "higher":
        return value.high is not None and other.low is not None and value.high < other.low
    return value.low is not None and other.high is not None and value.low > other.high


def _notes(view: View) -> list[str]:
    """What probes noted themselves, cells with the same note together."""
    said: dict[str, list[str]] = {}
    for cell in view.cells:
        for outcome in cell.outcomes:
            for note in _notes_of(outcome):
                labels = said.setdefault(note, [])
                if cell.label not in labels:
                    labels.append(cell.label)
    return [f"{note} ({_few(labels)})" for note, labels in said.items()]


def _notes_of(outcome: Outcome) -> list[str]:
    facts = outcome.facts
    notes = [f"{outcome.question.probe}: {n}" for n in _texts(facts.get("notes"))]
    notes += [f"{outcome.question.probe} withheld: {n}" for n in _texts(facts.get("withheld"))]
    notes += _texts(plain_table(facts.get("engine")).get("notes"))
    notes += _texts(facts.get("marks"))
    notes += [f"{outcome.question.probe}: {n}" for n in _texts(plain_table(facts.get("lm")).get("notes"))]
    if facts.get("marked") == "nonfinite":
        notes.append(f"{outcome.question.probe}: some answers were NaN or infinite; they are left out or counted as wrong")
    return notes


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, dict):
        return [f"{k}: {v}" for k, v in value.items() if v]
    return [str(v) for v in value if v] if isinstance(value, list) else []


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= 4 else f"{', '.join(labels[:3])} and {len(labels) - 3} more cells"
