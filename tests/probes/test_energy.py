"""Energy from a powercap tree of files: what is added up, what is subtracted, and what is refused in words."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import pytest

from harness.engines import moments
from harness.engines.base import EngineFacts, Timing
from harness.measure import energy, machine, nvidia
from harness.measure.energy import Idle, Meter, Unreadable, idle_of, meter_of
from harness.probes.latency import PROBE
from harness.probes.requests import GenerationShape
from harness.spec import Answer, Question, Scheme
from tests.counted_energy import Counted
from tests.squares import square

SHAPE = GenerationShape(prompt=100, new=5, batch=2)
QUESTION = Question(probe="latency", subject=SHAPE.name, options={**SHAPE.options(), "budget_seconds": 60.0})


def meter(world: Counted, monkeypatch: pytest.MonkeyPatch) -> Meter:
    monkeypatch.setattr(energy, "POWERCAP", world.root)
    found = meter_of("cpu", clock=world.clock)
    assert isinstance(found, Meter), found
    return found


def idle(world: Counted, monkeypatch: pytest.MonkeyPatch) -> Idle:
    found = idle_of(meter(world, monkeypatch), sleep=world.sleep)
    assert isinstance(found, Idle), found
    return found


# ---- counters ----


def test_packages_are_added_up_without_their_children_the_platform_or_a_second_way_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "package-1"}
    zones |= {"intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}
    world = Counted(tmp_path, zones=zones, watts=7.0)
    counters = meter(world, monkeypatch)
    before = counters.read()
    world.passes(10.0)
    after = counters.read()
    assert len(before.microjoules) == 2
    assert counters.joules(before, after) == pytest.approx(2 * 7.0 * 10.0, rel=1e-3)


def test_dies_of_one_package_are_all_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Counted(tmp_path, zones={"intel-rapl:0": "package-0-die-0", "intel-rapl:1": "package-0-die-1"})
    assert len(meter(world, monkeypatch).read().microjoules) == 2


def test_a_counter_that_begins_again_at_0_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = 65_532_610_987
    world = Counted(tmp_path, watts=50.0, whole=whole, begun=whole - 100_000_000)
    counters = meter(world, monkeypatch)
    before = counters.read()
    world.passes(20.0)
    after = counters.read()
    assert after.microjoules[0] < before.microjoules[0]
    assert counters.joules(before, after) == pytest.approx(1000.0, rel=1e-3)


def test_a_span_in_which_a_counter_could_have_gone_round_twice_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Counted(tmp_path, whole=65_532_610_987)
    counters = meter(world, monkeypatch)
    before = counters.read()
    world.passes(70.0)
    with pytest.raises(Unreadable, match="gone round twice"):
        counters.joules(before, counters.read())


def test_the_idle_machine_is_watched_for_a_second_and_its_counters_steps_are_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Counted(tmp_path, watts=12.5)
    found = idle(world, monkeypatch)
    assert found.watts == pytest.approx(12.5, rel=1e-2)
    assert found.resolution_seconds == pytest.approx(1e-3, rel=0.05)
    assert found.seconds == pytest.approx(1.0, rel=1e-2)


def test_slow_counters_are_watched_for_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Counted(tmp_path, watts=12.5, step=0.1)
    found = idle(world, monkeypatch)
    assert found.resolution_seconds == pytest.approx(0.1, rel=0.01)
    assert found.seconds == pytest.approx(2.0, rel=0.01)


def test_counters_that_never_move_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Counted(tmp_path, watts=0.0)
    said = idle_of(meter(world, monkeypatch), sleep=world.sleep)
    assert isinstance(said, str)
    assert "do not move" in said


# ---- what is refused ----


def test_a_counter_that_only_root_may_read_is_refused_with_the_command_that_permits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counted(tmp_path)
    read = Path.read_bytes

    def closed(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(Path, "read_bytes", closed)
    said = meter_of("cpu")
    assert isinstance(said, str)
    assert said.endswith(f"sudo chmod a+r {tmp_path / 'intel-rapl:0' / 'energy_uj'}")


@pytest.mark.parametrize(("virtual", "words"), [(True, "virtual machine"), (False, "sudo modprobe intel_rapl_msr")])
def test_a_machine_without_counters_says_why(virtual: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "not there")
    monkeypatch.setattr(machine, "cpu_virtualized", lambda: virtual)
    said = meter_of("cpu")
    assert isinstance(said, str)
    assert words in said


def test_other_devices_have_no_counter_that_anybody_named() -> None:
    assert "'server'" in str(meter_of("server"))


def test_a_range_that_is_not_said_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Counted(tmp_path)
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text("\n")
    monkeypatch.setattr(energy, "POWERCAP", world.root)
    assert "max_energy_range_uj" in str(meter_of("cpu"))


class Nvml:
    """As much of the driver's library as is asked; `code` is what its counter returns."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.counted, self.uuid = code, 5_000_000_000, b""

        class Said:
            restype: Any = None

            def __call__(self, code: int) -> bytes:
                return b"Not Supported"

        self.nvmlErrorString = Said()

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, device: Any) -> int:
        self.uuid = uuid
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, counted: Any) -> int:
        ctypes.cast(counted, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.counted
        return self.code


def test_a_gpus_board_is_read_in_millijoules_and_found_by_its_uuid() -> None:
    library = Nvml()
    board = energy.Board(read_millijoules=nvidia._total_energy(library, "GPU-1234"))
    counters = Meter(board)
    before = counters.read()
    library.counted += 2500
    assert counters.joules(before, counters.read()) == pytest.approx(2.5)
    assert library.uuid == b"GPU-1234"


def test_a_gpu_without_the_counter_says_so() -> None:
    with pytest.raises(nvidia.NoCounter, match="Not Supported"):
        nvidia._total_energy(Nvml(code=3), "GPU-1234")


# ---- on the rounds of latency ----


class Engine:
    """Works for scripted seconds at scripted watts, and tells its moments as real engines do."""

    def __init__(self, world: Counted, *, prefill: tuple[float, float], step: tuple[float, float], tells: bool = True) -> None:
        self.world, self.prefill, self.step, self.tells = world, prefill, step, tells

    def facts(self) -> EngineFacts:
        return EngineFacts(engine="toy", device="cpu", kernels=(), simulated=False, resident_weight_bytes=0)

    def time_generation(self, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> Timing:
        self.world.passes(0.01)  # a prompt is drawn
        self._tell("begin")
        self.world.works(*self.prefill)
        self._tell("first token")
        for _ in range(new_tokens - 1):
            self.world.works(*self.step)
        self._tell("end")
        return Timing(ttft_seconds=self.prefill[0], step_seconds=(self.step[0],) * (new_tokens - 1))

    def _tell(self, moment: moments.Moment) -> None:
        if self.tells:
            moments.tell(moment)


class Session:
    def __init__(self, loaded: Engine, base: Engine | None) -> None:
        self.cell = square(Scheme(method="toy", bits=4))
        self.loaded, self.base = loaded, base
        self.is_baseline = False
        self.device, self.seed = "cpu", 0
        self.model_dir = Path("not asked")
        self.memo: dict[str, Any] = {}
        self.blobs: dict[str, bytes] = {}

    def load_baseline(self) -> Engine | None:
        return self.base

    def blob(self, name: str, data: bytes, extension: str) -> str:
        self.blobs[f"{name}.{extension}"] = data
        return f"{name}.{extension}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    made = Counted(tmp_path / "powercap", watts=10.0)
    monkeypatch.setattr(energy, "POWERCAP", made.root)
    asked, idled = energy.meter_of, energy.idle_of
    monkeypatch.setattr(energy, "meter_of", lambda device: asked(device, clock=made.clock))
    monkeypatch.setattr(energy, "idle_of", lambda meter: idled(meter, sleep=made.sleep))
    return made


def ask(session: Session) -> tuple[dict[str, Any], Answer]:
    answer = PROBE.measure(session, QUESTION)  # type: ignore[arg-type]
    return {m.metric: m for m in answer.measurements}, answer


def test_joules_are_what_was_counted_above_the_idle_machine_by_prompt_and_by_token(world: Counted) -> None:
    cell = Engine(world, prefill=(0.5, 60.0), step=(0.05, 34.0))
    base = Engine(world, prefill=(0.5, 110.0), step=(0.05, 58.0))
    found, answer = ask(Session(cell, base))
    assert found["energy_prefill"].value == pytest.approx(0.5 * (60 - 10) / 2, rel=0.01)
    assert found["energy_per_token"].value == pytest.approx(4 * 0.05 * (34 - 10) / (2 * 4), rel=0.02)
    assert found["energy_per_token"].unit == "J"
    assert "CPU packages (RAPL) [pp100 tg5 b2]" in found["energy_per_token"].definition
    assert found["energy_prefill"].n == answer.facts["rounds"]
    told = answer.facts["energy"]
    assert told["idle_watts"] == pytest.approx(10.0, rel=0.01)
    assert told["baseline"]["energy_prefill"] == pytest.approx(0.5 * 100 / 2, rel=0.01)


def test_the_times_of_a_run_are_the_same_with_counters_and_without(world: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    with_counters, _ = ask(Session(Engine(world, prefill=(0.5, 60.0), step=(0.05, 34.0)), None))
    monkeypatch.setattr(energy, "POWERCAP", world.root / "nothing")
    session = Session(Engine(world, prefill=(0.5, 60.0), step=(0.05, 34.0)), None)
    without, answer = ask(session)
    assert set(with_counters) - set(without) == {"energy_per_token", "energy_prefill"}
    assert [with_counters[name].value for name in without] == [m.value for m in without.values()]
    assert set(answer.facts["energy"]) == {"unsupported"}
    assert answer.facts["withheld"] == answer.facts["withheld"] == []
    assert not any("energy" in note for note in answer.facts["notes"])
    assert "energy" not in json.loads(session.blobs["latency.json"])


def test_warm_up_runs_are_in_no_figure_and_the_raw_joules_are_kept_by_run(world: Counted) -> None:
    session = Session(Engine(world, prefill=(0.5, 60.0), step=(0.05, 34.0)), None)
    _, answer = ask(session)
    kept = json.loads(session.blobs["latency.json"])["energy"]
    assert len(kept["cell"]) == answer.facts["rounds"]
    assert kept["cell"][0]["prefill_joules"] == pytest.approx(30.0, rel=0.01)
    assert kept["baseline"] == []


def test_a_span_that_is_too_short_for_the_counter_is_withheld_with_the_length_that_it_takes(world: Counted) -> None:
    found, answer = ask(Session(Engine(world, prefill=(0.008, 60.0), step=(0.05, 34.0)), None))
    assert "energy_prefill" not in found
    assert "energy_per_token" in found
    (said,) = answer.facts["withheld"]
    assert said.startswith("energy_prefill: a prefill took 8")
    assert "it takes 20" in said
    assert "ask for longer prompts" in said


def test_a_figure_that_is_not_above_the_idle_machine_is_withheld(world: Counted) -> None:
    found, answer = ask(Session(Engine(world, prefill=(0.5, 60.0), step=(0.05, 9.0)), None))
    assert "energy_per_token" not in found
    assert "no more than the idle machine" in answer.facts["withheld"][0]


def test_an_engine_that_tells_no_moments_is_timed_and_has_no_energy(world: Counted) -> None:
    found, answer = ask(Session(Engine(world, prefill=(0.5, 60.0), step=(0.05, 34.0), tells=False), None))
    assert "tpot" in found
    assert "energy_per_token" not in found
    assert "does not say when its first token is there" in answer.facts["energy"]["unsupported"]


def test_a_counter_that_goes_away_meanwhile_costs_the_energy_and_nothing_else(world: Counted) -> None:
    engine = Engine(world, prefill=(0.5, 60.0), step=(0.05, 34.0))
    plain = engine.time_generation
    calls = 0

    def failing(**asked: int) -> Timing:
        nonlocal calls
        calls += 1
        if calls == 4:
            energy.POWERCAP.joinpath("intel-rapl:0", "energy_uj").unlink()
            world._files = []
        return plain(**asked)

    engine.time_generation = failing  # type: ignore[method-assign]
    found, answer = ask(Session(engine, None))
    assert "tpot" in found
    assert "cannot be read" in answer.facts["energy"]["unsupported"]


def test_moments_are_told_to_those_who_listen_and_to_nobody_afterwards() -> None:
    heard: list[str] = []
    with moments.heard(heard.append):
        moments.tell("begin")
    moments.tell("end")
    assert heard == ["begin"]
