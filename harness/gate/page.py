"""The gate as one HTML page in the look of the report: the verdict, what to do next, and for each alarm what was lost and when.

`page` is pure: the same report, examples and history give the same bytes. The page has no script and loads nothing; every string
in it goes through `report/markup.py`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from harness.gate import nights, words
from harness.gate.examples import Example, Examples, bare
from harness.gate.types import Finding, GateReport, History, RunName
from harness.report import worst
from harness.report.markup import Markup, el, join
from harness.report.page import NO_SCRIPT, document, main, navigation
from harness.report.pieces import fold, numeric, table
from harness.report.section import Section

MOST_ALARMS, MOST_ROWS = 40, 2000
"""Alarms that are drawn with all there is of them, and rows of one table."""

_HOW = {
    "items": "Accuracy: the same items, paired; an exact test of those whose answer changed.",
    "losses": "Perplexity: the same windows of text, paired; the change is one of its logarithm, in nats.",
    "tokens": "Divergence: the same windows of text, paired; the change is relative.",
    "exact": "Sizes, the share that is quantized, and the kernels that ran: counted, so that any difference is one.",
    "fenced": "Latency and memory: worse only where the number left the fence of its own history, and its ratio to the same "
    "run's baseline did too; compared only between equal machines.",
}


def page(report: GateReport, examples: Examples = bare, history: History | None = None, *, machine: str = "") -> bytes:
    """UTF-8 bytes of the page. `examples` shows flipped items (`examples.of_runs` with their texts), `history` are the past
    nights of each square, `machine` the digest of the candidate's (`series.machine_identity`; '' where it is not known)."""
    made = [
        _verdict(report),
        _alarms(report, examples, history or {}, machine),
        _causes(report),
        _squares(report),
        _how(report),
    ]
    sections = [section for section in made if section is not None]
    body = el("body", navigation(sections), main(sections))
    style = (resources.files("harness.gate") / "assets" / "gate.css").read_text(encoding="utf-8")
    return document(f"{words.colour(report)}: {report.candidate.suite or report.candidate.run}", NO_SCRIPT, body, style=style)


def _verdict(report: GateReport) -> Section:
    steps = [el("li", s.said, el("pre", el("code", s.command)) if s.command else None) for s in words.steps(report)]
    tally = [el("li", el("b", str(number)), f" {verdict}") for verdict, number in words.counts(report)]
    notes = el("div", el("ul", *(el("li", note) for note in report.notes)), cls="warnings") if report.notes else None
    return Section(
        id="verdict",
        nav="Verdict",
        title=words.verdict(report),
        lead=f"{words.run_words(report.candidate)}; compared with {words.run_words(report.base)}.",
        body=join(
            el("div", el("h2", "Next"), el("ol", *steps), cls=f"verdict {words.colour(report)}"),
            notes,
            el("ul", *tally, cls="tally") if tally else None,
            el("p", words.error_rate(report), cls="muted"),
        ),
    )


# ---- alarms ----


def _alarms(report: GateReport, examples: Examples, history: History, machine: str) -> Section | None:
    alarms = report.alarms
    if not alarms:
        return None
    blocks = [_alarm(report, f, examples(f), history, machine) for f in alarms[:MOST_ALARMS]]
    left = len(alarms) - MOST_ALARMS
    if left > 0:
        blocks.append(el("p", f"{words.count(left, 'more alarm')}: in the table of all squares.", cls="muted"))
    return Section(
        id="alarms",
        nav="What is worse",
        title="What is worse",
        lead="Each square that turned the gate red: what was lost, since when, and the command that asks exactly this again.",
        body=join(*blocks),
    )


def _alarm(report: GateReport, f: Finding, items: Sequence[Example], history: History, machine: str) -> Markup:
    shown = nights.nights(f, history, report.candidate, machine)
    command = words.replay(report, f)
    again = join(el("p", "Ask it again:"), el("pre", el("code", command))) if command else None
    keys = fold(f"{words.count(len(f.keys), 'record')} it rests on", el("pre", el("code", "\n".join(f.keys)))) if f.keys else None
    return el(
        "div",
        el("h3", f"{f.square.cell}: {words.about(f)}"),
        el("p", words.found(f)),
        nights.drawing(f, shown) if shown else None,
        _items(f, items),
        _tokens(f),
        again,
        keys,
        cls="alarm",
    )


def _items(f: Finding, items: Sequence[Example]) -> Markup | None:
    if not items:
        return None
    lost, won = words.flips(f)
    said = f"{words.count(len(lost), 'item')} lost, {len(won)} gained."
    less = f" The first {len(items)} of them:" if len(items) < len(f.flips) else ""
    heads = [el("th", title, scope="col") for title in ("Item", "Right answer", "Before", "After")]
    body = table(f"Items of {f.square.name} whose answer changed", heads, [_item(one) for one in items], cls="plain items")
    texts = any(one.prompt for one in items)
    note = "The texts of these items were not kept, or are not on this disk: they are named by their place in the task's data."
    return join(el("p", said, less), None if texts else el("p", note, cls="note"), body)


def _item(one: Example) -> Markup:
    asked = el("span", one.prompt, cls="excerpt") if one.prompt else None
    place = el("span", f"{one.flip.task}, {one.place}" if one.prompt else one.place, cls="muted small block")
    wrong = el("span", f"not {' / '.join(one.wrong)}", cls="muted small block") if one.wrong else None
    words_of = ("wrong", "right") if one.flip.won else ("right", "wrong")
    answers = [
        el("td", word, el("span", known, cls="muted small block") if known else None, cls="answers")
        for word, known in zip(words_of, (one.before, one.after), strict=True)
    ]
    return el(
        "tr", el("th", asked, place, scope="row", cls="why"), el("td", one.right or "–", wrong, cls="answers"), *answers
    )  # fmt: skip


def _tokens(f: Finding) -> Markup | None:
    """The tokens at which the cell is furthest from its baseline now, and how far it was from it there before."""
    if not f.tokens:
        return None
    heads = [el("th", "Text", scope="col"), numeric("KL before", "nats"), numeric("KL now", "nats")]
    heads += [numeric("p, baseline", "true token"), numeric("p, cell", "true token")]
    rows = [
        el(
            "tr",
            el("th", worst.excerpt(one.before, one.token, one.after), scope="row", cls="why"),
            *(el("td", worst.number(value, ".3f"), cls="num") for value in (one.earlier, one.kl)),
            *(el("td", worst.number(value, ".1%"), cls="num") for value in (one.p_base, one.p)),
        )
        for one in f.tokens
    ]
    said = el("p", "The tokens with the largest divergence of the candidate: extremes, picked for being extreme.", cls="muted")
    return join(said, table(f"Tokens of {f.square.name} with the largest divergence", heads, rows, cls="plain items"))


# ---- below ----


def _causes(report: GateReport) -> Section:
    rows = [
        el("tr", el("th", d.what, scope="row", cls="why"), *(el("td", words.side(x), cls="why") for x in (d.before, d.after)))
        for d in report.differences[:MOST_ROWS]
    ]
    heads = [el("th", title, scope="col") for title in ("What", "Base", "Candidate")]
    body = table("What differs between the two runs", heads, rows) if rows else join()
    lead = (
        "Possible causes: what is recorded of the two runs and differs." if rows else "Nothing that is recorded of them differs."
    )
    return Section(id="causes", nav="What changed", title="What changed between the two runs", lead=lead, body=body)


def _squares(report: GateReport) -> Section | None:
    if not report.findings:
        return None
    folds = []
    for verdict, number in words.counts(report):
        found = [f for f in report.findings if f.verdict == verdict]
        shown = words.shown_first(found)[:MOST_ROWS]
        left = el("p", f"{words.count(number - MOST_ROWS, 'more square')}: in the evidence file.") if number > MOST_ROWS else None
        summary = el("summary", f"{words.title(verdict)}: {number}")
        body = _table(f"Squares: {words.title(verdict).lower()}", shown)
        folds.append(el("details", summary, body, left, open=verdict in ("failed", "missing")))
    return Section(
        id="squares",
        nav="All squares",
        title="All squares",
        lead="By verdict. Noise: the change as a multiple of the half width of its own 95 % interval.",
        body=join(*folds),
    )


def _table(title: str, findings: Sequence[Finding]) -> Markup:
    heads = [el("th", "Square", scope="col"), numeric("Base"), numeric("Candidate"), el("th", "Change (95 %)", scope="col")]
    heads += [numeric("Noise"), el("th", "Threshold", scope="col"), el("th", "Said", scope="col")]
    return table(title, heads, [_row(f) for f in findings], cls="plain squares")


def _row(f: Finding) -> Markup:
    name = el("th", f.square.cell, el("span", words.about(f), cls="muted small block"), scope="row", cls="what")
    word = el("span", "alarm", cls="red-word") if f.alarm else None
    remarks = "; ".join([*([words.tested(f)] if words.tested(f) else []), *words.remarks(f)])
    return el(
        "tr",
        name,
        *(el("td", number, cls="num") for number in words.figures(f)),
        el("td", words.change(f), cls="said"),
        el("td", words.factor(f), cls="num"),
        el("td", words.threshold(f), cls="said"),
        el("td", word, " " if word and remarks else None, remarks, cls="said"),
    )


def _how(report: GateReport) -> Section:
    kinds = [kind for kind in _HOW if any(f.kind == kind for f in report.findings)]
    runs = {"Base": report.base, "Candidate": report.candidate, "Accepted": report.accepted}
    rows = [_run(name, run) for name, run in runs.items() if run is not None]
    note = (
        "The alarms were asked once more, each beside its baseline, and judged again."
        if report.confirmed
        else "The alarms were not asked once more."
    )
    parts = [el("li", _HOW[kind]) for kind in kinds]
    parts += [el("li", words.error_rate(report)), el("li", note)] if report.findings else []
    return Section(
        id="how",
        nav="How",
        title="How it was decided",
        lead="A change is an alarm where it is significant and larger than its threshold. What is missing, failed or could not "
        "be compared is never a pass.",
        body=join(el("ul", *parts, cls="notes"), el("div", el("table", el("tbody", *rows), cls="facts runs"), cls="scroll")),
    )


def _run(name: str, run: RunName) -> Markup:
    path = el("span", run.path, cls="muted small block")
    return el("tr", el("th", name, scope="row"), el("td", words.run_words(run), path))
