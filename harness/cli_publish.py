"""The verbs that show and publish what is stored: `results`, `site`, `figure`; and `methods`, which lists what one may choose."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import cli_env
from harness.errors import BadInput, HarnessError
from harness.files import write_atomically

if TYPE_CHECKING:
    from harness.methods.base import Method
    from harness.report.section import Section
    from harness.report.view import View

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

out = Console()
err = Console(stderr=True)

ResultsArgument = Annotated[Path, typer.Argument(metavar="RESULTS", help="A run file (.jsonl), or a suite's results folder.")]
ManyResults = Annotated[
    list[Path],
    typer.Argument(
        metavar="RESULTS...", help="Run files (.jsonl), suites' results folders, or folders of those: all their runs."
    ),
]


class Format(StrEnum):
    """Formats of `results`: for people the first four, tidy rows the others."""

    table = "table"
    markdown = "markdown"
    latex = "latex"
    summary = "summary"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class Listing(StrEnum):
    """Formats of `methods`."""

    table = "table"
    json = "json"


ENDINGS = {".csv": Format.csv, ".json": Format.json, ".parquet": Format.parquet, ".md": Format.markdown, ".tex": Format.latex}
ENDINGS_OF_FIGURES = (".svg", ".png")

RESULTS_EPILOG = (
    "Examples: quant-harness results results/quick · "
    "quant-harness results results/quick --method gptq --bits 4 --metric perplexity · "
    "quant-harness results results/quick -o quick.parquet · quant-harness results results/quick --format summary"
)


def results(
    results: ResultsArgument,
    format: Annotated[
        Format | None, typer.Option("--format", help="How to print; by default what FILE ends in, else table.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="A file: .csv, .json, .parquet, .md, .tex.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Only this model; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Only this method; may be repeated.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="Only this metric, with intervals; may be repeated.")
    ] = None,
    bits: Annotated[list[float] | None, typer.Option("--bits", help="Only this width; may be repeated.")] = None,
) -> None:
    """Print stored results: a table with one line per cell, or every number as tidy rows (csv, json, parquet)."""
    from harness.report.frame import EXPORTS
    from harness.report.tables import TABLES, Choice, select

    how = format or _format_of(output)
    choice = Choice(models=model or (), methods=method or (), metrics=metric or (), bits=bits or ())
    whole = derived(results)
    shown = select(whole, choice)
    data = EXPORTS[how.value](shown) if how.value in EXPORTS else TABLES[how.value](whole, shown, choice)
    if output is not None:
        write_file(output, data)
    elif how is Format.parquet and sys.stdout.isatty():
        raise BadInput("parquet is binary; name a file with -o FILE, or redirect standard output")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _format_of(output: Path | None) -> Format:
    if output is None:
        return Format.table
    found = ENDINGS.get(output.suffix.lower())
    if found is None:
        raise BadInput(f"{output}: its ending names no format; end it in {', '.join(ENDINGS)}, or say --format FORMAT")
    return found


FIGURE_EPILOG = (
    "Examples: quant-harness figure results/quick -o quick.svg · "
    "quant-harness figure results/quick --paper --model reference -o figure.png"
)


def figure(
    results: ResultsArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The picture: .svg or .png.")],
    model: Annotated[str | None, typer.Option("--model", help="The model to draw, where there are several.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="For a paper: large type, no title.")] = False,
) -> None:
    """Draw the main chart, quality against cost, for a README or a paper. A PNG needs Chromium, an SVG nothing."""
    from harness.report import figure as drawing

    if output.suffix.lower() not in ENDINGS_OF_FIGURES:
        raise BadInput(f"{output}: a picture ends in {' or '.join(ENDINGS_OF_FIGURES)}")
    image = drawing.svg(derived(results), model=model, paper=paper)
    write_file(output, image if output.suffix.lower() == ".svg" else drawing.browser_png(image))
    out.print(f"figure   {output}", soft_wrap=True, highlight=False, markup=False)


SITE_EPILOG = "Examples: quant-harness site results/quick -o site · quant-harness site results -o site"


def site(
    results: ManyResults,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write; a former site is replaced.")
    ],
) -> None:
    """Write a static site: an index of suites, models and runs, a page for each run, its numbers as CSV, JSON and Parquet beside.

    It loads and sends nothing: put the folder on any web server, or open its index.html from the disk."""
    from harness.files import draft_folder
    from harness.report import site as pages

    replaceable = not output.exists() or (output.is_dir() and (not any(output.iterdir()) or (output / pages.MARKER).is_file()))
    if not replaceable or output.is_symlink():
        raise BadInput(f"{output}: is there already and no site that this command made; name another folder")
    views, past = [], {}
    for path in _run_files(results):
        try:
            views.append(derived(path))
            past[path.parent] = views[-1].run  # the newest of its folder comes last
        except HarnessError as error:
            err.print(f"left out {error}", markup=False, highlight=False, soft_wrap=True)
    if not views:
        raise BadInput("none of these results can be read; make some with: quant-harness run SUITE")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with draft_folder(output) as draft:
            for file in pages.files(views, _histories(past)):
                target = draft / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.data)
    except OSError as error:
        raise BadInput(f"{output}: cannot be written ({error.strerror}); name another folder") from None
    out.print(f"site     {output / 'index.html'}", soft_wrap=True, highlight=False, markup=False)


def _histories(newest: Mapping[Path, str]) -> dict[str, Section]:
    """Sections on the runs of folders, by the names of their newest runs; none where the newest is not among those shown."""
    from harness import store
    from harness.gate import trends_section

    shown = {folder: run for folder, run in newest.items() if store.newest(folder).stem == run}
    made = {run: trends_section.of_folder(folder) for folder, run in shown.items()}
    return {run: section for run, section in made.items() if section is not None}


def _run_files(results: list[Path]) -> list[Path]:
    """Every run file named, in a folder named, or in a folder of one, each once."""
    found: dict[Path, Path] = {}
    for path in results:
        runs = [path] if path.is_file() else sorted(path.glob("*.jsonl")) or sorted(path.glob("*/*.jsonl"))
        if not runs:
            raise BadInput(f"{path}: holds no results (*.jsonl); make some with: quant-harness run SUITE")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def derived(results: Path) -> View:
    """The view of a run. Where a person waits at a terminal, the wait says what it is for."""
    from harness import store
    from harness.report.view import view

    with waiting(f"reading {results}") as tell, unswept():
        run = store.read(results)
        tell(f"comparing {len(run.plan.cells)} cells with their baselines")
        return view(run)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Says on standard error what is being done, and takes it back at the end; nothing where that is no terminal."""
    if not err.is_terminal:
        yield lambda text: None
        return
    with err.status(escape(what)) as status:
        yield lambda text: status.update(escape(text))


@contextlib.contextmanager
def unswept() -> Iterator[None]:
    """Without Python's search for cycles. Reading a run makes millions of objects that live until its page is written: the search
    finds nothing to free among them, and takes a twelfth of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def write_file(target: Path, data: bytes) -> None:
    try:
        if target.exists() and not target.is_file():  # a device or a pipe is written to, and never replaced
            target.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
    except OSError as error:
        raise BadInput(f"{target}: cannot be written ({error.strerror}); name another file") from None


METHODS_EPILOG = "Example: quant-harness methods --format json"


def methods(
    format: Annotated[Listing, typer.Option("--format", help="How to print.")] = Listing.table,
) -> None:
    """List method x bits x engine x environment: what runs here, and the command that adds what is missing.

    What other packages offer (methods, engines, probes) is listed with the package and its version. Families that no method
    offers follow, each with the reason."""
    from harness import plugins
    from harness.methods import METHODS
    from harness.methods.not_offered import FAMILIES

    offered = plugins.load()
    packages = {p.name: p.provider for p in offered.plugins if p.kind == "method"}
    here = cli_env.here()
    if format is Listing.json:
        rows = [_as_data(method, here[method.name], packages.get(method.name)) for method in METHODS.values()]
        beside = [(p, "ready") for p in offered.plugins if p.kind != "method"]
        beside += [(r.plugin, f"left out: {r.why}") for r in offered.refused]
        rows += [{p.kind: p.name, "state": state, "package": p.provider} for p, state in beside]
        rows += [
            {"method": f.name, "title": f.title, "state": "not offered", "package": None, "why": f.why, "instead": f.instead}
            for f in FAMILIES.values()
        ]
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    columns = ["method", "what", "kernels on CPU, by bits", "on CUDA", "runs in", "environment", "here"]
    for column in columns + ["from"] * bool(packages):
        table.add_column(column, no_wrap=column == "method", overflow="fold")
    for method in METHODS.values():
        kernels = (_kernels(method.kernel_cpu), _kernels(method.kernel_cuda))
        state = "missing" if here[method.name].install else here[method.name].state
        row = [*map(escape, (method.name, method.title, *kernels, method.engine, method.environment, state))]
        table.add_row(*row, *([escape(packages.get(method.name, ""))] if packages else []))
        for same in _in_other_engines(method):
            table.add_row(*map(escape, same), *[""] * bool(packages))
    out.print(table)
    lacking: dict[str, list[str]] = {}
    for name, place in here.items():
        if place.install:
            lacking.setdefault(place.install, []).append(name)
    for install, names in lacking.items():  # beside the table, where no column is too narrow for a command
        cli_env.say(f"missing for {', '.join(names)}: {install}")
    for plugin in offered.plugins:
        if plugin.kind != "method":
            cli_env.say(f"{plugin.kind} {plugin.name} from {plugin.provider}")
    for refused in offered.refused:
        cli_env.say(str(refused))
    mixing = [name for name, method in METHODS.items() if method.mixing is not None]
    cli_env.say(f"widths by layer (target_bits, docs/mixed.md): {', '.join(mixing)}")
    out.print(
        "real: computes on packed weights; slow: unpacks them at each call; simulated: holds them in 16 bits; none: cannot run"
    )
    for family in FAMILIES.values():
        cli_env.say(str(family))


def _as_data(method: Method, here: cli_env.Here, package: str | None) -> dict[str, object]:
    """A row of the list as plain data."""
    engines = {name: {"cpu": _by_name(run.cpu), "cuda": _by_name(run.cuda)} for name, run in method.engines.items()}
    return {
        "method": method.name,
        "title": method.title,
        "bits": list(method.bits),
        "engine": method.engine,
        "environment": method.environment,
        "kernel_cpu": _by_name(method.kernel_cpu),
        "kernel_cuda": _by_name(method.kernel_cuda),
        "engines": engines,
        "target_bits": None if method.mixing is None else list(method.mixing.widths),
        "options": {name: option.default for name, option in method.options.items()},
        "running_options": {name: option.default for name, option in method.running_options.items()},
        "state": here.state,
        "install": here.install,
        "source": method.source,
        "package": package,
    }


def _by_name(by_bits: Mapping[float, str]) -> dict[str, str]:
    return {f"{bits:g}": kind for bits, kind in by_bits.items()}


def _in_other_engines(method: Method) -> Iterator[list[str]]:
    """A line of the table for each engine beside the method's own that runs its artifacts."""
    from harness.engines import ENGINES

    for name, run in method.engines.items():
        places = " or ".join(place.environment for place in ENGINES[name].places.values()) or method.environment
        yield ["", "the same artifact", _kernels(run.cpu), _kernels(run.cuda), name, places, ""]


def _kernels(by_bits: Mapping[float, str]) -> str:
    kinds: dict[str, list[str]] = {}
    for bits, kind in by_bits.items():
        kinds.setdefault(kind, []).append(f"{bits:g}")
    return "; ".join(f"{kind} {' '.join(bits)}" for kind, bits in kinds.items())
