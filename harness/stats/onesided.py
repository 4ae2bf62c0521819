"""One-sided tests for "it got worse", from the same pairs as the two-sided ones, in the tails that a gate needs.

A gate spreads one night's chance of a false alarm over hundreds of tests, so each is made at a level of 1e-4 or 1e-5. A bootstrap
of thousands of replicates says nothing there; exact and Student tests do.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from harness.errors import BadInput
from harness.stats import distributions
from harness.stats.intervals import Clusters, Floats, as_correct, cluster_index


def p_items_lost(before: ArrayLike, after: ArrayLike, clusters: Clusters | None = None) -> float:
    """Exact one-sided p-value of "no more items are lost than won", for scores of 0 and 1 [items] of the same items.

    Without clusters: the sign test on the items that changed, which is McNemar's exact test (McNemar 1947), one side of it. With
    clusters: each cluster's net change keeps its size and gets a fair coin's sign (Fisher's randomisation test), summed exactly
    by convolution. BadInput for scores that are not 0 or 1, or rows of different lengths.
    """
    old, new = as_correct(before), as_correct(after)
    if old.shape != new.shape:
        raise BadInput(f"the two runs answered different items: {old.size} against {new.size}; compare the same items")
    change = old - new  # positive: lost
    if clusters is None:
        lost, won = int(np.sum(change > 0)), int(np.sum(change < 0))
        return float(distributions.binom.sf(lost - 1, lost + won, 0.5)) if lost + won else 1.0
    nets = np.bincount(cluster_index(clusters, old.size), weights=change)
    steps = np.abs(np.rint(nets[nets != 0])).astype(np.int64)
    observed, reach = round(float(nets.sum())), int(steps.sum())
    distribution: Floats = np.zeros(2 * reach + 1)
    distribution[reach] = 1.0
    for step in steps:
        distribution = 0.5 * (np.roll(distribution, step) + np.roll(distribution, -step))
    return min(1.0, float(distribution[observed + reach :].sum())) if steps.size else 1.0


def p_mean_above_zero(blocks: ArrayLike) -> float:
    """One-sided p-value of "the mean is not above zero" for changes [windows, tokens] or [windows], windows independent.

    Student's t on the windows' sums with as many degrees of freedom as windows less one; windows with fewer finite values weigh
    less (the mean is a ratio of sums, linearised: Cochran 1977, section 6.3). Where all windows changed by exactly the same, the
    sign test on windows. 1 where nothing changed or nothing is finite, and for fewer than two windows.
    """
    table = np.atleast_2d(np.asarray(blocks, dtype=np.float64).T).T
    mask = np.isfinite(table)
    sizes = mask.sum(axis=1)
    kept = sizes > 0
    sums, sizes = np.where(mask, table, 0.0).sum(axis=1)[kept], sizes[kept]
    windows = sums.size
    if windows < 2 or not np.any(sums):
        return 1.0
    mean = float(sums.sum() / sizes.sum())
    residuals = sums - mean * sizes
    error = math.sqrt(windows / (windows - 1) * float(residuals @ residuals)) / float(sizes.sum())
    if error <= 1e-12 * abs(mean):
        return 0.5**windows if mean > 0 else 1.0
    return float(distributions.t.sf(mean / error, windows - 1))
