"""A stand-in for uv, so that locks, crashes and failures are tested in a second and without a network. What pip and the package
index really do is tested in test_real.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import envs

STAND_IN = '''#!{python} -S
"""uv venv --python PYTHON TARGET | uv pip install --python PYTHON NAME==VERSION..."""
import os, pathlib, subprocess, sys, time

folder = pathlib.Path("{folder}")
with (folder / "calls.txt").open("a") as calls:
    calls.write(" ".join(sys.argv[1:3]) + "\\n")
if sys.argv[1] == "venv":
    sys.exit(subprocess.call([sys.argv[3], "-m", "venv", "--without-pip", sys.argv[4]]))
while (folder / "wait").exists():
    time.sleep(0.02)
wanted = [*sys.argv[5:], "extra==" + (folder / "extra.txt").read_text()]
site = next(pathlib.Path(sys.argv[4]).parents[1].glob("lib/python*/site-packages"))
for name, version in (requirement.split("==") for requirement in wanted):
    if version == "0.0.0":
        print("looked at https://user:secret@index.example/simple")
        print("error: no version of " + name + " is " + version)
        sys.exit(1)
    (site / (name + ".py")).write_text("__version__ = " + repr(version))
    (site / (name + "-" + version + ".dist-info")).mkdir()
    told = "Metadata-Version: 2.1\\nName: " + name + "\\nVersion: " + version
    (site / (name + "-" + version + ".dist-info") / "METADATA").write_text(told)
'''


class Installer:
    """The stand-in's switches, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.extra("1.0")

    def extra(self, version: str) -> None:
        """The version of a package that nobody pinned, as the index has it today."""
        (self.folder / "extra.txt").write_text(version)

    def wait(self) -> None:
        """From now on installing does not end ..."""
        (self.folder / "wait").touch()

    def go_on(self) -> None:
        """... until this."""
        (self.folder / "wait").unlink()

    @property
    def installs(self) -> int:
        calls = self.folder / "calls.txt"
        return calls.read_text().splitlines().count("pip install") if calls.exists() else 0


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "uv"
    program.write_text(STAND_IN.format(python=sys.executable, folder=folder))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("QUANT_HARNESS_INSTALLER", "uv")
    return Installer(folder)


@pytest.fixture
def environment() -> Callable[..., envs.Environment]:
    """An environment of the scripted method."""

    def make(*requirements: str) -> envs.Environment:
        return envs.Environment(name="elsewhere", requirements=requirements or ("thing==1.0",), methods=("fake",))

    return make
