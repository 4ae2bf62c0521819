"""A process that keeps a server which the harness starts: it relays the server's log, says how it ended, and ends it.

``python -m harness.runtimes.keeper`` reads one line of JSON from standard input (`Order`) and starts the command, without a
shell. Every line that it writes tells the parent something (`Told`). The server, and all that it starts, ends

- when the parent writes a line: it is asked to (SIGTERM), and killed after a grace;
- when the parent is no more, killed -9 too: the kernel closes the pipe, and all are killed at once;
- when the server's own process ends: what it has left behind is killed;
- when this process is killed: the kernel kills the server (parent-death signal).

Whatever the server's processes do to be forgotten (a session of their own, a fork whose parent ends), the kernel hands them to
this process, which is their subreaper, so that they are found here. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from harness.decode import decode
from harness.forking import die_with_parent

_PR_SET_CHILD_SUBREAPER = 36

MOST_LOG_BYTES = 32 << 20
"""Of a server's log. What comes after is read, so that the server is not held up, and not kept."""

HIDDEN = b"[hidden]"
"""What stands in the log in the place of a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to start: `command` as arguments, in folder `cwd`, with its words going to the file `log`. `env` is laid over this
    process's variables (None: taken away). What `secrets` name never reaches the log. `grace_seconds`: from asking to killing."""

    command: tuple[str, ...]
    cwd: str
    log: str
    env: Mapping[str, str | None]
    secrets: tuple[str, ...]
    grace_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the parent hears: the server's `pid` once it runs; its exit `code` (negative: signal) once it has ended, or `error`
    where it could not be started."""

    pid: int | None = None
    code: int | None = None
    error: str = ""


def main() -> None:
    """Keeps one server, from its order to its end."""
    line = sys.stdin.buffer.readline()
    if not line:
        return
    order = decode(Order, json.loads(line))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    env = {name: value for name, value in {**os.environ, **order.env}.items() if value is not None}
    try:
        server = subprocess.Popen(
            order.command,
            cwd=order.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        _tell(Told(error=f"{order.command[0]}: {error.strerror or error}"))
        return
    _tell(Told(pid=server.pid))
    with open(order.log, "ab") as file:
        log = _Log(file, order.secrets)
        _keep(server, log, order.grace_seconds)
        log.close()
    _kill_all(server.pid)
    _tell(Told(code=server.wait()))


def _keep(server: subprocess.Popen[bytes], log: _Log, grace_seconds: float) -> None:
    """Relays the log until the server ends, the parent is no more, or the grace is over after the parent has had enough of it."""
    assert server.stdout is not None
    said, parent, ended = server.stdout.fileno(), sys.stdin.fileno(), os.pidfd_open(server.pid)
    os.set_blocking(said, False)
    deadline: float | None = None
    with selectors.DefaultSelector() as selector:
        for one in (said, parent, ended):
            selector.register(one, selectors.EVENT_READ)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            ready = {key.fd for key, _ in selector.select(left)} if left is None or left > 0 else set()
            if not ready or (parent in ready and not os.read(parent, 1 << 16)):
                return
            if parent in ready and deadline is None:
                deadline = time.monotonic() + grace_seconds
                _ask_to_end(server)
            if said in ready and not log.take(said):
                selector.unregister(said)  # it has closed its output, and may live on
            if ended in ready:
                log.take(said)  # its last words
                return


class _Log:
    """Writes what a server says, line by line, without secrets and not without end."""

    def __init__(self, file: BinaryIO, secrets: tuple[str, ...]) -> None:
        self._file = file
        self._secrets = [secret.encode() for secret in sorted(secrets, key=len, reverse=True) if secret]
        self._held = b""
        self._left = MOST_LOG_BYTES

    def take(self, descriptor: int) -> bool:
        """Writes what is there to be read, 1 MiB at most; False where no more will come."""
        for _ in range(16):
            try:
                chunk = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self.write(chunk)
        return True

    def write(self, chunk: bytes) -> None:
        """Keeps the last line until it is whole: a secret may be cut in two."""
        *lines, self._held = (self._held + chunk).split(b"\n")
        for line in lines:
            self._line(line + b"\n")
        if len(self._held) > 1 << 20:  # a line without end
            self._line(self._held)
            self._held = b""
        self._file.flush()

    def close(self) -> None:
        if self._held:
            self._line(self._held + b"\n")
            self._held = b""
        self._file.flush()

    def _line(self, line: bytes) -> None:
        if self._left <= 0:
            return
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        self._left -= len(line)
        self._file.write(line)
        if self._left <= 0:
            self._file.write(f"... the log is cut here, at {MOST_LOG_BYTES >> 20} MiB\n".encode())


def _ask_to_end(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGTERM)


def _kill_all(group: int) -> None:
    """Kills every descendant of this process, until there is none: what is orphaned meanwhile becomes its child."""
    for _ in range(200):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        below = descendants(os.getpid())
        for pid in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap(group)
        if not [pid for pid in below if pid != group]:
            return
        time.sleep(0.01)


def _reap(server: int) -> None:
    """Takes leave of children that have ended, but the server, whose exit code is asked for later."""
    for pid, parent in _parents().items():
        if parent == os.getpid() and pid != server:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def descendants(pid: int) -> list[int]:
    """All processes below one, those that have ended and wait for their parent included."""
    parents = _parents()
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return sorted(found)


def _parents() -> dict[int, int]:
    """The parent of each process, from /proc/PID/stat (proc(5): the second field may hold spaces and brackets)."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents[int(name)] = int(Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1])
    return parents


def _tell(told: Told) -> None:
    with contextlib.suppress(OSError):  # the parent may be no more
        os.write(1, (json.dumps(asdict(told)) + "\n").encode())


if __name__ == "__main__":
    main()
