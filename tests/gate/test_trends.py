"""How numbers went over many nights: levels that changed, what else changed then, drifts, and which series got worse."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.errors import BadInput, UnknownName
from harness.gate import history, journal
from harness.gate.trends import Trend, Wanted, sparkline, trends
from tests.gate import many_nights
from tests.report.synthetic import HEADER

NIGHTS, CHANGED = 40, 28


def values(day: int, *, slower: float = 1.0, lost: float = 0.0) -> many_nights.Values:
    draw = random.Random(day)
    return {
        "bf16": {"tpot": 0.004 * draw.gauss(1, 0.01), "accuracy": 0.7 + draw.gauss(0, 0.002)},
        "rtn 4-bit": {"tpot": 0.003 * slower * draw.gauss(1, 0.01), "accuracy": 0.66 - lost + draw.gauss(0, 0.002)},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel is slower from one night on, with which a package changed; nothing else happens."""
    made = tmp_path_factory.mktemp("nights")
    packages = HEADER.context.packages
    for day in range(NIGHTS):
        after = day >= CHANGED
        now = {**packages, "torch": "2.14.0"} if after else packages
        many_nights.write(made, day, values(day, slower=1.1 if after else 1.0), packages=now)
    return made


def of(folder: Path, accepted: str | None = None, **wanted: Any) -> dict[tuple[str, str], Trend]:
    found = trends(history.nights(folder).nights, accepted, Wanted(**wanted))
    return {(t.cell.label, t.about.metric.name): t for t in found}


def test_a_slower_kernel_is_found_at_its_night_with_the_package_that_changed(folder: Path) -> None:
    (step,) = of(folder)["rtn 4-bit", "tpot"].steps
    assert step.point.run == many_nights.name(CHANGED)
    assert step.after / step.before == pytest.approx(1.1, rel=0.01)
    assert step.worse
    assert [(d.what, d.before, d.after) for d in step.differences] == [("package torch", "2.13.0", "2.14.0")]


def test_only_what_got_worse_is_left_by_the_filter_until_it_is_accepted(folder: Path) -> None:
    assert set(of(folder, regressed=True)) == {("rtn 4-bit", "tpot")}
    assert (
        of(folder, regressed=True)["rtn 4-bit", "tpot"].regressed
        == f"worse since {of(folder)['rtn 4-bit', 'tpot'].steps[0].point.date}"
    )
    assert of(folder, many_nights.name(CHANGED - 5), regressed=True)
    assert of(folder, many_nights.name(CHANGED + 2), regressed=True) == {}


def test_a_change_for_the_better_is_a_step_and_no_regression(tmp_path: Path) -> None:
    for day in range(24):
        many_nights.write(tmp_path, day, values(day, slower=1.0 if day < 12 else 0.8))
    trend = of(tmp_path)["rtn 4-bit", "tpot"]
    assert [step.worse for step in trend.steps] == [False]
    assert trend.regressed == ""


def test_a_drift_that_no_night_shows_is_a_slope_whose_interval_leaves_zero(tmp_path: Path) -> None:
    for day in range(28):  # 0.3 points a week
        many_nights.write(tmp_path, day, values(day, lost=0.003 * day / 7))
    trend = of(tmp_path)["rtn 4-bit", "mean_accuracy"]
    assert trend.slope is not None
    assert trend.slope.low is not None
    assert trend.slope.high is not None
    assert trend.slope.low <= -0.003 <= trend.slope.high < 0
    assert trend.regressed


def test_numbers_of_another_machine_are_in_no_series_of_speed_and_in_those_of_quality(folder: Path, tmp_path: Path) -> None:
    for day in range(6):
        many_nights.write(tmp_path, day, values(day), threads=2 if day < 4 else 8)
    found = of(tmp_path)
    assert len(found["bf16", "tpot"].points) == 2
    assert len(found["bf16", "mean_accuracy"].points) == 6


def test_other_weights_are_named_beside_the_step_that_came_with_them(tmp_path: Path) -> None:
    for day in range(24):
        many_nights.write(tmp_path, day, values(day, lost=0.0 if day < 12 else 0.05), weights="w" * 64 if day < 12 else "x" * 64)
    (step,) = of(tmp_path, metric="accuracy")["rtn 4-bit", "accuracy"].steps
    assert [d.what for d in step.differences] == ["weights of reference"]


def test_models_methods_and_days_narrow_what_is_shown_and_strangers_are_refused(folder: Path) -> None:
    assert {cell for cell, _ in of(folder, methods=("rtn",))} == {"rtn 4-bit"}
    assert len(of(folder, since="2026-02-01")["bf16", "tpot"].points) == NIGHTS - 31
    for wanted, said in (
        ({"models": ("other",)}, "other"),
        ({"methods": ("gptq",)}, "gptq"),
        ({"metric": "tpott"}, "did you mean 'tpot'"),
    ):
        with pytest.raises(UnknownName, match=said):
            of(folder, **wanted)
    with pytest.raises(BadInput, match="no date"):
        of(folder, since="yesterday")
    with pytest.raises(BadInput, match="no finished run since 2030-01-01"):
        of(folder, since="2030-01-01")


def test_a_sparkline_is_lowest_to_highest_and_long_series_fit() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert len(sparkline(range(365), 30)) == 30


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return int(stopped.value.code or 0)


def test_the_verb_shows_each_series_with_what_changed_and_names_what_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    unfinished = many_nights.write(tmp_path, NIGHTS, values(NIGHTS), finish=False)
    journal.accept(tmp_path / f"{many_nights.name(3)}.jsonl", who="Ada", when="2026-03-01T00:00:00+00:00")
    assert call("history", str(tmp_path), "tpot") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Time per output token, pp128 (ms): 40 nights" in said
    assert "rtn 4-bit worse since 2026-01-29" in said
    assert "package torch 2.13.0 → 2.14.0" in said
    assert f"accepted is {many_nights.name(3)}" in said
    assert f"{unfinished.name} is left out of the history: it is not finished" in said
    assert "accuracy" not in said.lower()


def test_the_verb_says_so_when_nothing_got_worse_and_refuses_what_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in range(10):
        many_nights.write(tmp_path, day, values(day))
    assert call("history", str(tmp_path), "--regressed") == 0
    assert "no series got worse in 10 nights" in capsys.readouterr().out
    assert call("history", str(tmp_path / "none")) == 2
    assert call("history", str(tmp_path), "tpott") == 2
    assert "did you mean 'tpot'" in capsys.readouterr().err
