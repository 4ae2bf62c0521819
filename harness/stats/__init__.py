"""Pure numbers: intervals, paired tests, bootstrap, sequential tests, history fences. numpy and scipy only, deterministic.

docs/statistics.md says which method answers which question and why.
"""

from __future__ import annotations

from harness.stats.bootstrap import block_bootstrap_mean, ln_ppl_ratio, perplexity_interval, ratio_of_sums, share_interval
from harness.stats.fences import Fence, fence, worsening
from harness.stats.intervals import (
    Clusters,
    Interval,
    accuracy,
    mean_interval,
    median_interval,
    median_ratio,
    quantile_interval,
    wilson,
)
from harness.stats.multiplicity import benjamini_hochberg, e_benjamini_hochberg, holm
from harness.stats.onesided import p_items_lost, p_mean_above_zero
from harness.stats.paired import (
    Comparison,
    Finding,
    Flips,
    Statement,
    Task,
    compare,
    equivalent,
    flips,
    mcnemar_exact,
    mean_difference_over_tasks,
    minimum_detectable_effect,
    noninferior,
    paired_difference,
    paired_test,
    recovery,
    right_or_wrong,
    smallest_detectable,
    state,
)
from harness.stats.sequential import (
    Decision,
    Replays,
    SequentialTest,
    Verdict,
    anytime_interval,
    paired_items,
    replay,
    shared_order,
    unpaired_items,
)

CHANGES_NUMBERS = False
"""Intervals and tests are recomputed from raw samples when a run is read, so this package is no part of the source digest
(run/source.py). `sequential` says otherwise: it decides how many items are scored."""

__all__ = [
    "Clusters",
    "Comparison",
    "Decision",
    "Fence",
    "Finding",
    "Flips",
    "Interval",
    "Replays",
    "SequentialTest",
    "Statement",
    "Task",
    "Verdict",
    "accuracy",
    "anytime_interval",
    "benjamini_hochberg",
    "block_bootstrap_mean",
    "compare",
    "e_benjamini_hochberg",
    "equivalent",
    "fence",
    "flips",
    "holm",
    "ln_ppl_ratio",
    "mcnemar_exact",
    "mean_difference_over_tasks",
    "mean_interval",
    "median_interval",
    "median_ratio",
    "minimum_detectable_effect",
    "noninferior",
    "p_items_lost",
    "p_mean_above_zero",
    "paired_difference",
    "paired_items",
    "paired_test",
    "perplexity_interval",
    "quantile_interval",
    "ratio_of_sums",
    "recovery",
    "replay",
    "right_or_wrong",
    "share_interval",
    "shared_order",
    "smallest_detectable",
    "state",
    "unpaired_items",
    "wilson",
    "worsening",
]
