"""What to deploy, in words, under the limits that the page opens with. The page's script says it anew when a limit is moved
(`assets/explore.js:answer`), of the same data and in the same words; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.decide import Candidate, Decision, Kind, Limits, Recommendation, decide, say
from harness.report.candidates import candidates
from harness.report.cells import OK, CellView, plain_table
from harness.report.derived import MEAN_ACCURACY_DIFFERENCE
from harness.report.markup import Markup, el
from harness.report.view import View

MARGIN_POINTS, MARGIN_NATS = 1.0, 0.02
"""The loss that the page opens with: in points of mean accuracy, or in nats of divergence where no tasks were compared."""

MOST = 3
"""Models whose answers stand open on the first screen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The cells as a decision sees them, the limits that the page opens with, what follows from both, and how each cell is
    loaded and calibrated, by id."""

    candidates: tuple[Candidate, ...]
    limits: Limits
    decision: Decision
    facts: dict[str, Facts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One line each: where the artifact lies and how it is loaded; which text was read to make it, and `reading` what for; the
    command that asks all of the cell's questions once more and none else."""

    loaded: str
    reading: str
    calibrated: str
    replay: str


def offer(view: View) -> Offer:
    compared = view.column(MEAN_ACCURACY_DIFFERENCE.name)
    on_tasks = compared is not None and any(c.values[compared.key].status == OK for c in view.cells)
    loss: Kind = "pp" if on_tasks else "kl"
    limits = Limits(loss=loss, max_loss=MARGIN_POINTS if on_tasks else MARGIN_NATS)
    cells = tuple(candidates(view))
    facts = {
        c.id: Facts(
            loaded=_loaded(view, c),
            reading=c.reading,
            calibrated=_calibrated(view, c),
            replay=replay_command(view, c),
        )
        for c in view.cells
    }
    return Offer(candidates=cells, limits=limits, decision=decide(cells, limits), facts=facts)


def answers(view: View, offered: Offer) -> list[Markup]:
    """One answer for each model; those beyond the first few are behind a fold."""
    said = [_answer(view, offered, r) for r in offered.decision.recommendations]
    rest = said[MOST:]
    if not rest:
        return said
    more = f"{len(rest)} more {'model' if len(rest) == 1 else 'models'}"
    return [*said[:MOST], el("details", el("summary", more), *rest, cls="fold")]


def _answer(view: View, offered: Offer, given: Recommendation) -> Markup:
    words = say(offered.candidates, offered.limits, given)
    labels = {c.id: c.label for c in offered.candidates}
    several = len(offered.decision.recommendations) > 1
    parts = [
        el("p", given.model, cls="of") if several else None,
        el("p", "Nothing qualifies" if given.pick is None else labels[given.pick], cls="pick"),
        _line("", words.pick, beside_baseline(offered.candidates, given)),
        _line("What would change it", *(words.changes or words.settle)[:2], *(words.settle[:1] if words.changes else ())),
    ]
    if given.pick is not None:
        facts = offered.facts[given.pick]
        parts += [_line(facts.reading, facts.calibrated), _line("Artifact", facts.loaded)]
    return el("div", *parts, cls="answer")


def _line(title: str, *sentences: str) -> Markup | None:
    said = " ".join(s for s in sentences if s)
    if not said:
        return el("p", el("b", f"{title}: "), "nothing that was measured here.") if title == "What would change it" else None
    return el("p", el("b", f"{title}: ") if title else None, said)


def beside_baseline(cells: Sequence[Candidate], given: Recommendation) -> str:
    """`Next to the baseline: 0.26x the size, decodes 1.6x as fast, 0.40x the memory.` Empty without a pick of its own."""
    base = next((c for c in cells if c.model == given.model and c.baseline), None)
    verdicts = {v.id: v for v in given.verdicts}
    if base is None or given.pick is None or given.pick == base.id:
        return ""
    own, other = verdicts[given.pick], verdicts[base.id]
    parts = []
    if own.tpot and other.tpot:
        parts.append(f"decodes {times(other.tpot / own.tpot)} as fast")
    if own.memory and other.memory:
        parts.append(f"{times(own.memory / other.memory)} the memory")
    if own.size and other.size:
        parts.append(f"{times(own.size / other.size)} the size")
    return f"Next to the baseline: {', '.join(parts)}." if parts else ""


def times(ratio: float) -> str:
    """`1.6x`, `0.26x`: two digits that carry meaning. Rounded as the script does, by the floor of a product."""
    digits = 0 if ratio >= 10 else 1 if ratio >= 1 else 2
    scale = 10**digits
    return f"{int(ratio * scale + 0.5) / scale:.{digits}f}x"


def _loaded(view: View, cell: CellView) -> str:
    """Where its artifact lies, how it comes out, and what ran it."""
    engine, kernels = cell.cell.running.engine, ""
    for outcome in cell.outcomes:
        ran = plain_table(plain_table(outcome.facts.get("engine")).get("kernels"))
        if ran:
            kernels = f" ({', '.join(str(name) for name in ran)})"
            break
    if cell.cell.origin.kind == "served":
        return f"behind a server; nothing of it lies here. Answered through {engine}."
    own = cell.cell.bits >= 16 and not cell.trained
    where = "the source's own weights" if own else "in the run's cache"
    return f"{where}; loaded by {engine}{kernels}. As a folder: {export_command(view, cell)}"


def replay_command(view: View, cell: CellView) -> str:
    """The command that asks all of the cell's questions once more, and none else; empty where no command was stored."""
    runs = [command for command in view.commands if command.startswith("quant-harness run ")]
    return f"{runs[-1].partition(' --only ')[0]} --only {quoted(cell.cell.name)} --fresh" if runs else ""


def export_command(view: View, cell: CellView) -> str:
    """The command that writes the cell's artifact as a folder."""
    return f"quant-harness export {quoted(f'results/{view.suite}')} {quoted(cell.cell.name)} --to {quoted(_folder(cell))}"


def quoted(word: str) -> str:
    """A word for a shell: as it is where that is safe, else in single quotes."""
    if word and all(c.isascii() and (c.isalnum() or c in "._/-") for c in word) and not word.startswith("-"):
        return word
    return "'" + word.replace("'", "'\\''") + "'"


def _folder(cell: CellView) -> str:
    """A name for a folder: what is no letter, digit, dot or dash becomes a dash."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in cell.cell.name)
    return "-".join(part for part in name.split("-") if part).lstrip(".") or "artifact"


def _calibrated(view: View, cell: CellView) -> str:
    for text in view.calibrated_on:
        if text.model == cell.model and cell.label in text.cells:
            return f"{text.words}: {text.samples:,} x {text.length:,} tokens".replace(",", "\u202f")
    if cell.cell.bits >= 16:
        return ""
    if cell.cell.origin.kind != "quantized":
        return "not known here: it was quantized elsewhere"
    return "a text that the run does not name" if "calibration" in cell.cell.scheme.options else "no text"
