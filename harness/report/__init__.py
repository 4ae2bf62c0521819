"""The report: a stored run as one HTML file that opens offline, and as a table for the terminal.

`render(run)` is pure: records in, bytes out. No clock, no network, no torch; the same records in any order give equal bytes.
A section is a function `section(view) -> Section | None` in a file of its own, plus one line in SECTIONS. Those of FIRST are
about the limits that a reader sets, and get what is offered under those that the page opens with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.report.answer import Offer, offer
from harness.report.calibration import section as calibration_section
from harness.report.divergence import section as divergence_section
from harness.report.engines import section as engines_section
from harness.report.failures import section as failures_section
from harness.report.glossary import section as glossary_section
from harness.report.heatmap import section as heatmap_section
from harness.report.kv import section as kv_section
from harness.report.ladder import section as ladder_section
from harness.report.layers import section as layers_section
from harness.report.machines import section as machines_section
from harness.report.making import section as making_section
from harness.report.memory import section as memory_section
from harness.report.mixed import section as mixed_section
from harness.report.notes import section as notes_section
from harness.report.pareto import section as pareto_section
from harness.report.provenance import section as provenance_section
from harness.report.recipes import section as recipes_section
from harness.report.section import Section
from harness.report.seeds import section as seeds_section
from harness.report.speed import section as speed_section
from harness.report.summary import section as summary_section
from harness.report.table import section as table_section
from harness.report.terminal import terminal_table
from harness.report.trained import section as trained_section
from harness.report.verdicts import section as verdicts_section
from harness.report.view import View, view
from harness.report.worst import section as worst_section
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
    divergence_section,
    mixed_section,
    recipes_section,
    engines_section,
    memory_section,
    kv_section,
    trained_section,
    seeds_section,
    speed_section,
    layers_section,
    worst_section,
    making_section,
    calibration_section,
    failures_section,
    notes_section,
    glossary_section,
    provenance_section,
]


def render(run: Run, *others: Run, past: Section | None = None) -> bytes:
    """The whole report of a run as UTF-8 HTML; of `others` what is the same stands beside it. `past`: a section on the runs
    before."""
    return render_view(view(run), *map(view, others), past=past)


def render_view(shown: View, *others: View, shared: str | None = None, past: Section | None = None) -> bytes:
    """As `render`, of views that are there already. `shared`: where the page finds plotly.js, see `page.page`."""
    from harness.report import page

    offered = offer(shown)
    made = [*(make(shown, offered) for make in FIRST), *(make(shown) for make in SECTIONS)]
    sections = [section for section in made if section is not None]
    return page.page(shown, offered, _with_others(sections, past, machines_section([shown, *others])), shared)


def _with_others(sections: Sequence[Section], *beside: Section | None) -> list[Section]:
    """What is of other runs stands second, after the answer."""
    return [*sections[:1], *(section for section in beside if section is not None), *sections[1:]]
