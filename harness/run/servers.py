"""The environments that a run's cells need, and one fork server in each, started when the first job needs it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import envs, plugins
from harness.child.events import Event, JobRequest
from harness.child.failures import Exit
from harness.child.fork_server import Server, ServerFailed
from harness.engines import ENGINES
from harness.errors import BadInput
from harness.methods import METHODS
from harness.models import find
from harness.probes import PROBES
from harness.run.identity import Inputs
from harness.run.observer import Observer
from harness.spec import DATA_SETS, Cell, Failure
from harness.suite.plan import Plan


class Servers:
    """Builds and holds environments, starts and keeps servers, until `close`. Each is tried once per run: what failed stays
    failed, and costs the cells that need it."""

    def __init__(self, inputs: Inputs, observer: Observer, *, threads: int, home: Path) -> None:
        """`home` gets the servers' logs. `prepare` may be set to a file with the work that cells share (see `child.job`)."""
        self._inputs = inputs
        self._plan = inputs.plan
        self._observer = observer
        self._threads = threads
        self._home = home
        self.prepare: Path | None = None
        self._environments: dict[str, envs.Ready] = {}
        self._unbuilt: dict[str, Failure] = {}
        self._servers: dict[str, Server] = {}
        self._broken: dict[str, str] = {}
        self._started: list[tuple[str, float]] = []

    def take_started(self) -> list[tuple[str, float]]:
        """The environments whose processes were started since this was asked last, each with the seconds that it took."""
        started, self._started = self._started, []
        return started

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
        for environment in self._environments.values():
            environment.close()

    def environment(self, name: str) -> envs.Ready | None:
        """An environment of its own that this run holds; None for main, and before a cell needed it."""
        return self._environments.get(name)

    def lacking(self, cell: Cell) -> Failure | None:
        """None when the cell's method can run: all is there in the main environment, or its own is built (now, if need be)
        and the method passed its health check there; the same of an engine with an environment of its own."""
        method = METHODS[cell.method]
        missing = envs.missing(method)
        if missing is not None:
            message = f"{method.name} needs {', '.join(missing.packages)}, not installed here; add it with: {missing.install}"
            return Failure(kind="environment", phase="environment", message=message)
        for name in envs.made_and_answered(cell, self._plan.device):
            member = method.name if name == method.environment else cell.running.engine
            wrong = None if name == envs.MAIN else self._lacking(cell, name, member)
            if wrong is not None:
                return wrong
        return None

    def _lacking(self, cell: Cell, name: str, member: str) -> Failure | None:
        """Why a method or an engine does not work in its own environment, which is built now if need be."""
        if name not in self._environments and name not in self._unbuilt:
            self._observer.doing(cell, f"environment {name}")
            self._obtain(name)
        if name in self._unbuilt:
            return self._unbuilt[name]
        self._observer.doing(cell, f"environment {name}")
        return self._environments[name].unwell(member, self._observer.note)

    def run(
        self,
        cell: Cell,
        job: Path,
        timeout: float,
        on_event: Callable[[Event], None] = lambda event: None,
        *,
        quantizes: bool = False,
    ) -> Exit | Failure:
        """Runs a job in the environment that quantizes with the cell's method, or in the one that answers."""
        method = METHODS[cell.method]
        environment = method.environment if quantizes else envs.answering(cell, self._plan.device)
        request = JobRequest(job=job)
        if environment == envs.loading(method):  # only the loading environment has these modules
            request = JobRequest(job=job, branch_modules=method.branch_modules, prepare=self.prepare)
        try:
            return self._server(environment).run(request, on_event, timeout)
        except ServerFailed as error:
            self._broken[environment] = str(error)
            return Failure(kind="environment", phase="environment", message=str(error))

    def _obtain(self, name: str) -> None:
        try:
            ready = envs.obtain(envs.find(name), self._inputs.cache, self._observer.note)
        except envs.BuildFailed as error:
            self._unbuilt[name] = Failure(kind="environment", phase="environment", message=str(error), log_tail=error.log_tail)
        else:
            self._environments[name], self._inputs.environments[name] = ready, ready.packages

    def _server(self, environment: str) -> Server:
        if environment in self._broken:
            raise ServerFailed(self._broken[environment])
        if environment not in self._servers:
            self._start(environment)
        return self._servers[environment]

    def _start(self, environment: str) -> None:
        python = Path(sys.executable) if environment == envs.MAIN else self._environments[environment].python
        network = _network(self._plan)
        env: dict[str, str | None] = {"OMP_NUM_THREADS": str(self._threads), "TOKENIZERS_PARALLELISM": "false", **network}
        if environment != envs.MAIN:  # tools that its packages call (a compiler's ninja) are those that came with them
            env["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        modules = self._modules(environment)
        home, offered = self._home / f"server-{environment}", self._offered(environment)
        server = Server(python=python, modules=modules, home=home, env=env, offered=offered)
        self._servers[environment] = server
        begun = time.monotonic()
        ready = server.start()
        self._started.append((environment, time.monotonic() - begun))
        for name, why in ready.missing.items():
            self._observer.note(f"{name} cannot be imported in the {environment} environment: {why}")
        if self._plan.device.startswith("cuda") and "torch" in modules and not ready.cuda:
            if environment != envs.MAIN:
                raise ServerFailed(f"the torch of the environment {environment!r} sees no CUDA device; use --device cpu")
            raise BadInput(
                f"device {self._plan.device}: torch sees no CUDA device; use --device cpu, or install a CUDA build of torch"
            )

    def _offered(self, environment: str) -> Sequence[plugins.Plugin]:
        """The rows of other packages that children of an environment may need: in the main one all, as here."""
        if environment == envs.MAIN:
            return plugins.load().plugins
        cells = [p.cell for p in self._plan.cells]
        there = {cell.method for cell in cells if environment in envs.made_and_answered(cell, self._plan.device)}
        return plugins.used(there, self._plan.suite.probes)

    def _modules(self, environment: str) -> list[str]:
        """What the server imports once: what the engines, methods and probes of this plan would import in every child."""
        cells = [p.cell for p in self._plan.cells if envs.missing(METHODS[p.cell.method]) is None]
        measured = [cell for cell in cells if envs.answering(cell, self._plan.device) == environment]
        making = [cell for cell in cells if METHODS[cell.method].environment == environment]
        names = [name for cell in measured for name in ENGINES[cell.running.engine].modules]
        names += [name for cell in making for name in ENGINES[METHODS[cell.method].engine].modules]
        methods = dict.fromkeys(cell.method for cell in measured if envs.loading(METHODS[cell.method]) == environment)
        names += [name for method in methods for name in METHODS[method].preload]
        if any(ENGINES[cell.running.engine].modules for cell in measured):
            names += [name for probe in self._plan.suite.probes for name in PROBES[probe].preload]
        if "transformers" in names and environment == envs.MAIN:
            names += ["harness.engines.warm", *find.modeling_modules(p.cell.model for p in self._plan.cells)]
        return list(dict.fromkeys(names))


_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables in which people keep their token for the hub."""


def _network(plan: Plan) -> dict[str, str | None]:
    """Models and texts are here before a child starts, so only tasks that lm-eval fetches need the hub. Otherwise children
    are told that there is none, and get no token: libraries ask it about local folders too, and wait minutes for an answer behind
    a firewall."""
    tasks = {q.subject: q.options for p in plan.cells for q in p.questions if q.probe == "tasks"}
    fetched = [name for name, options in tasks.items() if DATA_SETS in options or name not in plan.task_folders]
    return {} if fetched else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **dict.fromkeys(_TOKENS)}
