"""The verbs `accept` and `history`: what a suite's runs are held against, and how its numbers went. Prints, like cli.py."""

from __future__ import annotations

import datetime
import getpass
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.cli_env import say
from harness.cli_publish import waiting
from harness.errors import BadInput

if TYPE_CHECKING:
    from harness.gate.trends import Step, Trend
    from harness.report.numbers import Display

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

MOST_CAUSES = 3
"""Differences that a line of the table names."""

ACCEPT_EPILOG = (
    "Examples: quant-harness accept results/nightly/20261130T020000Z-1234abcd.jsonl --why 'faster kernel, 0.2 points' · "
    "quant-harness accept latest --results results/nightly"
)
HISTORY_EPILOG = (
    "Examples: quant-harness history results/nightly · quant-harness history results/nightly tpot --since 2026-11-01 · "
    "quant-harness history results/nightly --regressed"
)
out = Console()


def history(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A suite's results folder.")],
    metric: Annotated[
        str | None, typer.Argument(metavar="[METRIC]", help="A metric by its name; default: those that a run's table ends with.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Only this model; may be given again.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Only this method; may be given again.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Only nights from this day on: 2026-11-30.")] = None,
    regressed: Annotated[bool, typer.Option("--regressed", help="Only what got worse since the accepted run.")] = False,
) -> None:
    """Show how each cell's numbers went, night by night: first, accepted and newest value, drift per week, and where the level
    changed with what else changed that night.

    Read from the last lines of finished runs; needs neither torch nor the machine that measured. `gate` judges a night."""
    from harness.gate import history as past
    from harness.gate import journal, trends

    if not results.is_dir():
        what = "is a file" if results.exists() else "no such folder"
        raise BadInput(f"{results}: {what}; name a suite's results folder, as in results/nightly")
    with waiting("reading ..."):
        found = past.nights(results)
        accepted = journal.read(results).newest
        wanted = trends.Wanted(
            metric=metric, models=tuple(model or ()), methods=tuple(method or ()), since=since, regressed=regressed
        )
        shown = trends.trends(found.nights, accepted, wanted)
    for line in found.left_out:
        say(line)
    if not shown:
        say(f"no series got worse in {len(found.nights)} nights")
    for series in trends.by_about(shown).values():
        _show(series, several=len({t.cell.model for t in shown}) > 1)
    base = f"accepted is {accepted}" if accepted else "no run was accepted yet: `quant-harness accept RUN` names a baseline"
    say(f"{len(found.nights)} finished runs; {base}")


def _show(series: Sequence[Trend], *, several: bool) -> None:
    """One metric's series: a line for each cell, and beneath where they changed. `several`: cells are called by models, too."""
    from harness.gate import trends
    from harness.report.numbers import display, show
    from harness.report.terminal import named

    about = series[0].about
    how = display(about.unit, [value for trend in series for value in trend.values])
    nights = max(len(trend.points) for trend in series)
    title = f"{about.title}{f' ({how.label})' if how.label else ''}: {nights} nights"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    with_accepted = any(trend.accepted is not None for trend in series)
    for heading in ("cell", "trend", "first", *(["accepted"] if with_accepted else []), "last", "a week"):
        table.add_column(heading, justify="left" if heading in {"cell", "trend"} else "right", no_wrap=heading != "cell")
    names = [named(f"{t.cell.model} / {t.cell.label}" if several else t.cell.label) for t in series]
    width = max(8, min(40, out.width - 62 - min(24, max(map(len, names)))))
    for name, trend in zip(names, series, strict=True):
        ends = [trend.points[0], *([trend.accepted] if with_accepted else []), trend.points[-1]]
        numbers = ["–" if point is None else show(point.figure.value, about.unit, how) for point in ends]
        line = [name, trends.sparkline(trend.values, width), *numbers, trends.drift(trend, how)]
        table.add_row(*map(escape, line), style="red" if trend.regressed else None)
    out.print(table)
    for name, trend in zip(names, series, strict=True):
        if trend.regressed:
            say(f"{name} {trend.regressed}")
        for step in trend.steps:
            say(f"{name}, {_changed(step, about.unit, how)}")
    say("")


def _changed(step: Step, unit: str, how: Display) -> str:
    """`2026-11-30: 61.2 → 63.0 (p 0.001); package torch 2.12 → 2.13`."""
    from harness.gate.trends import said
    from harness.report.numbers import show

    what = [said(difference) for difference in step.differences]
    more = f" and {len(what) - MOST_CAUSES} more" if len(what) > MOST_CAUSES else ""
    because = f"; {', '.join(what[:MOST_CAUSES])}{more}" if what else "; nothing else changed that night"
    return f"{step.point.date}: {show(step.before, unit, how)} → {show(step.after, unit, how)} (p {step.p:.3f}){because}"


def accept(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run file (.jsonl), a suite's results folder, or a word: latest.")],
    why: Annotated[str, typer.Option("--why", help="The reason, for whoever reads the history.")] = "",
    who: Annotated[str | None, typer.Option("--who", help="Who accepts it; default: git's user.name, else $USER.")] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", help="The suite's results folder that RUN lies in: where a word or a run's name is looked up."),
    ] = None,
) -> None:
    """Make RUN the baseline: from now on its suite's runs are held against it as well, and a loss that it has is no alarm.

    A line in the folder's journal says who did so, when and why."""
    from harness.gate import choose, journal
    from harness.report.terminal import plain

    chosen = choose.of_folder(run, results)
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = journal.accept(chosen.path, who=who or _who(), when=when, why=why)
    reason = f": {line.why}" if line.why else ""
    said = plain(f"accepted {line.run} ({line.who}, {line.when}{reason}); in {chosen.path.parent / journal.NAME}")
    out.print(said, markup=False, highlight=False, soft_wrap=True)


def _who() -> str:
    """The name that git signs with, or the system's."""
    git = shutil.which("git")
    asked = [git, "config", "user.name"] if git else ["true"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
        name = done.stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        name = ""
    try:
        return name or getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "somebody"
