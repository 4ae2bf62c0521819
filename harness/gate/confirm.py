"""Asked once more before anything turns red: which of a gate's alarms stand.

The cells of the alarms are asked the same questions again, together with their model's baseline in the same context. `keys` says
which questions that are, `confirm` what the answers mean. Both are pure; `run/confirm.py` asks.

- worse again, and more so than the baseline: a **regression**;
- worse again, and the baseline lost as much: a **stale baseline**. The cell's loss against its own baseline is what it was, so
  that what changed is common to both; the baseline's own square says so, and is the alarm, if it is one;
- not worse this time: **flaky**. It is named and kept, and never counted as well;
- a latency or memory that is worse again, and the baseline's by the same ratio: the **machine**.

What could not be asked again stays an alarm: no answer is no acquittal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from harness.gate.types import Cause, Finding, GateReport, Square
from harness.store import Run

_Place: TypeAlias = tuple[str, str, str, str]


def keys(report: GateReport, candidate: Run, of: Sequence[Finding] | None = None) -> tuple[str, ...]:
    """The keys of the candidate's records that the alarms rest on, or the findings `of`, and of its baselines' records of the
    same questions; in the order of the plan, each once."""
    wanted = {key for found in (report.alarms if of is None else of) for key in found.keys}
    baselines = {(p.cell.model.name, p.cell.label) for p in candidate.plan.cells if p.baseline}
    records = {record.key: record for record in candidate.records}
    asked = {
        (records[key].cell.model.name, records[key].question.probe, records[key].question.subject)
        for key in wanted
        if key in records
    }
    beside = {
        r.key
        for r in candidate.records
        if (r.cell.model.name, r.cell.label) in baselines and (r.cell.model.name, r.question.probe, r.question.subject) in asked
    }
    return tuple(key for key in records if key in wanted | beside)


def replays(report: GateReport, candidate: Run) -> Mapping[str, str]:
    """The command that asks exactly the questions of an alarm again, by the name of its square; none where the candidate does not
    say by which command it was made."""
    runs = [command for command in candidate.plan.commands if command.startswith("quant-harness run ")]
    if not runs:
        return {}
    asked = runs[-1].partition(" --only ")[0]
    return {
        f.square.name: " ".join([asked, *(f"--only {key[:12]}" for key in f.keys), "--fresh"]) for f in report.alarms if f.keys
    }


def confirm(report: GateReport, again: GateReport) -> GateReport:
    """The report with a `cause` for each alarm. `again`: the same BASE judged against the run that was asked once more. The same
    two reports always give the same one."""
    # What its baseline lost excuses a cell only where the baseline itself is an alarm: else the loss would count nowhere.
    alarmed = {(f.square.model, *_place(f.square)[1:]) for f in report.alarms if f.square.baseline}
    found = {_place(f.square): f for f in again.findings}
    beside = {(f.square.model, *_place(f.square)[1:]): f for f in again.findings if f.square.baseline}
    beside = {place: f for place, f in beside.items() if f.kind == "fenced" or (place in alarmed and f.verdict == "regressed")}
    findings = tuple(_caused(f, found, beside) if f.alarm and not f.cause else f for f in report.findings)
    return replace(report, findings=findings, confirmed=True)


def unconfirmed(report: GateReport, why: str) -> GateReport:
    """The report of a night whose alarms could not be asked again: they stand, and a note says why."""
    note = f"The alarms were not asked again, and stand as they are: {why}"
    return replace(report, notes=(*report.notes, note))


def _place(square: Square) -> _Place:
    return square.identity, square.metric, square.subject, square.definition


def _caused(alarm: Finding, found: Mapping[_Place, Finding], beside: Mapping[_Place, Finding]) -> Finding:
    again = found.get(_place(alarm.square))
    if again is None or again.verdict in ("missing", "failed", "new", "not comparable"):
        why = "it was not asked" if again is None else again.reason or again.verdict
        return _said(alarm, "", f"asked again it has no answer ({why}), so the alarm stands")
    base = None if alarm.square.baseline else beside.get((alarm.square.model, *_place(alarm.square)[1:]))
    cause, words = _cause(alarm, again, base)
    return _said(alarm, cause, words)


def _said(alarm: Finding, cause: Cause, words: str) -> Finding:
    return replace(alarm, cause=cause, reason=f"{alarm.reason}; {words}" if alarm.reason else words)


def _cause(alarm: Finding, again: Finding, base: Finding | None) -> tuple[Cause, str]:
    """What the second answers mean, and that in words."""
    if again.kind == "fenced":
        if again.verdict != "regressed" and base is not None and _same_ratio(again, base):
            return "machine", "asked again, the baseline moved by the same ratio: it is the machine, or what all cells share"
    elif again.verdict == "regressed" and base is not None and _lost_as_much(again, base):
        return "stale baseline", "asked again, the model's baseline lost as much: the loss against it is what it was"
    if again.verdict == "regressed":
        return "regression", "asked again, it is worse again"
    return "flaky", f"asked again, it was {again.verdict}"


def _same_ratio(again: Finding, base: Finding) -> bool:
    """Whether a latency or memory is beyond its threshold by itself and not in ratio to the baseline's. Both are shares."""
    if again.change is None or base.change is None or again.threshold is None:
        return False
    return again.change > again.threshold and (1 + again.change) / (1 + base.change) - 1 <= again.threshold


def _lost_as_much(again: Finding, base: Finding) -> bool:
    """Whether the baseline is worse beyond its own noise, and what the cell lost beyond that is within the noise of both. The
    half widths are added as of independent numbers, though both answered the same items: that is the wider limit for a
    difference of changes that go together. Counts are each cell's own."""
    if again.kind == "exact" or again.change is None or base.change is None:
        return False
    noise = [_half_width(f) for f in (again, base)]
    moved = base.low is not None and base.low > 0
    return moved and again.change - base.change <= math.hypot(*noise)


def _half_width(found: Finding) -> float:
    return 0.0 if found.low is None or found.high is None else (found.high - found.low) / 2
