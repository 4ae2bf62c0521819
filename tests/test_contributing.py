"""CONTRIBUTING cannot fall behind the code: its map names every room, and the walk leads to what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HARNESS = ROOT / "harness"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLACES = sorted(set(re.findall(r"`((?:\w+/)*\w+\.py):([\w.]+)`", PAGE.replace("`file.py:name`", ""))))
"""(file, name) of every `file.py:name` on the page."""


def part(title: str) -> str:
    return re.split(r"^## ", PAGE.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def defined(tree: ast.AST) -> dict[str, ast.AST]:
    """What a module's or a class' body defines, imported names included."""
    names: dict[str, ast.AST] = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update({target.id: node for target in targets if isinstance(target, ast.Name)})
    return names


def test_the_map_names_every_room_and_no_other() -> None:
    cells = re.findall(r"^\| (`.*?) \|", part("The map of the house"), flags=re.MULTILINE)
    named = {name.rstrip("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)} - {"harness"}
    rooms = {p.name for p in HARNESS.iterdir() if (p / "__init__.py").is_file()}
    rooms |= {p.name for p in HARNESS.glob("*.py") if p.name != "__init__.py"}
    assert named == rooms


@pytest.mark.parametrize(("file", "name"), PLACES, ids=lambda value: value)
def test_what_the_page_points_at_is_there(file: str, name: str) -> None:
    assert (HARNESS / file).is_file()
    scope: ast.AST = ast.parse((HARNESS / file).read_text(encoding="utf-8"))
    for step in name.split("."):
        names = defined(scope)
        assert step in names, f"{file} defines no {name}"
        scope = names[step]


def test_the_walk_has_ten_steps_and_each_says_where_to_look() -> None:
    steps = re.findall(r"^(\d+)\. (.*)$", part("The walk"), flags=re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, 11))
    assert not [text for _, text in steps if not re.search(r"`[\w/]+\.py:\w", text)]


def test_each_step_of_the_walk_is_in_a_file_that_reaches_the_next_one() -> None:
    """The runner calls the child's starter, the server the worker, and so on: each caller's file names what it hands over to."""
    hands = {
        "cli.py": ["find", "plan", "run"],
        "run/runner.py": ["identity.gather", "Recorder", "Stages", "failure_of"],
        "run/stages.py": ["JobFolders", "failure_of", "read_outcome"],
        "run/recorder.py": ["store.Writer"],
        "child/serve.py": ["run_job", "Job"],
        "child/worker.py": ["WorkerSession", "guarded"],
        "report/view.py": ["Run"],
        "report/__init__.py": ["view"],
    }
    for file, names in hands.items():
        text = (HARNESS / file).read_text(encoding="utf-8")
        assert not [name for name in names if name not in text], file
