"""What became of every square between two runs. Pure: stored runs in, findings out.

A change is an alarm where three things hold: it is significant, it is large enough, and its whole interval lies beyond the margin
(`policy.py`). Significance is shared out over the whole matrix, so that a night in which nothing changed raises any alarm with a
chance of at most `alpha`:

- a cell's tasks together get half of alpha, single tasks a fifth, perplexities and divergences three tenths;
- within each, the p-values are Benjamini and Hochberg's (1995): where nothing changed at all, a false discovery rate of q is a
  chance of q of any alarm. Cells answer the same items, so their one-sided tests depend on each other positively, under which the
  bound holds (Benjamini & Yekutieli 2001, theorem 1.2); `python -m tests.gate.audit false-alarms` counts it on real nights;
- sizes, kernels and shares are counted: any difference is one, and none needs a test;
- latency and memory are alarms where the change is beyond the fence of the series' own past (`stats.fence`), the ratio to the
  same run's baseline is beyond its own, and the two intervals do not meet.

The candidate is compared with BASE and, where that is another run, with the last accepted one: a drift that no night shows is
found there, and what was accepted is no alarm.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from harness import stats
from harness.errors import BadInput
from harness.gate import causes, compare, fenced
from harness.gate.compare import Change, Family, PairedItems
from harness.gate.join import Asked, Side, Sides, figure, judged, options_apart, sides
from harness.gate.policy import MEAN_ACCURACY, Policy
from harness.gate.samples import Lost, Unpaired
from harness.gate.types import Against, Figure, Finding, GateReport, History, Kind, RunName, Square, Verdict
from harness.spec import Measurement, Metric
from harness.store import Run

SHARES: Mapping[Family, float] = {"mean": 0.5, "task": 0.2, "text": 0.3}
"""What each family of tests gets of alpha."""

_FAMILY: Mapping[Kind, Family] = {"items": "task", "losses": "text", "tokens": "text", "exact": "", "fenced": ""}


_TaskPair: TypeAlias = tuple[Asked, Asked, Metric, Measurement, Measurement]
"""A task in both runs: the two answers, the metric, and its two measurements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A finding before multiplicity is known. `change` is None where the verdict stands already."""

    finding: Finding
    family: Family = ""
    change: Change | None = None
    lost: bool = False  # its raw samples are gone or damaged


def gate(
    base: Run, candidate: Run, *, accepted: Run | None = None, history: History | None = None, policy: Policy | None = None
) -> GateReport:
    """Every square of both runs with its verdict. `accepted`: None, or the same run as `base` or `candidate`, where there is no
    other to compare with. `history`: past nights before the candidate, without it."""
    policy = policy or Policy()
    now, before = sides(candidate), sides(base)
    if not now.cells.keys() & before.cells.keys():
        raise BadInput(_nothing_in_common(base, candidate))
    third = None if accepted is None or accepted.header.run in (base.header.run, candidate.header.run) else accepted
    drafts = list(_Pairing(before, now, policy, history or {}, "base").drafts())
    if third is not None:
        long_ago = sides(third)
        drafts += [d for d in _Pairing(long_ago, now, policy, {}, "accepted").drafts() if d.change is not None or d.lost]
    findings = verdicts(drafts, policy, candidate.header.started_at)
    if third is not None:
        findings = _with_accepted(findings, newer=third.header.started_at > base.header.started_at)
    elif accepted is not None and accepted.header.run == candidate.header.run:
        findings = [replace(f, verdict="within noise", reason=_ACCEPTED) if f.verdict == "regressed" else f for f in findings]
    findings = [*_damaged(candidate), *findings]
    return GateReport(
        base=run_name(base),
        candidate=run_name(candidate),
        accepted=None if accepted is None else run_name(accepted),
        findings=tuple(findings),
        differences=causes.differences(base, candidate),
        notes=(
            *_order(base, candidate),
            *policy.idle_mutes([f.square for f in findings], candidate.header.started_at),
            *_notes("BASE", base),
            *_notes("CANDIDATE", candidate),
            *_undrifted(third, drafts),
            *fenced.moved_baselines(before, now, history or {}, policy),
        ),
        tests=sum(d.family != "" and d.change is not None for d in drafts),
        alpha=policy.alpha,
    )


def run_name(run: Run) -> RunName:
    context = run.header.context
    return RunName(
        path=str(run.path),
        run=run.header.run,
        suite=str(run.plan.suite.get("name", "")),
        started_at=run.header.started_at,
        commit=context.commit,
        host=context.host,
        finished=run.ended,
        asked=suite_asked(run),
    )


def suite_asked(run: Run) -> str:
    """The suite as `quant-harness run SUITE` was given it, from the commands that make the run again; '' where none says."""
    for command in run.plan.commands:
        words = shlex.split(command)
        if words[:2] == ["quant-harness", "run"] and len(words) > 2:
            return words[2]
    return ""


_ACCEPTED = "worse than BASE, and accepted: CANDIDATE is the run that was accepted last"


def _nothing_in_common(base: Run, candidate: Run) -> str:
    names = [str(run.plan.suite.get("name", "")) or "?" for run in (base, candidate)]
    suites = f"both are of the suite {names[0]!r}" if names[0] == names[1] else f"suites {names[0]!r} and {names[1]!r}"
    return (
        f"BASE ({base.path}) and CANDIDATE ({candidate.path}) have no cell in common ({suites}): the same model name, scheme and "
        "way of running; compare two runs of one suite"
    )


def _damaged(candidate: Run) -> Iterator[Finding]:
    """What of the candidate's file is not as it was written: a number may have stood there, so that it is no pass."""
    for said in candidate.damage:
        square = Square(
            model=str(candidate.plan.suite.get("name", "")), label="the run file", identity="", metric="run_file",
            title=f"Damage, line {said.line}" if said.line else "Damage", subject="", definition="as it was written", unit="",
        )  # fmt: skip
        yield Finding(
            square=square, kind="exact", verdict="missing", reason=f"{said}; measure it again with: quant-harness run SUITE"
        )


def _undrifted(accepted: Run | None, drafts: Sequence[Draft]) -> Iterator[str]:
    """That a drift cannot be seen where the accepted run has lost its raw samples."""
    lost = sum(d.lost and d.finding.against == "accepted" for d in drafts)
    if accepted is not None and lost:
        many = "1 square" if lost == 1 else f"{lost} squares"
        yield f"the raw samples of the accepted run {accepted.header.run} are gone in {many}, so that no drift is seen there"


def _order(base: Run, candidate: Run) -> Iterator[str]:
    if candidate.header.run == base.header.run and candidate.path != base.path:
        yield f"BASE and CANDIDATE are the same run, {base.header.run}, in two files"
    if candidate.header.started_at < base.header.started_at:
        yield "CANDIDATE is older than BASE, so that what got worse counts as better here: swap them, unless that is meant"


def _notes(who: str, run: Run) -> Iterator[str]:
    if not run.ended:
        yield f"{who} is not finished ({run.path.name}): what it lacks is no pass; go on with: quant-harness run SUITE"
    yield from (f"{who}: {said}" for said in run.damage_in_words)


class _Pairing:
    """Two runs whose squares are compared; `against` says what the first of them is."""

    def __init__(self, before: Sides, now: Sides, policy: Policy, history: History, against: Against) -> None:
        self.before, self.now = before, now
        self.policy, self.history, self.against = policy, history, against

    def drafts(self) -> Iterator[Draft]:
        """In the candidate's order of cells, then the cells that only the first run has."""
        for identity, side in self.now.cells.items():
            old = self.before.cells.get(identity)
            yield from self._new(side) if old is None else self._cell(old, side)
        for identity, old in self.before.cells.items():
            if identity not in self.now.cells:
                yield from self._gone(old, self.now.unsupported.get(identity))

    def _cell(self, old: Side, new: Side) -> Iterator[Draft]:
        tasks: list[_TaskPair] = []
        met = set()
        for name, asked in old.asked.items():
            same = new.asked.get(name)
            again = same or new.like(asked.question)
            for metric, kind, measurement in judged(asked, old, self.before):
                square = new.square(metric, asked.question, measurement.definition, measurement.unit)
                after = None if again is None else again.sample(metric.name, measurement.definition)
                met.add((asked.question.probe, asked.question.subject, metric.name))
                stub = Finding(square=square, kind=kind, verdict="missing", against=self.against, before=figure(measurement))
                if again is None or after is None:
                    yield Draft(finding=_without_answer(stub, asked, again))
                    continue
                stub = replace(stub, after=figure(after), keys=() if again.record is None else (again.record.key,))
                if same is None or (why := _versions_apart(asked, again)):
                    why = options_apart(asked.question, again.question) if same is None else why
                    yield Draft(finding=replace(stub, verdict="not comparable", reason=f"the question is another one ({why})"))
                    continue
                if kind == "items":
                    tasks.append((asked, again, metric, measurement, after))
                yield self._compared(stub, metric, old, new, (asked, measurement), (again, after))
        yield from self._mean(new, tasks)
        yield from self._kernels(old, new)
        if self.against == "base":
            yield from self._new(new, met)

    def _compared(
        self,
        stub: Finding,
        metric: Metric,
        old: Side,
        new: Side,
        before: tuple[Asked, Measurement],
        after: tuple[Asked, Measurement],
    ) -> Draft:
        first, second = (self.before.run, before[1]), (self.now.run, after[1])
        try:
            if stub.kind == "fenced":
                if self.against == "accepted":
                    return Draft(finding=replace(stub, verdict="within noise"))
                return Draft(
                    finding=fenced.judge(
                        stub, metric, (self.before, old, before[0]), (self.now, new, after[0]), self.history, self.policy
                    )
                )
            if stub.kind == "items":
                paired = compare.pair(stub.square.subject, first, second)
                change = compare.of_items([paired])
            elif stub.kind == "losses":
                change = compare.of_losses(first, second)
            elif stub.kind == "tokens":
                change = compare.of_tokens(first, second)
            else:
                change = compare.exact(metric, before[1].value, after[1].value)
        except Lost as why:
            return Draft(finding=replace(stub, verdict="missing", reason=str(why)), lost=True)
        except Unpaired as why:
            if before[1].blob is None and after[1].blob is None and before[1].value == after[1].value:
                return Draft(finding=replace(stub, verdict="within noise", reason="equal; no raw samples are kept of it"))
            return Draft(finding=replace(stub, verdict="not comparable", reason=str(why)))
        limit, whence = self._threshold(stub, metric, new)
        stub = replace(stub, threshold=limit, threshold_from=whence)
        return Draft(finding=stub, family=_FAMILY[stub.kind], change=change)

    def _threshold(self, stub: Finding, metric: Metric, new: Side) -> tuple[float, str]:
        """What a change must reach, and where that comes from. A divergence at the noise floor is the execution's, not the
        cell's: there the change must reach the floor itself."""
        limit, whence = self.policy.limit(metric.name, stub.kind).magnitude, self.policy.whence(metric.name)
        base = self.now.baseline_of(new)
        if metric.floor and base is not None and stub.before is not None and stub.after is not None:
            floor = next(
                (
                    m.value
                    for a in base.asked.values()
                    if a.question.subject == stub.square.subject
                    for m in a.measurements
                    if m.metric == metric.floor
                ),
                0.0,
            )
            if stub.before.value > 0 and max(stub.before.value, stub.after.value) <= 2 * floor:
                return max(limit, floor / stub.before.value), "the noise floor: both are within twice of it"
        return limit, whence

    def _mean(self, new: Side, tasks: Sequence[_TaskPair]) -> Iterator[Draft]:
        """All tasks of a cell together: the most powerful look at its accuracy."""
        if len(tasks) < 2:
            return
        paired: list[PairedItems] = []
        keys, left_out = [], []
        whole = any(before.blob is None or before.blob != after.blob for *_, before, after in tasks)
        for asked, again, _, before, after in tasks:
            try:
                one = compare.pair(asked.question.subject, (self.before.run, before), (self.now.run, after), whole=whole)
            except Unpaired:
                left_out.append(asked.question.subject)
                continue
            paired.append(one)
            keys += [] if again.record is None else [again.record.key]
        if len(paired) < 2:
            yield from self._no_mean(new, tasks, left_out)
            return
        kept = [t for t in tasks if t[0].question.subject not in left_out]
        sums = [sum(m.value for m in column) / len(kept) for column in ([t[3] for t in kept], [t[4] for t in kept])]
        square = self._mean_square(new, len(kept))
        n = sum(p.n for p in paired)
        reason = f"without {', '.join(left_out)}, whose items cannot be paired" if left_out else ""
        stub = Finding(
            square=square, kind="items", verdict="within noise", against=self.against, before=Figure(value=sums[0], n=n),
            after=Figure(value=sums[1], n=n), keys=tuple(keys), reason=reason,
            threshold=self.policy.limit(MEAN_ACCURACY, "items").magnitude, threshold_from=self.policy.whence(MEAN_ACCURACY),
        )  # fmt: skip
        yield Draft(finding=stub, family="mean", change=compare.of_items(paired))

    def _mean_square(self, side: Side, tasks: int) -> Square:
        return Square(
            model=side.cell.model.name, label=side.cell.label, identity=side.identity, metric=MEAN_ACCURACY,
            title=f"Mean accuracy of {tasks} tasks", subject="", definition=f"mean of {tasks} tasks, items paired", unit="share",
            baseline=side.baseline,
        )  # fmt: skip

    def _no_mean(self, new: Side, tasks: Sequence[_TaskPair], left_out: Sequence[str]) -> Iterator[Draft]:
        """The mean that both runs hold and that cannot be compared, because its tasks cannot."""
        if self.against == "accepted":
            return
        reason = f"the items of {', '.join(left_out)} cannot be paired"
        square = self._mean_square(new, len(tasks))
        yield Draft(finding=Finding(square=square, kind="items", verdict="not comparable", reason=reason))

    def _kernels(self, old: Side, new: Side) -> Iterator[Draft]:
        """The kernels that ran, which nobody may exchange unnoticed."""
        ran = [causes.kernels(side) for side in (old, new)]
        if not all(ran) or self.against == "accepted":
            return
        said = [", ".join(f"{name} ({count} layers)" for name, count in sorted(each.items())) for each in ran]
        asked = next((a for a in new.asked.values() if a.record is not None and a.record.answer is not None), None)
        square = Square(
            model=new.cell.model.name, label=new.cell.label, identity=new.identity, metric="kernels", title="Kernels that ran",
            subject="", definition="read from the loaded model after a forward pass", unit="", baseline=new.baseline,
        )  # fmt: skip
        moved = ran[0] != ran[1]
        yield Draft(
            finding=Finding(
                square=square, kind="exact", verdict="regressed" if moved else "within noise",
                reason=f"{said[0]} before, {said[1]} now" if moved else said[1],
                threshold_from="any change of kernels" if moved else "",
                keys=(asked.record.key,) if asked is not None and asked.record is not None else (),
            )
        )  # fmt: skip

    def _new(self, side: Side, met: set[tuple[str, str, str]] | None = None) -> Iterator[Draft]:
        """Squares that only the candidate has a number in."""
        if self.against == "accepted":
            return
        for asked in side.asked.values():
            for metric, kind, measurement in judged(asked, side, self.now):
                if met is not None and (asked.question.probe, asked.question.subject, metric.name) in met:
                    continue
                square = side.square(metric, asked.question, measurement.definition, measurement.unit)
                yield Draft(finding=Finding(square=square, kind=kind, verdict="new", after=figure(measurement)))

    def _gone(self, old: Side, unsupported: str | None) -> Iterator[Draft]:
        """Squares whose cell the candidate's plan does not have."""
        if self.against == "accepted":
            return
        near = next((s for i, s in self.now.cells.items() if i not in self.before.cells and _alike(s, old)), None)
        why = "its cell is not planned any more"
        if unsupported:
            why = f"its cell is not supported any more: {unsupported}"
        elif near is not None:
            why += f"; the nearest new one is {near.cell.name} ({causes.schemes_apart(old.cell, near.cell)})"
        for asked in old.asked.values():
            for metric, kind, measurement in judged(asked, old, self.before):
                square = old.square(metric, asked.question, measurement.definition, measurement.unit)
                yield Draft(finding=Finding(square=square, kind=kind, verdict="missing", before=figure(measurement), reason=why))


def _alike(one: Side, other: Side) -> bool:
    return (one.cell.model.name, one.cell.method, one.cell.bits) == (other.cell.model.name, other.cell.method, other.cell.bits)


def _without_answer(stub: Finding, asked: Asked, again: Asked | None) -> Finding:
    """A square that had a number and has none now."""
    if again is None:
        return replace(stub, reason="its question is not planned any more")
    if again.record is None:
        return replace(stub, reason="planned, and not run")
    if again.record.failure is not None:
        failure = again.record.failure
        return replace(stub, verdict="failed", reason=f"{failure.kind}: {failure.message}", keys=(again.record.key,))
    other = again.other_definition(stub.square.metric)
    if other is None:
        return replace(stub, reason="the answer does not hold it any more", keys=(again.record.key,))
    return replace(stub, verdict="not comparable", reason=f"measured as {stub.square.definition!r} before and as {other!r} now")


def _versions_apart(asked: Asked, again: Asked) -> str:
    if asked.record is None or again.record is None or asked.record.probe_version == again.record.probe_version:
        return ""
    return f"version {asked.record.probe_version} of the probe before, {again.record.probe_version} now"


# ---------------------------------------------------------------------------------------------------------------- significance


def verdicts(drafts: Sequence[Draft], policy: Policy, started_at: str) -> list[Finding]:
    """The drafts with verdicts: both directions are tested at the same rate, and only "worse" is an alarm."""
    worse, better = (_adjusted(drafts, side) for side in ("worse", "better"))
    return [
        replace(
            found, muted=policy.muted(found.square, started_at) if found.verdict in ("regressed", "failed", "missing") else ""
        )
        for found in (_verdict(d, worse.get(i, 1.0), better.get(i, 1.0), policy) for i, d in enumerate(drafts))
    ]


def _adjusted(drafts: Sequence[Draft], side: str) -> dict[int, float]:
    """p-values by draft that compare with alpha: corrected within their family, and for the family's share."""
    found: dict[int, float] = {}
    for family, share in SHARES.items():
        places = [(i, d.change) for i, d in enumerate(drafts) if d.family == family and d.change is not None]
        raw = [change.worse if side == "worse" else change.better for _, change in places]
        for (place, _), p in zip(places, stats.benjamini_hochberg(raw), strict=True):
            found[place] = min(1.0, float(p) / share)
    return found


def _verdict(draft: Draft, worse: float, better: float, policy: Policy) -> Finding:
    found, change = draft.finding, draft.change
    if change is None:
        return found
    limit = policy.limit(found.square.metric, found.kind)
    reach, margin = found.threshold or 0.0, limit.margin
    tested = draft.family != ""
    if not tested:
        worse, better = change.worse, change.better
    verdict: Verdict = "within noise"
    if (
        worse <= policy.alpha
        and change.value >= reach
        and change.value > 0
        and (change.low is None or change.low > margin or not margin)
    ):
        verdict = "regressed"
    elif (
        better <= policy.alpha
        and -change.value >= reach
        and change.value < 0
        and (change.high is None or -change.high > margin or not margin)
    ):
        verdict = "improved"
    noise = change.noise
    return replace(
        found,
        verdict=verdict,
        change=change.value,
        low=change.low,
        high=change.high,
        change_unit=change.unit,
        p=min(change.worse, change.better) if tested else None,
        adjusted=(worse if change.value >= 0 else better) if tested else None,
        factor=None if not noise else abs(change.value) / noise,
        flips=change.flips,
    )


def _with_accepted(findings: Sequence[Finding], *, newer: bool) -> list[Finding]:
    """One finding for each square. Worse than what was accepted is an alarm also where the last night was as bad. Where the
    accepted run is the newer of the two, it counts alone: what it lost was accepted."""
    long_ago = {f.square: f for f in findings if f.against == "accepted"}
    kept = []
    for found in (f for f in findings if f.against == "base"):
        old = long_ago.get(found.square)
        if old is None:
            kept.append(found)
        elif found.verdict == "regressed" and newer and old.verdict in ("within noise", "improved"):
            kept.append(replace(found, verdict="within noise", reason="worse than BASE, and no worse than the accepted run"))
        elif found.verdict in ("within noise", "improved") and old.verdict == "regressed":
            kept.append(replace(old, reason="no night was bad by itself: it drifted away from the accepted run"))
        else:
            kept.append(found)
    return kept
