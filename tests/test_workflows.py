"""What GitHub reads is valid, and what its workflows run works here.

Each file is checked against its published schema. Each `run:` step is executed in a scratch copy, but for the two that take many
minutes: of those it is tested that they are the commands of the Makefile and of .ci/run, which CI executes anyway.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import scratch
from tests.scratch import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "vendor.github-issue-forms": sorted(p for p in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config"),
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}
HEAVY = {"bash .ci/run", "make run"}
"""Steps of many minutes, which no test runs: CI is the first, and the first runs the second."""


def load(path: Path) -> dict[str, Any]:
    """A workflow. YAML 1.1 reads the key `on` as true, and GitHub does not."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return {("on" if key is True else key): value for key, value in data.items()}


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def runs(path: Path) -> list[str]:
    return [step["run"].strip() for step in steps(path) if "run" in step]


def targets() -> dict[str, str]:
    """The Makefile's targets with their recipes."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z][\w-]*):[^=\n]*\n((?:\t.*\n)*)", text, flags=re.MULTILINE))


def called(script: Path) -> list[str]:
    """The commands of .ci/run: its lines that are no comment and set nothing."""
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "set ", "cd ", "export "))]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return scratch.copy(tmp_path / "checkout")


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_file_that_github_reads_is_valid_against_its_schema(schema: str) -> None:
    assert SCHEMAS[schema]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, SCHEMAS[schema])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_check_refuses_a_broken_workflow(tmp_path: Path) -> None:
    (tmp_path / "broken.yml").write_text("on: push\njobs: {test: {steps: [{runs: make test}]}}\n")
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        str(tmp_path / "broken.yml"),
    ]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 1


def test_every_workflow_starts_with_the_right_to_read_and_nothing_more() -> None:
    assert {path.stem for path in WORKFLOWS} == {"ci", "docs", "release"}
    for path in WORKFLOWS:
        assert load(path)["permissions"] == {"contents": "read"}, path.name


def test_only_publishing_jobs_get_more_rights_and_they_run_no_command() -> None:
    for path in WORKFLOWS:
        for name, job in load(path)["jobs"].items():
            if "permissions" in job:
                assert "environment" in job, f"{path.name}: {name}"
                assert not [step for step in job["steps"] if "run" in step], f"{path.name}: {name}"


def test_no_workflow_holds_a_secret() -> None:
    assert not [
        path.name for path in WORKFLOWS if re.search(r"secrets\.|password:|(?<!id-)token:", path.read_text(encoding="utf-8"))
    ]


def test_every_action_is_pinned_to_a_commit_but_the_one_whose_branch_its_authors_recommend() -> None:
    used = {step["uses"] for path in WORKFLOWS for step in steps(path) if "uses" in step}
    assert used
    loose = {action for action in used if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action)}
    assert loose == {"pypa/gh-action-pypi-publish@release/v1"}


def test_ci_runs_every_python_that_the_project_names_from_the_oldest_to_the_newest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [c.removeprefix("Programming Language :: Python :: ") for c in project["classifiers"] if ":: Python :: 3." in c]
    (job,) = load(GITHUB / "workflows" / "ci.yml")["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"


def test_the_heavy_steps_are_commands_that_ci_runs_anyway_and_every_other_step_is_run_by_a_test() -> None:
    steps_run = {run for path in WORKFLOWS for run in runs(path)}
    light = {"make docs", "make dist", *(run for run in runs(GITHUB / "workflows" / "release.yml") if run.startswith("test -f"))}
    assert steps_run == HEAVY | light
    assert subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=False).returncode == 0
    assert "make run" in called(ROOT / ".ci" / "run")


def test_ci_calls_targets_that_exist_and_a_script_that_exists() -> None:
    commands = called(ROOT / ".ci" / "run")
    made = [command.split()[1] for command in commands if command.startswith("make ")]
    assert made == ["check", "test-all", "run"]
    assert set(made) < targets().keys()
    scripts = [command.split()[1] for command in commands if not command.startswith("make ")]
    assert scripts == [".ci/browser", ".ci/complete.py"]
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_fast_tier_is_every_test_but_those_marked_slow() -> None:
    fast, every = targets()["test"].strip(), targets()["test-all"].strip()
    assert fast == f'{every} -m "not slow"'


def test_make_clean_leaves_measurements_alone(checkout: Path) -> None:
    kept = ["results/quick/run.jsonl", "reports/quick.html", "nightly/results/nightly/run.jsonl"]
    gone = [".venv/ready", "build/x", "dist/x", "site/index.html", ".mypy_cache/x", ".ruff_cache/x", ".pytest_cache/x"]
    for name in [*kept, *gone]:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    done = scratch.execute("make clean", checkout)
    assert done.returncode == 0, done.stderr
    assert all((checkout / name).is_file() for name in kept)
    assert not [name for name in gone if (checkout / name).exists()]


def test_git_lets_just_the_two_pages_of_the_folders_of_measurements_through() -> None:
    names = ["results/README.md", "reports/README.md", "results/quick/run.jsonl", "reports/quick.html", "results/quick/README.md"]
    done = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", "--no-index", *names], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == names[2:]


@pytest.mark.slow
def test_the_steps_of_the_release_build_what_the_index_takes_and_refuse_a_tag_of_another_version(checkout: Path) -> None:
    make, tag = runs(GITHUB / "workflows" / "release.yml")
    assert make == "make dist"
    done = scratch.execute(make, checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    built = {path.name for path in (checkout / "dist").iterdir()}
    assert built == {f"llm_quant_harness-{version}.tar.gz", f"llm_quant_harness-{version}-py3-none-any.whl"}
    assert scratch.execute(tag, checkout, GITHUB_REF_NAME=f"v{version}").returncode == 0
    assert scratch.execute(tag, checkout, GITHUB_REF_NAME="v99.0").returncode != 0
    wheel = next((checkout / "dist").glob("*.whl"))
    inside = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    ).stdout
    for needed in ("harness/suites/quick.yaml", "harness/reference/model/model.safetensors", "harness/report/assets/report.js"):
        assert needed in inside


def test_pre_commit_runs_the_ruff_that_the_tests_run() -> None:
    path = ROOT / ".pre-commit-config.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (repo,) = yaml.safe_load(path.read_text(encoding="utf-8"))["repos"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ruff=={repo['rev'].removeprefix('v')}" in pins
    assert {hook["id"] for hook in repo["hooks"]} == {"ruff-check", "ruff-format"}
