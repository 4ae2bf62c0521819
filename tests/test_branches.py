"""Branches of the fork server: a library that starts threads is imported once, and every child has its threads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from harness.child.events import JobRequest
from harness.child.failures import Exit
from harness.child.fork_server import Server, ServerFailed, ServerSlow
from harness.child.job import Job, Outcome, read_outcome, write_job
from harness.spec import Model, Running, Scheme
from tests.squares import square

NOISY = """
import os, queue, threading
from concurrent.futures import ThreadPoolExecutor
with open("imported.txt", "a") as file:
    file.write("once\\n")
asked, told = queue.Queue(), queue.Queue()
class Worker(threading.Thread):
    def run(self):
        while True:
            told.put(asked.get() * 2)
worker = Worker(daemon=True)
worker.start()
early = ThreadPoolExecutor(1).submit(os.getpid)
"""

DRIVER = """
import json, os, sys, time
from harness import forking
from harness.child import branch as branches
branches.IMPORT_SECONDS = {seconds}

def jobs(lines, begin, done):
    for line in lines:
        child = os.fork()
        if child == 0:
            begin()
            if line.startswith("end"):
                os.kill(os.getppid(), 9)
                time.sleep(2)
            import noisy
            noisy.asked.put(int(line))
            said = [noisy.told.get(timeout=20), noisy.worker.is_alive(), noisy.early.result(20) == os.getpid()]
            with open("said.txt", "a") as file:
                file.write(json.dumps(said) + "\\n")
            os._exit(0)
        os.waitpid(child, 0)
        done()

born = []
branch = branches.Branch({{"noisy": lambda: __import__("noisy")}}, jobs, born.append)
ran = [branch.run(line + "\\n") for line in sys.argv[1:]] if branch.usable else []
threads = forking.threads()
print(json.dumps({{"usable": branch.usable, "ran": ran, "born": len(born), "server": threads,
                  "code": branch.close() if ran and not ran[-1] else None}}))
"""


def drive(tmp_path: Path, noisy: str, *lines: str, seconds: float = 60.0) -> dict[str, object]:
    (tmp_path / "noisy.py").write_text(textwrap.dedent(noisy))
    command = [sys.executable, "-c", DRIVER.format(seconds=seconds), *lines]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{root}"}, capture_output=True, text=True, timeout=100, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_threads_of_an_import_run_in_every_child_and_the_import_happens_once(tmp_path: Path) -> None:
    found = drive(tmp_path, NOISY, "3", "4")
    assert found == {"usable": True, "ran": [True, True], "born": 1, "server": 1, "code": None}
    assert (tmp_path / "imported.txt").read_text() == "once\n"
    said = [json.loads(line) for line in (tmp_path / "said.txt").read_text().splitlines()]
    assert said == [[6, True, True], [8, True, True]]  # each child has a worker of its own, and the one that was asked for early


def test_the_end_of_a_branch_is_told_with_its_exit_code(tmp_path: Path) -> None:
    found = drive(tmp_path, NOISY, "3", "end")
    assert found["ran"] == [True, False]
    assert found["code"] == -signal.SIGKILL


@pytest.mark.parametrize(
    "noisy",
    [
        "import _thread, time\n_thread.start_new_thread(time.sleep, (60,))",  # no thread that could be held back
        "import threading\ndone = threading.Event()\nthreading.Thread(target=done.set).start()\ndone.wait()",
    ],
    ids=["threads of C code", "waits for its thread"],
)
def test_an_import_that_cannot_be_forked_makes_no_branch(tmp_path: Path, noisy: str) -> None:
    assert drive(tmp_path, noisy, "3", seconds=2.0)["usable"] is False


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of the fake method that reloads its artifact."""
    artifact, folder = tmp_path / "artifact", tmp_path / "job"
    artifact.mkdir()
    folder.mkdir()
    (artifact / "fake.json").write_text("{}")
    (artifact / "reload_check.json").write_text(json.dumps({"skip": "scripted"}))
    write_job(
        folder,
        Job(
            stage="verify",
            cell=square(Scheme(method="fake", bits=4), model=Model(name="tiny"), running=Running(engine="fake")),
            model_dir=tmp_path,
            artifact_dir=artifact,
            device="cpu",
            seed=0,
            threads=1,
            cache=tmp_path,
        ),
    )
    return folder


def nothing_but_phases(job: Path) -> bool:
    """Whether the job ended well: its outcome is empty but for what was measured of the process."""
    outcome = read_outcome(job, phase="reload")
    return outcome is not None and replace(outcome, phases=()) == Outcome()


@pytest.mark.parametrize(
    ("noisy", "late"),
    [
        ("import threading\nthreading.Thread(target=print).start()", False),
        ("import no_such_library", False),  # what needs it would say so
        ("import os\nos.kill(os.getpid(), 11)", False),
        ("import time\ntime.sleep(60)", True),
    ],
    ids=["starts a thread", "broken", "dies", "hangs"],
)
def test_a_job_runs_in_a_branch_or_without_one_where_the_branch_fails(tmp_path: Path, job: Path, noisy: str, late: bool) -> None:
    server = Server(python=Path(sys.executable), modules=[], home=tmp_path / "home", env={})
    try:
        server.start()
        (tmp_path / "home" / "path" / "noisy.py").write_text(noisy)
        request = JobRequest(job=job, branch_modules=("noisy",))
        assert server.run(request, lambda event: None, 5.0) == Exit(code=0, timed_out=late)
        assert nothing_but_phases(job)
        (job / "outcome-0.json").unlink()
        assert server.run(JobRequest(job=job), lambda event: None, 20.0) == Exit(code=0)  # the server lives on
        assert nothing_but_phases(job)
    finally:
        server.close()


def test_a_server_that_leaves_by_itself_is_not_taken_for_one_that_was_killed(tmp_path: Path, job: Path) -> None:
    path = tmp_path / "home" / "path"
    path.mkdir(parents=True)
    (path / "quits.py").write_text("import os\nos.fork = lambda: os._exit(3)")
    server = Server(python=Path(sys.executable), modules=["quits"], home=tmp_path / "home", env={})
    try:
        assert server.run(JobRequest(job=job), lambda event: None, 20.0) == Exit(code=3)
    finally:
        server.close()


def test_a_server_that_is_only_slow_is_not_said_to_be_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing of the environment, so it is no ServerFailed, which is stored for every question: the run stops."""
    monkeypatch.setattr("harness.child.fork_server.START_SECONDS", 0.01)
    server = Server(python=Path(sys.executable), modules=["json"], home=tmp_path / "home", env={})
    with pytest.raises(
        ServerSlow, match=r"has not imported json after .* minutes: the machine is busy.* what is measured is kept: run"
    ):
        server.start()
    assert not issubclass(ServerSlow, ServerFailed)


def test_a_server_that_dies_is_said_to_be_broken(tmp_path: Path) -> None:
    server = Server(python=Path("/bin/false"), modules=[], home=tmp_path / "home", env={})
    with pytest.raises(ServerFailed, match="cannot serve jobs"):
        server.start()
