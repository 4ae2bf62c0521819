"""`bisect` from outside: which of the packages that differ made a cell worse, and which of the commits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from harness import store
from harness.envs import disk, overlay
from harness.run import workspace
from tests.gate import drill
from tests.scratch import ROOT

WriteSuite = Callable[..., Path]
PADS = ("pad-a", "pad-b", "pad-c", "pad-d", "pad-e")


class Machines:
    """Environments that differ in the versions of small packages, one of which makes a cell worse; and a suite run in each."""

    def __init__(self, suite: Path, folder: Path) -> None:
        self.suite, self.folder = suite, folder
        for name in ("drill-rows", *PADS):
            for version in ("1.0", "2.0"):
                drill.wheel(folder / "wheels", name, version)
        drill.wheel(folder / "wheels", "drill-rows", "3.0")

    def python(self, **versions: str) -> Path:
        wanted = {**dict.fromkeys(("drill-rows", *PADS), "1.0"), **{n.replace("_", "-"): v for n, v in versions.items()}}
        return disk.python(overlay.obtain("main", wanted, workspace.default_cache(), print))

    def call(self, python: Path, *arguments: str | Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-P", "-m", "harness.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(path), "COLUMNS": "400"},
        )

    def night(self, python: Path, path: Path = ROOT) -> Path:
        done = self.call(python, "run", self.suite, "--fresh", path=path)
        assert done.returncode == 0, done.stdout + done.stderr
        return store.newest(self.folder / "results" / "scripted")


@pytest.fixture
def machines(write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    suite = write_suite("{bits: 4}")
    suite.write_text(suite.read_text().replace("probes: [quantize, fake]", "probes: [drill]"))
    return Machines(suite, tmp_path)


def environment(folder: Path) -> Mapping[str, str]:
    """Installs from the folder of wheels and nowhere else."""
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "wheels"), "QUANT_HARNESS_INSTALLER": "pip"}
    return {**index, "DRILL": str(folder / "drill.json")}


@pytest.mark.slow
def test_the_package_that_made_a_cell_worse_is_named_with_both_versions(machines: Machines) -> None:
    old, new = machines.python(), machines.python(drill_rows="2.0", pad_a="2.0", pad_c="2.0", pad_d="2.0", pad_e="2.0")
    base, candidate = machines.night(old), machines.night(new)
    done = machines.call(new, "bisect", base, candidate, "fake 4-bit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 packages differ" in done.stdout
    assert done.stdout.splitlines()[-1] == "found: drill-rows 1.0 -> 2.0"
    states = list((candidate.parent / "bisect").glob("*/packages-*"))
    assert 3 <= len(states) <= 8
    assert store.newest(candidate.parent) == candidate

    again = machines.call(new, "bisect", base, candidate, "tiny/fake 4-bit")
    assert again.stdout.splitlines()[-1] == "found: drill-rows 1.0 -> 2.0"
    assert "asking" not in again.stdout, "every state has its answer already"


@pytest.mark.slow
def test_the_package_that_made_a_cell_fail_is_named(machines: Machines) -> None:
    new = machines.python(drill_rows="3.0", pad_b="2.0")
    base, candidate = machines.night(machines.python()), machines.night(new)
    done = machines.call(new, "bisect", base, candidate, "fake 4-bit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("failed: tiny / fake 4-bit: Drill, items")
    assert done.stdout.splitlines()[-1] == "found: drill-rows 1.0 -> 3.0"


REAL = """
name: upgrade
models: [reference]
baseline: bf16
methods: {bf16: , torchao: {bits: 4, group_size: 64}, hqq: {bits: 4, group_size: 64}}
probes: [quantize, size]
"""


@pytest.mark.slow
def test_a_real_package_that_a_cell_cannot_live_without_in_its_version_is_named(tmp_path: Path) -> None:
    """torchao 0.16 lacks a module that its cell needs; hqq differs as well, and gives equal bits."""
    pytest.importorskip("torchao", reason="needs the extra torchao: pip install -e '.[torchao]'")
    suite, cache = tmp_path / "upgrade.yaml", tmp_path / "cache"
    suite.write_text(REAL)

    def call(python: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [python, "-P", "-m", "harness.cli", *map(str, arguments), "--cache", str(cache)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
        return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path, env=env)

    old = overlay.obtain("main", {"torchao": "0.16.0", "hqq": "0.2.7"}, cache, print)
    runs = []
    for python in (Path(sys.executable), disk.python(old)):
        done = call(python, "run", suite, "--fresh")
        assert done.returncode == 0, done.stdout + done.stderr
        runs.append(store.newest(tmp_path / "results" / "upgrade"))
    found = call(sys.executable, "bisect", *runs, "torchao 4-bit g64")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1].startswith("found: torchao 0.18"), found.stdout
    assert found.stdout.splitlines()[-1].endswith("-> 0.16.0")


@pytest.mark.slow
def test_what_cannot_be_found_among_packages_is_said_in_words(machines: Machines) -> None:
    python = machines.python()
    base = machines.night(python)
    (machines.folder / "drill.json").write_text(json.dumps({"fake 4-bit": 60}))
    candidate = machines.night(python)

    same = machines.call(python, "bisect", base, candidate, "fake 4-bit")
    assert (same.returncode, same.stderr) == (1, "")
    assert "not found: no package differs between the two runs; commits are tried with: --with" in same.stdout

    other = machines.night(machines.python(pad_a="2.0", pad_b="2.0"))
    lost = machines.call(python, "bisect", base, other, "fake 4-bit")
    assert lost.returncode == 1
    assert "not found: with every package as in BASE the cell is worse here as well" in lost.stdout

    (machines.folder / "drill.json").unlink()
    gone = machines.night(machines.python(pad_c="2.0"))
    nothing = machines.call(python, "bisect", base, gone, "fake 4-bit")
    assert nothing.returncode == 2
    assert "nothing of it is worse in CANDIDATE than in BASE" in nothing.stderr


@pytest.mark.slow
def test_a_flaky_loss_and_an_environment_that_cannot_be_built_are_said_in_words(machines: Machines) -> None:
    base = machines.night(machines.python())
    new = machines.python(pad_a="2.0")
    (machines.folder / "drill.json").write_text(json.dumps({"fake 4-bit": 60}))
    candidate = machines.night(new)
    (machines.folder / "drill.json").unlink()
    flaky = machines.call(new, "bisect", base, candidate, "fake 4-bit")
    assert flaky.returncode == 1
    assert "not found: with every package as in CANDIDATE the cell is not worse here: it is flaky, or" in flaky.stdout

    third = machines.python(pad_b="2.0")
    (machines.folder / "drill.json").write_text(json.dumps({"fake 4-bit": 60}))
    candidate = machines.night(third)
    (machines.folder / "wheels" / "pad_b-1.0-py3-none-any.whl").unlink()
    unbuilt = machines.call(third, "bisect", base, candidate, "fake 4-bit")
    assert unbuilt.returncode == 1
    assert "with every package as in BASE there is no answer here: the environment 'main' (pad-b==1.0)" in unbuilt.stdout
    assert "could not be built" in unbuilt.stdout


@pytest.mark.slow
def test_the_commit_that_made_a_cell_worse_is_named(machines: Machines, tmp_path: Path) -> None:
    python, repo = machines.python(), tmp_path / "clone"
    git = ["git", "-C", str(repo), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(repo)], check=True)
    (repo / ".gitignore").write_text("__pycache__\n")
    copy_tracked(repo)
    commits = []
    for number in range(6):
        lost = {"fake 4-bit": 60 if number >= 3 else 0}
        (repo / "harness" / "shapes" / "drill.json").write_text(json.dumps({**lost, "number": number}))
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-qm", f"number {number}"], check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        commits.append(head.stdout.strip())
    subprocess.run([*git, "checkout", "-q", commits[0]], check=True)
    base = machines.night(python, repo)
    subprocess.run([*git, "checkout", "-q", commits[-1]], check=True)
    candidate = machines.night(python, repo)
    found = machines.call(python, "bisect", base, candidate, "fake 4-bit", "--with", "git checkout -q {commit}", "--repo", repo)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1] == f"found: {commits[3][:12]} number 3"

    def refused(template: str, where: Path) -> str:
        done = machines.call(python, "bisect", base, candidate, "fake 4-bit", "--with", template, "--repo", where)
        assert done.returncode in (1, 2), done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "this quant-harness runs from there" in refused("git checkout -q {commit}", ROOT)
    assert "says nowhere {commit}" in refused("git checkout -q", repo)
    shutil.rmtree(candidate.parent / "bisect")
    assert "there is no answer here: git checkout -q" in refused("git checkout -q {commit}; touch pwned", repo)
    assert not list(tmp_path.rglob("pwned")), "no shell reads the template"


def copy_tracked(repo: Path) -> None:
    """The package as it lies here, without what is ignored."""
    names = subprocess.run(["git", "-C", str(ROOT), "ls-files", "harness"], check=True, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_bytes((ROOT / name).read_bytes())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--with", "git checkout {commit}"], "--with and --repo belong together"),
        (["--repo", "."], "--with and --repo belong together"),
    ],
)
def test_a_command_for_commits_and_its_clone_belong_together(more: list[str], says: str, machines: Machines) -> None:
    done = machines.call(Path(sys.executable), "bisect", "a", "b", "c", *more)
    assert done.returncode == 2
    assert says in done.stderr
