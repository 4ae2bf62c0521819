"""The history of a suite as a section of its report: for each headline metric a chart of all cells, and a table.

The chart shows each cell against its own accepted (or first) night, so that cells of different size share an axis. It is drawn
without a script; what it shows stands in the table.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from harness.errors import BadInput
from harness.gate import history, journal, trends
from harness.gate.trends import Point, Step, Trend
from harness.report.families import colour
from harness.report.markup import Markup, el, join
from harness.report.numbers import MINUS, Display, display, show
from harness.report.pieces import fold, numeric, table
from harness.report.section import Section
from harness.report.svg import Scale

MOST_LINES = 24
"""Cells that one chart draws: those that got worse first."""
MOST_CAUSES = 6
_HEIGHT, _PAD, _AXIS, _WIDE = 190, 10, 26, 1000


def of_folder(folder: Path) -> Section | None:
    """The section of a suite's results folder; None where fewer than two of its runs are finished."""
    found = history.nights(folder)
    if len(found.nights) < 2:
        return None
    known = journal.read(folder)
    accepted = None if known.doubt else known.newest  # a page that draws the past leaves out what is not known
    try:
        shown = trends.trends(found.nights, accepted)
    except BadInput:  # runs without a cell
        return None
    return section(shown, nights=len(found.nights), left_out=found.left_out)


def section(shown: Sequence[Trend], *, nights: int, left_out: Sequence[str] = ()) -> Section | None:
    """None where there is no series."""
    if not shown:
        return None
    worse = [trend for trend in shown if trend.regressed]
    said = (
        f"{len(worse)} of {len(shown)} series are worse than when they were accepted."
        if worse
        else f"None of {len(shown)} series is worse than when it was accepted."
    )
    named = [el("li", f"{_name(t)}, {t.about.title}: {t.regressed}") for t in worse]
    groups = list(trends.by_about(shown).values())
    blocks = [join(el("h3", group[0].about.title), *_metric(group)) for group in groups]
    return Section(
        id="history",
        nav="History",
        title=f"{nights} nights",
        lead=f"{said} A change of level is one that random order of the nights shows in at most one series of a hundred.",
        body=join(
            el("ul", *named) if named else None,
            *blocks,
            fold(f"Runs that are left out: {len(left_out)}", el("ul", *(el("li", line) for line in left_out)))
            if left_out
            else None,
        ),
    )


def _name(trend: Trend) -> str:
    return f"{trend.cell.model} / {trend.cell.label}"


def _metric(group: Sequence[Trend]) -> list[Markup | None]:
    how = display(group[0].about.unit, [value for trend in group for value in trend.values])
    return [_chart(group), fold(f"Table of {group[0].about.title}", _table(group, how))]


# ---- the chart ----


def _chart(group: Sequence[Trend]) -> Markup | None:
    """Change against each cell's own reference, in points of a share, in percent of anything else."""
    points = group[0].about.unit in {"share", "fraction"}
    drawn = sorted((t for t in group if len(t.points) > 1 and (points or _reference(t))), key=lambda t: not t.regressed)[
        :MOST_LINES
    ]
    if not drawn:
        return None
    lines = [[_change(trend, value, points=points) for value in trend.values] for trend in drawn]
    low, high = min(map(min, lines)), max(map(max, lines))
    reach = max(high - low, 1e-9) / 20
    scale = Scale(low=low - reach, high=high + reach)
    times = [_time(point) for trend in drawn for point in trend.points]
    ends = (min(times), max(times))
    unit = "points" if points else "%"
    parts = [_grid(scale, tick) for tick in scale.ticks()]
    parts.append(
        el(
            "svg",
            *(_line(trend, line, scale, ends) for trend, line in zip(drawn, lines, strict=True)),
            viewBox=f"0 0 {_WIDE} {_HEIGHT}",
            width="100%",
            height=_HEIGHT,
            preserveAspectRatio="none",
        )
    )
    parts += [_tick(scale, tick, unit) for tick in scale.ticks()]  # over the lines, on a ground of their own
    for place, anchor, time in (("0", "start", ends[0]), ("100%", "end", ends[1])):
        day = datetime.datetime.fromtimestamp(time, datetime.UTC).date().isoformat()
        parts.append(el("text", day, x=place, y=_HEIGHT + 18, text_anchor=anchor, cls="tick"))
    label = f"{group[0].about.title}: change of {len(drawn)} cells against their accepted or first night, in {unit}, by night"
    image = el("svg", *parts, role="img", aria_label=label, width="100%", height=_HEIGHT + _AXIS, cls="rows")
    less = f"{len(drawn)} of {len(group)} cells are drawn, those that got worse first." if len(drawn) < len(group) else None
    return el("div", image, el("p", f"Change against the accepted or first night, in {unit}. {less or ''}", cls="small muted"))


def _reference(trend: Trend) -> float:
    return (trend.accepted or trend.points[0]).figure.value


def _change(trend: Trend, value: float, *, points: bool) -> float:
    own = _reference(trend)
    return 100 * (value - own) if points else 100 * (value / own - 1)


def _time(point: Point) -> float:
    return datetime.datetime.fromisoformat(point.started_at).timestamp()


def _y(value: float, scale: Scale) -> float:
    return round(_HEIGHT - _PAD - scale.percent(value) / 100 * (_HEIGHT - 2 * _PAD), 1)


def _grid(scale: Scale, value: float) -> Markup:
    y = str(_y(value, scale))
    return el("line", x1="0", x2="100%", y1=y, y2=y, cls="against" if value == 0 else "grid")


def _tick(scale: Scale, value: float, unit: str) -> Markup:
    label = f"{value:+.4g} {unit}".replace("-", MINUS) if value else "0"
    return el("text", label, x="100%", y=str(_y(value, scale) - 4), text_anchor="end", cls="value")


def _line(trend: Trend, changes: Sequence[float], scale: Scale, ends: tuple[float, float]) -> Markup:
    span = max(1.0, ends[1] - ends[0])
    places = [
        f"{_WIDE * (_time(point) - ends[0]) / span:.1f},{_y(change, scale)}"
        for point, change in zip(trend.points, changes, strict=True)
    ]
    tip = f"{_name(trend)}: {changes[-1]:+.4g} on {trend.points[-1].date}"
    return el(
        "polyline",
        el("title", tip),
        points=" ".join(places),
        fill="none",
        vector_effect="non-scaling-stroke",
        cls=f"between h{colour(trend.cell.method)}",
    )


# ---- the table ----


def _table(group: Sequence[Trend], how: Display) -> Markup:
    about = group[0].about
    heads: list[str | Markup] = ["Cell", el("th", "Nights", scope="col", cls="num"), numeric("First", how.label)]
    heads += [numeric("Accepted", how.label), numeric("Last", how.label), numeric("A week", how.label)]
    heads.append(el("th", "Changes of level", scope="col"))
    rows = []
    for trend in group:
        numbers = [
            el("td", "–" if point is None else show(point.figure.value, about.unit, how), cls="num")
            for point in (trend.points[0], trend.accepted, trend.points[-1])
        ]
        changes = [el("span", _step(step, about.unit, how), cls="block") for step in trend.steps]
        worse = el("b", trend.regressed) if trend.regressed else None
        rows.append(
            el(
                "tr",
                el("th", trend.cell.label, el("span", trend.cell.model, cls="muted small block"), scope="row"),
                el("td", str(len(trend.points)), cls="num"),
                *numbers,
                el("td", trends.drift(trend, how), cls="num"),
                el("td", worse, *changes, cls="why"),
            )
        )
    return table(f"History of {about.title}", heads, rows)


def _step(step: Step, unit: str, how: Display) -> str:
    what = [trends.said(difference) for difference in step.differences]
    more = f" and {len(what) - MOST_CAUSES} more" if len(what) > MOST_CAUSES else ""
    because = f"{', '.join(what[:MOST_CAUSES])}{more}" if what else "nothing else changed that night"
    return f"{step.point.date}: {show(step.before, unit, how)} → {show(step.after, unit, how)} (p {step.p:.3f}); {because}"
