"""The matrix from outside, on the fake method: crashes, hangs, kills and resumption in real child processes."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import proof, store
from harness.errors import BadInput, StoreError
from harness.run import runner
from harness.spec import Question, Record
from harness.suite.matrix import plan

WriteSuite = Callable[..., Path]


def run(suite: Path, tmp_path: Path, *, fresh: bool = False, retry_failed: bool = False) -> store.Run:
    results, cache = tmp_path / "results", tmp_path / "cache"
    settings = runner.Settings(results=results, cache=cache, fresh=fresh, retry_failed=retry_failed)
    return store.read(runner.run(plan(suite, device="cpu"), settings))


def statuses(stored: store.Run, scheme: str) -> dict[str, str]:
    return {
        f"{r.question.probe} {r.question.subject}".strip(): r.status for r in stored.records if r.cell.label.startswith(scheme)
    }


def record(stored: store.Run, scheme: str, subject: str) -> Record:
    return next(r for r in stored.records if r.cell.label.startswith(scheme) and r.question.subject == subject)


def measured(tmp_path: Path) -> Counter[str]:
    path = tmp_path / "cache" / "fake-measured.txt"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def test_every_planned_question_becomes_one_record_with_its_number_and_its_raw_samples(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    stored = run(write_suite("{bits: 4, value: 2.5}"), tmp_path)
    assert stored.ended
    assert len(stored.records) == 2 * 4
    answer = record(stored, "fake 4-bit", "b").answer
    assert answer is not None
    (measurement,) = answer.measurements
    assert (measurement.metric, measurement.value, measurement.n) == ("fake_value", 2.5, 1)
    assert measurement.blob is not None
    assert json.loads(stored.blob(measurement.blob)) == {"value": 2.5}


def test_what_several_cells_are_asked_is_begun_once_for_all_of_them(write_suite: WriteSuite, tmp_path: Path) -> None:
    run(write_suite("{bits: [4, 3]}"), tmp_path)
    begun = tmp_path / "cache" / "fake-prepared.txt"
    assert begun.read_text() == "a b c\n"
    run(write_suite("{bits: [4, 3, 2]}"), tmp_path)
    assert begun.read_text() == "a b c\n", "one more cell begins for itself"


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("crash", "crash"),
        ("kill", "oom"),
        ("memory", "oom"),
        ("raise:boom", "error"),
        ("exit:3", "crash"),
        ("sleep:30", "timeout"),
    ],
)
def test_a_probe_that_dies_is_a_typed_failure_and_costs_only_itself(
    write_suite: WriteSuite, tmp_path: Path, script: str, kind: str
) -> None:
    stored = run(write_suite(f"{{bits: 4, on_b: '{script}'}}", extra="timeout: 1.5"), tmp_path)
    assert statuses(stored, "fake 4-bit") == {"quantize": "ok", "fake a": "ok", "fake b": kind, "fake c": "ok"}
    assert set(statuses(stored, "fake 16-bit").values()) == {"ok"}
    failure = record(stored, "fake 4-bit", "b").failure
    assert failure is not None
    assert failure.phase == "fake"
    assert failure.message
    if script == "raise:boom":
        assert "boom" in failure.message
        assert "Traceback" in failure.log_tail


@pytest.mark.parametrize(
    ("script", "kind"), [("crash", "crash"), ("raise:no kernel", "error"), ("torn", "crash"), ("sleep:30", "timeout")]
)
def test_a_quantization_that_dies_fails_its_cell_alone_and_leaves_no_artifact(
    write_suite: WriteSuite, tmp_path: Path, script: str, kind: str
) -> None:
    stored = run(write_suite(f"{{bits: 3, on_quantize: '{script}'}}", "{bits: 2}", extra="quantize_timeout: 1.5"), tmp_path)
    assert set(statuses(stored, "fake 3-bit").values()) == {kind}
    assert set(statuses(stored, "fake 2-bit").values()) == {"ok"}
    assert not [p for p in (tmp_path / "cache" / "artifacts").iterdir() if p.name.startswith((".draft", "fake-3"))]


def test_latency_is_asked_of_the_model_that_memory_loaded_and_memory_of_a_process_that_did_nothing_before() -> None:
    asked = [Question(probe=name, subject=f"{i}") for i, name in enumerate(("latency", "memory", "size", "memory", "latency"))]
    groups = runner._groups(asked)
    assert [[(q.probe, q.subject) for q in group] for group in groups] == [
        [("size", "2")],
        [("memory", "1")],
        [("memory", "3"), ("latency", "0"), ("latency", "4")],
    ]
    assert runner._groups([asked[0], asked[2]]) == [[asked[2]], [asked[0]]]
    assert runner._groups([asked[1]]) == [[asked[1]]]
    assert runner._groups([]) == []


def test_after_a_memory_question_that_failed_latency_gets_a_process_of_its_own(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4}")
    suite.write_text(suite.read_text().replace("probes: [quantize, fake]", "probes: [memory, latency]"))
    stored = run(suite, tmp_path)
    memory, latency, *_ = (r.failure for r in stored.records if r.cell.bits == 4)
    assert memory is not None
    assert latency is not None
    assert "run_phase" in memory.message  # the scripted engine offers neither: both probes fail, each in its own way
    assert "time_generation" in latency.message
    assert "run_phase" not in latency.log_tail  # the log is that of its own process


def test_a_nonfinite_number_is_stored_as_what_it_is(write_suite: WriteSuite, tmp_path: Path) -> None:
    answer = record(run(write_suite("{bits: 2, on_c: nan}"), tmp_path), "fake 2-bit", "c").answer
    assert answer is not None
    assert math.isnan(answer.measurements[0].value)


def test_running_again_repeats_nothing(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4}", "{bits: 3, on_a: crash}")
    first = run(suite, tmp_path)
    again = run(suite, tmp_path)
    assert again.path == first.path
    assert again.records == first.records
    assert set(measured(tmp_path).values()) == {1}


def test_a_failed_question_is_asked_again_only_on_request(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 3, on_a: 'raise:x'}")
    first = run(suite, tmp_path)
    again = run(suite, tmp_path, retry_failed=True)
    assert again.path == first.path
    assert record(again, "fake 3-bit", "a").started_at >= record(first, "fake 3-bit", "a").started_at
    kinds = Counter(json.loads(line)["kind"] for line in first.path.read_text().splitlines())
    assert kinds == {"header": 1, "plan": 1, "artifact": 2, "record": 8 + 1, "cost": 2 + 1, "end": 1 + 1}
    assert set(measured(tmp_path).values()) == {1}


def test_fresh_makes_a_new_run_with_the_cached_artifacts(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4}")
    first = run(suite, tmp_path)
    again = run(suite, tmp_path, fresh=True)
    assert again.path != first.path
    assert len(again.records) == len(first.records)
    assert len((tmp_path / "cache" / "fake-quantized.txt").read_text().splitlines()) == 2


def test_a_suite_that_grows_measures_only_what_is_new(write_suite: WriteSuite, tmp_path: Path) -> None:
    first = run(write_suite("{bits: 4}"), tmp_path)
    grown = run(write_suite("{bits: 4}", "{bits: 2}"), tmp_path)
    assert grown.path == first.path
    assert len(grown.records) == 12
    assert len(grown.plan.cells) == 3
    assert set(measured(tmp_path).values()) == {1}


def test_a_run_cut_at_any_line_or_within_one_is_completed_without_repeating_a_stored_number(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite("{bits: 4}")
    whole = run(suite, tmp_path)
    lines = whole.path.read_bytes().splitlines(keepends=True)
    want = {(r.key, r.status) for r in whole.records}
    for kept in range(1, len(lines)):
        for torn in (b"", lines[kept][: len(lines[kept]) // 2]):
            proof.seal_path(whole.path).unlink(missing_ok=True)  # it was never finished
            whole.path.write_bytes(b"".join(lines[:kept]) + torn)
            before = sum(measured(tmp_path).values())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", store.TornLine)
                again = run(suite, tmp_path)
            assert again.ended
            assert {(r.key, r.status) for r in again.records} == want
            stored = sum(1 for line in lines[:kept] if b'"kind":"record"' in line and b'"probe":"fake"' in line)
            assert sum(measured(tmp_path).values()) - before == 6 - stored


def _stored(results: Path, subject: str, label: str) -> bool:
    """Whether a whole line of a run file is the record of this question of a cell with `label` in its label."""
    lines = [line for path in results.rglob("*.jsonl") for line in path.read_text("utf-8").split("\n")[:-1]]
    records = [record for record in map(json.loads, lines) if record["kind"] == "record"]
    return any(r["question"]["subject"] == subject and label in r["cell"]["label"] for r in records)


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_harness_that_is_killed_takes_its_children_along_and_the_same_command_goes_on(
    write_suite: WriteSuite, tmp_path: Path, how: signal.Signals
) -> None:
    suite = write_suite("{bits: 4, on_b: 'sleep:3'}", "{bits: 2}")
    command = [
        sys.executable,
        "-m",
        "harness.cli",
        "run",
        str(suite),
        "--results",
        str(tmp_path / "results"),
        "--report",
        str(tmp_path / "r.html"),
    ]
    # Who starts the tests in the background may have had SIGINT ignored, and children inherit that.
    first = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_interruptible,
    )
    deadline = time.monotonic() + 60
    while not _stored(tmp_path / "results", "a", "sleep:3"):  # what is not stored when it is killed is measured again
        assert time.monotonic() < deadline, first.communicate()
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    children = _descendants(first.pid)
    assert len(children) == 3  # the fork server, its branch and the measuring child
    first.send_signal(how)
    _, said = first.communicate(timeout=30)
    assert first.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert ("goes on from here" in said) == (how == signal.SIGINT)
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a child outlived the harness"
        time.sleep(0.05)
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 0, second.stderr
    assert "going on from there" in second.stdout
    stored = store.read(tmp_path / "results" / "scripted")
    assert stored.ended
    assert len(stored.records) == 12
    assert {r.status for r in stored.records} == {"ok"}
    assert set(measured(tmp_path).values()) == {1}
    assert not list((tmp_path / "cache" / "jobs").iterdir())  # what the killed one left is swept away


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count CPU time in nanoseconds")
@pytest.mark.parametrize("terminal", [False, True], ids=["piped", "on a terminal"])
def test_parent_and_monitors_use_at_most_one_percent_of_a_cpu_while_something_is_measured(
    write_suite: WriteSuite, tmp_path: Path, terminal: bool
) -> None:
    suite = write_suite("{bits: 4, on_b: 'sleep:60'}")
    command = [sys.executable, "-m", "harness.cli", "run", str(suite), "--results", str(tmp_path / "results")]
    ours, theirs = pty.openpty() if terminal else os.pipe()
    first = subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    threading.Thread(target=_drain, args=(ours,), daemon=True).start()
    try:
        deadline = time.monotonic() + 120
        while not _stored(tmp_path / "results", "a", "sleep:60"):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        everyone = [first.pid, *_descendants(first.pid)]
        assert len(everyone) == 4, (
            "the parent, the fork server, its branch, and the child, which sleeps: what it uses is its monitors'"
        )
        before, began = sum(map(_cpu_seconds, everyone)), time.monotonic()
        time.sleep(4)
        used, passed = sum(map(_cpu_seconds, everyone)) - before, time.monotonic() - began
    finally:
        first.kill()
        first.wait()
    print(f"{used * 1000:.1f} ms of CPU in {passed:.1f} s: {used / passed:.2%}")
    assert used / passed <= 0.01


def _drain(fd: int) -> None:
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while os.read(fd, 1 << 16):
            pass
    os.close(fd)


def _cpu_seconds(pid: int) -> float:
    """What all threads of a process have used so far (proc(5))."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def test_children_of_a_run_that_needs_no_hub_are_told_that_there_is_none(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    failure = record(run(write_suite("{bits: 4, on_a: 'env:HF_HUB_OFFLINE'}"), tmp_path), "fake 4-bit", "a").failure
    assert failure is not None
    assert "HF_HUB_OFFLINE is 1" in failure.message


def test_children_of_a_run_that_needs_no_hub_get_no_token_for_it(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_person")
    failure = record(run(write_suite("{bits: 4, on_a: 'env:HF_TOKEN'}"), tmp_path), "fake 4-bit", "a").failure
    assert failure is not None
    assert "HF_TOKEN is None" in failure.message


def test_two_writers_of_one_run_are_refused(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4}")
    first = run(suite, tmp_path)
    with store.Writer(first.path, first.header), pytest.raises(StoreError, match="another quant-harness is writing"):
        run(suite, tmp_path)


def test_a_disk_that_is_too_small_is_said_before_anything_starts(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.measure.machine.free_disk_bytes", lambda path: 10)
    with pytest.raises(BadInput, match="no space left"):
        run(write_suite("{bits: 4}"), tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_disk_that_fills_up_keeps_what_is_measured_and_says_what_to_do(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite("{bits: 4}")
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("harness.store.os.fsync", full)
    with pytest.raises(StoreError, match=r"no space left.*everything already measured is kept"):
        run(suite, tmp_path)
    monkeypatch.setattr("harness.store.os.fsync", real)
    assert {r.status for r in run(suite, tmp_path).records} == {"ok"}
    assert max(measured(tmp_path).values()) <= 2


def _descendants(pid: int) -> list[int]:
    found = []
    for child in _children(pid):
        found += [child, *_descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
