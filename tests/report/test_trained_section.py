"""The report's section on whether training pays: what stands beside a trained cell, the paired differences, and who wins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from harness import store
from harness.report import SECTIONS, trained, view
from harness.report.cells import CellView
from harness.report.trained import Beside
from harness.report.view import View
from harness.spec import Cell, Model, Quantized, Running, Scheme
from harness.stats.intervals import Interval
from tests.report import synthetic
from tests.squares import square

ROWS = {"corpus": "reference", "samples": 400, "length": 256, "seed": 0}
TRAIN = {"steps": 100, "rows": 4, "rate": 1e-4, "loss": "ce"}
NASTY = '<script>alert("x")</script>'


def cells(model: Model) -> list[Cell]:
    own = {"type": "weights", "group_size": 64, "train": TRAIN, "calibration": ROWS}
    schemes = {
        "bf16": Scheme(method="bf16", bits=16),
        "rtn 3-bit g64": Scheme(method="rtn", bits=3, options={"group_size": 64}),
        "rtn 4-bit g64": Scheme(method="rtn", bits=4, options={"group_size": 64}),
        "ft 16-bit": Scheme(method="ft", bits=16, options={"train": TRAIN, "calibration": ROWS}),
        "ft+ptq 3-bit g64": Scheme(method="ft+ptq", bits=3, options=own),
        "ft+ptq 3-bit other": Scheme(method="ft+ptq", bits=3, options={**own, "train": {**TRAIN, "steps": 7}}),
        f"qat {NASTY}": Scheme(method="qat", bits=3, options=own),
    }
    return [square(scheme, model=model, label=label) for label, scheme in schemes.items()]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> View:
    damage = {**synthetic.DAMAGE, "ft": 0.1, "ft+ptq": 0.9, "qat": 0.3}
    with mock.patch.object(synthetic, "cells", cells), mock.patch.object(synthetic, "DAMAGE", damage):
        path = synthetic.write(tmp_path_factory.mktemp("run"))
    return view(store.read(path))


def cell(of: View, method: str) -> CellView:
    return next(c for c in of.cells if c.cell.method == method)


def test_a_trained_cell_stands_beside_its_training_rounded_its_training_plain_and_equal_bytes(shown: View) -> None:
    found = trained.beside(shown, cell(shown, "qat"), shown.cells)
    assert [(each.cell.label, each.role) for each in found] == [
        ("ft+ptq 3-bit g64", "the same training, rounded afterwards"),
        ("ft 16-bit", "the same training, not quantized"),
    ] + [(each.cell.label, "plain rounding of equal bytes") for each in found[2:]]
    assert all(each.cell.cell.bits == 3 for each in found[2:])


def test_differences_are_paired_and_have_intervals(shown: View) -> None:
    (rounded, *_) = trained.beside(shown, cell(shown, "qat"), shown.cells)
    for name in ("kl", "loss", "answers"):
        change = rounded.differences[name]
        assert isinstance(change, Interval), change
        assert change.low is not None
        assert change.high is not None
        assert change.low <= change.value <= change.high
    loss = rounded.differences["kl"]
    assert isinstance(loss, Interval)
    assert loss.value < 0


def test_the_section_shows_all_of_it_and_escapes_what_it_is_given(shown: View) -> None:
    made = trained.section(shown)
    assert made is not None
    body = str(made.body)
    assert NASTY not in body
    assert "&lt;script&gt;" in body
    for words in ("ft+ptq 3-bit g64", "proves nothing", "no comparison: trained", "plain rounding of equal"):
        assert words in body + made.lead
    assert trained.section in SECTIONS


def test_a_report_without_trained_cells_has_no_such_section(tmp_path: Path) -> None:
    assert trained.section(view(store.read(synthetic.write(tmp_path, small=True)))) is None


# ---- who wins ----


def of(value: float) -> Interval:
    return Interval(value=value, low=value - 0.01, high=value + 0.01, n=100, level=0.95)


def one(method: str, *, loss: float = 0.0, kl: float = 0.0, accuracy: float = 0.0, role: str = "") -> Beside:
    scheme = Scheme(method=method, bits=3.0, options={"train": TRAIN} if role == "" else {})
    held = Cell(model=Model(name="m"), origin=Quantized(scheme=scheme), running=Running(engine="transformers"), label=method)
    view = CellView(id=method, cell=held, baseline=False, simulated=False, outcomes=(), series="")
    return Beside(cell=view, role=role, differences={"loss": of(loss), "kl": of(kl), "answers": of(accuracy)})


PLAIN = "plain rounding of equal bytes"


@pytest.mark.parametrize(
    ("rounded", "said"),
    [
        (one("ft+ptq", loss=-0.05, kl=-0.05), "qat pays in divergence and loss of the text: it beats ft+ptq"),
        (one("ft+ptq", loss=0.05, kl=0.05), "qat does not pay: ft+ptq"),
        (
            one("ft+ptq"),
            "qat is not told from ft+ptq, the same training rounded afterwards. What it gains",
        ),
        (one("ft+ptq", loss=-0.05, kl=0.05), "qat is not told from ft+ptq"),
    ],
)
def test_who_wins_is_told_against_the_same_training_rounded_afterwards(rounded: Beside, said: str) -> None:
    plain = one("rtn", loss=-0.5, kl=-0.5, role=PLAIN)
    assert trained.sentences(one("qat").cell, [rounded, plain])[-1].startswith(said)


def test_an_adapter_stands_beside_the_best_untrained_cell_of_fewer_bytes(shown: View) -> None:
    trained_cell = cell(shown, "qat")
    with mock.patch.object(trained, "EQUAL", -1.0):  # nothing has equal bytes
        found = trained.beside(shown, trained_cell, shown.cells)
    (best,) = [each for each in found if each.role == "the best untrained cell of fewer bytes"]
    assert best.cell.label == "rtn 3-bit g64"


def test_without_plain_training_nothing_is_said_of_whose_gain_an_adapter_has() -> None:
    adapter = one("qlora")
    options = {"train": TRAIN, "rank": 4}
    scheme = replace(adapter.cell.cell.scheme, options=options)
    held = replace(adapter.cell, cell=replace(adapter.cell.cell, origin=Quantized(scheme=scheme)))
    (*_, last) = trained.sentences(held, [one("bnb", loss=-0.1, role="its base")])
    assert last.startswith("ft of the same training is not among the cells")


def test_without_that_control_nothing_is_said_of_paying() -> None:
    (*_, last) = trained.sentences(one("qat").cell, [one("rtn", loss=-0.5, kl=-0.5, role=PLAIN)])
    assert last == "ft+ptq of the same training is not among the cells, so whether qat pays is not known."


def test_what_cannot_be_compared_says_why() -> None:
    lacking = one("ft+ptq")
    lacking = replace(lacking, differences={**lacking.differences, "loss": "other windows"})
    first, last = trained.sentences(one("qat").cell, [lacking])
    assert "loss of the text is not compared (other windows)" in first
    assert last == "Whether qat pays is not known: other windows."
