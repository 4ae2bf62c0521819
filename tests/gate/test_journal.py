"""The journal of a suite: accepted runs and kept verdicts, in lines that prove themselves, written by one at a time."""

from __future__ import annotations

import json
import random
import shutil
import threading
import warnings
from pathlib import Path

import pytest

from harness import cli, proof, store
from harness.errors import BadInput, StoreError
from harness.gate import choose, journal
from harness.gate.journal import Accepted, Kept
from harness.gate.types import GateReport, RunName
from tests.gate import many_nights

NIGHT = {"bf16": {"tpot": 1.0, "accuracy": 0.5}}
WHEN = "2026-01-03T08:00:00+00:00"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day in range(3):
        many_nights.write(tmp_path, day, NIGHT)
    return tmp_path


def run(folder: Path, day: int) -> Path:
    return folder / f"{many_nights.name(day)}.jsonl"


def read(folder: Path) -> journal.Journal:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", store.DamagedLines)
        return journal.read(folder)


def test_a_folder_without_a_journal_has_accepted_nothing(folder: Path) -> None:
    assert journal.read(folder) == journal.Journal()


def test_the_newest_accepted_run_stands_last_with_who_when_and_why(folder: Path) -> None:
    journal.accept(run(folder, 0), who="Ada", when=WHEN)
    journal.accept(run(folder, 2), who="Bob", when=WHEN, why="the new kernel is worth it\n“really”")
    assert journal.read(folder).accepted[-1] == Accepted(
        run=many_nights.name(2), who="Bob", when=WHEN, why="the new kernel is worth it\n“really”"
    )
    lines = (folder / "journal").read_bytes().splitlines()
    assert [json.loads(line)["run"] for line in lines] == [many_nights.name(0), many_nights.name(2)]
    assert store.newest(folder) == run(folder, 2)  # the journal is taken for no run


def report(candidate: int) -> GateReport:
    base, other = (
        RunName(path="", run=many_nights.name(day), suite="", started_at="", commit=None, host="", finished=True)
        for day in (0, candidate)
    )
    return GateReport(base=base, candidate=other, accepted=None, findings=())


def test_a_verdict_is_kept_once(folder: Path) -> None:
    for day in (1, 1, 2):
        journal.keep_verdict(folder, report(day))
    kept = journal.read(folder).verdicts
    assert [(v.base, v.candidate, v.green) for v in kept] == [(many_nights.name(0), many_nights.name(d), True) for d in (1, 2)]


def test_what_is_unfinished_damaged_renamed_or_of_another_suite_cannot_be_accepted(folder: Path) -> None:
    unfinished = many_nights.write(folder, 3, NIGHT, finish=False)
    with pytest.raises(BadInput, match="not finished, and only a finished run can be a baseline"):
        journal.accept(unfinished, who="Ada", when=WHEN)
    damaged = run(folder, 1)
    damaged.write_bytes(damaged.read_bytes().replace(b'"value":0.5', b'"value":0.9', 1))
    with pytest.warns(store.DamagedLines), pytest.raises(BadInput, match=r"is damaged .* cannot be a baseline"):
        journal.accept(damaged, who="Ada", when=WHEN)
    renamed = run(folder, 2).with_name("better.jsonl")
    for a, b in ((run(folder, 2), renamed), (proof.seal_path(run(folder, 2)), proof.seal_path(renamed))):
        b.write_bytes(a.read_bytes())
    with pytest.raises(BadInput, match="under another name"):
        journal.accept(renamed, who="Ada", when=WHEN)
    journal.accept(run(folder, 0), who="Ada", when=WHEN)
    foreign = many_nights.write(folder, 4, NIGHT, suite="other")
    with pytest.raises(BadInput, match=r"is of suite 'other', and .* beside it of 'nightly'"):
        journal.accept(foreign, who="Ada", when=WHEN)
    with pytest.raises(BadInput, match="no such results file"):
        journal.accept(folder / "none.jsonl", who="Ada", when=WHEN)
    assert len(journal.read(folder).accepted) == 1


@pytest.fixture
def written(folder: Path) -> Path:
    for day in range(3):
        journal.append(folder, Accepted(run=many_nights.name(day), who="Ada", when=WHEN, why="because"))
        journal.append(folder, Kept(base=many_nights.name(0), candidate=many_nights.name(day), green=day != 1))
    return folder


def test_every_single_changed_byte_of_a_journal_is_named_and_no_such_line_is_used(written: Path) -> None:
    path, draw, before = written / "journal", random.Random(1), read(written)
    assert before.damage == ()
    data = path.read_bytes()
    for place in range(len(data)):
        other = bytes([draw.choice([b for b in range(256) if b != data[place]])])
        path.write_bytes(data[:place] + other + data[place + 1 :])
        after = read(written)
        assert after.damage, place
        assert set(after.accepted) <= set(before.accepted), place
        assert set(after.verdicts) <= set(before.verdicts), place


def test_a_line_that_is_dropped_doubled_swapped_or_cut_is_named(written: Path) -> None:
    path = written / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    for at in range(len(lines)):
        for changed in (
            [*lines[:at], *lines[at + 1 :]],
            [*lines[: at + 1], *lines[at:]],
            [*lines[:at], lines[at][:-7], *lines[at + 1 :]],
            *([[*lines[: at - 1], lines[at], lines[at - 1], *lines[at + 1 :]]] if at else []),
        ):
            path.write_bytes(b"".join(changed))
            assert read(written).damage, at
    path.unlink()
    assert read(written).damage  # all of it is gone, and the seal remembers


def test_after_damage_new_lines_are_whole_and_the_damage_stays_named(written: Path) -> None:
    path = written / "journal"
    path.write_bytes(path.read_bytes()[:-5])
    journal.append(written, Accepted(run="r", who="Ada", when=WHEN))
    with pytest.warns(store.DamagedLines, match="line 6: not as it was written"):
        found = journal.read(written)
    assert found.accepted[-1].run == "r"
    assert len(found.verdicts) == 2


def test_two_writers_at_once_lose_no_line_and_break_no_chain(folder: Path) -> None:
    def add(who: str) -> None:
        for number in range(20):
            journal.append(folder, Accepted(run=f"{who} {number}", who=who, when=WHEN))

    writers = [threading.Thread(target=add, args=(who,)) for who in ("Ada", "Bob", "Cleo")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = journal.read(folder)
    assert (len(found.accepted), found.damage) == (60, ())


def test_a_crash_between_a_line_and_its_seal_is_no_damage(written: Path) -> None:
    seal = proof.seal_path(written / "journal")
    older = seal.read_bytes()
    journal.append(written, Accepted(run="r", who="Ada", when=WHEN))
    seal.write_bytes(older)
    assert journal.read(written).accepted[-1].run == "r"


def test_a_folder_that_cannot_be_written_is_one_sentence(written: Path) -> None:
    (written / "journal").unlink()
    (written / "journal").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        journal.append(written, Accepted(run="r", who="Ada", when=WHEN))
    with pytest.raises(StoreError, match="cannot be read"):
        journal.read(written)
    assert verify(written) == 1


def accept(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["accept", *arguments])
    return int(stopped.value.code or 0)


def test_the_verb_says_what_was_accepted_by_whom_and_the_journal_keeps_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accept(str(run(folder, 1)), "--why", "a [new] kernel", "--who", "Ada") == 0
    (line,) = journal.read(folder).accepted
    assert (line.run, line.who, line.why) == (many_nights.name(1), "Ada", "a [new] kernel")
    said = " ".join(capsys.readouterr().out.split())
    assert f"accepted {line.run} (Ada, {line.when}: a [new] kernel)" in said
    assert accept("latest", "--results", str(folder)) == 0
    assert journal.read(folder).accepted[-1].run == many_nights.name(2)
    assert journal.read(folder).accepted[-1].who


def test_what_cannot_be_accepted_is_one_sentence_and_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = many_nights.write(folder, 3, NIGHT, finish=False)
    assert accept(str(unfinished)) == 2
    assert accept(str(folder / "nothing.jsonl")) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.startswith("error: ") for line in said.err.strip().splitlines()] == [True, True]
    assert not (folder / "journal").exists()


def test_damage_after_the_last_acceptance_leaves_the_baseline_open_until_one_is_accepted_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in (0, 2):
        journal.accept(run(folder, day), who="Ada", when=WHEN)
    path = folder / "journal"
    path.write_bytes(path.read_bytes().replace(b'"Ada"', b'"Eve"').replace(b'"Eve"', b'"Ada"', 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", store.DamagedLines)
        for found in (lambda: choose.accepted(folder), lambda: choose.base("accepted", None, run(folder, 2))):
            with pytest.raises(
                BadInput, match=r"line 2: not as it was written.* name the baseline again with: quant-harness accept"
            ):
                found()
        assert accept(str(run(folder, 1)), "--who", "Ada") == 0
        assert choose.accepted(folder) == run(folder, 1)
    capsys.readouterr()


def test_a_last_line_that_was_cut_off_leaves_it_open_as_well(folder: Path) -> None:
    for day in (0, 1):
        journal.accept(run(folder, day), who="Ada", when=WHEN)
    path = folder / "journal"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(BadInput, match=r"it ends otherwise than when it was written.* an older one is not taken in its place"):
        _ = read(folder).newest


def test_damage_before_the_last_acceptance_leaves_nothing_open(folder: Path) -> None:
    for day in (0, 2):
        journal.accept(run(folder, day), who="Ada", when=WHEN)
    path = folder / "journal"
    path.write_bytes(path.read_bytes().replace(b'"Ada"', b'"Eve"', 1))
    found = read(folder)
    assert found.damage
    assert found.newest == many_nights.name(2)


def test_a_run_is_accepted_in_the_folder_that_results_names_or_not_at_all(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert accept(str(run(folder, 1)), "--results", str(other)) == 2
    assert "does not lie in" in capsys.readouterr().err
    assert not (folder / "journal").exists()
    assert not (other / "journal").exists()
    assert accept(str(run(folder, 1)), "--results", str(folder)) == 0
    assert accept(run(folder, 2).name, "--results", str(folder)) == 0
    assert accept(run(folder, 0).stem, "--results", str(folder)) == 0
    assert [line.run for line in journal.read(folder).accepted] == [many_nights.name(day) for day in (1, 2, 0)]


def verify(results: Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", str(results)])
    return int(stopped.value.code or 0)


def test_verify_names_a_damaged_journal(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    suite = shutil.copytree(written, results / "nightly", ignore=shutil.ignore_patterns("results"))
    assert verify(suite) == verify(results) == 0
    path = suite / "journal"
    path.write_bytes(path.read_bytes().replace(b"because", b"becausE", 1))
    capsys.readouterr()
    assert verify(suite) == verify(results) == 1
    assert capsys.readouterr().out.count("journal is damaged: line 1: not as it was written") == 2
