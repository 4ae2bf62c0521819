"""Environments that are another one but for a few packages: what differs is installed in the wanted versions, all else is the
other's. Built in seconds, so that many can be tried (`bisect`). They lie among the environments of methods, where no method needs
them: `env remove --unused` frees them.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from harness import envs
from harness.envs import disk
from harness.envs.build import BuildFailed, build
from harness.errors import BadInput
from harness.measure import machine
from harness.spec import digest


def place(name: str, versions: Mapping[str, str], cache: Path) -> Path:
    """Where the environment `name` with other `versions` of some packages lies, built or not."""
    asked = {
        "over": name,
        "versions": dict(versions),
        "of": machine.packages_digest(envs.packages(name, cache)),
        "at": _of(cache),
    }
    return disk.root(cache) / digest({**asked, "python": sys.implementation.cache_tag, "layout": 1})[:24]


def obtain(name: str, versions: Mapping[str, str], cache: Path, tell: disk.Tell) -> Path:
    """The environment `name` with other `versions` of some packages, by their names; its folder (`disk.python` is its
    interpreter). BuildFailed when it cannot be built; BadInput when the environment below it is not there."""
    below = envs.packages(name, cache)
    if below is None:
        raise BadInput(f"the environment {name!r} is not built; build it: quant-harness env build {name}")
    folder = place(name, versions, cache)
    wanted = [f"{package}=={version}" for package, version in sorted(versions.items()) if below.get(package) != version]
    with disk.building(folder.name, cache, tell) as held:
        if disk.ready(folder) is not None:
            return folder
        build(name, wanted, folder, held, cache, tell, over=_site(name, cache))
    lock = disk.ready(folder)
    assert lock is not None
    apart = [
        f"{p} is {lock.packages.get(p, 'not there')}, not {v}" for p, v in sorted(versions.items()) if lock.packages.get(p) != v
    ]
    if apart:
        raise BuildFailed(f"the environment {name!r} came out otherwise: {'; '.join(apart)}", log=folder / disk.LOG, log_tail="")
    return folder


def _site(name: str, cache: Path) -> list[Path]:
    """Where an environment keeps its packages."""
    if name == envs.MAIN:
        return list(dict.fromkeys(Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")))
    return sorted((envs.place(envs.find(name), cache) / "env" / "lib").glob("python*/site-packages"))


def _of(cache: Path) -> str:
    return str(_site(envs.MAIN, cache)[0])
