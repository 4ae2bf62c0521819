"""Origin and way of running: two things in types, labels and keys; cells that differ in running alone share one artifact."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import store
from harness.artifact import verified
from harness.decode import DecodeError, decode
from harness.errors import BadInput, UnknownName
from harness.methods import METHODS
from harness.methods.base import Option, resolve_options, running_of, running_values
from harness.run import identity, runner, workspace
from harness.spec import Cell, Given, Model, Quantized, Question, Running, Scheme, Served, to_json
from harness.suite import matrix
from harness.suite.plan import Plan
from tests.right.cases import checkpoint

WriteSuite = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")


def test_cells_that_differ_in_running_alone_are_quantized_once_and_measured_each(write_suite: WriteSuite, tmp_path: Path) -> None:
    plan = matrix.plan(write_suite("{bits: 4, kv_cache: [f16, q8_0]}"), device="cpu")
    assert [p.cell.label for p in plan.cells] == ["fake 16-bit", "fake 4-bit", "fake 4-bit q8_0"]
    settings = runner.Settings(results=tmp_path / "results", cache=tmp_path / "cache")
    stored = store.read(runner.run(plan, settings))

    made = [json.loads(line)["bits"] for line in (tmp_path / "cache" / "fake-quantized.txt").read_text().splitlines()]
    assert made == [16, 4]
    assert len(list((tmp_path / "cache" / "artifacts").glob("fake-4-*"))) == 1
    inputs = identity.gather(plan, tmp_path / "cache")
    baseline, plain, narrow = (p.cell for p in plan.cells)
    assert inputs.artifact(plain) == inputs.artifact(narrow) != inputs.artifact(baseline)
    answers = {r.cell.label: r.answer for r in stored.records if r.question.subject == "a"}
    told = {label: answer.facts["kv_cache"] for label, answer in answers.items() if answer is not None}
    assert told == {"fake 16-bit": "f16", "fake 4-bit": "f16", "fake 4-bit q8_0": "q8_0"}
    assert len({r.key for r in stored.records}) == len(stored.records) == 3 * 4

    runner.run(plan, settings)
    assert len((tmp_path / "cache" / "fake-measured.txt").read_text().splitlines()) == 3 * 3


@pytest.mark.parametrize(("method", "option", "values"), [("gguf", "kv_cache", "[f16, q8_0]"), ("openvino", "execution", "")])
def test_the_kv_cache_of_llama_cpp_and_the_execution_mode_of_openvino_are_options_of_running(
    method: str, option: str, values: str, tmp_path: Path
) -> None:
    path, folder = tmp_path / "running.yaml", checkpoint(tmp_path / "model")
    said = f"{option}: {values or '[performance, accuracy]'}"
    path.write_text(
        f"name: x\nmodels: [{{path: {folder}}}]\nbaseline: fake 16-bit\nprobes: [size]\n"
        f"methods: {{fake: {{bits: 16}}, {method}: {{bits: 16, {said}}}}}\n"
    )
    plan = matrix.plan(path, device="cpu")
    assert not plan.unsupported, plan.unsupported
    inputs = identity.gather(plan, tmp_path / "cache")
    _, one, other = (p.cell for p in plan.cells)
    assert one.origin == other.origin
    assert option not in one.scheme.options
    assert one.running != other.running
    assert inputs.artifact(one) == inputs.artifact(other)
    question = Question(probe="size", subject="")
    assert inputs.key(one, question) != inputs.key(other, question)


def test_what_a_baseline_answers_is_kept_for_its_way_of_running_only(tmp_path: Path, write_suite: WriteSuite) -> None:
    path = write_suite("{bits: 4}", "{bits: 16, kv_cache: q8_0}")
    question = Question(probe="divergence", subject="t", options={"corpus_digest": "d", "window": 8, "tokens": None})

    def place(baseline: str) -> Path:
        path.write_text(path.read_text().replace("baseline: fake 16-bit\n", f"baseline: {baseline}\n"))
        plan = matrix.plan(path, device="cpu")
        cell = next(p.cell for p in plan.cells if p.cell.label == "fake 4-bit")
        return identity.gather(plan, tmp_path / "cache").stored_baseline(cell, question)

    assert place("fake 16-bit") != place("fake 16-bit q8_0")


def test_each_way_of_running_is_checked_on_reload_for_itself(tmp_path: Path) -> None:
    plain, exact = Running(engine="openvino", execution="performance"), Running(engine="openvino", execution="accuracy")
    assert verified(tmp_path, plain) != verified(tmp_path, exact)
    assert verified(tmp_path, plain) == verified(tmp_path, replace(plain))


def test_options_of_running_are_checked_like_all_others(write_suite: WriteSuite) -> None:
    with pytest.raises(
        BadInput, match=r'kv_cache: "q9_0" is not one of its values; did you mean kv_cache: q8_0[?]; it takes f16, q8_0'
    ):
        matrix.plan(write_suite("{bits: 4, kv_cache: q9_0}"), device="cpu")
    with pytest.raises(UnknownName, match="did you mean 'kv_cache'"):
        matrix.plan(write_suite("{bits: 4, kv_cach: q8_0}"), device="cpu")


def test_cells_can_be_excluded_by_how_they_run(write_suite: WriteSuite) -> None:
    path = write_suite("{bits: [4, 3], kv_cache: [f16, q8_0]}", extra="exclude: [{kv_cache: q8_0, bits: 3}]")
    labels = [p.cell.label for p in matrix.plan(path, device="cpu").cells]
    assert labels == ["fake 16-bit", "fake 4-bit", "fake 4-bit q8_0", "fake 3-bit"]


def test_an_option_that_engines_do_not_share_is_a_flag() -> None:
    threads = Option(default=4, types=(int,), help="threads of the server")
    method = replace(METHODS["fake"], running_options={**METHODS["fake"].running_options, "threads": threads})
    running = running_of(method, {"threads": 2, "value": 3.0}, 4)
    assert running == Running(engine="fake", kv="f16", flags={"threads": 2})
    assert running_values(running) == {"kv_cache": "f16", "threads": 2}
    assert "threads" not in resolve_options(method, {"threads": 2}, 4)
    with pytest.raises(KeyError, match="no option 'thread'"):
        resolve_options(method, {"thread": 2}, 4)


def test_no_name_is_both_an_option_of_the_origin_and_one_of_running() -> None:
    for method in METHODS.values():
        assert not method.options.keys() & method.running_options.keys(), method.name


def test_an_artifact_that_cells_share_is_counted_once_on_the_disk(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def need(cell: str) -> Plan:
        return matrix.plan(write_suite(cell), device="cpu")

    shared = need("{bits: 4, kv_cache: [f16, q8_0]}")
    bytes_of = {p.cell.label: p.estimated_bytes or 0 for p in shared.cells}
    monkeypatch.setattr("harness.measure.machine.free_disk_bytes", lambda path: bytes_of["fake 16-bit"] + bytes_of["fake 4-bit"])
    workspace.check_disk(shared, tmp_path / "cache")
    with pytest.raises(BadInput, match="no space"):
        workspace.check_disk(need("{bits: [4, 3]}"), tmp_path / "cache")


SCHEME = Scheme(method="gptq", bits=4, options={"group_size": 64})
ORIGINS = (
    Quantized(scheme=SCHEME),
    Given(scheme=SCHEME, checkpoint=Model(name="mine", repo="someone/mine", revision="abc")),
    Served(scheme=Scheme(method="endpoint", bits=0), url="http://127.0.0.1:8000/v1", model="m", token_env="TOKEN"),
)


@pytest.mark.parametrize("origin", ORIGINS, ids=lambda o: o.kind)
def test_a_cell_of_every_origin_is_read_back_as_it_was_written(origin: Quantized | Given | Served) -> None:
    cell = Cell(model=Model(name="m"), origin=origin, running=Running(engine="e", kv="q8_0", flags={"n": 1}), label="mine")
    assert decode(Cell, json.loads(json.dumps(to_json(cell)))) == cell


def test_an_origin_of_a_kind_that_is_not_known_is_refused() -> None:
    data = to_json(Cell(model=Model(name="m"), origin=ORIGINS[0], running=Running(engine="e")))
    with pytest.raises(DecodeError, match="dreamt"):
        decode(Cell, {**data, "origin": {**data["origin"], "kind": "dreamt"}})


def test_neither_a_label_nor_a_token_decides_what_a_cell_is() -> None:
    served = ORIGINS[2]
    assert isinstance(served, Served)
    assert served.identity() == replace(served, token_env="").identity()
    assert served.identity() != replace(served, url="http://127.0.0.1:8001/v1").identity()
    cell = Cell(model=Model(name="m"), origin=served, running=Running(engine="endpoint"), label="one")
    assert cell.identity() == replace(cell, label="other").identity()
    assert cell.identity() != replace(cell, running=Running(engine="endpoint", kv="q8_0")).identity()
