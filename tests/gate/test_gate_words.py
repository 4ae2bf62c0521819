"""What a gate says: the verdict, the next step and each finding as sentences that a person can act on."""

from __future__ import annotations

import dataclasses
import math
import shlex
from typing import Any

import pytest

from harness.gate import words
from harness.gate.types import Figure, Finding, GateReport
from tests.gate import reports_by_hand as by_hand


def verdict(*findings: Finding, **other: Any) -> str:
    return words.verdict(by_hand.red(findings=findings, **other))


def muted(f: Finding) -> Finding:
    return dataclasses.replace(f, muted="muted until 2026-12-24: known")


# ---- the first line ----


def test_the_verdict_counts_squares_and_names_what_is_no_pass() -> None:
    assert words.verdict(by_hand.red()) == (
        "red: 2 of 13 squares are worse; 1 failed, 1 is missing; 1 could not be compared"
    )  # fmt: skip
    assert words.verdict(by_hand.green()) == "green: nothing that was compared is worse; 1 could not be compared"
    assert verdict(by_hand.lost_accuracy()) == "red: 1 of 1 square is worse"


def test_what_is_missing_turns_the_verdict_red_though_nothing_is_worse() -> None:
    missing, failed, *_ = by_hand.others()
    assert verdict(by_hand.quiet(0), missing) == "red: 1 is missing; nothing that was measured is worse"
    assert verdict(by_hand.quiet(0), failed, missing) == "red: 1 failed, 1 is missing; nothing that was measured is worse"


def test_a_gate_that_compared_nothing_does_not_say_that_nothing_is_worse() -> None:
    apart = by_hand.others()[2]
    assert verdict(apart) == "green: none of 1 square was compared"
    assert verdict() == "green: there was no square to compare"


def test_alarms_that_do_not_count_are_counted_apart() -> None:
    flaky = dataclasses.replace(by_hand.slower(), cause="flaky")
    said = verdict(by_hand.quiet(0), muted(by_hand.lost_accuracy()), flaky)
    assert said == "green: nothing is worse; 2 worse ones do not count (muted, or not seen again)"


def test_a_square_that_is_compared_with_two_runs_is_one_square() -> None:
    twice = (by_hand.lost_accuracy(), by_hand.lost_accuracy(against="accepted"))
    assert verdict(*twice, by_hand.quiet(0)) == "red: 1 of 2 squares is worse"


# ---- what to do next ----


def commands(report: GateReport) -> list[list[str]]:
    return [shlex.split(step.command) for step in words.steps(report) if step.command]


def test_an_alarm_is_first_asked_once_more_then_searched_then_accepted() -> None:
    base, candidate = by_hand.BASE.path, by_hand.CANDIDATE.path
    assert commands(by_hand.red()) == [
        ["quant-harness", "gate", base, candidate, "--confirm", "nightly"],
        ["quant-harness", "bisect", base, candidate, "reference-12m / gptq 4-bit g64"],
        ["quant-harness", "accept", candidate, "--why", "REASON"],
        ["quant-harness", "run", "nightly", "--retry-failed"],
    ]


def test_alarms_that_were_confirmed_are_not_asked_again() -> None:
    confirmed = by_hand.red(confirmed=True)
    assert "--confirm" not in [word for command in commands(confirmed) for word in command]


def test_without_packages_that_differ_there_is_nothing_to_bisect() -> None:
    same = by_hand.red(differences=by_hand.DIFFERENCES[2:])
    assert "bisect" not in [command[1] for command in commands(same)]


def test_green_needs_nothing_but_a_look_at_what_could_not_be_compared() -> None:
    (step,) = words.steps(by_hand.green())
    assert step.said == "What could not be compared is no pass; see each with its reason:"
    assert step.command.endswith(" --all")
    whole = by_hand.green()
    compared = tuple(f for f in whole.findings if f.verdict != "not comparable")
    assert [(s.said, s.command) for s in words.steps(dataclasses.replace(whole, findings=compared))] == [("Nothing to do.", "")]


def test_a_name_that_is_a_command_stays_one_word_of_the_command() -> None:
    evil = dataclasses.replace(by_hand.CANDIDATE, path="x; rm -rf ~ $(id) `id`\n'", suite="a b; id")
    for command in commands(by_hand.red(candidate=evil)):
        assert evil.path in command or evil.suite in command
    assert commands(by_hand.red(candidate=evil))[0][-1] == evil.suite


def test_a_stale_baseline_is_moved() -> None:
    stale = dataclasses.replace(by_hand.lost_accuracy(), cause="stale baseline")
    assert [c[1] for c in commands(by_hand.red(findings=(stale,)))] == ["accept"]


def test_what_rests_on_records_is_asked_again_by_their_keys() -> None:
    alarm = by_hand.lost_accuracy(keys=("1a" * 32, "k 2"))
    assert shlex.split(words.replay(by_hand.red(commands={}), alarm)) == [
        *("quant-harness", "run", "nightly", "--only", "1a1a1a1a1a1a", "--only", "k 2", "--fresh")
    ]  # fmt: skip
    assert words.replay(by_hand.red(commands={alarm.square.name: "told"}), alarm) == "told"
    assert words.replay(by_hand.red(commands={}), by_hand.lost_accuracy(keys=())) == ""


# ---- one finding ----


def test_a_finding_says_before_after_interval_noise_threshold_its_origin_and_p() -> None:
    assert words.sentence(by_hand.lost_accuracy()).replace("\u202f", " ") == (
        "Mean accuracy, mean of 6 tasks: 96.4 % → 94.1 %, 2.3 points worse (1.4 to 3.2), 2.6× its own noise; "
        "threshold 0.25 points, from the default policy; p 3e-6 (corrected 7e-4); 2 items lost and 1 gained"
    )


def test_a_gain_is_said_as_a_gain() -> None:
    better = by_hand.lost_accuracy(change=-2.3, low=-3.2, high=-1.4, verdict="improved")
    assert words.change(better) == "2.3 points better (1.4 to 3.2)"


@pytest.mark.parametrize(
    ("change", "low", "high", "unit", "said"),
    [
        (0.04, 0.01, 0.07, "points", "0.04 points worse (0.01 to 0.07)"),
        (1.0, None, None, "points", "1.0 points worse"),
        (0.1, -0.5, 0.7, "points", "0.1 points worse (−0.5 to 0.7)"),
        (0.00121, 0.00091, 0.00151, "nat", "0.00121 nats worse (0.00091 to 0.00151)"),
        (0.01, 0.0099999967, 0.010000006, "nat", "0.01000 nats worse (0.01000 to 0.01000)"),
        (0.119, 0.1, 0.138, "share", "11.9 % worse (10.0 to 13.8)"),
        (0.0, 0.0, 0.0, "points", "no change"),
        (0.0, -0.1, 0.1, "points", "no change (−0.1 to 0.1)"),
        (math.inf, 0.1, math.inf, "nat", "∞ nats worse (0.1 to ∞)"),
        (math.nan, None, None, "nat", "the change is not a number"),
        (3.0, None, None, "", "it differs"),
    ],
)
def test_changes_are_written_in_the_digits_that_mean_something(
    change: float, low: float | None, high: float | None, unit: str, said: str
) -> None:
    found = by_hand.lost_accuracy(change=change, low=low, high=high, change_unit=unit)
    assert words.change(found).replace("\u202f", " ") == said


@pytest.mark.parametrize(
    ("before", "after", "unit", "said"),
    [
        (0.964, 0.9641, "share", ("96.40 %", "96.41 %")),
        (3_936_665, 3_936_664, "B", ("3.936665 MB", "3.936664 MB")),
        (0.964, 0.964, "share", ("96.4 %", "96.4 %")),
        (8.41, math.inf, "", ("8.410", "∞")),
        (8.41, math.nan, "", ("8.410", "not a number")),
        (2e-9, 8e-9, "nat", ("0.000000002 nats", "0.000000008 nats")),
    ],
)
def test_two_numbers_that_differ_are_written_so_that_they_differ(
    before: float, after: float, unit: str, said: tuple[str, str]
) -> None:
    found = by_hand.lost_accuracy(
        square=by_hand.square(unit=unit), before=Figure(value=before), after=Figure(value=after)
    )  # fmt: skip
    assert tuple(x.replace("\u202f", " ") for x in words.figures(found)) == said


@pytest.mark.parametrize(
    ("p", "said"), [(0.31, "0.310"), (1e-3, "0.001"), (3e-6, "3e-6"), (9.6e-4, "1e-3"), (0, "below 1e-99")]
)  # fmt: skip
def test_small_probabilities_keep_one_digit(p: float, said: str) -> None:
    assert words.probability(p) == said


def test_every_verdict_and_cause_has_its_words() -> None:
    missing, failed, apart, improved, new = map(words.sentence, by_hand.others())
    assert missing == "Perplexity, reference: was 8.410; the candidate's plan does not ask it"
    assert failed == "Perplexity, reference: was 8.410; crash: killed by signal 9"
    assert "other machine (bench-1, then bench-2)" in apart
    assert improved.endswith("any difference counts")
    assert new == "Mean KL divergence, reference: now 0.000400 nats"
    for cause, word in (("flaky", "flaky"), ("machine", "machine"), ("stale baseline", "stale"), ("regression", "seen again")):
        assert word in words.sentence(by_hand.lost_accuracy(cause=cause))
    assert "against the accepted run" in words.sentence(by_hand.lost_accuracy(against="accepted"))
    assert "muted until 2026-12-24: known" in words.sentence(muted(by_hand.lost_accuracy()))


def test_a_factor_of_an_interval_without_width_is_not_written_out() -> None:
    assert words.factor(by_hand.lost_accuracy(factor=2162025.6)) == "> 1000×"
    assert words.factor(by_hand.lost_accuracy(factor=math.inf)) == "> 1000×"


def test_the_error_rate_names_the_nights_and_the_tests() -> None:
    said = words.error_rate(by_hand.red())
    assert (
        said == "At most 1\u202f% of nights in which nothing changed raise any false alarm over these 231 tests. "
        "Sizes, kernels, latency and memory are judged without a test."
    )
    assert "this 1 test." in words.error_rate(by_hand.red(tests=1))
    assert words.error_rate(by_hand.red(tests=0)).startswith("No statistical test was made")


def test_a_run_that_is_not_finished_is_said_to_be_so() -> None:
    assert words.run_words(dataclasses.replace(by_hand.BASE, finished=False)).endswith("not finished")
