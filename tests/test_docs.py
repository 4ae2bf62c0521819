"""Every command and every suite shown in the README and docs works as shown."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import store
from harness.methods import METHODS
from harness.probes import METRICS
from harness.suite import matrix

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WriteSuite = Callable[..., Path]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("quant-harness")))


@pytest.fixture
def shown_folder(write_suite: WriteSuite, model_folder: Path, tmp_path: Path) -> Path:
    """A folder as the README assumes it: mine.yaml and quick (scripted, so that they take a second), my-model, my-text.txt."""
    folder = tmp_path / "shown"
    folder.mkdir()
    shutil.copytree(model_folder, folder / "my-model")
    (folder / "my-text.txt").write_text("words " * 100)
    for name in ("mine", "quick"):
        text = write_suite("{bits: 4}", name=name).read_text()
        (folder / ("quick" if name == "quick" else "mine.yaml")).write_text(text)
    return folder


def test_every_quant_harness_command_of_the_docs_runs_as_shown(shown_folder: Path) -> None:
    assert len(commands()) >= 6
    run = [sys.executable, "-m", "harness.cli"]
    subprocess.run([*run, "run", "quick"], cwd=shown_folder, check=True, capture_output=True, timeout=120)
    for command in commands():
        done = subprocess.run(
            [*run, *shlex.split(command)[1:]], cwd=shown_folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_suite_of_the_readme_can_be_planned(shown_folder: Path) -> None:
    (block,) = blocks(ROOT / "README.md", "yaml")
    path = shown_folder / "shown.yaml"
    path.write_text(block)
    planned = matrix.plan(path, device="cpu")
    assert {p.cell.method for p in planned.cells} | {u.cell.method for u in planned.unsupported} == {
        "bf16",
        "hqq",
        "gptq",
    }


def test_the_python_of_the_readme_runs(shown_folder: Path) -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    subprocess.run([sys.executable, "-c", block], cwd=shown_folder, check=True, capture_output=True, timeout=120)
    assert store.read(shown_folder / "results" / "quick").ended
    assert (shown_folder / "report.html").is_file()


def test_the_two_commands_are_what_ci_calls() -> None:
    shown = [line.split("#")[0].strip() for line in blocks(ROOT / "README.md", "sh")[0].splitlines()]
    called = (ROOT / ".ci" / "run").read_text().splitlines()
    assert shown == ["make run", "make test"]
    assert set(shown) <= set(called)


def test_the_table_of_methods_in_the_readme_is_the_table_of_the_code() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = set(re.findall(r"`([a-z0-9_]+)`", "".join(re.findall(r"^\| (`.*?) \|", readme, flags=re.MULTILINE))))
    assert {name for name in METHODS if not name.startswith("fake")} == shown
    for name, bits in re.findall(r"^\| `(\w+)` \| ([\d. ]+) \|", readme, flags=re.MULTILINE):
        assert tuple(float(b) for b in bits.split()) == METHODS[name].bits


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_metric_is_defined_for_users() -> None:
    text = (ROOT / "docs" / "definitions.md").read_text()
    assert not [name for name in METRICS if f"`{name}`" not in text and not name.startswith("fake")]
