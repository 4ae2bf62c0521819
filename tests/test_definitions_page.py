"""docs/definitions.md cannot fall behind the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.probes import PROBES
from harness.report.derived import DERIVED

PAGE = (Path(__file__).parents[1] / "docs" / "definitions.md").read_text(encoding="utf-8")
METRICS = {m.name: m for p in PROBES.values() if p.name != "fake" for m in p.metrics} | DERIVED


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_is_defined_on_the_page_of_definitions(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_the_page_names_no_metric_that_does_not_exist() -> None:
    first_cells = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name.strip(" `") for cell in first_cells for name in cell.split(",")}
    assert len(named) > 40
    assert named <= set(METRICS), named - set(METRICS)
