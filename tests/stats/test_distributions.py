"""Student's t and the binomial are bit for bit those of scipy.stats."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from scipy import stats

from harness.stats import distributions


def test_students_t_is_that_of_scipy() -> None:
    for freedom in (1, 2, 7, 59, 1e4):
        levels = np.linspace(0.001, 0.999, 97)
        assert np.array_equal(distributions.t.ppf(levels, freedom), stats.t.ppf(levels, freedom))


def test_the_binomial_is_that_of_scipy_at_its_edges_too() -> None:
    for trials in (0, 1, 2, 9, 40, 500, 10_042):
        k = np.unique(np.linspace(0, trials, 60).astype(int))
        beyond = np.array([-1, *k, trials + 1])
        for share in (0.0, 1e-9, 0.01, 0.3, 0.5, 0.97, 1.0):
            assert np.array_equal(distributions.binom.cdf(beyond, trials, share), stats.binom.cdf(beyond, trials, share))
            assert np.array_equal(distributions.binom.sf(beyond, trials, share), stats.binom.sf(beyond, trials, share))
            assert np.array_equal(distributions.binom.pmf(k, trials, share), stats.binom.pmf(k, trials, share))
            levels = [1e-9, 0.025, 0.5, 1 - 1e-9]
            assert np.array_equal(distributions.binom.ppf(levels, trials, share), stats.binom.ppf(levels, trials, share))


def test_the_statistics_do_without_the_slow_import() -> None:
    code = "import sys, harness.report; sys.exit(any(name in sys.modules for name in ('scipy.stats', 'pandas', 'plotly')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
