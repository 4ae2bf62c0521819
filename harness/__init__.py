"""quant-harness: which quantization of a language model to deploy, measured honestly.

    import harness
    path = harness.run("quick")          # the run file; goes on where an earlier call stopped
    frame = harness.frame(path)          # tidy pandas.DataFrame, one row per cell and metric
    harness.render(path, "report.html")  # one self-contained page

These three and `__version__` are the public interface; everything else may change without notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

# The package `harness.run` is imported before the function `run` is defined below. Python binds a package's name in its parent
# when it is first imported: later, that would replace the function.
from harness import run as _package  # noqa: F401 - imported for what the comment above says
from harness.version import __version__

if TYPE_CHECKING:
    import pandas

__all__ = ["__version__", "frame", "render", "run"]


def run(
    suite: str | PathLike[str],
    *,
    results: str | PathLike[str] = "results",
    device: str | None = None,
    cache: str | PathLike[str] | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    threads: int | None = None,
    only: Sequence[str] = (),
    paranoid: bool = False,
) -> Path:
    """Runs a suite (file, or name of a built-in one) and returns the run file. The arguments are the options of `quant-harness
    run`: `cache` is the folder of artifacts, `fresh` begins a new run, `retry_failed` asks again what failed, `only` names some
    questions by key or name, `paranoid` reads every file again instead of trusting a remembered hash.

    Raises `errors.BadInput` before anything starts when the suite or its inputs are wrong."""
    from harness.run import runner, workspace
    from harness.suite.file import find, load
    from harness.suite.matrix import choose_device, plan

    path = find(str(suite))
    planned = plan(path, device=choose_device(device or load(path).suite.device, here=True))
    settings = runner.Settings(
        results=Path(results),
        cache=workspace.default_cache() if cache is None else Path(cache),
        fresh=fresh,
        retry_failed=retry_failed,
        threads=threads,
        only=tuple(only),
        paranoid=paranoid,
    )
    return runner.run(planned, settings)


def frame(results: str | PathLike[str]) -> pandas.DataFrame:
    """One row per cell and metric: model, method, bits, scheme, metric, subject, definition, value, low, high, n, unit, status.

    `results` is a run file or a folder of them (the newest counts)."""
    from harness import store
    from harness.report.frame import frame as tidy

    table: pandas.DataFrame = tidy(store.read(Path(results)))
    return table


def render(results: str | PathLike[str], output: str | PathLike[str]) -> Path:
    """Renders the report of a run file or results folder into `output`; returns its path."""
    from harness import store
    from harness.report import render as page

    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(page(store.read(Path(results))))
    return target
