"""The static site: whole or not there, the same for the same runs, shared plotly.js, every path under its folder."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from unittest import mock

import pytest

from harness import store
from harness.report import page, site
from harness.report.view import View, view
from tests.report import browser, synthetic

HOSTILE = (
    "../../etc/passwd", "..", ".", "", "/abs", "a/b", "a\\b", "C:\\x", "con", "<script>alert(1)</script>", "a\x00b",
    "\u202egpj.exe", "x" * 10_000, "\U0001f600", "a b", "A", "a", "é", "javascript:alert(1)", "-rf", "~", "%2e%2e%2f",
    "index.html",
)  # fmt: skip


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[View]:
    found = []
    for number in (1, 2):
        day = f"2026-11-2{number}"
        run = f"{day.replace('-', '')}T040000Z-run"
        header = dataclasses.replace(synthetic.HEADER, run=run, started_at=f"{day}T04:00:00Z")
        with mock.patch.object(synthetic, "HEADER", header):
            path = synthetic.write(tmp_path_factory.mktemp("run"), seed=number, small=True)
        found.append(view(store.read(path)))
    return found


@pytest.fixture(scope="module")
def files(views: list[View]) -> dict[str, bytes]:
    return {file.path: file.data for file in site.files(views)}


def test_a_site_has_an_index_a_page_and_the_numbers_of_each_run_and_plotly_once(files: dict[str, bytes]) -> None:
    runs = ("quick/20261121t040000z-run", "quick/20261122t040000z-run")
    folders = sorted({path.rpartition("/")[0] for path in files if path.startswith("quick/")})
    assert [re.sub(r"-[0-9a-f]{10}$", "", folder) for folder in folders] == list(runs)
    for folder in folders:
        assert {f"{folder}/{name}" for name in ("index.html", "results.csv", "results.json", "results.parquet")} <= set(files)
        assert f'href="{folder}/index.html"'.encode() in files["index.html"]
        assert len(files[f"{folder}/index.html"]) < len(page.library()) / 3
    (library,) = (path for path in files if path.startswith("assets/"))
    assert files[library] == page.library()


def test_the_index_shows_the_newest_run_first_with_what_to_deploy(files: dict[str, bytes]) -> None:
    text = files["index.html"].decode()
    assert text.index("20261122T040000Z-run") < text.index("20261121T040000Z-run")
    assert "2 runs of 1 suite." in text
    assert "<script" not in text


def test_runs_in_any_order_give_equal_bytes(views: list[View], files: dict[str, bytes]) -> None:
    assert {file.path: file.data for file in site.files(list(reversed(views)))} == files


def test_hostile_names_are_one_safe_part_of_a_path_each_and_stay_apart() -> None:
    made = [site.safe(name) for name in HOSTILE]
    assert len(set(made)) == len(made)
    for name in made:
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", name)
        assert name not in {"index.html", "assets", site.MARKER}


def test_hostile_suites_leave_no_file_outside_and_no_markup(views: list[View], tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE):
        hostile = dataclasses.replace(views[0], suite=name, title=name, run=f"{name}{number}")
        path = f"{site.safe(hostile.suite)}/{site.safe(hostile.run)}/index.html"
        assert (tmp_path / path).resolve() == tmp_path.resolve() / path
    hostile = dataclasses.replace(views[0], suite="<script>alert(1)</script>", title="<b>", run="../<i>")
    index = next(file.data for file in site.files([hostile]) if file.path == "index.html").decode()
    assert "<script" not in index
    assert "<i>" not in index


@pytest.mark.slow
def test_a_page_of_the_site_opens_from_the_disk_and_draws_its_charts(files: dict[str, bytes], tmp_path: Path) -> None:
    program = browser.find()
    if program is None:
        pytest.skip(browser.LACKING)
    for path, data in files.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (opened, *_) = sorted(tmp_path.glob("quick/*/index.html"))
    with browser.page(program) as tab:
        tab.open(opened)
        tab.wait("document.querySelector('.plot .main-svg') !== null")
        assert tab.errors == []
        assert all(url.startswith("file://") for url in tab.requests)
