"""The gate's table in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from harness.gate import terminal
from harness.gate.types import GateReport
from tests.gate import reports_by_hand as by_hand
from tests.report import hostile

VERDICTS = ("regressed", "failed", "missing", "not comparable", "improved", "new", "within noise")


def printed(report: GateReport, *, width: int = 120, everything: bool = False) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    for part in terminal.drawn(report, everything=everything):
        console.print(part, soft_wrap=not isinstance(part, Table), highlight=False)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def first_words(text: str) -> list[str]:
    return [verdict for line in text.splitlines() for verdict in VERDICTS if line.startswith(f"{verdict} ")]


def test_the_verdict_stands_first_and_the_next_step_second() -> None:
    lines = printed(by_hand.red()).splitlines()
    assert lines[0].startswith("red: 2 of 13 squares are worse")
    assert lines[1].startswith("Ask the alarms once more")
    assert lines[2].startswith("  quant-harness gate ")
    assert lines[2].endswith(" --confirm nightly"), "a command stays one line"


def test_alarms_stand_first_and_the_rest_is_one_line_with_its_count() -> None:
    text = printed(by_hand.red())
    assert first_words(text) == ["regressed", "regressed", "failed", "missing", "improved"]
    assert "And 1 not comparable, 1 new, 6 within noise. Every one of them: --all" in text


def test_what_could_not_be_compared_is_named_with_its_reason() -> None:
    assert "not comparable: reference-12m / gptq 4-bit g64: Time per token, prompt 128, batch 1: other machine" in printed(
        by_hand.green()
    )


def test_all_shows_every_finding() -> None:
    shown = first_words(printed(by_hand.red(), everything=True, width=200))
    assert shown == sorted(shown, key=VERDICTS.index)
    assert len(shown) == len(by_hand.red().findings)


def test_rows_beyond_the_most_are_counted() -> None:
    many = by_hand.red(findings=(by_hand.lost_accuracy(),) * 60)
    text = printed(many)
    assert first_words(text) == ["regressed"] * terminal.MOST_ROWS
    assert "And 20 regressed. Every one of them: --all" in text


def test_a_muted_alarm_and_a_flaky_one_are_not_called_regressed() -> None:
    muted, flaky = by_hand.lost_accuracy(muted="muted until 2026-12-24: known"), by_hand.slower(cause="flaky")
    text = printed(by_hand.red(findings=(muted, flaky)))
    assert first_words(text) == []
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("muted ", "flaky "))] == ["muted", "flaky"]


@pytest.mark.parametrize("width", [80, 120])
def test_numbers_are_never_broken(width: int) -> None:
    text = printed(by_hand.red(), width=width)
    for number in ("96.4\u202f%", "94.1\u202f%", "2.100 ms", "3.936665 MB", "2.6×"):
        assert number in text


def test_no_name_steers_the_terminal() -> None:
    text = printed(by_hand.hostile(tuple(hostile.STRINGS)), everything=True)
    assert all(c.isprintable() or c in "\n\u202f" for c in text)
