"""Joules of the rounds that latency is timed in: of a prompt's prefill, and of a new token.

Counters (`harness.measure.energy`) are read at the moments that the engine tells of each run: its beginning, its first token,
its end. From what they counted in a span is taken what the idle machine takes in so many seconds, measured just before the rounds
with the models loaded. One value a run; the figure is their median, with its order-statistic interval (see latency.py).

Nothing is shown where nothing can be: no counter that may be read, an engine that does not tell its moments, spans so short that
the counter's own steps are more than 5 % of them, and figures that are not above the idle machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.engines import moments
from harness.engines.base import Timing
from harness.engines.moments import Moment
from harness.measure import conditions, energy
from harness.measure.energy import SPAN, Idle, Meter, Reading, Unreadable
from harness.metrics.latency import ENERGY_PER_TOKEN, ENERGY_PREFILL
from harness.probes.base import of_interval
from harness.probes.requests import GenerationShape
from harness.probes.rounds import median
from harness.spec import Json, Measurement, Metric

if TYPE_CHECKING:
    pass

QUIET = 0.10
"""Share of all CPU time that others may take while the machine is called idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Counters that can be read, and the idle machine. `others`: the share of all CPU time that others took meanwhile."""

    meter: Meter
    idle: Idle
    others: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a run: what was counted, in joules, and how long it took, in seconds."""

    joules: float
    seconds: float

    def above(self, idle: Idle) -> float:
        return self.joules - idle.watts * self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run took: until its first token, and from there to its end."""

    prefill: Span
    decode: Span


@dataclass(slots=True, kw_only=True)
class Log:
    """The runs of one model, in the order in which they were made. `broken`: why there is no more of them."""

    runs: list[Run] = field(default_factory=list)
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an answer gets of energy: measurements, facts, why a figure was withheld, notes, and the raw joules by run."""

    measured: tuple[Measurement, ...] = ()
    facts: dict[str, Json] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    raw: dict[str, Json] = field(default_factory=dict)


def watch(device: str) -> Watch | str:
    """The counters of what computes on a device, with the idle machine measured now (1 to 4 seconds); or why there is none."""
    meter = energy.meter_of(device)
    if isinstance(meter, str):
        return meter
    before = conditions.snapshot()
    idle = energy.idle_of(meter)
    if isinstance(idle, str):
        return idle
    others = conditions.between(before, conditions.snapshot()).others_cpu_share
    return Watch(meter=meter, idle=idle, others=others)


def logged(run: Callable[[int], Timing], watching: Watch | str, log: Log) -> Callable[[int], Timing]:
    """The same run, and what it takes in the log. The timing is the engine's own."""
    if isinstance(watching, str):
        return run
    meter = watching.meter

    def logging(seed: int) -> Timing:
        heard: dict[Moment, Reading] = {}

        def listen(moment: Moment) -> None:
            try:
                heard[moment] = meter.read()
            except Unreadable as error:
                log.broken = log.broken or str(error)

        with moments.heard(listen):
            timing = run(seed)
        if not log.broken:
            _append(log, meter, heard)
        return timing

    return logging


def _append(log: Log, meter: Meter, heard: dict[Moment, Reading]) -> None:
    if len(heard) < 3:
        log.broken = "this engine does not say when its first token is there, so prefill and decode cannot be told apart"
        return
    begin, first, end = heard["begin"], heard["first token"], heard["end"]
    try:
        prefill = Span(joules=meter.joules(begin, first), seconds=first.seconds - begin.seconds)
        decode = Span(joules=meter.joules(first, end), seconds=end.seconds - first.seconds)
    except Unreadable as error:
        log.broken = str(error)
    else:
        log.runs.append(Run(prefill=prefill, decode=decode))


def told(watching: Watch | str, cell: Log, base: Log, *, discarded: int, shape: GenerationShape) -> Told:
    """What is to be said after the rounds; the first `discarded` runs were the warm-up."""
    if isinstance(watching, str):
        return Told(facts={"unsupported": watching})
    if cell.broken:
        return Told(facts={"unsupported": cell.broken})
    ours = cell.runs[discarded:]
    theirs = [] if base.broken else base.runs[discarded:]
    idle, name = watching.idle, watching.meter.name
    measured, withheld = [], []
    figures: dict[str, Json] = {}
    for metric, what, seconds in _figures(ours, idle):
        counted = [_per(metric, run, idle, shape) for run in ours]
        why = _why_not(metric, what, seconds, counted, idle)
        if why:
            withheld.append(why)
            continue
        measured.append(of_interval(metric, median(counted), f"{metric.definition}, {name} [{shape.name}]"))
        if theirs:
            figures[metric.name] = median([_per(metric, run, idle, shape) for run in theirs]).value
    notes = []
    if watching.others is not None and watching.others > QUIET:
        notes.append(
            f"energy: not idle when it was to be: others used {watching.others:.0%} of all CPU time, so too much is subtracted"
        )
    facts: dict[str, Json] = {
        "counter": name,
        "idle_watts": idle.watts,
        "idle_seconds": idle.seconds,
        "resolution_seconds": idle.resolution_seconds,
        "baseline": figures,
    }
    raw = {side: [_plain(run) for run in runs] for side, runs in (("cell", ours), ("baseline", theirs))}
    return Told(
        measured=tuple(measured),
        facts=facts,
        withheld=tuple(withheld),
        notes=tuple(notes),
        raw={"idle_watts": idle.watts, **raw},
    )


def _figures(runs: Sequence[Run], idle: Idle) -> list[tuple[Metric, str, float]]:
    """Each metric with its span in words and the span's shortest seconds."""
    return [
        (ENERGY_PREFILL, "a prefill", min(run.prefill.seconds for run in runs)),
        (ENERGY_PER_TOKEN, "the decoding of a run", min(run.decode.seconds for run in runs)),
    ]


def _per(metric: Metric, run: Run, idle: Idle, shape: GenerationShape) -> float:
    """Joules above the idle machine: of one prompt, or of one new token of one row."""
    if metric.name == ENERGY_PREFILL.name:
        return run.prefill.above(idle) / shape.batch
    return run.decode.above(idle) / (shape.batch * (shape.new - 1))


def _why_not(metric: Metric, what: str, seconds: float, counted: Sequence[float], idle: Idle) -> str:
    """Why a figure is not shown; '' where it is."""
    least = SPAN * idle.resolution_seconds
    if seconds < least:
        longer = "prompts" if metric.name == ENERGY_PREFILL.name else "answers (latency: new)"
        took, moves, takes = (f"{1e3 * one:.3g} ms" for one in (seconds, idle.resolution_seconds, least))
        return (
            f"{metric.name}: {what} took {took} and the counter moves every {moves}, so a reading would be off by more than "
            f"{1 / SPAN:.0%}; it takes {takes}: ask for longer {longer}"
        )
    if median(counted).value <= 0:
        return f"{metric.name}: {what} took no more than the idle machine ({idle.watts:.3g} W), so nothing is left to show"
    return ""


def _plain(run: Run) -> dict[str, float]:
    """A run as its raw sample: joules as counted, the idle machine's not taken away."""
    return {
        "prefill_joules": run.prefill.joules,
        "prefill_seconds": run.prefill.seconds,
        "decode_joules": run.decode.joules,
        "decode_seconds": run.decode.seconds,
    }
