"""What the scripted probe of the tests measures."""

from __future__ import annotations

from harness.metrics.group import Group
from harness.spec import Metric

METRIC = Metric(name="fake_value", title="Fake value", unit="1", better="lower", definition="scripted", axis="quality")
METRICS = (METRIC,)
GROUP = Group(title="Fake", metrics=METRICS)
