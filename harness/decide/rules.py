"""The rules of docs/recommend.md. `report/assets/decide.js` is the same, line for line where it can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.decide.types import (
    CONFIDENCES,
    Candidate,
    Change,
    Decision,
    LimitName,
    Limits,
    Loss,
    Number,
    Obstacle,
    Recommendation,
    Settle,
    Speed,
    Verdict,
)
from harness.errors import BadInput

POWER = 0.8416212335729143
"""The normal quantile of 80 %: how sure more items are to settle a loss that is what it is estimated to be."""

_NOT_MEASURED = Number(value=None, reason="not measured")
_NO_LOSS = Loss(value=None, reason="not measured")


def decide(candidates: Sequence[Candidate], limits: Limits) -> Decision:
    """The recommendation for each model. Total: any candidates, any limits. BadInput for a confidence that is not offered."""
    if limits.confidence not in CONFIDENCES:
        offered = ", ".join(f"{c:g}" for c in CONFIDENCES)
        raise BadInput(f"a loss is limited at a confidence of {offered}, not {limits.confidence:g}")
    models = [m for m in dict.fromkeys(c.model for c in candidates) if limits.models is None or m in limits.models]
    return Decision(recommendations=tuple(_recommend(m, [c for c in candidates if c.model == m], limits) for m in models))


def memory_at(candidate: Candidate, context: int | None, batch: int | None) -> tuple[float | None, bool, str]:
    """(peak bytes, derived, reason) at `context` tokens x `batch` sequences; None stands for the measured one."""
    memory = candidate.memory
    if memory.measured is None:
        return None, False, memory.reason
    tokens = memory.context if context is None else context
    rows = memory.batch if batch is None else batch
    if (tokens, rows) == (memory.context, memory.batch):
        return memory.measured, False, ""
    if memory.derivable:
        return None, True, memory.derivable
    cache = 0.0
    for part in memory.cache:
        cache += part.bytes_per_token * (tokens if part.window is None else min(tokens, part.window))
    return max(memory.load, memory.fixed + cache * rows), True, ""


def speed_at(candidate: Candidate, limits: Limits) -> tuple[Speed | None, str]:
    """The measured shape that counts: of those at the batch asked for, the one nearest to the context, the longer one of two that
    are equally near. Without a batch, that of the first shape; without a context, the first shape."""
    if not candidate.speeds:
        return None, "no latency was measured"
    batch = candidate.speeds[0].batch if limits.batch is None else limits.batch
    shapes = [s for s in candidate.speeds if s.batch == batch]
    if not shapes:
        measured = ", ".join(str(b) for b in sorted({s.batch for s in candidate.speeds}))
        return None, f"no latency was measured at batch {batch} (measured: {measured})"
    chosen = shapes[0]
    for shape in shapes[1:] if limits.context is not None else ():
        assert limits.context is not None
        far, nearest = abs(shape.prompt + shape.new - limits.context), abs(chosen.prompt + chosen.new - limits.context)
        if far < nearest or (far == nearest and shape.prompt + shape.new > chosen.prompt + chosen.new):
            chosen = shape
    return chosen, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A candidate under the limits, with what it is ordered by. `place`: its place among the candidates of the model."""

    candidate: Candidate
    verdict: Verdict
    tpot: Number
    place: int

    @property
    def cost(self) -> tuple[float, float, float, float, int]:
        """By size, then memory, then speed, then loss, then place; what is not known comes last."""
        v = self.verdict
        return _known(v.size), _known(v.memory), _known(v.tpot), _known(v.loss), self.place


def _known(value: float | None) -> float:
    return math.inf if value is None else value


def _recommend(model: str, candidates: Sequence[Candidate], limits: Limits) -> Recommendation:
    rows = [_row(c, limits, place) for place, c in enumerate(candidates)]
    order = _ordered([r for r in rows if r.verdict.qualifies], limits)
    pick = order[0] if order else None
    near = _alike(pick, limits) if pick is not None else frozenset()
    return Recommendation(
        model=model,
        pick=None if pick is None else pick.candidate.id,
        runner_up=order[1].candidate.id if len(order) > 1 else None,
        order=tuple(r.candidate.id for r in order),
        verdicts=tuple(r.verdict for r in rows),
        alike=tuple(c.id for c in candidates if c.id in near and (pick is None or c.id != pick.candidate.id)),
        changes=_changes(rows, order, limits),
        settle=_settle(rows, order, limits),
    )


# ---------------------------------------------------------------------- one cell under the limits


def _row(candidate: Candidate, limits: Limits, place: int) -> _Row:
    memory, derived, why_memory = memory_at(candidate, limits.context, limits.batch)
    speed, why_speed = speed_at(candidate, limits)
    tpot = speed.tpot if speed is not None else Number(value=None, reason=why_speed)
    ttft = speed.ttft if speed is not None else Number(value=None, reason=why_speed)
    if candidate.simulated:
        memory, derived, tpot, ttft = None, False, _NOT_MEASURED, _NOT_MEASURED
    loss = candidate.losses.get(limits.loss, _NO_LOSS)
    high = loss.limits[CONFIDENCES.index(limits.confidence)]
    obstacles = _left_out(candidate, limits)
    obstacles += _above("size", limits.max_size, candidate.size, simulated=False)
    peak = Number(value=memory, reason=why_memory)
    obstacles += _above("memory", limits.max_memory, peak, simulated=candidate.simulated)
    obstacles += _above("tpot", limits.max_tpot, tpot, simulated=candidate.simulated)
    obstacles += _above("ttft", limits.max_ttft, ttft, simulated=candidate.simulated)
    obstacles += [] if candidate.baseline else _loss(limits.max_loss, loss, high)
    verdict = Verdict(
        id=candidate.id,
        qualifies=not obstacles,
        size=candidate.size.value,
        memory=memory,
        derived=derived,
        tpot=tpot.value,
        ttft=ttft.value,
        prompt=None if speed is None else speed.prompt,
        new=None if speed is None else speed.new,
        batch=None if speed is None else speed.batch,
        loss=loss.value,
        loss_high=high,
        obstacles=tuple(obstacles),
    )
    return _Row(candidate=candidate, verdict=verdict, tpot=tpot, place=place)


def _left_out(candidate: Candidate, limits: Limits) -> list[Obstacle]:
    out = []
    if limits.methods is not None and candidate.method not in limits.methods:
        out.append(Obstacle(limit="method", state="left out"))
    if limits.bits is not None and candidate.bits not in limits.bits:
        out.append(Obstacle(limit="bits", state="left out"))
    return out


def _above(limit: LimitName, allowed: float | None, number: Number, *, simulated: bool) -> list[Obstacle]:
    """A cost is within its limit when it is known and not above it."""
    if allowed is None:
        return []
    if simulated:
        return [Obstacle(limit=limit, state="simulated", allowed=allowed)]
    if number.value is None:
        return [Obstacle(limit=limit, state="missing", allowed=allowed, reason=number.reason)]
    return [] if number.value <= allowed else [Obstacle(limit=limit, state="over", allowed=allowed, needed=number.value)]


def _loss(allowed: float | None, loss: Loss, high: float | None) -> list[Obstacle]:
    """A loss is within its limit when its upper limit lies below it."""
    if allowed is None:
        return []
    if loss.value is None:
        return [Obstacle(limit="loss", state="missing", allowed=allowed, reason=loss.reason)]
    if high is None:
        reason = f"{loss.n} {loss.unit} are too few for a limit"
        return [Obstacle(limit="loss", state="missing", allowed=allowed, reason=reason)]
    return [] if high < allowed else [Obstacle(limit="loss", state="not shown", allowed=allowed, needed=high)]


# ---------------------------------------------------------------------- which comes first


def _ordered(rows: Sequence[_Row], limits: Limits) -> list[_Row]:
    """Best first. What cannot be told from the fastest (or the best) comes first, by cost; then the others, by value."""
    best = _best(rows, limits)
    if best is None:
        return sorted(rows, key=lambda r: r.cost)
    level = {r.place for r in rows if _level(r, best, limits)}
    value = _value(limits)
    return sorted(rows, key=lambda r: (r.place not in level, 0.0 if r.place in level else _known(value(r)), r.cost))


def _best(rows: Sequence[_Row], limits: Limits) -> _Row | None:
    """The fastest, or the one that loses least; None where that is not preferred, or not known of any."""
    value = _value(limits)
    known = [r for r in rows if value(r) is not None]
    return min(known, key=lambda r: (_known(value(r)), r.cost)) if known and limits.prefer != "size" else None


def _level(row: _Row, best: _Row, limits: Limits) -> bool:
    """Whether what is preferred cannot tell a row from the best: intervals of the speed that meet, losses that are alike."""
    if row is best:
        return True
    if _value(limits)(row) is None:
        return False
    if limits.prefer == "quality":
        return row.candidate.id in _alike(best, limits)
    return _known(_or(row.tpot.low, row.tpot.value)) <= _known(_or(best.tpot.high, best.tpot.value))


def _wins(row: _Row, order: Sequence[_Row], limits: Limits) -> bool:
    """Whether a row would come first if it qualified too."""
    best = _best(order, limits)
    value = _value(limits)
    if best is None:
        return not order or (limits.prefer != "size" and value(row) is not None) or row.cost < order[0].cost
    if value(row) is None:
        return False
    if (_known(value(row)), row.cost) < (_known(value(best)), best.cost):
        return all(row.cost < r.cost for r in order if _level(r, row, limits))
    return _level(row, best, limits) and row.cost < order[0].cost


def _value(limits: Limits) -> Callable[[_Row], float | None]:
    return (lambda r: r.verdict.tpot) if limits.prefer == "speed" else (lambda r: r.verdict.loss)


def _or(value: float | None, other: float | None) -> float | None:
    return other if value is None else value


def _alike(row: _Row, limits: Limits) -> frozenset[str]:
    return frozenset(row.candidate.alike.get(limits.loss, ()))


# ---------------------------------------------------------------------- what would change the answer


def _changes(rows: Sequence[_Row], order: Sequence[_Row], limits: Limits) -> tuple[Change, ...]:
    """With a pick: cells that one limit alone keeps out and that would be picked, or lose less beyond the noise. Without one:
    every cell whose limits could give. Fewest limits first, then the smallest change."""
    found: list[tuple[tuple[int, float, int], Change]] = []
    for row in rows:
        obstacles = row.verdict.obstacles
        if not obstacles or any(o.needed is None for o in obstacles) or (order and len(obstacles) > 1):
            continue
        gain = _gain(row, order, limits)
        if gain is not None:
            change = Change(id=row.candidate.id, gain=gain, obstacles=obstacles)
            found.append(((len(obstacles), max(_give(o) for o in obstacles), row.place), change))
    return tuple(change for _, change in sorted(found, key=lambda pair: pair[0]))


def _gain(row: _Row, order: Sequence[_Row], limits: Limits) -> Literal["pick", "quality"] | None:
    if _wins(row, order, limits):
        return "pick"
    pick, mine, its = order[0], row.verdict.loss, order[0].verdict.loss
    better = mine is not None and its is not None and mine < its and row.candidate.id not in _alike(pick, limits)
    return "quality" if better else None


def _give(obstacle: Obstacle) -> float:
    """By what factor a limit would have to grow."""
    assert obstacle.allowed is not None
    assert obstacle.needed is not None
    return obstacle.needed / obstacle.allowed if obstacle.allowed > 0 else math.inf


def _settle(rows: Sequence[_Row], order: Sequence[_Row], limits: Limits) -> tuple[Settle, ...]:
    """Cells that only an unshown loss keeps from being picked, and how many more items would show it."""
    found: list[tuple[tuple[int, int], Settle]] = []
    for row in rows:
        obstacles = row.verdict.obstacles
        if len(obstacles) != 1 or obstacles[0].state != "not shown" or not _wins(row, order, limits):
            continue
        loss = row.candidate.losses[limits.loss]
        more = more_items(loss, limits)
        if more is not None:
            found.append(((more, row.place), Settle(id=row.candidate.id, more=more, n=loss.n, unit=loss.unit)))
    return tuple(settle for _, settle in sorted(found, key=lambda pair: pair[0]))


def more_items(loss: Loss, limits: Limits) -> int | None:
    """How many more items would show the loss to be below its limit, with a probability of 80 % if it is what it is estimated to
    be; None where it is not estimated below the limit. The distance of limit and value shrinks with the root of their number."""
    place = CONFIDENCES.index(limits.confidence)
    high, critical = loss.limits[place], loss.critical[place]
    if limits.max_loss is None or loss.value is None or high is None or critical <= 0 or loss.n < 1:
        return None
    room = limits.max_loss - loss.value
    if room <= 0:
        return None
    ratio = (high - loss.value) * (1 + POWER / critical) / room
    return max(1, math.ceil(loss.n * ratio * ratio) - loss.n)
