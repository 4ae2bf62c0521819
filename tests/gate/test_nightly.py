"""The files of examples/nightly work: valid against their schemas, and every command of theirs is run, night after night, against
a scripted suite, a bare repository and a local stand-in of the trackers."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import store
from harness.gate import journal, policy
from harness.suite import matrix
from tests.gate import drill, tracker
from tests.scratch import ROOT

WriteSuite = Callable[..., Path]
FOLDER = ROOT / "examples" / "nightly"
INSTALL = "pip install llm-quant-harness --constraint constraints.txt"


class Checkout:
    """A clone with the examples and a scripted suite in the place of suites/nightly.yaml; `quant-harness` is this one."""

    def __init__(self, folder: Path, suite: str, server: tracker.State) -> None:
        self.folder, self.server, self.home = folder / "clone", server, folder
        origin, programs = folder / "origin.git", folder / "bin"
        subprocess.run(["git", "init", "-q", "--bare", origin], check=True)
        subprocess.run(["git", "clone", "-q", origin, self.folder], check=True, capture_output=True)
        shutil.copytree(FOLDER, self.folder / "examples" / "nightly")
        (self.folder / "suites").mkdir()
        (self.folder / "suites" / "nightly.yaml").write_text(suite)
        shutil.copy(ROOT / "suites" / "policy.yaml", self.folder / "suites")
        git = ["git", "-C", str(self.folder), "-c", "user.name=a", "-c", "user.email=a@b"]
        for command in (["add", "-A"], ["commit", "-qm", "all"], ["push", "-q", "origin", "HEAD"]):
            subprocess.run([*git, *command], check=True)
        drill.offer(folder / "site")
        programs.mkdir()
        program = programs / "quant-harness"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m harness.cli "$@"\n')
        program.chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]),
            "DRILL": str(folder / "drill.json"),
            "GITHUB_API_URL": server.url,
            "CI_API_V4_URL": server.url,
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            "CI_PROJECT_ID": "7",
            "CI_PROJECT_URL": str(origin).removesuffix(".git"),
        }
        self.said = ""

    def lose(self, **cells: int) -> None:
        (self.home / "drill.json").write_text(json.dumps({f"fake {name[1:]}-bit": lost for name, lost in cells.items()}))

    def sh(self, command: str, **env: str) -> int:
        """Runs a command as both services run a step: by bash, which stops at the first failure."""
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command]
        done = subprocess.run(
            shell, cwd=self.folder, env={**self.env, **env}, capture_output=True, text=True, timeout=600, check=False
        )
        self.said += done.stdout + done.stderr
        return done.returncode

    def fresh(self) -> None:
        """What the next night finds: a new clone, with nothing of the last one."""
        subprocess.run(["git", "-C", self.folder, "worktree", "remove", "--force", "history"], check=True)
        shutil.rmtree(self.folder / "night", ignore_errors=True)


@pytest.fixture
def checkout(write_suite: WriteSuite, tmp_path: Path) -> Iterator[Checkout]:
    suite = write_suite("{bits: 4}", name="nightly").read_text().replace("probes: [quantize, fake]", "probes: [drill]")
    with tracker.standing_in() as server:
        yield Checkout(tmp_path, suite, server)


def load(name: str) -> dict[Any, Any]:
    data = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def steps() -> list[dict[str, Any]]:
    return [step for step in load("github-actions.yml")["jobs"]["night"]["steps"] if "run" in step]


ENV = {"GITHUB_TOKEN": tracker.TOKEN, "TRACKER": "--github team/project", "PULL": ""}
"""What the expressions of the workflow stand for on a scheduled night."""


def actions_night(checkout: Checkout) -> dict[str, int]:
    """Runs the steps of a night as GitHub does; the exit code of each that ran."""
    codes: dict[str, int] = {}
    for step in steps():
        if step["run"] != INSTALL and ("if" in step or not any(codes.values())):
            env = {name: ENV[name] for name in step.get("env", {})}
            codes[step["name"]] = checkout.sh(step["run"], **env)
    return codes


@pytest.mark.parametrize(("name", "schema"), [("github-actions.yml", "github-workflows"), ("gitlab-ci.yml", "gitlab-ci")])
def test_what_the_services_read_is_valid_against_their_schemas(name: str, schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actions_are_pinned_and_the_workflow_asks_for_no_more_rights_than_it_uses() -> None:
    workflow = load("github-actions.yml")
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert all(len(each.partition("@")[2]) == 40 for each in used)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["night"]["permissions"] == {"contents": "write", "issues": "write", "pull-requests": "write"}
    assert "secrets." not in (FOLDER / "github-actions.yml").read_text()
    assert {name for step in steps() for name in step.get("env", {})} == set(ENV)


def test_the_suite_of_the_nights_can_be_planned_and_its_policy_read() -> None:
    plan = matrix.plan(ROOT / "suites" / "nightly.yaml", device="cpu")
    assert plan.suite.name == "nightly"
    assert len(plan.cells) == 4
    assert not plan.unsupported
    assert policy.load(ROOT / "suites" / "policy.yaml").alpha == 0.01


@pytest.mark.slow
def test_five_nights_of_one_regression_at_github_are_one_issue_which_a_green_night_closes(checkout: Checkout) -> None:
    checkout.lose()
    assert set(actions_night(checkout).values()) == {0}, checkout.said
    for number in range(5):
        checkout.fresh()
        checkout.lose(_4=60)
        codes = actions_night(checkout)
        assert codes.pop("Run, gate, confirm, tell") == 1, checkout.said
        assert set(codes.values()) == {0}, checkout.said
        assert len(checkout.server.issues) == len(checkout.server.open) == 1, f"night {number}"
    assert checkout.server.said(1) == []
    assert (checkout.home / "summary.md").read_text().count("## ") >= 5
    checkout.fresh()
    checkout.lose()
    assert set(actions_night(checkout).values()) == {0}, checkout.said
    assert checkout.server.open == []

    folder = checkout.folder / "history" / "results" / "nightly"
    assert len(list(folder.glob("*.jsonl"))) == 7
    assert [line.green for line in journal.read(folder).verdicts] == [False] * 5 + [True]
    assert (checkout.folder / "night" / "site" / "index.html").is_file()
    assert not secrets_in(checkout)


def secrets_in(checkout: Checkout) -> list[str]:
    """Where the token lies that nobody may find."""
    written = [p for p in checkout.home.rglob("*") if p.is_file() and ".git" not in p.parts and p.stat().st_size < 1 << 24]
    assert len(written) > 50
    return [str(p) for p in written if tracker.TOKEN.encode() in p.read_bytes()] + (
        ["said"] if tracker.TOKEN in checkout.said else []
    )


@pytest.mark.slow
def test_the_job_at_gitlab_opens_one_issue_and_keeps_the_history(checkout: Checkout) -> None:
    job = load("gitlab-ci.yml")["nightly"]
    commands = [*job["script"], *job["after_script"]]
    assert commands[0] == INSTALL
    codes = []
    for lost in (0, 60, 60):
        checkout.lose(_4=lost)
        tracked = job["variables"]["TRACKER"].replace("$CI_PROJECT_ID", "7")
        codes.append([checkout.sh(each, TRACKER=tracked, GITLAB_TOKEN=tracker.TOKEN) for each in commands[1:]])
        assert (checkout.folder / "public" / "index.html").is_file(), checkout.said
        checkout.fresh()
    assert codes == [[0] * 5, [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]], checkout.said
    assert len(checkout.server.issues) == 1
    assert not secrets_in(checkout)


@pytest.mark.slow
def test_cron_and_systemd_run_a_night_and_a_pull_request_gets_a_comment_in_the_place_of_an_issue(checkout: Checkout) -> None:
    (line,) = [x for x in (FOLDER / "crontab").read_text().splitlines() if not x.startswith("#")]
    command = line.split(None, 5)[5]
    (checkout.home / "home").mkdir()
    (checkout.home / "home" / "quant-harness").symlink_to(checkout.folder)
    checkout.lose()
    assert checkout.sh(command, HOME=str(checkout.home / "home")) == 0, (checkout.folder / "night.log").read_text()

    checkout.lose(_4=60)
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as the library's documentation keeps the case of keys
    unit.read(FOLDER / "quant-harness-night.service")
    assert unit["Service"]["WorkingDirectory"] == "%h/quant-harness"
    told = {"TRACKER": "--github team/project", "GITHUB_TOKEN": tracker.TOKEN, "PULL": "17"}
    assert checkout.sh(unit["Service"]["ExecStart"], **told) == 1, checkout.said
    assert checkout.server.issues == []
    assert len(checkout.server.said(17)) == 1
    assert checkout.sh(unit["Service"]["ExecStart"], **{**told, "PULL": ""}) == 1, checkout.said
    assert len(checkout.server.open) == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_finds_nothing_to_say_of_its_units(tmp_path: Path) -> None:
    for name in ("quant-harness-night.service", "quant-harness-night.timer"):
        shutil.copy(FOLDER / name, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert [line for line in done.stderr.splitlines() if "quant-harness" in line] == []


@pytest.mark.slow
def test_an_interrupted_night_goes_on_in_the_morning_and_is_one_night(checkout: Checkout) -> None:
    checkout.lose()
    night = "bash examples/nightly/night.sh"
    assert checkout.sh(night) == 0, checkout.said
    results = checkout.folder / "history" / "results" / "nightly"
    checkout.lose(_4=drill.HANGS)
    quiet = subprocess.DEVNULL
    stopped = subprocess.Popen(
        shlex.split(night), start_new_session=True, cwd=checkout.folder, env=checkout.env, stdout=quiet, stderr=quiet
    )
    deadline = time.monotonic() + 300
    while not answered(results) and time.monotonic() < deadline:
        time.sleep(0.2)

    at_once = checkout.sh(night)
    assert at_once == 2, checkout.said
    assert "another quant-harness is writing this run; wait for it or stop it first" in checkout.said

    os.killpg(stopped.pid, signal.SIGINT)
    assert stopped.wait(timeout=300) != 0
    assert not store.read(store.newest(results)).ended
    checkout.lose()
    assert checkout.sh(night) == 0, checkout.said
    runs = sorted(results.glob("*.jsonl"))
    assert len(runs) == 2
    assert all(store.read(path).ended for path in runs)
    assert [line.candidate for line in journal.read(results).verdicts] == [runs[1].stem]


def answered(results: Path) -> bool:
    """Whether the second night has its baseline's answer, so that it is at the cell that hangs."""
    runs = sorted(results.glob("*.jsonl"))
    return len(runs) == 2 and '"kind":"cost"' in runs[1].read_text()


@pytest.mark.slow
def test_every_command_of_the_page_of_nights_runs_as_shown(checkout: Checkout) -> None:
    page = (ROOT / "docs" / "nightly.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^```bash\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    run, accept, gate, announce, site = [line.split("#")[0].strip() for line in first.splitlines()]
    packages, commits = [line.replace("hqq 4-bit g64", "fake 4-bit") for line in second.splitlines()]
    checkout.lose()
    assert [checkout.sh(run), checkout.sh(accept)] == [0, 0], checkout.said
    checkout.lose(_4=60)
    assert [checkout.sh(run), checkout.sh(gate), checkout.sh(announce), checkout.sh(site)] == [0, 1, 0, 0], checkout.said
    assert "would open: Regression: tiny / fake 4-bit (nightly)" in checkout.said
    assert checkout.sh(packages) == 1
    assert "not found: no package differs between the two runs" in checkout.said
    checkout.said = ""
    assert checkout.sh(commits) in (1, 2)
    assert re.search(r"both runs were made at the same commit|with changes that no commit holds", checkout.said), checkout.said
