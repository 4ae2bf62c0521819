"""Peak memory of a phase of this process, counted by the kernel and the device allocator, never polled.

    with measure("load") as meter:
        ...
    meter.phase  # Phase(name="load", seconds=..., peak_bytes={"host_peak": ..., ...})

How: the kernel keeps the high-water mark of a process's resident set (`VmHWM` of /proc/self/status, proc(5)); writing 5 to
/proc/self/clear_refs sets it back to the present resident set (Linux 4.0 and later). An allocation that lives for a
millisecond inside the phase is therefore always seen. `RUSAGE_CHILDREN` and the maximum of `wait4` are not used: the first
is a running maximum over all children, the second starts at the size of the parent that forked.

Keys of `Phase.peak_bytes`, all in bytes, of the whole process (what it held before the phase is *not* subtracted):

`host_peak`               largest resident set within the phase, every kind of page counted once per mapping; exact up to the
                          kernel's per-CPU counting (at most some hundred KiB on small machines)
`host_start`, `host_end`  resident set when the phase began and ended
`host_anonymous`          upper bound of the largest anonymous part: the peak less the file-backed pages that were resident
                          both when the phase began and when it ended. The kernel keeps one mark for the total, none for its parts
`host_anonymous_at_least` lower bound: the larger of the anonymous parts at the beginning and at the end
`host_file`               file-backed and shared pages: the larger of beginning and end (a file mapped *and* unmapped within
                          is not seen here, but is in `host_peak`)
`host_peak_at_most`       stands in the place of `host_peak` where the mark could not be set back (no permission) and an
                          earlier phase of this process may have set it: an upper bound and not a measurement
`device_allocated`,       peaks of torch's CUDA allocator in the phase, summed over devices; there only if torch.cuda was in use
`device_reserved`

Phases may nest: an outer phase has seen everything that its inner ones saw. Where there is no /proc (not Linux)
the phase carries its seconds only; `require()` raises Unsupported. Standard library only.
"""

from __future__ import annotations

import ctypes
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.errors import Unsupported
from harness.spec import Phase

PROC = Path("/proc/self")

_STATUS = {"VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file", "RssShmem": "shared"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentSet:
    """One reading of /proc/self/status in bytes: `peak` = VmHWM; the other three add up to the resident set."""

    peak: int
    anonymous: int
    file: int
    shared: int

    @property
    def total(self) -> int:
        return self.anonymous + self.file + self.shared

    @property
    def backed(self) -> int:
        """Pages that a file or shared memory stands behind."""
        return self.file + self.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """Resident file-backed pages of this process, in bytes, by what the file is. A byte of a file that is mapped twice is
    counted once in `weights` and `other`; `doubled` is what a plain sum over the mappings would have counted beyond that."""

    weights: int
    other: int
    doubled: int


def resident(proc: Path = PROC) -> ResidentSet | None:
    """The kernel's counters now; None where there are none (not Linux, or a kernel before 4.5)."""
    try:
        text = (proc / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    counters: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in _STATUS:
            counters[_STATUS[name]] = int(rest.split()[0]) * 1024  # always "kB", which means KiB here
    return ResidentSet(**counters) if len(counters) == len(_STATUS) else None


def reset_peak(proc: Path = PROC) -> bool:
    """Sets the high-water mark back to the present resident set; False where that is not allowed or not offered."""
    try:
        with open(proc / "clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def require(proc: Path = PROC) -> ResidentSet:
    """`resident()`, or Unsupported with the reason where there is nothing to read."""
    now = resident(proc)
    if now is None:
        raise Unsupported(
            f"peak memory is counted by the Linux kernel ({PROC}/status), which {sys.platform} does not offer; "
            "run the memory probe on Linux"
        )
    return now


def mapped(roots: Sequence[Path], proc: Path = PROC) -> Mapped | None:
    """Resident file-backed bytes, split into files under `roots` (symbolic links resolved) and all others (libraries and so on).

    From /proc/self/smaps: `Rss` less `Anonymous` of each mapping with a path (written pages of a private mapping are anonymous).
    Two mappings of the same stretch of a file share their pages, so the larger of the two stands for both. None where smaps
    cannot be read.
    """
    areas = _areas(proc)
    if areas is None:
        return None
    wanted = _under(roots)
    files: dict[tuple[bytes, bytes], list[_Area]] = {}
    for area in areas:
        files.setdefault(area.file, []).append(area)
    weights = other = doubled = 0
    for parts in files.values():
        once = _once([(part.offset, part.offset + part.length, part.backed) for part in parts])
        doubled += sum(part.backed for part in parts) - once
        if wanted(parts[0].name):
            weights += once
        else:
            other += once
    return Mapped(weights=weights, other=other, doubled=doubled)


def release(roots: Sequence[Path], proc: Path = PROC) -> int:
    """Takes pages of mapped files under `roots` out of the resident set; returns their bytes. What is read again comes back
    from the file by itself, what was only read on the way (a loader that copied it elsewhere) stays out.

    Loses nothing: mappings that hold a written page are left alone (madvise(2), MADV_DONTNEED).
    """
    wanted = _under(roots)
    if not _maps_any(wanted, proc):
        return 0
    released = 0
    for area in _areas(proc) or ():
        if area.backed and not area.anonymous and wanted(area.name) and _advise(area.start, area.length, _MADV_DONTNEED):
            released += area.backed
    return released


def populate(roots: Sequence[Path], proc: Path = PROC) -> bool:
    """Brings every page of mapped files under `roots` into the resident set, as reading them would (MADV_POPULATE_READ, Linux
    5.14 and later); False where a mapping could not be: what is then resident is only what was read."""
    wanted = _under(roots)
    if not _maps_any(wanted, proc):
        return True
    areas = _areas(proc)
    done = [_advise(area.start, area.length, _MADV_POPULATE_READ) for area in areas or () if wanted(area.name)]
    return areas is not None and all(done)


_MADV_DONTNEED = 4
_MADV_POPULATE_READ = 22


def _advise(start: int, length: int, advice: int) -> bool:
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return False
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return int(madvise(start, length, advice)) == 0


def _under(roots: Sequence[Path]) -> Callable[[str], bool]:
    """Whether a mapped file's path lies under one of the folders, or is what a link in them leads to."""
    prefixes = tuple(str(root.resolve()).rstrip("/") + "/" for root in roots)
    # The weights of a hub model are links into a blob folder beside it: the files that the links lead to count as well.
    targets = {str(path.resolve()) for root in roots if root.is_dir() for path in root.rglob("*") if path.is_symlink()}

    def wanted(name: str) -> bool:
        plain = name.removesuffix(" (deleted)")
        return plain.startswith(prefixes) or plain in targets

    return wanted


def _once(parts: Sequence[tuple[int, int, int]]) -> int:
    """Bytes of (start, end, resident) stretches of one file, overlapping ones merged: the larger of the residents, and at
    most the length of what is merged."""
    total = 0
    end, most = -1, 0
    for start, stop, bytes_ in sorted(parts):
        if start < end:
            most, end = max(most, bytes_), max(end, stop)
        else:
            total += most
            most, end = bytes_, stop
    return total + most


@dataclass(frozen=True, slots=True, kw_only=True)
class _Area:
    """One mapping of a file: `file` = (device, inode); `backed` and `anonymous` are resident bytes."""

    file: tuple[bytes, bytes]
    name: str
    start: int
    length: int
    offset: int
    backed: int
    anonymous: int


_AREA = re.compile(  # range, permissions, offset, device, inode, path; then the fields, a line each
    rb"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) (\S+) ([1-9][0-9]*) +([^\n]*)\n"
    rb"(?:[A-Z][^\n]*\n)*?Rss: +([0-9]+) kB\n(?:[A-Z][^\n]*\n)*?Anonymous: +([0-9]+) kB\n",
    re.MULTILINE,
)
"""A mapping of a file in smaps. Searched in the whole text: a process with torch has 60,000 lines of it."""


def _areas(proc: Path) -> list[_Area] | None:
    """Every mapping of this process that has a file; None where smaps cannot be read."""
    try:
        text = (proc / "smaps").read_bytes()
    except OSError:
        return None
    areas = []
    for low, high, offset, device, inode, name, rss, anonymous in _AREA.findall(text):
        resident_bytes, written = int(rss) * 1024, int(anonymous) * 1024
        start = int(low, 16)
        areas.append(
            _Area(
                file=(device, inode),
                name=name.decode("utf-8", errors="replace").strip(),
                start=start,
                length=int(high, 16) - start,
                offset=int(offset, 16),
                backed=max(0, resident_bytes - written),
                anonymous=written,
            )
        )
    return areas


def _maps_any(wanted: Callable[[str], bool], proc: Path) -> bool:
    """Whether any mapping is of a wanted file: /proc/PID/maps says so for a tenth of what smaps costs."""
    try:
        lines = (proc / "maps").read_bytes().splitlines()
    except OSError:
        return True
    names = {line.split(None, 5)[5] for line in lines if line.count(b"/")}
    return any(wanted(name.decode("utf-8", errors="replace").strip()) for name in names)


class _Cuda(Protocol):
    """What is used of torch.cuda."""

    def is_initialized(self) -> bool: ...
    def device_count(self) -> int: ...
    def synchronize(self) -> None: ...
    def max_memory_allocated(self, device: int, /) -> int: ...
    def max_memory_reserved(self, device: int, /) -> int: ...
    def reset_peak_memory_stats(self, device: int, /) -> None: ...


def _cuda() -> _Cuda | None:
    """torch.cuda if this process already uses it; never imports or initialises anything."""
    torch = sys.modules.get("torch")
    cuda: _Cuda | None = getattr(torch, "cuda", None)
    if cuda is None or not hasattr(cuda, "is_initialized") or not cuda.is_initialized():
        return None
    return cuda


def _device_peaks() -> dict[str, int]:
    cuda = _cuda()
    if cuda is None:
        return {}
    devices = range(cuda.device_count())
    cuda.synchronize()
    return {
        "device_allocated": sum(int(cuda.max_memory_allocated(i)) for i in devices),
        "device_reserved": sum(int(cuda.max_memory_reserved(i)) for i in devices),
    }


def _reset_device() -> None:
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()
        for index in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(index)


@dataclass(slots=True, kw_only=True)
class Meter:
    """A phase being measured. `phase` is its result, there once the `with` block has ended (by an exception too)."""

    name: str
    proc: Path
    phase: Phase | None = None
    known: bool = True  # the mark was set back when this phase began, so it belongs to this phase
    highest: int = 0
    entry_mark: int = 0
    device: dict[str, int] = field(default_factory=dict)

    def absorb(self) -> None:
        """Folds what the kernel and the allocator have counted since the last setting back into this phase."""
        now = resident(self.proc)
        if now is not None:
            self.highest = max(self.highest, now.peak)
        for key, value in _device_peaks().items():
            self.device[key] = max(self.device.get(key, 0), value)


_active: list[Meter] = []
"""Phases under way, outermost first: setting the mark back for an inner one must not rob the outer ones of what they saw."""


@contextmanager
def measure(name: str, *, clock: Callable[[], float] = time.perf_counter, proc: Path = PROC) -> Iterator[Meter]:
    """Everything inside is phase `name`: marks set back on entry, read on exit. The result is in `.phase` afterwards,
    whatever was raised."""
    meter = Meter(name=name, proc=proc)
    for outer in _active:
        outer.absorb()
    meter.known = reset_peak(proc)
    _reset_device()
    start = resident(proc)
    if start is not None:
        meter.entry_mark = start.peak
    _active.append(meter)
    began = clock()
    try:
        yield meter
    finally:
        seconds = clock() - began
        _active.remove(meter)
        meter.absorb()
        for outer in _active:
            outer.absorb()
        end = resident(proc)
        meter.phase = Phase(name=name, seconds=seconds, peak_bytes={**_host_peaks(meter, start, end), **meter.device})


def _host_peaks(meter: Meter, start: ResidentSet | None, end: ResidentSet | None) -> Mapping[str, int]:
    if start is None or end is None:
        return {}
    lowest_backed = min(start.backed, end.backed)
    peak = max(meter.highest, start.total, end.total)
    # Without permission to set the mark back, a mark that rose within the phase is still this phase's own peak.
    exact = meter.known or peak > meter.entry_mark
    return {
        "host_peak" if exact else "host_peak_at_most": peak,
        "host_start": start.total,
        "host_end": end.total,
        "host_anonymous": peak - lowest_backed,
        "host_anonymous_at_least": max(start.anonymous, end.anonymous),
        "host_file": max(start.backed, end.backed),
    }
