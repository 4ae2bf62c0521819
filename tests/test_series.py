"""A finished run carries its values in its last line, which is read from the file's tail and believed only as it was written."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import harness
from harness import cli, proof, store
from harness.proof import Damage
from harness.series import EndRecord, Series, machine_identity, square_identity
from harness.spec import Cell, Given, Model, Record, RunContext, Running, Scheme, Served
from tests.report import synthetic
from tests.squares import square

CHANGES = 400


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("finished"), small=True)


def copied(path: Path, folder: Path) -> Path:
    for each in (path, proof.seal_path(path)):
        (folder / each.name).write_bytes(each.read_bytes())
    return folder / path.name


def end_of(path: Path) -> EndRecord:
    end = store.read_end(path)
    assert isinstance(end, EndRecord)
    return end


def values(series: Series) -> dict[tuple[str, str, str, str], tuple[float, float | None, float | None, int | None]]:
    return {
        (series.cells[cell].label, column.metric, column.subject, column.definition): (value, low, high, n)
        for column in series.columns
        for cell, value, low, high, n in zip(column.cells, column.values, column.lows, column.highs, column.counts, strict=True)
    }


def of_records(records: tuple[Record, ...]) -> Mapping[object, object]:
    return {
        (r.cell.label, m.metric, r.question.subject, m.definition): (m.value, m.low, m.high, m.n)
        for r in records
        if r.answer is not None
        for m in r.answer.measurements
    }


def test_the_last_line_holds_every_value_and_every_failure_of_the_run(finished: Path) -> None:
    run, series = store.read(finished), end_of(finished).series
    assert values(series) == of_records(run.records)
    failed = {(r.cell.label, r.question.probe, r.question.subject, r.status) for r in run.records if r.failure is not None}
    assert {(series.cells[f.cell].label, f.probe, f.subject, f.kind) for f in series.failures} == failed
    assert [c.label for c in series.cells] == [p.cell.label for p in run.plan.cells]
    assert [c.label for c in series.cells if c.baseline] == ["bf16"]
    assert [c.label for c in series.cells if c.simulated] == ["inc 4-bit g64"]


def test_a_value_that_is_no_number_is_among_the_failures(tmp_path: Path) -> None:
    def broken(record: Record) -> Record:
        if record.question.probe != "perplexity" or record.cell.label != "bf16" or record.answer is None:
            return record
        (only,) = record.answer.measurements
        return dataclasses.replace(
            record, answer=dataclasses.replace(record.answer, measurements=(dataclasses.replace(only, value=math.nan),))
        )

    series = end_of(synthetic.write(tmp_path, small=True, edit=broken)).series
    assert ("bf16", "perplexity") not in {(label, metric) for label, metric, _, _ in values(series)}
    assert [f.kind for f in series.failures if f.cell == 0] == ["nonfinite"]


def test_the_order_of_the_records_changes_nothing_in_the_table(finished: Path, tmp_path: Path) -> None:
    other = end_of(synthetic.write(tmp_path, small=True, shuffle=3))
    assert values(other.series) == values(end_of(finished).series)


def test_no_changed_byte_of_the_last_line_its_seal_or_the_proof_before_it_is_believed(finished: Path, tmp_path: Path) -> None:
    draw, data = random.Random(5), finished.read_bytes()
    target = copied(finished, tmp_path)
    begin = data.rindex(b"\n", 0, -1) - 34
    for _ in range(CHANGES):
        place = draw.randrange(begin, len(data))
        other = bytes([draw.choice([b for b in range(256) if b != data[place]])])
        target.write_bytes(data[:place] + other + data[place + 1 :])
        assert isinstance(store.read_end(target), Damage), place
    target.write_bytes(data)
    sealed = proof.seal_path(finished).read_bytes()
    for place in range(len(sealed)):
        proof.seal_path(target).write_bytes(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])
        assert isinstance(store.read_end(target), Damage), place


def test_a_tail_that_was_cut_or_that_grew_is_damage_and_a_file_without_a_seal_is_unfinished(
    finished: Path, tmp_path: Path
) -> None:
    target, data = copied(finished, tmp_path), finished.read_bytes()
    for other in (data[:-1], data[: data.rindex(b"\n", 0, -1) + 1], data + data[-100:], b"", data[-5:]):
        target.write_bytes(other)
        assert isinstance(store.read_end(target), Damage)
    target.write_bytes(data)
    proof.seal_path(target).unlink()
    assert store.read_end(target) is None


def test_of_a_run_that_went_on_the_last_end_counts_and_none_until_it_ends_again(finished: Path, tmp_path: Path) -> None:
    path, run = copied(finished, tmp_path), store.read(finished)
    answered = next(r for r in run.records if r.cell.label == "bf16" and r.question.probe == "quantize")
    assert answered.answer is not None
    faster = dataclasses.replace(answered.answer.measurements[0], value=0.25)
    again = dataclasses.replace(
        answered, started_at="2026-11-22T04:00:00Z", answer=dataclasses.replace(answered.answer, measurements=(faster,))
    )
    with store.Writer(path, run.header) as writer:
        writer.record(again)
        assert store.read_end(path) is None
        writer.end(ended_at="2026-11-22T05:00:00Z", questions=1)
    end = end_of(path)
    assert end.ended_at == "2026-11-22T05:00:00Z"
    assert values(end.series)["bf16", "quantize_seconds", "", faster.definition][0] == 0.25


def test_a_line_longer_than_one_look_at_the_tail_is_read_whole(finished: Path, tmp_path: Path) -> None:
    path = copied(finished, tmp_path)
    contents = [proof.unsealed(line) for line in path.read_bytes().splitlines(keepends=True)]
    end = json.loads(contents[-1])
    end["series"]["weights"] = {f"model {n}": "f" * 64 for n in range(5000)}
    lines = b"".join(proof.chained([*contents[:-1], json.dumps(end, separators=(",", ":")).encode()]))
    assert len(lines) - len(b"".join(contents[:-1])) > 1 << 18
    path.write_bytes(lines)
    seal = {"size": len(lines), "proof": proof.stated_proof(lines[-100:])}
    proof.seal_path(path).write_text(json.dumps(seal))
    assert len(end_of(path).series.weights) == 5000


def test_verify_holds_the_table_against_the_records(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied(finished, tmp_path)
    contents = [proof.unsealed(line) for line in path.read_bytes().splitlines(keepends=True)]
    end = json.loads(contents[-1])
    end["series"]["columns"][0]["values"][0] += 1
    lines = b"".join(proof.chained([*contents[:-1], json.dumps(end, separators=(",", ":")).encode()]))
    path.write_bytes(lines)
    proof.seal_path(path).write_text(json.dumps({"size": len(lines), "proof": proof.stated_proof(lines[-100:])}))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", str(path)])
    assert stopped.value.code == 1
    assert "the table of values in its last line is not what its records say" in " ".join(capsys.readouterr().out.split())


def test_a_crash_between_the_end_and_its_seal_costs_an_end_and_no_answer(
    write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    suite = write_suite("{bits: 4}")

    def run() -> Path:
        return harness.run(suite, results=tmp_path / "results", cache=tmp_path / "cache")

    path = run()
    before = store.read(path)
    proof.seal_path(path).unlink()
    assert store.read_end(path) is None
    assert run() == path
    assert end_of(path).series == before.end.series  # type: ignore[union-attr]
    assert store.read(path).records == before.records
    size = path.stat().st_size
    run()
    assert path.stat().st_size == size  # what is finished and asked nothing grows by nothing


def cell(**changes: object) -> Cell:
    made = square(Scheme(method="gptq", bits=4, options={"group_size": 64}), model=Model(name="tiny", path="/a/tiny"))
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_places_commits_and_labels_are_no_part_of_what_a_cell_is_called() -> None:
    same = [
        cell(model=Model(name="tiny", path="/b/tiny")),
        cell(model=Model(name="tiny", repo="owner/tiny", revision="main", commit="0" * 40)),
        cell(label="another name"),
    ]
    assert {square_identity(each) for each in (cell(), *same)} == {square_identity(cell())}


def test_schemes_ways_of_running_checkpoints_and_servers_tell_cells_apart() -> None:
    scheme = Scheme(method="given", bits=4)
    others = [
        cell(model=Model(name="other", path="/a/tiny")),
        square(Scheme(method="gptq", bits=4, options={"group_size": 128}), model=Model(name="tiny")),
        cell(running=Running(engine="transformers", kv="int8")),
        cell(origin=Given(scheme=scheme, checkpoint=Model(name="one", path="/a/one"))),
        cell(origin=Given(scheme=scheme, checkpoint=Model(name="two", path="/a/one"))),
        cell(origin=Served(scheme=scheme, url="http://one", model="m")),
        cell(origin=Served(scheme=scheme, url="http://two", model="m")),
    ]
    assert len({square_identity(each) for each in (cell(), *others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [("packages_digest", "1", True), ("commit", "1", True), ("threads", 3, False), ("device", "cuda", False)],
)
def test_speeds_are_compared_on_equal_machines_whatever_is_installed(field: str, value: object, same: bool) -> None:
    context = synthetic.HEADER.context
    other: RunContext = dataclasses.replace(context, **{field: value})  # type: ignore[arg-type]
    assert (machine_identity(other) == machine_identity(context)) is same


def test_another_driver_is_the_same_machine_and_another_gpu_is_not() -> None:
    context = synthetic.HEADER.context
    old, new, other = (
        dataclasses.replace(context, machine={**context.machine, "gpus": [{"name": name, "driver": driver}]})
        for name, driver in (("X", "570.1"), ("X", "580.2"), ("Y", "580.2"))
    )
    assert machine_identity(old) == machine_identity(new) != machine_identity(other)
