"""Every command, every suite and every link shown in the README, in CONTRIBUTING and in the other pages works as shown."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import store
from harness.methods import METHODS
from harness.metrics import METRICS
from harness.suite import matrix

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *(ROOT / folder / "README.md" for folder in ("examples", "results", "reports")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
WriteSuite = Callable[..., Path]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def shown() -> list[str]:
    """Every command of a block of shell commands, once."""
    lines = [line.split("#")[0].strip() for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def commands() -> list[str]:
    """Those of the harness; tests/hub/test_push.py runs `export`, which needs a cell of that name and a hub."""
    return [line for line in shown() if line.startswith("quant-harness") and not line.startswith("quant-harness export")]


def _scripted(word: str) -> str:
    """A word of a command with the scripted suite's cells and questions in the place of those that the pages name."""
    return word.replace("reference / rtn 4-bit", "tiny / fake 4-bit").replace("perplexity reference", "fake a")


@pytest.fixture
def shown_folder(write_suite: WriteSuite, model_folder: Path, tmp_path: Path) -> Path:
    """A folder as the pages assume it: mine.yaml, quick and the examples (scripted, so that they take a second), my-model,
    my-text.txt."""
    folder = tmp_path / "shown"
    folder.mkdir()
    shutil.copytree(model_folder, folder / "my-model")
    (folder / "my-text.txt").write_text("words " * 100)
    for name in ("mine", "quick"):
        text = write_suite("{bits: 4}", name=name).read_text()
        (folder / ("quick" if name == "quick" else "mine.yaml")).write_text(text)
    (folder / "examples").mkdir()
    for example in EXAMPLES:
        (folder / "examples" / example.name).write_text(write_suite("{bits: 4}", name=example.stem).read_text())
    return folder


@pytest.mark.slow
def test_every_quant_harness_command_of_the_docs_runs_as_shown(shown_folder: Path) -> None:
    assert len(commands()) >= 12
    assert {f"quant-harness run examples/{example.name}" for example in EXAMPLES} <= {" ".join(c.split()[:3]) for c in commands()}
    run = [sys.executable, "-m", "harness.cli"]
    for _night in range(2):  # a gate compares two
        subprocess.run([*run, "run", "quick", "--fresh"], cwd=shown_folder, check=True, capture_output=True, timeout=120)
    for command in commands():
        done = subprocess.run(
            [*run, *map(_scripted, shlex.split(command)[1:])],
            cwd=shown_folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        answers = {0, 1} if command.startswith("quant-harness recommend") else {0}  # 1: none of these scripted cells qualifies
        assert done.returncode in answers, f"{command}\n{done.stdout}\n{done.stderr}"


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
    again = f"{block}\n{block}"  # as in a notebook whose cells are run twice
    subprocess.run([sys.executable, "-c", again], cwd=shown_folder, check=True, capture_output=True, timeout=120)
    assert store.read(shown_folder / "results" / "quick").ended
    assert (shown_folder / "report.html").is_file()


def test_every_other_command_of_the_pages_names_what_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    others = [line for line in shown() if not line.startswith("quant-harness")]
    assert others
    for line in others:
        program, *arguments = shlex.split(line)
        if program == "make":
            done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
        elif program == "python" and arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1]) is not None, line
        elif line == "hf auth login":
            assert importlib.metadata.entry_points(group="console_scripts", name="hf")
        elif re.fullmatch(r"HF_\w+=\S+", program):
            assert arguments[0] == "quant-harness", line  # tests/hub/test_the_page_of_the_hub.py runs it
        elif [program, *arguments[:1]] == ["pip", "install"] and arguments[1].startswith("./"):
            assert (ROOT / arguments[1] / "pyproject.toml").is_file(), line
        else:
            extra = re.fullmatch(r"pip install llm-quant-harness\[(\w+)\]", shlex.join([program, *arguments]).replace("'", ""))
            assert extra is not None, f"no test knows this command: {line}"
            assert extra[1] in extras


def test_what_the_python_of_the_other_pages_imports_exists() -> None:
    imports = [
        ast.unparse(node)
        for page in PAGES[1:]
        for block in blocks(page, "python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom | ast.Import) and "harness" in ast.unparse(node)
    ]
    assert imports
    subprocess.run([sys.executable, "-c", "\n".join(imports)], check=True, capture_output=True, timeout=120)


def test_the_two_commands_are_what_ci_calls() -> None:
    shown_first = [line.split("#")[0].strip() for line in blocks(ROOT / "README.md", "sh")[0].splitlines()]
    assert shown_first == ["make run", "make test"]
    # CI runs all tests, of which `make test` is the fast part (tests/test_workflows.py holds the two targets together)
    assert {"make run", "make test-all"} <= set((ROOT / ".ci" / "run").read_text().splitlines())


def test_the_table_of_methods_in_the_readme_is_the_table_of_the_code() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = set(re.findall(r"`([a-z0-9_+]+)`", "".join(re.findall(r"^\| (`.*?) \|", readme, flags=re.MULTILINE))))
    assert {name for name in METHODS if not name.startswith("fake")} == shown
    for name, bits in re.findall(r"^\| `([\w+]+)` \| ([\d. ]+) \|", readme, flags=re.MULTILINE):
        assert tuple(float(b) for b in bits.split()) == METHODS[name].bits


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_metric_is_defined_for_users() -> None:
    text = (ROOT / "docs" / "definitions.md").read_text()
    assert not [name for name in METRICS if f"`{name}`" not in text and not name.startswith("fake")]
