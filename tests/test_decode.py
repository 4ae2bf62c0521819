"""Reading JSON into frozen types: whole records come back, and what differs is refused at its place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import proof, store
from harness.child import events
from harness.child.job import (
    Baseline,
    BaselineItems,
    CalibrationRows,
    Job,
    Outcome,
    read_job,
    read_outcome,
    write_job,
    write_outcome,
)
from harness.decode import DecodeError, decode
from harness.errors import BadInput
from harness.spec import (
    Answer,
    Cell,
    Failure,
    Given,
    Json,
    Measurement,
    Model,
    Phase,
    PlannedCellRecord,
    PlanRecord,
    Quantized,
    Question,
    Record,
    RunContext,
    RunHeader,
    Running,
    Scheme,
    Served,
    UnsupportedRecord,
    to_json,
)

CELL = Cell(
    model=Model(name="tiny", path="folder"),
    origin=Quantized(scheme=Scheme(method="gptq", bits=4.0, options={"group_size": 64, "calibration": {"samples": 8}})),
    running=Running(engine="transformers"),
)
QUESTION = Question(probe="tasks", subject="facts", options={"limit": None, "shots": [1, 2]})
RECORD = Record(
    key="k" * 64,
    context="c" * 64,
    cell=CELL,
    question=QUESTION,
    probe_version="3",
    answer=Answer(
        measurements=(
            Measurement(
                metric="accuracy", value=0.5, definition="acc", unit="share", low=0.25, high=math.inf, n=3, blob="a.json"
            ),
            Measurement(metric="seconds", value=-math.inf, definition="wall", unit="s"),
        ),
        facts={"nested": {"list": [1, 2.5, None, "nan"]}},
    ),
    phases=(Phase(name="load", seconds=1.0, peak_bytes={"host_peak": 7}),),
    seconds=0.5,
)


def through_json(value: object) -> Json:
    return json.loads(json.dumps(to_json(value), allow_nan=False))


def test_a_record_survives_the_way_through_json() -> None:
    assert decode(Record, through_json(RECORD)) == RECORD
    failed = replace(RECORD, answer=None, failure=Failure(kind="oom", phase="load", message="m"))
    again = decode(Record, through_json(failed))
    assert again == failed
    assert again.status == "oom"


def test_a_number_that_is_not_finite_comes_back_as_what_it_was() -> None:
    sample = Measurement(metric="m", value=math.nan, definition="d", unit="u", low=-math.inf)
    again = decode(Measurement, through_json(sample))
    assert math.isnan(again.value)
    assert again.low == -math.inf


def test_a_whole_number_may_stand_where_a_fraction_belongs() -> None:
    data = {**through_json(RECORD.cell.scheme), "bits": 4}
    scheme = decode(Scheme, data)
    assert (scheme.bits, type(scheme.bits)) == (4.0, float)


def test_a_field_with_a_default_may_be_missing() -> None:
    assert decode(Model, {"name": "tiny"}) == Model(name="tiny")
    data = through_json(CELL)
    del data["label"]
    assert decode(Cell, data).label == "gptq 4-bit"  # what the type derives is derived here too


def change(path: str, value: Json) -> Callable[[Json], None]:
    def edit(data: Json) -> None:
        *steps, last = (int(step) if step.isdigit() else step for step in path.split("/"))
        for step in steps:
            data = data[step]
        data[last] = value

    return edit


def remove(path: str) -> Callable[[Json], None]:
    def edit(data: Json) -> None:
        *steps, last = path.split("/")
        for step in steps:
            data = data[step]
        del data[last]

    return edit


@pytest.mark.parametrize(
    ("edit", "path", "problem"),
    [
        (change("cell/origin/scheme/bits", "four"), "cell.origin.scheme.bits", "expected a number, not 'four'"),
        (change("cell/origin/scheme/bits", True), "cell.origin.scheme.bits", "expected a number, not true"),
        (change("cell/origin/scheme/options", []), "cell.origin.scheme.options", "expected an object, not a list"),
        (change("cell/model/name", None), "cell.model.name", "expected text, not null"),
        (change("cell/colour", "red"), "cell.colour", "unknown field; Cell has model, origin, running, label"),
        (remove("cell/origin/scheme/method"), "cell.origin.scheme.method", "is missing; Scheme needs it"),
        (change("answer/measurements/1/n", 2.5), "answer.measurements[1].n", "expected a whole number, not 2.5"),
        (change("answer/measurements/0", "x"), "answer.measurements[0]", "expected an object, not 'x'"),
        (change("answer/measurements", {}), "answer.measurements", "expected a list, not an object"),
        (change("phases/0/peak_bytes/host_peak", "7"), "phases[0].peak_bytes.host_peak", "expected a whole number, not '7'"),
        (change("simulated", 1), "simulated", "expected true or false, not 1"),
        (change("cell", []), "cell", "expected an object, not a list"),
    ],
)
def test_what_differs_from_the_type_is_refused_with_its_place_and_what_was_expected(
    edit: Callable[[Json], None], path: str, problem: str
) -> None:
    decode(Record, through_json(RECORD))  # a good one before changes nothing for a bad one
    data = through_json(RECORD)
    edit(data)
    with pytest.raises(DecodeError) as caught:
        decode(Record, data)
    assert (caught.value.path, caught.value.problem) == (path, problem)
    assert str(caught.value) == f"{path}: {problem}"


def test_an_unknown_kind_of_failure_is_refused_with_those_there_are() -> None:
    with pytest.raises(DecodeError, match=r"^kind: expected one of oom, timeout, .*, not 'boredom'$"):
        decode(Failure, {"kind": "boredom", "phase": "p", "message": "m"})
    with pytest.raises(DecodeError, match=r"^expected an object, not null$"):
        decode(Failure, None)


def test_a_type_that_cannot_be_read_is_our_mistake_and_not_the_datas() -> None:
    with pytest.raises(TypeError, match="no type that can be read from JSON"):
        decode(set, [])


def test_a_plan_survives_the_way_through_json() -> None:
    plan = PlanRecord(
        suite={"name": "quick", "bits": [4.0, 3.0]},
        baseline="bf16",
        cells=(PlannedCellRecord(cell=CELL, questions=(QUESTION,), baseline=True, estimated_bpw=4.5),),
        unsupported=(UnsupportedRecord(cell=CELL, reason="no kernel"),),
        commands=("quant-harness run quick",),
        weights={"tiny": "d" * 64},
    )
    assert decode(PlanRecord, through_json(plan)) == plan


def test_a_line_of_a_run_file_that_differs_is_refused_with_its_number_and_place(tmp_path: Path) -> None:
    said: dict[str, Any] = {"host": "h", "python": "3", "packages_digest": "p", "harness": "0", "source": "s", "device": "cpu"}
    context = RunContext(**said, commit=None, threads=1, machine={}, packages={})
    path = tmp_path / "run.jsonl"
    with store.Writer(path, RunHeader(run="run", started_at="now", context=context, context_digest=context.digest)) as writer:
        writer.record(RECORD)
    run = store.read(path)
    assert (run.header.context, run.records) == (context, (RECORD,))
    header, record = path.read_bytes().splitlines(keepends=True)
    content = proof.unsealed(record).replace(b'"bits":4.0', b'"bits":"four"')
    path.write_bytes(header + proof.sealed(content, proof.stated_proof(header) or ""))
    with pytest.raises(BadInput, match=r"run.jsonl, line 2: .*origin\.scheme\.bits: expected a number, not 'four'.*--fresh"):
        store.read(path)


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    job = Job(
        stage="probe",
        cell=CELL,
        is_baseline=False,
        questions=(QUESTION,),
        model_dir=tmp_path / "model",
        artifact_dir=tmp_path / "artifact",
        baseline=Baseline(cell=CELL, artifact_dir=tmp_path / "baseline"),
        device="cpu",
        seed=7,
        threads=2,
        cache=tmp_path,
        texts={"reference": tmp_path / "text ä.txt"},
        stored_baselines={"reference|d|256|None": tmp_path / "r"},
        baseline_items={"facts": BaselineItems(path=tmp_path / "items.json", definition="acc")},
        calibration=CalibrationRows(corpus="reference", samples=8, length=64, seed=0, path=tmp_path / "c.txt"),
    )
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job


def test_an_outcome_is_read_as_it_was_written_and_nothing_is_none(tmp_path: Path) -> None:
    assert read_outcome(tmp_path, phase="tasks") is None
    outcome = Outcome(answer=RECORD.answer, seconds=1.5, phases=RECORD.phases, simulated=True)
    write_outcome(tmp_path, outcome, 3)
    assert read_outcome(tmp_path, phase="tasks", index=3) == outcome


def test_an_outcome_with_a_text_in_the_place_of_a_number_is_a_failure_of_its_question(tmp_path: Path) -> None:
    wrong = Measurement(metric="m", value="high", definition="d", unit="u")  # type: ignore[arg-type]  # as a careless probe may
    write_outcome(tmp_path, Outcome(answer=Answer(measurements=(wrong,))))
    outcome = read_outcome(tmp_path, phase="tasks")
    assert outcome is not None
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.phase) == ("error", "tasks")
    assert "answer.measurements[0].value: expected a number, not 'high'" in outcome.failure.message


@pytest.mark.parametrize(
    "event",
    [
        events.Ready(missing={"torch": "ImportError: ä"}, threads=3, cuda=False),
        events.Started(pid=12),
        events.Begun(index=0),
        events.Answered(index=4),
        events.PhaseBegun(name="load"),
        events.Exited(code=-9),
    ],
)
def test_an_event_is_one_line_and_comes_back_as_itself(event: events.Event) -> None:
    line = events.event_line(event)
    assert line.count(b"\n") == 1
    assert events.read_event(line) == event


def test_a_line_that_is_no_event_is_refused() -> None:
    with pytest.raises(DecodeError, match="no event of the fork server"):
        events.read_event('{"event": "party"}')
    with pytest.raises(DecodeError, match="pid: is missing"):
        events.read_event('{"event": "started"}')


def test_a_request_comes_back_as_itself(tmp_path: Path) -> None:
    for request in (
        events.JobRequest(job=tmp_path),
        events.JobRequest(job=tmp_path, branch_modules=("a", "b"), prepare=tmp_path / "prepare.json"),
    ):
        assert events.read_request(events.request_line(request)) == request


def test_one_of_several_types_is_told_by_its_kind() -> None:
    given = Given(scheme=Scheme(method="prequantized", bits=4.0), checkpoint=Model(name="made"))
    served = Served(scheme=Scheme(method="endpoint", bits=0.0), url="http://127.0.0.1:1/v1", model="m")
    for origin in (Quantized(scheme=Scheme(method="rtn", bits=4.0)), given, served):
        cell = Cell(model=Model(name="m"), origin=origin, running=Running(engine="transformers", flags={"a": 1, "b": None}))
        assert decode(Cell, json.loads(json.dumps(to_json(cell)))) == cell


def test_a_kind_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    data = to_json(CELL)
    data["origin"]["kind"] = "found"
    with pytest.raises(DecodeError, match=r"origin\.kind: expected one of quantized, given, served, not 'found'"):
        decode(Cell, data)
