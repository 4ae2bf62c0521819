"""One artifact in several engines, side by side on the page."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from harness import store
from harness.report import View, engines, view
from harness.spec import Record, Running
from tests.report import synthetic


def text(markup: object) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", str(markup)))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> View:
    return view(store.read(synthetic.write(tmp_path_factory.mktemp("engines"), small=True)))


def in_vllm(shown: View, one: str, other: str, label: str) -> View:
    """The view with the cell `other` taken for the artifact of `one`, run by vLLM."""
    origin = next(c.cell.origin for c in shown.cells if c.label == one)
    cells = []
    for cell in shown.cells:
        if cell.label == other:
            running = Running(engine="vllm")
            cell = dataclasses.replace(cell, cell=dataclasses.replace(cell.cell, origin=origin, running=running, label=label))
        cells.append(cell)
    return dataclasses.replace(shown, cells=tuple(cells))


def test_there_is_no_such_section_where_every_artifact_runs_in_one_engine(shown: View) -> None:
    assert engines.section(shown) is None


def test_two_engines_of_one_artifact_stand_side_by_side_with_what_differs_between_them(shown: View) -> None:
    section = engines.section(in_vllm(shown, "gptq 4-bit g64", "rtn 4-bit g64", "gptq 4-bit g64 in vllm"))
    assert section is not None
    said = text(section.body)
    assert re.search(r"gptq 4-bit g64( in vllm)? · (transformers and vllm|vllm and transformers)", said)
    assert "Perplexity, reference" in said
    assert re.search(r"tokens by more than 0.1 nats", said)
    assert re.search(r"\d+ of 40 items are answered otherwise", said)
    assert "gptq 4-bit g64 in vllm:" in said


def test_the_same_answers_are_within_their_noise(shown: View) -> None:
    cell = next(c for c in shown.cells if c.label == "gptq 4-bit g64")
    other = dataclasses.replace(
        cell, id="again", cell=dataclasses.replace(cell.cell, running=Running(engine="vllm"), label="gptq 4-bit g64 in vllm")
    )
    section = engines.section(dataclasses.replace(shown, cells=(*shown.cells, other)))
    assert section is not None
    said = text(section.body)
    assert "0 of 40 items are answered otherwise" in said
    assert "within their noise" in said
    assert " yes;" not in said


def test_cells_without_samples_are_said_to_be_not_known(tmp_path: Path) -> None:
    def bare(record: Record) -> Record:
        if record.answer is None:
            return record
        measured = tuple(dataclasses.replace(m, blob=None) for m in record.answer.measurements)
        return dataclasses.replace(record, answer=dataclasses.replace(record.answer, measurements=measured))

    bare_view = view(store.read(synthetic.write(tmp_path, small=True, edit=bare)))
    section = engines.section(in_vllm(bare_view, "gptq 4-bit g64", "rtn 4-bit g64", "gptq 4-bit g64 in vllm"))
    assert section is not None
    assert "not known: no raw samples" in text(section.body)


def test_a_hostile_label_is_text(shown: View) -> None:
    section = engines.section(in_vllm(shown, "gptq 4-bit g64", "rtn 4-bit g64", "<script>alert(1)</script>"))
    assert section is not None
    assert "<script>" not in str(section.body)
