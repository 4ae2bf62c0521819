"""The report's section on keys and values: bytes of a token, and what a type is worth in bits of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.metrics.memory import CacheShape
from harness.report import kv as section
from harness.report.cells import CellView
from harness.spec import Cell, Measurement, Model, Quantized, Running, Scheme


def kept(word: str, *, weights: float | None = 16e6, engine: str = "llamacpp") -> section.Kept:
    origin = Quantized(scheme=Scheme(method="gguf", bits=16.0))
    cell = Cell(model=Model(name="m"), origin=origin, running=Running(engine=engine, kv=word))
    view = CellView(id=word, cell=cell, baseline=False, simulated=False, outcomes=(), series="")
    made = section._kept(None, view, CacheShape(layers=5, kv_heads=4, head_size=64))  # type: ignore[arg-type]
    return replace(made, weights=weights, counted=made.each)


def test_a_type_is_worth_a_weight_bit_where_the_bytes_it_saves_are_as_many() -> None:
    plain, eight = kept("f16"), kept("int8")
    assert (plain.each, eight.each) == (5120.0, 2720.0)
    assert section._worth(eight, [plain, eight]) == "417"  # 16 MB / 16 bits / 2,400 bytes a token
    assert section._worth(plain, [plain, eight]) == "–"
    assert section._worth(eight, [eight]) == "–"
    assert section._worth(replace(eight, counted=None), [plain, eight]) == "–", "what is not measured is worth nothing yet"


def weighed(value: float) -> Measurement:
    return Measurement(metric="kv_bytes_per_token", value=value, low=value - 1, high=value + 2, n=3, definition="", unit="B")


def test_weighed_bytes_stand_before_counted_ones_and_are_held_against_weighed_ones_only() -> None:
    plain, eight = replace(kept("f16"), weighed=weighed(5200.0)), replace(kept("int8"), weighed=weighed(2900.0))
    assert (plain.held, eight.held) == (5200.0, 2900.0)
    assert section._held(eight) == "2,900 [2,899, 2,902]"
    assert section._worth(eight, [plain, eight]) == "435"  # 1 MB / 2,300 bytes a token
    only = replace(eight, counted=None)
    assert section._worth(only, [kept("f16"), only]) == "–", "the other one was not weighed"


@pytest.mark.parametrize("word", ["<script>", "turbo4/<b>", ""])
def test_words_that_no_engine_knows_have_no_arithmetic(word: str) -> None:
    assert kept(word).each is None


def test_the_section_is_in_the_report() -> None:
    from harness.report import SECTIONS

    assert section.section in SECTIONS
    assert Path(str(section.__file__)).name == "kv.py"
