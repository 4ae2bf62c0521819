"""Whose process listens on a port of this machine, and what memory it and its children take. Linux only; standard library."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import Unsupported

PROC = Path("/proc")
_LISTEN = "0A"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Bytes of a group of processes: `pss` = proportional share of what they share with others (None where the kernel does not
    let us see it), `rss` = resident sets added up (shared pages more than once), `peak` = their VmHWM added up."""

    processes: tuple[int, ...]
    pss: int | None
    rss: int
    peak: int


def local(host: str) -> bool:
    """Whether an address or name is this machine's own loopback."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(ipaddress.ip_address(one.partition("%")[0]).is_loopback for one in found)


def owners(port: int, proc: Path = PROC) -> list[int]:
    """Processes that hold a listening TCP socket of that port open, as far as their files may be seen."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / name).read_text(encoding="ascii", errors="replace").splitlines()[1:]:
                fields = line.split()
                if len(fields) > 9 and fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    found = []
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # another's process, or one that has just ended
            if any(os.readlink(entry) in inodes for entry in (folder / "fd").iterdir()):
                found.append(int(folder.name))
    return sorted(found)


def family(pids: Iterable[int], proc: Path = PROC) -> list[int]:
    """The processes and all their descendants."""
    parents: dict[int, int] = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The name in parentheses may hold anything: what counts comes after the last one.
                parents[int(folder.name)] = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def resident(pids: Iterable[int], proc: Path = PROC) -> ProcessMemory:
    """Memory of the processes now. Unsupported where none of them can be read."""
    pss: int | None = 0
    rss = peak = 0
    seen = []
    for pid in pids:
        try:
            status = (proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended
        rss += _kib(status, "VmRSS")
        peak += _kib(status, "VmHWM")
        seen.append(pid)
        try:
            rollup = (proc / str(pid) / "smaps_rollup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            pss = None
        else:
            pss = None if pss is None else pss + _kib(rollup, "Pss")
    if not seen:
        raise Unsupported("the server's processes cannot be read in /proc")
    return ProcessMemory(processes=tuple(seen), pss=pss, rss=rss, peak=peak)


def _kib(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, flags=re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0
