"""The history of one square as a drawing without a script: a dot for each run, the band in which a change is no news, and the
first run that lies beyond it.

What is drawn judges nothing again: the band is BASE's number and the finding's own threshold around it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.gate.types import Finding, History, Past, RunName
from harness.report.markup import Markup, el, join, raw
from harness.report.numbers import Display, display, show, with_unit
from harness.report.pieces import fold, numeric, table
from harness.report.svg import FORMS, Scale

MOST = 400
"""Runs that are drawn, the newest."""

_HEIGHT, _AXIS, _PAD = 170, 26, 14
"""Pixels: of the plot, of the dates below it, of the room above the highest and below the lowest dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One run in the drawing. `same`: of the candidate's machine, as far as that is known and matters. `beyond`: on the worse
    side of the band."""

    date: str
    run: str
    value: float
    baseline: float | None
    same: bool
    beyond: bool
    candidate: bool = False


def nights(f: Finding, history: History, candidate: RunName, machine: str = "") -> tuple[Night, ...]:
    """The square's runs, oldest first, the candidate last; none without a past or a number. `machine`: the digest of the
    candidate's ('' where it is not known); latency and memory of others are drawn hollow."""
    past = history.get((f.square.identity, f.square.metric, f.square.subject, f.square.definition), ())
    if not past or f.after is None or not math.isfinite(f.after.value):
        return ()
    limit = edge(f)
    shown = [_night(f, p, limit, machine) for p in past[-MOST:] if math.isfinite(p.value) and p.run != candidate.run]
    last = Night(
        date=candidate.started_at[:10],
        run=candidate.run,
        value=f.after.value,
        baseline=None,
        same=True,
        beyond=_beyond(f, f.after.value, limit),
        candidate=True,
    )
    return (*shown, last) if shown else ()


def _night(f: Finding, past: Past, limit: float | None, machine: str) -> Night:
    same = f.kind != "fenced" or not machine or past.machine == machine
    beyond = same and _beyond(f, past.value, limit)
    return Night(
        date=past.started_at[:10], run=past.run, value=past.value, baseline=past.baseline, same=same, beyond=beyond
    )  # fmt: skip


def edge(f: Finding) -> float | None:
    """The number at which the change equals the threshold, on the worse side; None where that cannot be said of one number."""
    if f.before is None or f.threshold is None or not math.isfinite(f.threshold) or (up := _up(f)) is None:
        return None
    value, sign = f.before.value, 1 if up else -1
    match f.change_unit, f.square.unit:
        case ("points", "share" | "fraction"):
            return value + sign * f.threshold / 100
        case ("nat", "nat"):
            return value + sign * f.threshold
        case ("nat", "" | "1"):  # perplexity: the change is one of its logarithm
            return value * math.exp(sign * f.threshold)
        case ("share", _):
            return value * (1 + f.threshold) ** sign
    return None


def _up(f: Finding) -> bool | None:
    """Whether larger is worse, as the finding's own change says; None where nothing changed."""
    if f.before is None or f.after is None or not f.change or f.after.value == f.before.value:
        return None
    return (f.after.value > f.before.value) == (f.change > 0)


def _beyond(f: Finding, value: float, limit: float | None) -> bool:
    return limit is not None and (value > limit if _up(f) else value < limit)


def first_bad(shown: Sequence[Night]) -> Night | None:
    """The first of the runs that are beyond the band without a break up to the candidate; runs of other machines are passed
    over. None where the candidate itself is not."""
    found = None
    for night in reversed([n for n in shown if n.same]):
        if not night.beyond:
            break
        found = night
    return found


def words(f: Finding, shown: Sequence[Night]) -> str:
    """What the drawing shows, in a sentence or two."""
    first = first_bad(shown)
    told = f"{len(shown)} runs, {shown[0].date} to {shown[-1].date}."
    if edge(f) is None:
        return told
    if first is None:
        return f"{told} The candidate's number itself is within the band."
    if first.candidate:
        return f"{told} The first bad run is the candidate itself, {first.run}."
    many = sum(n.beyond for n in shown[shown.index(first) :])
    return f"{told} The first bad run is {first.run} of {first.date}; since then {many} in a row lie beyond the band."


def drawing(f: Finding, shown: Sequence[Night]) -> Markup:
    """The chart with what it says and its table."""
    how = display(f.square.unit, [n.value for n in shown])
    limit = edge(f)
    scale = _scale([n.value for n in shown] + ([] if limit is None else [limit]))
    said = words(f, shown)
    ticks = scale.ticks()
    parts = [_band(f, limit, scale), *(_grid(scale, tick) for tick in ticks)]
    parts += [_between(a, b, place, len(shown), scale) for place, (a, b) in enumerate(itertools.pairwise(shown))]
    first = first_bad(shown)
    parts += [_dot(n, place, len(shown), scale, f, how, first=n is first) for place, n in enumerate(shown)]
    for place, anchor in ((0, "start"), (len(shown) - 1, "end")):
        x = "0" if anchor == "start" else "100%"
        parts.append(el("text", shown[place].date, x=x, y=_HEIGHT + 18, text_anchor=anchor, cls="tick"))
    label = f"{f.square.name}: {said}"
    image = el("svg", *parts, role="img", aria_label=label, width="100%", height=_HEIGHT + _AXIS, cls="rows nights")
    return join(
        el("div", _ticks(scale, ticks, f, how), image, cls="drawing beside"),
        _legend(shown, banded=limit is not None),
        el("p", said),
        _table(f, shown, how),
    )


def _scale(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    if low == high:
        low, high = (low - abs(low) / 10, high + abs(high) / 10) if low else (-1.0, 1.0)
    return Scale(low=low, high=high)


def _y(value: float, scale: Scale) -> float:
    return round(_HEIGHT - _PAD - scale.percent(value) / 100 * (_HEIGHT - 2 * _PAD), 1)


def _x(place: int, count: int) -> str:
    return f"{100 * (place + 0.5) / count:.2f}%"


def _band(f: Finding, limit: float | None, scale: Scale) -> Markup | None:
    """From BASE's number as far to the better side as to the worse; the worse edge is a line."""
    if limit is None or f.before is None:
        return None
    ends = sorted(_y(x, scale) for x in (limit, 2 * f.before.value - limit))
    top, bottom = max(0.0, ends[0]), min(float(_HEIGHT), ends[1])
    band = el("rect", el("title", "within the threshold"), x="0", y=str(top), width="100%", height=str(round(bottom - top, 1)))
    line = el(
        "line", el("title", "beyond this it is worse"), x1="0", x2="100%", y1=str(_y(limit, scale)), y2=str(_y(limit, scale))
    )
    return join(el("g", band, cls="fence"), el("g", line, cls="edge"))


def _grid(scale: Scale, value: float) -> Markup:
    y = str(_y(value, scale))
    return el("line", x1="0", x2="100%", y1=y, y2=y, cls="grid")


def _ticks(scale: Scale, ticks: Sequence[float], f: Finding, how: Display) -> Markup:
    """The axis at the left: an image of its own, as wide as its labels, so that no dot lies on one."""
    labels = [_number(value, f, how) for value in ticks]
    width = 8 + 7 * max(map(len, labels), default=0)
    parts = [
        el("text", label, x=str(width - 6), y=str(_y(value, scale) + 4), text_anchor="end", cls="tick")
        for value, label in zip(ticks, labels, strict=True)
    ]
    return el("svg", *parts, width=str(width), height=_HEIGHT + _AXIS, cls="rows", aria_hidden="true")


def _between(a: Night, b: Night, place: int, count: int, scale: Scale) -> Markup | None:
    if not (a.same and b.same):
        return None
    ends = (_x(place, count), _x(place + 1, count))
    return el("line", x1=ends[0], x2=ends[1], y1=str(_y(a.value, scale)), y2=str(_y(b.value, scale)), cls="step")


def _dot(n: Night, place: int, count: int, scale: Scale, f: Finding, how: Display, *, first: bool) -> Markup:
    x, y = _x(place, count), _y(n.value, scale)
    tip = f"{n.date}, {n.run}: {_number(n.value, f, how)}{'' if n.same else ', another machine'}"
    cls = "bad" if n.beyond else "good" if n.same else "away"
    path = raw(f'<path d="{FORMS[1 if n.beyond else 0]}"/>')
    mark = el("svg", el("title", tip), path, x=x, y=str(y), overflow="visible", cls=f"dot {cls}")
    if not first:
        return mark
    share = (place + 0.5) / count
    anchor = "start" if share < 0.15 else "end" if share > 0.85 else "middle"
    high = y < 30
    return join(mark, el("text", "first bad run", x=x, y=str(y + 22 if high else y - 11), text_anchor=anchor, cls="name"))


def _legend(shown: Sequence[Night], *, banded: bool) -> Markup:
    parts = [("good", 0, "a run")]
    parts += [("bad", 1, "beyond the band, on the worse side")] if any(n.beyond for n in shown) else []
    parts += [("away", 0, "another machine, not compared")] if not all(n.same for n in shown) else []
    keys = [
        el("span", _sign(cls, form), f" {said}", cls="key") for cls, form, said in parts
    ]  # fmt: skip
    keys += [el("span", el("i", cls="swatch fence"), " within the threshold of base", cls="key")] if banded else []
    return el("p", *keys, cls="legend")


def _sign(cls: str, form: int) -> Markup:
    path = raw(f'<path d="{FORMS[form]}"/>')
    return el("svg", path, viewBox="-6 -6 12 12", width="12", height="12", cls=f"dot {cls}", aria_hidden="true")


def _table(f: Finding, shown: Sequence[Night], how: Display) -> Markup:
    with_baseline = any(n.baseline is not None for n in shown)
    heads = [el("th", "Run", scope="col"), numeric("Value"), *([numeric("Baseline of the same run")] if with_baseline else [])]
    rows = []
    for n in reversed(shown):
        said = " (candidate)" if n.candidate else "" if n.same else " (another machine)"
        name = el("th", n.run, said, el("span", n.date, cls="muted small block"), scope="row")
        squares = [el("td", _number(n.value, f, how), cls="num")]
        if with_baseline:
            squares.append(el("td", "" if n.baseline is None else _number(n.baseline, f, how), cls="num"))
        rows.append(el("tr", name, *squares))
    title = f"History of {f.square.name}, the newest first"
    return fold(f"The {len(shown)} numbers", table(title, heads, rows))


def _number(value: float, f: Finding, how: Display) -> str:
    return with_unit(show(value, f.square.unit, how), how)
