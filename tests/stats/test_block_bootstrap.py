"""The block bootstrap against a plain loop, against scipy, and by simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from harness.errors import BadInput, Nonfinite
from harness.stats import block_bootstrap_mean, ln_ppl_ratio, perplexity_interval, ratio_of_sums, share_interval, wilson
from harness.stats.bootstrap import FEW_BLOCKS, _draw


def skewed_windows(rng: np.random.Generator, windows: int, tokens: int = 20) -> np.ndarray:
    """Like per-token divergences: heavy to the right and correlated within a window; the mean is exp(0.125 + 0.5)."""
    return np.exp(rng.normal(0, 0.5, (windows, 1)) + rng.normal(0, 1.0, (windows, tokens)))


def test_the_value_is_the_plain_mean_of_all_finite_tokens() -> None:
    blocks = skewed_windows(np.random.default_rng(0), 20)
    blocks[3, 5] = math.nan
    blocks[7, :] = math.inf
    ours = block_bootstrap_mean(blocks)
    assert ours.value == pytest.approx(float(np.mean(blocks[np.isfinite(blocks)])), rel=1e-14)
    assert (ours.n, ours.excluded) == (20 * 20 - 21, 21)


def test_the_interval_equals_a_studentized_bootstrap_written_as_a_plain_loop() -> None:
    blocks = skewed_windows(np.random.default_rng(1), 40)
    blocks[0, :12] = math.nan  # blocks of unequal length

    def estimate(table: np.ndarray) -> tuple[float, float]:
        sums, counts = np.nansum(table, axis=1), np.isfinite(table).sum(axis=1)
        mean = sums.sum() / counts.sum()
        k = len(table)
        return mean, math.sqrt(k / (k - 1) * np.sum((sums - mean * counts) ** 2)) / counts.sum()

    mean, error = estimate(blocks)
    rng = np.random.default_rng(99)
    ts = []
    for _ in range(20_000):
        replicate_mean, replicate_error = estimate(blocks[rng.integers(0, 40, 40)])
        ts.append((replicate_mean - mean) / replicate_error)
    low_t, high_t = np.quantile(ts, [0.025, 0.975])
    ours = block_bootstrap_mean(blocks)
    assert ours.low == pytest.approx(mean - high_t * error, abs=0.15 * error)
    assert ours.high == pytest.approx(mean - low_t * error, abs=0.25 * error)
    assert high_t < -low_t, "on skewed data the interval reaches further to the right, as it should"


def test_with_many_well_behaved_blocks_it_agrees_with_scipys_bca() -> None:
    samples = np.random.default_rng(2).normal(5, 1, 800)
    theirs = scipy.stats.bootstrap((samples,), np.mean, rng=np.random.default_rng(0), n_resamples=4000).confidence_interval
    ours = block_bootstrap_mean(samples)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_drawing_counts_is_drawing_blocks_with_replacement() -> None:
    counts = _draw(np.random.default_rng(3), 50, 4000)
    assert np.all(counts.sum(axis=1) == 50)
    assert float(counts.mean()) == pytest.approx(1.0)
    assert float(counts.var()) == pytest.approx(1 - 1 / 50, rel=0.02)


@pytest.mark.parametrize("windows", [5, 12, 40])
def test_it_covers_the_truth_on_skewed_correlated_tokens(windows: int) -> None:
    rng, truth, repeats = np.random.default_rng(windows), math.exp(0.625), 250
    hits = naive = 0
    for _ in range(repeats):
        sample = skewed_windows(rng, windows)
        grouped, ungrouped = block_bootstrap_mean(sample), block_bootstrap_mean(sample.ravel())
        assert grouped.low is not None
        assert grouped.high is not None
        assert ungrouped.low is not None
        assert ungrouped.high is not None
        hits += grouped.low <= truth <= grouped.high
        naive += ungrouped.low <= truth <= ungrouped.high
    # Five windows are fewer than FEW_BLOCKS: Student's t, whose coverage suffers a little from the skew.
    assert hits / repeats >= (0.87 if windows < FEW_BLOCKS else 0.91)
    assert naive / repeats < 0.82, "tokens taken for independent would have covered too rarely"


def test_equal_data_give_equal_intervals_whatever_ran_before() -> None:
    blocks = skewed_windows(np.random.default_rng(4), 30)
    first = block_bootstrap_mean(blocks)
    block_bootstrap_mean(blocks[:17])
    assert block_bootstrap_mean(blocks.copy()) == first


def test_thousands_of_blocks_are_drawn_in_pieces_and_give_the_normal_interval() -> None:
    samples = np.random.default_rng(5).normal(0, 1, 5000)
    ours = block_bootstrap_mean(samples)
    assert ours.low is not None
    assert ours.high is not None
    assert ours.high - ours.low == pytest.approx(2 * 1.96 * samples.std() / math.sqrt(5000), rel=0.06)


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    nll = np.random.default_rng(6).gamma(2, 1.5, (25, 64))
    mean, ppl = block_bootstrap_mean(nll), perplexity_interval(nll)
    assert mean.low is not None
    assert ppl.value == math.exp(mean.value)
    assert ppl.low == math.exp(mean.low)
    assert perplexity_interval(np.full((2, 3), 1000.0)).value == math.inf


def test_a_model_against_itself_has_a_ratio_of_exactly_zero() -> None:
    nll = np.random.default_rng(7).gamma(2, 1.5, (25, 64))
    same = ln_ppl_ratio(nll, nll)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_pairing_sees_a_loss_that_the_two_perplexities_hide() -> None:
    rng = np.random.default_rng(8)
    base = rng.gamma(2, 1.5, (30, 64))
    cell = base + 0.01 + rng.normal(0, 0.05, base.shape)
    ratio, alone = ln_ppl_ratio(cell, base), perplexity_interval(base)
    assert ratio.value == pytest.approx(math.log(perplexity_interval(cell).value / alone.value))
    assert ratio.low is not None
    assert ratio.low > 0
    assert alone.high is not None
    assert perplexity_interval(cell).value < alone.high, "unpaired, the two could not be told apart"


def test_tokens_that_are_not_finite_in_either_model_leave_both() -> None:
    cell, base = np.ones((3, 4)), np.zeros((3, 4))
    cell[0, 0], base[1, 1] = math.nan, math.inf
    ratio = ln_ppl_ratio(cell, base)
    assert (ratio.value, ratio.n, ratio.excluded) == (1.0, 10, 2)


def test_words_per_document_are_weighted_by_their_number() -> None:
    ours = ratio_of_sums([10.0, 90.0, 0.0], [10.0, 30.0, 0.0])
    assert (ours.value, ours.n) == (2.5, 2)


@pytest.mark.parametrize("events", [3, 30])
def test_the_share_of_rare_events_covers_the_truth(events: int) -> None:
    rng, windows, tokens, repeats = np.random.default_rng(events), 100, 64, 400
    rate = events / (windows * tokens)
    hits = 0
    for _ in range(repeats):
        uneven = rate * rng.gamma(0.5, 2.0, (windows, 1))  # events come in some windows rather than in others
        found = share_interval((rng.random((windows, tokens)) >= uneven).astype(float))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1 - rate <= found.high <= 1
    assert hits / repeats >= 0.92


def test_a_share_without_any_event_is_not_certain() -> None:
    found = share_interval(np.ones((100, 64)))
    assert (found.value, found.high, found.n) == (1.0, 1.0, 6400)
    assert found.low == wilson(3200, 3200).low
    gaps = share_interval([[1.0, math.nan], [0.0, 1.0]])
    assert gaps.value == pytest.approx(2 / 3)
    assert (gaps.n, gaps.excluded) == (3, 1)
    with pytest.raises(BadInput, match="zeros and ones"):
        share_interval([[0.5, 1.0]])


def test_a_value_that_differs_in_a_handful_of_blocks_gets_a_finite_interval() -> None:
    blocks = np.zeros((100, 50))
    blocks[3, 7] = blocks[50, 2] = 1.0
    found, sums = block_bootstrap_mean(blocks), blocks.mean(axis=1)
    theirs = scipy.stats.ttest_1samp(sums, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    blocks[3, 7] = 1e6
    one_giant = block_bootstrap_mean(blocks)
    assert one_giant.low is not None
    assert one_giant.high is not None
    assert one_giant.low < one_giant.value < one_giant.high < 20 * one_giant.value


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(BadInput, match="shorter than one window"):
        block_bootstrap_mean(np.empty((0, 512)))
    with pytest.raises(BadInput, match="different tokens"):
        ln_ppl_ratio(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(Nonfinite):
        block_bootstrap_mean(np.full((2, 3), math.nan))
    assert block_bootstrap_mean([[1.0, 2.0, 3.0]]).low is None, "one window has no interval"
