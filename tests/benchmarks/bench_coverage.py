"""How often do intervals of a mean cover the truth, when values come in skewed, correlated blocks?

Prints coverage and mean width at a nominal 95 % of percentile, BCa, Student's t on blocks, the normal interval on single
values, and the studentized block bootstrap that `harness.stats` uses. Run: python tests/benchmarks/bench_coverage.py
[repeats]
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import scipy.stats

from harness.stats import block_bootstrap_mean

Limits = tuple[float, float]
TOKENS = 64


def draw(rng: np.random.Generator, between: float, within: float, blocks: int) -> np.ndarray:
    """Log-normal values [blocks, TOKENS] with these standard deviations of the logarithm; mean exp((between^2 + within^2) /
    2)."""
    return np.exp(rng.normal(0, between, (blocks, 1)) + rng.normal(0, within, (blocks, TOKENS)))


def percentile(table: np.ndarray) -> Limits:
    low, high = np.quantile(replicates(table.mean(axis=1)), [0.025, 0.975])
    return float(low), float(high)


def replicates(means: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return means[rng.integers(0, means.size, (2000, means.size))].mean(axis=1)


def bca(table: np.ndarray) -> Limits:
    found = scipy.stats.bootstrap(
        (table.mean(axis=1),), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    return float(found.low), float(found.high)


def student(table: np.ndarray) -> Limits:
    found = scipy.stats.ttest_1samp(table.mean(axis=1), 0).confidence_interval()
    return float(found.low), float(found.high)


def single_values(table: np.ndarray) -> Limits:
    half = 1.96 * table.std() / math.sqrt(table.size)
    return float(table.mean() - half), float(table.mean() + half)


def ours(table: np.ndarray) -> Limits:
    found = block_bootstrap_mean(table)
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


METHODS: dict[str, Callable[[np.ndarray], Limits]] = {
    "single values": single_values,
    "percentile": percentile,
    "BCa": bca,
    "Student's t": student,
    "studentized": ours,
}


def main(repeats: int) -> None:
    print(f"coverage in % (width relative to Student's t), nominal 95 %, {repeats} repeats, {TOKENS} values a block")
    print(f"{'data':<34}{'blocks':>7}" + "".join(f"{name:>18}" for name in METHODS))
    start = time.perf_counter()
    for name, between, within in (
        ("mild (perplexity)", 0.3, 0.8),
        ("skewed (mean divergence)", 0.5, 1.5),
        ("heavy (2-bit tails)", 1.0, 2.0),
    ):
        truth = math.exp((between**2 + within**2) / 2)
        for blocks in (5, 10, 20, 50, 100, 200):
            rng = np.random.default_rng(blocks)
            hits, widths = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0)
            for _ in range(repeats):
                table = draw(rng, between, within, blocks)
                for method, interval in METHODS.items():
                    low, high = interval(table)
                    hits[method] += low <= truth <= high
                    widths[method] += high - low
            unit = widths["Student's t"]
            cells = [f"{100 * hits[m] / repeats:9.1f} ({widths[m] / unit:5.2f})" for m in METHODS]
            print(f"{name:<34}{blocks:>7}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
