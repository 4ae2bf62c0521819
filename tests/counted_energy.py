"""A machine whose energy counters are files: a powercap tree that a scripted power fills, over a time of its own.

Only the counters and the clock are made up. Time passes when the clock is read (a hundredth of a millisecond) and when somebody
works or sleeps; the counters move once in a millisecond, as real ones do, and begin again at 0 after their range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

ZONES = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}


class Counted:
    """`zones`: name of a zone's folder -> what it says it is. Every zone counts `watts`, whatever it is, in steps of `step`
    seconds."""

    def __init__(
        self,
        root: Path,
        *,
        zones: Mapping[str, str] = ZONES,
        watts: float = 10.0,
        step: float = 1e-3,
        whole: int = 262_143_328_850,
        begun: int = 0,
    ) -> None:
        self.root, self.watts, self.step, self.whole = root, watts, step, whole
        self.now, self._joules, self._since, self._begun = 0.0, 0.0, 0.0, begun
        self.slept = 0.0
        for folder, name in zones.items():
            (root / folder).mkdir(parents=True)
            (root / folder / "name").write_text(f"{name}\n")
            (root / folder / "max_energy_range_uj").write_text(f"{whole}\n")
        self._files = [root / folder / "energy_uj" for folder in zones]
        self._write()

    def clock(self) -> float:
        self.passes(1e-5)
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.passes(seconds)

    def works(self, seconds: float, watts: float) -> None:
        """Time passes at another power."""
        idle, self.watts = self.watts, watts
        self.passes(seconds)
        self.watts = idle

    def passes(self, seconds: float) -> None:
        self._joules += self.watts * seconds
        self.now += seconds
        if self.now - self._since >= self.step:
            self._since = math.floor(self.now / self.step) * self.step
            self._write()

    def _write(self) -> None:
        for file in self._files:
            file.write_text(f"{(self._begun + round(self._joules * 1e6)) % self.whole}\n")
