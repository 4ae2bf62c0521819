"""The verb `env`: environments of methods that conflict with the others. Prints, like cli.py, which it is a part of."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.errors import BadInput, readable

if TYPE_CHECKING:
    from harness.envs import BuildFailed

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

EXIT_UNWELL = 1
"""A build or a check that was asked for and did not go well."""

app = typer.Typer(
    no_args_is_help=True,
    help="Environments: the Python that runs quant-harness (main), and one of its own for each set of requirements that "
    "conflicts with it. `run` builds what it needs; these verbs do so ahead, check, and free the disk.",
    epilog="Examples: quant-harness env list · quant-harness env build --suite my.yaml · quant-harness env remove --unused",
)
out = Console()
err = Console(stderr=True)

CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Cache of models, artifacts and environments; default ~/.cache/quant-harness.")
]
NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names shown by `env list`.")]


class Format(StrEnum):
    """Formats of `env list`."""

    table = "table"
    json = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """How a method stands on this machine: `ready`, or what is missing and the one command that adds it."""

    state: str
    install: str | None


def here() -> dict[str, Here]:
    """How every method stands on this machine."""
    from harness import envs
    from harness.methods import METHODS
    from harness.run import workspace

    standing = {}
    states = {name: envs.status(e, workspace.default_cache()) for name, e in envs.environments().items()}
    for method in METHODS.values():
        absent, status = envs.missing(method), states[method.environment]
        if absent is not None:
            standing[method.name] = Here(state=f"missing: {', '.join(absent.packages)}", install=absent.install)
        elif method.name in status.unwell:
            install = f"quant-harness env check {method.environment}"
            standing[method.name] = Here(state=f"broken: {status.unwell[method.name]}", install=install)
        elif method.environment != envs.MAIN and status.state != "ready" and not status.unwell:
            install = f"quant-harness env build {method.environment}"
            standing[method.name] = Here(state=f"environment {method.environment} is {status.state}", install=install)
        elif method.origin == "served":
            standing[method.name] = Here(state="needs a server", install=None)
        else:
            standing[method.name] = Here(state="ready", install=None)
    return standing


@app.command("list", epilog="Examples: quant-harness env list · quant-harness env list --format json")
def list_(
    format: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
    cache: CacheOption = None,
) -> None:
    """List every environment: its methods, its state, what it takes on disk, and what to do where it is not ready."""
    from harness import envs

    place = _cache(cache)
    states = [envs.status(e, place) for e in envs.environments().values()]
    old = envs.unused(place)
    if format is Format.json:
        rows = [
            {
                "environment": s.environment.name,
                "state": s.state,
                "bytes": envs.size_bytes(s.environment, place),
                "methods": list(s.environment.methods),
                "requirements": list(s.environment.requirements),
                "detail": s.detail,
                "packages": envs.packages(s.environment.name, place),
            }
            for s in states
        ]
        data = {"environments": rows, "unused": [{"folder": name, "bytes": size} for name, size in old.items()]}
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("environment", "state", "size", "methods", "requires"):
        table.add_column(
            column, no_wrap=column in {"environment", "state", "size"}, justify="right" if column == "size" else "left"
        )
    for s in states:
        requires = ", ".join(s.environment.requirements) if s.environment.name != envs.MAIN else "(extras of llm-quant-harness)"
        methods = ", ".join(s.environment.methods)
        table.add_row(s.environment.name, s.state, _megabytes(envs.size_bytes(s.environment, place)), methods, requires)
    out.print(table)
    for s in states:
        if s.detail:
            say(f"{s.environment.name}: {s.state}: {s.detail}")
    if old:
        size = _megabytes(sum(old.values()))
        say(f"old, needed by no method any more: {len(old)}, {size}; remove with: quant-harness env remove --unused")


@app.command(epilog="Example: quant-harness env build --suite my.yaml")
def build(
    names: NamesArgument = None,
    suite: Annotated[str | None, typer.Option("--suite", help="Build all that this suite's cells need.")] = None,
    cache: CacheOption = None,
) -> None:
    """Build environments now instead of when a run needs them, and try each of their methods on a tiny model."""
    from harness import envs

    wanted = [envs.own(name) for name in names or []]
    if suite is not None:
        from harness.suite import file, matrix

        path = file.find(suite)
        planned = matrix.plan(path, device=matrix.choose_device(file.load(path).suite.device, here=False))
        wanted += envs.needed((p.cell for p in planned.cells), planned.device)
    elif not wanted:
        raise BadInput(f"say what to build: a name, or --suite SUITE for all that a suite needs; names: {_known()}")
    place = _cache(cache)
    unwell = False
    for environment in dict.fromkeys(wanted):
        try:
            with envs.obtain(environment, place, say) as ready:
                results = {name: ready.health(name, say) for name in environment.members}
        except envs.BuildFailed as error:
            unwell = True
            _failed(error)
            continue
        wrong = {name: health for name, health in results.items() if not health.ok}
        unwell |= bool(wrong)
        for name, health in wrong.items():
            _wrong(f"{environment.name}: {name}: {health.message}")
            err.print(health.log_tail, markup=False, highlight=False, soft_wrap=True)
        if not wrong:
            count = len(ready.packages)
            say(f"{environment.name}: ready, {count} package{'s' if count != 1 else ''}")
    if not wanted:
        out.print(f"{suite}: needs no environment but the main one", markup=False, highlight=False, soft_wrap=True)
    if unwell:
        raise typer.Exit(EXIT_UNWELL)


@app.command(epilog="Examples: quant-harness env check · quant-harness env check main")
def check(names: NamesArgument = None, cache: CacheOption = None) -> None:
    """Compare what is installed with the lock, and let every method quantize and reload a tiny model.

    Without names, all environments that are built, except main, whose methods take minutes."""
    from harness import envs

    place = _cache(cache)
    if names:
        wanted = [envs.find(name) for name in names]
    else:
        wanted = [e for e in envs.environments().values() if e.name != envs.MAIN and envs.packages(e.name, place) is not None]
    unwell = False
    for environment in wanted:
        problems = envs.check(environment, place, say)
        unwell |= bool(problems)
        for problem in problems:
            _wrong(f"{environment.name}: {problem}")
        if not problems:
            out.print(f"{environment.name}: OK", highlight=False)
    if not wanted:
        out.print("no environment but the main one is built; check that with: quant-harness env check main", highlight=False)
    if unwell:
        raise typer.Exit(EXIT_UNWELL)


@app.command(epilog="Example: quant-harness env remove --unused")
def remove(
    names: NamesArgument = None,
    unused: Annotated[bool, typer.Option("--unused", help="Remove all that no method needs any more.")] = False,
    cache: CacheOption = None,
) -> None:
    """Free the disk of environments; a run that needs one builds it again. Stored results keep their package lists."""
    from harness import envs

    wanted = [envs.own(name) for name in names or []]
    if not wanted and not unused:
        raise BadInput(f"say what to remove: a name, or --unused for all that no method needs any more; names: {_known()}")
    place = _cache(cache)
    for environment in dict.fromkeys(wanted):
        out.print(f"{environment.name}: removed, {_megabytes(envs.remove(environment, place))} freed", highlight=False)
    if unused:
        out.print(f"old environments: {_megabytes(envs.remove_unused(place))} freed", highlight=False)


def _cache(given: Path | None) -> Path:
    from harness.run import workspace

    return (given or workspace.default_cache()).expanduser().resolve()


def _known() -> str:
    from harness import envs

    return (
        ", ".join(name for name in envs.environments() if name != envs.MAIN) or "none, every method shares the main environment"
    )


def say(text: str) -> None:
    """A line as it is, without what would steer the terminal."""
    out.print(readable(text), markup=False, highlight=False, soft_wrap=True)


def _wrong(text: str) -> None:
    err.print(readable(text), style="red", markup=False, highlight=False, soft_wrap=True)


def _failed(error: BuildFailed) -> None:
    err.print(error.log_tail, markup=False, highlight=False, soft_wrap=True)
    _wrong(f"error: {error}")
    err.print(f"the whole log: {error.log}", markup=False, highlight=False, soft_wrap=True)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.{0 if size >= 1e7 else 1}f} MB"
