"""Block bootstrap: intervals of means and ratios whose values come in correlated blocks.

Tokens of one window, documents of one corpus: the block is what is resampled, whole. Every function draws from a generator
with a fixed seed, so equal data give equal intervals, and two series with the same number of blocks see the same resamples.

The interval is the studentized bootstrap (Hall 1992, section 3.2; Davison & Hinkley 1997, section 5.2.1): each replicate's
error is divided by its own standard error. On skewed figures with 10 to 200 blocks, which is what divergences are, it covers
nearer to its level than percentile or BCa intervals (tests/benchmarks/bench_sequential.py prints the comparison). Below
`FEW_BLOCKS` blocks the replicates' standard errors are too erratic, and Student's t on the blocks is used. Shares of rare
events have `share_interval`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from harness.errors import BadInput, Nonfinite
from harness.stats import distributions
from harness.stats.intervals import LEVEL, Floats, Interval, effective_items, wilson

SEED = 1729
REPLICATES = 2000
FEW_BLOCKS = 10
FEW_DEGENERATE = 0.001
"""Above this share of replicates without any spread (the value differs in a handful of blocks only), Student's t is used."""
UNSEEN_DESIGN = 2.0
_CACHED_BLOCKS = 2048
_CHUNK_VALUES = 4_000_000


def ratio_of_sums(
    numerators: ArrayLike, denominators: ArrayLike, level: float = LEVEL, *, n: int | None = None, excluded: int = 0
) -> Interval:
    """sum(numerators) / sum(denominators) over blocks [blocks], e.g. negative log-likelihood over words, documents resampled.

    Blocks with denominator 0 are left out. With one block there is no interval. `n`: values used, if not the number of blocks.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise BadInput(f"blocks need two equally long rows, not shapes {top.shape} and {bottom.shape}")
    top, bottom = top[bottom > 0], bottom[bottom > 0]
    blocks = top.size
    n = blocks if n is None else n
    if blocks == 0:
        raise Nonfinite("no block holds a finite value; the artifact answers NaN or infinity, or the corpus is empty")
    value = float(top.sum() / bottom.sum())
    if blocks < 2:
        return Interval(value=value, low=None, high=None, n=n, excluded=excluded, level=level)
    residuals = top - value * bottom
    error = math.sqrt(blocks / (blocks - 1) * float(residuals @ residuals)) / float(bottom.sum())
    if error <= 1e-15 * abs(value) or error == 0.0:
        # All blocks agree (a cell that equals its baseline): the interval is that one value.
        return Interval(value=value, low=value, high=value, n=n, excluded=excluded, level=level)
    tail = (1 - level) / 2
    t_high = float(distributions.t.ppf(1 - tail, blocks - 1))
    t_low = -t_high
    errors = _studentized_errors(residuals, bottom) if blocks >= FEW_BLOCKS else None
    if errors is not None:
        # One block that outweighs all others makes replicates' errors arbitrarily small; one degree of freedom is the limit.
        most = float(distributions.t.ppf(1 - tail, 1))
        t_low, t_high = (float(t) for t in np.clip(np.quantile(errors, [tail, 1 - tail]), -most, most))
    return Interval(value=value, low=value - t_high * error, high=value - t_low * error, n=n, excluded=excluded, level=level)


def upper_limits(numerators: ArrayLike, denominators: ArrayLike, confidences: ArrayLike) -> Floats:
    """One-sided upper limits [confidences] of sum(numerators) / sum(denominators) over blocks [blocks]; NaN with one block.

    As `ratio_of_sums`, whose replicates are used here once for all confidences. Far in the tail the few replicates that are left
    say little, so a limit is never below that of Student's t.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    top, bottom = top[bottom > 0], bottom[bottom > 0]
    levels = np.asarray(confidences, dtype=np.float64)
    blocks = top.size
    if blocks < 2:
        return np.full(levels.shape, np.nan)
    value = float(top.sum() / bottom.sum())
    residuals = top - value * bottom
    error = math.sqrt(blocks / (blocks - 1) * float(residuals @ residuals)) / float(bottom.sum())
    if error <= 1e-15 * abs(value) or error == 0.0:
        return np.full(levels.shape, value)
    reach = np.asarray(distributions.t.ppf(levels, blocks - 1), dtype=np.float64)
    errors = _studentized_errors(residuals, bottom) if blocks >= FEW_BLOCKS else None
    if errors is not None:
        reach = np.clip(-np.quantile(errors, 1 - levels), reach, distributions.t.ppf(levels, 1))
    return np.asarray(value + reach * error, dtype=np.float64)


def block_bootstrap_mean(blocks: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean of all finite values of `blocks` [windows, tokens], windows resampled. A row [samples] is taken as blocks of one.

    Non-finite values are left out and counted in `excluded`; `n` counts the values used.
    """
    table = _table(blocks)
    mask = np.isfinite(table)
    counts = mask.sum(axis=1)
    sums = np.where(mask, table, 0.0).sum(axis=1)
    used = int(counts.sum())
    return ratio_of_sums(sums, counts, level, n=used, excluded=table.size - used)


def share_interval(blocks: ArrayLike, level: float = LEVEL) -> Interval:
    """Share of ones among the finite values of `blocks` [windows, tokens] of 0 and 1 (equal argmax), with its interval.

    Wilson's interval on the effective number of tokens (see `effective_items`), because a bootstrap of a share near 0 or 1
    has too few events to resample. Where nothing varies at all, the design effect of tokens in a window cannot be estimated
    and is taken for `UNSEEN_DESIGN`.
    """
    table = _table(blocks)
    mask = np.isfinite(table)
    values = table[mask]
    if values.size == 0:
        raise Nonfinite("no finite value among the samples; the artifact answers NaN or infinity")
    if not np.all((values == 0.0) | (values == 1.0)):
        raise BadInput("a share is taken of zeros and ones")
    share = float(values.mean())
    windows = np.nonzero(mask)[0]
    if table.shape[1] == 1:
        effective = float(values.size)
    elif 0 < share < 1:
        effective = effective_items(values - share, share * (1 - share), windows, level)
    else:
        effective = max(1.0, values.size / UNSEEN_DESIGN)
    interval = wilson(min(share * effective, effective), effective, level, items=values.size)
    return replace(interval, value=share, excluded=table.size - values.size)


def perplexity_interval(nll: ArrayLike, level: float = LEVEL) -> Interval:
    """exp of the mean negative log-likelihood [windows, tokens] in nats, with the block-bootstrap interval of that mean."""
    return block_bootstrap_mean(nll, level).map(_exp)


def ln_ppl_ratio(nll_cell: ArrayLike, nll_base: ArrayLike, level: float = LEVEL) -> Interval:
    """ln(PPL_cell / PPL_base) from both models' negative log-likelihoods of the same tokens [windows, tokens], in nats.

    Paired: it is the mean of the tokens' differences, so one resample of windows serves both models. Tokens that are not
    finite in either are left out of both and counted.
    """
    cell, base = _table(nll_cell), _table(nll_base)
    if cell.shape != base.shape:
        raise BadInput(f"cell and baseline scored different tokens: shapes {cell.shape} and {base.shape}; score the same windows")
    both = np.isfinite(cell) & np.isfinite(base)
    return block_bootstrap_mean(np.subtract(cell, base, out=np.full(cell.shape, np.nan), where=both), level)


@functools.lru_cache(maxsize=8)
def _cached_counts(blocks: int) -> Floats:
    return _draw(np.random.default_rng(SEED), blocks, REPLICATES)


def _draw(rng: np.random.Generator, blocks: int, replicates: int) -> Floats:
    """How often each block is drawn in each replicate [replicates, blocks]: sampling with replacement as counts."""
    # Drawing indices and counting them is several times faster than drawing multinomial counts, and the same distribution.
    drawn = rng.integers(0, blocks, size=(replicates, blocks)) + np.arange(replicates)[:, None] * blocks
    return np.bincount(drawn.ravel(), minlength=replicates * blocks).reshape(replicates, blocks).astype(np.float64)


def _studentized_errors(residuals: Floats, sizes: Floats) -> Floats | None:
    """(replicate - estimate) / replicate's standard error [replicates], for the ratio estimator; None where too many have none.

    With c = counts, the replicate's value differs from the estimate by d = c.r / c.s, and its residuals are r - d s; all sums
    of squares follow from five dot products, so no replicate is ever materialised.
    """
    blocks = residuals.size
    columns = np.stack([residuals, sizes, residuals * residuals, residuals * sizes, sizes * sizes], axis=1)
    if blocks <= _CACHED_BLOCKS:
        sums = _cached_counts(blocks) @ columns
    else:
        rng = np.random.default_rng(SEED)
        step = max(1, _CHUNK_VALUES // blocks)
        parts = [_draw(rng, blocks, min(step, REPLICATES - start)) @ columns for start in range(0, REPLICATES, step)]
        sums = np.concatenate(parts)
    shift = sums[:, 0] / sums[:, 1]
    squares = sums[:, 2] - 2 * shift * sums[:, 3] + shift * shift * sums[:, 4]
    errors = np.sqrt(np.maximum(squares, 0.0) * blocks / (blocks - 1)) / sums[:, 1]
    # Replicates in which all blocks agree have no error of their own (up to rounding) and say nothing about the shape.
    usable = errors > 1e-6 * math.sqrt(float(residuals @ residuals)) / float(sizes.sum())
    if np.mean(usable) < 1 - FEW_DEGENERATE:
        return None
    return np.asarray(shift[usable] / errors[usable], dtype=np.float64)


def _table(blocks: ArrayLike) -> Floats:
    table = np.asarray(blocks, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2:
        raise BadInput(f"blocks are a table [windows, tokens], not an array of shape {table.shape}")
    if table.size == 0:
        raise BadInput("no tokens to average; the corpus may be shorter than one window")
    return table


def _exp(value: float) -> float:
    """exp that answers infinity instead of raising: a perplexity beyond 1e308 is still an answer."""
    return math.exp(value) if value < 709.0 else math.inf
