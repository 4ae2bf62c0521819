"""Where environments lie in the cache folder, and who may touch them.

::

    environments/<digest>/       digest of the requirement set, the Python's tag and the platform
        env/                     the virtual environment
        log.txt                  all that the last build said
        failed.json              why the last build failed, until one succeeds
        ready.json               the lock: every installed package with its version; how each method's health check went
    environments/.locks/<digest>

Virtual environments cannot be moved (their scripts hold absolute paths), so one is built where it stays and counts only once
`ready.json` has been written, last and by rename; a folder without it is what a crash left, and is built anew. Who builds or
removes holds the lock file exclusively, who uses it shares it until its children have ended, so that no two build at once
and nobody removes what is in use. The kernel drops a lock with the last process that holds it. An installer inherits the
builder's, so that the orphan of a killed builder still keeps others out until it is done writing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TypeVar

from harness.decode import decode
from harness.errors import BadInput
from harness.files import write_atomically
from harness.spec import to_json

READY = "ready.json"
FAILED = "failed.json"
LOG = "log.txt"
SCHEMA = 1

Tell = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a method's check went; `version` is the method's. `message` says what is wrong, or what could not be tried."""

    ok: bool
    version: str
    message: str
    log_tail: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The content of `ready.json`: what was asked for, how it was built, what is installed, and each method's health."""

    schema: int = SCHEMA
    name: str
    requirements: tuple[str, ...]
    installer: str
    built_at: str
    seconds: float
    health: Mapping[str, Health]
    python: str
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedBuild:
    """The content of `failed.json`."""

    message: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    """What a lock's only holder writes into it, for those who wait."""

    pid: int
    does: str


def root(cache: Path) -> Path:
    """Absolute, because interpreters found here are started from other folders."""
    return cache.expanduser().resolve() / "environments"


def python(folder: Path) -> Path:
    return folder / "env" / "bin" / "python"


def ready(folder: Path) -> Lock | None:
    """What `ready.json` says; None when the environment is not ready: no marker, one of another version, or an interpreter that
    leads nowhere because the Python that it was made with is gone."""
    lock = read(Lock, folder / READY)
    return lock if lock is not None and lock.schema == SCHEMA and python(folder).exists() else None


@contextlib.contextmanager
def building(name: str, cache: Path, tell: Tell) -> Iterator[IO[str]]:
    """Inside, this process alone has the environment; yields the open lock file. Waits for others and says for whom."""
    with hold(name, cache, fcntl.LOCK_EX, tell) as held:
        _leave_word(held, "is building it")
        try:
            yield held
        finally:
            _leave_word(held, None)


def sharing(name: str, cache: Path, tell: Tell) -> IO[str]:
    """The open lock file, which keeps builders and removers away until it is closed. Waits for a builder and says for whom."""
    return hold(name, cache, fcntl.LOCK_SH, tell)


def hold(name: str, cache: Path, kind: int, tell: Tell) -> IO[str]:
    held = _lock_file(name, cache)
    try:
        try:
            fcntl.flock(held, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"waiting for the environment: {_holder(held)}")
            fcntl.flock(held, kind)
    except BaseException:
        held.close()
        raise
    return held


def builder(name: str, cache: Path) -> str | None:
    """Who is building or removing the environment at this moment, as a clause; None when nobody is."""
    if not (root(cache) / ".locks" / name).exists():
        return None
    with _lock_file(name, cache) as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(held)
    return None


def remove(name: str, what: str, cache: Path) -> int:
    """Deletes the folder of an environment; returns the bytes that it took. BadInput when it is in use or not there."""
    folder = root(cache) / name
    if not folder.is_dir():
        raise BadInput(f"{what} is not built, so there is nothing to remove")
    with _lock_file(name, cache) as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{what} is in use: {_holder(held)}; wait for it, or stop it, then remove again") from None
        _leave_word(held, "is removing it")
        size = size_bytes(folder)
        try:
            (folder / READY).unlink(missing_ok=True)  # first, so that half an environment is never taken for a whole one
            shutil.rmtree(folder)
        except OSError as error:
            raise BadInput(f"{what} cannot be removed: {error}") from None
        finally:
            _leave_word(held, None)
    return size


def _lock_file(name: str, cache: Path) -> IO[str]:
    """Lock files are never deleted: somebody may be waiting for the one that has just been let go."""
    path = root(cache) / ".locks" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); choose another cache folder with --cache DIR") from None


def _leave_word(held: IO[str], does: str | None) -> None:
    """Says in the lock file what its only holder does, for those who wait; None takes it away."""
    held.seek(0)
    held.truncate()
    if does is not None:
        held.write(json.dumps(asdict(_Holder(pid=os.getpid(), does=does))))
    held.flush()


def _holder(held: IO[str]) -> str:
    """Who has the lock, as a clause. Users share it and leave no word; the word of a killed builder is known by its pid."""
    held.seek(0)
    try:
        owner = decode(_Holder, json.loads(held.read()))
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return "the installer of a build that was killed is still at work"
    except PermissionError:
        pass  # somebody else's process
    except ValueError:
        return "another quant-harness is using it"
    return f"process {owner.pid} {owner.does}"


@contextlib.contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """A private folder, named like a run's so that the next run sweeps it away if this process is killed."""
    folder = cache.resolve() / "jobs" / f"{os.getpid()}-{time.time_ns()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def size_bytes(folder: Path) -> int:
    """What a folder takes on disk, links not followed; files that vanish meanwhile count nothing."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
    return total


def read(cls: type[T], path: Path) -> T | None:
    """What a file holds; None when there is none, or one that another version wrote."""
    try:
        return decode(cls, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def write(path: Path, data: Lock | FailedBuild) -> None:
    """Whole or not at all, and on the disk when this returns."""
    write_atomically(path, json.dumps(to_json(data), indent=1, ensure_ascii=False), lasting=True)
