"""Timed rounds of a cell and its baseline in turn, until the interval of their medians is narrow or the budget is spent."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.engines.base import Timing

if TYPE_CHECKING:
    from harness.stats import Interval

NARROW = 0.05
"""Rounds stop once the interval of the median is narrower than this share of the median."""

NARROW_RATIO = 0.03
"""The same for the ratios to the baseline: then a model against itself is within 2 % in at least 96 of 100 measurements for noise
of 1 to 4 % a run, normal, skewed or with spikes (simulated; without this rule 83 to 99)."""

LEAST_ROUNDS = 6
"""The smallest and largest of 6 hold the median with 1 - 2/2^6 = 96.9 %: with fewer there is no 95 % interval."""

MOST_ROUNDS = 1000


def median(samples: Sequence[float]) -> Interval:
    """Median with its order-statistic interval; a plan, which imports this module, needs no statistics."""
    from harness import stats

    return stats.median_interval(samples)


def nearest_rank(samples: Sequence[float], q: float) -> float:
    """The smallest sample with at least the share `q` of all samples at or below it."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """All timed runs: `base` has one entry per entry of `cell`, or is empty. `stopped` = why no more were made."""

    cell: list[Timing]
    base: list[Timing]
    discarded: int
    stopped: str
    seconds: float


def tpot(timing: Timing) -> float:
    """(end to end - time to first token) / (new tokens - 1): the mean of the steps."""
    return math.fsum(timing.step_seconds) / len(timing.step_seconds)


def run_rounds(
    cell: Callable[[int], Timing],
    base: Callable[[int], Timing] | None,
    *,
    budget_seconds: float,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Warm-up, then rounds until both medians are known to 5 % and both ratios to 3 %, or the budget is spent (at least one round
    is always made).

    `cell(seed)` and `base(seed)` make one run each. The order within a round alternates. The budget counts everything, the
    warm-up too, which ends when a round is within 10 % of the one before, after 5 rounds, or at a quarter of the budget.
    """
    began = clock()

    def both(index: int) -> tuple[Timing, Timing | None]:
        if base is None:
            return cell(seed + index), None
        if index % 2 == 0:
            first = cell(seed + index)
            return first, base(seed + index)
        second = base(seed + index)
        return cell(seed + index), second

    discarded, before = 0, 0.0
    while discarded < 5:
        started = clock()
        both(discarded)
        discarded += 1
        now = clock() - started
        if abs(now - before) <= 0.1 * before or clock() - began > budget_seconds / 4:
            break
        before = now

    cells: list[Timing] = []
    bases: list[Timing] = []
    stopped = f"{MOST_ROUNDS} rounds"
    while len(cells) < MOST_ROUNDS:
        ours, theirs = both(len(cells))
        cells.append(ours)
        if theirs is not None:
            bases.append(theirs)
        if len(cells) >= LEAST_ROUNDS and settled(cells) and (not bases or (settled(bases) and compared(cells, bases))):
            beside = f", of the ratios below {NARROW_RATIO:.0%}" if bases else ""
            stopped = f"interval of the median below {NARROW:.0%}{beside}"
            break
        spent = clock() - began
        if spent + spent / (len(cells) + discarded) > budget_seconds:  # another round would not fit
            stopped = f"budget of {budget_seconds:g} s spent"
            break
    return Rounds(cell=cells, base=bases, discarded=discarded, stopped=stopped, seconds=clock() - began)


def settled(timings: Sequence[Timing]) -> bool:
    """Whether the medians of both times are known well enough."""
    return (
        median([t.ttft_seconds for t in timings]).relative_width < NARROW
        and median([tpot(t) for t in timings]).relative_width < NARROW
    )


def compared(cells: Sequence[Timing], bases: Sequence[Timing]) -> bool:
    """Whether the medians of both ratios are."""
    return all(median(ratios).relative_width < NARROW_RATIO for ratios in (ttft_ratios(cells, bases), tpot_ratios(cells, bases)))


def ttft_ratios(cells: Sequence[Timing], bases: Sequence[Timing]) -> list[float]:
    return [a.ttft_seconds / b.ttft_seconds for a, b in zip(cells, bases, strict=True)]


def tpot_ratios(cells: Sequence[Timing], bases: Sequence[Timing]) -> list[float]:
    return [tpot(a) / tpot(b) for a, b in zip(cells, bases, strict=True)]


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection while the clock runs: a pause of the collector is no property of the cell."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
