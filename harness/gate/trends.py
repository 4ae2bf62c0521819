"""How the numbers of a suite went, night by night: series by cell and metric with change points, drift and what changed then.

A trend judges no night; the gate does. It shows where a level changed (`stats.changes`), what else changed between that night and
the one before, and how fast the series moves since the accepted run. Speed and memory are those of the newest night's machine.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import BadInput, UnknownName
from harness.gate import causes
from harness.gate.history import Key, StoredNight
from harness.gate.types import Difference, Figure
from harness.metrics import METRICS
from harness.report.derived import MEAN_ACCURACY
from harness.report.numbers import MINUS, Display
from harness.series import SeriesCell, SeriesColumn
from harness.spec import Metric
from harness.stats.changes import change_points, slope
from harness.stats.intervals import LEVEL, Interval

DRIFT_LEVEL = 0.99
"""A drift is called one where this interval of the slope lies wholly on the worse side."""
_WEEK = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a series is of, whichever the cell."""

    metric: Metric
    subject: str
    definition: str
    unit: str

    @property
    def title(self) -> str:
        return f"{self.metric.title}, {self.subject}" if self.subject else self.metric.title


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One night of a series."""

    run: str
    started_at: str
    figure: Figure

    @property
    def date(self) -> str:
        return self.started_at[:10]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A change of level: the first night of the new one, the medians of both, how often chance does as much, and what else
    changed between that night and the one before. `worse`: None for a metric without a better side."""

    at: int
    point: Point
    before: float
    after: float
    p: float
    worse: bool | None
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A series of one cell. `accepted`: the accepted run's figure, if it is in the series. `slope`: per week, over the nights
    since the accepted run (or all). `regressed`: in words, why it counts as worse than when it was accepted; '' if not."""

    cell: SeriesCell
    about: About
    points: tuple[Point, ...]
    accepted: Point | None
    slope: Interval | None
    steps: tuple[Step, ...]
    regressed: str

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(point.figure.value for point in self.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which series: of a metric (None: one of each that a run's table ends with), of these models and methods (none: all), of
    nights from `since` (YYYY-MM-DD) on. `regressed`: only those that got worse."""

    metric: str | None = None
    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    since: str | None = None
    regressed: bool = False


def trends(nights: Sequence[StoredNight], accepted: str | None, wanted: Wanted | None = None) -> tuple[Trend, ...]:
    """The series in the order of the newest night's plan, by metric. `accepted`: the name of the accepted run. BadInput or
    UnknownName for what no night holds."""
    wanted = wanted or Wanted()
    since = _day(wanted.since)
    nights = [night for night in nights if since is None or night.header.started_at[:10] >= since]
    if not nights:
        raise BadInput(f"no finished run{f' since {since}' if since else ''}; finish one with: quant-harness run SUITE")
    cells = [c for c in _cells(nights) if _is_wanted(c, wanted)]
    if not cells:
        names = {cell.model for cell in _cells(nights)} if wanted.models else {cell.method for cell in _cells(nights)}
        raise UnknownName("model" if wanted.models else "method", (wanted.models or wanted.methods)[0], names)
    made = (_trend(nights, cell, about, accepted) for about in _abouts(nights, wanted.metric) for cell in cells)
    return tuple(t for t in made if t is not None and (t.regressed or not wanted.regressed))


def _day(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise BadInput(f"--since {text!r} is no date; write it as 2026-11-30") from None


def _is_wanted(cell: SeriesCell, wanted: Wanted) -> bool:
    return (not wanted.models or cell.model in wanted.models) and (not wanted.methods or cell.method in wanted.methods)


def _cells(nights: Sequence[StoredNight]) -> list[SeriesCell]:
    """The newest night's cells in plan order, then those that only older nights have."""
    found: dict[str, SeriesCell] = {}
    for night in reversed(nights):
        for cell in night.cells:
            found.setdefault(cell.identity, cell)
    return list(found.values())


def _abouts(nights: Sequence[StoredNight], metric: str | None) -> list[About]:
    """What is shown, newest definitions first. Without a metric: for each place of the table at the end of a run the first metric
    that stands there, on its first subject; tasks by their mean."""
    known: dict[tuple[str, str, str], About] = {}
    for night in reversed(nights):
        for c in night.end.series.columns:
            about = About(metric=_row(c.metric, c.unit), subject=c.subject, definition=c.definition, unit=c.unit)
            known.setdefault((c.metric, c.subject, c.definition), about)
    mean = About(metric=MEAN_ACCURACY, subject="", definition=MEAN_ACCURACY.definition, unit=MEAN_ACCURACY.unit)
    has_tasks = any(about.metric.samples == "items" for about in known.values())
    if metric is not None:
        named = [mean] if metric == MEAN_ACCURACY.name and has_tasks else []
        named += [about for (name, _, _), about in known.items() if name == metric]
        if not named:
            raise UnknownName("metric", metric, {name for name, _, _ in known} | ({MEAN_ACCURACY.name} if has_tasks else set()))
        return named
    first: dict[int, About] = {}
    for about in sorted([*([mean] if has_tasks else []), *known.values()], key=lambda a: _or_last(a.metric.places.axis)):
        if about.metric.places.terminal is not None:
            first.setdefault(about.metric.places.terminal, about)
    return [first[place] for place in sorted(first)] or list(known.values())[:4]


def _or_last(place: int | None) -> float:
    return float("inf") if place is None else place


def _row(name: str, unit: str) -> Metric:
    return METRICS.get(name) or Metric(name=name, title=name, unit=unit, better="neither", definition="")


def _trend(nights: Sequence[StoredNight], cell: SeriesCell, about: About, accepted: str | None) -> Trend | None:
    found = [(n, f) for n in _comparable(nights, about) if (f := _figure(n, cell, about)) is not None]
    if not found:
        return None
    points = tuple(Point(run=n.run, started_at=n.header.started_at, figure=f) for n, f in found)
    series = [point.figure.value for point in points]
    steps = tuple(
        Step(
            at=change.at,
            point=points[change.at],
            before=change.before,
            after=change.after,
            p=change.p,
            worse=_worse(about.metric, change.before, change.after),
            differences=_differences(found[change.at - 1][0], found[change.at][0], cell),
        )
        for change in change_points(series)
    )
    at = next((place for place, point in enumerate(points) if point.run == accepted), None)
    drift = _slope(points[at or 0 :], LEVEL)
    return Trend(
        cell=cell,
        about=about,
        points=points,
        accepted=None if at is None else points[at],
        slope=drift,
        steps=steps,
        regressed=_regressed(about.metric, points, steps, at or 0, drift),
    )


def _comparable(nights: Sequence[StoredNight], about: About) -> Sequence[StoredNight]:
    """Of what is a machine's own, only the nights of the newest one's machine."""
    if about.metric.axis != "cost" or about.metric.when_simulated:
        return nights
    return [night for night in nights if night.machine == nights[-1].machine]


def _figure(night: StoredNight, cell: SeriesCell, about: About) -> Figure | None:
    if about.metric is not MEAN_ACCURACY:
        return night.value((cell.identity, about.metric.name, about.subject, about.definition))
    keys: list[Key] = [
        (cell.identity, c.metric, c.subject, c.definition)
        for c in night.end.series.columns
        if _row(c.metric, c.unit).samples == "items" and _of_all_cells(night, c)
    ]
    found = [night.value(key) for key in keys]
    values = [figure.value for figure in found if figure is not None]
    # Only a mean over all tasks of the night is one that compares with other cells' and other nights'.
    return Figure(value=sum(values) / len(values), n=len(values)) if values and len(values) == len(found) else None


def _of_all_cells(night: StoredNight, column: SeriesColumn) -> bool:
    """Not so for a task that is scored until a verdict: of those only the baseline has an accuracy."""
    return any(not night.cells[number].baseline for number in column.cells) or all(cell.baseline for cell in night.cells)


def _slope(points: Sequence[Point], level: float) -> Interval | None:
    """Per week; None below four nights."""
    times: dict[float, float] = {}
    for point in points:
        times[datetime.datetime.fromisoformat(point.started_at).timestamp() / _WEEK] = point.figure.value
    return slope(list(times), list(times.values()), level) if len(times) >= 4 else None


def _worse(metric: Metric, before: float, after: float) -> bool | None:
    if metric.better == "neither":
        return None
    return (after > before) == (metric.better == "lower")


def _regressed(metric: Metric, points: Sequence[Point], steps: Sequence[Step], accepted: int, drift: Interval | None) -> str:
    """Why the newest level is worse than that of the accepted night (or the first), or that it drifts there; in words. `drift`:
    the slope since then."""
    if metric.better == "neither":
        return ""
    since = [step for step in steps if step.at > accepted]
    bad = list(itertools.takewhile(lambda step: _worse(metric, since[0].before, step.after), reversed(since)))
    if bad:
        return f"worse since {bad[-1].point.date}"
    # The wider interval is asked for only where the narrower one excludes 0: it holds it.
    worse = not since and _is_worse(metric, drift) and _is_worse(metric, _slope(points[accepted:], DRIFT_LEVEL))
    return f"drifts to the worse since {points[accepted].date}" if worse else ""


def _is_worse(metric: Metric, drift: Interval | None) -> bool:
    """Whether the whole interval is on the worse side."""
    if drift is None or drift.low is None or drift.high is None:
        return False
    return drift.low > 0 if metric.better == "lower" else drift.high < 0


def _differences(before: StoredNight, after: StoredNight, cell: SeriesCell) -> tuple[Difference, ...]:
    series = (before.end.series, after.end.series)
    found = causes.between(before.header.context, after.header.context, (series[0].weights, series[1].weights))
    cells = (before.cell(cell.identity), after.cell(cell.identity))
    environments: list[str] = ["" if c is None else c.environment for c in cells]
    if environments[0] != environments[1] and all(environments) and not any(d.what.startswith("package ") for d in found):
        found = (*found, Difference(what="packages of its environment", before=environments[0][:8], after=environments[1][:8]))
    return found


def by_about(found: Sequence[Trend]) -> Mapping[str, Sequence[Trend]]:
    """The series of each metric, subject and definition, in order."""
    grouped: dict[str, list[Trend]] = {}
    for trend in found:
        grouped.setdefault("|".join((trend.about.metric.name, trend.about.subject, trend.about.definition)), []).append(trend)
    return grouped


BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 30) -> str:
    """The series as a line of blocks, lowest to highest; of longer ones the medians of neighbours."""
    bins = list(_bins(values, width))
    low, high = min(bins), max(bins)
    if low == high:
        return BLOCKS[3] * len(bins)
    return "".join(BLOCKS[min(7, int(8 * (value - low) / (high - low)))] for value in bins)


def _bins(values: Sequence[float], width: int) -> Iterator[float]:
    count = min(width, len(values))
    for place in range(count):
        part = sorted(values[place * len(values) // count : (place + 1) * len(values) // count])
        yield part[len(part) // 2]


def drift(trend: Trend, how: Display) -> str:
    """The slope per week with its interval, as in `+0.041 (0.020 to 0.053)`, to two digits of the interval's width."""
    found = trend.slope
    if found is None or found.low is None or found.high is None:
        return "–"
    low, value, high = (x * how.factor for x in (found.low, found.value, found.high))
    digits = 1 if high == low else max(0, min(6, 1 - math.floor(math.log10(high - low))))
    first, *ends = (f"{x:.{digits}f}".replace("-", MINUS) for x in (value, low, high))
    return f"{first if value < 0 else f'+{first}'} ({' to '.join(ends)})"


def said(difference: Difference) -> str:
    """`package torch 2.12 → 2.13`; long digests are cut."""
    ends = [text if len(text) <= 20 else f"{text[:8]}…" for text in (difference.before or "none", difference.after or "none")]
    return f"{difference.what} {ends[0]} → {ends[1]}"
