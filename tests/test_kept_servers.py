"""Servers that a command starts, as real processes: they end when they are to, with all that they started, and leave a log."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from harness.runtimes import keeper, kept_server
from harness.runtimes.keeper import descendants
from harness.runtimes.kept_server import KeptServer, NotStarted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="servers are kept on Linux only")
ROOT = Path(__file__).parents[1]
LITTLE = ROOT / "tests" / "little_server.py"
Start = Callable[..., KeptServer]


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(*words: str, secrets: tuple[str, ...] = (), env: dict[str, str | None] | None = None) -> KeptServer:
            command = [sys.executable, str(LITTLE), str(free_port()), *words]
            server = KeptServer(command, path=ROOT, log=tmp_path / "kept" / "server.log", env=env or {}, secrets=secrets)
            stack.callback(server.stop)
            return server

        yield started


def until(what: Callable[[], bool]) -> None:
    """Waits for something that is bound to come; a minute is for a machine that others use too."""
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"


def family_of(log: Path) -> list[int]:
    """The processes that a server of a `family` says it has started."""
    until(lambda: log.is_file() and "ready" in log.read_text())
    found = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith(("child ", "grandchild "))]
    assert len(found) == 2
    return found


def test_a_server_is_asked_to_end_and_its_family_ends_with_it(start: Start) -> None:
    server = start("family")
    family = family_of(server.log)
    assert all(map(alive, [server.pid, *family]))
    assert server.code() is None
    server.stop()
    assert not any(map(alive, [server.pid, *family]))
    assert "ready" in server.log_tail()


def test_a_server_that_does_not_end_when_asked_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_server, "GRACE_SECONDS", 0.3)
    server = start("stubborn", "family")
    family = family_of(server.log)
    server.stop()
    assert not any(map(alive, [server.pid, *family]))


def test_a_server_that_leaves_tells_its_code_and_what_it_said_last(start: Start) -> None:
    server = start("broken")
    assert server.code(60) == 3
    assert server.code() == 3
    assert server.log_tail().endswith("cannot find the weights\n")


def test_a_server_that_is_killed_takes_what_it_left_behind_with_it(start: Start) -> None:
    server = start("family")
    family = family_of(server.log)
    os.kill(server.pid, signal.SIGKILL)
    assert server.code(60) == -signal.SIGKILL
    assert not any(map(alive, family))


def test_a_server_whose_keeper_is_killed_does_not_live_on(start: Start) -> None:
    server = start()
    os.kill(server._keeper.pid, signal.SIGKILL)
    until(lambda: not alive(server.pid))
    assert server.code(5) == -signal.SIGKILL


def test_a_program_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match="no-such-server: No such file or directory"):
        KeptServer(["no-such-server"], path=ROOT, log=tmp_path / "log", env={}, secrets=())


def test_secrets_never_reach_the_log(start: Start) -> None:
    server = start("tells", env={"SERVER_KEY": "swordfish-1234"}, secrets=("swordfish-1234",))
    until(lambda: "ready" in server.log.read_text())
    assert "my key is [hidden]." in server.log.read_text()
    assert "swordfish" not in server.log.read_text()


def test_a_secret_that_is_cut_in_two_by_the_pipe_is_hidden_too(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = keeper._Log(file, ("swordfish",))
        log.write(b"it is sword")
        log.write(b"fish\nend")
        log.close()
    assert (tmp_path / "log").read_bytes() == b"it is [hidden]\nend\n"


def test_a_log_without_end_is_cut_and_the_server_lives_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "MOST_LOG_BYTES", 1 << 20)
    with (tmp_path / "log").open("wb") as file:
        log = keeper._Log(file, ())
        for _ in range(50):
            log.write(b"x" * 99_999 + b"\n")
        log.close()
    kept = (tmp_path / "log").read_bytes()
    assert len(kept) < 1_200_000
    assert kept.endswith(b"... the log is cut here, at 1 MiB\n")


def test_a_server_that_never_stops_talking_is_ended_all_the_same(start: Start) -> None:
    server = start("chatty", "family")
    family = family_of(server.log)
    server.stop()
    assert not any(map(alive, [server.pid, *family]))


def test_the_variables_of_a_server_are_ours_and_not_its_keepers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/the/user")
    server = start("mute")
    until(lambda: "mute" in server.log.read_text())
    variables = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
    assert b"PYTHONPATH=/of/the/user" in variables


PARENT = """
import sys, time
from pathlib import Path
from harness.runtimes.kept_server import KeptServer
root, servers = Path({root!r}), []
for port in {ports!r}:
    command = [sys.executable, {little!r}, port, "family", "stubborn"]
    servers.append(KeptServer(command, path={path!r}, log=root / port, env={{}}, secrets=()))
print(*(server.pid for server in servers), flush=True)
time.sleep(600)
"""


def test_two_servers_of_a_parent_that_is_killed_do_not_survive_it_nor_does_anything_that_they_started(tmp_path: Path) -> None:
    ports = [str(free_port()) for _ in range(2)]
    code = textwrap.dedent(PARENT).format(little=str(LITTLE), root=str(tmp_path), path=str(ROOT), ports=ports)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        servers = [int(word) for word in parent.stdout.readline().split()]
        everything = [*servers, *(pid for port in ports for pid in family_of(tmp_path / port)), *descendants(parent.pid)]
        assert len(set(everything)) >= 8  # two keepers, two servers, two children, two grandchildren
        assert all(map(alive, everything))
        parent.kill()
        until(lambda: not any(map(alive, everything)))
