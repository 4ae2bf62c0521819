"""The verbs of `quant-harness`; the only file that prints or exits."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import cli_env
from harness.errors import EXIT_BUG, EXIT_OK, BadInput, HarnessError
from harness.version import __version__

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from harness.spec import Cell, Measurement, Record
    from harness.suite.plan import Plan

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

INTERRUPTED = 130

TOLD_SECONDS = 10.0
"""Between two lines that say how much of a model is fetched, where lines cannot be overwritten."""

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
    "  quant-harness results results/quick --format csv > quick.csv",
)
app.add_typer(cli_env.app, name="env")
out = Console()
err = Console(stderr=True)

SuiteArgument = Annotated[str, typer.Argument(metavar="SUITE", help="A suite file (.yaml), or the name of a built-in suite.")]
ResultsArgument = Annotated[Path, typer.Argument(metavar="RESULTS", help="A run file (.jsonl), or a suite's results folder.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; default: what the suite says (auto).")]


class Format(StrEnum):
    """Formats of `results`."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    parquet = "parquet"


class Listing(StrEnum):
    """Formats of `methods`."""

    table = "table"
    json = "json"


@app.command(
    epilog="Examples: quant-harness run quick · quant-harness run my.yaml --device cuda --results nightly/results",
)
def run(
    suite: SuiteArgument,
    results: Annotated[Path, typer.Option("--results", help="Folder for results; the suite's name is added.")] = Path("results"),
    report: Annotated[Path | None, typer.Option("--report", help="Where the HTML goes; default reports/SUITE.html.")] = None,
    cache: cli_env.CacheOption = None,
    device: DeviceOption = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; default: all that this process may use.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything again, into a new run file.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure again what failed before.")] = False,
) -> None:
    """Run a suite (or go on where it was stopped), then write its report."""
    from harness.run import runner, workspace

    cache = cache or workspace.default_cache()
    planned = _plan(suite, device, cache, here=True)
    target = report or Path("reports") / f"{planned.suite.name}.html"
    _check_writable(target)
    _list_unsupported(planned)
    settings = runner.Settings(results=results, cache=cache, fresh=fresh, retry_failed=retry_failed, threads=threads)
    started = time.monotonic()
    try:
        with _Progress() as progress:
            path = runner.run(planned, settings, progress)
    except KeyboardInterrupt:
        err.print("stopped; everything measured so far is kept: the same command goes on from here", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    _write_report(path, target)
    from harness import store
    from harness.report import failed, terminal_table
    from harness.report.view import view

    shown = view(store.read(path))
    out.print(terminal_table(shown))
    for line in failed.lines(shown):
        cli_env.say(line)
    out.print(f"results  {path}", soft_wrap=True, highlight=False)
    out.print(f"report   {target}", soft_wrap=True, highlight=False)
    out.print(f"took     {_clock(time.monotonic() - started)}", highlight=False)
    if failed.all_on_bad_input(shown):
        raise BadInput("every question failed on what it was given; correct that (see above), and run the same command again")


@app.command(epilog="Examples: quant-harness plan quick · quant-harness plan suites/llama-3.2-1b.yaml --json")
def plan(
    suite: SuiteArgument,
    device: DeviceOption = None,
    cache: cli_env.CacheOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show every cell of a suite with its estimated size, and every combination that is not supported with the reason."""
    from harness import envs
    from harness.run import workspace
    from harness.spec import to_json

    cache = cache or workspace.default_cache()
    planned = _plan(suite, device, cache, here=False)
    places = [cli_env.place_of(p.cell.method) for p in planned.cells]
    states = [envs.status(e, cache) for e in envs.needed(p.cell.method for p in planned.cells)]
    if as_json:
        wanted = [{"name": s.environment.name, "state": s.state, "cells": places.count(s.environment.name)} for s in states]
        asked = to_json(planned.record(weights={}))
        del asked["weights"]  # known once the models are here
        data = {"device": planned.device, **asked, "environments": wanted}
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        return
    table = Table(title=f"{planned.suite.name}: {len(planned.cells)} cells on {planned.device}", title_justify="left")
    for column in ("model", "scheme", "bits per weight", "artifact", "questions", *(["environment"] if states else [])):
        table.add_column(column, justify="left" if column in {"model", "scheme", "environment"} else "right")
    for p, place in zip(planned.cells, places, strict=True):
        size = "unknown until fetched" if p.estimated_bytes is None else f"{p.estimated_bytes / 1e6:,.1f} MB"
        mark = " (baseline)" if p.baseline else ""
        row = [p.cell.model.name, p.cell.label + mark, f"{p.estimated_bpw:.2f}", size, str(len(p.questions))]
        table.add_row(*row, *([place] if states else []))
    out.print(table)
    for line in _budget(planned):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    for note in planned.notes:
        cli_env.say(f"note         {note}")
    for p in planned.cells:
        if p.note:
            cli_env.say(f"note         {p.cell.name}: {p.note}")
    for status in states:
        name, cells = status.environment.name, places.count(status.environment.name)
        if status.unwell:
            cli_env.say(f"environment  {name} is built and broken for {', '.join(status.unwell)}: {status.detail}")
        elif status.state != "ready":
            what = f"must be built first for {cells} cell{'s' if cells != 1 else ''}"
            cli_env.say(f"environment  {name} ({status.state}) {what}: `run` builds it, or quant-harness env build {name}")
    _list_unsupported(planned)


@app.command(epilog="Example: quant-harness report results/quick -o quick.html")
def report(
    results: ResultsArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
) -> None:
    """Render the report of stored results; needs neither torch nor the machine that measured."""
    _write_report(results, output)
    out.print(f"report   {output}", soft_wrap=True, highlight=False)


@app.command(
    epilog="Examples: quant-harness results results/quick · quant-harness results results/quick --format parquet -o quick.parquet"
)
def results(
    results: ResultsArgument,
    format: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file instead of the terminal.")] = None,
) -> None:
    """Print stored results, one row per cell and metric."""
    from harness import store
    from harness.report.frame import export

    data = export(store.read(results), format.value)
    if output is not None:
        _write_file(output, data)
    elif format is Format.parquet and sys.stdout.isatty():
        raise BadInput("parquet is binary; name a file with -o FILE, or redirect standard output")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@app.command(epilog="Example: quant-harness methods --format json")
def methods(
    format: Annotated[Listing, typer.Option("--format", help="How to print.")] = Listing.table,
) -> None:
    """List method x bits x engine x environment: what runs here, and the command that adds what is missing.

    What other packages offer (methods, engines, probes) is listed with the package and its version."""
    from harness import plugins
    from harness.methods import METHODS

    offered = plugins.load()
    packages = {p.name: p.provider for p in offered.plugins if p.kind == "method"}
    here = cli_env.here()
    if format is Listing.json:
        rows = [
            {
                "method": method.name,
                "title": method.title,
                "bits": list(method.bits),
                "engine": method.engine,
                "environment": method.environment,
                "kernel_cpu": {f"{b:g}": k for b, k in method.kernel_cpu.items()},
                "kernel_cuda": {f"{b:g}": k for b, k in method.kernel_cuda.items()},
                "options": {name: option.default for name, option in method.options.items()},
                "running_options": {name: option.default for name, option in method.running_options.items()},
                "state": here[method.name].state,
                "install": here[method.name].install,
                "source": method.source,
                "package": packages.get(method.name),
            }
            for method in METHODS.values()
        ]
        beside = [(p, "ready") for p in offered.plugins if p.kind != "method"]
        beside += [(r.plugin, f"left out: {r.why}") for r in offered.refused]
        rows += [{p.kind: p.name, "state": state, "package": p.provider} for p, state in beside]
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    columns = ["method", "what", "kernels on CPU, by bits", "on CUDA", "runs in", "environment", "here"]
    for column in columns + ["from"] * bool(packages):
        table.add_column(column, no_wrap=column == "method")
    for method in METHODS.values():
        kernels = (_kernels(method.kernel_cpu), _kernels(method.kernel_cuda))
        state = escape(here[method.name].install or here[method.name].state)  # "[gguf]" is no markup
        row = [*map(escape, (method.name, method.title, *kernels, method.engine, method.environment)), state]
        table.add_row(*row, *([escape(packages.get(method.name, ""))] if packages else []))
    out.print(table)
    for plugin in offered.plugins:
        if plugin.kind != "method":
            cli_env.say(f"{plugin.kind} {plugin.name} from {plugin.provider}")
    for refused in offered.refused:
        cli_env.say(str(refused))
    out.print(
        "real: computes on packed weights; slow: unpacks them at each call; simulated: holds them in 16 bits; none: cannot run"
    )


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
    """Entry point: runs a verb and exits 0, 2 (bad input, said in words), 3 (our bug, with the traceback), 130 (Ctrl-C)."""
    warnings.showwarning = _show_warning
    try:
        app(arguments, standalone_mode=True)
    except HarnessError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output left: nothing is wrong
        sys.exit(EXIT_OK)
    except Exception:
        traceback.print_exc()
        err.print("this is a bug in quant-harness; everything measured so far is kept", style="red", markup=False)
        sys.exit(EXIT_BUG)


def _plan(suite: str, device: str | None, cache: Path, *, here: bool) -> Plan:
    """The plan of a suite; `here`: the device has to be in this machine."""
    from harness.suite import file, matrix

    path = file.find(suite)
    chosen = matrix.choose_device(device or file.load(path).suite.device, here=here)
    return matrix.plan(path, device=chosen, cache=cache)


def _budget(planned: Plan) -> list[str]:
    """What is scored until a verdict, in words."""
    from harness.probes import sequential

    asked = {q.subject: wish for p in planned.cells for q in p.questions if (wish := sequential.settings(q)) is not None}
    return [sequential.words(next(iter(asked.values())), list(asked))] if asked else []


def _list_unsupported(planned: Plan) -> None:
    for square in planned.unsupported:
        out.print(f"unsupported  {square.cell.name}: {square.reason}", markup=False, highlight=False, soft_wrap=True)


def _write_report(results: Path, target: Path) -> None:
    from harness import store
    from harness.report import render

    _write_file(target, render(store.read(results)))


def _write_file(target: Path, data: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    except OSError as error:
        raise BadInput(f"{target}: cannot be written ({error.strerror}); name another file") from None


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


def _kernels(by_bits: Mapping[float, str]) -> str:
    kinds: dict[str, list[str]] = {}
    for bits, kind in by_bits.items():
        kinds.setdefault(kind, []).append(f"{bits:g}")
    return "; ".join(f"{kind} {' '.join(bits)}" for kind, bits in kinds.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if category.__module__.startswith("harness"):
        err.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _said(first: Measurement) -> str:
    """An answer's first number in a line."""
    if first.unit == "verdict":
        from harness.report.numbers import show

        return f"{show(first.value, first.unit)} after {first.n} items"
    return f"{first.metric} {first.value:.5g} {first.unit}"


class _Progress:
    """A `runner.Observer` that shows one live line for the running cell and an overall bar; plain lines when piped."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._all: TaskID | None = None
        self._now: TaskID | None = None
        self._done = 0
        self._total = 0
        self._started = time.monotonic()
        self._answered = 0
        self._told: dict[str, float] = {}  # when a line said last how much of something is fetched

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def fetching(self, what: str, done: int, total: int) -> None:
        line = f"fetching {what}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        if out.is_terminal:
            end = "\n" if done == total else ""
            out.print(f"\r{line}", end=end, markup=False, highlight=False, soft_wrap=True)
        elif what not in self._told or done == total or time.monotonic() - self._told[what] > TOLD_SECONDS:
            self._told[what] = time.monotonic()
            out.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(self, *, run: Path, questions: int, stored: int) -> None:
        self._done, self._total, self._started = stored, questions, time.monotonic()
        if stored:
            out.print(
                f"{stored} of {questions} questions are answered in {run}: going on from there", highlight=False, soft_wrap=True
            )
        if out.is_terminal and questions > stored:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=out,
                transient=True,
                refresh_per_second=1,  # drawing takes CPU time from what is being timed
            )
            self._all = self._bar.add_task("all", total=questions, completed=stored, left="")
            self._now = self._bar.add_task("", total=None, left="")
            self._bar.start()

    def doing(self, cell: Cell, what: str) -> None:
        if self._bar is not None and self._now is not None:
            self._bar.reset(self._now, description=f"{cell.name}: {what}", total=None)

    def answered(self, record: Record) -> None:
        self._done += 1
        self._answered += 1
        if self._bar is not None and self._all is not None:
            self._bar.update(self._all, completed=self._done, left=self._time_left())
        if record.failure is not None:
            what = f"{record.question.probe} {record.question.subject}".strip()
            self.note(f"{record.status}: {record.cell.name}: {what}: {record.failure.message}")
        elif self._bar is None:
            first = record.answer.measurements[0] if record.answer and record.answer.measurements else None
            value = _said(first) if first else "done"
            what = f"{record.question.probe} {record.question.subject}".strip()
            line = f"[{self._done}/{self._total}] {record.cell.name}: {what}: {value} ({record.seconds:.1f} s)"
            out.print(line, markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        first = text.strip().splitlines()[0] if text.strip() else ""
        out.print(first, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        """From the mean time of an answer in this invocation: cells of a matrix take alike."""
        rate = (time.monotonic() - self._started) / self._answered
        return f"about {_clock(rate * (self._total - self._done))} left"


if __name__ == "__main__":
    main()
