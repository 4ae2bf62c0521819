"""What code decides whether two runs may share a file, and that what declares to change no number is not run by what measures."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from harness.run.source import ROOT, measuring_files, source_digest


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's code, to be edited."""
    return Path(
        shutil.copytree(ROOT, tmp_path / "harness", ignore=lambda folder, names: [n for n in names if _no_code(folder, n)])
    )


def _no_code(folder: str, name: str) -> bool:
    path = Path(folder) / name
    return path.is_file() and path.suffix != ".py"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("scoring/head.py", True),
        ("spec.py", True),
        ("run/runner.py", True),
        ("stats/sequential.py", True),
        ("stats/intervals.py", False),
        ("report/page.py", False),
        ("cli.py", False),
        ("frontier.py", False),
        ("reference/train.py", False),
        ("reference/world.py", False),
    ],
)
def test_editing_a_file_begins_a_new_run_only_where_it_can_change_a_number(copy: Path, name: str, counts: bool) -> None:
    before = source_digest(copy)
    with (copy / name).open("a") as file:
        file.write("\n# edited\n")
    assert (source_digest(copy) != before) == counts


def test_a_new_file_counts_until_it_says_otherwise(copy: Path) -> None:
    before = source_digest(copy)
    (copy / "scoring" / "new.py").write_text("")
    assert source_digest(copy) != before
    (copy / "scoring" / "new.py").write_text("CHANGES_NUMBERS = False\n")
    assert source_digest(copy) == before


def _imported(path: Path) -> set[Path]:
    """The package's own files that a file imports anywhere, inside functions included."""
    files: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = ROOT.parent.joinpath(*name.split("."))
            files |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}
    return files


def test_what_runs_and_measures_imports_nothing_that_declares_to_change_no_number() -> None:
    waiting = [ROOT / "run" / "runner.py", ROOT / "child" / "serve.py"]
    reached = {ROOT / "__init__.py"}  # the door for people, which opens to the report too; nothing inside goes through it
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += _imported(path)
    assert len(reached) > 80, "the walk sees the package"
    silent = {path.relative_to(ROOT).as_posix() for path in reached - set(measuring_files())}
    # Statistics declare why; reference/__init__.py says where files lie, whose digests are in the keys. What was expected and
    # what was taken is written beside the answers and decides none of them.
    silent -= {"costs.py", "measure/rate.py", "run/left.py", "run/account.py"}
    assert {name for name in silent if not name.startswith(("stats/", "forecast/"))} == {"reference/__init__.py"}
