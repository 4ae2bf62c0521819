"""The report's section on recipes of one's own: what each did, by cell, and text that does no harm."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest import mock

import pytest

from harness import recipes, store
from harness.metrics import METRICS
from harness.report import recipes as section_of_recipes
from harness.report.view import View, view
from harness.spec import Answer, Cell, Measurement, Model, Question, Record, Scheme
from tests.report import synthetic
from tests.squares import square

HOSTILE = "<script>alert(1)</script>"
RECIPE = recipes.made({HOSTILE: {"bits": 8}})
LABEL, BARE = "gptq 4-bit g64 by mine@12345678", "llmcompressor by mine@12345678"
PARTS = {"16.0": {"layers": 1, "parameters": 8}, "4.4": {"layers": 29, "parameters": 90}, HOSTILE: {"layers": HOSTILE}}
DID = {"left": [HOSTILE, *(f"layer.{n}" for n in range(9))], "unmatched": [HOSTILE]}


def cells(model: Model) -> list[Cell]:
    said = {recipes.RECIPE: recipes.option(RECIPE)}
    schemes = {
        "bf16": Scheme(method="bf16", bits=16),
        LABEL: Scheme(method="gptq", bits=4, options={"group_size": 64, **said}),
        BARE: Scheme(method="llmcompressor", bits=0, options=said),
        "rtn odd": Scheme(method="rtn", bits=4, options={"group_size": 64, recipes.RECIPE: HOSTILE}),
    }
    return [square(scheme, model=model, label=label) for label, scheme in schemes.items()]


@pytest.fixture
def shown(tmp_path: Path) -> View:
    def edit(record: Record) -> Record | None:
        if record.cell.label != LABEL:
            return record if record.cell.label == "bf16" else None
        metrics = {name: METRICS[name] for name in ("bpw_quantized", "quantized_share")}
        values = tuple(
            Measurement(metric=name, value=4.5 if name == "bpw_quantized" else 0.92, definition=m.definition, unit=m.unit, n=9)
            for name, m in metrics.items()
        )
        answer = Answer(measurements=values, facts={"parts": PARTS, "recipe": DID})
        return dataclasses.replace(record, answer=answer, failure=None)

    with mock.patch.multiple(synthetic, cells=cells, questions=lambda: [Question(probe="size", subject="")]):
        return view(store.read(synthetic.write(tmp_path, edit=edit)))


def test_each_recipe_is_a_row_with_what_it_did(shown: View) -> None:
    made = section_of_recipes.section(shown)
    assert made is not None
    body = str(made.body)
    assert "1 at 16" in body
    assert "29 at 4.4" in body
    assert "4.500" in body
    assert "92.0%" in body
    assert "and 4 more" in body
    assert RECIPE.digest[:16] in body
    assert "not said" in body
    assert "not measured" in body


def test_no_text_of_a_recipe_steers_the_page(shown: View) -> None:
    made = section_of_recipes.section(shown)
    assert made is not None
    assert "<script" not in str(made.body)
    assert "&lt;script&gt;" in str(made.body)
