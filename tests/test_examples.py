"""What lies in examples/ works: every suite can be planned, one of them and the notebook are run for real."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

import harness
from harness import store
from harness.suite import matrix

FOLDER = Path(__file__).parents[1] / "examples"
SUITES = sorted(FOLDER.glob("*.yaml"))
NOTEBOOK = FOLDER / "notebook.ipynb"


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_an_example_can_be_planned_on_the_embedded_model_and_each_cell_can_exist(path: Path) -> None:
    planned = matrix.plan(path, device="cpu")
    assert planned.suite.name == path.stem
    assert {p.cell.model.name for p in planned.cells} == {"reference"}
    assert planned.cells
    assert not planned.unsupported


def test_the_page_of_examples_names_every_file_of_the_folder() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    files = [*SUITES, *FOLDER.glob("*.ipynb")]
    assert len(files) >= 4
    assert not [path.name for path in files if f"]({path.name})" not in page]


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) >= 4
    assert not [cell for cell in cells if cell.outputs or cell.execution_count is not None]


@pytest.mark.slow
def test_the_nightly_example_runs_to_its_end_and_reaches_verdicts(tmp_path: Path) -> None:
    path = harness.run(FOLDER / "nightly.yaml", results=tmp_path / "results", cache=tmp_path / "cache", threads=1)
    stored = store.read(path)
    assert stored.ended
    assert {record.status for record in stored.records} == {"ok"}
    frame = harness.frame(path)
    tasks = yaml.safe_load((FOLDER / "nightly.yaml").read_text(encoding="utf-8"))["tasks"]
    verdicts = frame[(frame.metric == "sequential_verdict") & frame.value.notna()]
    assert set(verdicts.subject) == set(tasks)
    assert set(verdicts.value) <= {-1, 0, 1}


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_picks_a_scheme(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "laptop.yaml", tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    schemes = set(harness.frame(tmp_path / "results" / "laptop").scheme)
    assert said.partition(":")[0] in schemes - {"bf16"}
    assert (tmp_path / "laptop.html").stat().st_size > 100_000
