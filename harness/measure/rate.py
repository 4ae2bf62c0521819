"""How fast this machine multiplies matrices: what a forecast stands on where nothing was measured before."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

CHANGES_NUMBERS = False
"""No measurement is made of it."""

SIZE = 1024
"""Rows and columns of the matrices: 4 MiB each in float32, as large as the layers of small models."""


def for_device(device: str) -> Callable[[], float | None]:
    """`product_rate`, measured when it is asked first; nothing is known of a GPU's."""

    @functools.cache
    def rate() -> float | None:
        return product_rate() if device == "cpu" else None

    return rate


def product_rate(seconds: float = 0.5) -> float | None:
    """Floating-point operations a second in a product of float32 matrices on the CPU, over about `seconds`, with the threads that
    NumPy's library takes; None without NumPy. The best of several products, because others use the machine too."""
    try:
        import numpy
    except ImportError:
        return None
    left = numpy.ones((SIZE, SIZE), dtype=numpy.float32)
    right, product = left.copy(), left.copy()
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        numpy.matmul(left, right, out=product)
        best = min(best, time.perf_counter() - began)
    return 2.0 * SIZE**3 / best
