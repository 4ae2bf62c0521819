"""What a plan will take: time, memory and disk of each cell, each as a range with its source.

`history.read` takes in what cells took on this machine before, `estimate.forecast` says what is left of a plan will take,
`words` says it to people. Pure but for reading run files: no clock, no torch, no model. How a forecast is made:
docs/forecasts.md.
"""

from __future__ import annotations

CHANGES_NUMBERS = False
"""Stored measurements do not depend on what was expected of them."""
