"""The script that proves that two runs hold equal measurements sees a digit, a raw sample and a failure that changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.run.runner import Settings, run
from harness.suite import matrix
from tests.compare_runs import compare


@pytest.fixture
def two_runs(write_suite: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same scripted suite, run twice from nothing."""
    plan = matrix.plan(write_suite("{bits: 4}", "{bits: 3, on_a: error}"), device="cpu")
    before, after = (run(plan, Settings(results=tmp_path / name, cache=tmp_path / "cache")) for name in ("before", "after"))
    return before, after


def test_two_runs_of_one_suite_are_equal(two_runs: tuple[Path, Path]) -> None:
    differences, equal, varying = compare(*two_runs)
    assert differences == []
    assert equal > 0
    assert varying > 0


def test_a_changed_value_a_changed_sample_and_a_missing_record_are_told(two_runs: tuple[Path, Path]) -> None:
    before, after = two_runs
    lines = [json.loads(line) for line in after.read_text().splitlines()]
    records = [line for line in lines if line["kind"] == "record" and line["question"]["probe"] == "fake"]
    measured = [r for r in records if r["answer"] is not None]
    measured[0]["answer"]["measurements"][0]["value"] += 1e-12
    failed = next(r for r in records if r["failure"] is not None)
    lines.remove(failed)
    after.write_text("".join(json.dumps(line) + "\n" for line in lines))
    differences, _, _ = compare(before, after)
    assert len(differences) == 2
    assert any("is now" in line for line in differences)
    assert any(line.startswith(f"only in {before}") for line in differences)


def test_raw_samples_are_compared_byte_by_byte(two_runs: tuple[Path, Path]) -> None:
    before, after = two_runs
    blobs = [p for p in (after.parent / "blobs").rglob("*") if p.is_file()]
    assert blobs
    for blob in blobs:
        blob.write_bytes(blob.read_bytes() + b" ")
    differences, _, _ = compare(before, after)
    assert differences
    assert all("raw samples differ" in line for line in differences)
