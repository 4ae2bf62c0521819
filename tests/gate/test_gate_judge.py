"""What a gate says of two nights, square by square."""

from __future__ import annotations

import dataclasses
import datetime
import math
from pathlib import Path

import numpy as np
import pytest

from harness import store
from harness.errors import BadInput
from harness.gate import judge
from harness.gate.policy import Limit, Mute, Policy
from harness.gate.types import Finding, GateReport, Past, Verdict
from harness.proof import Damage
from harness.series import machine_identity, square_identity
from harness.spec import Answer, Cell, Failure, Question, UnsupportedRecord
from harness.store import Run
from tests.gate.nights import BASE, CELLS, GPTQ, HQQ, KL, LATENCY, QUESTIONS, TEXT, Answers, measured, night

LATER = "20261121T020000000000Z-bbbbbbbb"


@pytest.fixture
def yesterday(tmp_path: Path) -> Run:
    return night(tmp_path)


def found(report: GateReport, cell: Cell, metric: str, subject: str | None = None) -> Finding:
    """The finding of one square."""
    hits = [
        f
        for f in report.findings
        if (f.square.label, f.square.metric) == (cell.label, metric) and subject in (None, f.square.subject)
    ]
    assert len(hits) == 1, hits
    return hits[0]


def alarms(report: GateReport) -> set[tuple[str, str, str]]:
    return {(f.square.label, f.square.metric, f.square.subject) for f in report.alarms}


def test_two_equal_nights_are_green_and_nothing_differs(tmp_path: Path, yesterday: Run) -> None:
    report = judge.gate(yesterday, night(tmp_path, name=LATER))
    assert report.green
    assert {f.verdict for f in report.findings} == {"within noise"}
    assert report.differences == ()
    assert report.notes == ()


def test_a_cell_that_loses_items_is_the_only_one_that_regressed(tmp_path: Path, yesterday: Run) -> None:
    worse = Answers().lose(GPTQ, "facts", lost=40, won=4)
    report = judge.gate(yesterday, night(tmp_path, worse, name=LATER))
    assert alarms(report) == {(GPTQ.label, "mean_accuracy", ""), (GPTQ.label, "accuracy", "facts")}
    finding = found(report, GPTQ, "accuracy", "facts")
    assert finding.change == pytest.approx(3.6)
    assert finding.low is not None
    assert finding.low > 0
    assert (sum(not f.won for f in finding.flips), sum(f.won for f in finding.flips)) == (40, 4)
    assert {f.task for f in finding.flips} == {"facts"}
    mean = found(report, GPTQ, "mean_accuracy")
    assert mean.change == pytest.approx(1.8)
    assert len(mean.keys) == 2
    assert not report.green


def test_as_many_items_won_as_lost_are_noise(tmp_path: Path, yesterday: Run) -> None:
    moved = Answers().lose(GPTQ, "facts", lost=40, won=40)
    assert judge.gate(yesterday, night(tmp_path, moved, name=LATER)).green


def test_a_significant_gain_is_an_improvement_and_no_alarm(tmp_path: Path, yesterday: Run) -> None:
    better = Answers().lose(GPTQ, "facts", lost=0, won=60)
    report = judge.gate(yesterday, night(tmp_path, better, name=LATER))
    assert report.green
    assert found(report, GPTQ, "accuracy", "facts").verdict == "improved"


def test_a_divergence_that_grows_by_a_fifth_is_an_alarm_and_one_by_a_fiftieth_is_not(tmp_path: Path, yesterday: Run) -> None:
    for factor, verdict in ((1.2, "regressed"), (1.02, "within noise"), (0.8, "improved")):
        moved = Answers()
        moved.kl[HQQ.label] = moved.kl[HQQ.label] * factor
        report = judge.gate(yesterday, night(tmp_path, moved, name=LATER))
        finding = found(report, HQQ, "kl_mean")
        assert finding.verdict == verdict
        assert finding.change == pytest.approx(factor - 1, abs=1e-4)
        assert finding.adjusted is not None
        assert finding.adjusted < 0.01  # significant in all three: it is the magnitude that decides


def test_at_the_noise_floor_a_divergence_must_change_by_the_floor_itself(tmp_path: Path) -> None:
    first, second = Answers(), Answers()
    for given, factor in ((first, 1.0), (second, 1.3)):
        given.kl[HQQ.label] = given.kl[HQQ.label] / given.kl[HQQ.label].mean() * 1e-3 * factor
        given.kl_floor = 1.2e-3
    report = judge.gate(night(tmp_path, first), night(tmp_path, second, name=LATER))
    finding = found(report, HQQ, "kl_mean")
    assert finding.verdict == "within noise"
    assert "noise floor" in finding.threshold_from


def test_a_perplexity_is_compared_window_by_window(tmp_path: Path, yesterday: Run) -> None:
    moved = Answers()
    rng = np.random.default_rng(1)
    moved.nll[GPTQ.label] = moved.nll[GPTQ.label] + rng.normal(0.01, 0.05, size=moved.nll[GPTQ.label].shape)
    report = judge.gate(yesterday, night(tmp_path, moved, name=LATER))
    assert alarms(report) == {(GPTQ.label, "perplexity", "prose")}
    assert found(report, GPTQ, "perplexity").change == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize(("more", "verdict"), [(1, "regressed"), (-1, "improved"), (0, "within noise")])
def test_a_single_byte_of_size_counts(tmp_path: Path, yesterday: Run, more: int, verdict: Verdict) -> None:
    moved = Answers()
    moved.bytes[GPTQ.label] += more
    assert found(judge.gate(yesterday, night(tmp_path, moved, name=LATER)), GPTQ, "file_bytes").verdict == verdict


def test_a_share_of_quantized_weights_may_not_move_either_way(tmp_path: Path, yesterday: Run) -> None:
    moved = Answers()
    moved.share[GPTQ.label] = 0.96
    report = judge.gate(yesterday, night(tmp_path, moved, name=LATER))
    assert alarms(report) == {(GPTQ.label, "quantized_share", "")}


def test_another_kernel_is_an_alarm_that_names_both(tmp_path: Path, yesterday: Run) -> None:
    moved = Answers()
    moved.kernels[GPTQ.label] = {"dequantized": 24}
    finding = found(judge.gate(yesterday, night(tmp_path, moved, name=LATER)), GPTQ, "kernels")
    assert finding.alarm
    assert finding.reason == "packed (24 layers) before, dequantized (24 layers) now"


# ------------------------------------------------------------------------------------------------------- latency and memory


def slowed(*labels: str, by: float) -> Answers:
    answers = Answers()
    for label in labels:
        answers.tpot[label] *= by
    return answers


def test_a_slower_cell_is_an_alarm_only_if_the_baseline_of_its_run_is_not_slower_too(tmp_path: Path, yesterday: Run) -> None:
    report = judge.gate(yesterday, night(tmp_path, slowed(GPTQ.label, by=2.3), name=LATER))
    assert alarms(report) == {(GPTQ.label, "tpot", LATENCY.subject)}
    assert found(report, GPTQ, "tpot").change == pytest.approx(1.3)
    all_slower = judge.gate(yesterday, night(tmp_path, slowed(*(c.label for c in CELLS), by=2.3), name=LATER))
    assert all_slower.green
    assert found(all_slower, GPTQ, "tpot").reason == "the baseline of the same run moved with it"
    assert any("the baseline itself moved" in note for note in all_slower.notes)


def test_the_fence_is_made_of_the_series_own_past_once_there_is_enough_of_it(tmp_path: Path, yesterday: Run) -> None:
    rng = np.random.default_rng(0)
    square, here = square_identity(GPTQ), machine_identity(yesterday.header.context)
    values = 0.015 * np.exp(rng.normal(0, 0.004, size=40))
    past = tuple(Past(started_at=f"{i}", run=f"{i}", value=float(v), baseline=0.01, machine=here) for i, v in enumerate(values))
    key = (square, "tpot", LATENCY.subject, measured("tpot", 1).definition)
    beside = (square, "tpot_ratio", LATENCY.subject, measured("tpot_ratio", 1).definition)
    ratios = tuple(dataclasses.replace(p, value=p.value / 0.01) for p in past)
    candidate = night(tmp_path, slowed(GPTQ.label, by=1.08), name=LATER)
    short, long = judge.gate(yesterday, candidate), judge.gate(yesterday, candidate, history={key: past, beside: ratios})
    assert short.green  # 8 % is far below the default, twice as much
    assert alarms(long) == {(GPTQ.label, "tpot", LATENCY.subject)}
    assert "39 past changes" in found(long, GPTQ, "tpot").threshold_from
    elsewhere = {k: tuple(dataclasses.replace(p, machine="other") for p in past) for k in (key, beside)}
    assert judge.gate(yesterday, candidate, history=elsewhere).green


def test_on_a_busy_machine_a_latency_is_not_compared_and_is_no_pass(tmp_path: Path, yesterday: Run) -> None:
    busy = slowed(GPTQ.label, by=3.0)
    busy.elsewhere = 0.6
    report = judge.gate(yesterday, night(tmp_path, busy, name=LATER))
    finding = found(report, GPTQ, "tpot")
    assert finding.verdict == "not comparable"
    assert finding.reason == "the machine was busy with other work while it was measured now (60% of its CPU time)"
    assert alarms(judge.gate(yesterday, night(tmp_path, busy, name=LATER), policy=Policy(busy=0.7)))


def test_the_ratio_that_was_measured_within_rounds_tells_a_slow_minute_from_a_slow_cell(tmp_path: Path, yesterday: Run) -> None:
    def in_a_slow_minute(cell: Cell, question: Question, answer: Answer) -> Answer:
        """The cell is three times slower, as its baseline is in the same rounds; the baseline's own number is of before."""
        if question is not LATENCY or cell is not GPTQ:
            return answer
        tpot, ratio = answer.measurements
        slow = {name: getattr(tpot, name) * 3 for name in ("value", "low", "high")}
        return dataclasses.replace(answer, measurements=(dataclasses.replace(tpot, **slow), ratio))

    report = judge.gate(yesterday, night(tmp_path, name=LATER, edit=in_a_slow_minute))
    assert report.green
    assert found(report, GPTQ, "tpot").reason == "the baseline of the same run moved with it"


def test_the_peak_of_a_small_model_may_move_by_what_an_allocator_does_until_it_has_a_past(tmp_path: Path, yesterday: Run) -> None:
    for more, green in ((15 << 20, True), (40 << 20, False)):
        moved = Answers()
        moved.peak[HQQ.label] += more
        assert judge.gate(yesterday, night(tmp_path, moved, name=LATER)).green is green


def test_speeds_of_two_machines_are_not_compared_and_are_no_pass(tmp_path: Path, yesterday: Run) -> None:
    report = judge.gate(yesterday, night(tmp_path, slowed(GPTQ.label, by=1.3), name=LATER, context={"threads": 64}))
    assert found(report, GPTQ, "tpot").verdict == "not comparable"
    assert found(report, GPTQ, "tpot") in report.unproven
    assert found(report, GPTQ, "perplexity").verdict == "within noise"


# ------------------------------------------------------------------------------------------------------- what is not there


def test_what_was_not_run_is_missing_and_what_failed_says_why(tmp_path: Path, yesterday: Run) -> None:
    def edit(cell: Cell, question: Question, answer: Answer) -> Answer | Failure | None:
        if cell is HQQ and question is TEXT:
            return None
        if cell is GPTQ and question is KL:
            return Failure(kind="oom", phase="divergence", message="needed more than there was")
        return answer

    report = judge.gate(yesterday, night(tmp_path, name=LATER, edit=edit))
    assert (found(report, HQQ, "perplexity").verdict, found(report, GPTQ, "kl_mean").verdict) == ("missing", "failed")
    assert found(report, GPTQ, "kl_mean").reason == "oom: needed more than there was"
    assert not report.green
    assert not report.alarms


def test_a_cell_that_is_new_and_one_that_is_gone_are_named(tmp_path: Path, yesterday: Run) -> None:
    regrouped = dataclasses.replace(
        HQQ,
        origin=dataclasses.replace(HQQ.origin, scheme=dataclasses.replace(HQQ.scheme, options={"group_size": 128})),
        label="hqq 4-bit g128",
    )
    report = judge.gate(yesterday, night(tmp_path, name=LATER, cells=(BASE, GPTQ, regrouped)))
    assert found(report, regrouped, "perplexity").verdict == "new"
    gone = found(report, HQQ, "perplexity")
    assert gone.verdict == "missing"
    assert gone.reason.endswith("the nearest new one is reference / hqq 4-bit g128 (other group_size)")
    refused = UnsupportedRecord(cell=HQQ, reason="hqq is not installed")
    report = judge.gate(yesterday, night(tmp_path, name=LATER, cells=(BASE, GPTQ), unsupported=[refused]))
    assert "not supported any more: hqq is not installed" in found(report, HQQ, "perplexity").reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus_digest": "b" * 64}, "corpus_digest"),
        ({"window": 128}, "window: 64 before, 128 now"),
    ],
)
def test_another_text_or_another_way_of_asking_is_not_compared(
    tmp_path: Path, yesterday: Run, change: dict[str, object], said: str
) -> None:
    questions = [dataclasses.replace(q, options={**q.options, **change}) if q in (TEXT, KL) else q for q in QUESTIONS]
    report = judge.gate(yesterday, night(tmp_path, name=LATER, questions=questions))
    finding = found(report, GPTQ, "perplexity")
    assert finding.verdict == "not comparable"
    assert said in finding.reason


def test_other_items_another_definition_and_another_probe_are_not_compared(tmp_path: Path, yesterday: Run) -> None:
    fewer = judge.gate(yesterday, night(tmp_path, Answers(items=900), name=LATER))
    assert found(fewer, GPTQ, "accuracy", "facts").verdict == "missing"
    assert "100 of the 1000 items have no answer any more" in found(fewer, GPTQ, "accuracy", "facts").reason
    assert not fewer.green
    more = judge.gate(night(tmp_path / "few", Answers(items=900)), night(tmp_path, name=LATER))
    assert found(more, GPTQ, "accuracy", "facts").verdict == "not comparable"
    assert "different items" in found(more, GPTQ, "accuracy", "facts").reason

    def redefined(cell: Cell, question: Question, answer: Answer) -> Answer:
        if question.probe != "tasks":
            return answer
        new = tuple(dataclasses.replace(m, definition=m.definition.replace("v1", "v2")) for m in answer.measurements)
        return dataclasses.replace(answer, measurements=new)

    other = found(judge.gate(yesterday, night(tmp_path, name=LATER, edit=redefined)), GPTQ, "accuracy", "facts")
    assert other.verdict == "not comparable"
    assert "v2" in other.reason
    third = judge.gate(yesterday, night(tmp_path, name=LATER, probe_version="2"))
    assert {f.verdict for f in third.findings if f.square.metric != "kernels"} == {"not comparable"}


def test_what_is_no_number_any_more_is_missing_and_red(tmp_path: Path, yesterday: Run) -> None:
    def broken(cell: Cell, question: Question, answer: Answer) -> Answer:
        if cell != GPTQ or question.probe not in ("size", "latency"):
            return answer
        return dataclasses.replace(
            answer, measurements=tuple(dataclasses.replace(m, value=math.nan, low=None, high=None) for m in answer.measurements)
        )

    report = judge.gate(yesterday, night(tmp_path, name=LATER, edit=broken))
    assert not report.green
    assert found(report, GPTQ, "tpot").verdict == "missing"
    assert "no number" in found(report, GPTQ, "tpot").reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_windows_that_hold_no_number_any_more_are_missing_and_red(value: float, tmp_path: Path, yesterday: Run) -> None:
    answers = Answers()
    answers.nll[GPTQ.label] = answers.nll[GPTQ.label].copy()
    answers.nll[GPTQ.label][3, 5] = value
    report = judge.gate(yesterday, night(tmp_path, answers, name=LATER))
    assert found(report, GPTQ, "perplexity").verdict == "missing"
    assert "number" in found(report, GPTQ, "perplexity").reason
    assert not report.green


def test_a_mute_covers_what_is_worse_and_not_what_is_missing(tmp_path: Path, yesterday: Run) -> None:
    mute = Mute(cell="reference / gptq 4-bit g64", metric="", until=datetime.date(2027, 1, 1), why="ticket 12")
    candidate = night(tmp_path, Answers(items=900), name=LATER)
    report = judge.gate(yesterday, candidate, policy=Policy(mutes=(mute,)))
    assert not report.green
    assert found(report, GPTQ, "accuracy", "facts").muted == ""


def test_raw_samples_that_are_gone_or_damaged_are_never_a_pass(tmp_path: Path, yesterday: Run) -> None:
    moved = Answers().lose(GPTQ, "facts", lost=3)
    candidate = night(tmp_path / "now", moved, name=LATER)
    records = [r for r in candidate.records if (r.cell, r.question.subject) == (GPTQ, "facts") and r.answer is not None]
    blob = next(m.blob for r in records if r.answer is not None for m in r.answer.measurements)
    assert blob is not None
    place = store.blob_path(candidate.path.parent, blob)
    place.write_bytes(place.read_bytes()[:-1] + b" ")
    assert found(judge.gate(yesterday, candidate), GPTQ, "accuracy", "facts").verdict == "missing"
    place.unlink()
    report = judge.gate(yesterday, candidate)
    assert not report.green
    finding = found(report, GPTQ, "accuracy", "facts")
    assert finding.verdict == "missing"
    assert "not there any more" in finding.reason


def test_a_night_that_is_not_finished_says_so(tmp_path: Path, yesterday: Run) -> None:
    (note,) = judge.gate(yesterday, night(tmp_path, name=LATER, ended=False)).notes
    assert note.startswith("CANDIDATE is not finished")


# ------------------------------------------------------------------------------------------------------- accepted, muted, causes


def test_a_drift_that_no_night_shows_is_found_against_the_accepted_run(tmp_path: Path) -> None:
    accepted = night(tmp_path, name="20261101T020000000000Z-aaaaaaaa")
    last = night(tmp_path, Answers().lose(GPTQ, "facts", lost=36))
    now = night(tmp_path, Answers().lose(GPTQ, "facts", lost=40), name=LATER)
    assert judge.gate(last, now).green
    report = judge.gate(last, now, accepted=accepted)
    assert alarms(report) == {(GPTQ.label, "mean_accuracy", ""), (GPTQ.label, "accuracy", "facts")}
    assert {f.against for f in report.alarms} == {"accepted"}


def test_a_loss_that_was_accepted_is_not_alarmed_again(tmp_path: Path, yesterday: Run) -> None:
    accepted = night(tmp_path, Answers().lose(GPTQ, "facts", lost=40), name="20261120T120000000000Z-aaaaaaaa")
    now = night(tmp_path, Answers().lose(GPTQ, "facts", lost=40), name=LATER)
    assert not judge.gate(yesterday, now).green
    report = judge.gate(yesterday, now, accepted=accepted)
    assert report.green
    assert found(report, GPTQ, "mean_accuracy").reason == "worse than BASE, and no worse than the accepted run"


def test_the_accepted_run_itself_is_green_whatever_it_lost(tmp_path: Path, yesterday: Run) -> None:
    now = night(tmp_path, Answers().lose(GPTQ, "facts", lost=40), name=LATER)
    report = judge.gate(yesterday, now, accepted=now)
    assert report.green
    assert found(report, GPTQ, "mean_accuracy").reason.startswith("worse than BASE, and accepted")


def test_runs_without_a_common_cell_are_refused_with_their_suites(tmp_path: Path, yesterday: Run) -> None:
    other = [dataclasses.replace(c, model=dataclasses.replace(c.model, name="another")) for c in CELLS]
    with pytest.raises(BadInput, match="no cell in common"):
        judge.gate(yesterday, night(tmp_path, name=LATER, cells=other))


def test_a_mute_that_ended_or_covers_nothing_says_so(tmp_path: Path, yesterday: Run) -> None:
    mutes = (
        Mute(cell="reference / gptq 4-bit g65", metric="", until=datetime.date(2027, 1, 1), why="a slip"),
        Mute(cell="", metric="tpot", until=datetime.date(2026, 11, 1), why="past"),
    )
    notes = judge.gate(yesterday, night(tmp_path, name=LATER), policy=Policy(mutes=mutes, source="p.yaml")).notes
    assert "covers no square" in notes[0]
    assert notes[1].endswith("ended on 2026-11-01")


def test_a_candidate_older_than_its_base_says_so(tmp_path: Path, yesterday: Run) -> None:
    (note,) = judge.gate(night(tmp_path, name=LATER), yesterday).notes
    assert note.startswith("CANDIDATE is older than BASE")


def test_a_muted_alarm_is_shown_and_not_counted_until_its_day(tmp_path: Path, yesterday: Run) -> None:
    candidate = night(tmp_path, slowed(GPTQ.label, by=2.3), name=LATER)
    for day, green in ((datetime.date(2026, 11, 21), True), (datetime.date(2026, 11, 20), False)):
        policy = Policy(mutes=(Mute(cell="reference / gptq 4-bit g64", metric="tpot", until=day, why="ticket 12"),))
        report = judge.gate(yesterday, candidate, policy=policy)
        assert report.green is green
        assert found(report, GPTQ, "tpot").verdict == "regressed"
        assert ("ticket 12" in found(report, GPTQ, "tpot").muted) is green


def test_a_margin_asks_the_whole_interval_to_lie_beyond_it(tmp_path: Path, yesterday: Run) -> None:
    candidate = night(tmp_path, Answers().lose(GPTQ, "facts", lost=40, won=4), name=LATER)
    limit = {"mean_accuracy": Limit(magnitude=0.25, margin=1.5), "accuracy": Limit(magnitude=1, margin=3.0)}
    assert judge.gate(yesterday, candidate, policy=Policy(limits=limit)).green


def test_what_differs_between_the_nights_is_listed_as_possible_causes(tmp_path: Path, yesterday: Run) -> None:
    packages = {**yesterday.header.context.packages, "torch": "2.14.0"}
    candidate = night(tmp_path, name=LATER, context={"packages": packages, "commit": "1" * 40}, weights="v" * 64)
    said = {d.what: (d.before, d.after) for d in judge.gate(yesterday, candidate).differences}
    assert said["package torch"] == ("2.13.0", "2.14.0")
    assert said["commit"] == (yesterday.header.context.commit, "1" * 40)
    assert said["weights of reference"] == ("w" * 64, "v" * 64)


def test_a_damaged_candidate_is_never_green(tmp_path: Path, yesterday: Run) -> None:
    hurt = dataclasses.replace(night(tmp_path, name=LATER), damage=(Damage(line=7, what="record", why="not as it was written"),))
    report = judge.gate(yesterday, hurt)
    assert not report.green
    assert report.findings[0].square.title == "Damage, line 7"


def test_the_same_run_in_two_files_says_so(tmp_path: Path, yesterday: Run) -> None:
    copy = dataclasses.replace(yesterday, path=tmp_path / "copy.jsonl")
    assert "in two files" in judge.gate(yesterday, copy).notes[0]


def test_an_accepted_run_that_lost_its_samples_says_that_no_drift_is_seen(tmp_path: Path, yesterday: Run) -> None:
    accepted = night(tmp_path / "old", Answers(seed=3), name="20261101T020000000000Z-aaaaaaaa")
    for file in (tmp_path / "old" / "blobs").rglob("*.json"):
        file.unlink()
    notes = judge.gate(yesterday, night(tmp_path, name=LATER), accepted=accepted).notes
    assert any("are gone in 6 squares, so that no drift is seen there" in note for note in notes)
