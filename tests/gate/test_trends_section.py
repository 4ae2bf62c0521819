"""A report of a results folder shows how its runs went: a chart for each headline metric, a table, and what got worse."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import cli
from harness.gate import trends_section
from tests.gate import many_nights
from tests.gate.test_trends import values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("results") / "nightly"
    made.mkdir()
    for day in range(24):
        many_nights.write(made, day, values(day, slower=1.0 if day < 14 else 1.2))
    return made


def call(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert not stopped.value.code


def test_the_section_names_what_got_worse_and_draws_a_line_for_each_cell(folder: Path) -> None:
    section = trends_section.of_folder(folder)
    assert section is not None
    assert section.title == "24 nights"
    assert "1 of 4 series are worse" in section.lead
    assert "reference / rtn 4-bit, Time per output token, pp128: worse since 2026-01-15" in section.body
    assert section.body.count("<polyline") == 4
    assert section.body.count("<table") == 2
    assert "nothing else changed that night" in section.body


def test_two_finished_runs_make_a_history_and_one_does_not(tmp_path: Path) -> None:
    many_nights.write(tmp_path, 0, values(0))
    many_nights.write(tmp_path, 1, values(1), finish=False)
    assert trends_section.of_folder(tmp_path) is None
    many_nights.write(tmp_path, 2, values(2))
    section = trends_section.of_folder(tmp_path)
    assert section is not None
    assert "Runs that are left out: 1" in section.body


def test_a_report_of_a_folder_has_the_section_and_one_of_a_run_file_has_not(folder: Path, tmp_path: Path) -> None:
    newest = folder / f"{many_nights.name(23)}.jsonl"
    call("report", folder, "-o", tmp_path / "folder.html")
    call("report", folder, "-o", tmp_path / "again.html")
    call("report", newest, "-o", tmp_path / "run.html")
    page = (tmp_path / "folder.html").read_text(encoding="utf-8")
    assert 'id="history"' in page
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
    assert 'id="history"' not in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_in_a_site_the_newest_run_of_a_folder_has_the_section(tmp_path: Path) -> None:
    folder = tmp_path / "nightly"
    folder.mkdir()
    for day in range(3):
        many_nights.write(folder, day, values(day))
    call("site", folder, "-o", tmp_path / "site")
    pages = {
        path.parent.name[:8]: 'id="history"' in path.read_text(encoding="utf-8")
        for path in (tmp_path / "site").glob("*/*/index.html")
    }
    assert pages == {"20260101": False, "20260102": False, "20260103": True}


def test_what_a_suite_calls_its_cells_cannot_break_the_page(tmp_path: Path) -> None:
    hostile = {"bf16": {"tpot": 1.0}, "<script>alert(1)</script>": {"tpot": 2.0}}
    for day in range(3):
        many_nights.write(tmp_path, day, hostile)
    section = trends_section.of_folder(tmp_path)
    assert section is not None
    assert "<script" not in section.body
    assert "&lt;script&gt;alert(1)" in section.body
