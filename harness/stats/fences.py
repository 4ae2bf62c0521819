"""History fences of the gate: how much a noisy series (latency, memory) has to change before the change is news.

A change is the natural logarithm of new over old between two successive runs of one series. All limits are oriented: positive
is worse, whatever the metric's direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from harness.errors import BadInput

SHORT_HISTORY = 8
"""Below this many past changes quartiles say little, and the stated default is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """`worse` and `better` > 0: a worsening (improvement) of ln(new / old) beyond it is news. `source` says where they come
    from."""

    worse: float
    better: float
    changes: int
    source: Literal["history", "default"]


def worsening(old: float, new: float, *, higher_is_better: bool = False) -> float:
    """ln(new / old), turned so that positive is worse."""
    if old <= 0 or new <= 0:
        raise BadInput(f"a relative change needs positive figures, not {old} and {new}")
    change = math.log(new / old)
    return -change if higher_is_better else change


def fence(worsenings: ArrayLike, *, default: float = 0.10, floor: float = 0.01) -> Fence:
    """Q3 + 3 IQR of a series' past worsenings, and Q1 - 3 IQR for improvements (Tukey's far-out fences).

    `default`: both limits while there are fewer than SHORT_HISTORY changes. `floor`: no limit is smaller, so that a series
    that never moved (file size, say) does not alarm at its first rounding.
    """
    past = np.asarray(worsenings, dtype=np.float64)
    past = past[np.isfinite(past)]
    if past.size < SHORT_HISTORY:
        return Fence(worse=max(default, floor), better=max(default, floor), changes=int(past.size), source="default")
    first, third = (float(x) for x in np.quantile(past, [0.25, 0.75]))
    reach = 3 * (third - first)
    return Fence(worse=max(third + reach, floor), better=max(reach - first, floor), changes=int(past.size), source="history")
