"""The verbs of `quant-harness`. What a person reads is printed here and in `cli_env.py`."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import (
    cli_announce,
    cli_bisect,
    cli_env,
    cli_export,
    cli_gate,
    cli_history,
    cli_progress,
    cli_publish,
    cli_recommend,
    cli_verify,
)
from harness.cli_publish import unswept, waiting, write_file
from harness.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_OK, BadInput, HarnessError, readable
from harness.version import __version__

if TYPE_CHECKING:
    from harness.costs import Expected
    from harness.envs import Missing, Status
    from harness.forecast.estimate import CellPlan, Forecast
    from harness.suite.plan import Plan

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

INTERRUPTED, READER_LEFT = 130, 141

app = typer.Typer(
    name="quant-harness",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Quantize a model every way worth trying, measure each result honestly, and see which one to deploy.\n\n"
    "[bold]Examples[/bold]\n\n"
    "  quant-harness run quick                     the embedded model, no download, a few minutes\n\n"
    "  quant-harness plan suites/qwen3-0.6b.yaml   the cells that would run, and why others cannot\n\n"
    "  quant-harness methods                       methods x bits, and what is missing here\n\n"
    "  quant-harness env list                      environments of methods that conflict with the others\n\n"
    "  quant-harness results results/quick --format csv > quick.csv\n\n"
    "  quant-harness recommend results/quick --max-memory 6GiB --context 8192 --max-loss 1pp\n\n"
    "  quant-harness gate latest results/quick     whether the newest run is worse than the one before",
)
app.add_typer(cli_env.app, name="env")
app.command(epilog=cli_publish.RESULTS_EPILOG)(cli_publish.results)
app.command(epilog=cli_publish.FIGURE_EPILOG)(cli_publish.figure)
app.command(epilog=cli_publish.SITE_EPILOG)(cli_publish.site)
app.command(epilog=cli_publish.METHODS_EPILOG)(cli_publish.methods)
app.command("recommend", epilog=cli_recommend.EPILOG)(cli_recommend.recommend)
app.command("export", epilog=cli_export.EPILOG)(cli_export.export)
app.command("gate", epilog=cli_gate.EPILOG)(cli_gate.gate)
app.command("history", epilog=cli_history.HISTORY_EPILOG)(cli_history.history)
app.command("accept", epilog=cli_history.ACCEPT_EPILOG)(cli_history.accept)
app.command("announce", epilog=cli_announce.EPILOG)(cli_announce.announce)
app.command("bisect", epilog=cli_bisect.EPILOG)(cli_bisect.bisect)
app.command(epilog="Examples: quant-harness verify results/quick · quant-harness verify results")(cli_verify.verify)
out = Console()
err = Console(stderr=True)

SuiteArgument = Annotated[str, typer.Argument(metavar="SUITE", help="A suite file (.yaml), or the name of a built-in suite.")]
ResultsArgument = Annotated[Path, typer.Argument(metavar="RESULTS", help="A run file (.jsonl), or a suite's results folder.")]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder for results; the suite's name is added.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; default: all that this process may use.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; default: what the suite says (auto).")]

NextOption = Annotated[
    bool,
    typer.Option("--next", help="Go on with a run that was interrupted; begin a new one if the last is finished: for nights."),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="KEY",
        help="Ask this question and no other: a key of `plan --json` or `results` (8 digits are enough), or a name as in "
        "'MODEL / CELL: PROBE SUBJECT' or 'MODEL / CELL'; may be repeated.",
    ),
]

ParanoidOption = Annotated[
    bool, typer.Option("--paranoid", help="Hash every file again, also those that seem unchanged since they were hashed.")
]


@app.command(
    epilog="Examples: quant-harness run quick · quant-harness run my.yaml --device cuda --results nightly/results · "
    "quant-harness run quick --only 'reference / rtn 4-bit' --fresh",
)
def run(
    suite: SuiteArgument,
    results: ResultsOption = Path("results"),
    report: Annotated[Path | None, typer.Option("--report", help="Where the HTML goes; default reports/SUITE.html.")] = None,
    cache: cli_env.CacheOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask every question again, into a new run file; keep artifacts.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure again what failed before.")] = False,
    next_: NextOption = False,
    only: OnlyOption = None,
    paranoid: ParanoidOption = False,
) -> None:
    """Run a suite (or go on where it was stopped), then write its report.

    With --only, its run file goes into results/SUITE/confirm, where no gate and no report takes it for a whole run, and a report
    is written where --report names one."""
    from harness.run import runner, workspace

    cache = cache or workspace.default_cache()
    workspace.check_writable(results, "--results")
    workspace.check_writable(cache, "--cache")
    planned = _plan(suite, device, cache, here=True)
    target = report or (None if only else Path("reports") / f"{planned.suite.name}.html")
    if target is not None:
        _check_writable(target)
    if not only:
        _list_unsupported(planned)
    settings = runner.Settings(
        results=results,
        cache=cache,
        fresh=fresh,
        retry_failed=retry_failed,
        threads=threads,
        another=next_,
        only=tuple(only or ()),
        paranoid=paranoid,
    )
    started = time.monotonic()
    try:
        with cli_progress.Progress() as progress:
            path = runner.run(planned, settings, progress)
    except KeyboardInterrupt:
        err.print("stopped; everything measured so far is kept: the same command goes on from here", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    _tell(path, target, seconds=time.monotonic() - started, expected=progress.expected)


@app.command(
    epilog="Examples: quant-harness plan quick · quant-harness plan suites/llama-3.2-1b.yaml --json · "
    "quant-harness plan my.yaml --results nightly/results"
)
def plan(
    suite: SuiteArgument,
    results: ResultsOption = Path("results"),
    device: DeviceOption = None,
    cache: cli_env.CacheOption = None,
    threads: ThreadsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    paranoid: ParanoidOption = False,
) -> None:
    """Show every cell of a suite with its estimated size, what `run` will take, and every combination that is not supported with
    the reason.

    Time, memory and disk are ranges, each with its source: what this machine took before (the run files under --results), else a
    rate measured now, else unknown. An example: "12 to 18 s (same)", because this machine has done the same before."""
    from harness import envs
    from harness.run import expect, workspace
    from harness.spec import to_json

    cache = cache or workspace.default_cache()
    workspace.check_writable(results, "--results")
    workspace.check_writable(cache, "--cache")
    planned = _plan(suite, device, cache, here=False)
    places = [envs.made_and_answered(p.cell, planned.device) for p in planned.cells]
    states = [envs.status(e, cache) for e in envs.needed((p.cell for p in planned.cells), planned.device)]
    if paranoid:
        expect.hash_again(planned, cache)
    forecast, unread = expect.before_run(planned, results=results, cache=cache, threads=threads)
    if as_json:
        wanted = [{"name": s.environment.name, "state": s.state, "cells": _needing(s, places)} for s in states]
        asked = to_json(planned.record(weights={}))
        del asked["weights"]  # known once the models are here
        expect.add_keys(asked, planned, cache=cache)
        missing = [{"packages": m.packages, "install": m.install, "cells": cells} for m, cells in _missing(planned).items()]
        known = {"environments": wanted, "missing": missing, "forecast": to_json(forecast)}
        data = {"device": planned.device, **asked, **known}
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        return
    table = Table(title=f"{escape(planned.suite.name)}: {len(planned.cells)} cells on {planned.device}", title_justify="left")
    bits = ("bits per\nweight of\nlayers", "bits per\nweight of\nthe model")
    for column in ("model", "scheme", *bits, "artifact", "questions", *(["environment"] if states else [])):
        table.add_column(column, justify="left" if column in {"model", "scheme", "environment"} else "right")
    for p, place in zip(planned.cells, places, strict=True):
        most = "≤ " if p.bits_unknown else ""
        size = "unknown until fetched" if p.estimated_bytes is None else f"{most}{p.estimated_bytes / 1e6:,.1f} MB"
        mark = " (baseline)" if p.baseline else ""
        whole = p.estimated_bits_of_the_model
        widths = [f"{most}{p.estimated_bpw:.2f}", "" if whole is None else f"{most}{whole:.2f}"]
        row = [_in_a_table(p.cell.model.name), _in_a_table(p.cell.label) + mark, *widths, size, str(len(p.questions))]
        shown = " + ".join(name for name in place if name != envs.MAIN) or envs.MAIN
        table.add_row(*row, *([shown] if states else []))
    out.print(table)
    _show_forecast(forecast, unread, cache)
    _say_what_holds(planned)
    _say_what_is_lacking(planned, states, places)
    _list_unsupported(planned)


def _in_a_table(name: str) -> str:
    """A name as a table of rich's shows it."""
    from harness.report.terminal import named

    return escape(named(name))


def _needing(status: Status, places: Sequence[Sequence[str]]) -> int:
    """How many cells need an environment; `places`: the environments of each."""
    return sum(status.environment.name in place for place in places)


def _say_what_is_lacking(planned: Plan, states: Sequence[Status], places: Sequence[Sequence[str]]) -> None:
    """Environments that are to be built first, and packages without which cells would fail."""
    for status in states:
        name, cells = status.environment.name, _needing(status, places)
        if status.unwell:
            cli_env.say(f"environment  {name} is built and broken for {', '.join(status.unwell)}: {status.detail}")
        elif status.state != "ready":
            what = f"must be built first for {cells} cell{'s' if cells != 1 else ''}"
            cli_env.say(f"environment  {name} ({status.state}) {what}: `run` builds it, or quant-harness env build {name}")
    for lacking, needing in _missing(planned).items():
        what = f"{' and '.join(lacking.packages)} {'is' if len(lacking.packages) == 1 else 'are'} not installed, so"
        many = needing[0] if len(needing) == 1 else f"{len(needing)} cells ({needing[0]} ...)"
        cli_env.say(f"missing      {what} {many} would fail: {lacking.install}")


def _tell(path: Path, target: Path | None, *, seconds: float, expected: Expected | None) -> None:
    """Writes the report into `target`, if there is one, and says what a run has measured. BadInput where nothing was."""
    from harness import store
    from harness.forecast import words
    from harness.report import failed, terminal_table
    from harness.report.view import view

    if target is not None:
        _write_report([path], target)
    shown = view(store.read(path))
    out.print(terminal_table(shown))
    for line in failed.lines(shown):
        cli_env.say(line)
    out.print(f"results  {path}", soft_wrap=True, highlight=False)
    if target is not None:
        out.print(f"report   {target}", soft_wrap=True, highlight=False)
    took = f"{words.clock(seconds)}{words.against(expected)}"
    out.print(f"took     {took}", highlight=False, soft_wrap=True)
    if failed.all_on_bad_input(shown):
        raise BadInput("every question failed on what it was given; correct that (see above), and run the same command again")


def _say_what_holds(planned: Plan) -> None:
    """What is to be known of a plan beside its cells: budgets, calibration, notes."""
    from harness.suite import calibration

    for line in _budget(planned):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    for text in planned.calibrated_on:
        cli_env.say(f"calibration  {calibration.in_words(text)}")
    for note in planned.notes:
        cli_env.say(f"note         {note}")
    for p in planned.cells:
        if p.note:
            cli_env.say(f"note         {p.cell.name}: {p.note}")
    for name, grid in planned.source_grids.items():
        cli_env.say(f"note         {grid.warning(name)}")


def _missing(planned: Plan) -> dict[Missing, list[str]]:
    """What this environment lacks, with the names of the planned cells that need it."""
    from harness import envs
    from harness.methods import METHODS, prequantized

    lacking: dict[Missing, list[str]] = {}
    for p in planned.cells:
        absent = envs.missing(METHODS[p.cell.method])
        own = p.cell.method == prequantized.NAME and p.cell.running.engine == METHODS[prequantized.NAME].engine
        if absent is None and own and (package := prequantized.missing(p.cell.scheme)):
            absent = envs.Missing(packages=(package.package,), install=package.install)
        if absent is not None:
            lacking.setdefault(absent, []).append(p.cell.name)
    return lacking


@app.command(
    epilog="Examples: quant-harness report results/quick -o quick.html · quant-harness report results/quick other/results/quick"
)
def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...", help="Run files (.jsonl) or results folders; the first is the subject, others stand beside it."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
) -> None:
    """Render the report of stored results; needs neither torch nor the machine that measured.

    Of several runs (two machines, two dates) the first is the report's subject; a section sets the same cells side by side. Of a
    folder the newest run is the subject, and a section shows how its finished runs went."""
    _write_report(results, output)
    out.print(f"report   {output}", soft_wrap=True, highlight=False)


def _version(show: bool) -> None:
    if show:
        out.print(f"quant-harness {__version__}", highlight=False)
        raise typer.Exit(EXIT_OK)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a verb and exits 0, 2 (bad input, said in words), 3 (our bug, with the traceback), 130 (Ctrl-C), 141 (the
    reader of our output left)."""
    warnings.showwarning = _show_warning
    Console.on_broken_pipe = _reader_left  # type: ignore[method-assign]  # rich leaves with 1, which is a gate's "no"
    stdout = sys.stdout
    try:
        app(arguments, standalone_mode=True)
    except SystemExit:
        if sys.stdout is not stdout or not _flushed():  # typer has met a closed pipe, and left with 1 as well
            _leave_quietly()
        raise
    except HarnessError as error:
        err.print(readable(f"error: {error}"), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _leave_quietly()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            where = f"{error.filename}: " if error.filename else ""
            advice = (
                "free space, or choose other folders with --cache, --results and --report; everything measured so far is kept"
            )
            said = f"error: {where}cannot be read or written ({error.strerror}); {advice}"
            err.print(said, style="red", markup=False, highlight=False, soft_wrap=True)
            sys.exit(EXIT_BAD_INPUT)
        traceback.print_exc()
        err.print("this is a bug in quant-harness; everything measured so far is kept", style="red", markup=False)
        sys.exit(EXIT_BUG)


def _reader_left(self: Console) -> NoReturn:
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _flushed() -> bool:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    return True


def _leave_quietly() -> NoReturn:
    """Leaves as a program does that SIGPIPE ends: `| head` has had enough. No verdict: a gate that nobody read is not green."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(READER_LEFT)


_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""A disk that is full, or a place that must not be read or written: no bug of ours."""


def _plan(suite: str, device: str | None, cache: Path, *, here: bool) -> Plan:
    """The plan of a suite; `here`: the device has to be in this machine."""
    from harness.suite import file, matrix

    path = file.find(suite)
    chosen = matrix.choose_device(device or file.load(path).suite.device, here=here)
    planned = matrix.plan(path, device=chosen, cache=cache)
    absent = None if here else matrix.not_here(chosen)
    return planned if absent is None else replace(planned, notes=(absent, *planned.notes))


def _show_forecast(forecast: Forecast, unread: Sequence[str], cache: Path) -> None:
    """A table of what each cell will take, all of it in a sentence, and what will not fit."""
    from harness.forecast import words
    from harness.measure import machine

    on_gpu = forecast.whole.device_bytes is not None
    table = Table(title="forecast", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ["cell", "time", "memory", *(["GPU memory"] if on_gpu else []), "disk"]:
        table.add_column(column, justify="left" if column == "cell" else "right")
    models = {cell.name.partition(" / ")[0] for cell in forecast.cells}
    for cell in forecast.cells:
        name = cell.name.partition(" / ")[2] if len(models) == 1 else cell.name  # a model that is alone goes without saying
        table.add_row(_in_a_table(name), *_forecast_row(cell, on_gpu=on_gpu))
    out.print(table)
    cli_env.say(f"forecast     {words.whole(forecast)}")
    for line in words.legend(forecast):
        cli_env.say(f"             {line}")
    room, memory = machine.free_disk_bytes(cache), machine.available_memory_bytes()
    lines = words.warnings(forecast, free_disk_bytes=room, free_memory_bytes=memory)
    for line in [*lines, *filter(None, [words.unknown(forecast)]), *(f"not in the forecast: {each}" for each in unread)]:
        cli_env.say(f"forecast     {line}")


def _forecast_row(cell: CellPlan, *, on_gpu: bool) -> list[str]:
    from harness.forecast import words

    if not cell.questions:
        return ["answered already" if cell.answered else "nothing is asked", "", *([""] if on_gpu else []), ""]
    seen = cell.forecast
    memory = [seen.host_bytes, *([seen.device_bytes] if on_gpu else [])]
    left = f", {cell.answered} answered" if cell.answered else ""
    return [
        words.sourced(seen.seconds, "seconds") + left,
        *(words.sourced(each, "bytes") for each in (*memory, seen.disk_bytes)),
    ]


def _budget(planned: Plan) -> list[str]:
    """What is scored until a verdict, in words."""
    from harness.probes import sequential

    asked = {q.subject: wish for p in planned.cells for q in p.questions if (wish := sequential.settings(q)) is not None}
    return [sequential.words(next(iter(asked.values())), list(asked))] if asked else []


def _list_unsupported(planned: Plan) -> None:
    for square in planned.unsupported:
        cli_env.say(f"unsupported  {square.cell.name}: {square.reason}")


def _write_report(results: Sequence[Path], target: Path) -> None:
    from harness import store
    from harness.gate import trends_section
    from harness.report import render

    with waiting("reading") as say, unswept():
        runs = [store.read(path) for path in results]
        if len({(run.header.run, run.path.resolve()) for run in runs}) < len(runs):
            raise BadInput("the same run is named twice; name runs of two machines or two dates")
        say(f"comparing {sum(len(run.plan.cells) for run in runs)} cells and drawing the page")
        page = render(*runs, past=trends_section.of_folder(results[0]) if results[0].is_dir() else None)
    write_file(target, page)


def _check_writable(target: Path) -> None:
    """BadInput now for a report that could not be written when everything is measured."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new = not target.exists()
        with target.open("ab"):
            pass
        if new:
            target.unlink()
    except OSError as error:
        raise BadInput(f"{target}: cannot be written ({error.strerror}); name another file with --report") from None


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if category.__module__.startswith("harness"):
        err.print(readable(f"warning: {message}"), style="yellow", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
