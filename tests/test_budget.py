"""`budget: auto` from outside: a suite of scripted cells through real children, to records, page and terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import stats, store
from harness.probes import fake
from harness.report import render, terminal_table, view
from harness.report.frame import frame
from harness.report.verdicts import WHY_NO_P
from harness.run import runner
from harness.spec import Record
from harness.suite.matrix import plan
from tests.intervals import high, low

WriteSuite = Callable[..., Path]
AUTO = "budget: auto\nmargin: 0.02"
CELLS = ("{bits: 8}", "{bits: 4, lost: 0.2}", "{bits: 3, lost: 0.03, gained: 0.01}")


def run(suite: Path, tmp_path: Path, *, fresh: bool = False, retry_failed: bool = False) -> store.Run:
    results, cache = tmp_path / "results", tmp_path / "cache"
    settings = runner.Settings(results=results, cache=cache, fresh=fresh, retry_failed=retry_failed)
    return store.read(runner.run(plan(suite, device="cpu"), settings))


def items(stored: store.Run, bits: int) -> Record:
    return next(r for r in stored.records if r.cell.bits == bits and r.question.subject == "items")


def measured(record: Record) -> dict[str, Any]:
    assert record.answer is not None, record.failure
    return {m.metric: m for m in record.answer.measurements}


def rows(stored: store.Run, bits: int) -> list[dict[str, Any]]:
    (blob,) = {m.blob for m in measured(items(stored, bits)).values() if m.blob is not None}
    found: list[dict[str, Any]] = json.loads(stored.blob(blob))["items"]
    return found


def asked(tmp_path: Path) -> Counter[str]:
    lines = (tmp_path / "cache" / "fake-measured.txt").read_text().splitlines()
    return Counter(line for line in lines if line.endswith(" items"))


_FINISHED: list[store.Run] = []


@pytest.fixture
def finished(write_suite: WriteSuite, tmp_path: Path) -> store.Run:
    """One run of three cells, made by the first test that asks: without a flip, with a loss of 20 points, and with one of exactly
    the margin."""
    if not _FINISHED:
        _FINISHED.append(run(write_suite(*CELLS, extra=AUTO), tmp_path))
    return _FINISHED[0]


def test_a_cell_stops_at_its_verdict_and_one_at_the_margin_runs_out_of_items(finished: store.Run) -> None:
    verdicts = {bits: measured(items(finished, bits))["sequential_verdict"] for bits in (8, 4, 3)}
    assert {bits: m.value for bits, m in verdicts.items()} == {8: 1.0, 4: -1.0, 3: 0.0}
    assert 150 <= verdicts[8].n < 400  # log(20) / margin at least
    assert verdicts[4].n < 200
    assert verdicts[3].n == fake.ITEMS
    for bits, verdict in verdicts.items():
        found = measured(items(finished, bits))
        scored = rows(finished, bits)
        assert found["sequential_items"].value == verdict.n
        assert found["sequential_items"].n == fake.ITEMS
        assert found["sequential_accuracy"].n == found["sequential_difference"].n == len(scored)
        assert found["sequential_accuracy"].value == pytest.approx(sum(r["correct"] for r in scored) / len(scored))
        assert verdict.n <= len(scored) <= 2 * verdict.n + 32, "at most the chunk in which the verdict fell is scored in vain"
        assert "accuracy" not in found, "an accuracy of all items is not known"


def test_the_record_states_the_test_and_its_error_rates(finished: store.Run) -> None:
    answer = items(finished, 4).answer
    assert answer is not None
    facts = answer.facts["sequential"]
    assert facts["verdict"] == "worse than the margin"
    assert (facts["margin"], facts["alpha"], facts["beta"]) == (0.02, 0.05, 0.05)
    assert facts["e_worse"] >= facts["needed_worse"] == pytest.approx(20)
    assert facts["e_within"] < facts["needed_within"]
    assert (facts["scored"], facts["available"]) == (len(rows(finished, 4)), fake.ITEMS)
    assert sum(facts["chunks"]) == facts["scored"]
    assert facts["chunks"][0] == 32


def test_the_verdict_follows_from_the_stored_answers_of_cell_and_baseline(finished: store.Run) -> None:
    base = {row["id"]: row["correct"] for row in rows(finished, 16)}
    assert len(base) == fake.ITEMS
    for bits in (8, 4, 3):
        scored, found = rows(finished, bits), measured(items(finished, bits))
        changes = [row["correct"] - base[row["id"]] for row in scored]
        again = stats.SequentialTest(margin=0.02).update(changes)
        assert again.items == found["sequential_verdict"].n
        interval = stats.anytime_interval(changes)
        change = found["sequential_difference"]
        assert (change.value, change.low, change.high) == pytest.approx(
            (100 * interval.value, 100 * low(interval), 100 * high(interval))
        )


def test_all_cells_are_asked_the_same_items_in_the_same_order(finished: store.Run) -> None:
    orders = [[row["id"] for row in rows(finished, bits)] for bits in (8, 4, 3)]
    whole = orders[2]
    assert all(order == whole[: len(order)] for order in orders)
    names = [row["id"] for row in rows(finished, 16)]
    assert whole == [names[place] for place in stats.shared_order(names)] != names


def test_running_again_asks_nothing_and_another_margin_asks_the_cells_alone(write_suite: WriteSuite, tmp_path: Path) -> None:
    suite = write_suite("{bits: 8}", "{bits: 4, lost: 0.2}", extra=AUTO)
    first = run(suite, tmp_path)
    assert run(suite, tmp_path).records == first.records
    assert set(asked(tmp_path).values()) == {1}
    suite.write_text(suite.read_text().replace("margin: 0.02", "margin: 0.05"))
    again = run(suite, tmp_path)
    assert again.path == first.path
    assert asked(tmp_path)["fake 16-bit items"] == 1, "the baseline's answers serve any margin"
    assert sorted(asked(tmp_path).values()) == [1, 2, 2]
    assert len({r.key for r in again.records if r.question.subject == "items" and r.cell.bits == 8}) == 2
    shown = frame(again)
    (verdict,) = shown[(shown.metric == "sequential_verdict") & (shown.bits == 8)].itertuples()
    assert verdict.n < measured(items(first, 8))["sequential_verdict"].n, "a wider margin is known sooner"


def test_a_baseline_without_answers_fails_the_cells_question_in_words_and_scores_nothing(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite("{bits: 4}", extra=AUTO)
    failing = suite.read_text().replace("{bits: 16}", "{bits: 16, on_items: 'raise:boom'}")
    suite.write_text(failing.replace("baseline: fake 16-bit", "baseline: fake 16-bit raise:boom"))
    stored = run(suite, tmp_path)
    failure = items(stored, 4).failure
    assert failure is not None
    assert (failure.kind, failure.phase) == ("unsupported", "baseline")
    for part in ("budget: auto", "fake 16-bit raise:boom has none to 'items'", "error: RuntimeError: boom", "--retry-failed"):
        assert part in failure.message
    assert set(asked(tmp_path)) == set(), "nothing was scored in its place"
    assert text(section_of(render(stored))).count("unsupported") == 1
    others = {r.question.subject: r.status for r in stored.records if r.cell.bits == 4}
    assert others == {"": "ok", "a": "ok", "b": "ok", "c": "ok", "items": "unsupported"}


def test_baseline_answers_that_are_gone_from_disk_are_asked_again(write_suite: WriteSuite, tmp_path: Path) -> None:
    first = run(write_suite(extra=AUTO), tmp_path)
    shutil.rmtree(first.path.parent / "blobs")
    again = run(write_suite("{bits: 4}", extra=AUTO), tmp_path)
    assert items(again, 4).status == "ok"
    for record in again.records:
        for sample in record.answer.measurements if record.answer is not None else ():
            assert sample.blob is None or again.blob(sample.blob)


# ---------------------------------------------------------------------- the report


def section_of(page: bytes) -> str:
    found = re.search(r'<section id="verdicts".*?</section>', page.decode(), flags=re.DOTALL)
    assert found is not None
    return found.group()


def text(page: str) -> str:
    without = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", without).split())


def test_the_page_shows_every_verdict_with_its_items_and_no_statistic_of_a_fixed_sample(finished: store.Run) -> None:
    page = render(finished)
    shown, section = text(page.decode()), section_of(page)
    squares = re.findall(r"<td[^>]*><(?:b|span)>(\w+)</(?:b|span)><small class=\"block\">(.*?)</small>", section)
    took = {bits: measured(items(finished, bits))["sequential_verdict"].n for bits in (8, 4)}
    assert squares == [
        ("within", f"{took[8]} of 3\u202f000 items"),
        ("worse", f"{took[4]} of 3\u202f000 items"),
        ("undecided", "3\u202f000 of 3\u202f000 items"),
    ]
    assert "at most 5 % (within) or 5 % (worse)" in shown
    assert WHY_NO_P in shown
    assert "McNemar" not in shown
    assert "95 %, whenever one stops" in section
    assert "items scored (" in shown


def test_no_derived_number_of_such_a_task_assumes_a_fixed_sample(finished: store.Run) -> None:
    table = frame(finished)
    mine = set(table[table.subject == "items"].metric)
    assert mine == {"accuracy", "sequential_verdict", "sequential_items", "sequential_difference", "sequential_accuracy"}
    assert set(table[(table.metric == "accuracy")].scheme) == {"fake 16-bit"}
    assert "mean_accuracy" not in set(table.metric)
    verdicts = table[table.metric == "sequential_verdict"]
    assert list(verdicts.value) == [1.0, -1.0, 0.0]
    assert set(verdicts.status) == {"ok"}


def test_the_terminal_counts_the_verdicts_of_each_cell(finished: store.Run) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_table(view(finished)))
    drawn = console.export_text()
    assert "verdicts: tasks within / worse / undecided, margin 2 points" in " ".join(drawn.split())
    lines = {line.split("  ")[0].strip(): line for line in drawn.splitlines() if line.startswith("fake")}
    (eight,) = [line for name, line in lines.items() if name.startswith("fake 8-bit")]
    (four,) = [line for name, line in lines.items() if name.startswith("fake 4-bit")]
    assert "1 / 0 / 0" in eight
    assert "0 / 1 / 0" in four
    assert "/" not in lines["fake 16-bit, baseline"]


def test_unanswered_and_failed_squares_are_drawn(finished: store.Run) -> None:
    waiting = dataclasses.replace(finished, records=tuple(r for r in finished.records if r.cell.bits == 16), end=None)
    assert text(section_of(render(waiting))).count("not run") == 3
