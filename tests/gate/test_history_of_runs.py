"""A suite's past is read from the ends of its finished runs, by the time of their start; what is not whole is named, left out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from harness import proof
from harness.gate import history
from tests.gate import many_nights
from tests.gate.many_nights import key

NIGHTS = [{"bf16": {"tpot": 1.0 + day, "accuracy": 0.5}, "rtn 4-bit": {"tpot": 2.0 + day, "accuracy": 0.4}} for day in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day in (2, 0, 3, 1):
        many_nights.write(tmp_path, day, NIGHTS[day])
    return tmp_path


def test_a_history_holds_each_night_in_the_order_of_its_start_beside_its_own_baseline(folder: Path) -> None:
    past = history.read(folder)[key("rtn 4-bit", "tpot")]
    assert [night.run for night in past] == [many_nights.name(day) for day in range(4)]
    assert [night.value for night in past] == [2.0, 3.0, 4.0, 5.0]
    assert [night.baseline for night in past] == [1.0, 2.0, 3.0, 4.0]


def test_before_a_run_only_older_nights_count(folder: Path) -> None:
    past = history.read(folder, before=many_nights.name(2))
    assert [night.value for night in past[key("rtn 4-bit", "tpot")]] == [2.0, 3.0]
    assert key("no such cell", "tpot") not in past
    assert len(past) == 4


def test_nights_of_another_machine_say_so_and_nights_of_other_packages_do_not(folder: Path) -> None:
    many_nights.write(folder, 4, NIGHTS[0], threads=3)
    many_nights.write(folder, 5, NIGHTS[0], packages_digest="1" * 64)
    machines = [night.machine for night in history.read(folder)[key("bf16", "tpot")]]
    assert len(set(machines)) == 2
    assert machines[4] not in machines[:4]
    assert machines[5] == machines[0]


def test_a_cell_whose_weights_are_held_dequantized_has_no_speed_in_a_history(tmp_path: Path) -> None:
    many_nights.write(tmp_path, 0, NIGHTS[0], simulated=["rtn 4-bit"])
    past = history.read(tmp_path)
    assert key("rtn 4-bit", "tpot") not in past
    assert past[key("rtn 4-bit", "accuracy")][0].value == 0.4


def test_a_question_that_failed_is_a_gap(folder: Path) -> None:
    many_nights.write(folder, 4, {**NIGHTS[0], "rtn 4-bit": {"tpot": None}})
    many_nights.write(folder, 5, NIGHTS[0])
    assert [night.value for night in history.read(folder)[key("rtn 4-bit", "tpot")]] == [2.0, 3.0, 4.0, 5.0, 2.0]


def test_what_is_not_finished_not_whole_of_another_schema_or_renamed_is_named_and_left_out(folder: Path) -> None:
    unfinished = many_nights.write(folder, 4, NIGHTS[0], finish=False)
    cut = many_nights.write(folder, 5, NIGHTS[0])
    cut.write_bytes(cut.read_bytes()[:-200])
    headless = many_nights.write(folder, 6, NIGHTS[0])
    headless.write_bytes(headless.read_bytes().replace(b'"threads":2', b'"threads":4', 1))
    old = many_nights.write(folder, 7, NIGHTS[0])
    old.write_bytes(old.read_bytes().replace(b'"schema":4', b'"schema":3', 1))
    moved = many_nights.write(folder, 8, NIGHTS[0])
    for path in (moved, proof.seal_path(moved)):
        path.rename(path.with_name(path.name.replace("00000008", "copy")))
    found = history.nights(folder)
    assert [night.run for night in found.nights] == [many_nights.name(day) for day in range(4)]
    why = dict(zip(["unfinished", "cut", "headless", "old", "moved"], found.left_out, strict=True))
    assert why["unfinished"] == f"{unfinished.name} is left out of the history: it is not finished"
    assert "it ends otherwise than when it was finished" in why["cut"]
    assert "its first line is not as it was written" in why["headless"]
    assert "measure again with: quant-harness run SUITE" in why["old"]
    assert "under another name" in why["moved"]
    with pytest.warns(history.LeftOut) as said:
        history.read(folder)
    assert len(said) == 5


def change_bits(folder: Path, count: int) -> int:
    """Changes one bit of a run file at a time, anywhere; in how many cases its night was left out. Otherwise nothing differs."""
    path, draw = folder / f"{many_nights.name(3)}.jsonl", random.Random(3)
    data, whole = path.read_bytes(), dict(history.read(folder))
    without = {square: past[:3] for square, past in whole.items()}
    left_out = 0
    for _ in range(count):
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :])
        found = history.nights(folder)
        assert dict(history.of(found.nights)) == (without if found.left_out else whole), place
        left_out += bool(found.left_out)
    return left_out


def test_no_single_changed_bit_of_a_run_brings_another_number_into_its_history(folder: Path) -> None:
    assert 0 < change_bits(folder, 300) < 300


@pytest.mark.slow
def test_none_of_5000_changed_bits_brings_another_number_into_a_history(folder: Path) -> None:
    assert 0 < change_bits(folder, 5000) < 5000


def test_damage_before_the_last_line_costs_nothing_of_what_the_last_line_says(folder: Path) -> None:
    path = folder / f"{many_nights.name(3)}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"kind":"record"' in line)
    lines[at] = lines[at].replace(b'"value":4.0', b'"value":9.0', 1)
    path.write_bytes(b"".join(lines))
    assert json.loads(lines[at])["kind"] == "record"
    assert [night.value for night in history.read(folder)[key("bf16", "tpot")]] == [1.0, 2.0, 3.0, 4.0]


def test_appending_a_night_touches_one_run_file(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    path = many_nights.write(folder, 4, NIGHTS[0])
    after = {each: each.stat().st_mtime_ns for each in folder.rglob("*") if each.is_file()}
    assert {each for each in after if before.get(each) != after[each]} == {path, proof.seal_path(path)}
