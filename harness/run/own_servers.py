"""Servers that a suite's commands start: one at a time, for the cell that is measured on it, and never longer.

A server is started when its cell is asked something, waited for until it lists its models, started anew where it has died, and
ended when its cell is done. What it says is kept in the cache (`served/`), without secrets. Whatever goes wrong is the failure of
a cell, with the last words of the server. That no server outlives this process is its keeper's work (`runtimes/keeper.py`).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from harness.child.fork_server import harness_alone
from harness.errors import BadInput
from harness.measure import processes
from harness.methods import _serve_command
from harness.run.identity import Inputs
from harness.run.observer import Observer
from harness.runtimes.kept_server import KeptServer, NotStarted
from harness.spec import Failure, FailureKind, Served
from harness.suite.plan import Plan, PlannedCell

PERMISSION = "QUANT_HARNESS_SERVE"
"""The variable that permits it, where it is 1: a suite may come from anywhere, and a command may do anything."""

STARTS = 3
"""A cell's server is started so often. One that dies of every question is not asked all of them."""

LAST_WORDS_SECONDS = 3.0
"""After a failed request a server that is dying has so long to be gone."""

_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


def check_permission(plan: Plan) -> None:
    """BadInput where a plan starts servers and nobody has permitted it, or no keeper can run here."""
    commands = dict.fromkeys(p.cell.origin.serve for p in plan.cells if isinstance(p.cell.origin, Served) and p.cell.origin.serve)
    if not commands:
        return
    if sys.platform != "linux":
        raise BadInput(f"a server can be started on Linux only, not on {sys.platform}; start it yourself and take `serve` out")
    if os.environ.get(PERMISSION) != "1":
        shown = "\n".join(f"  {' '.join(command.split())}" for command in commands)
        raise BadInput(f"{plan.file}: this suite starts programs:\n{shown}\nif you know them, permit it: export {PERMISSION}=1")


class OwnServers:
    """Starts and ends servers. `artifact` makes what a server is to serve; `started` is told the seconds that a start took."""

    def __init__(
        self,
        inputs: Inputs,
        observer: Observer,
        *,
        threads: int,
        home: Path,
        artifact: Callable[[PlannedCell], Path | Failure],
        started: Callable[[float], None],
    ) -> None:
        self._inputs, self._observer = inputs, observer
        self._threads, self._home = threads, home
        self._artifact, self._started = artifact, started
        self._cell: PlannedCell | None = None
        self._server: KeptServer | None = None
        self._starts = 0

    def up(self, planned: PlannedCell) -> Failure | None:
        """Has the cell's server run, or says why it does not. Nothing is done for a cell that needs none."""
        origin = planned.cell.origin
        if not isinstance(origin, Served) or not origin.serve:
            return None
        if self._cell != planned:
            self.stop()
            self._cell, self._starts = planned, 0
        if self._server is not None and self._server.code() is None:
            return None
        died = self._died(Failure(kind="crash", phase="serve", message="")) if self._server is not None else None
        self._end()
        if self._starts == STARTS and died is not None:
            return replace(died, message=f"{died.message}; it has died {STARTS} times and is not started again")
        self._starts += 1
        return self._start(planned, origin)

    def anew(self, planned: PlannedCell) -> None:
        """Ends the cell's server if it runs, so that what is asked next meets one that has done nothing before."""
        if self._cell == planned and self._server is not None:
            self._end()
            self._starts = 0

    def blamed(self, planned: PlannedCell, failure: Failure | None) -> Failure | None:
        """The failure of a question, which is the server's own where that has died of it."""
        if failure is None or self._cell != planned or self._server is None:
            return failure
        within = 0.0 if failure.kind in ("unsupported", "input", "nonfinite") else LAST_WORDS_SECONDS
        return failure if self._server.code(within) is None else self._died(failure)

    def stop(self) -> None:
        """Ends the server that runs."""
        self._end()
        self._cell = None

    def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def _start(self, planned: PlannedCell, origin: Served) -> Failure | None:
        url = urlsplit(origin.url)
        host, port = str(url.hostname), url.port or 0
        values = self._values(planned, host, port)
        if isinstance(values, Failure):
            return values
        taken = _taken(host, port)
        if taken is not None:
            return _failed("environment", taken)
        begun = time.monotonic()
        self._observer.doing(planned.cell, "server")
        log = self._inputs.cache / "served" / f"{self._inputs.artifact(planned.cell).name}.log"
        try:
            command = _serve_command.filled(origin.serve, values)
            self._server = KeptServer(
                command, path=harness_alone(self._home / "keeper"), log=log, env={}, secrets=_secrets(origin)
            )
        except (NotStarted, BadInput) as error:
            return _failed("environment", f"the server cannot be started: {error}")
        failure = self._wait(origin, port)
        self._started(time.monotonic() - begun)
        if failure is not None:
            self._end()
        return failure

    def _values(self, planned: PlannedCell, host: str, port: int) -> Mapping[str, str] | Failure:
        """What the placeholders stand for."""
        assert isinstance(planned.cell.origin, Served)
        values = {"host": host, "port": str(port), "name": planned.cell.origin.model, "threads": str(self._threads)}
        values["model"] = str(self._inputs.model_dirs[planned.cell.model.name].resolve())
        served = self._inputs.served(planned.cell)
        if served is None:
            return values
        made = self._artifact(served)
        if isinstance(made, Failure):
            return replace(made, phase="serve", message=f"what it is to serve ({served.cell.label}) is not there: {made.message}")
        files = sorted(made.glob("*.gguf"))
        return {**values, "artifact": str(files[0].absolute() if len(files) == 1 else made.absolute())}

    def _wait(self, origin: Served, port: int) -> Failure | None:
        """Until the server lists its models, dies, or has had its time."""
        server = self._server
        assert server is not None
        deadline = time.monotonic() + origin.wait_seconds
        while time.monotonic() < deadline:
            if server.code(0.25) is not None:
                return self._died(Failure(kind="crash", phase="serve", message="before it answered"))
            if _answers(origin.url):
                if set(processes.owners(port)) & set(processes.family([server.pid])):
                    return None
                return _failed("environment", f"another process answers on port {port}; write another port into `url`")
        message = f"the server has not answered within {origin.wait_seconds:g} s; give it longer with `wait`{_quoted(server)}"
        return Failure(kind="timeout", phase="serve", message=message, log_tail=server.log_tail())

    def _died(self, failure: Failure) -> Failure:
        """The failure of a server that is no more, with its last words. `failure` is what was seen of it."""
        assert self._server is not None
        code = self._server.code() or 0
        kind: FailureKind = "crash"
        how = f"left with exit code {code}"
        if code == -signal.SIGKILL:
            kind, how = "oom", "was killed by signal 9, almost always by the kernel's out-of-memory killer"
        elif code < 0:
            how = f"died of {signal.Signals(-code).name}"
        seen = f" ({failure.message})" if failure.message else ""
        message = f"the server {how}{seen}{_quoted(self._server)}"
        return Failure(kind=kind, phase=failure.phase, message=message, log_tail=self._server.log_tail())


def _failed(kind: FailureKind, message: str) -> Failure:
    return Failure(kind=kind, phase="serve", message=message)


def _quoted(server: KeptServer) -> str:
    """Where the log is, and its last line that says something."""
    lines = [line.strip() for line in server.log_tail().splitlines() if line.strip()]
    last = "".join(c if c.isprintable() else " " for c in lines[-1])[:300] if lines else ""
    return f"; its log ends with {last!r} and is kept in {server.log}"


def _secrets(origin: Served) -> list[str]:
    """What must not reach a log: the server's own token, and all that the variables of this process call a secret."""
    named = {name: value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8}
    own = os.environ.get(origin.token_env, "").strip() if origin.token_env else ""
    return list(dict.fromkeys([*([own] if own else []), *named.values()]))


def _taken(host: str, port: int) -> str | None:
    """Who has the port, or None."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(kind, socket.SOCK_STREAM)) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            who = processes.owners(port)
            by = f" by process {', '.join(map(str, who))}" if who else ""
            return f"port {port} is in use{by} ({error.strerror}); end that, or write another port into `url`"
    return None


def _answers(url: str) -> bool:
    """Whether a server lists its models and does not say that it is still loading (llama-server: 503 of /health)."""
    return _status(url, f"{urlsplit(url).path.rstrip('/')}/models") in (200, 401, 403) and _status(url, "/health") != 503


def _status(url: str, path: str) -> int | None:
    """The status that a GET is answered with; None where nobody answers. A token is not needed for it: who asks for one is up."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=5.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
