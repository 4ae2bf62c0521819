"""Where a function of one number crosses zero.

By Chandrupatla's hybrid of bisection and inverse quadratic interpolation (1997, Advances in Engineering Software 28:145-149).
`scipy.optimize` has the like, and takes longer to import than a report of twenty cells takes to compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def crossing(function: Callable[[float], float], low: float, high: float, *, xtol: float = 1e-12, rtol: float = 0.0) -> float:
    """The x in `low`..`high` at which `function` crosses zero, to within `xtol + rtol |x|`. Its signs at the ends differ; a value
    may be infinite. ValueError where they do not differ."""
    a, b = high, low
    fa, fb = function(a), function(b)
    if fa == 0 or fb == 0:
        return a if fa == 0 else b
    if (fa > 0) == (fb > 0):
        raise ValueError(f"the function has one sign at both ends, {low:g} and {high:g}")
    share = 0.5
    while True:
        x = a + share * (b - a)
        fx = function(x)
        if (fx > 0) == (fa > 0):  # the crossing lies between x and b
            c, fc = a, fa
        else:
            c, fc, b, fb = b, fb, a, fa
        a, fa = x, fx
        near = a if abs(fa) < abs(fb) else b
        least = (xtol + rtol * abs(near)) / abs(b - a) if b != a else math.inf
        if fa == 0 or least > 0.5:
            return near
        share = min(1 - least, max(least, _interpolated(a, fa, b, fb, c, fc)))


def _interpolated(a: float, fa: float, b: float, fb: float, c: float, fc: float) -> float:
    """The next point as a share of the way from a to b: by inverse quadratic interpolation where that is safe (equation 4 of the
    paper), else the middle."""
    if not math.isfinite(fa - fb) or not math.isfinite(fc) or fc in (fa, fb):
        return 0.5
    place, height = (a - b) / (c - b), (fa - fb) / (fc - fb)
    if not (height * height < place and (1 - height) ** 2 < 1 - place):
        return 0.5
    return fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
