"""What belongs together in the report: the metrics of one probe."""

from __future__ import annotations

from dataclasses import dataclass

from harness.spec import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The metrics of one probe, in the order of their columns, and the title that heads them."""

    title: str
    metrics: tuple[Metric, ...]

    @property
    def simulated(self) -> bool:
        """Whether a cell whose weights are held dequantized may show one of them."""
        return any(metric.when_simulated for metric in self.metrics)
