"""Energy from the machine's own counters: those of the CPU packages (RAPL, through powercap) and of NVIDIA's boards (NVML).

    meter = meter_of("cpu")                    # a Meter, or in words why there is none and what would permit it
    idle = idle_of(meter)                      # watts of the machine that does nothing, and how often its counters move
    before = meter.read(); ...; after = meter.read()
    meter.joules(before, after)                # what the counters counted, idle power not subtracted

Nothing is ever estimated: no TDP, no table of processors. The counters count all that a package or a board does, whoever asked
for it, so others that use the machine are in the figure.

powercap (Documentation/power/powercap/powercap.rst of Linux): every zone has `name`, `energy_uj` and `max_energy_range_uj`,
after which it begins again at 0. Only zones called `package-N` (or `package-N-die-M`) are added up: `core`, `uncore` and `dram`
are their children, `psys` is the platform around them, and `intel-rapl-mmio` shows a package a second time.
"""

from __future__ import annotations

import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.measure import machine, nvidia
from harness.measure.machine import read_line

POWERCAP = Path("/sys/class/powercap")

IDLE_SECONDS = 1.0
"""How long the idle machine is watched, or SPAN moves of its counters if that is longer."""

SPAN = 20
"""A reading spans at least so many moves of its counters: each end is late by less than one of them, so it is within 5 %."""

MOVES, WATCHED_SECONDS = 12, 1.5
"""To learn how often counters move they are watched for so many moves, at most so long."""

MOST_WATTS = 1000.0
"""No package takes more. A counter that could have gone round twice at this power tells nothing; the smallest range, 65 kJ, lasts
a minute."""

_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")


class Unreadable(Exception):
    """A counter that was there cannot be read now."""


class Counters(Protocol):
    """Some counters that are read together."""

    @property
    def name(self) -> str:
        """What they count, as a definition says it."""

    def read(self) -> tuple[int, ...]:
        """Microjoules of each since an unknown beginning. Unreadable where they cannot be read."""

    def ranges(self) -> tuple[int | None, ...]:
        """Microjoules after which each begins again at 0; None: never while this process lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The counters at one moment of `time.perf_counter`."""

    seconds: float
    microjoules: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """The machine that does nothing: its `watts` over `seconds`, and the seconds between two moves of its slowest counter."""

    watts: float
    seconds: float
    resolution_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """The CPU packages' zones in powercap."""

    zones: tuple[Path, ...]
    whole: tuple[int, ...]
    name: str = "CPU packages (RAPL)"

    def read(self) -> tuple[int, ...]:
        return tuple(_counted(zone / "energy_uj") for zone in self.zones)

    def ranges(self) -> tuple[int | None, ...]:
        return self.whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One GPU's board, as its driver counts it."""

    read_millijoules: Callable[[], int]
    name: str = "GPU board (NVML)"

    def read(self) -> tuple[int, ...]:
        try:
            return (self.read_millijoules() * 1000,)
        except nvidia.NoCounter as error:
            raise Unreadable(str(error)) from None

    def ranges(self) -> tuple[int | None, ...]:
        return (None,)


class Meter:
    """Reads counters at moments, and says what went through them in between."""

    def __init__(self, counters: Counters, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._counters = counters
        self.clock = clock

    @property
    def name(self) -> str:
        return self._counters.name

    def read(self) -> Reading:
        """Unreadable where the counters cannot be read any more."""
        return Reading(seconds=self.clock(), microjoules=self._counters.read())

    def joules(self, before: Reading, after: Reading) -> float:
        """What was counted between two readings. Unreadable where a counter could have gone round more than once."""
        total = 0
        for first, last, whole in zip(before.microjoules, after.microjoules, self._counters.ranges(), strict=True):
            if whole is not None and (after.seconds - before.seconds) * MOST_WATTS * 1e6 > whole:
                raise Unreadable(f"{after.seconds - before.seconds:.0f} s are so long that a counter may have gone round twice")
            if last < first and whole is None:
                raise Unreadable("the counter ran backwards: its driver was started anew")
            total += last - first if last >= first else last - first + (whole or 0)
        return total / 1e6


def meter_of(device: str, *, clock: Callable[[], float] = time.perf_counter) -> Meter | str:
    """The counters of what computes on a device ("cpu", "cuda", "cuda:1"), or why none can be read, and what would permit it."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        found = _packages()
        return found if isinstance(found, str) else Meter(found, clock=clock)
    if kind == "cuda":
        try:
            return Meter(Board(read_millijoules=nvidia.energy_counter(int(index or 0))), clock=clock)
        except nvidia.NoCounter as error:
            return str(error)
    return f"nobody has said which counter counts what the device {device!r} takes"


def idle_of(meter: Meter, *, sleep: Callable[[float], None] = time.sleep) -> Idle | str:
    """Watches the machine while it does nothing, or says why that tells nothing. Takes 1 to 4 seconds."""
    try:
        moved = _moves(meter)
        if len(moved) < 2:
            return (
                f"the counters of the {meter.name} are there and do not move (watched for {WATCHED_SECONDS:g} s), as in virtual "
                "machines that only show an empty copy; measure on the host"
            )
        resolution = statistics.median(later - sooner for sooner, later in itertools.pairwise(moved))
        sleep(0.1)  # the watching itself was work
        before = meter.read()
        sleep(max(IDLE_SECONDS, SPAN * resolution))
        after = meter.read()
        seconds = after.seconds - before.seconds
        return Idle(watts=meter.joules(before, after) / seconds, seconds=seconds, resolution_seconds=resolution)
    except Unreadable as error:
        return str(error)


def _moves(meter: Meter) -> list[float]:
    """Moments at which all counters have moved since the moment before."""
    last = meter.read()
    end = last.seconds + WATCHED_SECONDS
    moments: list[float] = []
    while len(moments) <= MOVES:
        now = meter.read()
        if now.seconds > end:
            break
        if all(new != old for new, old in zip(now.microjoules, last.microjoules, strict=True)):
            moments.append(now.seconds)
            last = now
    return moments


def _packages() -> Packages | str:
    """The packages' zones, each once, or why they cannot be read."""
    if sys.platform != "linux":
        return f"CPU energy is read from Linux's powercap, which {sys.platform} does not have"
    zones: dict[str, Path] = {}
    # `intel-rapl:0` stands before `intel-rapl-mmio:0` here, so the second way to the same package is the one that is left out.
    for zone in sorted(POWERCAP.glob("*:*"), key=lambda z: ("mmio" in z.name, z.name)):
        name = read_line(zone / "name") or ""
        if _PACKAGE.fullmatch(name):
            zones.setdefault(name, zone)
    if not zones:
        return _no_zones()
    closed = [zone for zone in zones.values() if not _readable(zone / "energy_uj")]
    if closed:
        paths = " ".join(str(zone / "energy_uj") for zone in closed)
        return (
            f"the CPU's energy counters may be read by root only (since CVE-2020-8694); until the next start of the machine this "
            f"permits it: sudo chmod a+r {paths}"
        )
    whole = [read_line(zone / "max_energy_range_uj") or "" for zone in zones.values()]
    if not all(one.isdigit() and int(one) > 0 for one in whole):
        return "the CPU's energy counters do not say after what range they begin again (max_energy_range_uj)"
    return Packages(zones=tuple(zones.values()), whole=tuple(map(int, whole)))


def _no_zones() -> str:
    if machine.cpu_virtualized():
        return (
            "this is a virtual machine whose host shows it no energy counter of the CPU (no package in /sys/class/powercap), and "
            "nothing inside it can permit that; measure on the host itself"
        )
    return (
        "the kernel shows no energy counter of the CPU (no package in /sys/class/powercap); load its driver with: sudo modprobe "
        "intel_rapl_msr (AMD's too); in a container, which hides them: docker run --security-opt systempaths=unconfined"
    )


def _readable(path: Path) -> bool:
    try:
        _counted(path)
    except Unreadable:
        return False
    return True


def _counted(path: Path) -> int:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read ({error})") from None
