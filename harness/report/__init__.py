"""The report: a stored run as one HTML file that opens offline, and as a table for the terminal.

`render(run)` is pure: records in, bytes out. No clock, no network, no torch; the same records in any order give equal bytes.
A section is a function `section(view) -> Section | None` in a file of its own, plus one line in SECTIONS. Those of FIRST are about
the limits that a reader sets, and get what is offered under those that the page opens with.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.report.answer import Offer, offer
from harness.report.calibration import section as calibration_section
from harness.report.failures import section as failures_section
from harness.report.glossary import section as glossary_section
from harness.report.heatmap import section as heatmap_section
from harness.report.ladder import section as ladder_section
from harness.report.pareto import section as pareto_section
from harness.report.provenance import section as provenance_section
from harness.report.section import Section
from harness.report.summary import section as summary_section
from harness.report.table import section as table_section
from harness.report.terminal import terminal_table
from harness.report.verdicts import section as verdicts_section
from harness.report.view import View, view
from harness.store import Run

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this package: it is no part of the source digest (run/source.py)."""

__all__ = ["SECTIONS", "Section", "View", "render", "render_view", "terminal_table", "view"]

FIRST: list[Callable[[View, Offer], Section | None]] = [summary_section, pareto_section]
"""The sections that follow the reader's limits."""

SECTIONS: list[Callable[[View], Section | None]] = [
    table_section,
    heatmap_section,
    verdicts_section,
    ladder_section,
    calibration_section,
    failures_section,
    glossary_section,
    provenance_section,
]


def render(run: Run) -> bytes:
    """The whole report of a run as UTF-8 HTML."""
    return render_view(view(run))


def render_view(shown: View) -> bytes:
    """As `render`, of a view that is there already."""
    from harness.report import page

    offered = offer(shown)
    made = [*(make(shown, offered) for make in FIRST), *(make(shown) for make in SECTIONS)]
    return page.page(shown, offered, [section for section in made if section is not None])
