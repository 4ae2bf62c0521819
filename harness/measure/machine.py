"""Facts of the machine and of the conditions under which a number was made: what a reader needs to judge or repeat it.

Promises: never raises for want of a tool (no git, no nvidia-smi, no /proc: the fact is None or missing); never holds a host
name, a user name or a path. Imports the standard library only.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.measure import nvidia
from harness.measure.nvidia import Gpu
from harness.spec import digest

PROC = Path("/proc")

SYS = Path("/sys")

FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "sve", "sve2", "i8mm", "bf16",
)  # fmt: skip
"""Instruction sets that quantized kernels choose by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """This machine; None where something cannot be known. `cache_bytes` by level, e.g. {"L2": 2097152}."""

    cpu: str | None
    cores: int | None
    cores_usable: int
    cpu_flags: tuple[str, ...]
    cache_bytes: Mapping[str, int]
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    system: str
    kernel: str
    architecture: str
    virtualized: bool | None
    python: str
    governor: str | None


def facts(*, proc: Path = PROC, sys_root: Path = SYS) -> MachineFacts:
    """CPU, memory, GPUs, kernel, Python of this machine."""
    cpu = _cpu(proc)
    return MachineFacts(
        cpu=cpu.model,
        cores=os.cpu_count(),
        cores_usable=len(affinity()),
        cpu_flags=cpu.flags,
        cache_bytes=caches(sys_root),
        memory_bytes=_memory_total(proc),
        gpus=nvidia.gpus(),
        system=platform.system(),
        kernel=platform.release(),
        architecture=platform.machine(),
        virtualized=cpu.virtualized,
        python=platform.python_version(),
        governor=governor(sys_root),
    )


def host_id(machine: MachineFacts | None = None) -> str:
    """Twelve hex digits that are equal on machines of equal make: CPU model, cores, memory (to the GiB) and GPUs. No
    secret and no name goes in, so it may be published."""
    known = facts() if machine is None else machine
    parts = {
        "cpu": known.cpu,
        "cores": known.cores,
        "memory_gib": None if known.memory_bytes is None else round(known.memory_bytes / 2**30),
        "gpus": [gpu.name for gpu in known.gpus],
    }
    return digest(parts)[:12]


def affinity() -> list[int]:
    """The CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def caches(sys_root: Path = SYS) -> dict[str, int]:
    """Bytes of the first CPU's data and unified caches by level, e.g. {"L2": 2097152, "L3": 272629760}; {} if unknown."""
    sizes: dict[str, int] = {}
    for index in sorted((sys_root / "devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (read_line(index / name) for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KMG]?)", size or "")
        if level and match and kind != "Instruction":
            sizes[f"L{level}"] = int(match[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]]
    return sizes


def governor(sys_root: Path = SYS) -> str | None:
    """The frequency governor of the first CPU; None where the system decides elsewhere (a virtual machine)."""
    return read_line(sys_root / "devices/system/cpu/cpu0/cpufreq/scaling_governor")


def packages() -> dict[str, str]:
    """Every installed distribution of this interpreter with its version, names normalised (PEP 503), sorted."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        about = distribution.metadata  # parsed anew each time it is asked for
        name = about["Name"]
        if name:  # a half-removed package leaves a folder without a name
            # The first on the path is the one that imports; later ones of the same name are shadowed.
            versions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), about["Version"] or "")
    return dict(sorted(versions.items()))


def packages_digest(installed: Mapping[str, str] | None = None) -> str:
    """SHA-256 of the installed package list: equal environments have equal digests."""
    return digest(dict(packages() if installed is None else installed))


def commit(path: Path) -> str | None:
    """The git commit that `path` is at, with `-dirty` behind it if tracked files differ; None without git or outside a
    repository that tracks `path` (an installed package inside somebody's checkout is not of that checkout's commit)."""
    folder = path if path.is_dir() else path.parent
    git = shutil.which("git")
    if git is None or not _run([git, "-C", str(folder), "ls-files", "--", "."], seconds=20):
        return None
    head = _run([git, "-C", str(folder), "rev-parse", "HEAD"], seconds=20)
    if not head:
        return None
    # Without the optional lock, asking never gets in the way of a commit that somebody is making.
    changed = _run([git, "--no-optional-locks", "-C", str(folder), "status", "--porcelain", "-uno", "--", "."], seconds=60)
    return head.strip() + ("-dirty" if changed else "")


def available_memory_bytes(*, proc: Path = PROC, cgroup: Path = SYS / "fs/cgroup") -> int | None:
    """Bytes this process can still take: what the system has available, or less where a control group (v1 or v2, this
    one or any above it) leaves less. Page cache that can be dropped counts as available. None if unknown."""
    limits = [room for room in (_meminfo(proc, "MemAvailable"), *_cgroup_rooms(proc, cgroup)) if room is not None]
    return max(0, min(limits)) if limits else None


def free_disk_bytes(path: Path) -> int:
    """Bytes that may be written at `path` (which need not exist yet: the nearest folder that does is asked)."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    where = path.absolute()
    while not where.exists() and where != where.parent:
        where = where.parent
    return where


def same_disk(one: Path, other: Path) -> bool:
    """Whether two places, which need not exist yet, share the room that is free."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def read_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _run(command: list[str], *, seconds: float) -> str | None:
    """Standard output of a command that ended well, else None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


def cpu_flags(proc: Path = PROC) -> frozenset[str]:
    """Those of FLAGS that this CPU has."""
    return frozenset(_cpu(proc).flags)


def cpu_vendor(proc: Path = PROC) -> str | None:
    """The CPU's own word for its maker ("GenuineIntel", "AuthenticAMD"); None where /proc does not say."""
    return _cpu(proc).vendor


def cpu_virtualized(proc: Path = PROC) -> bool:
    """Whether the CPU itself says that a hypervisor runs it."""
    return bool(_cpu(proc).virtualized)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cpu:
    """What /proc/cpuinfo says of the first CPU; `flags` are those of FLAGS."""

    model: str | None
    vendor: str | None
    flags: tuple[str, ...]
    virtualized: bool | None


def _cpu(proc: Path) -> _Cpu:
    text = read_line(proc / "cpuinfo") or ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    model = fields.get("model name") or platform.processor() or platform.machine() or None
    if model and fields.get("model", "").isdigit():
        # A virtual CPU's name says little ("Xeon Processor"); family, model and stepping tell generations apart.
        model += f" (family {fields.get('cpu family')} model {fields['model']} stepping {fields.get('stepping')})"
    return _Cpu(
        model=model,
        vendor=fields.get("vendor_id"),
        flags=tuple(flag for flag in FLAGS if flag in flags),
        virtualized="hypervisor" in flags if flags else None,
    )


def _meminfo(proc: Path, name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB", read_line(proc / "meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _memory_total(proc: Path) -> int | None:
    total = _meminfo(proc, "MemTotal")
    if total is None and hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total


def _cgroup_rooms(proc: Path, cgroup: Path) -> list[int]:
    """Bytes left under each limit of the control groups that hold this process."""
    rooms: list[int] = []
    for line in (read_line(proc / "self/cgroup") or "").splitlines():
        number, controllers, group = ([*line.split(":", 2), "", ""])[:3]
        if number == "0" and not controllers:
            root, limit, used, dropped = cgroup, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, used, dropped = (
                cgroup / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        folder = root / group.lstrip("/")
        if not folder.is_dir():
            folder = root  # inside a container the path is the host's, and the mount begins at our own group
        while True:
            most, now = read_line(folder / limit) or "", read_line(folder / used) or ""
            if most.isdigit() and now.isdigit() and int(most) < 2**60:  # v1 writes "no limit" as a number near 2**63
                match = re.search(rf"^{dropped} (\d+)$", read_line(folder / "memory.stat") or "", re.MULTILINE)
                rooms.append(int(most) - int(now) + (int(match[1]) if match else 0))
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent
    return rooms
