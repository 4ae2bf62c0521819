"""Cells that need an environment of their own, from outside: built on demand, failing alone, measured again when it changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import store
from harness.measure import machine
from harness.run import runner
from harness.spec import Record
from harness.suite.matrix import plan
from tests.envs.conftest import Installer

WriteSuite = Callable[..., Path]


def call(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=cwd)


def run(suite: Path, tmp_path: Path, *, fresh: bool = False, retry_failed: bool = False) -> store.Run:
    results, cache = tmp_path / "results", tmp_path / "cache"
    settings = runner.Settings(results=results, cache=cache, fresh=fresh, retry_failed=retry_failed)
    return store.read(runner.run(plan(suite, device="cpu"), settings))


def of(stored: store.Run, method: str) -> list[Record]:
    return [r for r in stored.records if r.cell.method == method]


@pytest.fixture
def suite(write_suite: WriteSuite) -> Path:
    """Cells in the main environment, in one of their own, and in one that cannot be built."""
    extra = "  fake-unbuildable: {bits: 4}\n  fake-elsewhere: {bits: [4, 3], package: six}"
    return write_suite("{bits: 4, package: six}", extra=extra)


def test_a_run_builds_what_it_needs_and_a_build_that_fails_costs_its_own_cells_only(
    suite: Path, tmp_path: Path, installer: Installer
) -> None:
    stored = run(suite, tmp_path)
    assert stored.ended
    assert {r.status for r in of(stored, "fake")} == {"ok"}
    elsewhere, unbuildable = of(stored, "fake-elsewhere"), of(stored, "fake-unbuildable")
    assert len(elsewhere) == 2 * 4
    assert {r.status for r in elsewhere} == {"ok"}
    assert len(unbuildable) == 4
    for record in unbuildable:
        assert record.failure is not None
        assert (record.failure.kind, record.failure.phase) == ("environment", "environment")
        assert "six==0.0.0" in record.failure.message
        assert "error: no version of six is 0.0.0" in record.failure.log_tail
        assert record.environment == ""
    (used,) = {r.environment for r in elsewhere}
    assert stored.environments[used].packages == {"extra": "1.0", "six": "1.16.0"}
    assert used == machine.packages_digest({"extra": "1.0", "six": "1.16.0"})
    assert used != of(stored, "fake")[0].environment
    seen = {r.answer.facts["six"] for r in elsewhere if r.question.probe == "fake" and r.answer is not None}
    assert seen == {"1.16.0"}
    ours = {r.answer.facts["six"] for r in of(stored, "fake") if r.answer is not None and "six" in r.answer.facts}
    assert ours == {machine.packages()["six"]} != seen
    assert installer.installs == 2


def test_a_second_run_finds_the_environment_ready_and_repeats_no_failed_build_unless_asked(
    suite: Path, tmp_path: Path, installer: Installer
) -> None:
    first = run(suite, tmp_path)
    assert run(suite, tmp_path).records == first.records
    assert installer.installs == 2
    run(suite, tmp_path, fresh=True)
    assert installer.installs == 3  # the one that failed, tried again by a run that begins anew
    again = run(suite, tmp_path, retry_failed=True)
    assert {r.status for r in of(again, "fake-unbuildable")} == {"environment"}
    assert installer.installs == 4


def test_cells_are_measured_again_when_their_environment_was_rebuilt_with_other_versions(
    suite: Path, tmp_path: Path, installer: Installer
) -> None:
    first = run(suite, tmp_path)
    cache = str(tmp_path / "cache")
    assert call("env", "remove", "elsewhere", "--cache", cache, cwd=tmp_path).returncode == 0
    assert run(suite, tmp_path).records == first.records  # what is stored needs no environment
    installer.extra("2.0")
    assert call("env", "build", "elsewhere", "--cache", cache, cwd=tmp_path).returncode == 0
    again = run(suite, tmp_path)
    assert again.path == first.path
    (used,) = {r.environment for r in of(again, "fake-elsewhere")}
    assert again.environments[used].packages["extra"] == "2.0"
    assert len(again.environments) == 2
    assert of(again, "fake") == of(first, "fake")


def test_a_method_that_does_not_work_in_its_environment_fails_its_cells_before_they_are_tried(
    suite: Path, tmp_path: Path, installer: Installer
) -> None:
    cache = tmp_path / "cache"
    assert call("env", "build", "elsewhere", "--cache", cache, cwd=tmp_path).returncode == 0
    site = next(cache.glob("environments/*/env/lib/python*/site-packages"))
    (site / "six.py").write_text("__version__ = 'broken'")
    checked = call("env", "check", "--cache", cache, cwd=tmp_path)
    assert checked.returncode == 1
    assert "six is broken, not 1.16.0" in checked.stderr
    for record in of(run(suite, tmp_path), "fake-elsewhere"):
        assert record.failure is not None
        assert record.failure.kind == "environment"
        assert "six is broken, not 1.16.0" in record.failure.message
        assert "Traceback" in record.failure.log_tail


def test_what_must_be_built_is_shown_by_plan_methods_and_env_list(suite: Path, tmp_path: Path, installer: Installer) -> None:
    said = call("plan", suite, cwd=tmp_path).stdout
    assert "environment  elsewhere (not built) must be built first for 2 cells" in said
    assert "quant-harness env build elsewhere" in said
    (wanted, _) = sorted(json.loads(call("plan", suite, "--json", cwd=tmp_path).stdout)["environments"], key=lambda e: e["name"])
    assert wanted == {"name": "elsewhere", "state": "not built", "cells": 2}
    built = call("env", "build", "--suite", suite, cwd=tmp_path)
    assert built.returncode == 1  # one of the two cannot be
    assert "elsewhere: ready, 2 packages" in built.stdout
    assert "error: no version of six is 0.0.0" in built.stderr
    assert "the whole log: " in built.stderr
    said = call("plan", suite, cwd=tmp_path).stdout
    assert "elsewhere (" not in said
    assert "unbuildable (broken) must be built first for 1 cell:" in said
    rows = {row["method"]: row for row in json.loads(call("methods", "--format", "json", cwd=tmp_path).stdout)}
    assert (rows["fake-elsewhere"]["environment"], rows["fake-elsewhere"]["state"]) == ("elsewhere", "ready")
    assert rows["fake-unbuildable"]["install"] == "quant-harness env build unbuildable"
    assert rows["fake"]["environment"] == "main"
    listed = {
        e["environment"]: e for e in json.loads(call("env", "list", "--format", "json", cwd=tmp_path).stdout)["environments"]
    }
    assert listed["elsewhere"]["packages"] == {"extra": "1.0", "six": "1.16.0"}
    assert listed["elsewhere"]["methods"] == ["fake-elsewhere"]
    assert listed["unbuildable"]["state"] == "broken"
    shown = call("env", "list", cwd=tmp_path).stdout
    assert "unbuildable: broken: the environment 'unbuildable' (six==0.0.0) could not be built" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "elswhere"], "did you mean 'elsewhere'"),
        (["check", "nothing"], "unknown environment 'nothing'"),
        (["remove", "elsewhere"], "nothing to remove"),
        (["remove"], "--unused"),
        (["build"], "elsewhere, unbuildable"),
        (["build", "main"], "neither built nor removed here"),
        (["remove", "main"], "neither built nor removed here"),
        (["check", "elsewhere"], "quant-harness env build elsewhere"),
    ],
)
def test_a_mistake_is_answered_in_words_with_exit_code_two(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = call("env", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_examples(tmp_path: Path) -> None:
    for verb in ("list", "build", "check", "remove"):
        done = call("env", verb, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert f"quant-harness env {verb}" in done.stdout


def test_an_artifact_written_in_one_environment_can_be_measured_in_the_main_one(
    write_suite: WriteSuite, tmp_path: Path, installer: Installer
) -> None:
    stored = run(write_suite("{bits: 4}", extra="  fake-split: {bits: 4, package: six}"), tmp_path)
    records = of(stored, "fake-split")
    assert {r.status for r in records} == {"ok"}  # quantizing works with the other version alone
    seen = {r.answer.facts["six"] for r in records if r.question.probe == "fake" and r.answer is not None}
    assert seen == {machine.packages()["six"]} != {"1.16.0"}
    (used,) = {r.environment for r in records}
    assert stored.environments[used].packages["six"] == "1.16.0"
