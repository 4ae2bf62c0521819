"""A server that the harness starts ends with whoever asked for it, with all that it has started itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVER = """
import os, pathlib, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {other.pid}")
time.sleep(600)
"""

HOLDER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "harness.runtimes.tended", sys.executable, "-c", *sys.argv[1:]], stdin=subprocess.PIPE)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd_open is Linux's")


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def started(path: Path) -> list[int]:
    deadline = time.monotonic() + 60
    while not path.is_file() or len(path.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(pid) for pid in path.read_text().split()]


def until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, f"left behind: {[pid for pid in pids if not gone(pid)]}"
        time.sleep(0.05)


def test_nothing_is_left_of_a_server_whose_asker_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, SERVER, str(tmp_path / "pids")])
    try:
        pids = started(tmp_path / "pids")
        assert not any(map(gone, pids))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    until_gone(pids)


def test_it_ends_once_its_input_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.runtimes.tended", sys.executable, "-c", SERVER, str(tmp_path / "pids")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    pids = started(tmp_path / "pids")
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)
    until_gone(pids)


def test_it_ends_with_its_server_and_takes_the_rest_along(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.runtimes.tended", sys.executable, "-c", SERVER, str(tmp_path / "pids")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        pids = started(tmp_path / "pids")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGKILL)
        process.wait(60)
    until_gone(pids)
