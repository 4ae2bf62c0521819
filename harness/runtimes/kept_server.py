"""The parent's side of a server that a command starts: begun, asked whether it lives, ended. Its keeper (`keeper.py`) sees to it
that nothing of it outlives this process, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.decode import DecodeError, decode
from harness.errors import HarnessError
from harness.files import tail
from harness.runtimes.keeper import Order, Told

GRACE_SECONDS = 10.0
"""A server that is asked to end has so long to do it."""

KEEPER_SECONDS = 60.0
"""What the keeper has to start: an interpreter with the standard library, on a busy machine."""


class NotStarted(HarnessError):
    """The command could not be started; says why."""


class KeptServer:
    """One server. Made running; `stop` ends it."""

    def __init__(
        self, command: Sequence[str], *, path: Path, log: Path, env: Mapping[str, str | None], secrets: Sequence[str]
    ) -> None:
        """Starts the command in the folder that this process stands in. NotStarted where there is no such program. From `path`
        the keeper imports the `harness` package; `log` gets what the server says, without `secrets`; `env` is laid over this
        process's variables."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {command[0]} ({len(command) - 1} arguments)\n".encode())
        self.log = log
        self._buffer = b""
        self._code: int | None = None
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "harness.runtimes.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=path,  # `python -m` puts the folder it stands in on the path
            env={**os.environ, "PYTHONPATH": str(path)},
            start_new_session=True,  # Ctrl-C is for the parent alone
        )
        order = Order(
            command=tuple(command),
            cwd=os.getcwd(),
            log=str(log),
            env={"PYTHONPATH": os.environ.get("PYTHONPATH"), **env},
            secrets=tuple(secrets),
            grace_seconds=GRACE_SECONDS,
        )
        self._write(json.dumps(asdict(order)))
        told = self._heard(KEEPER_SECONDS)
        if told is None or told.pid is None:
            self.stop()
            raise NotStarted(told.error if told is not None and told.error else "its keeper did not start it")
        self.pid = told.pid

    def code(self, within: float = 0.0) -> int | None:
        """The server's exit code, negative for a signal; None while it runs. Waits so many seconds for its end."""
        if self._code is None:
            told = self._heard(within)
            if told is not None:
                self._code = told.code
            elif self._keeper.poll() is not None:  # it was killed, and the kernel has killed the server
                self._code = -signal.SIGKILL
                self._kill_group()
        return self._code

    def log_tail(self) -> str:
        """The last words of the server."""
        return tail(self.log)

    def stop(self) -> None:
        """Ends the server and all that it has started, kindly at first."""
        if self._keeper.poll() is None:
            if self._code is None:
                self._write("stop")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(GRACE_SECONDS + 5)
        self._close()
        try:
            self._keeper.wait(5)  # its parent has closed the pipe, so it kills
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
            self._kill_group()

    def _kill_group(self) -> None:
        """What a keeper that was killed itself may have left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
            os.killpg(self.pid, signal.SIGKILL)

    def _close(self) -> None:
        for stream in (self._keeper.stdin, self._keeper.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _write(self, line: str) -> None:
        assert self._keeper.stdin is not None
        with contextlib.suppress(OSError):  # the keeper is gone, which `code` finds out
            self._keeper.stdin.write(f"{line}\n".encode())
            self._keeper.stdin.flush()

    def _heard(self, within: float) -> Told | None:
        """The keeper's next line; None where none comes in so many seconds, or no more will."""
        stream = self._keeper.stdout
        if stream is None or stream.closed:
            return None
        deadline = time.monotonic() + within
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(stream.fileno(), 1 << 16)
                if not chunk:
                    return None
                self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            return decode(Told, json.loads(line))
        except (ValueError, DecodeError):
            return None
