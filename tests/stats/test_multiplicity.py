"""Corrections for many tests against statsmodels and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from harness.errors import BadInput
from harness.stats import benjamini_hochberg, e_benjamini_hochberg, holm


@pytest.mark.parametrize("seed", range(5))
def test_holm_and_benjamini_hochberg_equal_statsmodels(seed: int) -> None:
    p = np.random.default_rng(seed).random(40) ** 3
    p[5] = p[6]
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], atol=1e-14)
    np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1], atol=1e-14)
    np.testing.assert_allclose(benjamini_hochberg(p), scipy.stats.false_discovery_control(p), atol=1e-14)


def test_no_tests_and_one_test_need_no_correction() -> None:
    assert holm([]).size == benjamini_hochberg([]).size == 0
    assert holm([0.03]) == benjamini_hochberg([0.03]) == [0.03]


def test_a_missing_p_value_is_refused() -> None:
    with pytest.raises(BadInput, match="leave out"):
        holm([0.1, float("nan")])


def test_e_values_are_rejected_as_the_reciprocal_p_values_would_be() -> None:
    e = np.array([100.0, 3.0, 0.5, 25.0, 60.0, float("inf")])
    expected = benjamini_hochberg(np.minimum(1.0, 1 / e)) <= 0.1
    assert e_benjamini_hochberg(e, 0.1).tolist() == expected.tolist()
    assert expected.sum() == 4
    assert not e_benjamini_hochberg([1.0, 2.0], 0.05).any()
