"""Change points and drifts of a series: found where they are, seldom where there are none, whatever one wild night does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.errors import BadInput
from harness.stats.changes import ALPHA, change_points, slope


def series(seed: int, *levels: tuple[int, float]) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.concatenate([draw.normal(level, 1.0, size=nights) for nights, level in levels])


def test_a_step_of_two_deviations_is_found_at_its_night_or_beside_it() -> None:
    found = [change_points(series(seed, (40, 0.0), (20, 2.0))) for seed in range(50)]
    assert sum(len(points) == 1 for points in found) >= 47
    assert sum(abs(points[0].at - 40) <= 2 for points in found if points) >= 40
    steps = [points[0].after - points[0].before for points in found if points]
    assert float(np.median(steps)) == pytest.approx(2.0, abs=0.25)


def test_two_steps_are_found_between_their_neighbours() -> None:
    (first, second) = change_points(series(1, (30, 0.0), (25, 3.0), (30, -1.0)))
    assert (abs(first.at - 30) <= 1, abs(second.at - 55) <= 1) == (True, True)
    assert first.after == second.before
    assert max(first.p, second.p) <= ALPHA


def test_a_series_in_which_nothing_changed_shows_a_change_in_about_one_of_a_hundred() -> None:
    cried = sum(bool(change_points(series(seed, (60, 0.0)))) for seed in range(600))
    assert cried <= 15  # 6 are expected; 16 or more have a chance of 0.0005


def test_a_constant_series_one_other_night_and_a_short_series_have_none() -> None:
    assert change_points([0.5] * 365) == ()
    assert change_points([0.5] * 30 + [0.1] + [0.5] * 30) == ()
    assert change_points([0.5, 0.5, 0.1, 0.1, 0.1]) == ()
    assert change_points([]) == ()


def test_exact_numbers_that_step_once_are_found_exactly() -> None:
    (point,) = change_points([0.62] * 20 + [0.61] * 4)
    assert (point.at, point.before, point.after) == (20, 0.62, 0.61)


def test_a_wild_night_moves_neither_the_place_nor_the_levels() -> None:
    values = series(4, (40, 0.0), (20, 3.0))
    wild = values.copy()
    wild[10] = 1e9
    assert [p.at for p in change_points(wild)] == [p.at for p in change_points(values)]
    assert abs(change_points(wild)[0].before) < 1


def test_equal_series_have_equal_change_points_and_what_is_not_finite_is_refused() -> None:
    values = series(5, (40, 0.0), (20, 3.0))
    assert change_points(values) == change_points(list(values))
    with pytest.raises(BadInput, match="finite"):
        change_points([1.0, float("nan")])


@pytest.mark.parametrize("seed", range(8))
def test_the_slope_is_theils_and_its_interval_sens_as_scipy_has_them(seed: int) -> None:
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.uniform(0.5, 2.0, size=30))
    values = np.round(draw.normal(0.02 * times, 0.3), 1)  # with ties
    theirs = scipy_stats.theilslopes(values, times, 0.95)
    ours = slope(times, values)
    assert ours.value == pytest.approx(theirs.slope)
    assert ours.low == pytest.approx(theirs.low_slope)
    assert ours.high == pytest.approx(theirs.high_slope)


def test_the_interval_of_a_slope_holds_the_true_one_as_often_as_it_says() -> None:
    times, held = np.arange(40.0), 0
    for seed in range(300):
        ours = slope(times, 0.05 * times + np.random.default_rng(seed).normal(0, 1, size=40))
        assert ours.low is not None
        assert ours.high is not None
        held += ours.low <= 0.05 <= ours.high
    assert 0.92 <= held / 300 <= 0.98


def test_a_constant_series_has_the_slope_0_and_few_nights_no_interval() -> None:
    assert (slope(range(9), [2.0] * 9).low, slope(range(9), [2.0] * 9).high) == (0.0, 0.0)
    assert slope([0, 1, 2], [1.0, 2.0, 3.0]).low is None
    with pytest.raises(BadInput):
        slope([1, 1], [1.0, 2.0])
