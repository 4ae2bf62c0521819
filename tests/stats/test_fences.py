"""History fences: hand counts, signs, and how often they cry wolf."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.errors import BadInput
from harness.stats import fence, worsening
from harness.stats.fences import SHORT_HISTORY


def test_the_fence_is_three_interquartile_ranges_beyond_the_quartiles() -> None:
    ours = fence([-0.04, -0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03, 0.04])
    assert ours.worse == pytest.approx(0.02 + 3 * 0.04)
    assert ours.better == pytest.approx(0.02 + 3 * 0.04)
    assert (ours.changes, ours.source) == (9, "history")


def test_a_short_history_uses_the_stated_default_and_says_so() -> None:
    ours = fence([0.001] * (SHORT_HISTORY - 1) + [math.nan], default=0.2)
    assert (ours.worse, ours.better, ours.source, ours.changes) == (0.2, 0.2, "default", SHORT_HISTORY - 1)


def test_a_series_that_never_moved_does_not_alarm_at_its_first_rounding() -> None:
    assert fence([0.0] * 20, floor=0.005).worse == 0.005


def test_a_series_that_drifts_to_the_worse_has_a_fence_that_is_not_symmetric() -> None:
    ours = fence(np.linspace(0.01, 0.05, 9))
    assert ours.worse == pytest.approx(0.04 + 0.06)
    assert ours.better == pytest.approx(0.06 - 0.02)


def test_positive_is_worse_whatever_the_direction() -> None:
    assert worsening(100, 110) == pytest.approx(math.log(1.1))
    assert worsening(100, 110, higher_is_better=True) == pytest.approx(-math.log(1.1))
    with pytest.raises(BadInput, match="positive"):
        worsening(0, 1)


def test_unchanged_noise_crosses_its_own_fence_in_far_less_than_one_percent_of_runs() -> None:
    rng = np.random.default_rng(0)
    series = rng.normal(0, 0.02, (4000, 31))
    changes = np.diff(series, axis=1)
    crossed = [row[-1] > fence(row[:-1], floor=0.0).worse for row in changes]
    assert np.mean(crossed) < 0.002
    slowed = [row[-1] + 0.3 > fence(row[:-1], floor=0.0).worse for row in changes]
    assert np.mean(slowed) > 0.98, "and a real slow-down of 30 % is seen"
