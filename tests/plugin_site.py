"""Packages with entry points in a folder, as an installer leaves them: files, and a `.dist-info` beside them.

Written here rather than by pip, which would need the build tool of each project; `test_plugins.py` has pip build the example."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plugin"


def offer(site: Path, package: str, version: str, rows: Mapping[str, Mapping[str, str]], files: Mapping[str, str]) -> None:
    """Installs a package: its files, and its rows by group (`methods`, `engines`, `probes`), each `name: target`."""
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    for old in site.glob(f"{package.replace('-', '_')}-*.dist-info"):
        shutil.rmtree(old)
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = [
        line
        for group, targets in rows.items()
        for line in (f"[llm_quant_harness.{group}]", *(f"{name} = {target}" for name, target in targets.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def install_example(site: Path) -> None:
    """The package of examples/plugin, as its pyproject.toml says."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    groups = {group.removeprefix("llm_quant_harness."): rows for group, rows in project["entry-points"].items()}
    files = {path.name: path.read_text() for path in EXAMPLE.glob("*.py")}
    offer(site, project["name"], project["version"], groups, files)


def call(site: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line with the packages of `site` installed."""
    path = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "400"},
    )
