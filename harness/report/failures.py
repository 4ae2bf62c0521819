"""What has no number and why: failures with their log tails, what was not run, cells that cannot exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.report.cells import NOT_RUN, CellView, Outcome, withheld
from harness.report.markup import Markup, el, join
from harness.report.section import Section, scheme, status
from harness.report.view import View
from harness.spec import Failure

FEW = 4
"""Squares with one reason that are named at once; more are behind a fold."""

HELPS: Mapping[str, str] = {
    "oom": "More free memory, a smaller batch or context, or a method that quantizes layer by layer.",
    "timeout": "A larger timeout (or quantize_timeout) in the suite, or fewer items.",
    "crash": "The end of the log names the library; run this cell alone with --retry-failed, and report it there if it stays.",
    "nonfinite": "The artifact answers NaN or infinity: more bits, another group size, or float32 for the baseline.",
    "environment": "quant-harness env list says which environments are broken, quant-harness env build makes one again.",
    "input": "The suite or what it names; correct it and run the same command again.",
    "error": "The end of the log; the same command with --retry-failed asks again.",
}
"""What is likely to help, by kind of failure; what a message itself says comes first."""


def section(view: View) -> Section | None:
    failed = [row for cell in view.cells for row in _failed(view, cell)]
    waiting = [(cell, [o for o in cell.outcomes if o.status == NOT_RUN]) for cell in view.cells]
    waiting = [(cell, outcomes) for cell, outcomes in waiting if outcomes]
    held = [(cell, outcomes) for cell in view.cells if (outcomes := [o for o in cell.outcomes if withheld(o)])]
    if not (failed or waiting or held or view.unsupported):
        return None
    body: list[Markup] = []
    if failed:
        body += [_table("Failures", ("Cell", "What", "Kind", "Why and what helps"), failed), _again(view)]
    if waiting:
        rows = [el("tr", _head(view, cell), el("td", _questions(outcomes))) for cell, outcomes in waiting]
        body.append(_table("Not run", ("Cell", "What"), rows))
    if held:
        rows = [el("tr", _head(view, cell), el("td", _questions(outcomes))) for cell, outcomes in held]
        body.append(_table("Withheld: weights are held dequantized at run time", ("Cell", "What"), rows))
    if view.unsupported:
        body.append(_table("Unsupported cells", ("Why", "Squares", "Which"), _unsupported(view)))
    return Section(
        id="failures",
        nav="Missing",
        title="What has no number",
        lead="Every planned cell is accounted for: what failed and how, what was not run, and what cannot exist here.",
        body=join(*body),
    )


def _failed(view: View, cell: CellView) -> list[Markup]:
    """One row per distinct failure of a cell, with everything that it took down."""
    groups: dict[Failure, list[Outcome]] = {}
    for outcome in cell.outcomes:
        if outcome.failure is not None and not withheld(outcome):
            groups.setdefault(outcome.failure, []).append(outcome)
    rows = []
    for failure, outcomes in groups.items():
        tail = (
            el("details", el("summary", "End of the log"), el("pre", failure.log_tail, tabindex="0"))
            if failure.log_tail.strip()
            else None
        )
        rows.append(
            el(
                "tr",
                _head(view, cell),
                el("td", _everything(outcomes) if len(outcomes) == len(cell.outcomes) > 1 else _questions(outcomes)),
                el(
                    "td",
                    status(failure.kind, ""),
                    el("span", f" while {failure.phase}" if failure.phase else "", cls="muted small"),
                ),
                el("td", failure.message, _helps(failure), tail, cls="why"),
            )
        )
    return rows


def _helps(failure: Failure) -> Markup | None:
    advice = HELPS.get(failure.kind)
    return None if advice is None else el("span", advice, cls="muted small block")


def _again(view: View) -> Markup:
    """The command that asks what failed again."""
    commands = [command for command in view.commands if command.startswith("quant-harness run")]
    if not commands:
        return join()
    return el("p", "What failed is asked again by ", el("code", f"{commands[-1]} --retry-failed"), cls="note")


def _unsupported(view: View) -> list[Markup]:
    """Squares that cannot exist here, those with one reason together."""
    reasons: dict[str, list[str]] = {}
    for u in view.unsupported:
        reasons.setdefault(u.reason, []).append(u.cell.name if len(view.models) > 1 else u.cell.label)
    rows = []
    for reason, names in reasons.items():
        which = ", ".join(names)
        squares = el("td", which) if len(names) <= FEW else el("td", el("details", el("summary", "which"), which))
        rows.append(el("tr", el("th", reason, scope="row", cls="why"), el("td", str(len(names))), squares))
    return rows


def _head(view: View, cell: CellView) -> Markup:
    name = el("span", cell.model, cls="muted small block") if len(view.models) > 1 else None
    return el("th", name, scheme(view, cell), scope="row")


def _everything(outcomes: list[Outcome]) -> str:
    return f"everything: all {len(outcomes)} questions"


def _questions(outcomes: Iterable[Outcome]) -> str:
    probes: dict[str, list[str]] = {}
    for outcome in outcomes:
        probes.setdefault(outcome.question.probe, []).append(outcome.question.subject)
    return "; ".join(
        f"{probe}: {', '.join(s)}" if any(s := [x for x in subjects if x]) else probe for probe, subjects in probes.items()
    )


def _table(title: str, columns: Iterable[str], rows: Iterable[Markup]) -> Markup:
    head = el("thead", el("tr", *(el("th", c, scope="col") for c in columns)))
    return join(
        el("h3", title),
        el(
            "div", el("table", head, el("tbody", *rows), cls="plain"), cls="scroll", tabindex="0", role="region", aria_label=title
        ),
    )
