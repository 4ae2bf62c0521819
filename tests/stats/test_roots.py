"""Crossings, against scipy's search for them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize

from harness.stats.roots import crossing

CURVES: dict[str, Callable[[float], float]] = {
    "a line": lambda x: 0.3 - x,
    "a cube": lambda x: (0.7 - x) ** 3,
    "an exponential": lambda x: math.exp(-9 * x) - 0.01,
    "a step": lambda x: 1.0 if x < 1 / 3 else -1.0,
    "infinite at an end": lambda x: (0.2 - x) / math.sqrt(x) if x > 0 else math.inf,
    "nearly flat": lambda x: 1e-9 * (0.6 - x) + (0.6 - x) ** 9,
}


@pytest.mark.parametrize("name", CURVES)
def test_a_crossing_is_where_scipy_finds_it(name: str) -> None:
    curve = CURVES[name]
    low = 1e-9 if name == "infinite at an end" else 0.0
    wanted = optimize.brentq(curve, low, 1.0, xtol=1e-12, rtol=1e-12)
    assert crossing(curve, 0.0, 1.0) == pytest.approx(wanted, abs=3e-12 if name != "a cube" else 1e-5)


def test_random_cubics_are_crossed_to_the_tolerance_in_few_steps() -> None:
    rng = np.random.default_rng(0)
    steps = 0
    for _ in range(500):
        root, tilt, bend = rng.uniform(-1, 1), rng.uniform(0.1, 3), rng.uniform(0, 50)

        def curve(x: float, root: float = root, tilt: float = tilt, bend: float = bend) -> float:
            nonlocal steps
            steps += 1
            return -tilt * (x - root) - bend * (x - root) ** 3

        assert crossing(curve, -1.5, 1.5) == pytest.approx(root, abs=1e-12)
    assert steps < 500 * 25


def test_an_end_that_is_zero_is_the_crossing_and_equal_signs_are_refused() -> None:
    assert crossing(lambda x: -x, 0.0, 1.0) == 0.0
    assert crossing(lambda x: 1.0 - x, 0.0, 1.0) == 1.0
    with pytest.raises(ValueError, match="one sign at both ends"):
        crossing(lambda x: 1.0, 0.0, 1.0)
