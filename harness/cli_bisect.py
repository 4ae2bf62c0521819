"""The verb `bisect`: which package, or which commit, made a cell worse. Prints, like cli.py, which it is a part of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli_env import CacheOption, say
from harness.cli_gate import INTERRUPTED, RunArgument
from harness.errors import BadInput

if TYPE_CHECKING:
    from harness.gate.types import GateReport
    from harness.run.bisect import Found
    from harness.store import Run

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

EXIT_NOT_FOUND = 1

EPILOG = (
    "Examples: quant-harness bisect last-green latest 'hqq 4-bit g64' --results results/nightly · "
    "quant-harness bisect last-green latest 'rtn 4-bit' --results results/nightly --with 'git checkout {commit}' --repo ../clone"
)


def bisect(
    base: Annotated[str, typer.Argument(metavar="BASE", help=RunArgument)],
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help=RunArgument)],
    cell: Annotated[str, typer.Argument(metavar="CELL", help="The cell that is worse: LABEL or MODEL/LABEL.")],
    suite: Annotated[str | None, typer.Option("--suite", help="The suite; default: the one that CANDIDATE was run by.")] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="The gate's policy (.yaml).")] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Where words are looked up: a suite's results folder; default: CANDIDATE's.")
    ] = None,
    cache: CacheOption = None,
    template: Annotated[
        str | None,
        typer.Option("--with", metavar="COMMAND", help="Bisect commits: a command that makes {commit} current in --repo."),
    ] = None,
    repo: Annotated[Path | None, typer.Option("--repo", metavar="DIR", help="A clone of quant-harness, for --with.")] = None,
) -> None:
    """Find out which package made a cell worse, or fail: asks its questions again in environments between BASE's and CANDIDATE's.

    Halves first, until one package is left. With --with, the same for commits. What was asked is kept, so that the same command
    goes on where it was stopped. Exits with 0 where one is named, 1 where none can be."""
    from harness.cli_gate import judge_paths
    from harness.gate import choose, history, judge
    from harness.gate.policy import Policy, load
    from harness.run import bisect as search
    from harness.run import workspace

    rules, place = Policy() if policy is None else load(policy), cache or workspace.default_cache()
    if (template is None) != (repo is None):
        raise BadInput("--with and --repo belong together: --with 'git checkout {commit}' --repo DIR, a clone of quant-harness")
    judged = choose.candidate(candidate, results)
    (first, second, _), report = judge_paths(choose.base(base, results, judged.path).path, judged.path, rules)
    past = history.read(judged.path.parent, before=second.header.run)

    def against_base(run: Run) -> GateReport:
        return judge.gate(first, run, history=past, policy=rules)

    sought = search.seek(first, second, cell, report, suite or _asked(second), against_base)
    how = "worse" if any(f.alarm for f in sought.report.findings) else "failed"
    say(f"{how}: {'; '.join(f.square.name for f in sought.report.findings)}")
    try:
        if template is None or repo is None:
            found = search.packages(sought, place, say)
        else:
            found = search.commits(sought, template, repo, place, say)
    except KeyboardInterrupt:
        say("stopped; every answer is kept: the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    _tell(found)


def _tell(found: Found) -> None:
    for left in found.left:
        say(f"not tried: {left}")
    if len(found.cause) == 1:
        say(f"found: {found.cause[0]}")
        return
    if found.cause:
        say(f"one of these, or some of them together, which could not be told apart: {'; '.join(found.cause)}")
    else:
        say(f"not found: {found.why}")
    raise typer.Exit(EXIT_NOT_FOUND)


def _asked(run: Run) -> str:
    """What `run` was given when it made the candidate."""
    from harness.gate.judge import suite_asked

    suite = suite_asked(run)
    if not suite:
        raise BadInput("CANDIDATE does not say which suite it was run by; name it with --suite SUITE")
    return suite
