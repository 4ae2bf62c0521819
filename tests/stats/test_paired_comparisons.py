"""Cell against baseline on the same items: published tables, scipy and statsmodels, enumeration, simulated coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar

from harness.errors import BadInput
from harness.stats import (
    Finding,
    Interval,
    equivalent,
    flips,
    mcnemar_exact,
    mean_difference_over_tasks,
    minimum_detectable_effect,
    noninferior,
    paired_difference,
    paired_test,
    recovery,
    smallest_detectable,
    state,
)
from harness.stats.paired import Task
from tests.intervals import high, low


def items(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Baseline's and cell's correctness with these counts of right/right, right/wrong, wrong/right, wrong/wrong."""
    base = [1] * (both + lost) + [0] * (won + neither)
    cell = [1] * both + [0] * lost + [1] * won + [0] * neither
    return np.array(base), np.array(cell)


def test_flips_are_counted_both_ways_apart() -> None:
    assert flips(*items(5, 3, 2, 4)) == (3, 2)
    assert flips([True, False], [True, False]) == (0, 0)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (6, 0), (5, 5), (16, 6), (40, 22), (300, 250)])
def test_mcnemar_equals_statsmodels_and_scipy(lost: int, won: int) -> None:
    p = mcnemar_exact(lost, won)
    assert p == pytest.approx(mcnemar([[9, lost], [won, 9]], exact=True).pvalue, abs=1e-12)
    if lost + won:
        assert p == pytest.approx(scipy.stats.binomtest(lost, lost + won).pvalue, abs=1e-12)


# Cavo et al. 2012, as analysed in Fagerland, Lydersen & Laake, "Statistical Analysis of Contingency Tables", chapter 8.
CAVO = items(59, 16, 6, 80)


def test_published_table_difference() -> None:
    ours = paired_difference(*CAVO)
    assert (round(ours.value, 4), round(ours.low or 9, 4), round(ours.high or 9, 4)) == (-0.0621, -0.1240, -0.0054)


def test_published_table_recovery() -> None:
    ours = recovery(*CAVO)
    assert (round(ours.value, 4), round(ours.low or 9, 4), round(ours.high or 9, 4)) == (0.8667, 0.7476, 0.9876)


def test_published_table_exact_test() -> None:
    assert mcnemar_exact(*flips(*CAVO)) == pytest.approx(0.052479, abs=5e-7)


@pytest.mark.parametrize("table", [(20, 4, 1, 5), (90, 3, 3, 10), (30, 0, 0, 10), (50, 0, 5, 5), (10, 9, 0, 1)])
def test_limits_of_the_difference_solve_the_score_equation_with_a_numerical_fit(table: tuple[int, int, int, int]) -> None:
    _both, lost, won, _neither = table
    n = sum(table)
    same = n - lost - won

    def score(delta: float) -> float:
        """(observed - hypothesised) / standard error, the flip probabilities fitted by a numerical maximiser."""

        def loss(lost_p: float) -> float:
            won_p, same_p = lost_p + delta, 1 - 2 * lost_p - delta
            return -sum(k * math.log(max(p, 1e-300)) for k, p in ((lost, lost_p), (won, won_p), (same, same_p)) if k)

        edge_low, edge_high = max(0.0, -delta), (1 - delta) / 2
        fit = scipy.optimize.minimize_scalar(loss, bounds=(edge_low, edge_high), method="bounded", options={"xatol": 1e-12})
        return ((won - lost) / n - delta) / math.sqrt((2 * fit.x + delta - delta**2) / n)

    ours = paired_difference(*items(*table))
    assert ours.low is not None
    assert ours.high is not None
    assert score(ours.low) == pytest.approx(1.96, abs=2e-3)
    assert score(ours.high) == pytest.approx(-1.96, abs=2e-3)


@pytest.mark.parametrize("table", [(20, 4, 1, 5), (90, 3, 3, 10), (30, 0, 0, 10), (50, 0, 5, 5), (10, 9, 0, 1)])
def test_limits_of_the_recovery_solve_the_score_equation_with_a_numerical_fit(table: tuple[int, int, int, int]) -> None:
    both, lost, won, _neither = table
    m = both + lost + won

    def score(ratio: float) -> float:
        def probabilities(lost_p: float) -> tuple[float, float, float]:
            both_p = (1 - (1 + ratio) * lost_p) / ratio
            return both_p, lost_p, 1 - both_p - lost_p

        def loss(lost_p: float) -> float:
            pairs = zip((both, lost, won), probabilities(lost_p), strict=True)
            return -sum(k * math.log(max(p, 1e-300)) for k, p in pairs if k)

        low, high = max(0.0, 1 - ratio), 1 / (1 + ratio)
        fit = scipy.optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
        _both_p, lost_p, won_p = probabilities(fit.x)
        return ((both + won) - ratio * (both + lost)) / math.sqrt(m * ratio * (lost_p + won_p))

    ours = recovery(*items(*table))
    assert ours.low is not None
    assert ours.high is not None
    assert score(ours.low) == pytest.approx(1.96, abs=2e-3)
    assert score(ours.high) == pytest.approx(-1.96, abs=2e-3)


def test_a_model_against_itself_flips_nothing_and_still_has_an_honest_width() -> None:
    base, _ = items(400, 0, 0, 100)
    difference, kept = paired_difference(base, base), recovery(base, base)
    assert mcnemar_exact(*flips(base, base)) == 1.0
    assert difference.value == 0.0
    # With no flip among 500, a flip rate of z^2 / (n + z^2) is not excluded.
    assert difference.high == pytest.approx(1.96**2 / (500 + 1.96**2), rel=1e-4)
    assert low(difference) == pytest.approx(-high(difference))
    assert kept.value == 1.0
    assert kept.low == pytest.approx(1 / (1 + 1.96**2 / 400), rel=1e-4)


@pytest.mark.parametrize(("flip_rate", "loss"), [(0.02, 0.0), (0.05, 0.02), (0.2, 0.05)])
def test_difference_and_recovery_cover_the_truth(flip_rate: float, loss: float) -> None:
    rng, n, accuracy, repeats = np.random.default_rng(17), 400, 0.7, 500
    lost_p, won_p = (flip_rate + loss) / 2, (flip_rate - loss) / 2
    covered = np.zeros(2)
    for _ in range(repeats):
        counts = rng.multinomial(n, [accuracy - lost_p, lost_p, won_p, 1 - accuracy - won_p])
        base, cell = items(*counts)
        for k, (interval, truth) in enumerate(
            ((paired_difference(base, cell), -loss), (recovery(base, cell), (accuracy - loss) / accuracy))
        ):
            assert interval.low is not None
            assert interval.high is not None
            covered[k] += interval.low <= truth <= interval.high
    assert np.all(covered / repeats >= 0.925), covered / repeats
    assert np.all(covered / repeats <= 0.985), covered / repeats


def clustered(rng: np.random.Generator, clusters: int, size: int, loss: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items of a cluster tend to flip together and in one direction."""
    label = np.repeat(np.arange(clusters), size)
    base = (rng.random(label.size) < 0.6).astype(int)
    moves = rng.choice([-1, 0, 1], clusters, p=[0.15 + loss, 0.7 - loss, 0.15])[label]
    hit = rng.random(label.size) < 0.6
    cell = np.where(hit & (moves < 0), 0, np.where(hit & (moves > 0), 1, base))
    return base, cell, label


def test_items_of_one_passage_are_not_counted_as_independent() -> None:
    rng, repeats = np.random.default_rng(23), 300
    big = clustered(rng, 200_000, 8, 0.1)
    truth = float(np.mean(big[1] - big[0]))
    grouped = ungrouped = 0
    for _ in range(repeats):
        base, cell, label = clustered(rng, 60, 8, 0.1)
        aware, naive = paired_difference(base, cell, label), paired_difference(base, cell)
        assert aware.low is not None
        assert aware.high is not None
        assert naive.low is not None
        assert naive.high is not None
        grouped += aware.low <= truth <= aware.high
        ungrouped += naive.low <= truth <= naive.high
    assert grouped / repeats >= 0.92
    assert ungrouped / repeats < 0.9


def test_the_clustered_test_equals_enumeration_of_all_sign_flips() -> None:
    base, cell, label = clustered(np.random.default_rng(29), 10, 4, 0.1)
    nets = np.array([np.sum((cell - base)[label == k]) for k in range(10)])
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    expected = np.mean(np.abs(signs @ nets) >= abs(nets.sum()))
    assert np.any(np.abs(nets) > 1), "the example has clusters that move together"
    assert paired_test(base, cell, label) == pytest.approx(expected)


def test_clusters_of_one_item_give_mcnemars_test() -> None:
    base, cell = items(40, 12, 3, 20)
    assert paired_test(base, cell, range(75)) == pytest.approx(mcnemar_exact(12, 3))
    assert paired_test(base, cell) == mcnemar_exact(12, 3)
    assert paired_test(base, base, range(75)) == 1.0


def test_scores_that_are_not_right_or_wrong_are_compared_by_the_bootstrap() -> None:
    rng = np.random.default_rng(31)
    base = rng.random(300)
    cell = base - 0.1 + rng.normal(0, 0.1, 300)
    ours, theirs = paired_difference(base, cell), scipy.stats.ttest_rel(cell, base).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)
    doubled = paired_difference(np.repeat(base, 2), np.repeat(cell, 2), np.repeat(np.arange(300), 2))
    assert (doubled.low, doubled.high) == pytest.approx((ours.low, ours.high), abs=1e-12)
    assert doubled.n == 600


def test_scores_that_did_not_change_at_all_are_not_certain_to_stay_so() -> None:
    scores = np.linspace(0, 1, 200)
    ours, right_or_wrong = paired_difference(scores, scores), paired_difference(np.ones(200), np.ones(200))
    assert (ours.value, ours.low, ours.high) == (0.0, right_or_wrong.low, right_or_wrong.high)
    assert ours.high is not None
    assert ours.high > 0.01
    unbounded = paired_difference(scores * 50, scores * 50)
    assert (unbounded.low, unbounded.high) == (None, None)


def enumerated_power(n: int, lost_p: float, won_p: float, alpha: float = 0.05) -> float:
    """Power of the exact McNemar test by summing over every (lost, won)."""
    power = 0.0
    for lost, won in itertools.product(range(n + 1), repeat=2):
        if lost + won <= n and mcnemar_exact(lost, won) <= alpha:
            power += scipy.stats.multinomial.pmf([lost, won, n - lost - won], n, [lost_p, won_p, 1 - lost_p - won_p])
    return power


@pytest.mark.parametrize(("n", "flip_rate"), [(30, 0.5), (45, 0.2), (25, 0.0)])
def test_the_detectable_effect_has_80_percent_power_by_enumeration(n: int, flip_rate: float) -> None:
    effect = minimum_detectable_effect(n, flip_rate)
    rate = max(flip_rate, effect)
    assert enumerated_power(n, (rate + effect) / 2, (rate - effect) / 2) == pytest.approx(0.8, abs=2e-3)


def test_the_detectable_effect_is_near_connors_formula_where_that_holds() -> None:
    effect = minimum_detectable_effect(5000, 0.1)
    connor = ((1.959964 * math.sqrt(0.1) + 0.841621 * math.sqrt(0.1 - effect**2)) / effect) ** 2
    assert connor == pytest.approx(5000, rel=0.05)
    assert connor <= 5000, "the exact test is a little less powerful than its approximation"


def test_no_flips_do_not_mean_that_any_loss_would_have_been_seen() -> None:
    assert minimum_detectable_effect(1000, 0.0) == pytest.approx(7.9 / 1000, rel=0.02)
    assert minimum_detectable_effect(5, 0.2) == 1.0, "five items cannot show anything at 5 %"
    with pytest.raises(BadInput):
        minimum_detectable_effect(0, 0.1)


def test_items_of_one_passage_make_only_larger_losses_detectable() -> None:
    base, cell, label = clustered(np.random.default_rng(43), 60, 8, 0.1)
    rate = float(np.mean(base != cell))
    assert smallest_detectable(base, cell) == minimum_detectable_effect(480, rate)
    assert smallest_detectable(base, cell, label) > 1.2 * smallest_detectable(base, cell)


def test_the_mean_over_tasks_weighs_tasks_equally_and_resamples_within_them() -> None:
    rng = np.random.default_rng(37)
    tasks = [items(*rng.multinomial(n, [0.6, 0.1, 0.06, 0.24])) for n in (100, 400, 900)]
    ours = mean_difference_over_tasks(tasks)
    differences = [float(np.mean(cell - base)) for base, cell in tasks]
    assert ours.value == pytest.approx(np.mean(differences))
    assert ours.n == 1400
    means = []
    for _ in range(4000):
        drawn = [(cell - base)[rng.integers(0, base.size, base.size)].mean() for base, cell in tasks]
        means.append(np.mean(drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    assert ours.low is not None
    assert ours.high is not None
    assert ours.low == pytest.approx(low, abs=0.003)
    assert ours.high == pytest.approx(high, abs=0.003)


@pytest.mark.parametrize(("flip_rate", "loss"), [(0.01, 0.002), (0.1, 0.03)])
def test_the_mean_over_tasks_covers_the_truth(flip_rate: float, loss: float) -> None:
    rng, repeats, hits = np.random.default_rng(47), 120, 0
    lost, won = (flip_rate + loss) / 2, (flip_rate - loss) / 2
    for _ in range(repeats):
        tasks = [items(*rng.multinomial(n, [0.7 - lost, lost, won, 0.3 - won])) for n in (150, 300, 600, 300)]
        ours = mean_difference_over_tasks(tasks)
        assert ours.low is not None
        assert ours.high is not None
        hits += ours.low <= -loss <= ours.high
    assert hits / repeats >= 0.91


def test_the_mean_over_tasks_keeps_a_width_where_nothing_flipped() -> None:
    base, _ = items(300, 0, 0, 100)
    ours = mean_difference_over_tasks([(base, base), (base, base)])
    single = paired_difference(base, base)
    assert ours.value == 0.0
    assert single.high is not None
    assert ours.high == pytest.approx(single.high / math.sqrt(2))


def test_clusters_are_respected_in_the_mean_over_tasks() -> None:
    base, cell, label = clustered(np.random.default_rng(41), 60, 8, 0.1)
    aware, naive = mean_difference_over_tasks([Task(base, cell, label)]), mean_difference_over_tasks([(base, cell)])
    assert aware.low is not None
    assert naive.low is not None
    assert aware.low < naive.low


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [
        (-0.03, -0.02, Finding.LOSS),
        (-0.02, 0.01, Finding.UNSEEN),
        (-0.004, 0.003, Finding.WITHIN),
        (-0.004, -0.001, Finding.WITHIN),
        (0.001, 0.02, Finding.GAIN),
        (None, None, Finding.UNSEEN),
    ],
)
def test_a_statement_never_says_more_than_its_interval(low: float | None, high: float | None, finding: Finding) -> None:
    value = 0.0 if low is None or high is None else (low + high) / 2
    statement = state(Interval(value=value, low=low, high=high, n=500), margin=0.01, detectable=0.02)
    assert statement.finding is finding
    assert statement.largest_loss == (None if low is None else max(0.0, -low))
    assert statement.detectable == 0.02


def test_a_hundred_unchanged_items_do_not_show_a_loss_below_one_point() -> None:
    base, _ = items(60, 0, 0, 40)
    assert state(paired_difference(base, base), margin=0.01).finding is Finding.UNSEEN
    base, _ = items(600, 0, 0, 400)
    assert state(paired_difference(base, base), margin=0.01).finding is Finding.WITHIN


def test_noninferiority_looks_at_the_limit_on_the_losing_side() -> None:
    interval = Interval(value=0.0, low=-0.02, high=0.01, n=10)
    assert noninferior(interval, 0.03)
    assert not noninferior(interval, 0.02)
    assert noninferior(interval, 0.015, higher_is_better=False)
    assert equivalent(interval, 0.03)
    assert not equivalent(interval, 0.015)
    assert not noninferior(Interval(value=0.0, low=None, high=None, n=1), 1.0)


def test_different_items_are_never_compared() -> None:
    for function in (flips, paired_difference, recovery, paired_test):
        with pytest.raises(BadInput, match="same items"):
            function([1, 0, 1], [1, 0])
    with pytest.raises(BadInput, match="cluster labels"):
        paired_difference([1, 0, 1], [1, 0, 0], ["a"])
    with pytest.raises(BadInput, match="nothing to recover"):
        recovery([0, 0], [0, 1])
    with pytest.raises(BadInput, match="no tasks"):
        mean_difference_over_tasks([])
