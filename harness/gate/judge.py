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
from dataclasses import replace

from harness import stats
from harness.errors import BadInput
from harness.gate import causes, fenced, worst_tokens
from harness.gate.compare import Family
from harness.gate.join import sides
from harness.gate.pairing import Draft, Pairing
from harness.gate.policy import Policy
from harness.gate.types import Finding, GateReport, History, RunName, Square, Verdict
from harness.store import Run

SHARES: Mapping[Family, float] = {"mean": 0.5, "task": 0.2, "text": 0.3}
"""What each family of tests gets of alpha."""


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
    drafts = list(Pairing(before, now, policy, history or {}, "base").drafts())
    if third is not None:
        long_ago = sides(third)
        drafts += [d for d in Pairing(long_ago, now, policy, {}, "accepted").drafts() if d.change is not None or d.lost]
    findings = verdicts(drafts, policy, candidate.header.started_at)
    if third is not None:
        findings = _with_accepted(findings, newer=third.header.started_at > base.header.started_at)
    elif accepted is not None and accepted.header.run == candidate.header.run:
        findings = [replace(f, verdict="within noise", reason=_ACCEPTED) if f.verdict == "regressed" else f for f in findings]
    findings = [*_damaged(candidate), *worst_tokens.shown(findings, base, candidate, third)]
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


# ---------------------------------------------------------------------------------------------------------------- significance


def verdicts(drafts: Sequence[Draft], policy: Policy, started_at: str) -> list[Finding]:
    """The drafts with verdicts: both directions are tested at the same rate, and only "worse" is an alarm."""
    worse, better = (_adjusted(drafts, side) for side in ("worse", "better"))
    return [
        replace(found, muted=policy.muted(found.square, started_at) if found.verdict == "regressed" else "")
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
