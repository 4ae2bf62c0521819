"""The answer first: what to deploy, what it costs and loses, what would change that; then what was measured."""

from __future__ import annotations

from harness.report.answer import Offer, answers
from harness.report.cells import NOT_RUN, OK, plain_table, withheld
from harness.report.markup import el, join
from harness.report.notes import notes
from harness.report.section import Section
from harness.report.view import View

FEW = 4
"""So many models are named in the first sentence; more are counted."""


def section(view: View, offered: Offer) -> Section | None:
    said = answers(view, offered)
    asked = el("div", *(el("p", line) for line in _progress(view)), cls="progress")
    careful = len(notes(view))
    which = "one note" if careful == 1 else f"{careful} notes"
    beware = el("p", "Before you trust a number: ", el("a", which, href="#notes"), cls="note") if careful else None
    parts = [el("div", *said, id="answer", aria_live="polite"), asked, beware]
    return Section(id="summary", nav="Answer", title=view.title or view.suite or "Results", lead=_lead(view), body=join(*parts))


def _lead(view: View) -> str:
    models = ", ".join(view.models) or "no model"
    if len(view.models) > FEW:
        models = f"{len(view.models)} models"
    machine = plain_table(view.context.get("machine"))
    listed = machine.get("gpus")
    gpus = [plain_table(gpu) for gpu in listed] if isinstance(listed, list) else []
    on_gpu = gpus and str(view.context.get("device", "")).startswith("cuda")
    device = str(gpus[0].get("name")) if on_gpu else str(machine.get("cpu") or "")
    threads = view.context.get("threads")
    where = f" on {device}" if device else ""
    using = f" with {threads} thread{'s' if threads != 1 else ''}" if threads and not gpus else ""
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
