"""Latency with a scripted engine and clock: exact figures, and intervals against scipy."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.engines.base import EngineFacts, Timing
from harness.errors import Unsupported
from harness.formats import safetensors_file
from harness.measure import bandwidth, conditions
from harness.probes import roofline as roofline_probe
from harness.probes.latency import PROBE
from harness.probes.requests import GenerationShape, ProbeRequests
from harness.probes.roofline import active_weight_bytes
from harness.probes.rounds import median, nearest_rank, run_rounds, tpot
from harness.spec import Answer, Question, Scheme
from tests.squares import square

SHAPE = GenerationShape(prompt=100, new=5, batch=2)


class Engine:
    """Answers with scripted times and writes down in which order it was asked."""

    def __init__(self, name: str, log: list[str], *, ttft: Any, step: Any, weights: int = 0, simulated: bool = False) -> None:
        self.name, self.log = name, log
        self.ttft, self.step = ttft, step
        self.weights, self.simulated = weights, simulated
        self.collecting: list[bool] = []

    def facts(self) -> EngineFacts:
        return EngineFacts(engine="toy", device="cpu", kernels=(), simulated=self.simulated, resident_weight_bytes=self.weights)

    def time_generation(self, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> Timing:
        assert (prompt_tokens, new_tokens, batch) == (100, 5, 2)
        self.log.append(self.name)
        self.collecting.append(gc.isenabled())
        return Timing(ttft_seconds=self.ttft(seed), step_seconds=(self.step(seed),) * (new_tokens - 1))


class Session:
    def __init__(self, loaded: Engine, base: Engine | None, *, is_baseline: bool = False) -> None:
        self.cell = square(Scheme(method="toy", bits=4))
        self.loaded, self.base = loaded, base
        self.is_baseline = is_baseline
        self.device, self.seed = "cpu", 0
        self.model_dir = Path("not asked")
        self.memo: dict[str, Any] = {}
        self.blobs: dict[str, bytes] = {}
        self.baseline_loads = 0

    def load_baseline(self) -> Engine | None:
        self.baseline_loads += 1
        return self.base

    def blob(self, name: str, data: bytes, extension: str) -> str:
        self.blobs[f"{name}.{extension}"] = data
        return f"{name}.{extension}"


QUESTION = Question(probe="latency", subject=SHAPE.name, options={"prompt": 100, "new": 5, "batch": 2, "budget_seconds": 60.0})


def ask(session: Session) -> tuple[dict[str, Any], Answer]:
    answer = PROBE.measure(session, QUESTION)  # type: ignore[arg-type]
    return {m.metric: m for m in answer.measurements}, answer


def steady(name: str, log: list[str], ttft: float, step: float, **more: Any) -> Engine:
    return Engine(name, log, ttft=lambda seed: ttft, step=lambda seed: step, **more)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of these tests is idle, whatever else runs on it."""
    found = conditions.between(conditions.snapshot(), conditions.snapshot())
    monkeypatch.setattr(conditions, "between", lambda before, after: replace(found, others_cpu_share=0.0, steal_share=0.0))


@pytest.mark.parametrize("n", [1, 5, 6, 7, 12, 25, 100])
def test_the_interval_of_the_median_is_the_binomial_one_of_scipy(n: int) -> None:
    samples = np.random.default_rng(n).lognormal(size=n)
    ours = median(list(samples))
    theirs = stats.quantile_test(samples, q=np.median(samples), p=0.5).confidence_interval(confidence_level=0.95)
    assert ours.value == np.median(samples)
    assert ours.n == n
    if n < 6:
        assert (ours.low, ours.high) == (None, None)
        return
    assert ours.low == pytest.approx(theirs.low, rel=1e-12)
    assert ours.high == pytest.approx(theirs.high, rel=1e-12)


def test_the_interval_of_the_median_covers_the_true_median_at_least_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    trials = 2000
    covered = 0
    for _ in range(trials):
        found = median(list(rng.exponential(size=15)))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= math.log(2) <= found.high
    assert covered / trials >= 0.95


def test_percentiles_are_samples_that_were_seen() -> None:
    samples = [float(i) for i in range(1, 101)]
    assert nearest_rank(samples, 0.90) == 90
    assert nearest_rank(samples, 0.99) == 99
    assert nearest_rank([3.0], 0.99) == 3
    assert nearest_rank(samples, 0.5) == np.percentile(samples, 50, method="inverted_cdf")


def test_time_per_output_token_is_what_is_left_of_the_whole_over_one_token_less() -> None:
    timing = Timing(ttft_seconds=2.0, step_seconds=(0.1, 0.2, 0.3))
    end_to_end, new_tokens = 2.6, 4
    assert tpot(timing) == pytest.approx((end_to_end - 2.0) / (new_tokens - 1))


def test_the_figures_of_a_steady_engine_are_exact() -> None:
    log: list[str] = []
    found, answer = ask(Session(steady("cell", log, 0.5, 0.02), steady("base", log, 1.0, 0.05)))
    assert found["ttft"].value == found["ttft"].low == found["ttft"].high == 0.5
    assert found["tpot"].value == pytest.approx(0.02)
    assert found["throughput"].value == pytest.approx(2 / 0.02)
    assert found["prefill_throughput"].value == pytest.approx(200 / 0.5)
    assert found["ttft_ratio"].value == pytest.approx(0.5)
    assert found["tpot_ratio"].value == pytest.approx(0.4)
    assert found["step_p99"].n == 4 * found["tpot"].n
    assert answer.facts["baseline"]["tpot"]["value"] == pytest.approx(0.05)
    assert answer.facts["stopped"].startswith("interval")
    assert answer.facts["rounds"] == 6
    declared = {metric.name: metric for metric in PROBE.metrics}
    for one in answer.measurements:
        assert one.unit == declared[one.metric].unit
        assert one.definition == f"{declared[one.metric].definition} [pp100 tg5 b2]"


def test_cell_and_baseline_take_turns_and_neither_is_always_first() -> None:
    log: list[str] = []
    session = Session(steady("cell", log, 0.5, 0.02), steady("base", log, 1.0, 0.05))
    _, answer = ask(session)
    rounds = [tuple(log[i : i + 2]) for i in range(0, len(log), 2)]
    timed = rounds[answer.facts["discarded"] :]
    assert timed == [("cell", "base"), ("base", "cell")] * 3
    assert answer.facts["baseline"]["beside"] == "interleaved"
    ask(session)
    assert session.baseline_loads == 1


def test_a_drifting_clock_leaves_the_ratio_to_the_baseline_alone() -> None:
    log: list[str] = []
    slower = 1 + 0.01 * np.arange(2000)
    cell = Engine("cell", log, ttft=lambda seed: 0.5 * slower[seed], step=lambda seed: 0.02 * slower[seed])
    base = Engine("base", log, ttft=lambda seed: 1.0 * slower[seed], step=lambda seed: 0.04 * slower[seed])
    found, _ = ask(Session(cell, base))
    assert found["tpot_ratio"].low == pytest.approx(0.5)
    assert found["tpot_ratio"].high == pytest.approx(0.5)
    assert found["ttft"].high > found["ttft"].low


def test_without_room_for_the_baseline_there_is_no_ratio_and_the_facts_say_so() -> None:
    found, answer = ask(Session(steady("cell", [], 0.5, 0.02), None))
    assert "tpot_ratio" not in found
    assert "not interleaved" in answer.facts["baseline"]["beside"]


def test_the_baseline_is_not_compared_with_itself() -> None:
    session = Session(steady("cell", [], 0.5, 0.02), None, is_baseline=True)
    found, answer = ask(session)
    assert "tpot_ratio" not in found
    assert session.baseline_loads == 0
    assert answer.facts["baseline"]["beside"] == "this is the baseline"


def test_the_raw_times_are_kept() -> None:
    session = Session(steady("cell", [], 0.5, 0.02), steady("base", [], 1.0, 0.05))
    found, answer = ask(session)
    raw = json.loads(session.blobs[found["tpot"].blob])
    assert len(raw["cell"]) == len(raw["baseline"]) == answer.facts["rounds"]
    assert raw["cell"][0] == {"ttft_seconds": 0.5, "step_seconds": [0.02] * 4}


def test_nothing_is_collected_while_the_clock_runs_and_the_collector_comes_back() -> None:
    engine = steady("cell", [], 0.5, 0.02)
    assert gc.isenabled()
    ask(Session(engine, None))
    assert engine.collecting
    assert not any(engine.collecting)
    assert gc.isenabled()


def test_conditions_name_what_could_have_disturbed() -> None:
    _, answer = ask(Session(steady("cell", [], 0.5, 0.02), None))
    wanted = {
        "load_before",
        "load_after",
        "steal_share",
        "others_cpu_share",
        "clock_mhz_before",
        "threads",
        "affinity",
        "governor",
    }
    assert wanted <= set(answer.facts["conditions"])


def test_a_machine_that_others_use_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = conditions.between(conditions.snapshot(), conditions.snapshot())
    monkeypatch.setattr(conditions, "between", lambda before, after: replace(quiet, others_cpu_share=0.4, steal_share=0.05))
    _, answer = ask(Session(steady("cell", [], 0.5, 0.02), None))
    assert any("40%" in note for note in answer.facts["notes"])
    assert any("hypervisor" in note for note in answer.facts["notes"])


def test_a_simulated_engine_shows_no_latency() -> None:
    with pytest.raises(Unsupported, match="simulated"):
        ask(Session(steady("cell", [], 0.5, 0.02, simulated=True), None))


def test_an_engine_that_times_fewer_steps_than_asked_is_an_error() -> None:
    engine = steady("cell", [], 0.5, 0.02)
    engine.time_generation = lambda **asked: Timing(ttft_seconds=1.0, step_seconds=(0.1,))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="1 steps where 4"):
        ask(Session(engine, None))


class Clock:
    """Time that passes only when a run says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_runs_are_discarded_until_they_have_settled() -> None:
    clock = Clock()
    times = iter([5.0, 2.0, 1.0, 1.0] + [1.0] * 100)

    def run(seed: int) -> Timing:
        seconds = next(times)
        clock.now += seconds
        return Timing(ttft_seconds=seconds / 2, step_seconds=(seconds / 2,))

    rounds = run_rounds(run, None, budget_seconds=1000, seed=0, clock=clock)
    assert rounds.discarded == 4
    assert {timing.ttft_seconds for timing in rounds.cell} == {0.5}
    assert len(rounds.cell) == 6


def test_a_noisy_engine_is_timed_until_the_interval_is_narrow() -> None:
    clock = Clock()
    rng = np.random.default_rng(1)

    def run(seed: int) -> Timing:
        seconds = float(rng.lognormal(sigma=0.1))
        clock.now += seconds
        return Timing(ttft_seconds=seconds, step_seconds=(seconds,))

    rounds = run_rounds(run, None, budget_seconds=1e6, seed=0, clock=clock)
    assert len(rounds.cell) > 20
    assert median([timing.ttft_seconds for timing in rounds.cell]).relative_width < 0.05
    assert median([timing.ttft_seconds for timing in rounds.cell[:-1]]).relative_width >= 0.05


def noisy(kind: str, seed: int) -> tuple[Any, Clock]:
    """A model whose runs take 1 s, give or take: what they vary by, but for a common drift, is their own."""
    clock, rng = Clock(), np.random.default_rng(seed)

    def run(index: int) -> Timing:
        if kind == "normal":
            factor = math.exp(0.02 * rng.standard_normal())
        elif kind == "skewed":
            factor = 1 + 0.02 * rng.exponential()
        else:
            factor = math.exp(0.01 * rng.standard_normal()) * (1 + 0.3 * rng.random() * (rng.random() < 0.1))
        clock.now += 1.0
        seconds = factor * (1 + 0.001 * index)
        return Timing(ttft_seconds=seconds, step_seconds=(seconds,))

    return run, clock


@pytest.mark.parametrize("kind", ["normal", "skewed", "spikes"])
def test_a_model_beside_itself_is_timed_until_the_ratio_is_known_and_is_then_within_two_percent(kind: str) -> None:
    off = []
    for seed in range(200):
        run, clock = noisy(kind, seed)
        rounds = run_rounds(run, run, budget_seconds=200, seed=0, clock=clock)
        off.append(abs(median([tpot(a) / tpot(b) for a, b in zip(rounds.cell, rounds.base, strict=True)]).value - 1))
        assert "ratios below 3%" in rounds.stopped or "budget" in rounds.stopped
    assert sum(one <= 0.02 for one in off) >= 0.95 * len(off)


def test_times_that_are_known_do_not_end_it_while_their_ratio_is_not() -> None:
    """Cell and baseline jump against each other by 4 %, so that each time is known to 5 % after six rounds, and the ratio not."""
    clock = Clock()
    jumps = np.tile([0.98, 1.02], 500)

    def of(sign: int) -> Any:
        def run(seed: int) -> Timing:
            clock.now += 1.0
            seconds = float(jumps[seed] ** sign)
            return Timing(ttft_seconds=1.0, step_seconds=(seconds,))

        return run

    alone = run_rounds(of(1), None, budget_seconds=100, seed=0, clock=clock)
    assert len(alone.cell) == 6
    beside = run_rounds(of(1), of(-1), budget_seconds=100, seed=0, clock=clock)
    assert beside.stopped == "budget of 100 s spent"


def test_a_spent_budget_ends_it_and_is_said() -> None:
    clock = Clock()
    rng = np.random.default_rng(1)

    def run(seed: int) -> Timing:
        clock.now += 1.0
        return Timing(ttft_seconds=float(rng.lognormal()), step_seconds=(1.0,))

    rounds = run_rounds(run, run, budget_seconds=30, seed=0, clock=clock)
    assert rounds.stopped == "budget of 30 s spent"
    assert 26 <= clock.now <= 30
    assert len(rounds.cell) == len(rounds.base)


def test_one_run_is_made_even_if_it_takes_the_whole_budget_and_then_there_is_no_interval() -> None:
    clock = Clock()

    def run(seed: int) -> Timing:
        clock.now += 100.0
        return Timing(ttft_seconds=1.0, step_seconds=(1.0,))

    rounds = run_rounds(run, None, budget_seconds=10, seed=0, clock=clock)
    assert (rounds.discarded, len(rounds.cell)) == (1, 1)
    assert median([1.0]).low is None


def measured_bandwidth(level: str, bytes_per_second: float, others: float = 0.0) -> bandwidth.Bandwidth:
    return bandwidth.Bandwidth(
        bytes_per_second=bytes_per_second,
        working_set_bytes=1,
        kernel="read",
        by_kernel={"read": bytes_per_second},
        level=level,
        threads=1,
        others_cpu_share=others,
    )


def roofline(monkeypatch: pytest.MonkeyPatch, measured: bandwidth.Bandwidth) -> tuple[dict[str, Any], Answer]:
    monkeypatch.setattr(bandwidth, "bandwidth", lambda size, device, cache: measured)
    monkeypatch.setattr(roofline_probe, "active_weight_bytes", lambda model_dir, resident: resident)
    return ask(Session(steady("cell", [], 0.5, 0.02, weights=10**9), None))


def test_the_share_of_the_roofline_is_the_floor_over_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found, answer = roofline(monkeypatch, measured_bandwidth("memory", 100e9))  # 1 GB at 100 GB/s: 10 ms of the 20
    assert found["roofline_share"].value == pytest.approx(0.5)
    assert answer.facts["roofline"]["floor_seconds"] == pytest.approx(0.01)
    assert answer.facts["withheld"] == []


def test_a_step_faster_than_memory_can_be_read_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    found, answer = roofline(monkeypatch, measured_bandwidth("memory", 25e9))
    assert {"tpot", "throughput", "roofline_share"}.isdisjoint(found)
    assert "ttft" in found
    assert "200%" in answer.facts["withheld"][0]


@pytest.mark.parametrize(("level", "others"), [("cache", 0.0), ("memory", 0.5)])
def test_where_the_floor_is_unsure_only_the_share_is_withheld(monkeypatch: pytest.MonkeyPatch, level: str, others: float) -> None:
    found, answer = roofline(monkeypatch, measured_bandwidth(level, 25e9, others))
    assert found["tpot"].value == pytest.approx(0.02)
    assert "roofline_share" not in found
    assert len(answer.facts["withheld"]) == 1


def test_an_engine_that_does_not_say_what_it_holds_has_no_roofline() -> None:
    found, answer = ask(Session(steady("cell", [], 0.5, 0.02), None))
    assert "roofline_share" not in found
    assert "does not say" in answer.facts["roofline"]["reason"]


def source(folder: Path, *, tied: bool, **config: Any) -> Path:
    """A checkpoint of 1000 bytes of embedding in 16 bits (and as much of a head, if not tied)."""
    tensors = [("model.embed_tokens.weight", "BF16", (50, 10)), ("lm_head.weight", "BF16", (50, 10))][: 1 if tied else 2]
    (folder / "model.safetensors").write_bytes(safetensors_file.header_bytes(tensors) + bytes(1000 * len(tensors)))
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied, **config}))
    return folder


def test_a_step_reads_the_embedding_only_where_it_is_the_head_too(tmp_path: Path) -> None:
    (tmp_path / "tied").mkdir()
    (tmp_path / "apart").mkdir()
    assert active_weight_bytes(source(tmp_path / "tied", tied=True), 5000) == 5000
    assert active_weight_bytes(source(tmp_path / "apart", tied=False), 5000) == 4000


def test_a_mixture_of_experts_has_no_roofline(tmp_path: Path) -> None:
    assert "experts" in str(active_weight_bytes(source(tmp_path, tied=True, num_local_experts=8), 5000))


def test_every_shape_of_the_suite_is_one_question() -> None:
    shapes = (GenerationShape(prompt=128, new=64, batch=1), GenerationShape(prompt=512, new=64, batch=4))
    asked = PROBE.questions(ProbeRequests(latency=shapes, latency_budget_seconds=7.5))
    assert [question.subject for question in asked] == ["pp128 tg64 b1", "pp512 tg64 b4"]
    assert asked[1].options == {"prompt": 512, "new": 64, "batch": 4, "budget_seconds": 7.5}
    assert PROBE.isolation == "latency"
