"""The verb `export`: a measured artifact as a folder, and onto the hub. Prints, like cli.py, which it is a part of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import cli_env, cli_progress
from harness.errors import BadInput

if TYPE_CHECKING:
    from harness.costs import Expected
    from harness.run.export import Export
    from harness.spec import Cell

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

COPYING = "copy"
"""What `run/export.py` calls its last step."""

EPILOG = (
    'Examples: quant-harness export results/quick "gptq 4-bit" --to gptq-4bit · '
    'quant-harness export results/quick "reference/gptq 4-bit" --to gptq-4bit --push OWNER/NAME'
)


def export(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A run file (.jsonl), or a suite's results folder.")],
    cell: Annotated[str, typer.Argument(metavar="CELL", help="The label of a cell, or MODEL/LABEL.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write; it must be new or empty.")],
    push: Annotated[
        str | None, typer.Option("--push", metavar="REPO", help="Upload it to this repository of the hub, OWNER/NAME.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; otherwise it is private.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what the repository holds already.")] = False,
    suite: Annotated[
        str | None, typer.Option("--suite", help="The suite to make a lost artifact again; default: as the run file says.")
    ] = None,
    cache: cli_env.CacheOption = None,
) -> None:
    """Write a measured artifact, byte for byte, into a folder that its server loads, with a model card made from the record.

    What is no longer in the cache is made again and has to have the same bytes: otherwise nothing is written, and the exit code
    is 1."""
    from harness import store
    from harness.models import upload
    from harness.report import choose
    from harness.report.view import view
    from harness.run import export as exporting
    from harness.run import workspace

    if push is None and (public or replace):
        raise BadInput("--public and --replace belong to --push; name the repository: --push OWNER/NAME")
    if push is not None:
        upload.check(push)
    run = store.read(results)
    shown = view(run)
    wish = exporting.Wish(cell=choose.cell(shown, cell), to=to, suite=suite, ask_hub=push is not None, again=push is not None)
    with _Told() as observer:
        done = exporting.export(run, shown, wish, cache or workspace.default_cache(), observer)
    _say_what_is_there(done)
    if push is not None:
        from harness.report import markdown

        message = f"{markdown.line(wish.cell.cell.name)}, measured by quant-harness"
        pushed = upload.push(done.folder, push, message=message, private=not public, replace=replace)
        kind = f"{'public' if public else 'private'}, new" if pushed.created else "there before"
        cli_env.say(f"pushed    {pushed.page} ({kind}), commit {pushed.commit[:12]}")


class _Told(cli_progress.Progress):
    """Says each step: none of them answers a question, which is what a run says."""

    def doing(self, cell: Cell, what: str, expected: Expected | None = None) -> None:
        from harness.report import markdown

        super().doing(cell, what, expected)
        if what != COPYING:
            cli_env.say(f"{markdown.line(cell.name)}: no longer in the cache, made again: {what}")


def _say_what_is_there(done: Export) -> None:
    """Where it lies, what it is, and how it is served."""
    size, count = sum(file.bytes for file in done.artifact.files), len(done.artifact.files)
    said = (
        "was there already, its card is new"
        if not done.copied
        else "made again, with the same bytes"
        if done.rebuilt
        else "copied"
    )
    cli_env.say(f"exported  {done.folder} ({size / 1e6:,.1f} MB in {count} file{'s' if count > 1 else ''}, {said})")
    cli_env.say(f"digest    {done.artifact.digest}")
    for way in done.ways:
        if way.language == "sh":
            cli_env.say(f"serve     {way.code}   ({way.runtime}, in that folder)")
    cli_env.say(f"card      {done.folder / 'README.md'}: numbers, conditions, and all ways of loading it")
