"""The verb `verify`: whether stored results are as they were written. Prints, like cli.py, which it is a part of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from harness import store
from harness.cli_env import say
from harness.errors import BadInput, HarnessError
from harness.gate import journal
from harness.proof import seal_path
from harness.series import series_of

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

EXIT_DAMAGED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A run file: how many answers and raw samples of it are whole, and in words what is not."""

    path: Path
    answers: int
    samples: int
    ended: bool
    damage: tuple[str, ...]
    torn: tuple[str, ...] = ()


def verify(
    results: Annotated[
        Path,
        typer.Argument(metavar="RESULTS", help="A run file (.jsonl), a suite's results folder, or the folder of all suites."),
    ],
) -> None:
    """Say what of stored results is as it was written and what is not: every line, and every file of raw samples.

    Exit code 1 if anything is damaged. What is damaged is in no report; the next `run` asks it again."""
    damaged = 0
    for each in check(results):
        state = "finished" if each.ended else "unfinished"
        held = f"{each.answers} outcomes, {each.samples} files of raw samples, {state}"
        say(f"{'damaged' if each.damage else 'whole':8} {each.path}: {held}")
        for said in (*each.damage, *each.torn):
            say(f"         {said}")
        damaged += bool(each.damage)
    for said in journals(results):
        say(f"damaged  {said}")
        damaged += 1
    if damaged:
        say("what is damaged is in no report; measure it again with: quant-harness run SUITE")
        raise typer.Exit(EXIT_DAMAGED)


def check(results: Path) -> Iterator[Checked]:
    """Every run file at or below `results`, in the order of their names. BadInput where there is none."""
    paths = [results] if results.is_file() else sorted(_run_files(results))
    if not paths:
        raise BadInput(f"{results}: holds no results (*.jsonl); make some with: quant-harness run SUITE")
    seen: dict[tuple[Path, str], str] = {}
    for path in paths:
        yield _checked(path, seen)


def _run_files(results: Path) -> Iterator[Path]:
    """Every run file below a folder: whole runs, and those that were asked some questions only."""
    for where, folders, names in os.walk(results):
        folders[:] = [name for name in folders if name != "blobs"]
        yield from (Path(where) / name for name in names if name.endswith(".jsonl"))


def journals(results: Path) -> Iterator[str]:
    """In words, what of the journals at or below `results` is not as it was written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", store.DamagedLines)  # said by the caller
        for folder in [] if results.is_file() else [results, *sorted(path for path in results.iterdir() if path.is_dir())]:
            try:
                yield from journal.read(folder).damage
            except HarnessError as error:
                yield str(error)


def _checked(path: Path, seen: dict[tuple[Path, str], str]) -> Checked:
    """`seen`: what was found of raw samples already, empty where they are whole: runs of one folder share them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", store.TornLine)
        warnings.simplefilter("ignore", store.DamagedLines)  # said below, by file
        try:
            run = store.read(path)
        except HarnessError as error:
            return Checked(path=path, answers=0, samples=0, ended=False, damage=(str(error),))
    names = {m.blob: r for r in run.records if r.answer is not None for m in r.answer.measurements if m.blob is not None}
    damage = [str(found) for found in run.damage]
    if run.end is not None and not damage and seal_path(path).is_file() and run.end.series != series_of(run.plan, run.records):
        damage.append("the table of values in its last line is not what its records say")
    for name, record in names.items():
        place = (path.parent, name)
        if place not in seen:
            seen[place] = _trouble(path.parent, name)
        if seen[place]:
            damage.append(f"{record.cell.name}, {record.question.probe} {record.question.subject}: {seen[place]}")
    whole = sum(not seen[path.parent, name] for name in names)
    torn = tuple(str(warning.message) for warning in caught)
    return Checked(path=path, answers=len(run.records), samples=whole, ended=run.ended, damage=tuple(damage), torn=torn)


def _trouble(folder: Path, name: str) -> str:
    try:
        store.read_blob(folder, name)
    except FileNotFoundError:
        return f"raw samples {name} are not there"
    except (OSError, HarnessError) as error:
        return str(error)
    return ""
