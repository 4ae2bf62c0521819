"""Many tests at once: Holm, Benjamini-Hochberg, and the latter for e-values of the sequential mode."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import BadInput
from harness.stats.intervals import Floats


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values (Holm 1979): compare with alpha; bounds the chance of any false claim in the
    matrix."""
    p = _probabilities(p_values)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)) if p.size else p
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Benjamini & Hochberg's (1995) adjusted p-values: those under q form a set with a false-discovery rate of at most q
    (independent or positively dependent tests, as cells sharing their items are)."""
    p = _probabilities(p_values)
    order = np.argsort(p, kind="stable")[::-1]
    ranks = np.arange(p.size, 0, -1)
    steps = np.minimum.accumulate(p[order] * p.size / ranks) if p.size else p
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def e_benjamini_hochberg(e_values: ArrayLike, q: float) -> NDArray[np.bool_]:
    """Which hypotheses to reject at false-discovery rate q, from e-values under any dependence (Wang & Ramdas 2022)."""
    e = np.asarray(e_values, dtype=np.float64)
    order = np.argsort(-e, kind="stable")
    passing = np.nonzero(np.arange(1, e.size + 1) * e[order] >= e.size / q)[0]
    rejected = np.zeros(e.size, dtype=np.bool_)
    if passing.size:
        rejected[order[: passing[-1] + 1]] = True
    return rejected


def _probabilities(p_values: ArrayLike) -> Floats:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise BadInput("p-values are one row of numbers between 0 and 1; leave out tests that were not made")
    return p
