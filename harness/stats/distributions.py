"""Student's t and the binomial, bit for bit as `scipy.stats` has them, without importing it, which takes longer than a report.

`scipy.stats` hands these to `scipy.special`; the binomial's functions have no public name there (tests/test_private_parts.py).
Arrays broadcast. Only what is asked here is defined: degrees of freedom above 0, whole numbers of trials from 0 on, shares in
0..1, levels strictly between 0 and 1.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.special import _ufuncs

Floats: TypeAlias = NDArray[np.float64]


class t:
    """Student's t."""

    @staticmethod
    def ppf(level: ArrayLike, freedom: ArrayLike) -> Floats:
        found: Floats = np.asarray(special.stdtrit(freedom, level), dtype=np.float64)
        return found

    @staticmethod
    def sf(value: ArrayLike, freedom: ArrayLike) -> Floats:
        """The upper tail, from the lower tail of the negative: exact far out."""
        found: Floats = np.asarray(special.stdtr(freedom, -np.asarray(value, dtype=np.float64)), dtype=np.float64)
        return found


class binom:
    """Successes among `trials` of probability `share`."""

    @staticmethod
    def cdf(successes: ArrayLike, trials: ArrayLike, share: ArrayLike) -> Floats:
        k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
        inside = _ufuncs._binom_cdf(np.clip(np.floor(k), 0, n), n, share)
        return np.where(k < 0, 0.0, np.where(k >= n, 1.0, np.clip(inside, 0, 1)))

    @staticmethod
    def sf(successes: ArrayLike, trials: ArrayLike, share: ArrayLike) -> Floats:
        k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
        inside = _ufuncs._binom_sf(np.clip(np.floor(k), 0, n), n, share)
        return np.where(k < 0, 1.0, np.where(k >= n, 0.0, np.clip(inside, 0, 1)))

    @staticmethod
    def pmf(successes: ArrayLike, trials: ArrayLike, share: ArrayLike) -> Floats:
        """Of whole numbers of successes, 0 to the number of trials."""
        k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
        found: Floats = np.clip(_ufuncs._binom_pmf(k, n, share), 0, 1)
        return found

    @staticmethod
    def ppf(level: ArrayLike, trials: ArrayLike, share: ArrayLike) -> Floats:
        n = np.asarray(trials, dtype=np.float64)
        found: Floats = np.asarray(_ufuncs._binom_ppf(level, n, share), dtype=np.float64)
        return found
