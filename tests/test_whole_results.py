"""Stored results prove themselves: whatever is altered, dropped, doubled, moved or cut is named, and reaches no report."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path

import pytest

from harness import proof, store
from harness.errors import DamagedBlob, HarnessError, StoreError
from harness.report import frame
from harness.report.view import view
from harness.spec import to_json
from tests.report import synthetic

pytestmark = pytest.mark.filterwarnings("ignore::harness.store.DamagedLines")

CHANGES = 200
"""Single bytes that the fast test changes; the slow one changes thousands."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = synthetic.write(tmp_path_factory.mktemp("finished"), small=True)
    assert store.read(path).damage == ()
    return path


def copied(path: Path, folder: Path) -> Path:
    shutil.copy(path, folder / path.name)
    shutil.copy(proof.seal_path(path), folder)
    return folder / path.name


def read(path: Path) -> store.Run | str:
    """What is left of a run, or the sentence that refuses it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", store.TornLine)
            return store.read(path)
    except (HarnessError, store.TornLine) as error:
        return str(error)


def noticed(path: Path, before: store.Run) -> bool:
    """Whether a change shows, and nothing that is read differs from what was written."""
    run = read(path)
    if isinstance(run, str):
        return True
    written = {json.dumps(to_json(record)) for record in before.records}
    assert run.header == before.header
    assert run.plan == before.plan
    assert {json.dumps(to_json(record)) for record in run.records} <= written
    return bool(run.damage)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file of few lines, which is read thousands of times."""
    kept = iter(range(12))
    return synthetic.write(
        tmp_path_factory.mktemp("short"), small=True, edit=lambda record: record if next(kept, None) is not None else None
    )


def change_bytes(path: Path, tmp_path: Path, count: int) -> list[int]:
    """Changes one byte at a time; the places at which nobody noticed."""
    draw, before, data = random.Random(7), store.read(path), path.read_bytes()
    target = copied(path, tmp_path)
    unseen = []
    for _ in range(count):
        place = draw.randrange(len(data))
        other = bytes([draw.choice([b for b in range(256) if b != data[place]])])
        target.write_bytes(data[:place] + other + data[place + 1 :])
        if not noticed(target, before):
            unseen.append(place)
    return unseen


def test_a_changed_byte_anywhere_in_a_run_file_is_noticed(short: Path, tmp_path: Path) -> None:
    assert change_bytes(short, tmp_path, CHANGES) == []


@pytest.mark.slow
def test_none_of_5000_changed_bytes_of_a_run_file_goes_unnoticed(short: Path, tmp_path: Path) -> None:
    assert change_bytes(short, tmp_path, 5000) == []


def test_a_changed_byte_anywhere_in_raw_samples_is_noticed(finished: Path) -> None:
    draw = random.Random(11)
    blobs = sorted((finished.parent / "blobs").glob("*/*"))
    for _ in range(CHANGES):
        path = draw.choice(blobs)
        data = path.read_bytes()
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :])
        with pytest.raises(DamagedBlob, match="not what was stored"):
            store.read_blob(finished.parent, path.name)
        path.write_bytes(data)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_a_line_that_is_dropped_doubled_or_swapped_is_noticed_wherever_it_stands(short: Path, tmp_path: Path) -> None:
    before, lines, target = store.read(short), lines_of(short), copied(short, tmp_path)
    for place in range(1, len(lines)):
        others = [
            [*lines[:place], *lines[place + 1 :]],
            [*lines[: place + 1], *lines[place:]],
            [*lines[: place - 1], lines[place], lines[place - 1], *lines[place + 1 :]],
        ]
        for changed in others:
            target.write_bytes(b"".join(changed))
            assert noticed(target, before), place


def _other_proof(line: bytes) -> bytes:
    return line[:-4] + (b"1" if line[-4:-3] == b"0" else b"0") + line[-3:]


def test_one_damaged_line_costs_one_answer(finished: Path, tmp_path: Path) -> None:
    before, lines, target = store.read(finished), lines_of(finished), copied(finished, tmp_path)
    for damage in (lambda line: line.replace(b'"value":', b'"value":1', 1), _other_proof):
        place = next(i for i, line in enumerate(lines) if b'"value":' in line)
        target.write_bytes(b"".join([*lines[:place], damage(lines[place]), *lines[place + 1 :]]))
        run = read(target)
        assert isinstance(run, store.Run)
        assert [d.line for d in run.damage] == [place + 1]
        assert len(run.records) == len(before.records) - 1


def test_the_cut_end_of_an_unfinished_run_is_not_run_and_of_a_finished_one_damage(finished: Path, tmp_path: Path) -> None:
    lines, target = lines_of(finished), copied(finished, tmp_path)
    target.write_bytes(b"".join(lines[:-3]))
    cut = store.read(target)
    assert not cut.ended
    assert ["ends otherwise than when it was finished" in d.why for d in cut.damage] == [True]
    proof.seal_path(target).unlink()
    unfinished = store.read(target)
    assert (unfinished.ended, unfinished.damage) == (False, ())


def test_a_damaged_answer_is_in_no_table_and_the_report_names_it(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished.parent, tmp_path / "run")
    target = folder / finished.name
    lines = lines_of(finished)
    place = next(i for i, line in enumerate(lines) if b'"metric":"perplexity"' in line)
    target.write_bytes(b"".join([*lines[:place], lines[place].replace(b'"value":', b'"value":9', 1), *lines[place + 1 :]]))
    shown = view(store.read(target))
    assert any(f"line {place + 1}" in note and "left out" in note for note in shown.notes)
    before, after = frame.frame_of(view(store.read(finished))), frame.frame_of(shown)
    same = before.merge(after, on=["model", "method", "scheme", "metric", "subject", "definition"], suffixes=("", "_now"))
    answered = same[(same.status_now == "ok") & same.metric.eq("perplexity")]
    assert 0 < len(answered) < int(((before.metric == "perplexity") & (before.status == "ok")).sum())
    assert (answered.value == answered.value_now).all()


def test_damaged_raw_samples_take_part_in_no_comparison(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished.parent, tmp_path / "run")
    blob = next(m.blob for r in store.read(finished).records if r.answer for m in r.answer.measurements if m.metric == "accuracy")
    assert blob is not None
    path = store.blob_path(folder, blob)
    path.write_bytes(path.read_bytes().replace(b"true", b"fals", 1))
    table = frame.frame_of(view(store.read(folder / finished.name)))
    whole = frame.frame_of(view(store.read(finished)))
    compared = table[(table.metric == "accuracy_difference") & (table.status == "not comparable")]
    assert len(compared) > int(((whole.metric == "accuracy_difference") & (whole.status == "not comparable")).sum())


def test_writing_on_sets_damage_aside_and_the_file_is_whole_again(finished: Path, tmp_path: Path) -> None:
    before, lines, target = store.read(finished), lines_of(finished), copied(finished, tmp_path)
    target.write_bytes(b"".join([*lines[:5], lines[5][:40] + b"x" + lines[5][41:], *lines[6:]]))
    with pytest.warns(store.DamagedLines, match="line 6.*set aside"), store.Writer(target, before.header):
        pass
    after = store.read(target)
    assert after.damage == ()
    assert len(after.records) == len(before.records) - 1
    assert target.with_name(target.name + ".damaged").read_bytes().startswith(lines[5][:40])


def test_a_run_whose_plan_is_damaged_is_refused_with_what_mends_it(finished: Path, tmp_path: Path) -> None:
    lines, target = lines_of(finished), copied(finished, tmp_path)
    target.write_bytes(b"".join([lines[0], lines[1].replace(b'"cells"', b'"sells"', 1), *lines[2:]]))
    with pytest.raises(StoreError, match=r"its plan is damaged \(line 2: .*quant-harness run SUITE"):
        store.read(target)


def test_a_line_that_is_no_object_cannot_be_sealed() -> None:
    for content in (b"{}", b"[1]", b'{"a":1}\n{"b":2}'):
        with pytest.raises(ValueError, match="one line that is a JSON object"):
            proof.sealed(content, "")


def test_raw_samples_that_were_damaged_are_written_again(tmp_path: Path) -> None:
    name = store.add_blob(tmp_path, b"samples", "json")
    store.blob_path(tmp_path, name).write_bytes(b"simples")
    assert store.add_blob(tmp_path, b"samples", "json") == name
    assert store.read_blob(tmp_path, name) == b"samples"
