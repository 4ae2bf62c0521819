"""The verbs `accept` and `history`: what a suite's runs are held against, and how its numbers went. Prints, like cli.py."""

from __future__ import annotations

import datetime
import getpass
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

ACCEPT_EPILOG = (
    "Examples: quant-harness accept results/nightly/20261130T020000Z-1234abcd.jsonl --why 'faster kernel, 0.2 points' · "
    "quant-harness accept latest --results results/nightly"
)
out = Console()


def accept(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run file (.jsonl), a suite's results folder, or a word: latest.")],
    why: Annotated[str, typer.Option("--why", help="The reason, for whoever reads the history.")] = "",
    who: Annotated[str | None, typer.Option("--who", help="Who accepts it; default: git's user.name, else $USER.")] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Where a word is looked up: a suite's results folder.")
    ] = None,
) -> None:
    """Make RUN the baseline: from now on its suite's runs are held against it as well, and a loss that it has is no alarm.

    A line in the folder's journal says who did so, when and why."""
    from harness.gate import choose, journal

    chosen = choose.candidate(run, results)
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = journal.accept(chosen.path, who=who or _who(), when=when, why=why)
    reason = f": {line.why}" if line.why else ""
    said = f"accepted {line.run} ({line.who}, {line.when}{reason}); in {chosen.path.parent / journal.NAME}"
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
