"""Whose process listens on a port of this machine, and what memory it and its children take. Linux only.

psutil finds the processes. Their memory is read here: psutil has no high-water mark.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import Unsupported

PROC = Path("/proc")


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
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return bool(addresses) and all(ipaddress.ip_address(one.partition("%")[0]).is_loopback for one in addresses)


def owners(port: int) -> list[int]:
    """Processes that hold a listening TCP socket of that port open, as far as they may be looked at."""
    import psutil

    pids = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another's process, or one that has just ended
            # Asked of each process: psutil's list of all connections names one holder of a socket that several share.
            sockets = process.net_connections(kind="tcp")
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets):
                pids.append(process.pid)
    return sorted(pids)


def family(pids: Iterable[int]) -> list[int]:
    """The processes and all their descendants."""
    import psutil

    members = set(pids)
    for pid in tuple(members):
        with contextlib.suppress(psutil.Error):  # it has ended
            members.update(child.pid for child in psutil.Process(pid).children(recursive=True))
    return sorted(members)


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
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, flags=re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0
