"""`repeat: 3` of a method: the same scheme from three draws of its rows. What seeds do to a method is no part of the interval
of the items, and often more.

It is the axis of the seed written short: `calibration: [{seed: 0}, {seed: 1}, {seed: 2}]`, or of `train` for a method that
trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.errors import BadInput
from harness.methods.base import Method
from harness.suite.file import SuiteFile
from harness.suite.mistakes import shown
from harness.suite.mixed import TARGET

KEY = "repeat"
MOST = 16


def expanded(
    method: Method, axes: Mapping[str, Sequence[object]], written: SuiteFile, where: str
) -> Mapping[str, Sequence[object]]:
    """The axes of an entry with the repetitions as draws of other seeds, counted up from the one that is said. BadInput for a
    method that draws no rows, and for a number that is none."""
    if KEY not in axes:
        return axes
    times = axes[KEY]
    count = times[0] if len(times) == 1 else list(times)
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= MOST:
        raise BadInput(f"{where}: {method.name}: repeat: {shown(count)} is no number of draws from 2 to {MOST}; write repeat: 3")
    if not method.calibrated and TARGET not in axes:  # a mixture's widths are chosen by text
        raise BadInput(
            f"{where}: {method.name} draws no rows, so that all repetitions would be the same; take `repeat` out of its entry"
        )
    suite, drawn = written.suite, "train" if method.trains is not None else "calibration"
    seed = suite.train.seed if drawn == "train" else suite.calibration.seed
    rows: list[object] = []
    for row in axes.get(drawn, [{}]):
        if not isinstance(row, Mapping):  # refused where it is read
            rows.append(row)
            continue
        first = row.get("seed", seed)
        whole = isinstance(first, int) and not isinstance(first, bool)
        rows += [{**row, "seed": first + step} for step in range(count)] if whole else [row]
    return {**{name: values for name, values in axes.items() if name != KEY}, drawn: rows}
