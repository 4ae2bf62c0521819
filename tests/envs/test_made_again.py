"""An artifact that another environment quantized is made again there, which is built where it is gone: by the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import store
from tests.envs.conftest import Installer
from tests.envs.test_runs import call

WriteSuite = Callable[..., Path]


@pytest.mark.slow
@pytest.mark.usefixtures("installer")
def test_an_artifact_of_another_environment_is_made_again_in_it(
    write_suite: WriteSuite, tmp_path: Path, installer: Installer
) -> None:
    suite = write_suite(extra="  fake-split: {bits: 4, value: 3}")
    assert call("run", suite, "--cache", "cache", cwd=tmp_path).returncode == 0
    run = store.read(tmp_path / "results" / "scripted")
    record = next(r for r in run.records if r.cell.method == "fake-split")
    folder = tmp_path / "cache" / "artifacts" / run.artifacts[record.artifact].folder
    before = (folder / "fake.json").read_bytes()
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "cache" / "environments")
    built = installer.installs

    done = call("export", "results/scripted", record.cell.label, "--to", "out", "--cache", "cache", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert installer.installs == built + 1
    assert "made again: environment apart" in done.stdout
    assert "made again, with the same bytes" in done.stdout
    assert f"digest    {record.artifact}" in done.stdout
    assert (tmp_path / "out" / "fake.json").read_bytes() == before


@pytest.mark.slow
def test_the_command_line_says_what_is_wrong_and_leaves_with_its_code(write_suite: WriteSuite, tmp_path: Path) -> None:
    assert call("run", write_suite("{bits: 4, value: 2}"), "--cache", "cache", cwd=tmp_path).returncode == 0
    done = call("export", "results/scripted", "fake", "--to", "out", "--cache", "cache", cwd=tmp_path)
    assert done.returncode == 2
    assert "the run has no cell 'fake'; did you mean 'fake 16-bit' or 'fake 4-bit value=2'?" in done.stderr
    run = store.read(tmp_path / "results" / "scripted")
    record = next(r for r in run.records if r.cell.bits == 4)
    (tmp_path / "cache" / "artifacts" / run.artifacts[record.artifact].folder / "fake.json").write_text("{}")
    done = call("export", "results/scripted", record.cell.label, "--to", "out", "--cache", "cache", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "fake.json: not what was measured" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
