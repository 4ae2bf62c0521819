"""What has no number and why: failures with their log tails, what was not run, cells that cannot exist."""

from __future__ import annotations

from collections.abc import Iterable

from harness.report.cells import NOT_RUN, CellView, Outcome, withheld
from harness.report.markup import Markup, el, join
from harness.report.section import Section, scheme, status
from harness.report.view import View
from harness.spec import Failure


def section(view: View) -> Section | None:
    failed = [row for cell in view.cells for row in _failed(view, cell)]
    waiting = [(cell, [o for o in cell.outcomes if o.status == NOT_RUN]) for cell in view.cells]
    waiting = [(cell, outcomes) for cell, outcomes in waiting if outcomes]
    held = [(cell, outcomes) for cell in view.cells if (outcomes := [o for o in cell.outcomes if withheld(o)])]
    if not (failed or waiting or held or view.unsupported):
        return None
    body: list[Markup] = []
    if failed:
        body.append(_table("Failures", ("Cell", "What", "Kind", "Why"), failed))
    if waiting:
        rows = [el("tr", _head(view, cell), el("td", _questions(outcomes))) for cell, outcomes in waiting]
        body.append(_table("Not run", ("Cell", "What"), rows))
    if held:
        rows = [el("tr", _head(view, cell), el("td", _questions(outcomes))) for cell, outcomes in held]
        body.append(_table("Withheld: weights are held dequantized at run time", ("Cell", "What"), rows))
    if view.unsupported:
        rows = [
            el("tr", el("th", u.cell.name if len(view.models) > 1 else u.cell.label, scope="row"), el("td", u.reason))
            for u in view.unsupported
        ]
        body.append(_table("Unsupported cells", ("Cell", "Why"), rows))
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
                    el("span", f"while {failure.phase}" if failure.phase else "", cls="muted small"),
                ),
                el("td", failure.message, tail, cls="why"),
            )
        )
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
