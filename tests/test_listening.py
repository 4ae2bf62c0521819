"""Whose process listens on a port, and what memory it takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import Unsupported
from harness.measure import memory_phases, processes

linux = pytest.mark.skipif(memory_phases.resident() is None, reason="/proc is Linux's")


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("localhost", True), ("192.0.2.1", False), ("x" * 300, False)]
)
def test_only_the_loopback_is_this_machine(host: str, expected: bool) -> None:
    assert processes.local(host) is expected


@linux
def test_the_owner_of_a_listening_port_is_found_and_nobody_listens_on_a_closed_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert processes.owners(port) == [os.getpid()]
    assert processes.owners(port) == []


@linux
def test_every_process_that_shares_a_listening_socket_owns_it() -> None:
    """A server that forks its workers has all of them listen on one socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = "import sys; print('held', flush=True); sys.stdin.read()"
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(listener.fileno(),),
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            assert processes.owners(port) == sorted((os.getpid(), child.pid))


@linux
def test_a_family_holds_the_children_and_its_memory_is_theirs_too() -> None:
    code = "import sys; held = b'x' * (48 << 20); print('held', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert child.pid in processes.family([os.getpid()])
        alone, both = processes.resident([child.pid]), processes.resident([os.getpid(), child.pid])
        assert alone.processes == (child.pid,)
        assert 48 << 20 <= alone.rss <= alone.peak < 96 << 20
        assert alone.pss is not None
        assert 48 << 20 <= alone.pss <= alone.rss
        assert both.rss > alone.rss


def test_processes_that_cannot_be_read_are_unsupported(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="cannot be read"):
        processes.resident([1, 2], tmp_path)


def test_without_permission_to_see_shares_the_resident_set_is_left(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("VmHWM:\t     900 kB\nVmRSS:\t     700 kB\n")
    found = processes.resident([7], tmp_path)
    assert (found.pss, found.rss, found.peak) == (None, 700 * 1024, 900 * 1024)
