"""The conditions during a measurement: load, steal time and clock before and after."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from harness.measure.machine import PROC, read_line


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSeconds:
    """Seconds of all CPUs together since boot: `total`, of these `busy`, and what the hypervisor took (`steal`)."""

    total: float
    busy: float
    steal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Counters of the machine and of this process at one moment."""

    load: float | None
    machine: CpuSeconds | None
    own: float  # CPU seconds of this process
    megahertz: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What went on between two snapshots: load averages, the share of CPU time that the hypervisor took (steal) and that other
    processes took, clock. Shares are of all CPUs together, 0 to 1, and None where nothing was counted."""

    load_before: float | None
    load_after: float | None
    steal_share: float | None
    others_cpu_share: float | None
    clock_mhz_before: float | None
    clock_mhz_after: float | None


def snapshot(*, proc: Path = PROC) -> Snapshot:
    """Reads the counters; `between` compares two of them."""
    load = read_line(proc / "loadavg")
    times = os.times()
    return Snapshot(
        load=float(load.split()[0]) if load else None,
        machine=_cpu_seconds(proc),
        own=times.user + times.system,
        megahertz=_megahertz(proc),
    )


def between(before: Snapshot, after: Snapshot) -> Conditions:
    """The conditions from one snapshot to the other."""
    steal = others = None
    if before.machine is not None and after.machine is not None and after.machine.total > before.machine.total:
        total = after.machine.total - before.machine.total
        busy = after.machine.busy - before.machine.busy
        steal = max(0.0, (after.machine.steal - before.machine.steal) / total)
        others = max(0.0, (busy - (after.own - before.own)) / total)
    return Conditions(
        load_before=before.load,
        load_after=after.load,
        steal_share=steal,
        others_cpu_share=others,
        clock_mhz_before=before.megahertz,
        clock_mhz_after=after.megahertz,
    )


def _cpu_seconds(proc: Path) -> CpuSeconds | None:
    line = (read_line(proc / "stat") or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in line[1:9])  # proc(5)
    tick = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq
    return CpuSeconds(total=(busy + idle + iowait + steal) / tick, busy=busy / tick, steal=steal / tick)


def _megahertz(proc: Path) -> float | None:
    clocks = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", read_line(proc / "cpuinfo") or "", re.MULTILINE)]
    return sum(clocks) / len(clocks) if clocks else None
