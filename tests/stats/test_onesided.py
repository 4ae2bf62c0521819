"""One-sided tests against independent implementations, and their level by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.errors import BadInput
from harness.stats import mcnemar_exact, p_items_lost, p_mean_above_zero


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 5), (9, 3), (60, 12), (400, 310)])
def test_items_lost_are_tested_as_scipy_tests_a_sign(lost: int, won: int) -> None:
    before = np.array([1.0] * lost + [0.0] * won + [1.0] * 50)
    after = np.array([0.0] * lost + [1.0] * won + [1.0] * 50)
    wanted = scipy_stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue if lost + won else 1.0
    assert p_items_lost(before, after) == pytest.approx(wanted, rel=1e-12)
    if lost > won:
        assert mcnemar_exact(lost, won) == pytest.approx(2 * p_items_lost(before, after), rel=1e-12)


def test_with_clusters_every_sign_of_every_cluster_is_counted() -> None:
    rng = np.random.default_rng(0)
    clusters = [f"c{i // 3}" for i in range(24)]
    before, after = (rng.integers(0, 2, size=24).astype(float) for _ in range(2))
    nets = (before - after).reshape(8, 3).sum(axis=1)
    sums = np.array([np.dot(signs, nets) for signs in itertools.product((-1, 1), repeat=8)])
    assert p_items_lost(before, after, clusters) == pytest.approx(float(np.mean(sums >= nets.sum())), rel=1e-12)


def test_clusters_of_one_item_are_no_clusters() -> None:
    rng = np.random.default_rng(1)
    before, after = (rng.integers(0, 2, size=200).astype(float) for _ in range(2))
    assert p_items_lost(before, after, [str(i) for i in range(200)]) == pytest.approx(p_items_lost(before, after), rel=1e-9)


def test_rows_of_two_lengths_are_refused() -> None:
    with pytest.raises(BadInput, match="different items"):
        p_items_lost([1.0, 0.0], [1.0])


def test_means_of_equal_windows_are_tested_as_scipys_t_test_does() -> None:
    change = np.random.default_rng(2).normal(0.1, 1.0, size=(20, 16))
    wanted = scipy_stats.ttest_1samp(change.mean(axis=1), 0, alternative="greater").pvalue
    assert p_mean_above_zero(change) == pytest.approx(wanted, rel=1e-9)
    assert p_mean_above_zero(-change) == pytest.approx(1 - wanted, rel=1e-9)


def test_what_did_not_change_or_is_not_finite_says_nothing() -> None:
    assert p_mean_above_zero(np.zeros((8, 4))) == 1.0
    assert p_mean_above_zero(np.full((8, 4), np.nan)) == 1.0
    assert p_mean_above_zero(np.ones((1, 4))) == 1.0
    assert p_mean_above_zero(np.ones((8, 4))) == 0.5**8
    holed = np.random.default_rng(3).normal(0.5, 1, size=(20, 16))
    holed[3, 4:] = np.nan
    assert 0 < p_mean_above_zero(holed) < 0.5


def test_far_out_tails_are_not_rounded_to_zero() -> None:
    change = np.random.default_rng(4).normal(4, 1.0, size=(30, 1))
    assert 0 < p_mean_above_zero(change) < 1e-15


def test_the_level_holds_for_skewed_changes_at_a_gates_small_levels() -> None:
    rng = np.random.default_rng(5)
    draws = rng.gamma(0.4, 2.5, size=(20_000, 32, 2))
    change = draws[..., 0] - draws[..., 1]  # exchangeable nights: symmetric, heavy-tailed
    p = np.array([p_mean_above_zero(row) for row in change])
    for level in (0.05, 0.01, 0.001):
        assert np.mean(p <= level) <= level + 3 * np.sqrt(level / len(p))
