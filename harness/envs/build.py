"""Installs one environment from the package index: with uv where that is on PATH, else with `python -m venv` and pip."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness import files
from harness.child import fork_server
from harness.envs import disk
from harness.errors import BadInput, HarnessError

INSTALLER = "QUANT_HARNESS_INSTALLER"
"""Environment variable: `uv` or `pip` instead of whichever is found."""

BUILD_SECONDS = 7200.0
"""After that long an installer is stopped. Several gigabytes over a slow line, or a compilation, take a good part of it."""

_ELSEWHERE = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"}
"""Variables that select another Python or another place for packages; no installer of ours may see them."""


class BuildFailed(HarnessError):
    """An environment that could not be built. The message and `log_tail` name no folder and no address, because they are
    stored with results; `log` is the full log."""

    exit_code = 1

    def __init__(self, message: str, *, log: Path, log_tail: str) -> None:
        super().__init__(message)
        self.log = log
        self.log_tail = log_tail


class StepFailed(Exception):
    """A command of a build that did not end well."""


def build(
    name: str,
    requirements: Sequence[str],
    folder: Path,
    held: IO[str],
    cache: Path,
    tell: disk.Tell,
    *,
    over: Sequence[Path] | None = None,
    absent: Sequence[str] = (),
) -> None:
    """Builds in place, `ready.json` last. The caller holds the lock alone, and passes its open file for the installer to hold
    too. BuildFailed when a command does. With `over`, folders of packages, only what is required is installed, without what that
    requires in turn, and all else is taken from there. `absent`: packages that are taken away once all is installed."""
    with_what, log = installer(), folder / disk.LOG
    started = time.monotonic()
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be made ({error.strerror}); choose another cache folder with --cache DIR") from None
    tell(f"environment {name}: {with_what} installs {', '.join(requirements) or 'nothing'}; log: {log}")
    try:
        for command in _commands(with_what, requirements, folder, alone=over is not None, absent=absent):
            _run(command, folder, held)
        if over is not None:
            _fall_back(folder, over)
        with disk.scratch(cache) as home:
            installed = listing(disk.python(folder), home)
        lock = disk.Lock(
            name=name,
            requirements=tuple(requirements),
            installer=with_what,
            built_at=_now(),
            seconds=time.monotonic() - started,
            health={},
            python=installed.python,
            packages=installed.packages,
        )
        disk.write(folder / disk.READY, lock)
    except (StepFailed, OSError) as error:
        said = tail(folder)
        shutil.rmtree(folder / "env", ignore_errors=True)  # gigabytes, perhaps, and no use without the rest
        hint = f"; uv does not read pip's settings: set {INSTALLER}=pip if those name the index" if with_what == "uv" else ""
        message = (
            f"the environment {name!r} ({', '.join(requirements)}) could not be built: {_public(str(error), folder)}"
            f"{_last_error(said)}{hint}; try it alone with: quant-harness env build {name}"
        )
        with contextlib.suppress(OSError):  # a full disk, perhaps: the failure is told all the same
            disk.write(folder / disk.FAILED, disk.FailedBuild(message=message, at=_now()))
        raise BuildFailed(message, log=log, log_tail=said) from None
    tell(f"environment {name}: built in {time.monotonic() - started:.0f} s, {disk.size_bytes(folder) / 1e6:,.0f} MB")


def installer() -> str:
    """`uv` or `pip`. BadInput when the variable asks for what is not there."""
    wish = os.environ.get(INSTALLER) or ("uv" if shutil.which("uv") else "pip")
    if wish not in {"uv", "pip"}:
        raise BadInput(f"{INSTALLER}={wish}: write uv or pip, or unset it")
    if wish == "uv" and shutil.which("uv") is None:
        raise BadInput(f"{INSTALLER}=uv, and there is no uv on PATH; install it, or unset {INSTALLER} to use pip")
    return wish


def failed_since(folder: Path, since: float) -> BuildFailed | None:
    """The failure of a build that ended after `since` (seconds of the epoch): whoever waited for it need not repeat it."""
    with contextlib.suppress(OSError):
        failed = disk.read(disk.FailedBuild, folder / disk.FAILED)
        if failed is not None and (folder / disk.FAILED).stat().st_mtime >= since:
            return BuildFailed(failed.message, log=folder / disk.LOG, log_tail=tail(folder))
    return None


def tail(folder: Path) -> str:
    """The end of the log, fit to be stored with results."""
    return _public(files.tail(folder / disk.LOG, 4000), folder)


_LISTING = """
import json, pathlib, platform, sys
from harness.measure import machine
listing = {"python": platform.python_version(), "packages": machine.packages()}
pathlib.Path(sys.argv[1]).write_text(json.dumps(listing), encoding="utf-8")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Version of an interpreter, and of every package that it finds."""

    python: str
    packages: Mapping[str, str]


def listing(python: Path, home: Path) -> Listing:
    """What an interpreter finds installed: names and versions, no folders, no addresses. StepFailed where it does not run."""
    target, path = home / "packages.json", fork_server.harness_alone(home)
    env = {**os.environ, "PYTHONPATH": str(path)}
    command = [str(python), "-c", _LISTING, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=path, env=env, timeout=600, check=False)
    installed = disk.read(Listing, target)
    if done.returncode != 0 or installed is None:
        raise StepFailed(f"its Python does not run: {done.stderr.strip()[-500:]}")
    return installed


def _fall_back(folder: Path, over: Sequence[Path]) -> None:
    """Puts folders of packages behind the environment's own on its path, with what their `.pth` files add. Written after the
    installer has been here: it would take what it finds there for its own, and try to remove it."""
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    lines = [f"import site; site.addsitedir({str(place)!r})\n" for place in over]
    (site / "fallback.pth").write_text("".join(lines), encoding="utf-8")


def _commands(
    with_what: str, requirements: Sequence[str], folder: Path, *, alone: bool = False, absent: Sequence[str] = ()
) -> list[list[str]]:
    """What makes the environment and what fills it, by the Python that runs this. `alone`: not what is required in turn;
    `absent`: what is taken away at the end."""
    target, python = str(folder / "env"), str(disk.python(folder))
    if with_what == "uv":
        make, add = ["uv", "venv", "--python", sys.executable, target], ["uv", "pip", "install", "--python", python]
        away = ["uv", "pip", "uninstall", "--python", python]
    elif _pip_serves_others():  # as with uv, the environment then holds what was required and nothing else
        make = [sys.executable, "-m", "venv", "--without-pip", target]
        add = [sys.executable, "-m", "pip", "--python", python, "install", "--no-input"]
        away = [sys.executable, "-m", "pip", "--python", python, "uninstall", "--yes"]
    else:
        make, add = [sys.executable, "-m", "venv", target], [python, "-m", "pip", "install", "--no-input"]
        away = [python, "-m", "pip", "uninstall", "--yes"]
    fill = [[*add, *(["--no-deps"] if alone else []), *requirements]] if requirements else []
    return [make, *fill, *([[*away, *absent]] if absent else [])]


def _pip_serves_others() -> bool:
    """Whether this interpreter has a pip that installs into other environments (since 22.3)."""
    try:
        return int(importlib.metadata.version("pip").split(".")[0]) >= 23
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False


def _run(command: list[str], folder: Path, held: IO[str]) -> None:
    """Runs one command of a build with its output in the log. It gets a session of its own, so that what it started (a
    compiler) is stopped with it."""
    name = "uv" if command[0] == "uv" else command[2]
    with (folder / disk.LOG).open("a", encoding="utf-8") as said:
        said.write(f"$ {' '.join(command)}\n")
        said.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k not in _ELSEWHERE},
            pass_fds=(held.fileno(),),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=BUILD_SECONDS)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise StepFailed(f"{name} was stopped after {BUILD_SECONDS:g} s") from None
            raise
    if code != 0:
        raise StepFailed(f"{name} left with exit code {code}")


def _last_error(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if re.search("error|no space", line, re.IGNORECASE)]
    return f" ({lines[-1][:300]})" if lines else ""


def _public(text: str, folder: Path) -> str:
    """Without addresses of package indexes and without this machine's folders that a build names."""
    text = re.sub(r"^Looking in (indexes|links):.*\n", "", text, flags=re.MULTILINE)
    text = text.replace(str(folder), "(environment)").replace(sys.executable, "(python)").replace(str(Path.home()), "~")
    return re.sub(r"\b[a-z][a-z0-9+]*://[^\s,'\")\]]+", "(address)", text)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
