"""From what is left to do and what was seen before to ranges: the rule of each source, and the spread round it.

A range has the ends that were seen: the least and the most that the rule makes of single observations; or, once MANY forecasts
from the same source were followed by what really was, nine tenths of how those turned out. One observation alone gives a range
without width.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from harness.costs import SOURCES, CellForecast, Expected, Source
from harness.forecast.history import ARTIFACT, CELL, DEVICE_MEMORY, DISK, KEPT, MEMORY, History, Seen
from harness.forecast.work import Place, Todo, Work, model_of, places, standing
from harness.methods import METHODS
from harness.spec import Quantized, digest

MANY = 8
"""Forecasts that must have been followed by a measurement before their spread is laid round new ones."""

LOWEST, HIGHEST = 0.05, 0.95
"""Quantiles of that spread."""

Rate = Callable[[], float | None]
"""Operations a second that this machine does in a product of matrices; None where nobody can say. Asked only if it is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of work with the seconds that it is expected to take; None: unknown."""

    work: Work
    seconds: Expected | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """What is left of one cell. `questions` are still asked of it, `answered` are stored already."""

    name: str
    questions: int
    answered: int
    pieces: tuple[Piece, ...]
    forecast: CellForecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is left of a plan: each cell, and all of them: seconds and disk in sum, memory at its largest, because cells run one
    after the other. `runs` of this machine were read for it."""

    cells: tuple[CellPlan, ...]
    whole: CellForecast
    runs: int


def forecast(todo: Sequence[Todo], history: History, *, device: str, rate: Rate) -> Forecast:
    """What is left of a plan will take, on the device ("cpu", "cuda")."""
    cells = tuple(_cell(each, history, device, rate) for each in todo)
    open_cells = [cell for cell in cells if cell.questions]
    host = largest((c.name, c.forecast.host_bytes) for c in open_cells)
    gpu = largest((c.name, c.forecast.device_bytes) for c in open_cells) if device.startswith("cuda") else None
    seconds = total((c.name, c.forecast.seconds) for c in open_cells)
    disk = total((c.name, c.forecast.disk_bytes) for c in open_cells)
    whole = CellForecast(seconds=seconds, host_bytes=host, device_bytes=gpu, disk_bytes=disk)
    return Forecast(cells=cells, whole=whole, runs=history.runs)


def total(parts: Iterable[tuple[str, Expected | None]]) -> Expected | None:
    """The sum of named parts, with the least sure of their sources; the names of those that are unknown. None where all are."""
    known, unknown = _known(parts)
    if not known:
        return None
    high = None if unknown or any(e.high is None for e in known) else sum(e.high or 0.0 for e in known)
    rule = None if unknown or any(e.rule is None for e in known) else sum(e.rule or 0.0 for e in known)
    return Expected(low=sum(e.low for e in known), high=high, source=_least_sure(known), rule=rule, unknown=unknown)


def largest(parts: Iterable[tuple[str, Expected | None]]) -> Expected | None:
    """The largest of named parts, likewise."""
    known, unknown = _known(parts)
    if not known:
        return None
    high = None if unknown or any(e.high is None for e in known) else max(e.high or 0.0 for e in known)
    return Expected(low=max(e.low for e in known), high=high, source=_least_sure(known), unknown=unknown)


def _known(parts: Iterable[tuple[str, Expected | None]]) -> tuple[list[Expected], tuple[str, ...]]:
    named = list(parts)
    unknown = [name for name, each in named if each is None]
    unknown += [name for _, each in named if each is not None for name in each.unknown]
    return [each for _, each in named if each is not None], tuple(dict.fromkeys(unknown))


def _least_sure(known: Sequence[Expected]) -> Source:
    return max((each.source for each in known), key=SOURCES.index)


def _cell(todo: Todo, history: History, device: str, rate: Rate) -> CellPlan:
    planned = todo.planned
    pieces = tuple(Piece(work=work, seconds=_seconds(work, history, rate)) for work in todo.work)
    seen = CellForecast()
    if todo.questions:
        on_gpu = device.startswith("cuda")
        seen = CellForecast(
            seconds=_proved(total((piece.work.name, piece.seconds) for piece in pieces), history, CELL),
            host_bytes=_memory(todo, history, MEMORY, counted=not on_gpu),
            device_bytes=_memory(todo, history, DEVICE_MEMORY, counted=True) if on_gpu else None,
            disk_bytes=_disk(todo, history),
        )
    return CellPlan(
        name=planned.cell.name,
        questions=len(todo.questions),
        answered=len(planned.questions) - len(todo.questions),
        pieces=pieces,
        forecast=seen,
    )


def _seconds(work: Work, history: History, rate: Rate) -> Expected | None:
    found = _looked_up(work, history, work.entry)
    if found is not None:
        return found
    speed = rate() if work.scored_tokens and work.parameters else None
    if speed is None or work.scored_tokens is None or work.parameters is None:
        return None
    # Two operations a weight and token (Kaplan et al. 2020, section 2.1); attention comes on top.
    least = 2.0 * work.parameters * work.scored_tokens / speed
    return _ranged([(least, least)], history, work.entry, "rate")


def _memory(todo: Todo, history: History, what: str, *, counted: bool) -> Expected | None:
    """The peak of a cell; where nothing like it was seen and `counted`, no less than the weights that it holds."""
    size = todo.planned.estimated_bytes
    found = _looked_up(_of_cell(todo, what, todo.planned.parameters), history, what)
    if found is not None or size is None or not counted:
        return found
    return Expected(low=float(size), high=None, source="bits")


def _disk(todo: Todo, history: History) -> Expected | None:
    """What the cell leaves in the cache: its artifact, and of a baseline the answers that others are compared with."""
    planned = todo.planned
    parts = [("the artifact", _artifact(todo, history))]
    if planned.baseline:
        parts.append(("the baseline's answers", _looked_up(_of_cell(todo, KEPT, planned.parameters), history, KEPT)))
    return _proved(total(parts), history, DISK)


def _artifact(todo: Todo, history: History) -> Expected | None:
    planned, size = todo.planned, todo.planned.estimated_bytes
    if not todo.makes_artifact or not isinstance(planned.cell.origin, Quantized):
        return Expected(low=0.0, high=0.0, source="bits")
    found = _looked_up(_of_cell(todo, ARTIFACT, size), history, ARTIFACT)
    if found is not None or size is None:
        return found
    # An unquantized row links to files that have its type already, and writes them anew otherwise.
    links = METHODS[planned.cell.method].unquantized
    return Expected(low=0.0 if links else float(size), high=float(size), source="bits")


def _of_cell(todo: Todo, what: str, size: int | None) -> Work:
    cell = todo.planned.cell
    at = places(what, digest(todo.planned.questions)[:16], "", standing(cell, baseline=todo.planned.baseline))
    return Work(what=what, subject="", question="", places=at, model=model_of(cell), parameters=size, units=1.0)


def _looked_up(work: Work, history: History, what: str) -> Expected | None:
    """What the first place says that holds anything which can be scaled to this. `what`: by which its ratios are known."""
    for place in work.places:
        scaled = [(_distance(seen, work), _scaled(seen, work, place)) for seen in history.at(place.key)]
        said = [(distance, ends) for distance, ends in scaled if ends is not None]
        if said:
            nearest = min(distance for distance, _ in said)
            return _ranged([ends for distance, ends in said if distance == nearest], history, what, place.source)
    return None


def _scaled(seen: Seen, work: Work, place: Place) -> tuple[float, float] | None:
    """From where to where what was seen is when scaled to the work; None where nobody can say."""
    size = _ratio(work.parameters, seen.parameters, equal=work.model == seen.model or not (seen.proportional or seen.grows))
    amount = 1.0 if place.alike else _ratio(work.units, seen.units, equal=False)
    if size is None or amount is None:
        return None
    sure = seen.fixed + seen.proportional * size
    return (sure + seen.grows * min(1.0, size)) * amount, (sure + seen.grows * max(1.0, size)) * amount


def _ratio(new: float | None, old: float | None, *, equal: bool) -> float | None:
    """How many times more; 1 where both are known to be `equal`, None where nobody can say."""
    if new and old:
        return new / old
    return 1.0 if equal else None


def _distance(seen: Seen, work: Work) -> float:
    """How far apart the sizes of two models are; the nearest counts."""
    return abs(math.log(work.parameters / seen.parameters)) if work.parameters and seen.parameters else 0.0


def _ranged(ends: Sequence[tuple[float, float]], history: History, what: str, source: Source) -> Expected:
    lows, highs = zip(*ends, strict=True)
    rule = math.sqrt(statistics.median(lows) * statistics.median(highs))
    # By rate nothing was seen yet of how fast this is really done: it may be slower by any factor.
    seen = Expected(low=min(lows), high=None if source == "rate" else max(highs), source=source, rule=rule)
    proved = _proved(seen, history, what)
    return seen if proved is None else proved


def _proved(seen: Expected | None, history: History, what: str) -> Expected | None:
    """The range with the spread of earlier ones from its source, once there are MANY; else as it is."""
    if seen is None or seen.rule is None:
        return seen
    ratios = sorted(history.ratios.get((what, seen.source), ()))
    if len(ratios) < MANY:
        return seen
    low, high = (ratios[round(quantile * (len(ratios) - 1))] for quantile in (LOWEST, HIGHEST))
    return replace(seen, low=seen.rule * low, high=seen.rule * high)
