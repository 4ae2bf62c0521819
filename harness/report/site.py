"""A static site of stored runs: an index of suites, models and runs, and for each run its page with its numbers beside it.

Pure: views in, files out, the same for the same runs in any order. The site sends nothing anywhere and loads nothing from
elsewhere; plotly.js lies in it once. A run's address is made of the names of its suite and of the run, so that it stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.decide import say
from harness.errors import BadInput
from harness.report import page, render_view
from harness.report.answer import Offer, offer
from harness.report.frame import EXPORTS
from harness.report.markup import Markup, el, join
from harness.report.section import Section
from harness.report.view import View

MARKER = "quant-harness-site.txt"
"""Of a folder that `site` made, and may make anew."""
_LONGEST = 60
_TAKEN = ("assets", "index.html", MARKER)
"""Names that the site's own files have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """`path`: below the site's folder, of safe parts joined by slashes."""

    path: str
    data: bytes


def files(views: Sequence[View], past: Mapping[str, Section] | None = None) -> Iterator[File]:
    """All files of the site. `past`: a section on the runs before, by the name of the run whose page has it. BadInput where two
    runs have one name."""
    folders: dict[str, View] = {}
    for view in sorted(views, key=lambda v: (v.suite, v.run)):
        folder = f"{safe(view.suite)}/{safe(view.run)}"
        if folder in folders:
            raise BadInput(f"two of these results are the run {view.run} of {view.suite}; name each run once")
        folders[folder] = view
    script = page.library()
    library = f"assets/plotly-{hashlib.sha256(script).hexdigest()[:16]}.min.js"
    yield File(path=MARKER, data=b"Made by `quant-harness site`, which may replace this folder.\n")
    yield File(path=library, data=script)
    offers = {}
    for folder, view in folders.items():
        offers[folder] = offer(view)
        yield File(
            path=f"{folder}/index.html", data=render_view(view, shared=f"../../{library}", past=(past or {}).get(view.run))
        )
        for name, written in EXPORTS.items():
            yield File(path=f"{folder}/results.{name}", data=written(view))
    yield File(path="index.html", data=_index(folders, offers))


def safe(name: str) -> str:
    """A name as one part of a path and of an address: small letters, digits, dots, dashes and underscores. Where that changes it,
    a digest of the name tells it from others."""
    kept = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:_LONGEST].rstrip("-._")
    if kept and kept == name and kept not in _TAKEN:
        return kept
    return f"{kept or 'unnamed'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def _index(folders: dict[str, View], offers: dict[str, Offer]) -> bytes:
    suites: dict[str, list[str]] = {}
    for folder, view in folders.items():
        suites.setdefault(view.suite, []).append(folder)
    lead = el("p", f"{_count(len(folders), 'run')} of {_count(len(suites), 'suite')}.", cls="lead")
    parts = [_suite(name, [(f, folders[f], offers[f]) for f in reversed(runs)]) for name, runs in suites.items()]
    body = el("body", el("main", el("h1", "Measured quantizations"), lead, *parts, id="main"))
    return page.document("Measured quantizations", page.NO_SCRIPT, body)


def _suite(name: str, runs: Sequence[tuple[str, View, Offer]]) -> Markup:
    """The newest run first."""
    heads = el("tr", *(el("th", title, scope="col") for title in ("Run", "Model", "What to deploy", "Numbers")))
    rows = [row for folder, view, offered in runs for row in _run(folder, view, offered)]
    table = el("table", el("thead", heads), el("tbody", *rows), cls="plain")
    shown = runs[0][1].title
    return el(
        "section",
        el("h2", name or "(no name)"),
        el("p", shown) if shown and shown != name else None,
        el("div", table, cls="scroll", tabindex="0", role="region", aria_label=f"Runs of {name}"),
    )


def _run(folder: str, view: View, offered: Offer) -> Iterator[Markup]:
    """One row for each model."""
    links = [el("a", name.upper(), href=f"{folder}/results.{name}") for name in EXPORTS]
    numbers = join(*(join(el("span", " · ") if index else None, link) for index, link in enumerate(links)))
    for index, given in enumerate(offered.decision.recommendations):
        first = index == 0
        yield el(
            "tr",
            el("th", el("a", view.run, href=f"{folder}/index.html"), _when(view), scope="row") if first else el("td"),
            el("td", given.model),
            el("td", say(offered.candidates, offered.limits, given).pick),
            el("td", numbers if first else None),
        )
    if not offered.decision.recommendations:
        link = el("th", el("a", view.run, href=f"{folder}/index.html"), _when(view), scope="row")
        yield el("tr", link, el("td"), el("td", "No cell was planned."), el("td", numbers))


def _when(view: View) -> Markup:
    return el("span", f"{view.started_at[:10]}, {_count(len(view.cells), 'cell')}", cls="muted small block")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
