"""Asks the questions that a gate's alarms rest on once more, beside their baselines, and has the gate judge again.

The answers lie in `confirm/RUN` beside the candidate, RUN being the candidate's name: who is interrupted goes on there, and who
confirms the same night twice asks nothing the second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from harness import store
from harness.errors import BadInput
from harness.gate.confirm import confirm, keys, unconfirmed
from harness.gate.types import GateReport
from harness.measure import machine
from harness.run import identity, runner
from harness.run.observer import Observer
from harness.run.only import APART
from harness.spec import RunContext
from harness.store import Run
from harness.suite.plan import Plan

CHANGES_NUMBERS = False
"""It chooses what is asked again; how is decided elsewhere."""

Judge = Callable[[Run], GateReport]
"""Judges a candidate against the BASE, the accepted run, the history and the policy of the first verdict."""


def confirmed(
    report: GateReport, candidate: Run, plan: Plan, settings: runner.Settings, judge: Judge, observer: Observer | None = None
) -> GateReport:
    """The report with a cause for each alarm. Where nothing is alarmed, nothing is asked. Alarms stand, with a note that says
    why, where this machine cannot ask the same again: other packages, another machine, a question that the suite has no more.

    BadInput for a suite that is not the candidate's."""
    suite = str(candidate.plan.suite.get("name", ""))
    if plan.suite.name != suite:
        raise BadInput(f"--confirm: CANDIDATE is a run of the suite {suite!r}, not of {plan.suite.name!r}; name its own suite")
    wanted = keys(report, candidate)
    if not wanted:
        return replace(report, confirmed=True)
    threads = settings.threads or len(machine.affinity())
    here = identity.context(plan, packages=machine.packages(), threads=threads)
    if apart := _apart(candidate.header.context, here):
        return unconfirmed(report, f"CANDIDATE was measured under other conditions than there are here ({apart})")
    place = candidate.path.parent / APART / candidate.header.run
    asking = replace(settings, only=wanted, fresh=False, apart=place)
    try:
        path = runner.run(plan, asking, observer)
    except BadInput as error:
        return unconfirmed(report, str(error))
    return confirm(report, judge(store.read(path)))


def _apart(then: RunContext, now: RunContext) -> str:
    """In words, which conditions differ; the commit alone changes no number."""
    names = [f.name for f in fields(RunContext) if f.name not in {"machine", "packages", "commit"}]
    differing = [name for name in names if getattr(then, name) != getattr(now, name)]
    said = {"packages_digest": "packages", "source": "the measuring code"}
    return ", ".join(said.get(name, name) for name in differing)
