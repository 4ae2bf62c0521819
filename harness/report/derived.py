"""What the report derives itself, one row each: comparisons of a cell with the baseline of its model, from paired raw samples.

`compare` fills them; a row says where it is shown, as those of the probes do. DERIVED is all of them in the order of columns.
"""

from __future__ import annotations

import dataclasses

from harness.metrics.divergence import LN_PPL_RATIO as MEASURED_LN_PPL_RATIO
from harness.spec import Metric, Places

GROUP, TITLE = "comparison", "Against the baseline"
"""What stands in place of a probe's name and title."""

MEAN_ACCURACY = Metric(
    name="mean_accuracy",
    title="Mean accuracy",
    unit="share",
    better="higher",
    definition="unweighted mean over the tasks that any cell answered, bootstrap over items within tasks",
    description="Every task counts the same, however many items it has. Given where a cell answered all of them. Tasks "
    "that are scored until a verdict have no part in it.",
    short="accuracy",
    axis="quality",
    places=Places(axis=10, headline=60, ladder=70, terminal=40),
)
MEAN_ACCURACY_DIFFERENCE = Metric(
    name="mean_accuracy_difference",
    title="Mean accuracy against the baseline",
    unit="points",
    better="higher",
    definition="difference of means over tasks, paired bootstrap over items within tasks",
    description="Percentage points; negative means that quantizing lost accuracy. The same items are resampled for both.",
    axis=None,  # orders the cells of a model as the mean accuracy does
    places=Places(headline=70),
    signed=True,
)
LN_PPL_RATIO = dataclasses.replace(MEASURED_LN_PPL_RATIO, definition="paired block bootstrap over windows")
ACCURACY_DIFFERENCE = Metric(
    name="accuracy_difference",
    title="Accuracy against the baseline",
    unit="points",
    better="higher",
    definition="paired difference over the same items",
    description="Percentage points; negative means lost accuracy.",
    axis=None,  # orders the cells of a model as the accuracy does
    signed=True,
)
FLIPS_LOST = Metric(
    name="flips_lost",
    title="Flips right to wrong",
    unit="items",
    better="lower",
    definition="items the baseline answers and the cell does not",
    description="Two errors that cancel in the accuracy still show here.",
)
FLIPS_GAINED = Metric(
    name="flips_gained",
    title="Flips wrong to right",
    unit="items",
    better="neither",
    definition="items the cell answers and the baseline does not",
)
MCNEMAR_P = Metric(
    name="mcnemar_p",
    title="McNemar p",
    unit="p",
    better="neither",
    definition="exact McNemar test, two-sided",
    description="Chance of flips at least this one-sided if losing and gaining an item were equally likely.",
)
MCNEMAR_P_HOLM = Metric(
    name="mcnemar_p_holm",
    title="McNemar p, corrected",
    unit="p",
    better="neither",
    definition="exact McNemar test, Holm-corrected over all cells and tasks of this run",
    description="Below 0.05: a real change even though this many comparisons were looked at.",
)
MINIMUM_DETECTABLE_EFFECT = Metric(
    name="minimum_detectable_effect",
    title="Smallest loss that could be seen",
    unit="points",
    better="lower",
    definition="80 % power at 5 %, for this number of items and this rate of flips",
    description="A loss smaller than this would usually go unnoticed here, so 'no loss' is never claimed below it.",
)
RECOVERY = Metric(
    name="recovery",
    title="Recovery",
    unit="share",
    better="higher",
    definition="accuracy / baseline's accuracy, paired interval",
    axis=None,  # orders the cells of a model as the accuracy does
)

PER_TASK = (
    ACCURACY_DIFFERENCE,
    FLIPS_LOST,
    FLIPS_GAINED,
    MCNEMAR_P,
    MCNEMAR_P_HOLM,
    MINIMUM_DETECTABLE_EFFECT,
    RECOVERY,
)
"""Each of these has a column for each task."""

DERIVED: dict[str, Metric] = {m.name: m for m in (MEAN_ACCURACY, MEAN_ACCURACY_DIFFERENCE, LN_PPL_RATIO, *PER_TASK)}
