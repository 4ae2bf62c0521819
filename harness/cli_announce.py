"""The verb `announce`: one issue for each regression, one comment on a pull request. Prints, as a part of cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli_env import say
from harness.errors import BadInput

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

EPILOG = (
    "Examples: quant-harness announce verdict.json · quant-harness announce verdict.json --github OWNER/NAME · "
    "quant-harness announce verdict.json --github OWNER/NAME --pull 17"
)


def announce(
    verdict: Annotated[Path, typer.Argument(metavar="VERDICT", help="What `gate --json` wrote.")],
    github: Annotated[str | None, typer.Option("--github", metavar="OWNER/NAME", help="Token in $GITHUB_TOKEN.")] = None,
    gitlab: Annotated[str | None, typer.Option("--gitlab", metavar="PROJECT", help="Token in $GITLAB_TOKEN.")] = None,
    pull: Annotated[
        int | None, typer.Option("--pull", metavar="NUMBER", help="Comment on this pull (merge) request; touch no issue.")
    ] = None,
    url: Annotated[str, typer.Option("--url", help="The tracker's HTTP interface, where it is another than the usual one.")] = "",
) -> None:
    """Tell people what a gate found: open an issue for each regression, keep it up to date, close it when it is gone.

    One issue for one cell, however many nights. Without --github or --gitlab it says what it would do to a tracker that has no
    issues, and sends nothing."""
    from harness.announce import issues, trackers
    from harness.gate import evidence, markdown

    if github is not None and gitlab is not None:
        raise BadInput("name one tracker: --github OWNER/NAME or --gitlab PROJECT")
    try:
        report = evidence.read(verdict.read_bytes(), str(verdict))
    except OSError as error:
        how = "write it with: quant-harness gate BASE CANDIDATE --json FILE"
        raise BadInput(f"{verdict}: cannot be read ({error.strerror}); {how}") from None
    tracker: trackers.Tracker | None = None
    if github is not None:
        tracker = trackers.GitHub.at(github, url)
    elif gitlab is not None:
        tracker = trackers.GitLab.at(gitlab, url)
    if pull is not None:
        if tracker is None:
            raise BadInput("--pull needs --github OWNER/NAME or --gitlab PROJECT")
        say(tracker.comment(pull, markdown.comment(report), markdown.MARKER))
        return
    planned = list(issues.actions(report, [] if tracker is None else tracker.issues()))
    for action in planned:
        said = f"would open: {action.title}" if isinstance(action, issues.Open) else str(action)
        say(said if tracker is None else tracker.do(action))
    if not planned:
        say("nothing to tell: no cell is worse that has no issue, and no issue is to be changed or closed")
