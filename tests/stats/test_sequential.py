"""The sequential mode: exact martingale identities, error rates and items used on replays, and its bookkeeping."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from harness.errors import BadInput
from harness.stats import (
    Interval,
    SequentialTest,
    Verdict,
    anytime_interval,
    paired_difference,
    paired_items,
    replay,
    shared_order,
    unpaired_items,
)
from harness.stats.sequential import _Bank


def simulated(replays: int, items: int, flip_rate: float, difference: float, seed: int) -> np.ndarray:
    """Changes [replays, items] in {-1, 0, 1} with this flip rate and true difference (cell - baseline)."""
    u = np.random.default_rng(seed).random((replays, items), dtype=np.float32)
    won, flipped = (flip_rate + difference) / 2, flip_rate
    return (u < won).astype(np.int8) - ((u >= won) & (u < flipped)).astype(np.int8)


def test_at_the_margin_neither_bettor_gains_on_average_over_all_possible_outcomes() -> None:
    margin, length = 0.25, 7
    won, lost = 0.1, 0.1 + margin
    chance = {-1: lost, 0: 1 - won - lost, 1: won}
    outcomes = np.array(list(itertools.product([-1, 0, 1], repeat=length)), dtype=float)
    weights = np.prod([[chance[int(x)] for x in row] for row in outcomes], axis=1)
    within, worse = _Bank(rows=len(outcomes), margin=margin, pool=None).play(outcomes, np.ones_like(outcomes))
    for wealth in (within, worse):
        np.testing.assert_allclose(weights @ np.exp(wealth), 1.0, rtol=1e-9)
        assert np.exp(wealth).std() > 0.1, "money was at stake"


def test_without_replacement_neither_bettor_gains_over_all_orders_of_a_pool_at_the_margin() -> None:
    pool = np.array([-1, -1, 0, 0, 0, 0, 0, 1.0])
    orders = np.array(sorted(set(itertools.permutations(pool))), dtype=float)
    bank = _Bank(rows=len(orders), margin=1 / 8, pool=8)
    within, worse = bank.play(orders[:, :7], np.ones((len(orders), 7)))
    np.testing.assert_allclose(np.exp(within).mean(axis=0), 1.0, rtol=1e-9)
    np.testing.assert_allclose(np.exp(worse).mean(axis=0), 1.0, rtol=1e-9)


def test_clusters_of_items_are_a_fair_game_too() -> None:
    # Two kinds of cluster: 1 item with net change in {-1, 0}, or 3 items with net change in {-2, 0}.
    kinds = [(-1.0, 1.0, 0.2), (0.0, 1.0, 0.4), (-2.0, 3.0, 0.1), (0.0, 3.0, 0.3)]
    margin = sum(-c * p for c, _, p in kinds) / sum(s * p for _, s, p in kinds)
    rows = list(itertools.product(kinds, repeat=5))
    change, size = (np.array([[kind[k] for kind in row] for row in rows]) for k in (0, 1))
    weights = np.array([math.prod(kind[2] for kind in row) for row in rows])
    within, worse = _Bank(rows=len(rows), margin=margin, pool=None).play(change / 3, size / 3)
    np.testing.assert_allclose(weights @ np.exp(within), 1.0, rtol=1e-9)
    np.testing.assert_allclose(weights @ np.exp(worse), 1.0, rtol=1e-9)


@pytest.mark.parametrize("flip_rate", [0.02, 0.05, 0.2])
def test_false_verdicts_stay_below_their_rates_where_they_are_likeliest(flip_rate: float) -> None:
    # A true loss of exactly the margin: both verdicts would be wrong, and every item is another chance to be wrong.
    replays = 1000
    result = replay(simulated(replays, 3000, flip_rate, -0.02, seed=1), margin=0.02, alpha=0.05, beta=0.1)
    for verdict, rate in ((Verdict.WITHIN, 0.05), (Verdict.WORSE, 0.1)):
        # Rejects "the error rate is at most `rate`" only beyond chance (one in ten thousand).
        assert scipy.stats.binomtest(round(result.share(verdict) * replays), replays, rate, "greater").pvalue > 1e-4


def test_no_loss_is_shown_to_be_within_one_point_with_an_eighth_of_the_items_of_an_unpaired_test() -> None:
    result = replay(simulated(200, 16_000, 0.05, 0.0, seed=2), margin=0.01)
    assert result.share(Verdict.WITHIN) >= 0.99
    assert result.items.mean() <= unpaired_items(0.7, 0.01) / 8
    assert result.items.mean() <= paired_items(0.05, 0.01), "fewer than even a paired test of fixed size"


def test_at_equal_power_it_takes_at_most_an_eighth_of_the_items_of_an_unpaired_test() -> None:
    """Scoring that ends for good where 80 % (95 %) of the replays have their verdict is a test of that power. It is compared with
    one of fixed size and the same power, not with a weaker one than itself."""
    items = np.sort(replay(simulated(400, 12_000, 0.05, 0.0, seed=12), margin=0.01).items)
    for power in (0.80, 0.95):
        last = items[math.ceil(power * len(items)) - 1]
        assert last < 12_000
        assert np.minimum(items, last).mean() <= unpaired_items(0.7, 0.01, power=power) / 8


def test_a_loss_of_three_margins_is_found_in_a_fraction_of_that() -> None:
    result = replay(simulated(200, 8000, 0.05, -0.03, seed=3), margin=0.01)
    assert result.share(Verdict.WORSE) >= 0.99
    assert result.items.mean() <= unpaired_items(0.7, 0.01) / 40


def test_a_cell_without_flips_is_within_one_point_after_a_few_hundred_items() -> None:
    decision = SequentialTest(margin=0.01).update(np.zeros(2000))
    assert decision.verdict is Verdict.WITHIN
    assert math.log(20) / 0.01 <= decision.items <= 450, "no test at 5 % can do it in fewer than log(20) / margin"


def test_feeding_one_by_one_in_batches_or_as_a_replay_is_the_same() -> None:
    changes = simulated(1, 6000, 0.05, -0.03, seed=4)[0]
    whole, single, batches = (SequentialTest(margin=0.01) for _ in range(3))
    whole.update(changes)
    for change in changes:
        single.update([change])
    for part in np.array_split(changes, 37):
        batches.update(part)
    assert whole.decision.verdict is Verdict.WORSE
    for other in (single, batches):
        assert (other.decision.verdict, other.decision.items) == (whole.decision.verdict, whole.decision.items)
        assert other.decision.e_worse == pytest.approx(whole.decision.e_worse, rel=1e-6)
    replayed = replay(changes[None, :], margin=0.01)
    assert (replayed.verdicts[0], replayed.items[0]) == (whole.decision.verdict, whole.decision.items)
    assert whole.decision.difference == pytest.approx(changes[: whole.decision.items].mean())
    assert whole.decision.e_worse >= 20 > whole.decision.e_within


def test_a_made_decision_stands() -> None:
    test = SequentialTest(margin=0.01)
    first = test.update(np.zeros(1000))
    assert test.update(np.full(1000, -1)) is first


def test_a_pool_ends_with_certainty_about_its_own_items() -> None:
    for losses, verdict in ((0, Verdict.WITHIN), (1, Verdict.WITHIN), (3, Verdict.WORSE), (2, Verdict.UNDECIDED)):
        changes = np.zeros(50)
        changes[-losses or 50 :] = -1
        # With error rates this small only certainty decides, and the order of the items is no matter.
        decision = SequentialTest(margin=0.04, alpha=1e-12, beta=1e-12, pool=50).update(changes)
        assert decision.verdict is verdict, losses
        assert decision.items == 50 or losses == 0, "certain as soon as the items to come cannot change it"
    with pytest.raises(BadInput, match="pool of 50"):
        SequentialTest(margin=0.04, pool=50).update(np.zeros(51))


def test_on_a_recorded_matrix_verdicts_agree_with_the_full_run_and_take_fewer_items() -> None:
    rng = np.random.default_rng(5)
    recorded = simulated(1, 2000, 0.06, 0.0, seed=6)[0]
    full = recorded.mean()
    orders = np.array([rng.permutation(recorded) for _ in range(200)])
    for margin in (0.03, abs(full) + 0.012):
        result = replay(orders, margin=margin, pool=2000)
        assert full > -margin
        assert result.share(Verdict.WITHIN) >= 0.95
        assert result.share(Verdict.WORSE) <= 0.05
        assert result.items.mean() < 1700


def test_a_cluster_of_one_item_is_an_item() -> None:
    changes = simulated(1, 3000, 0.05, -0.04, seed=7)[0]
    plain, grouped = SequentialTest(margin=0.01), SequentialTest(margin=0.01)
    assert plain.update(changes) == grouped.update(changes, np.ones(3000))
    with pytest.raises(BadInput, match="at most its size"):
        grouped.update([2], [1])


def test_all_cells_share_one_order_that_depends_on_the_ids_alone() -> None:
    ids = [f"task/{k}" for k in range(500)]
    order = shared_order(ids)
    assert sorted(order.tolist()) == list(range(500))
    assert abs(np.corrcoef(order, np.arange(500))[0, 1]) < 0.15
    backwards = ids[::-1]
    assert [ids[k] for k in order] == [backwards[k] for k in shared_order(backwards)]
    half = ids[::2]
    assert [half[k] for k in shared_order(half)] == [ids[k] for k in order if k % 2 == 0]
    with pytest.raises(BadInput, match="distinct"):
        shared_order(["a", "a"])


def test_the_anytime_interval_holds_at_every_moment_at_once() -> None:
    truth, misses, replays = -0.02, 0, 200
    for changes in simulated(replays, 1000, 0.1, truth, seed=8):
        moments = [anytime_interval(changes[:n]) for n in (20, 60, 150, 300, 600, 1000)]
        limits = [(m.low, m.high) for m in moments if m.low is not None and m.high is not None]
        assert len(limits) == 6
        misses += any(not low <= truth <= high for low, high in limits)
        assert limits[-1][1] - limits[-1][0] < 0.1, "narrow enough to be of use"
    assert scipy.stats.binomtest(misses, replays, 0.05, "greater").pvalue > 1e-4


def stopped(replays: int) -> dict[str, int]:
    """How often intervals miss the truth where scoring stopped, of replays without a loss and with 4 % flips, in chunks that grow
    as in suites: at the verdict on a margin of 2 points, and by somebody who looks for a difference that is beyond 1.96 standard
    errors. Each stops with the last of 1,500 items at the latest."""
    source = np.random.default_rng(9)
    missed = dict.fromkeys(("verdicts", "difference", "accuracy", "looks", "anytime after looking", "fixed after looking"), 0)
    for changes in simulated(replays, 1500, 0.04, 0.0, seed=9).astype(float):
        cell = np.where(changes == 0, source.random(1500) < 0.7, changes > 0)
        test, verdict, seen, chunk = SequentialTest(margin=0.02), 0, 0, 32
        looked = 0
        while seen < 1500 and not (verdict and looked):
            test.update(changes[seen : seen + chunk])
            seen, chunk = min(1500, seen + chunk), round(1.5 * chunk)
            if test.decision.verdict is not Verdict.UNDECIDED:
                verdict = verdict or seen
            part = changes[:seen]
            if abs(part.mean()) > 1.96 * part.std() / math.sqrt(seen):
                looked = looked or seen
        missed["verdicts"] += verdict > 0
        missed["looks"] += looked > 0
        verdict, looked = verdict or 1500, looked or 1500
        missed["difference"] += not holds(anytime_interval(changes[:verdict]), 0.0)
        missed["accuracy"] += not holds(anytime_interval(cell[:verdict], least=0), 0.96 * 0.7 + 0.02)
        missed["anytime after looking"] += not holds(anytime_interval(changes[:looked]), 0.0)
        fixed = paired_difference(cell[:looked] - changes[:looked], cell[:looked])
        missed["fixed after looking"] += not holds(fixed, 0.0)
    return missed


def test_anytime_intervals_hold_wherever_one_stops_and_one_of_fixed_size_does_not() -> None:
    replays = 1000
    missed = stopped(replays)
    assert missed["verdicts"] > replays / 2, "most stop before the last item"
    for name in ("difference", "accuracy", "anytime after looking"):
        assert scipy.stats.binomtest(missed[name], replays, 0.05, "greater").pvalue > 1e-4, name
    assert missed["fixed after looking"] > 0.1 * replays, "what the anytime interval is for"


def test_the_anytime_interval_of_passages_holds_where_one_of_single_items_would_not() -> None:
    """Passages of 1 or 5 items that change together, 400 replays at their last moment."""
    source, replays, missed, missed_single = np.random.default_rng(10), 400, 0, 0
    for _ in range(replays):
        sizes = np.where(source.random(200) < 0.5, 1, 5)
        u = source.random(200)
        changes = np.where(u < 0.15, -sizes, np.where(u > 0.9, sizes, 0))
        truth = 0.1 - 0.15
        missed += not holds(anytime_interval(changes, sizes=sizes, largest=5), truth)
        items = np.repeat(np.sign(changes), sizes)
        missed_single += not holds(anytime_interval(items), truth)
    assert scipy.stats.binomtest(missed, replays, 0.05, "greater").pvalue > 1e-4
    assert missed_single > missed
    one = anytime_interval(np.repeat([0, -1, 0, 1], 50), sizes=np.ones(200))
    assert one == anytime_interval(np.repeat([0, -1, 0, 1], 50))
    for wrong in ({"sizes": [1]}, {"sizes": [1, 2], "largest": 1}, {"least": 0}):
        with pytest.raises(BadInput):
            anytime_interval([-1, 1], **wrong)


def test_a_hundred_items_without_a_flip_bound_the_loss_to_five_points_and_all_right_bound_the_accuracy() -> None:
    """No interval at 97.5 % a side can do better than log(40) / n, which is what a bettor gains who stakes all on a loss."""
    change, accuracy = anytime_interval(np.zeros(100)), anytime_interval(np.ones(100), least=0)
    assert change.low is not None
    assert accuracy.low is not None
    assert -1.3 * math.log(40) / 100 < change.low < -math.log(40) / 105
    assert change.low == pytest.approx(-(change.high or 0.0), abs=1e-5)
    assert (accuracy.value, accuracy.high) == (1.0, 1.0)
    assert 0.9 < accuracy.low < 1 - math.log(40) / 105


def holds(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


def test_the_yardsticks_are_the_textbook_formulas() -> None:
    assert unpaired_items(0.5, 0.01) == math.ceil((2 * 1.6448536) ** 2 * 0.5 / 1e-4)
    assert paired_items(0.05, 0.01) == math.ceil((2 * 1.6448536) ** 2 * 0.05 / 1e-4)


def test_impossible_margins_and_rates_are_refused() -> None:
    for margin, alpha in ((0.0, 0.05), (1.0, 0.05), (0.01, 0.0), (0.01, 0.6)):
        with pytest.raises(BadInput, match="must lie in"):
            SequentialTest(margin=margin, alpha=alpha)
    with pytest.raises(BadInput, match="table"):
        replay(np.zeros(5), margin=0.01)
