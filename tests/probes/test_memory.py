"""The memory probe against engines whose allocations are known to the byte."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.engines.base import EngineFacts
from harness.errors import Unsupported
from harness.measure import memory_phases
from harness.metrics import memory as metrics
from harness.probes import memory
from harness.probes.memory import PROBE, Start, against, rehearse
from harness.probes.requests import GenerationShape, ProbeRequests
from harness.spec import Answer, Phase, Question, Scheme
from tests.squares import square

MIB = 2**20
NEAR = 4 * MIB
linux = pytest.mark.skipif(memory_phases.resident() is None, reason="the kernel's counters are Linux's")


def block(mebibytes: int) -> np.ndarray:
    """Touched memory of its own mapping, so that freeing it gives it back at once."""
    return np.ones(mebibytes * MIB, dtype=np.uint8)


class Engine:
    """Holds 64 MiB of weights; prefill needs 96 MiB for a moment and leaves a cache of 16 MiB; decode needs 32 MiB."""

    def __init__(self, weights: Any, *, simulated: bool = False, device: str = "cpu") -> None:
        self.weights = weights
        self.cache: Any = None
        self.simulated = simulated
        self.device = device

    def facts(self) -> EngineFacts:
        return EngineFacts(engine="toy", device=self.device, kernels=(), simulated=self.simulated, resident_weight_bytes=64 * MIB)

    def run_phase(self, phase: str, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> dict[str, Any]:
        assert (prompt_tokens, new_tokens, batch) == (32, 4, 2)
        assert int(self.weights.max()) >= 0  # every weight is read, as a forward does
        if phase == "prefill":
            block(96)
            self.cache = block(16)
            return {"kv_cache_bytes": 16 * MIB}
        block(32)
        return {"kv_cache_bytes": 16 * MIB, "continued": True}


class Session:
    def __init__(self, folder: Path, load: Any) -> None:
        self.cell = square(Scheme(method="toy", bits=4))
        self.artifact_dir = self.model_dir = folder
        self.device, self.seed = "cpu", 0
        self.held: Any = None
        self.load = load
        self.done: list[Phase] = []

    @property
    def loaded(self) -> Any:
        if self.held is None:
            self.held = self.load()
        return self.held

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with memory_phases.measure(name) as meter:
            yield
        assert meter.phase is not None
        self.done.append(meter.phase)

    def phases(self) -> tuple[Phase, ...]:
        return tuple(self.done)


QUESTION = Question(probe="memory", subject="", options={"prompt": 32, "new": 4, "batch": 2})


@pytest.fixture(autouse=True)
def unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy engine has no runtime that would have to be used once."""
    monkeypatch.setattr(memory, "rehearse", lambda session: "none")


def ask(folder: Path, load: Any) -> tuple[dict[str, float], Answer]:
    answer = PROBE.measure(Session(folder, load), QUESTION)  # type: ignore[arg-type]
    return {m.metric: m.value for m in answer.measurements}, answer


@linux
def test_every_phase_is_the_sum_of_what_it_needed(tmp_path: Path) -> None:
    found, answer = ask(tmp_path, lambda: Engine(block(64)))
    assert abs(found["peak_load_bytes"] - 64 * MIB) < NEAR
    assert abs(found["peak_prefill_bytes"] - (64 + 96) * MIB) < NEAR  # the cache is made after the spike is gone
    assert abs(found["peak_decode_bytes"] - (64 + 16 + 32) * MIB) < NEAR
    assert found["peak_host_bytes"] == found["peak_prefill_bytes"]
    assert found["weight_bytes_resident"] == 64 * MIB
    assert found["kv_cache_bytes"] == 16 * MIB
    assert abs(found["rest_bytes"] - 32 * MIB) < NEAR
    assert found["runtime_bytes"] >= answer.facts["before_load_bytes"] > 0
    assert not answer.facts["decode_includes_prefill"]
    declared = {metric.name: metric.unit for metric in PROBE.metrics}
    assert all(m.unit == declared[m.metric] for m in answer.measurements)


@linux
def test_what_the_process_held_before_is_no_part_of_the_figures(tmp_path: Path) -> None:
    ballast = block(200)
    found, answer = ask(tmp_path, lambda: Engine(block(64)))
    assert ballast[0] == 1
    assert abs(found["peak_load_bytes"] - 64 * MIB) < NEAR
    assert answer.facts["before_load_bytes"] > 200 * MIB


@linux
def test_a_loader_that_needs_the_weights_twice_for_a_moment_shows_it(tmp_path: Path) -> None:
    def load() -> Engine:
        raw = block(64)
        engine = Engine(raw.copy())
        del raw
        return engine

    found, _ = ask(tmp_path, load)
    assert abs(found["peak_load_bytes"] - 128 * MIB) < NEAR
    assert abs(found["peak_decode_bytes"] - (64 + 16 + 32) * MIB) < NEAR


@linux
def test_mapped_and_read_weights_need_the_same_within_three_percent(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(64 * MIB))
    by_map, answer = ask(tmp_path, lambda: Engine(np.memmap(tmp_path / "model.safetensors", dtype=np.uint8, mode="r")))
    by_read, _ = ask(tmp_path, lambda: Engine(np.fromfile(tmp_path / "model.safetensors", dtype=np.uint8)))
    for metric in ("peak_load_bytes", "peak_prefill_bytes", "peak_decode_bytes", "peak_host_bytes"):
        assert by_map[metric] == pytest.approx(by_read[metric], rel=0.03)
    assert answer.facts["phases"]["decode"]["mapped_weights_bytes"] == 64 * MIB


@linux
def test_weights_that_a_loader_maps_twice_are_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(64 * MIB))

    def load() -> Engine:
        engine = Engine(np.memmap(path, dtype=np.uint8, mode="r"))
        engine.twin = np.memmap(path, dtype=np.uint8, mode="r")  # type: ignore[attr-defined]
        assert int(engine.twin.max()) == int(engine.weights.max()) == 0  # type: ignore[attr-defined]
        return engine

    found, _ = ask(tmp_path, load)
    assert abs(found["peak_load_bytes"] - 64 * MIB) < NEAR


@linux
def test_a_file_that_was_mapped_copied_and_never_read_again_is_not_counted_after_load(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(64 * MIB))

    def load() -> Engine:
        held = np.memmap(path, dtype=np.uint8, mode="r")
        engine = Engine(np.array(held))
        engine.held = held  # type: ignore[attr-defined]
        return engine

    found, _ = ask(tmp_path, load)
    assert abs(found["peak_load_bytes"] - 128 * MIB) < NEAR
    assert abs(found["peak_decode_bytes"] - (64 + 16 + 32) * MIB) < NEAR


@linux
def test_a_simulated_engine_shows_no_memory(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="simulated"):
        ask(tmp_path, lambda: Engine(block(1), simulated=True))


def test_where_the_kernel_counts_nothing_the_probe_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_phases, "resident", lambda proc=None: None)
    with pytest.raises(Unsupported, match="Linux"):
        ask(tmp_path, lambda: Engine(block(1)))


START = Start(total=1000, files=memory_phases.Mapped(weights=0, other=300, doubled=5))


def test_code_pages_and_second_mappings_that_came_since_are_taken_off() -> None:
    phase = Phase(name="load", seconds=1.0, peak_bytes={"host_peak": 1900})
    beyond = against(START, phase, memory_phases.Mapped(weights=400, other=350, doubled=25))
    assert beyond.host == 1900 - 1000 - 50 - 20
    assert beyond.facts.code_growth_bytes == 50


def test_a_peak_that_may_be_older_than_the_phase_is_not_shown() -> None:
    phase = Phase(name="load", seconds=1.0, peak_bytes={"host_peak_at_most": 1900})
    beyond = against(START, phase, None)
    assert beyond.host is None
    assert "clear_refs" in beyond.missing


@linux
def test_on_a_device_the_figures_are_the_allocators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100, 300, 250])
    facts = memory.PhaseFacts(
        seconds=1.0,
        peak_bytes={},
        beyond_start_bytes=7,
        code_growth_bytes=0,
        mapped_weights_bytes=None,
        mapped_twice_bytes=0,
    )
    monkeypatch.setattr(
        memory,
        "_beyond",
        lambda session, start: memory.Beyond(host=7, code=0, device=next(peaks), missing="", facts=facts),
    )
    found, answer = ask(tmp_path, lambda: Engine(block(1), device="cuda:0"))
    assert (found["peak_load_bytes"], found["peak_prefill_bytes"], found["peak_decode_bytes"]) == (100, 300, 250)
    assert found["peak_device_bytes"] == 300
    assert found["peak_host_bytes"] == 7
    assert {m.definition for m in answer.measurements if m.metric == "peak_decode_bytes"} == {metrics.DEVICE}


def test_the_question_names_its_context_and_batch() -> None:
    requests = ProbeRequests(memory=GenerationShape(prompt=512, new=64, batch=1))
    (question,) = PROBE.questions(requests)
    assert question.options == {"prompt": 512, "new": 64, "batch": 1}
    assert question.subject == "512+64 x1"


@pytest.mark.parametrize(("method", "library", "other"), [("autogptq", "gptqmodel", "auto_gptq"), ("gptq", "gptqmodel", "awq")])
def test_the_rehearsal_imports_the_library_that_loads_the_artifact_and_not_one_that_only_wrote_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, library: str, other: str
) -> None:
    imported: list[str] = []
    monkeypatch.setattr(importlib, "import_module", imported.append)
    monkeypatch.setattr(memory, "_run_tiny", lambda model_dir, device: "nothing")
    session: Any = Session(tmp_path, None)
    session.cell = square(Scheme(method=method, bits=4))
    rehearse(session)
    assert library in imported
    assert other not in imported
