"""How fidelity falls with the bits, one line per method."""

from __future__ import annotations

from harness.report.charts import ladder_columns
from harness.report.markup import el
from harness.report.section import Section, figure, hue, select
from harness.report.view import View


def section(view: View) -> Section | None:
    columns = ladder_columns(view)
    if not columns or all(hue(view, cell) is None for cell in view.cells):
        return None
    options = [(c.key, c.title, "" if c.derived else view.group(c)) for c in columns]
    menus = [select("ladder-left", "Left", options), select("ladder-right", "Right", options)]
    if len(view.models) > 1:
        menus.append(select("ladder-model", "Model", [(str(i), name, "") for i, name in enumerate(view.models)]))
    charts = el(
        "div",
        figure("ladder-a", "Line chart by bits, left measure"),
        figure("ladder-b", "Line chart by bits, right measure"),
        cls="pair",
    )
    return Section(
        id="ladder",
        nav="By bits",
        title="Fidelity by bits",
        lead="What each step down in bits costs, method by method. The dashed line is the baseline.",
        body=el("div", el("div", *menus, cls="controls"), charts),
    )
