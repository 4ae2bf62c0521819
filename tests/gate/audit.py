"""How often the gate cries wolf, and what it sees: by replay of real nights, and by simulation where the truth must be known.

    python -m tests.gate.audit false-alarms RUN RUN [RUN ...] [--timed RUN ...]   nights in which nothing changed
    python -m tests.gate.audit accuracy [--nights 2000]                           losses of accuracy, beside the limit
    python -m tests.gate.audit faults RUN --swap FAULT CELL FAULTY [--nights 200]    real faults: a cell answers as a faulty one
    python -m tests.gate.audit slower RUN RUN [RUN ...] [--nights 200]            slower kernels and larger peaks, at real noise
    python -m tests.gate.audit drift RUN --swap drift CELL WORSE [--nights 20]    a cell that becomes a worse one night by night

RUNs are run files of one suite in which nothing was changed but what must not matter: threads, batch shapes, the hour. Each
audited night draws two of them, the same resample of items and windows for both and for all cells (so that cells depend on each
other as they really do), and latency and memory of a run at random, the baseline's of the same run with them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats as scipy_stats

from harness import stats, store
from harness.gate import judge
from harness.gate.compare import Change
from harness.gate.fenced import RATIO
from harness.gate.pairing import Draft
from harness.gate.policy import MEAN_ACCURACY, Policy
from harness.gate.types import Finding, Square
from harness.spec import Answer, Measurement, Record
from harness.store import Run
from tests.gate.replay import Replay, asked, history

TASKS = 6
CELLS = 21
"""Of `quick`: the matrix in which losses of accuracy are looked for."""


# ------------------------------------------------------------------------------------------------------------ accuracy alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss of `points` of accuracy, with a share `flipping` of the `items` changing their answer."""

    points: float
    flipping: float
    items: int


LOSSES = tuple(
    Loss(points=points, flipping=flipping, items=items)
    for points in (1.0, 2.0, 3.0)
    for flipping in (0.03, 0.06, 0.10)
    for items in (1000, 2000, 5000)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """`found`: the share of nights in which the cell's mean accuracy is an alarm. `limit`: the power of the best paired test,
    McNemar's exact one-sided test, at the level that it has when the same chance of a false alarm is shared out over the cells.
    `same`: that test on the very nights that were drawn. `fixed`: of "recovery of at least 0.95". `unpaired`: of a two-proportion
    test at that level."""

    loss: Loss
    found: float
    limit: float
    same: float
    fixed: float
    unpaired: float


def accuracy_power(loss: Loss, *, nights: int, seed: int = 0, cells: int = CELLS, accuracy: float = 0.75) -> Power | None:
    """One cell of a matrix loses, in the others as many items are won as lost. None where the loss is larger than the flips."""
    share = loss.points / 100
    if share > loss.flipping:
        return None
    rng = np.random.default_rng([seed, int(loss.points * 10), int(loss.flipping * 1000), loss.items])
    level = Policy().alpha * judge.SHARES["mean"] / cells
    lost_rate, won_rate = (loss.flipping + share) / 2, (loss.flipping - share) / 2
    counts = rng.multinomial(loss.items, [lost_rate, won_rate, 1 - loss.flipping], size=nights)
    hits = same = fixed = unpaired = 0
    for lost, won, _ in counts:
        others = rng.multinomial(loss.items, [loss.flipping / 2, loss.flipping / 2, 1 - loss.flipping], size=cells - 1)
        drafts = [_draft(place, int(a), int(b), loss.items) for place, (a, b, _) in enumerate([(lost, won, 0), *others])]
        hits += judge.verdicts(drafts, Policy(), "2026-11-21")[0].verdict == "regressed"
        same += stats.p_items_lost([1.0] * int(lost) + [0.0] * int(won), [0.0] * int(lost) + [1.0] * int(won)) <= level
        fixed += (accuracy * loss.items - lost + won) / (accuracy * loss.items) < 0.95
        old, new = accuracy * loss.items, accuracy * loss.items - lost + won
        pooled = (old + new) / (2 * loss.items)
        z = (old - new) / math.sqrt(2 * loss.items * pooled * (1 - pooled))
        unpaired += scipy_stats.norm.sf(z) <= level
    return Power(
        loss=loss,
        found=hits / nights,
        limit=_limit(loss, level),
        same=same / nights,
        fixed=fixed / nights,
        unpaired=unpaired / nights,
    )


def _draft(place: int, lost: int, won: int, items: int) -> Draft:
    square = Square(
        model="m",
        label=f"c{place}",
        identity=f"c{place}",
        metric=MEAN_ACCURACY,
        title="",
        subject="",
        definition="",
        unit="share",
    )
    before, after = np.array([1.0] * lost + [0.0] * won), np.array([0.0] * lost + [1.0] * won)
    change = Change(
        value=100 * (lost - won) / items,
        low=None,
        high=None,
        unit="points",
        worse=stats.p_items_lost(before, after) if lost + won else 1.0,
        better=stats.p_items_lost(after, before) if lost + won else 1.0,
    )
    stub = Finding(
        square=square, kind="items", verdict="within noise", threshold=Policy().limit(MEAN_ACCURACY, "items").magnitude
    )
    return Draft(finding=stub, family="mean", change=change)


def _limit(loss: Loss, level: float) -> float:
    """Exact power of the one-sided McNemar test, summed over the number of flips (Connor 1987)."""
    flips = np.arange(1, loss.items + 1)
    likely = scipy_stats.binom.pmf(flips, loss.items, loss.flipping)
    kept = likely > 1e-12
    flips, likely = flips[kept], likely[kept]
    needed = scipy_stats.binom.isf(level, flips, 0.5) + 1  # the fewest lost that are significant
    share = 0.5 * (1 + loss.points / 100 / loss.flipping)
    return float(np.sum(likely * scipy_stats.binom.sf(needed - 1, flips, share)))


# ------------------------------------------------------------------------------------------------------- replayed real nights


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """A night in which nothing changed. `alarms`: its false ones; `confirmed`: those that were raised again by another draw of
    the same numbers, as `gate --confirm` asks for them."""

    tests: int
    alarms: frozenset[str]
    confirmed: frozenset[str]


def false_alarms(
    runs: Sequence[Run],
    *,
    nights: int,
    timed: Sequence[Run] = (),
    past: int = 0,
    policy: Policy | None = None,
    seed: int = 0,
) -> Iterator[Quiet]:
    """Nights in which nothing changed. `past`: how many nights a series of latencies and peaks has behind it."""
    replay = Replay(runs, seed, timed=timed)
    pairs = list(itertools.permutations(range(len(runs)), 2))
    pasts = [history([replay.timed(runs[0], f"past-{n}-{i}") for i in range(past)]) for n in range(20)] if past else [None]
    for draw in range(nights):
        first, second = pairs[int(replay.rng.integers(len(pairs)))]
        behind = pasts[draw % len(pasts)]
        before = replay.night(runs[first], draw)
        report = replay.gate(before, replay.night(runs[second], draw, place=1), keep=True, past=behind, policy=policy)
        alarms = frozenset(f.square.name for f in report.alarms)
        again: frozenset[str] = frozenset()
        if alarms:
            asked_again = replay.gate(before, replay.night(runs[second], draw, place=2), keep=True, past=behind, policy=policy)
            again = alarms & {f.square.name for f in asked_again.alarms}
        replay.forget()
        yield Quiet(tests=report.tests, alarms=alarms, confirmed=again)


# ------------------------------------------------------------------------------------------------------------- everything else


PAST = 30
"""Nights that a series has behind it when a slower kernel or a larger peak is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """In how many of `nights` a fault was an alarm of its own cell, and in how many any other cell was one as well."""

    fault: str
    cell: str
    found: int
    elsewhere: int
    nights: int


def faults(variants: Run, swaps: Mapping[str, tuple[str, str]], *, nights: int, seed: int = 0) -> Iterator[Seen]:
    """Real faults: in the candidate, the answers of a cell are those of another real cell of `variants`, which was made with the
    fault. `swaps`: by fault, the names of the cell and of the faulty one, both in `variants`."""
    replay = Replay([variants], seed)
    for fault, (label, faulty) in swaps.items():
        found = elsewhere = 0
        bad = {asked(r): r for r in variants.records if r.cell.name == faulty}
        swapped = [
            replace(r, answer=bad[asked(r)].answer, failure=bad[asked(r)].failure)
            if r.cell.name == label and asked(r) in bad and r.question.probe in ("perplexity", "divergence", "tasks")
            else r
            for r in variants.records
        ]
        for draw in range(nights):
            report = replay.gate(
                replay.night(variants, draw), replay.night(replace(variants, records=tuple(swapped)), draw, place=1)
            )
            alarms = {f.square.cell for f in report.alarms}
            found, elsewhere = found + (label in alarms), elsewhere + bool(alarms - {label})
        yield Seen(fault=fault, cell=label, found=found, elsewhere=elsewhere, nights=nights)


def slower(
    runs: Sequence[Run], metric: str, by: float, *, nights: int, seed: int = 0, timed: Sequence[Run] = ()
) -> Iterator[Seen]:
    """A number of latency or memory that is larger by the share `by`, in one cell at a time; the series has PAST nights, drawn
    from the real runs as the two nights are."""
    replay = Replay(runs, seed, timed=timed)
    cells = [p.cell.label for p in runs[0].plan.cells if not p.baseline]
    hits = dict.fromkeys(cells, 0)
    elsewhere = dict.fromkeys(cells, 0)
    tried = dict.fromkeys(cells, 0)
    for draw in range(nights):
        label = cells[draw % len(cells)]

        def worse(record: Record, answer: Answer, label: str = label) -> Answer:
            if record.cell.label != label:
                return answer
            return replace(
                answer,
                measurements=tuple(_times(m, 1 + by) if m.metric in (metric, metric + RATIO) else m for m in answer.measurements),
            )

        past = history([replay.timed(runs[0], f"past-{draw}-{i}") for i in range(PAST)])
        before, after = replay.timed(runs[0], "before"), replay.timed(runs[0], "after", change=worse)
        report = judge.gate(before, after, history=past)
        alarms = {f.square.label for f in report.alarms if f.square.metric == metric}
        tried[label] += 1
        hits[label] += label in alarms
        elsewhere[label] += bool(alarms - {label})
    for label in cells:
        yield Seen(fault=f"{metric} {by:+.0%}", cell=label, found=hits[label], elsewhere=elsewhere[label], nights=tried[label])


def _times(m: Measurement, factor: float) -> Measurement:
    low, high = (None if limit is None else limit * factor for limit in (m.low, m.high))
    return replace(m, value=m.value * factor, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A cell that loses `points` of mean accuracy a week, gated every night against the accepted run: the nights (of `tries`
    histories) on which each metric raised its first alarm, None where it raised none in `weeks`."""

    points: float
    weeks: int
    first: Mapping[str, tuple[int | None, ...]]


def drift(variants: Run, good: str, bad: str, points: float, *, weeks: int, tries: int, seed: int = 0) -> Drift:
    """Each night a larger share of the cell's tokens and items is answered by a worse real cell (`bad`) of the same model, so
    that accuracy falls by `points` a week on the mean of all items."""
    replay = Replay([variants], seed)
    accuracy = {
        label: np.mean(
            [
                m.value
                for r in variants.records
                if r.cell.name == label and r.answer
                for m in r.answer.measurements
                if m.metric == "accuracy"
            ]
        )
        for label in (good, bad)
    }
    step = points / 7 / (100 * float(accuracy[good] - accuracy[bad]))
    first: dict[str, list[int | None]] = {"mean_accuracy": [], "kl_mean": [], "perplexity": []}
    for attempt in range(tries):
        start = replay.night(variants, attempt)
        met: dict[str, int] = {}
        order = np.random.default_rng([seed, attempt])
        for night in range(1, 7 * weeks + 1):
            mixed = replay.mixed(variants, good, bad, share=step * night, draw=attempt, rng=order)
            for finding in replay.gate(start, mixed, keep=True).alarms:
                met.setdefault(finding.square.metric, night)
            if len(met) >= len(first):
                break
        replay.forget()
        for metric, nights in first.items():
            nights.append(met.get(metric))
    return Drift(points=points, weeks=weeks, first={metric: tuple(nights) for metric, nights in first.items()})


# ------------------------------------------------------------------------------------------------------------------ as a program


def _print_accuracy(nights: int) -> None:
    limits = "limit of a paired test | found / that test on the same nights"
    print(f"| loss, points | flipping | items | found | {limits} | recovery < 0.95 | unpaired test |")
    print("|---|---|---|---|---|---|---|---|")
    for loss in LOSSES:
        power = accuracy_power(loss, nights=nights)
        head = f"| {loss.points:g} | {loss.flipping:.0%} | {loss.items:,} |"
        if power is None:
            print(f"{head} impossible: more lost than flips | | | | |")
            continue
        ratio = power.found / power.same if power.same else math.nan
        print(
            f"{head} {power.found:.3f} | {power.limit:.3f} | {ratio:.3f} | {power.fixed:.3f} | {power.unpaired:.3f} |", flush=True
        )


def _print_false_alarms(paths: Sequence[Path], timed: Sequence[Path], nights: int) -> None:
    runs, clocks = [store.read(path) for path in paths], [store.read(path) for path in timed]
    print("| latency | nights | tests in a night | false alarms | after confirmation | squares |\n|---|---|---|---|---|---|")
    for words, past, policy in (
        ("first night", 0, Policy()),
        (f"{PAST} nights behind it", PAST, Policy()),
        (f"{PAST} nights behind it, busy machines compared as well", PAST, Policy(busy=1.0)),
    ):
        seen = list(false_alarms(runs, nights=nights, timed=clocks, past=past, policy=policy))
        counts = Counter(name for night in seen for name in night.alarms)
        rates = []
        for hits in (sum(bool(night.alarms) for night in seen), sum(bool(night.confirmed) for night in seen)):
            low, high = clopper_pearson(hits, len(seen))
            rates.append(f"{hits} ({hits / len(seen):.1%}; 99 % {low:.1%} to {high:.1%})")
        squares = "; ".join(f"{count} x {name}" for name, count in counts.most_common())
        print(f"| {words} | {len(seen)} | {seen[0].tests} | {rates[0]} | {rates[1]} | {squares} |", flush=True)


def clopper_pearson(hits: int, trials: int, level: float = 0.99) -> tuple[float, float]:
    interval = scipy_stats.binomtest(hits, trials).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def _print_faults(path: Path, swaps: Mapping[str, tuple[str, str]], nights: int) -> None:
    print("| fault | cell | found | an alarm elsewhere |\n|---|---|---|---|")
    for seen in faults(store.read(path), swaps, nights=nights):
        print(f"| {seen.fault} | {seen.cell} | {seen.found} of {seen.nights} | {seen.elsewhere} |", flush=True)


def _print_slower(paths: Sequence[Path], timed: Sequence[Path], nights: int) -> None:
    runs, clocks = [store.read(path) for path in paths], [store.read(path) for path in timed]
    print("| number | found | an alarm in another cell | nights |\n|---|---|---|---|")
    for metric, by in itertools.product(("tpot", "ttft", "peak_host_bytes"), (0.10, 0.20, 0.0)):
        seen = list(slower(runs, metric, by, nights=nights, timed=clocks))
        found, elsewhere, tried = (sum(getattr(s, name) for s in seen) for name in ("found", "elsewhere", "nights"))
        print(f"| {metric} {by:+.0%} | {found / tried:.1%} | {elsewhere / tried:.1%} | {tried} |", flush=True)


def _print_drift(path: Path, good: str, bad: str, tries: int) -> None:
    seen = drift(store.read(path), good, bad, 0.3, weeks=8, tries=tries)
    print(f"{good} drifting towards {bad} by {seen.points} points of mean accuracy a week, first alarm against the accepted run:")
    for metric, nights in seen.first.items():
        met = sorted(night for night in nights if night is not None)
        middle = f"median night {met[len(met) // 2]}, last {met[-1]}" if met else "none"
        month = sum(night <= 28 for night in met)
        print(f"  {metric}: {len(met)} of {len(nights)} within {seen.weeks} weeks, {month} within four; {middle}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["false-alarms", "accuracy", "faults", "slower", "drift"])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--timed", nargs="*", type=Path, default=[], help="runs that latencies and peaks are drawn from")
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--swap", nargs=3, action="append", default=[], metavar=("FAULT", "CELL", "FAULTY"))
    given = parser.parse_args(arguments)
    match given.what:
        case "accuracy":
            _print_accuracy(given.nights)
        case "false-alarms":
            _print_false_alarms(given.runs, given.timed, given.nights)
        case "faults":
            _print_faults(given.runs[0], {fault: (cell, faulty) for fault, cell, faulty in given.swap}, given.nights)
        case "slower":
            _print_slower(given.runs, given.timed, given.nights)
        case "drift":
            ((_, good, bad),) = given.swap
            _print_drift(given.runs[0], good, bad, given.nights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
