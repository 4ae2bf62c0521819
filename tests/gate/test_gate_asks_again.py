"""`gate --confirm` from outside: a real night, a real second look, and what it says of each alarm."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from harness import store
from harness.gate import evidence
from harness.gate.types import GateReport
from tests.gate import drill
from tests.plugin_site import call

WriteSuite = Callable[..., Path]


class Nights:
    """A suite whose cells lose as many items as a test says; its runs, and what the gate says of the last two."""

    def __init__(self, suite: Path, folder: Path) -> None:
        self.suite, self.folder, self.site = suite, folder, folder / "site"
        drill.offer(self.site)

    def lose(self, **cells: int) -> None:
        (self.folder / "drill.json").write_text(json.dumps({f"fake {name[1:]}-bit": lost for name, lost in cells.items()}))

    def run(self, *arguments: str) -> CompletedProcess[str]:
        return call(self.site, *arguments, cwd=self.folder)

    def night(self, **cells: int) -> Path:
        self.lose(**cells)
        done = self.run("run", str(self.suite), "--fresh")
        assert done.returncode == 0, done.stdout + done.stderr
        return store.newest(self.folder / "results" / "scripted")

    def gate(self, base: Path, candidate: Path, *more: str) -> tuple[int, GateReport, str]:
        done = self.run("gate", str(base), str(candidate), "--json", "verdict.json", *more)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        report = evidence.read((self.folder / "verdict.json").read_bytes(), "verdict.json")
        return done.returncode, report, done.stdout

    def confirm(self, base: Path, candidate: Path) -> tuple[int, GateReport, str]:
        return self.gate(base, candidate, "--confirm", str(self.suite))


@pytest.fixture
def nights(write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    monkeypatch.setenv("DRILL", str(tmp_path / "drill.json"))
    suite = write_suite("{bits: [4, 3]}")
    suite.write_text(suite.read_text().replace("probes: [quantize, fake]", "probes: [drill]"))
    return Nights(suite, tmp_path)


def causes(report: GateReport) -> Mapping[str, str]:
    return {f.square.label: f.cause for f in report.findings if f.verdict == "regressed"}


def test_an_alarm_is_asked_again_beside_its_baseline_and_turns_red_if_it_stands(nights: Nights) -> None:
    base, candidate = nights.night(), nights.night(_4=60)
    assert nights.gate(base, candidate)[0] == 1
    code, report, _ = nights.confirm(base, candidate)
    assert (code, causes(report)) == (1, {"fake 4-bit": "regression"})
    again = store.read(candidate.parent / "confirm" / candidate.stem)
    assert {(r.cell.label, r.question.probe) for r in again.records} == {("fake 16-bit", "drill"), ("fake 4-bit", "drill")}
    assert store.newest(candidate.parent) == candidate

    nights.lose()  # asked once: a second confirmation of the same night reads what is stored
    assert nights.confirm(base, candidate)[1] == report


def test_a_flaky_cell_is_named_and_not_alarmed(nights: Nights) -> None:
    base, candidate = nights.night(), nights.night(_4=60)
    nights.lose()
    code, report, said = nights.confirm(base, candidate)
    assert (code, causes(report)) == (0, {"fake 4-bit": "flaky"})
    assert "flaky" in said


def test_a_cell_whose_baseline_lost_as_much_is_told_from_one_that_lost_by_itself(nights: Nights) -> None:
    base, candidate = nights.night(), nights.night(_16=60, _4=60, _3=200)
    code, report, _ = nights.confirm(base, candidate)
    assert code == 1
    assert causes(report) == {"fake 16-bit": "regression", "fake 4-bit": "stale baseline", "fake 3-bit": "regression"}


def test_a_confirmation_that_has_no_answer_leaves_the_alarm(nights: Nights) -> None:
    base, candidate = nights.night(), nights.night(_4=60)
    nights.lose(_4=-1)
    code, report, _ = nights.confirm(base, candidate)
    assert (code, causes(report)) == (1, {"fake 4-bit": ""})


def test_alarms_of_a_night_that_was_measured_otherwise_stand_and_a_note_says_why(nights: Nights) -> None:
    base, candidate = nights.night(), nights.night(_4=60)
    drill.offer(nights.site, "1.1")
    code, report, _ = nights.confirm(base, candidate)
    assert (code, causes(report)) == (1, {"fake 4-bit": ""})
    assert any("were not asked again" in note and "packages" in note for note in report.notes)
    assert not (candidate.parent / "confirm").exists()


def test_a_green_night_asks_nothing_again(nights: Nights) -> None:
    base, candidate = nights.night(), nights.night()
    assert nights.confirm(base, candidate)[0] == 0
    assert not (candidate.parent / "confirm").exists()


def test_another_suite_than_the_candidates_is_refused(nights: Nights) -> None:
    base, candidate = nights.night(), nights.night(_4=60)
    other = nights.suite.with_name("other.yaml")
    other.write_text(nights.suite.read_text().replace("name: scripted", "name: other"))
    done = nights.run("gate", str(base), str(candidate), "--confirm", str(other))
    assert done.returncode == 2
    assert "CANDIDATE is a run of the suite 'scripted', not of 'other'" in done.stderr
