"""The report's section on mixtures: the right neighbours, paired differences, who wins, and text that does no harm."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from harness import store
from harness.metrics import METRICS
from harness.report import mixed, sensitivity
from harness.report.mixed import Found
from harness.report.view import View, view
from harness.spec import MIXTURE, Answer, Cell, Measurement, Model, Question, Record, Scheme
from tests.report import synthetic
from tests.squares import square

HOSTILE = "<script>alert(1)</script>"
SAID = {"from": "sensitivity", "widths": [2, 3, 4, 8], "version": 1}
LABEL = "gptq mixed 3.8-bit g64"
SIZES = {LABEL: 3.8, "gptq 4-bit g64": 4.3, "gptq 3-bit g64": 3.3, "rtn 4-bit g64": 4.3}
LOSSES = {LABEL: 0.02, "gptq 4-bit g64": 0.016, "gptq 3-bit g64": 0.09, "rtn 4-bit g64": 0.03}


def cells(model: Model) -> list[Cell]:
    calibration = {"corpus": "reference", "samples": 8, "length": 64, "seed": 0}
    options = {"group_size": 64, "calibration": calibration}
    schemes = {
        "bf16": Scheme(method="bf16", bits=16),
        LABEL: Scheme(method="gptq", bits=3.8, options={**options, MIXTURE: SAID}),
        "gptq 4-bit g64": Scheme(method="gptq", bits=4, options=options),
        "gptq 3-bit g64": Scheme(method="gptq", bits=3, options=options),
        "rtn 4-bit g64": Scheme(method="rtn", bits=4, options={"group_size": 64}),
    }
    return [square(scheme, model=model, label=label) for label, scheme in schemes.items()]


def questions() -> list[Question]:
    return [
        Question(probe="size", subject=""),
        Question(probe="sensitivity", subject=""),
        Question(probe="divergence", subject="reference", options={"window": 256}),
    ]


def measured(name: str, value: float, blob: str | None = None) -> Measurement:
    return Measurement(metric=name, value=value, definition=METRICS[name].definition, unit=METRICS[name].unit, n=9, blob=blob)


def layers(name: str = "model.layers.0.mlp.up_proj") -> list[dict[str, Any]]:
    row = {"parameters": 64, "losses": {"2": 0.1, "3": 0.02, "4": 0.004}, "bits": {"2": 140, "3": 210, "4": 280}}
    return [{"layer": name, "chosen": "3", **row}, {"layer": "other", "chosen": "4", **row}, {"layer": 7}, {"layer": "odd"}]


def run(folder: Path, rows: list[dict[str, Any]], losses: dict[str, float] = LOSSES) -> View:
    def edit(record: Record) -> Record | None:
        label, probe = record.cell.label, record.question.probe
        if probe == "sensitivity" and label != LABEL:
            return None
        if label == "bf16":
            return record
        if probe == "size":
            answer = Answer(measurements=(measured("bpw_quantized", SIZES[label]),))
        elif probe == "divergence":
            answer = Answer(measurements=(measured("kl_mean", *_kl(folder, label, losses)),))
        else:
            name = store.add_blob(folder, json.dumps({"layers": rows}).encode(), "json")
            answer = Answer(measurements=(measured("kl_of_layers", 0.02, name),), facts={"rounding": HOSTILE, "tokens": HOSTILE})
        return dataclasses.replace(record, answer=answer, failure=None)

    sensed = lambda self, cell, question: Answer(measurements=())  # noqa: E731 - replaced by `edit`
    with (
        mock.patch.object(synthetic, "cells", cells),
        mock.patch.object(synthetic, "questions", questions),
        mock.patch.object(synthetic._Builder, "_sensitivity", sensed, create=True),
        mock.patch.object(synthetic._Builder, "loss", return_value=0.01),
    ):
        return view(store.read(synthetic.write(folder, edit=edit)))


def _kl(folder: Path, label: str, losses: dict[str, float]) -> tuple[float, str]:
    """Tokens that all cells find hard alike, in windows that each finds hard by itself, scaled to the mean that a cell has."""
    hard = np.random.default_rng(1).gamma(0.4, 2.5, size=(synthetic.WINDOWS, 255))
    hard *= np.random.default_rng(len(label) + int(1000 * losses[label])).uniform(0.8, 1.2, size=(synthetic.WINDOWS, 1))
    own = (hard / hard.mean() * losses[label]).astype(np.float32)
    return float(own.mean()), synthetic._Builder(folder, 0, 1, 1).npy(own)


def text_of(shown: View) -> str:
    section = mixed.section(shown)
    assert section is not None
    return str(section.body)


def test_a_mixture_stands_beside_the_uniform_cells_next_to_its_measured_bits_and_wins_below_their_line(tmp_path: Path) -> None:
    shown = run(tmp_path, layers())
    text = text_of(shown)
    assert "beside gptq 4-bit g64" in text
    assert "beside gptq 3-bit g64" in text
    assert "beside rtn" not in text
    assert "mixing wins" in text
    assert "the line is drawn, not measured" in text
    own = next(c for c in shown.cells if c.label == LABEL)
    three = next(c for c in shown.cells if c.label == "gptq 3-bit g64")
    difference = mixed.paired(shown, own, three, "reference")
    assert difference is not None
    assert difference.value == pytest.approx(0.02 - 0.09, rel=1e-4)
    assert difference.low is not None
    assert difference.high is not None
    assert difference.low < difference.value < difference.high < 0


def test_uniform_wins_above_the_line_and_neither_on_it(tmp_path: Path) -> None:
    line = 0.016 ** ((3.8 - 3.3) / 1.0) * 0.09 ** ((4.3 - 3.8) / 1.0)
    assert "uniform wins" in text_of(run(tmp_path / "above", layers(), {**LOSSES, LABEL: 2 * line}))
    assert "no difference is shown" in text_of(run(tmp_path / "on", layers(), {**LOSSES, LABEL: line * 1.001}))


def test_hostile_names_of_layers_and_words_of_a_side_car_are_escaped(tmp_path: Path) -> None:
    text = text_of(run(tmp_path, layers(HOSTILE)))
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"layer": "a"}],
        [{"layer": "a", "losses": [1], "bits": "x", "chosen": {}}],
        [{"layer": "a", "losses": {"2": "many", "3": 1e999}, "bits": {"2": -1}}],
        [{"layer": "a", "losses": {"2": 0.0}, "bits": {"2": 5}, "chosen": "2"}],
    ],
)
def test_a_side_car_of_another_form_shows_what_it_can_and_breaks_nothing(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert "Mixtures and their uniform neighbours" in text_of(run(tmp_path, rows))


def test_neighbours_are_the_next_ones_and_one_of_equal_bits_stands_alone() -> None:
    def found(bits: float) -> Found:
        return Found(cell=None, bits=bits, kl=None)  # type: ignore[arg-type]  # neighbours are chosen by bits alone

    own = found(3.5)
    assert [f.bits for f in mixed.neighbours(own, [found(b) for b in (8, 4.3, 3.3, 2.2)])] == [3.3, 4.3]
    assert [f.bits for f in mixed.neighbours(own, [found(b) for b in (4.3, 3.51, 3.3)])] == [3.51]
    assert [f.bits for f in mixed.neighbours(own, [found(2.2)])] == [2.2]
    assert mixed.neighbours(own, []) == []


def test_a_run_without_mixtures_has_no_such_section(tmp_path: Path) -> None:
    shown = view(store.read(synthetic.write(tmp_path, small=True)))
    assert mixed.section(shown) is None
    assert sensitivity.block(shown, shown.cells) is None
