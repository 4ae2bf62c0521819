"""The audit of the gate in its short form: how seldom it cries wolf, and what it finds, on nights whose truth is known.

The long form (`python -m tests.gate.audit`) replays a thousand nights of real runs; its figures are in docs/gate.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.store import Run
from tests.gate import audit
from tests.gate.audit import Loss
from tests.gate.nights import CELLS, GPTQ, HQQ, Answers, night
from tests.gate.replay import Replay

CLEAR = Loss(points=2, flipping=0.03, items=2000)


def noisy(seed: int) -> Answers:
    """A night in which nothing changed but a few answers, at random in both directions, and sums in their last digits."""
    answers, rng = Answers(), np.random.default_rng([7, seed])
    for key, scores in answers.correct.items():
        answers.correct[key] = np.where(rng.uniform(size=scores.size) < 0.01, 1 - scores, scores)
    for table in (answers.nll, answers.kl):
        for label, values in table.items():
            table[label] = values * (1 + rng.normal(0, 0.02, size=values.shape))
    for row in (answers.tpot, answers.peak):
        machine = np.exp(rng.normal(0, 0.02))
        for label in row:
            row[label] *= machine * np.exp(rng.normal(0, 0.005))
    return answers


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [night(tmp_path, noisy(seed), name=f"2026112{seed}T020000000000Z-aaaaaaaa") for seed in range(4)]


def test_nights_in_which_nothing_changed_are_green(runs: list[Run]) -> None:
    quiet = list(audit.false_alarms(runs, nights=60, past=12))
    red = [name for night in quiet for name in night.alarms]
    assert len(red) <= 2, red  # at 1 % of 60 nights more than two are seen less often than once in forty times
    assert {night.tests for night in quiet} == {14}


def test_a_clear_loss_is_found_nine_times_in_ten_where_a_threshold_and_an_unpaired_test_see_nothing() -> None:
    power = audit.accuracy_power(CLEAR, nights=300)
    assert power is not None
    assert power.found >= 0.9
    assert power.fixed == 0
    assert power.unpaired <= 0.01


@pytest.mark.parametrize("loss", [CLEAR, Loss(points=1, flipping=0.03, items=5000), Loss(points=2, flipping=0.06, items=2000)])
def test_the_gate_finds_what_a_paired_test_finds_at_the_same_rate_of_false_alarms(loss: Loss) -> None:
    power = audit.accuracy_power(loss, nights=200)
    assert power is not None
    assert power.found >= 0.95 * power.same
    assert power.same == pytest.approx(power.limit, abs=0.12)  # the nights agree with the exact power


def test_more_lost_than_flipped_cannot_be() -> None:
    assert audit.accuracy_power(Loss(points=4, flipping=0.03, items=1000), nights=1) is None


def test_the_answers_of_a_faulty_cell_are_found_in_its_place_and_nowhere_else(tmp_path: Path) -> None:
    answers = Answers()
    answers.kl[HQQ.label] = answers.kl[GPTQ.label] * 1.3
    run = night(tmp_path, answers)
    (seen,) = audit.faults(run, {"a worse artifact": (GPTQ.name, HQQ.name)}, nights=10)
    assert (seen.found, seen.elsewhere) == (10, 0)


@pytest.mark.parametrize(("metric", "by", "most", "least"), [("tpot", 0.2, 1.0, 0.9), ("tpot", 0.0, 0.1, 0.0)])
def test_a_slower_kernel_is_found_at_the_noise_of_the_machine(
    runs: list[Run], metric: str, by: float, most: float, least: float
) -> None:
    seen = list(audit.slower(runs, metric, by, nights=20))
    found, tried = sum(s.found for s in seen), sum(s.nights for s in seen)
    assert tried == 20
    assert least <= found / tried <= most


def test_a_cell_that_drifts_is_found_against_the_accepted_run(tmp_path: Path) -> None:
    answers = Answers()
    for task in ("facts", "tracking"):
        answers.correct[GPTQ.label, task] = (np.random.default_rng(1).uniform(size=1000) < 0.9).astype(float)
        answers.correct[HQQ.label, task] = answers.correct[GPTQ.label, task] * (np.arange(1000) % 5 > 0)
    answers.kl[HQQ.label] = answers.kl[GPTQ.label] * 8
    seen = audit.drift(night(tmp_path, answers), f"reference / {GPTQ.label}", f"reference / {HQQ.label}", 0.3, weeks=4, tries=2)
    assert all(first is not None and first <= 28 for first in seen.first["kl_mean"])


def test_a_drawn_night_is_the_same_for_the_same_draw(runs: list[Run]) -> None:
    replay = Replay(runs, seed=0)
    first, second = replay.night(runs[0], 3), replay.night(runs[0], 3)
    values = [
        [m.blob for r in n.records if r.answer for m in r.answer.measurements if m.metric == "accuracy"] for n in (first, second)
    ]
    assert values[0] == values[1]
    assert len(values[0]) == 2 * len(CELLS)
