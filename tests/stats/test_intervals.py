"""Closed-form intervals against scipy, statsmodels, hand counts and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from statsmodels.stats.proportion import proportion_confint

from harness.errors import BadInput, Nonfinite
from harness.stats import Interval, accuracy, mean_interval, median_interval, median_ratio, quantile_interval, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (8, 10), (10, 10), (417, 500), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy_and_statsmodels(successes: int, n: int, level: float) -> None:
    ours = wilson(successes, n, level)
    scipys = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((scipys.low, scipys.high), abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx(proportion_confint(successes, n, 1 - level, method="wilson"), abs=1e-12)
    assert (ours.value, ours.n) == (successes / n, n)


def test_a_proportion_without_items_is_refused() -> None:
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(BadInput, match="does the task have items"):
            wilson(successes, n)
    with pytest.raises(BadInput, match="no items"):
        accuracy([])
    with pytest.raises(BadInput, match="0 or 1"):
        accuracy([0.5, 1])


def test_accuracy_of_independent_items_is_wilson() -> None:
    assert accuracy([True, True, False, True]) == wilson(3, 4)
    assert accuracy([1, 1, 0, 1], clusters=["a", "b", "c", "d"]) == wilson(3, 4)


def test_copies_of_an_item_in_one_cluster_add_no_certainty() -> None:
    rng = np.random.default_rng(0)
    items = (rng.random(200) < 0.7).astype(int)
    alone, copied = accuracy(items), accuracy(np.repeat(items, 5), clusters=np.repeat(np.arange(200), 5))
    assert copied.value == alone.value
    assert copied.n == 1000
    assert copied.low == pytest.approx(alone.low, abs=2e-3)
    assert copied.high == pytest.approx(alone.high, abs=2e-3)


def test_clustered_accuracy_has_the_standard_error_of_a_cluster_robust_regression() -> None:
    rng = np.random.default_rng(1)
    passage = np.repeat(np.arange(400), 6)
    correct = (rng.random(passage.size) < np.repeat(rng.beta(2, 1, 400), 6)).astype(float)
    fit = sm.OLS(correct, np.ones_like(correct)).fit(cov_type="cluster", cov_kwds={"groups": passage})
    ours = accuracy(correct, passage)
    assert ours.low is not None
    assert ours.high is not None
    assert (ours.high - ours.low) / 2 == pytest.approx(1.96 * fit.bse[0], rel=0.01)
    plain = accuracy(correct)
    assert plain.low is not None
    assert plain.low > ours.low + 0.005, "the clusters of this example matter"


def test_clusters_that_are_all_right_count_as_one_item_each() -> None:
    assert accuracy(np.ones(100), np.arange(100) // 10).low == pytest.approx(wilson(10, 10).low)


def test_the_mean_interval_is_students() -> None:
    samples = np.random.default_rng(2).normal(3, 2, 17)
    ours, scipys = mean_interval(samples), scipy.stats.ttest_1samp(samples, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((scipys.low, scipys.high))
    assert mean_interval([4.0]).low is None


def test_non_finite_samples_are_left_out_and_counted() -> None:
    with_gaps = mean_interval([1.0, math.nan, 2.0, math.inf, 3.0])
    assert (with_gaps.value, with_gaps.n, with_gaps.excluded) == (2.0, 3, 2)
    with pytest.raises(Nonfinite):
        median_interval([math.nan, math.inf])
    with pytest.raises(Nonfinite):
        quantile_interval([[math.nan, math.inf]], 0.5)


@pytest.mark.parametrize("n", [6, 7, 12, 25, 100])
def test_the_median_interval_uses_the_ranks_of_the_binomial(n: int) -> None:
    samples = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    ours = median_interval(samples)
    assert ours.low is not None
    assert ours.high is not None
    rank = int(ours.low)
    assert ours.high == n + 1 - rank
    assert scipy.stats.binom.cdf(rank - 1, n, 0.5) <= 0.025, "covers"
    assert scipy.stats.binom.cdf(rank, n, 0.5) > 0.025, "and is the shortest that does"
    assert ours.value == (n + 1) / 2


def test_five_samples_are_too_few_for_a_median_interval() -> None:
    assert (median_interval([3, 1, 2, 5, 4]).low, median_interval([3, 1, 2, 5, 4]).high) == (None, None)
    assert median_interval([3, 1, 2, 5, 4]).relative_width == math.inf


def test_a_constant_factor_between_interleaved_pairs_is_found_through_drift() -> None:
    drift = np.linspace(1, 3, 40)
    ours = median_ratio(2 * drift, drift)
    assert (ours.value, ours.low, ours.high) == (2.0, 2.0, 2.0)
    with pytest.raises(BadInput, match="positive"):
        median_ratio([1.0], [0.0])
    with pytest.raises(BadInput, match="equally long"):
        median_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_a_quantile_of_independent_samples_has_scipys_interval_within_two_ranks(q: float) -> None:
    samples = np.random.default_rng(3).permutation(np.arange(5000.0))
    ours = quantile_interval(samples, q)
    scipys = scipy.stats.quantile_test(samples, q=float(np.quantile(samples, q)), p=q).confidence_interval(0.95)
    assert ours.value == np.quantile(samples, q)
    assert ours.low == pytest.approx(scipys.low, abs=2)
    assert ours.high == pytest.approx(scipys.high, abs=2)


def test_a_quantile_beyond_the_data_has_no_upper_limit() -> None:
    ours = quantile_interval(np.arange(100.0), 0.999)
    assert ours.high is None
    assert ours.low is not None


def test_quantiles_of_correlated_blocks_cover_the_truth() -> None:
    rng = np.random.default_rng(4)
    truth = scipy.stats.norm.ppf(0.9)
    blocks = math.sqrt(0.5) * (rng.normal(size=(400, 60, 1)) + rng.normal(size=(400, 60, 20)))
    grouped = [quantile_interval(sample, 0.9) for sample in blocks]
    as_if_independent = [quantile_interval(sample.ravel(), 0.9) for sample in blocks]

    def coverage(intervals: list[Interval]) -> float:
        return float(np.mean([i.low <= truth <= i.high for i in intervals if i.low is not None and i.high is not None]))

    assert coverage(grouped) >= 0.92
    assert coverage(as_if_independent) < 0.8, "ignoring the blocks would have been wrong here"


def test_one_block_supports_no_quantile_interval() -> None:
    ours = quantile_interval([[1.0, 2.0, 3.0, 4.0]], 0.5)
    assert (ours.value, ours.low, ours.high) == (2.5, None, None)


def test_an_interval_is_carried_through_increasing_functions_and_signs() -> None:
    interval = Interval(value=1.0, low=0.0, high=None, n=5, excluded=2)
    assert interval.map(math.exp) == Interval(value=math.e, low=1.0, high=None, n=5, excluded=2)
    assert interval.negated() == Interval(value=-1.0, low=None, high=-0.0, n=5, excluded=2)
