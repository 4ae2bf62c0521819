"""Bytes of keys and values as the resident set grows by them: numbers far above a heap's noise, and none within it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import kv, store
from harness.errors import Unsupported
from harness.measure import memory_phases
from harness.probes import PROBES
from harness.probes.kv_memory import NOISE, measurement
from harness.report import kv as section
from harness.report.view import view
from harness.suite import matrix

SUITE = """
name: weighed
models: [reference]
baseline: bf16
methods:
  bf16: {kv: [bf16, int8]}
  openvino: {bits: 16, kv: [f16, int4, turbo3]}
probes: [size, memory, kv_memory]
memory: {prompt: 32, new: 4, batch: 1}
"""


def test_a_number_is_the_middle_of_its_fills_between_their_extremes() -> None:
    found = measurement([33 << 20, 32 << 20, 34 << 20], 1 << 10)
    assert (found.value, found.low, found.high, found.n) == (33 << 10, 32 << 10, 34 << 10, 3)


def test_growth_within_a_heaps_noise_is_no_number_and_says_why() -> None:
    with pytest.raises(Unsupported, match=r"grew by 4,194,303, 33,554,432, 33,554,432 bytes with 1,000 tokens: less than the 4"):
        measurement([NOISE - 1, 32 << 20, 32 << 20], 1000)


def test_fills_that_differ_are_no_number() -> None:
    with pytest.raises(Unsupported, match="the fills differ by more than 10%"):
        measurement([32 << 20, 36 << 20, 33 << 20], 1000)


def test_only_cells_of_an_engine_whose_cache_nobody_can_count_are_asked(tmp_path: Path) -> None:
    (tmp_path / "weighed.yaml").write_text(SUITE)
    plan = matrix.plan(tmp_path / "weighed.yaml", device="cpu")
    asked = {p.cell.running.engine for p in plan.cells if any(q.probe == "kv_memory" for q in p.questions)}
    assert PROBES["kv_memory"].engines == ("openvino",)
    assert asked == {"openvino"}
    assert {p.cell.running.engine for p in plan.cells} == {"openvino", "transformers"}


@pytest.mark.slow
@pytest.mark.skipif(memory_phases.resident() is None, reason="the kernel's counters are Linux's")
def test_a_state_of_few_bits_takes_what_its_bits_say_and_little_more_and_the_report_shows_it(tmp_path: Path) -> None:
    for package in ("openvino", "nncf"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[openvino]'")
    (tmp_path / "weighed.yaml").write_text(SUITE)
    command = [sys.executable, "-m", "harness.cli", "run", "weighed.yaml", "--cache", "cache", "--report", "weighed.html"]
    here = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=900, env=here)
    run = store.read(tmp_path / "results" / "weighed")
    found = {
        record.cell.running.kv: one
        for record in run.records
        if record.answer is not None
        for one in record.answer.measurements
        if one.metric == "kv_bytes_per_token"
    }
    assert set(found) == {"f16", "int4", "turbo3"}, done.stdout[-2000:]
    for word, one in found.items():
        arithmetic = kv.bytes_per_token("openvino", word, layers=5, heads=4, size=64)
        assert 0.85 * arithmetic < one.value < 1.3 * arithmetic, (word, one)
    shown = view(run)
    kept = [section._kept(shown, cell, None) for cell in shown.cells if cell.cell.running.engine == "openvino"]
    worth = {one.cell.cell.running.kv: section._worth(one, kept) for one in kept}
    assert worth["f16"] == "–"
    assert 0 < int(worth["turbo3"].replace(",", "")) < int(worth["int4"].replace(",", ""))
    assert "weighed" in (tmp_path / "weighed.html").read_text(encoding="utf-8")
