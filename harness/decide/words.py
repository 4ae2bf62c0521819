"""A recommendation in words, the same on the page and in the terminal (`say` of `report/assets/decide.js`).

Whoever reads that one cell beats another reads in the same sentence what it costs more or less.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.decide.numbers import THIN, amount, duration, fixed, grouped, rounded_up, significant, trimmed
from harness.decide.types import Candidate, Change, Limits, Obstacle, Recommendation, Sentences, Settle, Verdict

FEW = 3
"""Sentences of one kind, at most."""

NAMED = 6
"""Cells named in a row before the others are counted."""


def say(candidates: Sequence[Candidate], limits: Limits, recommendation: Recommendation) -> Sentences:
    """The sentences of one recommendation; `candidates` and `limits` are those that it was made of."""
    return _Speaker(candidates, limits, recommendation).sentences()


def loss_words(value: float, limits: Limits, *, up: bool = False, above: bool = False) -> str:
    """A size of a loss with its unit: `0.42 points`, `1 point`, `0.3 %`, `0.012 nats`. `up`: rounded up; `above`: to a
    number that is larger than it."""
    if limits.loss == "kl":
        return f"{trimmed(fixed(value, 6, above=True)) if above else significant(value, up=up)} nats"
    written = trimmed(fixed(value, 2, up=up, above=above))
    return f"{written}{THIN}%" if limits.loss == "recovery" else f"{written} {'point' if written == '1' else 'points'}"


class _Speaker:
    def __init__(self, candidates: Sequence[Candidate], limits: Limits, recommendation: Recommendation) -> None:
        mine = [c for c in candidates if c.model == recommendation.model]
        self.limits = limits
        self.answer = recommendation
        self.by_id = {c.id: c for c in mine}
        self.verdicts = {v.id: v for v in recommendation.verdicts}
        self.baseline = next((c for c in mine if c.baseline), None)
        self.sure = f"{round(limits.confidence * 100)}{THIN}%"

    def sentences(self) -> Sentences:
        answer = self.answer
        return Sentences(
            pick=self._pick(),
            runner_up=self._runner_up(),
            alike=self._alike(),
            changes=tuple(self._change(c) for c in answer.changes[:FEW]),
            settle=tuple(self._settle(s) for s in answer.settle[:FEW]),
            fails={v.id: self._fails(v) for v in answer.verdicts if not v.qualifies},
        )

    # ---- the pick

    def _pick(self) -> str:
        answer = self.answer
        if answer.pick is None:
            cells = len(answer.verdicts)
            return (
                f"Nothing qualifies: none of the {cells} {'cell' if cells == 1 else 'cells'} of {answer.model} keeps every limit."
            )
        cell, verdict = self.by_id[answer.pick], self.verdicts[answer.pick]
        verb = f"Keep the baseline, {cell.label}" if cell.baseline else f"Deploy {cell.label}"
        alone = ", the only cell that qualifies" if len(answer.order) == 1 else ""
        return f"{verb}{alone}: {'; '.join([*self._costs(verdict, self.baseline), self._loses(verdict)])}."

    def _costs(self, verdict: Verdict, other: Candidate | None) -> list[str]:
        """Its costs, with the difference in bytes to another cell."""
        parts = []
        if verdict.size is not None:
            parts.append(f"{self._bytes(verdict.size)} on disk{self._against(verdict, other)}")
        if verdict.memory is not None:
            parts.append(f"{self._bytes(verdict.memory)} of memory{self._where(verdict)}")
        if verdict.tpot is not None and verdict.prompt is not None:
            prompt = grouped(str(verdict.prompt))
            parts.append(f"{duration(verdict.tpot)} per token after {prompt} tokens at batch {verdict.batch}")
        return parts

    def _against(self, verdict: Verdict, other: Candidate | None) -> str:
        if other is None or other.id == verdict.id or other.size.value is None or verdict.size is None:
            return ""
        name = "the baseline" if other.baseline else other.label
        more = verdict.size - other.size.value
        if more == 0:
            return f", as many as {name}"
        return f", {self._bytes(abs(more))} {'more' if more > 0 else 'less'} than {name}"

    def _where(self, verdict: Verdict) -> str:
        memory = self.by_id[verdict.id].memory
        context = memory.context if self.limits.context is None else self.limits.context
        batch = memory.batch if self.limits.batch is None else self.limits.batch
        told = f" at {grouped(str(context))} tokens x {batch}"
        if not verdict.derived:
            return told
        return f"{told}, derived from what was measured at {grouped(str(memory.context))} x {memory.batch}"

    def _loses(self, verdict: Verdict) -> str:
        if self.by_id[verdict.id].baseline:
            return "what losses are measured against"
        if verdict.loss is None:
            return "its loss is not known"
        what = {"pp": " of mean accuracy", "recovery": " of the baseline's accuracy", "kl": " of divergence"}[self.limits.loss]
        change = f"{'gains' if verdict.loss < 0 else 'loses'} {loss_words(verdict.loss, self.limits)}{what}"
        return f"{change}{self._at_most(verdict.loss_high)}"

    def _at_most(self, high: float | None) -> str:
        if high is None:
            return ", with no limit from this data"
        if high <= 0:
            return f" (and no loss, with {self.sure} confidence)"
        return f" (a loss of at most {loss_words(high, self.limits, up=True)}, with {self.sure} confidence)"

    def _bytes(self, value: float, *, up: bool = False) -> str:
        return amount(value, binary=self.limits.binary, up=up)

    # ---- what else there is to say

    def _runner_up(self) -> str:
        answer = self.answer
        if answer.runner_up is None or answer.pick is None:
            return ""
        cell, verdict = self.by_id[answer.runner_up], self.verdicts[answer.runner_up]
        name = f"the baseline, {cell.label}" if cell.baseline else cell.label
        return f"Runner-up: {name}: {'; '.join([*self._costs(verdict, self.by_id[answer.pick]), self._loses(verdict)])}."

    def _alike(self) -> str:
        answer = self.answer
        if answer.pick is None or not answer.alike:
            return ""
        labels = [self.by_id[i].label for i in answer.alike]
        named = ", ".join(labels[:NAMED]) + (f" and {len(labels) - NAMED} more" if len(labels) > NAMED else "")
        return f"This data cannot tell the loss of {self.by_id[answer.pick].label} from that of {named}: choose by cost."

    def _change(self, change: Change) -> str:
        given = " and ".join(self._given(o) for o in change.obstacles)
        would = "would be the pick" if change.gain == "pick" else "would fit, and loses less"
        would = "would qualify" if self.answer.pick is None else would
        return f"{given[:1].upper()}{given[1:]}, {self.by_id[change.id].label} {would}."

    def _given(self, obstacle: Obstacle) -> str:
        allowed, needed = obstacle.allowed or 0.0, obstacle.needed or 0.0
        if obstacle.limit == "loss":
            more = loss_words(needed, self.limits, above=True)
            return f"with a loss of {more} allowed instead of {loss_words(allowed, self.limits)}"
        if obstacle.limit in ("tpot", "ttft"):
            what = "per token" if obstacle.limit == "tpot" else "to the first token"
            return f"at {duration(needed, up=True)} {what} instead of {duration(allowed)}"
        what = "of memory" if obstacle.limit == "memory" else "on disk"
        return f"at {self._bytes(needed, up=True)} {what} instead of {self._bytes(allowed)}"

    def _settle(self, settle: Settle) -> str:
        more, now = grouped(str(rounded_up(settle.more))), grouped(str(settle.n))
        allowed = loss_words(self.limits.max_loss or 0.0, self.limits)
        return (
            f"With {more} more {settle.unit} than the {now} there are, {self.by_id[settle.id].label} could be shown to lose less "
            f"than {allowed} (it would be, with a probability of 80{THIN}%, if it loses what is estimated)."
        )

    # ---- why a cell fails

    def _fails(self, verdict: Verdict) -> str:
        said = "; ".join(self._obstacle(o, verdict) for o in verdict.obstacles)
        return f"{said[:1].upper()}{said[1:]}."

    def _obstacle(self, obstacle: Obstacle, verdict: Verdict) -> str:
        if obstacle.state == "left out":
            return f"left out by the choice of {'methods' if obstacle.limit == 'method' else 'bits'}"
        name = {"size": "size", "memory": "memory", "tpot": "time per token", "ttft": "time to the first token"}.get(
            obstacle.limit, "loss"
        )
        if obstacle.state == "simulated":
            return f"its {name} is not shown, because its weights are simulated"
        if obstacle.state == "missing":
            return f"its {name} is not known{f' ({obstacle.reason})' if obstacle.reason else ''}"
        if obstacle.limit == "loss":
            return self._loss_fails(obstacle, verdict)
        needed, allowed = obstacle.needed or 0.0, obstacle.allowed or 0.0
        if obstacle.limit in ("tpot", "ttft"):
            what = "per token" if obstacle.limit == "tpot" else "to the first token"
            return (
                f"takes {duration(needed)} {what}, {duration(needed - allowed, up=True)} above the limit of {duration(allowed)}"
            )
        what = f"of memory{self._where(verdict)}" if obstacle.limit == "memory" else "on disk"
        over = self._bytes(needed - allowed, up=True)
        return f"takes {self._bytes(needed)} {what}, {over} above the limit of {self._bytes(allowed)}"

    def _loss_fails(self, obstacle: Obstacle, verdict: Verdict) -> str:
        allowed = loss_words(obstacle.allowed or 0.0, self.limits)
        loss = verdict.loss or 0.0
        known = f"{'gains' if loss < 0 else 'loses'} {loss_words(loss, self.limits)}{self._at_most(obstacle.needed)}"
        if loss >= (obstacle.allowed or 0.0):
            return f"{known}, not below the limit of {allowed}"
        return f"a loss below {allowed} is not shown: {known}"
