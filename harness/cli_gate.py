"""The verb `gate`: whether a run is worse than another. Prints, like cli.py, which it is a part of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from harness.cli_env import CacheOption
from harness.cli_publish import waiting, write_file
from harness.errors import BadInput

if TYPE_CHECKING:
    from harness.gate.policy import Policy
    from harness.gate.types import GateReport
    from harness.store import Run

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

EXIT_RED, INTERRUPTED = 1, 130

EPILOG = (
    "Examples: quant-harness gate latest results/nightly/20261130T020000Z-1234abcd.jsonl · "
    "quant-harness gate accepted latest --results results/nightly --markdown verdict.md --junit verdict.xml · "
    "quant-harness gate accepted latest --results results/nightly --confirm nightly --keep"
)
out = Console()

RunArgument = "A run file (.jsonl), a suite's results folder, or a word: latest, last-green, accepted."


def gate(
    base: Annotated[str, typer.Argument(metavar="BASE", help=RunArgument)],
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help=RunArgument)],
    policy: Annotated[Path | None, typer.Option("--policy", help="A policy (.yaml); see suites/policy.yaml.")] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Where words are looked up: a suite's results folder; default: CANDIDATE's.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write a pull-request comment or job summary.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML: one test case per square.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write everything that was found: the evidence.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with flipped items and the history.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Print every square, not only what asks for a person.")] = False,
    confirm: Annotated[
        str | None,
        typer.Option(
            "--confirm", metavar="SUITE", help="Ask each alarm of this suite once more, beside its baseline; judge again."
        ),
    ] = None,
    cache: CacheOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the verdict in the candidate's results folder.")] = False,
) -> None:
    """Say whether CANDIDATE is worse than BASE, square by square, and where that may come from.

    Nothing is measured, but for --confirm, which asks the questions of each alarm again. Exits with 0 where nothing is worse,
    missing or failed; 1 otherwise; 2 for bad input. docs/gate.md says how it decides and how seldom it is wrong."""
    from harness.gate import choose
    from harness.gate.policy import Policy, load

    rules = Policy() if policy is None else load(policy)
    judged = choose.candidate(candidate, results)
    against = choose.base(base, results, judged.path)
    itself = judged.path.resolve() == against.path.resolve()
    if itself and base not in choose.WORDS:
        raise BadInput(f"BASE and CANDIDATE are the same run ({judged.path}); a run cannot be held against itself")
    _check_outputs(judged.path, against.path, policy, markdown, junit, as_json, html)
    with waiting("comparing ..."):
        runs, report = judge_paths(against.path, judged.path, rules)
    if confirm is not None:
        report = confirmed(report, runs, rules, suite=confirm, cache=cache)
    alone = "BASE is CANDIDATE itself, so that nothing can be worse: the first night" if itself else ""
    for note in (against.note, judged.note, alone):
        if note:
            out.print(note, markup=False, highlight=False, soft_wrap=True)
    show(report, everything=everything)
    write(report, runs, markdown=markdown, junit=junit, as_json=as_json, html=html)
    if keep:
        from harness.gate import journal

        journal.keep_verdict(judged.path.parent, report)
    if not report.green:
        raise typer.Exit(EXIT_RED)


def _check_outputs(candidate: Path, base: Path, policy: Path | None, *outputs: Path | None) -> None:
    """BadInput for an output that has no name, is named twice, or would replace what the gate reads."""
    inputs = {p.resolve() for path in (candidate, base) for p in path.parent.glob("*.jsonl*")} | {
        candidate.resolve(),
        base.resolve(),
    }
    inputs |= set() if policy is None else {policy.resolve()}
    seen: set[Path] = set()
    for path in outputs:
        if path is None:
            continue
        if not path.name:
            raise BadInput("an output (--html, --markdown, --junit, --json) has an empty name; name a file")
        if path.resolve() in inputs:
            raise BadInput(f"{path}: is read by the gate, and would be replaced by its output; name another file")
        if path.resolve() in seen and (path.is_file() or not path.exists()):
            raise BadInput(f"{path}: is named for two outputs; give each a file of its own")
        seen.add(path.resolve())


def confirmed(
    report: GateReport, runs: tuple[Run, Run, Run | None], policy: Policy, *, suite: str, cache: Path | None
) -> GateReport:
    """The report with a cause for each alarm, after its questions were asked once more. Interrupted, the same command goes on."""
    from harness import cli_progress
    from harness.gate import history, judge
    from harness.run import confirm, runner, workspace
    from harness.suite import file, matrix

    base, candidate, accepted = runs
    context, place = candidate.header.context, cache or workspace.default_cache()
    plan = matrix.plan(file.find(suite), device=matrix.choose_device(context.device, here=True), cache=place)
    settings = runner.Settings(results=candidate.path.parent.parent, cache=place, threads=context.threads)
    past = history.read(candidate.path.parent, before=candidate.header.run)

    def judged(again: Run) -> GateReport:
        return judge.gate(base, again, accepted=accepted, history=past, policy=policy)

    try:
        with cli_progress.Progress() as progress:
            return confirm.confirmed(report, candidate, plan, settings, judged, progress)
    except KeyboardInterrupt:
        out.print("stopped; what was asked again is kept: the same command goes on from here", markup=False)
        raise typer.Exit(INTERRUPTED) from None


def judge_paths(base: Path, candidate: Path, policy: Policy) -> tuple[tuple[Run, Run, Run | None], GateReport]:
    """The runs BASE, CANDIDATE and, where one was accepted, that one; and what the gate says."""
    from harness import store
    from harness.gate import choose, history, judge
    from harness.gate.confirm import replays

    folder = candidate.parent
    first, second = store.read(base), store.read(candidate)
    accepted = choose.accepted(folder)
    third = None if accepted is None else store.read(accepted)
    past = history.read(folder, before=second.header.run)
    report = judge.gate(first, second, accepted=third, history=past, policy=policy)
    return (first, second, third), replace(report, commands=replays(report, second))


def show(report: GateReport, *, everything: bool) -> None:
    from harness.gate import terminal

    for part in terminal.drawn(report, everything=everything):
        out.print(part, soft_wrap=isinstance(part, Text), highlight=False)


def write(
    report: GateReport,
    runs: tuple[Run, Run, Run | None],
    *,
    markdown: Path | None,
    junit: Path | None,
    as_json: Path | None,
    html: Path | None,
) -> None:
    """Writes what was asked for, each file whole or not at all."""
    from harness.gate import evidence, examples, history, page
    from harness.gate import junit as xml
    from harness.gate import markdown as comment
    from harness.series import machine_identity

    if markdown is not None:
        write_file(markdown, comment.comment(report).encode())
    if junit is not None:
        write_file(junit, xml.junit(report))
    if as_json is not None:
        write_file(as_json, evidence.evidence(report))
    if html is not None:
        past = history.read(runs[1].path.parent, before=runs[1].header.run)
        machine = machine_identity(runs[1].header.context)
        write_file(html, page.page(report, examples.of_runs(*runs), past, machine=machine))
