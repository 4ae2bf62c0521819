"""Accuracy on lm-eval's tasks."""

from __future__ import annotations

from harness.metrics import sequential
from harness.metrics.group import Group
from harness.spec import Metric, Places

METRICS = (
    Metric(
        name="accuracy",
        title="Accuracy",
        unit="share",
        better="higher",
        definition="lm-eval acc or exact_match",
        description="Share of the task's items that are answered right, with its Wilson interval. Prompts, filters and metric "
        "are lm-eval's.",
        short="accuracy",
        axis="quality",
        places=Places(axis=60, terminal=40),
        samples="items",
    ),
    Metric(
        name="accuracy_norm",
        title="Accuracy, length-normalized",
        unit="share",
        better="higher",
        definition="lm-eval acc_norm",
        description="As accuracy, the choice's log-likelihood divided by its number of characters.",
        axis="quality",
    ),
    Metric(
        name="task_score",
        title="Task score",
        unit="",
        better="higher",
        definition="lm-eval",
        description="The first metric of a task that has no accuracy, as lm-eval aggregates it.",
        axis="quality",
        places=Places(axis=70),
    ),
    *sequential.METRICS,
)
GROUP = Group(title="Accuracy by task", metrics=METRICS)
