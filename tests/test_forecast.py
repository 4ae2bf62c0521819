"""What a forecast says of a plan: from what was taken before, scaled by a stated rule, with the spread of earlier forecasts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness import proof, store
from harness.costs import CellCost, CellForecast, Expected, PieceCost, Source
from harness.forecast import words
from harness.forecast.estimate import MANY, Forecast, forecast
from harness.forecast.history import Here, History, read
from harness.forecast.work import Todo, asked, units
from harness.measure.rate import product_rate
from harness.run import runner
from harness.spec import Cell, Json, Model, Question, RunContext, RunHeader, Running, Scheme, digest
from harness.suite.matrix import plan
from harness.suite.plan import PlannedCell
from tests.squares import square

WriteSuite = Callable[..., Path]

SMALL, LARGE = 10_000_000, 40_000_000
PERPLEXITY = Question(probe="perplexity", subject="text", options={"tokens": 1000, "window": 100})
TASK = Question(probe="tasks", subject="facts", options={"limit": 50})
LATENCY = Question(probe="latency", subject="pp1", options={"prompt": 1, "new": 2, "batch": 1, "budget_seconds": 7.0})
HERE = Here(host="h", device="cpu", threads=2)


def cell(method: str = "rtn", bits: float = 4, *, model: str = "small", **options: Json) -> Cell:
    return square(Scheme(method=method, bits=bits, options=options), model=Model(name=model, path=model))


def planned(of: Cell, *questions: Question, parameters: int | None = SMALL, baseline: bool = False) -> PlannedCell:
    size = None if parameters is None else round(parameters * of.bits / 8)
    return PlannedCell(
        cell=of, questions=questions, baseline=baseline, estimated_bpw=of.bits, estimated_bytes=size, parameters=parameters
    )


def took(of: Cell, question: Question | None, seconds: float, grows: float, *, what: str = "", **more: Json) -> PieceCost:
    name = what if question is None else question.probe
    return PieceCost(
        what=name,
        subject="" if question is None else question.subject,
        question="" if question is None else asked(question),
        seconds=seconds,
        model_seconds=grows,
        units=units(of, name, question),
        **more,
    )


def cost(of: Cell, *pieces: PieceCost, parameters: int | None = SMALL, **more: Json) -> CellCost:
    seconds = sum(piece.seconds for piece in pieces)
    return CellCost(
        cell=of,
        baseline=False,
        started_at="",
        seconds=seconds,
        pieces=pieces,
        questions=digest([PERPLEXITY])[:16],
        whole=True,
        parameters=parameters,
        estimated_bytes=None if parameters is None else round(parameters * of.bits / 8),
        **more,
    )


def history(*costs: CellCost) -> History:
    known = History(runs=1)
    for each in costs:
        known.add(each)
    return known


def expected(of: PlannedCell, known: History, *, stages: Sequence[str] = (), rate: float | None = None) -> Forecast:
    todo = Todo(planned=of, questions=of.questions, stages=tuple((stage, "") for stage in stages))
    return forecast([todo], known, device="cpu", rate=lambda: rate)


def seconds(said: Forecast, what: str) -> Expected | None:
    (one,) = [piece.seconds for piece in said.cells[0].pieces if piece.work.what == what]
    return one


def ends(said: Expected | None) -> tuple[float, float | None, Source]:
    assert said is not None
    return said.low, said.high, said.source


# ---- the rule ----


def test_what_was_done_before_takes_as_long_as_it_took_then() -> None:
    twice = history(cost(cell(), took(cell(), PERPLEXITY, 6.0, 5.0)), cost(cell(), took(cell(), PERPLEXITY, 4.0, 3.0)))
    assert ends(seconds(expected(planned(cell(), PERPLEXITY), twice), "perplexity")) == (4.0, 6.0, "same")


def test_for_a_larger_or_smaller_model_what_grows_does_so_at_most_in_proportion_and_the_rest_does_not() -> None:
    known = history(cost(cell(), took(cell(), PERPLEXITY, 6.0, 5.0)))
    larger = planned(cell(model="large"), PERPLEXITY, parameters=LARGE)
    assert ends(seconds(expected(larger, known), "perplexity")) == (1.0 + 5.0, 1.0 + 4 * 5.0, "scheme")
    smaller = planned(cell(model="tiny"), PERPLEXITY, parameters=SMALL // 10)
    assert ends(seconds(expected(smaller, known), "perplexity")) == (1.0 + 5.0 / 10, 1.0 + 5.0, "scheme")


def test_of_several_models_the_nearest_size_counts() -> None:
    near, far = cell(model="near"), cell(model="far")
    known = history(
        cost(far, took(far, PERPLEXITY, 1.0, 1.0), parameters=SMALL // 10),
        cost(near, took(near, PERPLEXITY, 9.0, 9.0), parameters=LARGE // 2),
    )
    said = seconds(expected(planned(cell(model="large"), PERPLEXITY, parameters=LARGE), known), "perplexity")
    assert ends(said) == (9.0, 18.0, "scheme")


def test_another_question_to_the_same_probe_is_scaled_by_its_tokens_or_items() -> None:
    longer = replace(PERPLEXITY, options={"tokens": 3000, "window": 100})
    more = replace(TASK, options={"limit": 100})
    known = history(cost(cell(), took(cell(), PERPLEXITY, 6.0, 5.0), took(cell(), TASK, 2.0, 2.0)))
    said = expected(planned(cell(), longer, more), known)
    assert ends(seconds(said, "perplexity")) == (18.0, 18.0, "scheme")
    assert ends(seconds(said, "tasks")) == (4.0, 4.0, "scheme")


def test_the_same_task_comes_before_another_one_and_the_same_cell_before_another_method() -> None:
    more, other = replace(TASK, options={"limit": 100}), replace(TASK, subject="figures")
    known = history(
        cost(cell(), took(cell(), other, 9.0, 9.0), took(cell(), TASK, 2.0, 2.0)),
        cost(cell("gptq"), took(cell("gptq"), more, 7.0, 7.0), took(cell("gptq"), PERPLEXITY, 3.0, 3.0)),
    )
    assert ends(seconds(expected(planned(cell(), more), known), "tasks")) == (4.0, 4.0, "scheme")
    assert ends(seconds(expected(planned(cell("gptq"), other), known), "tasks")) == (9.0, 9.0, "engine")


def test_a_question_without_a_limit_is_known_only_where_it_was_asked() -> None:
    whole = replace(PERPLEXITY, options={"tokens": None, "window": 100})
    known = history(cost(cell(), took(cell(), PERPLEXITY, 6.0, 5.0)))
    assert seconds(expected(planned(cell(), whole), known), "perplexity") is None
    known.add(cost(cell("gptq"), took(cell("gptq"), whole, 9.0, 9.0)))
    assert ends(seconds(expected(planned(cell(), whole), known), "perplexity")) == (9.0, 9.0, "engine")


def test_other_bits_and_other_methods_stand_in_for_each_other_and_the_nearer_comes_first() -> None:
    known = history(
        cost(cell("gptq", 3), took(cell("gptq", 3), PERPLEXITY, 9.0, 9.0)),
        cost(cell("rtn", 8), took(cell("rtn", 8), PERPLEXITY, 5.0, 5.0)),
    )
    assert ends(seconds(expected(planned(cell("rtn", 4), PERPLEXITY), known), "perplexity")) == (5.0, 5.0, "method")
    assert ends(seconds(expected(planned(cell("hqq", 4), PERPLEXITY), known), "perplexity")) == (5.0, 9.0, "engine")


def test_quantizing_by_another_method_says_nothing_and_by_the_same_goes_with_the_calibration_tokens() -> None:
    rows = {"samples": 10, "length": 100}
    seen = cell("gptq", 3, calibration=rows)
    known = history(cost(seen, took(seen, None, 8.0, 8.0, what="quantize")))
    assert seconds(expected(planned(cell("rtn"), PERPLEXITY), known, stages=["quantize"]), "quantize") is None
    more = planned(cell("gptq", 4, calibration={**rows, "samples": 30}), PERPLEXITY)
    assert ends(seconds(expected(more, known, stages=["quantize"]), "quantize")) == (24.0, 24.0, "method")


def test_a_baseline_is_no_measure_of_the_cells_that_are_compared_with_it() -> None:
    known = history(replace(cost(cell("bf16", 16), took(cell("bf16", 16), PERPLEXITY, 50.0, 40.0)), baseline=True))
    assert seconds(expected(planned(cell(), PERPLEXITY), known), "perplexity") is None


# ---- without a history ----


def test_without_a_history_scoring_takes_two_operations_a_weight_and_token_at_the_measured_rate_or_more() -> None:
    said = seconds(expected(planned(cell(), PERPLEXITY), History(), rate=1e9), "perplexity")
    assert ends(said) == (2 * SMALL * 1000 / 1e9, None, "rate")


def test_what_ends_by_the_clock_goes_with_the_seconds_that_the_suite_grants() -> None:
    longer = replace(LATENCY, subject="pp2", options={**LATENCY.options, "prompt": 2, "budget_seconds": 14.0})
    known = history(cost(cell(), took(cell(), LATENCY, 8.0, 0.0)))
    assert ends(seconds(expected(planned(cell(), longer), known), "latency")) == (16.0, 16.0, "scheme")


def test_a_probe_that_is_called_as_a_stage_is_not_taken_for_it() -> None:
    probe = Question(probe="quantize", subject="")
    known = history(cost(cell(), took(cell(), None, 60.0, 60.0, what="quantize"), took(cell(), probe, 0.01, 0.0)))
    said = expected(planned(cell(), probe), known, stages=["quantize"])
    stage, asked_, _ = said.cells[0].pieces
    assert ends(stage.seconds)[:2] == (60.0, 60.0)
    assert ends(asked_.seconds)[:2] == (0.01, 0.01)


def test_what_nobody_can_say_is_unknown_and_named() -> None:
    said = expected(planned(cell(), PERPLEXITY, TASK), History(), stages=["quantize"], rate=1e9)
    assert said.whole.seconds is not None
    assert said.whole.seconds.unknown == ("quantize", "tasks facts", "rest")
    assert said.whole.seconds.high is None
    assert "nothing is known of: quantize, tasks facts, rest" in str(words.unknown(said))
    assert expected(planned(cell(), TASK), History()).whole.seconds is None


def test_the_rate_is_measured_only_if_it_is_needed() -> None:
    known = history(cost(cell(), took(cell(), PERPLEXITY, 6.0, 5.0)))

    def rate() -> float:
        raise AssertionError("the history says it")

    todo = Todo(planned=planned(cell(), PERPLEXITY), questions=(PERPLEXITY,))
    assert forecast([todo], known, device="cpu", rate=rate).cells[0].forecast.seconds is not None


def test_the_rate_of_this_machine_is_that_of_a_computer() -> None:
    measured = product_rate(0.05)
    assert measured is not None
    assert 1e8 < measured < 1e15


# ---- sums ----


def test_a_cell_is_the_sum_of_its_pieces_and_a_plan_the_sum_of_its_cells_with_the_largest_memory() -> None:
    one, other = cell(bits=4), cell(bits=8)
    known = history(
        cost(one, took(one, PERPLEXITY, 4.0, 4.0), took(one, None, 2.0, 0.0, what="rest"), host_bytes=500, artifact_bytes=30),
        cost(
            other, took(other, PERPLEXITY, 6.0, 6.0), took(other, None, 1.0, 0.0, what="rest"), host_bytes=700, artifact_bytes=50
        ),
    )
    todo = [Todo(planned=planned(c, PERPLEXITY), questions=(PERPLEXITY,), stages=(("quantize", ""),)) for c in (one, other)]
    stageless = [replace(each, stages=()) for each in todo]
    said = forecast(stageless, known, device="cpu", rate=lambda: None)
    assert [ends(c.forecast.seconds)[:2] for c in said.cells] == [(6.0, 6.0), (7.0, 7.0)]
    assert ends(said.whole.seconds) == (13.0, 13.0, "same")
    assert ends(said.whole.host_bytes) == (700.0, 700.0, "same")
    assert ends(said.whole.disk_bytes)[:2] == (0.0, 0.0), "their artifacts are in the cache"
    making = forecast(todo, known, device="cpu", rate=lambda: None)
    assert ends(making.whole.disk_bytes) == (80.0, 80.0, "same")


def test_what_is_answered_costs_nothing_and_is_said() -> None:
    known = history(cost(cell(), took(cell(), PERPLEXITY, 6.0, 5.0), took(cell(), None, 1.0, 0.0, what="rest")))
    half = Todo(planned=planned(cell(), PERPLEXITY, TASK), questions=(PERPLEXITY,))
    said = forecast([half], known, device="cpu", rate=lambda: None)
    assert (said.cells[0].questions, said.cells[0].answered) == (1, 1)
    assert ends(said.whole.seconds)[:2] == (7.0, 7.0)
    assert "1 of 2 questions are answered already" in words.whole(said)
    done = forecast([replace(half, questions=())], known, device="cpu", rate=lambda: None)
    assert done.cells[0].pieces == ()
    assert words.whole(done) == "nothing is left to do: all 2 questions are answered"


def test_memory_is_the_runtime_the_weights_and_what_may_grow_with_the_model() -> None:
    weights, runtime, rest = SMALL // 2, 400_000_000, 30_000_000
    peak = runtime + weights + rest
    known = history(cost(cell(), took(cell(), PERPLEXITY, 1.0, 1.0), host_bytes=peak, host_start_bytes=runtime))
    larger = planned(cell(model="large"), PERPLEXITY, parameters=LARGE)
    low, high = runtime + 4 * weights + rest, runtime + 4 * weights + 4 * rest
    assert ends(expected(larger, known).cells[0].forecast.host_bytes) == (low, high, "scheme")


def test_disk_is_scaled_by_the_bytes_that_the_plan_estimates() -> None:
    seen = cell(bits=8)
    known = history(cost(seen, took(seen, PERPLEXITY, 1.0, 1.0), artifact_bytes=2 * SMALL))
    said = expected(planned(cell(bits=4), PERPLEXITY), known, stages=["quantize"])
    assert ends(said.cells[0].forecast.disk_bytes) == (float(SMALL), float(SMALL), "method")
    nothing = expected(planned(cell(bits=4), PERPLEXITY), History(), stages=["quantize"])
    assert ends(nothing.cells[0].forecast.disk_bytes) == (SMALL / 2, SMALL / 2, "bits")


# ---- how forecasts get better ----


def followed(by: Sequence[float], *, said: Expected) -> History:
    """A history in which `said` was expected of a perplexity, again and again, and then took what `by` says."""
    gptq = cell("gptq")
    return history(*(cost(gptq, took(gptq, PERPLEXITY, each, each, expected=said)) for each in by))


def test_once_many_forecasts_were_followed_by_what_was_taken_their_spread_is_laid_round_the_next() -> None:
    once = Expected(low=1.0, high=1.0, source="same", rule=1.0)
    turned_out = [1.0 + n / 10 for n in range(MANY)]  # 1.0 to 1.7 s, where 1 s was expected
    for known, high in ((followed(turned_out[1:], said=once), 10.0), (followed(turned_out, said=once), 17.0)):
        known.add(cost(cell(), took(cell(), PERPLEXITY, 10.0, 10.0)))
        said = seconds(expected(planned(cell(), PERPLEXITY), known), "perplexity")
        assert said is not None
        assert (said.low, said.rule) == (10.0, 10.0)
        assert said.high == pytest.approx(high)


def test_the_spread_of_another_probe_or_another_source_is_not_taken() -> None:
    once = Expected(low=1.0, high=1.0, source="same", rule=1.0)
    known = followed([5.0] * MANY, said=once)
    known.add(cost(cell(), took(cell(), TASK, 10.0, 10.0), took(cell(), PERPLEXITY, 10.0, 10.0)))
    other = planned(cell(model="other"), PERPLEXITY)
    assert ends(seconds(expected(planned(cell(), TASK), known), "tasks")) == (10.0, 10.0, "same")
    assert ends(seconds(expected(other, known), "perplexity")) == (10.0, 10.0, "scheme")


def test_a_rate_that_proved_too_fast_gets_an_upper_end() -> None:
    known = followed([5.0] * MANY, said=Expected(low=1.0, high=None, source="rate", rule=1.0))
    elsewhere = replace(cell(), running=Running(engine="other"))
    said = seconds(expected(planned(elsewhere, PERPLEXITY), known, rate=1e9), "perplexity")
    assert ends(said) == (100.0, 100.0, "rate")


def test_the_time_of_a_whole_cell_is_corrected_by_how_whole_cells_turned_out() -> None:
    said = CellForecast(seconds=Expected(low=1.0, high=1.0, source="same", rule=1.0))
    parts = (took(cell(), PERPLEXITY, 2.0, 2.0), took(cell(), None, 1.0, 0.0, what="rest"))
    known = history(*(cost(cell(), *parts, expected=said) for _ in range(MANY)))
    assert ends(expected(planned(cell(), PERPLEXITY), known).whole.seconds) == (9.0, 9.0, "same")


# ---- what is read ----


def header(**changes: Json) -> RunHeader:
    context = RunContext(
        host="h",
        python="",
        packages_digest="",
        harness="",
        commit=None,
        source="",
        device="cpu",
        threads=2,
        machine={},
        packages={},
    )
    context = replace(context, **changes)
    return RunHeader(run="r", started_at="", context=context, context_digest=context.digest)


def write(path: Path, head: RunHeader, *costs: CellCost) -> Path:
    with store.Writer(path, head) as writer:
        for each in costs:
            writer.cost(each)
    return path


def test_costs_come_back_from_a_run_file_as_they_were_written(tmp_path: Path) -> None:
    said = CellForecast(seconds=Expected(low=1.0, high=2.0, source="same", rule=1.5), disk_bytes=None)
    one = cost(cell(), took(cell(), PERPLEXITY, 6.0, 5.0, expected=said.seconds), host_bytes=3, expected=said)
    assert list(store.costs(write(tmp_path / "r.jsonl", header(), one))) == [one]


def test_what_another_machine_device_or_number_of_threads_took_says_nothing(tmp_path: Path) -> None:
    one = cost(cell(), took(cell(), PERPLEXITY, 6.0, 5.0))
    write(tmp_path / "a" / "1.jsonl", header(host="other"), one)
    write(tmp_path / "a" / "2.jsonl", header(device="cuda:0"), one)
    write(tmp_path / "b" / "3.jsonl", header(threads=4), one)
    assert read(tmp_path, HERE) == History()
    write(tmp_path / "b" / "4.jsonl", header(), one)
    assert read(tmp_path, HERE).runs == 1


def test_no_line_but_those_of_costs_is_parsed_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "1.jsonl", header(), cost(cell(), took(cell(), PERPLEXITY, 6.0, 5.0)))
    lines = [proof.unsealed(line) for line in path.read_bytes().splitlines(keepends=True)]
    path.write_bytes(b"".join(proof.chained([*lines, b'{"kind":"record", this is not JSON}'])))
    assert read(tmp_path, HERE).runs == 1
    path.write_bytes(b"".join(proof.chained([*lines, b'{"kind":"cost","seconds":"long"}'])))
    known = read(tmp_path, HERE)
    assert known.runs == 0
    assert [line.split(":")[0] for line in known.unread] == ["1.jsonl"]


# ---- in words ----


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (12.2, 18.0, "12 to 18 s"),
        (12.0, 12.3, "12 s"),
        (0.31, 0.52, "0.3 to 0.5 s"),
        (60.0, 95.0, "60 to 95 s"),
        (250.0, 365.0, "4.2 to 6.1 min"),
        (7800.0, 9000.0, "2.2 to 2.5 h"),
        (40.0, None, "40 s or more"),
        (0.0, 7.0, "at most 7.0 s"),
        (0.0, 0.0, "0 s"),
        (0.0, None, "unknown"),
    ],
)
def test_a_range_is_said_as_people_say_it(low: float, high: float | None, said: str) -> None:
    assert words.span(Expected(low=low, high=high, source="same"), "seconds") == said


def test_a_plan_that_does_not_fit_is_warned_of_in_words() -> None:
    known = history(cost(cell(), took(cell(), PERPLEXITY, 1.0, 1.0), host_bytes=6 * 10**9, artifact_bytes=2 * 10**9))
    said = expected(planned(cell(), PERPLEXITY), known, stages=["quantize"])
    disk, memory = words.warnings(said, free_disk_bytes=10**9, free_memory_bytes=10**9)
    assert disk.startswith("disk: the 2.0 GB that the cells leave in the cache do not fit into the 1.0 GB")
    assert "--cache DIR" in disk
    assert memory.startswith("memory: small / rtn 4-bit takes 6.0 GB, and 1.0 GB are available now")
    assert words.warnings(said, free_disk_bytes=10**10, free_memory_bytes=10**10) == []


# ---- from outside ----


def call(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines_of_costs(folder: Path) -> list[Json]:
    lines = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "cost"]


def test_plan_says_nothing_is_known_then_what_it_takes_then_that_it_is_done(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4, value: 3.5}")
    first = call("plan", suite, cwd=tmp_path)
    assert "no run of this machine is stored yet" in first
    assert not (tmp_path / "results").exists(), "a plan writes nothing"
    call("run", suite, cwd=tmp_path)
    assert "nothing is left to do: all 8 questions are answered" in call("plan", suite, cwd=tmp_path)
    elsewhere = call("plan", suite, "--results", tmp_path / "other", cwd=tmp_path)
    assert "no run of this machine is stored yet" in elsewhere
    renamed = write_suite("{bits: 4, value: 3.5}", name="again")
    assert "from 1 stored run of this machine" in call("plan", renamed, "--cache", tmp_path / "fresh", cwd=tmp_path)
    data = json.loads(call("plan", renamed, "--json", "--cache", tmp_path / "fresh", cwd=tmp_path))
    assert data["forecast"]["whole"]["seconds"]["source"] == "same"
    assert [c["questions"] for c in data["forecast"]["cells"]] == [4, 4]


def test_another_number_of_threads_is_another_machine(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4}")
    call("run", suite, "--threads", "1", cwd=tmp_path)
    assert "nothing is left to do" in call("plan", suite, "--threads", "1", cwd=tmp_path)
    assert "no run of this machine is stored yet" in call("plan", suite, "--threads", "3", cwd=tmp_path)


def test_a_run_shows_what_has_passed_against_what_was_expected_and_keeps_both(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 4, value: 3.5}")
    assert "expected" not in call("run", suite, cwd=tmp_path)
    said = call("run", suite, "--fresh", "--cache", tmp_path / "fresh", cwd=tmp_path)
    assert "from 1 stored run of this machine" in said
    done = [line for line in said.splitlines() if ": done in " in line]
    assert len(done) == 2, "one line for a cell"
    assert all(" expected; in all " in line for line in done)
    assert said.splitlines()[-1].startswith("took")
    assert said.splitlines()[-1].endswith("expected")
    costs = lines_of_costs(tmp_path / "results" / "scripted")
    before, after = costs[:2], costs[2:]
    assert [line["expected"]["seconds"] for line in before] == [None, None]
    for line in after:
        assert line["expected"]["seconds"]["source"] == "same"
        assert all(piece["expected"] is not None for piece in line["pieces"])
        assert line["seconds"] == pytest.approx(sum(piece["seconds"] for piece in line["pieces"]))


def test_what_failed_is_no_measure_of_how_long_it_takes(write_suite: WriteSuite, tmp_path: Path) -> None:
    call("run", write_suite("{bits: 3, on_b: 'raise:boom'}"), cwd=tmp_path)
    _, failed = lines_of_costs(tmp_path / "results" / "scripted")
    assert not failed["whole"]
    assert "b" not in [piece["subject"] for piece in failed["pieces"]]


def test_a_run_that_goes_on_expects_only_what_is_left(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 3, on_b: 'raise:boom'}")
    call("run", suite, cwd=tmp_path)
    said = call("run", suite, "--retry-failed", cwd=tmp_path)
    assert "7 of 8 questions are answered already" in said
    assert [len(line["pieces"]) for line in lines_of_costs(tmp_path / "results" / "scripted")][2:] == [2], (
        "the start and the rest"
    )


@pytest.mark.slow
def test_a_real_suite_that_has_run_once_is_forecast_whole_from_what_it_took(tmp_path: Path) -> None:
    suite = tmp_path / "small.yaml"
    suite.write_text(
        "name: small\nmodels: [reference]\nbaseline: bf16\nmethods: {bf16: , rtn: {bits: [4], group_size: 64}}\n"
        "corpora: [{corpus: reference, window: 64, tokens: 256}]\ntasks: [reference_facts]\nlimit: 5\n"
        "memory: {prompt: 8, new: 4, batch: 1}\nprobes: [quantize, size, perplexity, divergence, tasks, memory]\n"
    )

    def run(cache: str) -> list[CellCost]:
        settings = runner.Settings(results=tmp_path / "results", cache=tmp_path / cache, fresh=True)
        return list(store.costs(runner.run(plan(suite, device="cpu"), settings)))

    first, second = run("one"), run("two")
    assert [c.cell.label for c in first] == ["bf16", "rtn 4-bit g64"]
    for one in second:
        assert one.whole
        assert {p.what for p in one.pieces} >= {"quantize", "load", "verify", "perplexity", "tasks", "memory", "rest"}
        assert all(p.expected is not None and p.expected.source == "same" for p in one.pieces)
        for said in (one.expected.seconds, one.expected.host_bytes, one.expected.disk_bytes):
            assert said is not None
            assert (said.source, said.unknown) == ("same", ())
        assert one.host_bytes is not None
        assert one.host_start_bytes is not None
        assert one.host_bytes > one.host_start_bytes > 10**8
    stored = {path.parent.name: path.stat().st_size for path in (tmp_path / "one" / "artifacts").glob("rtn*/model.safetensors")}
    (size,) = stored.values()
    artifact = first[1].artifact_bytes
    assert artifact is not None
    assert size < artifact < 1.2 * size
    expected_disk = second[1].expected.disk_bytes
    assert expected_disk is not None
    assert expected_disk.low == artifact
