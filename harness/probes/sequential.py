"""`budget: auto`: a task's items are scored only until it is known whether the cell's loss is within the margin.

The baseline answers all items. A cell answers them in the random order that all cells share, in chunks that grow, and after each
chunk `stats.SequentialTest` is fed the changes against the baseline's answers; scoring stops with its verdict, or with the last
item. Items that share a passage are asked together and are one bet.

A question of this kind carries its margin and error rates in `options["sequential"]`, so that its record is never taken for one
over all items. The baseline is asked `whole(question)`, the same question without them: its answer serves both kinds.

What is measured here holds whenever one stops: the verdict with its stated error rates, and two intervals of
`stats.anytime_interval`. Nothing that assumes a fixed number of items (Wilson's interval, McNemar's test) may be taken of a part
whose size the answers themselves decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import Unsupported
from harness.metrics.sequential import (
    ACCURACY,
    DIFFERENCE,
    ITEMS,
    KEY,
    UNDECIDED,
    VERDICT,
    WITHIN,
    WORSE,
    VerdictRequest,
    points,
    settings,
)
from harness.probes.items import Item
from harness.spec import Json, Measurement, Metric, Question

if TYPE_CHECKING:
    from harness.stats import Interval

__all__ = ["KEY", "UNDECIDED", "WITHIN", "WORSE", "VerdictRequest", "points", "settings", "until_verdict", "whole", "words"]

FIRST_CHUNK, GROWTH = 32, 1.5
"""Items of the first chunk, and how many times longer each is than the one before: few calls, and at the verdict at most about a
third of what was scored was in vain."""


Score = Callable[[Sequence[Item]], Sequence[Item]]
"""The cell's answers to the items that these of the baseline's are about, in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictFacts:
    """How a verdict came about. `scored` of `available` items were asked, in `chunks`; `items` is when it was clear. `bets` are
    fewer than items where some share a passage. `e_within` and `e_worse` are the evidence, `needed_...` what a verdict needs."""

    verdict: str
    items: int
    scored: int
    available: int
    bets: int
    chunks: tuple[int, ...]
    margin: float
    alpha: float
    beta: float
    e_within: float
    e_worse: float
    needed_within: float
    needed_worse: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredItems:
    """What was scored, in that order, and what follows from it."""

    items: tuple[Item, ...]
    measurements: tuple[Measurement, ...]
    facts: VerdictFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bet:
    """Items that are scored together: how many more the cell has right than the baseline, how many it has right, how many."""

    change: float
    right: float
    size: int


def options(verdict: VerdictRequest) -> dict[str, Json]:
    """What a question's options say where it is asked until a verdict; `settings` reads it."""
    return {KEY: {"margin": verdict.margin, "alpha": verdict.alpha, "beta": verdict.beta}}


def whole(question: Question) -> Question:
    """The same question over all items: what the baseline is asked."""
    others = {name: value for name, value in question.options.items() if name != KEY}
    return Question(probe=question.probe, subject=question.subject, options=others)


def words(asked: VerdictRequest, tasks: Sequence[str]) -> str:
    """The settings in a sentence, for people who plan a run."""
    return (
        f"budget auto ({', '.join(tasks)}): a cell's items are scored in one random order until its loss of accuracy is known to "
        f"be within {points(asked.margin)} of the baseline, or worse; a false verdict has a chance of at most "
        f"{100 * asked.alpha:g} % (within) and {100 * asked.beta:g} % (worse). The baseline is scored on all items."
    )


def until_verdict(
    asked: VerdictRequest, base: Sequence[Item], score: Score, *, definition: str, keep: Callable[[Sequence[Item]], str]
) -> ScoredItems:
    """Scores a cell's items until the verdict. `base`: the baseline's, all of them. `definition`: the baseline's. `keep` stores
    the scored items and returns their name.

    Unsupported when items are not right or wrong (nothing could flip then), or are others than the baseline's."""
    from harness import stats

    _check(base, "the baseline's answers")
    passages = _passages(base)
    names = list(passages)
    order = [names[place] for place in stats.shared_order(names)]
    largest = max(map(len, passages.values()))
    test = stats.SequentialTest(margin=asked.margin, alpha=asked.alpha, beta=asked.beta)
    items: list[Item] = []
    bets: list[_Bet] = []
    chunks: list[int] = []
    while order and test.decision.verdict is stats.Verdict.UNDECIDED:
        chunk, order = _chunk(order, passages, round(FIRST_CHUNK * GROWTH ** len(chunks)))
        answered = _answers(score, [item for name in chunk for item in passages[name]])
        fresh = [_bet(passages[name], answered) for name in chunk]
        test.update([bet.change for bet in fresh], [bet.size for bet in fresh], largest=largest)
        items += answered.values()
        bets += fresh
        chunks.append(len(answered))
    made = test.decision
    said = {stats.Verdict.WITHIN: WITHIN, stats.Verdict.WORSE: WORSE, stats.Verdict.UNDECIDED: UNDECIDED}[made.verdict]
    under, name = f"{definition}, until a verdict on a margin of {points(made.margin)}", keep(items)
    sizes = [bet.size for bet in bets]
    difference = stats.anytime_interval([bet.change for bet in bets], sizes=sizes, largest=largest)
    accuracy = stats.anytime_interval([bet.right for bet in bets], sizes=sizes, largest=largest, least=0)
    measurements = (
        Measurement(metric=VERDICT.name, value=said, unit=VERDICT.unit, n=made.items, definition=under),
        Measurement(metric=ITEMS.name, value=float(made.items), unit=ITEMS.unit, n=len(base), definition=under),
        _estimate(DIFFERENCE, difference, 100, under, name),
        _estimate(ACCURACY, accuracy, 1, under, name),
    )
    facts = VerdictFacts(
        verdict=made.verdict.value,
        items=made.items,
        scored=len(items),
        available=len(base),
        bets=len(passages),
        chunks=tuple(chunks),
        margin=made.margin,
        alpha=made.alpha,
        beta=made.beta,
        e_within=made.e_within,
        e_worse=made.e_worse,
        needed_within=1 / made.alpha,
        needed_worse=1 / made.beta,
    )
    return ScoredItems(items=tuple(items), measurements=measurements, facts=facts)


def _answers(score: Score, asked: Sequence[Item]) -> dict[str, Item]:
    """The cell's items by id, in the order asked."""
    answered = score(asked)
    if [item.id for item in answered] != [item.id for item in asked]:
        raise Unsupported("the cell answered other items than the baseline, so that nothing can be paired")
    _check(answered, "this cell's answers")
    return {item.id: item for item in answered}


def _bet(passage: Sequence[Item], answered: Mapping[str, Item]) -> _Bet:
    right = sum(float(answered[item.id].correct or 0) for item in passage)
    return _Bet(change=right - sum(float(item.correct or 0) for item in passage), right=right, size=len(passage))


def _estimate(metric: Metric, interval: Interval, scale: float, definition: str, blob: str) -> Measurement:
    low, high = (None if limit is None else scale * limit for limit in (interval.low, interval.high))
    return Measurement(
        metric=metric.name,
        value=scale * interval.value,
        low=low,
        high=high,
        n=interval.n,
        unit=metric.unit,
        definition=definition,
        blob=blob,
    )


def _check(items: Sequence[Item], whose: str) -> None:
    if not items or any(item.correct not in (0.0, 1.0) for item in items):
        raise Unsupported(
            f"budget: auto needs items that are right or wrong, and {whose} to this task are scores; write the task as "
            "{task: NAME, budget: fixed} to have all its items scored"
        )


def _passages(base: Sequence[Item]) -> dict[str, list[Item]]:
    """Items that are scored together and are one bet: those of a passage, or one alone."""
    passages: dict[str, list[Item]] = {}
    for item in base:
        name = item.id if item.passage is None else f"passage {item.passage}"
        passages.setdefault(name, []).append(item)
    return passages


def _chunk(order: Sequence[str], passages: Mapping[str, Sequence[Item]], least: int) -> tuple[list[str], list[str]]:
    """The next passages, together `least` items or a few more, and those that are left."""
    items, count = 0, 0
    while count < len(order) and items < least:
        items += len(passages[order[count]])
        count += 1
    return list(order[:count]), list(order[count:])
