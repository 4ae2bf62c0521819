"""The parent's side of the fork server: it starts one server per environment, runs one job at a
time, and kills a child that runs past its time limit.

The parent waits blocking on the server's pipe; it wakes only for an event or a deadline, so that it uses no CPU while a child
is timed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness import plugins
from harness.child import events
from harness.child.events import Begun, Event, Exited, JobRequest, Ready, Started
from harness.child.failures import Exit
from harness.errors import HarnessError
from harness.files import tail
from harness.plugins import Plugin


class ServerFailed(HarnessError):
    """The fork server did not start or died; carries the tail of its log."""


class ServerSlow(HarnessError):
    """The fork server was still at its imports when its time was over: a busy machine, which says nothing of its environment."""


START_SECONDS = 600.0
"""What a server has to import its modules, on a cold disk."""


class Server:
    """One fork server: `python -m harness.child.serve MODULES` in an environment's interpreter."""

    def __init__(
        self, *, python: Path, modules: Sequence[str], home: Path, env: Mapping[str, str | None], offered: Sequence[Plugin] = ()
    ) -> None:
        """`env` is laid over this process's own variables; one that is None is taken away. `home` gets the server's log and a
        folder with nothing but the `harness` package and those of the `offered` rows of other packages, the only thing put on its
        path."""
        self._python = python
        self._modules = list(modules)
        self._home = home
        self._env = dict(env)
        self._offered = list(offered)
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._child: int | None = None

    def start(self) -> Ready:
        """Starts the server and waits until it has imported its modules (at most `START_SECONDS`); returns what it then says.
        ServerFailed where it says nothing of the kind, ServerSlow where it is still at it."""
        path = harness_alone(self._home, plugins.links(self._offered))
        laid = {**os.environ, **self._env, "PYTHONPATH": str(path), "PYTHONUNBUFFERED": "1"}
        laid[plugins.CHILDS] = plugins.for_child(self._offered)
        env = {name: value for name, value in laid.items() if value is not None}
        with (self._home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._python), "-m", "harness.child.serve", *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=path,  # `python -m` puts the folder it stands in on the path
                env=env,
                start_new_session=True,  # Ctrl-C is for the parent alone
            )
        self._buffer = b""
        event = self._event(time.monotonic() + START_SECONDS)
        if not isinstance(event, Ready):
            said, running = self.log_tail(), event is None and self._process.poll() is None
            self.close()
            if running:
                raise ServerSlow(
                    f"{self._python} has not imported {', '.join(self._modules) or 'its modules'} after {START_SECONDS / 60:g} "
                    "minutes: the machine is busy, or its disk is slow; what is measured is kept: run again when it is idle"
                )
            raise ServerFailed(f"{self._python} cannot serve jobs; its log ends with:\n{said}")
        return event

    def run(self, request: JobRequest, on_event: Callable[[Event], None], timeout: float) -> Exit:
        """Runs a job in a child. Its deadline, in seconds, starts anew with every question. Interrupts kill the child first."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(events.request_line(request))
        self._process.stdin.flush()
        deadline, timed_out = time.monotonic() + timeout, False
        try:
            while True:
                event = self._event(deadline)
                if event is None:
                    if self._process.poll() is not None:  # the server itself is gone, and its child with it
                        code = self._process.returncode
                        self.close()
                        return Exit(code=code or 1, timed_out=timed_out)  # 0 would be a child that ended well
                    timed_out, deadline = True, time.monotonic() + 60
                    self._kill()
                elif isinstance(event, Started):
                    self._child = event.pid
                elif isinstance(event, Exited):
                    self._child = None
                    return Exit(code=event.code, timed_out=timed_out)
                else:
                    if isinstance(event, Begun) and not timed_out:
                        deadline = time.monotonic() + timeout
                    on_event(event)
        except BaseException:
            self._kill()
            self.close()
            raise

    def log_tail(self) -> str:
        return tail(self._home / "server.log")

    def close(self) -> None:
        """Ends the server; its child, if any, dies with it."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _kill(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)

    def _event(self, deadline: float) -> Event | None:
        """The next event, or None at the deadline or when the server has closed its pipe."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return None
                chunk = os.read(fd, 1 << 16)
                if not chunk:
                    self._process.wait()
                    return None
                self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return events.read_event(line)


def harness_alone(home: Path, links: Mapping[Path, Path] | None = None) -> Path:
    """A folder in `home` to put on an interpreter's path: `harness` can be imported from it, and what `links` names (a place
    below it -> a package or file), and nothing that lies beside them."""
    path = home / "path"
    path.mkdir(parents=True, exist_ok=True)
    for name, target in {Path("harness"): Path(__file__).parents[1], **(links or {})}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (path / name).symlink_to(target)
    return path
