"""The page of architectures: every family, a number or a refusal in each square, and what is measured today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import architectures

ROWS = [line for line in architectures.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]


def squares(row: str) -> list[str]:
    return [part.strip() for part in row.strip("|").split("|")]


def test_the_page_has_every_family_and_no_square_without_a_number_or_a_refusal() -> None:
    assert squares(ROWS[0]) == ["family", "transformers", *architectures.METHODS]
    table = {squares(row)[0]: squares(row)[1:] for row in ROWS[1:]}
    assert list(table) == list(architectures.FAMILIES)
    for name, (baseline, *cells) in table.items():
        assert baseline == "equal", name
        for cell in cells:
            assert cell.startswith("refused [") or float(cell) >= 0, f"{name}: {cell}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OLMo 2", "GPT-2", "Falcon"])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")
def test_a_row_of_the_page_is_what_is_measured_today(name: str, tmp_path: Path) -> None:
    found = architectures.measured(name, tmp_path)
    (row,) = (squares(row)[1:] for row in ROWS if squares(row)[0] == name)
    for column, written in zip(("transformers", *architectures.METHODS), row, strict=True):
        today = found[column]
        if written.startswith("refused"):
            assert today.startswith("refused: "), json.dumps(found)
        elif column == "transformers":
            assert today == written
        else:
            assert float(today) == pytest.approx(float(written), abs=0.004), column
