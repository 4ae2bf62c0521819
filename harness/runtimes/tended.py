"""`python -m harness.runtimes.tended COMMAND ...`: runs a server in a process group of its own, and ends all of the group once
its standard input does, or the server.

Whoever wants the server holds the other end of that pipe. However that process ends, kill -9 included, the kernel closes the
pipe, and nothing that the server has started is left behind. Standard library only; Linux (pidfd_open).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

from harness.forking import die_with_parent

GRACE_SECONDS = 5.0
"""What a server has to end by itself once it is asked to."""


def tend(command: Sequence[str]) -> int:
    """Runs the command until it or standard input ends; its exit code, negative for a signal."""
    process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, process_group=0, preexec_fn=die_with_parent)
    try:
        running = os.pidfd_open(process.pid)
        select.select([running, sys.stdin.fileno()], [], [])
        if process.poll() is None:
            _signal(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
    finally:
        _signal(process.pid, signal.SIGKILL)  # the whole group: what it has started may outlive it
    return process.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    tend(sys.argv[1:])
