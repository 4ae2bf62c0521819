"""One small conflicting environment, built for real: venv, pip, the package index, and a run whose cells are measured in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import store
from harness.measure import machine
from harness.methods import METHODS

WriteSuite = Callable[..., Path]


@pytest.fixture
def index(tmp_path: Path) -> None:
    """Skips where no package index can be reached."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--retries", "1", "--timeout", "15"]
    (requirement,) = METHODS["fake-elsewhere"].requirements
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "wheels"), requirement], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no package index can be reached: {(done.stderr.strip().splitlines() or ['pip is silent'])[-1]}")


@pytest.mark.usefixtures("index")
def test_a_run_builds_a_conflicting_environment_from_the_index_and_measures_in_it(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANT_HARNESS_INSTALLER", "pip")
    suite = write_suite(
        "{bits: 4, package: six}", extra="  fake-unbuildable: {bits: 4}\n  fake-elsewhere: {bits: 4, package: six}"
    )
    command = [sys.executable, "-m", "harness.cli", "run", str(suite)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "environment elsewhere: pip installs six==1.16.0; log: " in done.stdout
    assert "environment elsewhere: built in " in done.stdout
    stored = store.read(tmp_path / "results" / "scripted")
    versions = {r.cell.method: r.answer.facts["six"] for r in stored.records if r.answer is not None and "six" in r.answer.facts}
    assert versions["fake-elsewhere"] == "1.16.0"
    assert versions["fake"] == machine.packages()["six"] != "1.16.0"
    (used,) = {r.environment for r in stored.records if r.cell.method == "fake-elsewhere"}
    assert stored.environments[used].packages["six"] == "1.16.0"
    assert "torch" not in stored.environments[used].packages
    failures = [r.failure for r in stored.records if r.cell.method == "fake-unbuildable"]
    assert {f.kind for f in failures if f is not None} == {"environment"}
    page = (tmp_path / "reports" / "scripted.html").read_text()
    assert "six 1.16.0" in page
    assert "No matching distribution found for six==0.0.0" in page
    again = subprocess.run([*command, "--fresh"], capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "elsewhere: pip installs" not in again.stdout
