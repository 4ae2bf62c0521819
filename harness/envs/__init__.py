"""Which interpreter runs which method: the main environment, or one of its own.

A method whose requirements fit together with all others shares the main environment (this interpreter). What it needs there
comes with an extra of this distribution; `missing` names the packages that are not installed and the command that adds them.

A method that conflicts (it pins another torch or transformers) names an environment of its own, which is built on demand from
the package index alone. What all methods of one name require is one requirement set, and one virtual environment exists per
distinct set; see disk.py for how it lies in the cache and who may touch it, build.py for how it is installed, health.py for
how it is proved that a method works there.

The version of the harness is no part of that set, because the harness is not installed there: its children get a path that
holds the `harness` package alone, so what they import at the top is the standard library.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal

from harness import plugins
from harness.engines import ENGINES
from harness.envs import disk, health
from harness.envs.build import BuildFailed, StepFailed, build, failed_since, listing
from harness.envs.disk import Health, Lock, Tell
from harness.errors import BadInput, UnknownName
from harness.measure import machine
from harness.methods import METHODS
from harness.methods.base import Method
from harness.spec import Cell, Failure, digest

__all__ = [
    "MAIN",
    "BuildFailed",
    "Environment",
    "Missing",
    "Ready",
    "Status",
    "answering",
    "check",
    "environments",
    "find",
    "loading",
    "log",
    "made_and_answered",
    "missing",
    "needed",
    "obtain",
    "own",
    "packages",
    "place",
    "remove",
    "remove_unused",
    "size_bytes",
    "status",
    "unused",
]

MAIN = "main"

UNQUANTIZED = "bf16"
"""The method whose artifact an engine's health check loads."""

State = Literal["ready", "incomplete", "not built", "broken"]
"""`incomplete`: the main environment lacks packages of some methods; the other three are of environments of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What the main environment lacks for a method, and the command that adds it."""

    packages: tuple[str, ...]
    install: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A name that methods give, with all that they require together; or an engine, for all artifacts that it runs. `absent`: what
    comes with the required packages and is taken away again."""

    name: str
    requirements: tuple[str, ...]
    methods: tuple[str, ...]
    engines: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """What is tried in it: its methods and engines, by their names."""
        return (*self.methods, *self.engines)

    @property
    def digest(self) -> str:
        """Of what decides which packages can be installed. Which versions were is known afterwards, and locked."""
        tag = sys.implementation.cache_tag
        away = {"absent": self.absent} if self.absent else {}
        wanted = {"requirements": self.requirements, "python": tag, "platform": sysconfig.get_platform(), "layout": 1}
        return digest({**wanted, **away})[:24]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How an environment stands here. `detail` is what to do or what is wrong. `unwell`: the methods of a built one that failed
    their health check, with the reason; its others work all the same."""

    environment: Environment
    state: State
    detail: str = ""
    unwell: Mapping[str, str] = field(default_factory=dict)


def environments() -> dict[str, Environment]:
    """All environments that methods and engines name, those of other packages included, the main one first."""
    plugins.load()
    known = {}
    for name in dict.fromkeys([MAIN, *(m.environment for m in METHODS.values())]):
        methods = [m for m in METHODS.values() if m.environment == name]
        requirements = sorted({r for m in methods for r in m.requirements})
        known[name] = Environment(name=name, requirements=tuple(requirements), methods=tuple(m.name for m in methods))
    for engine in ENGINES.values():
        for place in engine.places.values():
            known[place.environment] = Environment(
                name=place.environment,
                requirements=tuple(sorted(place.requirements)),
                methods=(),
                engines=(engine.name,),
                absent=place.absent,
            )
    return known


def find(name: str) -> Environment:
    """The environment of that name; UnknownName when no method names it."""
    known = environments()
    if name not in known:
        raise UnknownName("environment", name, known)
    return known[name]


def own(name: str) -> Environment:
    """Like `find`; BadInput for the main environment, which is this interpreter and neither built nor removed here."""
    environment = find(name)
    if name == MAIN:
        raise BadInput(
            "the main environment is the Python that runs quant-harness, which is neither built nor removed here; "
            "`quant-harness methods` shows the commands that add to it"
        )
    return environment


def needed(cells: Iterable[Cell], device: str) -> list[Environment]:
    """The environments other than main in which some cells are made or answered, each once."""
    names = dict.fromkeys(name for cell in cells for name in made_and_answered(cell, device))
    return [find(name) for name in names if name != MAIN]


def made_and_answered(cell: Cell, device: str) -> tuple[str, ...]:
    """The names of the environments that a cell needs: the one that writes its artifact, and the one that is asked."""
    return tuple(dict.fromkeys([METHODS[cell.method].environment, answering(cell, device)]))


def answering(cell: Cell, device: str) -> str:
    """The name of the environment that a cell is measured in: its engine's own, or the one that loads its method's artifacts."""
    place = ENGINES[cell.running.engine].place(device)
    return loading(METHODS[cell.method]) if place is None else place.environment


def missing(method: Method) -> Missing | None:
    """What the main environment lacks for a method of it; None when all is there, or when the method has an environment of
    its own. Of a method whose artifacts another one loads, the latter's. Looks for packages without importing them."""
    method = METHODS.get(method.loaded_by, method)
    if method.environment != MAIN:
        return None
    absent = tuple(name for name in method.modules if not _importable(name))
    if not absent:
        return None
    install = (
        f'pip install "llm-quant-harness[{method.extra}]"' if method.extra else f"pip install {' '.join(method.requirements)}"
    )
    return Missing(packages=absent, install=install)


def loading(method: Method) -> str:
    """The name of the environment that a method's artifacts are loaded and measured in."""
    return MAIN if method.loaded_by else method.environment


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a submodule of a package that is not there
        return False


def status(environment: Environment, cache: Path) -> Status:
    """How an environment stands, from what lies on disk; nothing is started."""
    if environment.name == MAIN:
        lacking = {name: absent for name in environment.methods if (absent := missing(METHODS[name])) is not None}
        detail = "; ".join(f"{name}: {absent.install}" for name, absent in lacking.items())
        return Status(environment=environment, state="incomplete" if lacking else "ready", detail=detail)
    folder = place(environment, cache)
    lock = disk.ready(folder)
    if lock is not None:
        unwell = {name: health.message for name, health in lock.health.items() if not health.ok}
        detail = "; ".join(f"{name}: {message}" for name, message in unwell.items())
        return Status(environment=environment, state="broken" if unwell else "ready", detail=detail, unwell=unwell)
    builder = disk.builder(environment.digest, cache)
    if builder is not None or not folder.is_dir():
        return Status(environment=environment, state="not built", detail=builder or f"quant-harness env build {environment.name}")
    failed = disk.read(disk.FailedBuild, folder / disk.FAILED)
    interrupted = "its build was interrupted, or its Python is gone; the next run or build makes it anew"
    detail = interrupted if failed is None else failed.message
    return Status(environment=environment, state="broken", detail=detail)


def size_bytes(environment: Environment, cache: Path) -> int | None:
    """What an environment of its own takes on disk; None for main, and for one of which nothing is there."""
    folder = place(environment, cache)
    return disk.size_bytes(folder) if environment.name != MAIN and folder.is_dir() else None


def packages(name: str, cache: Path) -> Mapping[str, str] | None:
    """What is installed in the main environment, or the locked list of one of its own; None when that is not built."""
    if name == MAIN:
        return machine.packages()
    lock = disk.ready(place(find(name), cache))
    return None if lock is None else lock.packages


class Ready:
    """A built environment, held until `close`: meanwhile nobody removes or rebuilds it."""

    def __init__(self, environment: Environment, cache: Path, lock: Lock, held: IO[str]) -> None:
        self.environment = environment
        self.packages = lock.packages
        self.python_version = lock.python
        self._cache = cache
        self._folder = place(environment, cache)
        self._held = held

    @property
    def python(self) -> Path:
        return disk.python(self._folder)

    def health(self, name: str, tell: Tell, *, again: bool = False) -> Health:
        """How quantizing and reloading a tiny model goes here. Tried once per version of the method and kept, unless `again`. An
        engine reloads an unquantized one."""
        engine = name if name in self.environment.engines else ""
        method = METHODS[UNQUANTIZED if engine else name]
        lock = disk.ready(self._folder)
        known = None if lock is None else lock.health.get(name)
        if known is not None and known.version == method.version and not again:
            return known
        tell(f"environment {self.environment.name}: {name} {'loads' if engine else 'quantizes and reloads'} a tiny model")
        with disk.scratch(self._cache) as home:
            result = self._tried(method, engine, home)
        lock = disk.ready(self._folder)
        if lock is not None:
            disk.write(self._folder / disk.READY, replace(lock, health={**lock.health, name: result}))
        return result

    def _tried(self, method: Method, engine: str, home: Path) -> Health:
        if not engine:
            return health.check(method, python=self.python, home=home)
        device = next(kind for kind, place in ENGINES[engine].places.items() if place.environment == self.environment.name)
        return health.check_engine(ENGINES[engine], method, device=device, python=self.python, home=home)

    def unwell(self, name: str, tell: Tell) -> Failure | None:
        """None for a method that works here, else the failure of all its cells."""
        result = self.health(name, tell)
        if result.ok:
            return None
        does = "load" if name in self.environment.engines else "quantize and reload"
        message = (
            f"{name} cannot {does} a tiny model in the environment {self.environment.name!r}: {result.message}; "
            f"once that is mended, check again with: quant-harness env check {self.environment.name}"
        )
        return Failure(kind="environment", phase="environment", message=message, log_tail=result.log_tail)

    def changed(self) -> list[str]:
        """Packages that are not as they were locked, each as a clause."""
        try:
            with disk.scratch(self._cache) as home:
                now = listing(self.python, home).packages
        except StepFailed as error:
            return [str(error)]
        names = sorted({*now, *self.packages})
        return [
            f"{name} is {now.get(name, 'gone')}, locked at {self.packages.get(name, 'nothing')}"
            for name in names
            if now.get(name) != self.packages.get(name)
        ]

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Ready:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def obtain(environment: Environment, cache: Path, tell: Tell) -> Ready:
    """The environment, built first if it is not ready; waits where another process builds it. BuildFailed when it cannot be
    built. `tell` gets one line for each thing that takes time."""
    folder = place(environment, cache)
    while True:
        since = time.time()
        held = disk.sharing(environment.digest, cache, tell)
        lock = disk.ready(folder)
        if lock is not None:
            return Ready(environment, cache, lock, held)
        held.close()  # a shared lock cannot be raised without a gap, so whoever comes first builds
        with disk.building(environment.digest, cache, tell) as alone:
            if disk.ready(folder) is None:
                failed = failed_since(folder, since)
                if failed is not None:
                    raise failed
                build(environment.name, environment.requirements, folder, alone, cache, tell, absent=environment.absent)


def check(environment: Environment, cache: Path, tell: Tell) -> list[str]:
    """What is wrong with an environment, each as a clause: packages that differ from the lock, methods that cannot quantize
    and reload a tiny model. Of main, the installed methods are tried. BadInput when it is not built."""
    problems: list[str] = []
    if environment.name == MAIN:
        for name in [n for n in environment.methods if missing(METHODS[n]) is None]:
            tell(f"environment {MAIN}: {name} quantizes and reloads a tiny model")
            with disk.scratch(cache) as home:
                result = health.check(METHODS[name], python=Path(sys.executable), home=home)
            problems += [] if result.ok else [f"{name}: {result.message}"]
        return problems
    if disk.ready(place(environment, cache)) is None:
        raise BadInput(f"the environment {environment.name!r} is not built; build it: quant-harness env build {environment.name}")
    with obtain(environment, cache, tell) as ready:
        problems += ready.changed()
        for name in environment.members:
            result = ready.health(name, tell, again=True)
            problems += [] if result.ok else [f"{name}: {result.message}"]
        return problems


def remove(environment: Environment, cache: Path) -> int:
    """Deletes an environment; returns the bytes that it took. BadInput when it is in use, or when there is none."""
    return disk.remove(environment.digest, f"the environment {environment.name!r}", cache)


def unused(cache: Path) -> dict[str, int]:
    """Environments on disk that no method of this version needs (a requirement or the Python has changed), with their bytes."""
    wanted = {e.digest for e in environments().values()}
    return {f.name: disk.size_bytes(f) for f in sorted(disk.root(cache).glob("[0-9a-f]*")) if f.name not in wanted}


def remove_unused(cache: Path) -> int:
    """Deletes what `unused` lists; returns the bytes."""
    return sum(disk.remove(name, f"the old environment {name}", cache) for name in unused(cache))


def log(environment: Environment, cache: Path) -> Path:
    """Where the full log of the last build lies."""
    return place(environment, cache) / disk.LOG


def place(environment: Environment, cache: Path) -> Path:
    """The folder of an environment, built or not."""
    return disk.root(cache) / environment.digest
