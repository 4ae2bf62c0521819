"""A forecast in words: ranges, their sources, and what is said against them."""

from __future__ import annotations

from typing import Literal

from harness.costs import SOURCES, Expected, Source
from harness.forecast.estimate import CellPlan, Forecast

SAID: dict[Source, str] = {
    "same": "this machine has done the same before",
    "scheme": "it has by the same scheme, for another model or question; scaled",
    "method": "it has by the same method at other bits or options; scaled",
    "engine": "it has by another method on the same engine; scaled",
    "bits": "bits per weight times weights",
    "rate": "arithmetic at a rate measured now",
}

Unit = Literal["seconds", "bytes"]


def clock(seconds: float) -> str:
    """A time that has passed: `12 s`, `3 min 05 s`, `2 h 10 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes as people say them: `0 MB`, `4.3 MB`, `812 MB`, `17 GB`."""
    name, scale = _bytes(count)
    return f"{_number(count / scale)} {name}"


def span(expected: Expected | None, unit: Unit) -> str:
    """A range: `12 to 18 s`, `4.2 to 6.1 min`; its one number where both ends are written alike; `40 s or more` without an
    upper end."""
    if expected is None or (expected.high is None and not expected.low):
        return "unknown"
    largest = expected.low if expected.high is None else expected.high
    name, scale = _seconds(largest) if unit == "seconds" else _bytes(largest)
    low = _number(expected.low / scale)
    if expected.high is None:
        return f"{low} {name} or more"
    high = _number(expected.high / scale)
    if not expected.low < expected.high or low == high:
        return f"{high} {name}"
    return f"{low} to {high} {name}" if expected.low else f"at most {high} {name}"


def _seconds(largest: float) -> tuple[str, float]:
    """The unit in which a time is written, and its seconds."""
    if largest < 99.5:
        return "s", 1.0
    return ("min", 60.0) if largest < 99.5 * 60 else ("h", 3600.0)


def _bytes(largest: float) -> tuple[str, float]:
    return ("MB", 1e6) if largest < 999.5e6 else ("GB", 1e9)


def _number(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:,.0f}"


def sourced(expected: Expected | None, unit: Unit) -> str:
    """A range for a table, with the name of its source behind it: `≥ 40 s (rate)`."""
    said = span(expected, unit)
    if said.endswith(" or more"):
        said = f"≥ {said.removesuffix(' or more')}"
    said = said.replace("at most ", "≤ ")
    return said if expected is None or said == "unknown" else f"{said} ({expected.source})"


def legend(forecast: Forecast) -> list[str]:
    """What the sources that occur in a forecast mean, the surest first."""
    shown = [
        expected.source
        for cell in forecast.cells
        for expected in (cell.forecast.seconds, cell.forecast.host_bytes, cell.forecast.device_bytes, cell.forecast.disk_bytes)
        if expected is not None
    ]
    return [f"{source}: {SAID[source]}" for source in SOURCES if source in shown]


def whole(forecast: Forecast) -> str:
    """All of it in a sentence."""
    asked, answered = sum(c.questions for c in forecast.cells), sum(c.answered for c in forecast.cells)
    if not asked:
        return f"nothing is left to do: all {answered} questions are answered"
    total = forecast.whole
    memory = f"{span(total.host_bytes, 'bytes')} of memory"
    if total.device_bytes is not None:
        memory += f", {span(total.device_bytes, 'bytes')} of GPU memory"
    runs = f"from {forecast.runs} stored run{'s' if forecast.runs != 1 else ''} of this machine"
    source = runs if forecast.runs else "no run of this machine is stored yet"
    stored = f"; {answered} of {asked + answered} questions are answered already and cost nothing" if answered else ""
    return f"{span(total.seconds, 'seconds')}, {memory}, {span(total.disk_bytes, 'bytes')} of disk; {source}{stored}"


def unknown(forecast: Forecast) -> str | None:
    """Which parts of the time nobody can say, in a sentence; None where there are none."""
    names = () if forecast.whole.seconds is None else forecast.whole.seconds.unknown
    if not names:
        return None
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"nothing is known of: {shown}; a first run on this machine tells"


def warnings(forecast: Forecast, *, free_disk_bytes: int, free_memory_bytes: int | None) -> list[str]:
    """What will not fit, in sentences."""
    said = []
    disk = forecast.whole.disk_bytes
    if disk is not None and (disk.high or disk.low) > free_disk_bytes:
        certain = "do not fit" if disk.low > free_disk_bytes else "may not fit"
        said.append(
            f"disk: the {span(disk, 'bytes')} that the cells leave in the cache {certain} into the {size(free_disk_bytes)} "
            "that are free there; free some, choose another disk with --cache DIR, or take cells out of the suite"
        )
    if free_memory_bytes is not None:
        tight = [c for c in forecast.cells if (e := c.forecast.host_bytes) is not None and e.middle > free_memory_bytes]
        said += [_tight(cell, free_memory_bytes) for cell in tight]
    return said


def _tight(cell: CellPlan, free_bytes: int) -> str:
    return (
        f"memory: {cell.name} takes {span(cell.forecast.host_bytes, 'bytes')}, and {size(free_bytes)} are available now: it may "
        "be killed; use a smaller model or batch, or a machine with more memory"
    )


def against(expected: Expected | None) -> str:
    """` of 4.2 to 6.1 min expected`, to be written behind a time that has passed; nothing where no end was expected."""
    return "" if expected is None or expected.high is None else f" of {span(expected, 'seconds')} expected"
