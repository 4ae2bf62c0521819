"""Decisions that a person can check by hand: ties, missing axes, nothing qualifies, simulated cells, two models, much noise."""

from __future__ import annotations

from typing import Any

import pytest

from harness.decide import (
    Cache,
    Candidate,
    Limits,
    Loss,
    Memory,
    Number,
    Recommendation,
    Sentences,
    Speed,
    decide,
    memory_at,
    say,
)
from harness.errors import BadInput

GB = 1e9


def cell(name: str, *, size: float | None = 4.0, loss: float = 0.0, width: float = 0.4, **more: Any) -> Candidate:
    """A cell of `size` GB that loses `loss` points, at most `loss` + `width` with 95 % confidence."""
    limits = tuple(loss + width * z / 2.5 for z in (1.8, 2.1, 2.5, 3.0))
    given: dict[str, Any] = {
        "id": name,
        "label": name,
        "model": "m",
        "method": name.split()[0],
        "bits": 4.0,
        "baseline": False,
        "simulated": False,
        "size": Number(value=None, reason="oom: killed") if size is None else Number(value=size * GB),
        "memory": Memory(
            measured=(size or 1) * GB + 0.1 * GB,
            context=1000,
            batch=1,
            load=0.0,
            fixed=(size or 1) * GB,
            cache=(Cache(bytes_per_token=1e5),),
        ),
        "speeds": (Speed(prompt=936, new=64, batch=1, tpot=Number(value=0.02), ttft=Number(value=0.5)),),
        "losses": {"pp": Loss(value=loss, limits=limits, critical=(1.8, 2.1, 2.5, 3.0), n=1000)},
    }
    return Candidate(**(given | more))


def baseline(**more: Any) -> Candidate:
    return cell("bf16", **({"size": 16.0, "width": 0.0, "bits": 16.0, "baseline": True} | more))


def answer(cells: list[Candidate], **limits: Any) -> tuple[Recommendation, Sentences]:
    asked = Limits(**({"max_loss": 1.0} | limits))
    (recommendation,) = decide(cells, asked).recommendations
    return recommendation, say(cells, asked, recommendation)


def test_the_smallest_cell_whose_loss_is_shown_to_be_below_the_limit_is_picked() -> None:
    made, said = answer(
        [baseline(), cell("gptq 8-bit", size=8.0), cell("awq 4-bit", loss=0.3), cell("rtn 3-bit", size=3.0, loss=2)]
    )
    assert made.order == ("awq 4-bit", "gptq 8-bit", "bf16")
    assert said.pick == (
        "Deploy awq 4-bit: 4 GB on disk, 12 GB less than the baseline; 4.1 GB of memory at 1\u202f000 tokens x 1; "
        "20 ms per token after 936 tokens at batch 1; loses 0.3 points of mean accuracy (a loss of at most 0.7 points, "
        "with 95\u202f% confidence)."
    )
    assert said.fails == {
        "rtn 3-bit": "Loses 2 points (a loss of at most 2.4 points, with 95\u202f% confidence), not below the limit of 1 point."
    }


def test_a_loss_whose_limit_meets_the_margin_exactly_is_not_shown() -> None:
    made, _ = answer([baseline(), cell("awq 4-bit", loss=0.5, width=0.5)])
    assert made.pick == "bf16"
    assert made.verdicts[1].obstacles[0].needed == 1.0


def test_equal_cells_are_ordered_by_memory_then_speed_then_loss_then_place() -> None:
    quick = (Speed(prompt=936, new=64, batch=1, tpot=Number(value=0.01), ttft=Number(value=0.5)),)
    cells = [cell("a"), cell("b"), cell("c", loss=-0.1), cell("d", speeds=quick), cell("e", memory=Memory(measured=1.0))]
    assert answer(cells)[0].order == ("e", "d", "c", "a", "b")


def test_speeds_that_this_data_cannot_tell_apart_are_ordered_by_size() -> None:
    def speeds(low: float, value: float, high: float) -> tuple[Speed, ...]:
        return (Speed(prompt=1, new=1, batch=1, tpot=Number(value=value, low=low, high=high), ttft=Number(value=1.0)),)

    cells = [
        cell("fast", size=8.0, speeds=speeds(0.009, 0.010, 0.012)),
        cell("near", size=4.0, speeds=speeds(0.011, 0.013, 0.015)),
        cell("slow", size=2.0, speeds=speeds(0.03, 0.04, 0.05)),
        cell("unknown", size=1.0, speeds=()),
    ]
    assert answer(cells, prefer="speed")[0].order == ("near", "fast", "slow", "unknown")


def test_with_quality_first_the_cheapest_of_those_that_cannot_be_told_from_the_best_is_picked() -> None:
    like = {"pp": ("bf16", "awq 4-bit")}
    cells = [baseline(alike=like), cell("awq 4-bit", loss=0.1, alike=like), cell("rtn 4-bit", size=2.0, loss=0.5)]
    made, said = answer(cells, prefer="quality")
    assert made.order == ("awq 4-bit", "bf16", "rtn 4-bit")
    assert made.alike == ("bf16",)
    assert said.alike == "This data cannot tell the loss of awq 4-bit from that of bf16: choose by cost."


def test_what_was_not_measured_is_not_within_a_limit_and_says_why() -> None:
    cells = [
        cell("a", size=None),
        cell("b", speeds=()),
        cell("c", losses={}),
        cell("d", memory=Memory(measured=None, reason="oom")),
    ]
    made, said = answer(cells, max_size=9 * GB, max_tpot=0.1, max_memory=9 * GB)
    assert made.pick is None
    assert said.fails == {
        "a": "Its size is not known (oom: killed).",
        "b": "Its time per token is not known (no latency was measured).",
        "c": "Its loss is not known (not measured).",
        "d": "Its memory is not known (oom).",
    }
    assert (made.changes, made.settle) == ((), ())


def test_a_cell_without_a_size_can_be_picked_where_size_is_not_limited_but_comes_last() -> None:
    assert answer([cell("a", size=None), cell("b")])[0].order == ("b", "a")


def test_where_nothing_qualifies_the_nearest_way_out_is_said_first() -> None:
    cells = [baseline(), cell("q6", size=8.0), cell("q4", loss=0.9)]
    made, said = answer(cells, max_memory=6 * GB, context=1000)
    assert made.pick is None
    assert said.pick == "Nothing qualifies: none of the 3 cells of m keeps every limit."
    assert said.changes == (
        "With a loss of 1.31 points allowed instead of 1 point, q4 would qualify.",
        "At 8.1 GB of memory instead of 6 GB, q6 would qualify.",
        "At 16.1 GB of memory instead of 6 GB, bf16 would qualify.",
    )


def test_a_larger_limit_that_would_fit_a_better_cell_is_named() -> None:
    cells = [cell("q4", loss=0.5), cell("q6", size=8.0, loss=0.1)]
    made, said = answer(cells, max_memory=6 * GB, binary=True)
    assert made.pick == "q4"
    assert [change.gain for change in made.changes] == ["quality"]
    assert said.changes == ("At 7.55 GiB of memory instead of 5.59 GiB, q6 would fit, and loses less.",)
    assert answer(cells, max_memory=7.55 * 1024**3)[0].verdicts[1].qualifies  # the number that is named is enough


def test_a_simulated_cell_keeps_no_limit_of_memory_or_speed_and_may_be_picked_without_one() -> None:
    cells = [baseline(), cell("inc 4-bit", simulated=True)]
    made, said = answer(cells, max_memory=99 * GB, max_ttft=9.0)
    assert made.pick == "bf16"
    assert said.fails["inc 4-bit"] == (
        "Its memory is not shown, because its weights are simulated; "
        "its time to the first token is not shown, because its weights are simulated."
    )
    made, said = answer(cells)
    assert made.pick == "inc 4-bit"
    assert "of memory" not in said.pick
    assert "per token" not in said.pick


def test_two_models_get_an_answer_each_and_a_filter_leaves_one() -> None:
    cells = [baseline(), cell("awq"), cell("b2", model="n", baseline=True), cell("q2", model="n", loss=5)]
    picks = {r.model: r.pick for r in decide(cells, Limits(max_loss=1.0)).recommendations}
    assert picks == {"m": "awq", "n": "b2"}
    assert [r.model for r in decide(cells, Limits(models=("n",))).recommendations] == ["n"]
    assert decide([], Limits()).recommendations == ()


def test_noise_larger_than_the_margin_says_how_many_items_would_settle_it() -> None:
    made, said = answer([baseline(), cell("awq 4-bit", loss=0.25, width=1.5)])
    assert made.pick == "bf16"
    (settle,) = made.settle
    # Two standard errors of room are missing: (1.5 / 0.75)^2 = 4 times the items for even odds, more for 80 %.
    assert settle.more == pytest.approx(1000 * (2 * (1 + 0.8416 / 2.5)) ** 2 - 1000, abs=2)
    assert said.settle[0].startswith(
        "With 6\u202f200 more items than the 1\u202f000 there are, awq 4-bit could be shown to lose less"
    )
    assert answer([baseline(), cell("awq 4-bit", loss=1.0, width=0.5)])[0].settle == ()  # no number of items is expected to


def test_that_many_items_do_settle_it() -> None:
    made, _ = answer([baseline(), cell("awq 4-bit", loss=0.25, width=1.5)])
    total = 1000 + made.settle[0].more
    error = 1.5 / 2.5 * (1000 / total) ** 0.5
    assert 0.25 + (2.5 + 0.8416) * error == pytest.approx(1.0, abs=0.001)


def test_memory_elsewhere_is_what_was_measured_and_the_cache_of_that_context() -> None:
    windowed = (Cache(bytes_per_token=10.0), Cache(bytes_per_token=100.0, window=512))
    memory = Memory(measured=70_000.0, context=600, batch=1, load=65_000.0, fixed=10_000.0, cache=windowed)
    one = cell("a", memory=memory)
    assert memory_at(one, None, None) == (70_000.0, False, "")
    assert memory_at(one, 600, 1) == (70_000.0, False, "")
    assert memory_at(one, 100, 1) == (65_000.0, True, "")  # loading takes more than so short a context
    assert memory_at(one, 1000, 2) == (10_000 + 2 * (10 * 1000 + 100 * 512), True, "")
    stuck = cell("b", memory=Memory(measured=1.0, context=600, batch=1, derivable="no shape"))
    assert memory_at(stuck, 601, 1) == (None, True, "no shape")


def test_speed_counts_at_the_batch_asked_for_and_the_nearest_length() -> None:
    speeds = tuple(
        Speed(prompt=p, new=64, batch=b, tpot=Number(value=v), ttft=Number(value=1.0))
        for p, b, v in ((128, 1, 0.1), (512, 1, 0.2), (512, 4, 0.4))
    )
    cells = [cell("a", speeds=speeds)]
    assert answer(cells, context=8192)[0].verdicts[0].tpot == 0.2
    assert answer(cells, context=8192, batch=4)[0].verdicts[0].tpot == 0.4
    assert answer(cells, batch=1)[0].verdicts[0].tpot == 0.1
    made, said = answer(cells, batch=2, max_tpot=1.0)
    assert made.pick is None
    assert said.fails["a"] == "Its time per token is not known (no latency was measured at batch 2 (measured: 1, 4))."


def test_a_confidence_that_limits_were_not_made_at_is_refused() -> None:
    with pytest.raises(BadInput, match=r"0\.8, 0\.9, 0\.95, 0\.99"):
        decide([cell("a")], Limits(confidence=0.97))
