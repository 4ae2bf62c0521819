"""Time to first token, time per output token, throughput and energy at a declared shape, alone on the machine, by the baseline.

One run = one greedy generation of `new` tokens after `prompt` tokens in `batch` rows. Runs of the cell and of the baseline
alternate (cell, baseline, baseline, cell, ...), so that a drifting clock meets both alike, and the two runs of a round are
compared with each other. The first rounds are discarded until they have settled; rounds go on until the 95 % interval of the
median is narrower than 5 % for both times, and narrower than 3 % for both ratios to a baseline beside it, or the budget of
seconds is spent, which is said. Intervals are binomial order-statistic intervals: no assumption on the distribution, none with
fewer than 6 rounds (Conover, Practical Nonparametric Statistics, 3rd ed. 1999, section 3.2).

Whole runs take turns, not single decode steps: two models that take turns at every step throw each other's weights out of the
caches, and a step would be slower than any that a user sees.

Roofline: decoding reads every active weight once per step, so those bytes over the measured bandwidth is a floor on the
step (Williams, Waterman, Patterson 2009). The bandwidth is measured at the working-set size of the weights, with the same
threads: small models live in cache, where the memory's bandwidth would be no floor. A share over 100 % of the floor in memory
means that one of the two figures is wrong: then the decode figures are withheld; in cache, where the floor itself is less
sure, the share is.

Energy comes from the same rounds, where counters may be read (probes/energy.py).

Versions
1  2026-11-21  first definition
2  2026-11-25  rounds go on until the ratios are known too: two times known to 5 % each may have a ratio that is 3 % off
   2026-11-30  energy besides; no figure that was there is another one, so the version stays
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from harness.engines.base import Loaded, Timing
from harness.errors import Unsupported
from harness.measure import conditions, machine
from harness.measure.conditions import Conditions
from harness.metrics.latency import (
    ENERGY,
    GROUP,
    PREFILL,
    ROOFLINE,
    STEP_P90,
    STEP_P99,
    THROUGHPUT,
    TPOT,
    TPOT_RATIO,
    TTFT,
    TTFT_P90,
    TTFT_P99,
    TTFT_RATIO,
)
from harness.probes import energy
from harness.probes.base import Probe, Session
from harness.probes.requests import GenerationShape, ProbeRequests, shape_of
from harness.probes.roofline import Roofline
from harness.probes.roofline import floor as floor_of
from harness.probes.rounds import (
    LEAST_ROUNDS,
    NARROW,
    NARROW_RATIO,
    Rounds,
    compared,
    median,
    nearest_rank,
    quiet,
    run_rounds,
    settled,
    tpot,
    tpot_ratios,
    ttft_ratios,
)
from harness.spec import Answer, Json, Measurement, Metric, Question

if TYPE_CHECKING:
    from harness.stats import Interval


TOLERANCE = 1.05
"""A measured floor has noise too: only beyond this share of it is a figure called wrong."""

QUIET = 0.10
"""Share of all CPU time taken by others above which the machine was not ours alone."""


def questions(requests: ProbeRequests) -> list[Question]:
    return [
        Question(
            probe="latency",
            subject=shape.name,
            options={**shape.options(), "budget_seconds": requests.latency_budget_seconds},
        )
        for shape in requests.latency
    ]


def measure(session: Session, question: Question) -> Answer:
    shape = shape_of(question)
    budget = float(question.options["budget_seconds"])
    cell = session.loaded
    engine = cell.facts()
    if engine.simulated:
        raise Unsupported("simulated: the engine holds these weights dequantized, so their speed is not that of the scheme")
    base, beside = _baseline(session)
    watching = energy.watch(engine.device)
    ours, theirs = energy.Log(), energy.Log()
    before = conditions.snapshot()
    with quiet():
        rounds = run_rounds(
            energy.logged(runner(cell, shape), watching, ours),
            None if base is None else energy.logged(runner(base, shape), watching, theirs),
            budget_seconds=budget,
            seed=session.seed,
        )
    during = conditions.between(before, conditions.snapshot())
    bound = floor_of(session, engine)
    roofline = bound if isinstance(bound, Roofline) else None
    measured, withheld = _measurements(rounds, shape, roofline, during)
    told = energy.told(watching, ours, theirs, discarded=rounds.discarded, shape=shape)
    blob = session.blob("latency", _raw(shape, rounds, told.raw), "json")
    facts = {
        "shape": shape.options(),
        "rounds": len(rounds.cell),
        "discarded": rounds.discarded,
        "stopped": rounds.stopped,
        "measured_seconds": rounds.seconds,
        "baseline": {"beside": beside, **_summary(rounds.base, shape)},
        "conditions": {**asdict(during), **_settings(session)},
        "roofline": asdict(bound),
        "energy": told.facts,
        "withheld": [*withheld, *told.withheld],
        "notes": [*_notes(rounds, during), *told.notes],
    }
    sampled = ("ttft", "tpot", *(metric.name for metric in ENERGY))
    kept = [replace(one, blob=blob) if one.metric in sampled else one for one in (*measured, *told.measured)]
    return Answer(measurements=tuple(kept), facts=facts)


def runner(loaded: Loaded, shape: GenerationShape) -> Callable[[int], Timing]:
    def run(seed: int) -> Timing:
        timing = loaded.time_generation(prompt_tokens=shape.prompt, new_tokens=shape.new, batch=shape.batch, seed=seed)
        if len(timing.step_seconds) != shape.new - 1:
            raise RuntimeError(f"the engine timed {len(timing.step_seconds)} steps where {shape.new - 1} were asked")
        return timing

    return run


def _baseline(session: Session) -> tuple[Loaded | None, str]:
    """The baseline beside the cell, loaded once per process, and what to say of it."""
    if session.is_baseline:
        return None, "this is the baseline"
    if "latency baseline" not in session.memo:
        session.memo["latency baseline"] = session.load_baseline()
    base: Loaded | None = session.memo["latency baseline"]
    return base, "interleaved" if base is not None else "not interleaved: it does not fit beside the cell, or there is none"


def _measurements(
    rounds: Rounds, shape: GenerationShape, roofline: Roofline | None, during: Conditions
) -> tuple[list[Measurement], list[str]]:
    """Measurements, and why any of them was withheld."""
    ttfts = [timing.ttft_seconds for timing in rounds.cell]
    tpots = [tpot(timing) for timing in rounds.cell]
    steps = [step for timing in rounds.cell for step in timing.step_seconds]
    measured: list[Measurement] = []
    withheld: list[str] = []

    def bare(metric: Metric, value: float, low: float | None, high: float | None, n: int) -> None:
        definition = f"{metric.definition} [{shape.name}]"
        measured.append(
            Measurement(metric=metric.name, value=value, low=low, high=high, n=n, unit=metric.unit, definition=definition)
        )

    def add(metric: Metric, interval: Interval) -> None:
        bare(metric, interval.value, interval.low, interval.high, interval.n)

    def inverse(metric: Metric, amount: float, interval: Interval) -> None:
        low = None if interval.high is None else amount / interval.high
        high = None if interval.low is None else amount / interval.low
        bare(metric, amount / interval.value, low, high, interval.n)

    def rank(metric: Metric, samples: Sequence[float], q: float) -> None:
        bare(metric, nearest_rank(samples, q), None, None, len(samples))

    first = median(ttfts)
    add(TTFT, first)
    rank(TTFT_P90, ttfts, 0.90)
    rank(TTFT_P99, ttfts, 0.99)
    inverse(PREFILL, shape.batch * shape.prompt, first)
    if rounds.base:
        add(TTFT_RATIO, median(ttft_ratios(rounds.cell, rounds.base)))

    step = median(tpots)
    share = None if roofline is None else roofline.floor_seconds / step.value
    others = (during.others_cpu_share, None if roofline is None else roofline.others_cpu_share)
    if roofline is not None and share is not None and share > TOLERANCE:
        if max(one or 0.0 for one in others) > QUIET:
            withheld.append(f"roofline share {share:.0%}: others were using the CPU, so the measured floor is not one")
        elif roofline.level == "cache":
            withheld.append(f"roofline share {share:.0%}: the weights fit into cache, whose measured bandwidth is no sure floor")
        else:
            withheld.append(f"decode figures: {share:.0%} of the roofline cannot be; {step.value:.3g} s per token was measured")
            return measured, withheld
        share = None
    add(TPOT, step)
    rank(STEP_P90, steps, 0.90)
    rank(STEP_P99, steps, 0.99)
    inverse(THROUGHPUT, shape.batch, step)
    if rounds.base:
        add(TPOT_RATIO, median(tpot_ratios(rounds.cell, rounds.base)))
    if share is not None:
        inverse(ROOFLINE, share * step.value, step)
    return measured, withheld


def _summary(timings: Sequence[Timing], shape: GenerationShape) -> dict[str, object]:
    if not timings:
        return {}
    first, step = median([t.ttft_seconds for t in timings]), median([tpot(t) for t in timings])
    return {
        "ttft": {"value": first.value, "low": first.low, "high": first.high},
        "tpot": {"value": step.value, "low": step.low, "high": step.high},
        "throughput": shape.batch / step.value,
        "rounds": len(timings),
    }


def _raw(shape: GenerationShape, rounds: Rounds, joules: dict[str, Json]) -> bytes:
    def plain(timings: Sequence[Timing]) -> list[dict[str, object]]:
        return [{"ttft_seconds": t.ttft_seconds, "step_seconds": list(t.step_seconds)} for t in timings]

    data: dict[str, Json] = {"shape": shape.name, "cell": plain(rounds.cell), "baseline": plain(rounds.base)}
    data |= {"energy": joules} if joules else {}
    return json.dumps(data, separators=(",", ":")).encode()


def _settings(session: Session) -> dict[str, object]:
    torch = sys.modules.get("torch")
    return {
        "threads": None if torch is None else int(torch.get_num_threads()),
        "affinity": machine.affinity(),
        "governor": machine.governor(),
        "device": session.device,
        "environment": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY") if name in os.environ
        },
    }


def _notes(rounds: Rounds, during: Conditions) -> list[str]:
    notes = []
    others, steal = during.others_cpu_share, during.steal_share
    if others is not None and others > QUIET:
        notes.append(f"not alone: other processes used {others:.0%} of all CPU time while this was timed")
    if steal is not None and steal > 0.01:
        notes.append(f"the hypervisor took {steal:.1%} of all CPU time while this was timed")
    if len(rounds.cell) < LEAST_ROUNDS:
        notes.append(f"only {len(rounds.cell)} rounds fitted into the budget: too few for an interval")
    elif not settled(rounds.cell):
        notes.append(f"the budget was spent before the interval of the median was below {NARROW:.0%}")
    elif rounds.base and not compared(rounds.cell, rounds.base):
        notes.append(f"the budget was spent before the interval of the ratio to the baseline was below {NARROW_RATIO:.0%}")
    return notes


PROBE = Probe(
    name="latency",
    title=GROUP.title,
    version="2",
    metrics=GROUP.metrics,
    isolation="latency",
    questions=questions,
    measure=measure,
    origins=("quantized", "given"),
    preload=("harness.engines.transformers", "harness.stats"),
)
