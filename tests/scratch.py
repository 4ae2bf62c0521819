"""A copy of this checkout to run commands in: what make builds, deletes and publishes is tested there and not here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def files() -> list[str]:
    """Every file of the checkout that git tracks or would take, by its path."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def copy(target: Path) -> Path:
    """The checkout at `target`, its `.venv` marked as ready: `execute` puts this interpreter's programs in its place."""
    for name in files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    (target / ".venv").mkdir()
    (target / ".venv" / "ready").touch()
    return target


def execute(command: str, checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a copy as GitHub runs a step: by bash, which stops at the first failure."""
    programs = {"MAKEFLAGS": f"-- BIN={Path(sys.executable).parent}", "PYTHONPATH": str(checkout)}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command]
    return subprocess.run(
        shell,
        cwd=checkout,
        env={**os.environ, **programs, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
