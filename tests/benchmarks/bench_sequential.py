"""What the sequential mode saves and how often it errs, by replay on simulated cells and on a fixed ("recorded") item matrix.

Columns: share of each verdict, false verdicts against their stated rate, items until the verdict (mean, median, 90th
percentile), and how many times more items an unpaired test of fixed size needs per model for the same error rates (alpha 5 %,
power 95 %), at the printed accuracy. Run: python tests/benchmarks/bench_sequential.py [--replays N] [--recorded RESULTS]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from harness import store
from harness.spec import digest
from harness.stats import Replays, Verdict, paired_items, replay, unpaired_items

ALPHA = BETA = 0.05
ACCURACIES = (0.5, 0.7, 0.8)
# flip rate, margin, true difference (cell - baseline), largest number of items
SCENARIOS = (
    (0.05, 0.01, 0.0, 20_000),
    (0.05, 0.01, 0.005, 20_000),
    (0.05, 0.01, -0.005, 20_000),
    (0.05, 0.01, -0.01, 20_000),
    (0.05, 0.01, -0.02, 20_000),
    (0.05, 0.01, -0.03, 20_000),
    (0.002, 0.01, 0.0, 4_000),
    (0.01, 0.01, 0.0, 8_000),
    (0.02, 0.01, 0.0, 12_000),
    (0.02, 0.01, -0.01, 12_000),
    (0.10, 0.01, 0.0, 30_000),
    (0.10, 0.02, 0.0, 10_000),
    (0.20, 0.02, -0.02, 10_000),
    (0.30, 0.02, -0.15, 4_000),
    (0.05, 0.02, 0.0, 8_000),
    (0.05, 0.005, 0.0, 60_000),
)


def simulated(rng: np.random.Generator, replays: int, items: int, flip_rate: float, difference: float) -> np.ndarray:
    u = rng.random((replays, items), dtype=np.float32)
    won = (flip_rate + difference) / 2
    return (u < won).astype(np.int8) - ((u >= won) & (u < flip_rate)).astype(np.int8)


def wrong(result: Replays, difference: float, margin: float) -> str:
    """Share of false verdicts; at the margin itself both verdicts are false, each with its own rate."""
    parts = []
    if difference <= -margin:
        parts.append(f"{100 * result.share(Verdict.WITHIN):.1f} <= {100 * ALPHA:.0f}")
    if difference >= -margin:
        parts.append(f"{100 * result.share(Verdict.WORSE):.1f} <= {100 * BETA:.0f}")
    return " | ".join(parts)


def row(name: str, result: Replays, difference: float, margin: float) -> str:
    shares = " ".join(f"{100 * result.share(v):6.1f}" for v in Verdict)
    mean, median, late = result.items.mean(), np.median(result.items), np.quantile(result.items, 0.9)
    factors = " ".join(f"{unpaired_items(a, margin, alpha=ALPHA, power=1 - BETA) / mean:5.1f}x" for a in ACCURACIES)
    return f"{name} {shares}  {wrong(result, difference, margin):<20} {mean:7.0f} {median:7.0f} {late:7.0f}  {factors}"


def at_power(result: Replays, power: float) -> tuple[int, float]:
    """The item after which this share of replays has the verdict WITHIN, and the mean of items if scoring always ends there."""
    decided = np.where([verdict is Verdict.WITHIN for verdict in result.verdicts], result.items, np.inf)
    last = int(np.sort(decided)[max(0, int(np.ceil(power * len(decided))) - 1)])
    return last, float(np.minimum(result.items, last).mean())


def best_items(flip_rate: float, margin: float, alpha: float) -> float:
    """log(1/alpha) over the largest growth of a bet that knows the flip rate and that there is no loss: what the mean of items of
    any anytime-valid test at least is, overshoot apart, if it decides with certainty (Wald; Kelly)."""
    bets = np.linspace(0.001, 0.9, 20_000)
    up, none, down = (np.log1p(bets * (change + margin)) for change in (1, 0, -1))
    growth = flip_rate / 2 * (up + down) + (1 - flip_rate) * none
    return float(-np.log(alpha) / growth.max())


def main(replays: int) -> None:
    start = time.perf_counter()
    accuracies = " ".join(f"{a:.0%}".rjust(6) for a in ACCURACIES)
    print(f"{replays} replays, alpha {ALPHA}, beta {BETA}; % of replays; items to the verdict; saving over an unpaired test")
    print(
        f"{'flips margin   diff  paired-n':<30} within  worse   none  {'false (stated)':<23} mean  median     p90  {accuracies}"
    )
    rng = np.random.default_rng(11)
    for flip_rate, margin, difference, items in SCENARIOS:
        result = replay(simulated(rng, replays, items, flip_rate, difference), margin=margin, alpha=ALPHA, beta=BETA)
        fixed = paired_items(flip_rate, margin, alpha=ALPHA, power=1 - BETA)
        name = f"{flip_rate:5.1%} {margin:6.3f} {difference:+6.3f} {fixed:9d}"
        print(f"{name:<30} {row('', result, difference, margin)}", flush=True)
    print("\nStopped for good where so many replays have their verdict, against an unpaired test of that power:")
    result = replay(simulated(rng, replays, 20_000, 0.05, 0.0), margin=0.01, alpha=ALPHA, beta=BETA)
    print(f"no betting can do better than {best_items(0.05, 0.01, ALPHA):.0f} items on average if it is to decide in the end")
    for power in (0.80, 0.90, 0.95):
        last, mean = at_power(result, power)
        unpaired = unpaired_items(0.7, 0.01, alpha=ALPHA, power=power)
        said = f"{power:.0%}: at most {last} items, {mean:.0f} on average; unpaired {unpaired}: {unpaired / mean:.1f}x"
        print(f"{said}; if it never stops for good {unpaired / result.items.mean():.1f}x")
    print("\nA fixed matrix of items (one simulated cell, kept) in random orders; the verdict is about these very items:")
    for items, flip_rate, difference, margin in (
        (500, 0.05, 0.0, 0.02),
        (2000, 0.05, 0.0, 0.01),
        (2000, 0.05, -0.03, 0.01),
        (10_000, 0.05, 0.0, 0.01),
    ):
        recorded = simulated(rng, 1, items, flip_rate, difference)[0]
        full = float(recorded.mean())
        orders = rng.permuted(np.tile(recorded, (replays, 1)), axis=1)
        result = replay(orders, margin=margin, alpha=ALPHA, beta=BETA, pool=items)
        print(f"{f'{items:6d} items {margin:6.3f} {full:+7.4f}':<30} {row('', result, full, margin)}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


def recorded_changes(results: Path) -> dict[tuple[str, str], np.ndarray]:
    """Changes [items] of every cell and task of a run, cell minus baseline, from the stored per-item answers."""
    run = store.read(results)
    baselines = {digest(planned.cell) for planned in run.plan.cells if planned.baseline}
    answers: dict[tuple[str, str, bool], dict[str, dict[str, float]]] = {}
    for record in run.records:
        found = [m for m in record.answer.measurements if m.metric == "accuracy"] if record.answer else []
        if record.question.probe != "tasks" or not found or found[0].blob is None:
            continue
        items = {str(item["id"]): float(item["correct"]) for item in json.loads(run.blob(found[0].blob))["items"]}
        place = (record.cell.model.name, record.question.subject, digest(record.cell) in baselines)
        answers.setdefault(place, {})[record.cell.label] = items
    changes = {}
    for (model, task, is_baseline), cells in answers.items():
        base = next(iter(answers.get((model, task, True), {}).values()), None)
        if is_baseline or base is None:
            continue
        for label, items in cells.items():
            if items.keys() == base.keys():
                changes[f"{model} / {label}", task] = np.array([items[name] - base[name] for name in base])
    return changes


def replay_recorded(results: Path, replays: int) -> None:
    """All cells and tasks of a run in random orders: what the sequential mode would have said of these items, and when."""
    changes = recorded_changes(results)
    if not changes:
        raise SystemExit(
            f"{results}: no cell has answered the same items of a task as its baseline; after a run with budget: auto, which "
            "scores parts of them, repeat it with budget: fixed"
        )
    rng = np.random.default_rng(12)
    print(f"\n{len(changes)} rows (cell and task) of {results}, {replays} random orders each; verdicts about these very items:")
    print("margin   within  worse   none   false within  false worse   items used   of them, decided rows")
    for margin in (0.01, 0.02, 0.03, 0.05):
        verdicts, used, false_within, false_worse, decided = [], [], [], [], []
        for row in changes.values():
            orders = rng.permuted(np.tile(row, (replays, 1)), axis=1)
            result = replay(orders, margin=margin, alpha=ALPHA, beta=BETA, pool=row.size)
            verdicts.append([result.share(v) for v in Verdict])
            used.append(result.items.mean() / row.size)
            if row.mean() <= -margin:
                false_within.append(result.share(Verdict.WITHIN))
            if row.mean() >= -margin:
                false_worse.append(result.share(Verdict.WORSE))
            decided.extend((result.items[np.array(result.verdicts) != Verdict.UNDECIDED] / row.size).tolist())
        shares = " ".join(f"{100 * share:6.1f}" for share in np.mean(verdicts, axis=0))
        false = [f"{100 * max(rates, default=0.0):5.1f} at worst" for rates in (false_within, false_worse)]
        print(
            f"{margin:6.2f}   {shares}   {false[0]} {false[1]}   {np.mean(used):8.0%}   {np.mean(decided or [1.0]):8.0%}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replays", type=int, default=1000)
    parser.add_argument("--recorded", type=Path, help="results folder or run file: replay its items instead of simulated ones")
    arguments = parser.parse_args()
    if arguments.recorded is None:
        main(arguments.replays)
    else:
        replay_recorded(arguments.recorded, arguments.replays)
