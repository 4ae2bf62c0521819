"""`repeat` of a suite: the same scheme from several draws of its rows, and what the report says of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness import store
from harness.errors import BadInput, UnknownName
from harness.metrics import METRICS
from harness.report import seeds
from harness.report.seeds import Spread
from harness.report.view import View, view
from harness.spec import Answer, Cell, Measurement, Model, Question, Record, Scheme
from harness.suite import matrix
from harness.suite.plan import Plan
from tests.report import synthetic
from tests.squares import square

HEAD = "name: one\nmodels: [reference]\nbaseline: bf16\nprobes: [size]\n"


def planned(folder: Path, methods: str, more: str = "") -> Plan:
    (folder / "one.yaml").write_text(f"{HEAD}{more}methods: {{bf16: , {methods}}}\n")
    return matrix.plan(folder / "one.yaml", device="cpu")


def drawn(plan: Plan, method: str) -> list[tuple[str, object]]:
    cells = [p.cell for p in plan.cells if p.cell.method == method]
    return [(cell.label, cell.scheme.options["calibration"]["seed"]) for cell in cells]


def test_a_repeated_method_is_drawn_by_seeds_counted_up_from_the_suites(tmp_path: Path) -> None:
    plan = planned(tmp_path, "gptq: {bits: 4, group_size: 64, repeat: 3}", "calibration: {samples: 8, length: 64, seed: 5}\n")
    assert drawn(plan, "gptq") == [(f"gptq 4-bit g64 seed {seed}", seed) for seed in (5, 6, 7)]


def test_each_calibration_of_an_entry_is_repeated_with_its_own_settings(tmp_path: Path) -> None:
    entry = "gptq: {bits: 4, repeat: 2, calibration: [{samples: 8}, {samples: 16, seed: 3}]}"
    plan = planned(tmp_path, entry)
    rows = [p.cell.scheme.options["calibration"] for p in plan.cells if p.cell.method == "gptq"]
    assert [(row["samples"], row["seed"]) for row in rows] == [(8, 0), (8, 1), (16, 3), (16, 4)]


def test_a_method_that_trains_is_trained_on_other_rows_with_its_controls(tmp_path: Path) -> None:
    plan = planned(tmp_path, "qat: {bits: 4, repeat: 2}", "train: {steps: 4, rows: 2, length: 32}\n")
    assert [seed for _, seed in drawn(plan, "qat")] == [0, 1]
    assert [seed for _, seed in drawn(plan, "ft")] == [0, 1], "each has its own control"


def test_a_mixture_of_a_method_without_rows_is_repeated_because_its_widths_are_chosen_by_text(tmp_path: Path) -> None:
    plan = planned(tmp_path, "rtn: {target_bits: 3.4, group_size: 64, repeat: 2}")
    mixtures = [p.cell.scheme for p in plan.cells if p.cell.scheme.mixture is not None]
    assert [scheme.options["calibration"]["seed"] for scheme in mixtures] == [0, 1]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("gptq: {bits: 4, repeat: 1}", "repeat: 1 is no number of draws from 2 to 16"),
        ("gptq: {bits: 4, repeat: true}", "repeat: true is no number of draws"),
        ("gptq: {bits: 4, repeat: [2, 3]}", "is no number of draws"),
        ("gptq: {bits: 4, repeat: 17}", "repeat: 17 is no number of draws"),
        ("rtn: {bits: 4, repeat: 3}", "rtn draws no rows, so that all repetitions would be the same"),
    ],
)
def test_what_cannot_be_repeated_is_said_with_its_line(entry: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        planned(tmp_path, entry)


def test_another_word_for_it_is_no_option(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="'repeat'"):
        planned(tmp_path, "gptq: {bits: 4, repeats: 3}")


HOSTILE = "<script>alert(1)</script>"


def shown_of(folder: Path) -> View:
    """Three draws of gptq and of awq at 4 bits, one of gptq at 3, with numbers of divergence that are written here."""
    rows = {"corpus": HOSTILE, "samples": 8, "length": 64}

    def cells(model: Model) -> list[Cell]:
        made = [square(Scheme(method="bf16", bits=16), model=model, label="bf16")]
        for method, bits, draws in (("gptq", 4, 3), ("awq", 4, 3), ("gptq", 3, 1)):
            for seed in range(draws):
                options = {"group_size": 64, "calibration": {**rows, "seed": seed}}
                scheme = Scheme(method=method, bits=bits, options=options)
                made.append(square(scheme, model=model, label=f"{method} {bits}-bit {HOSTILE} seed {seed}"))
        return made

    def edit(record: Record) -> Record:
        cell = record.cell
        if cell.method == "bf16":
            return record
        value = {"gptq": 0.010, "awq": 0.030}[cell.method] + 0.001 * cell.scheme.options["calibration"]["seed"]
        metric = METRICS["kl_mean"]
        kl = Measurement(
            metric="kl_mean",
            value=value,
            low=value - 0.002,
            high=value + 0.002,
            definition=metric.definition,
            unit=metric.unit,
            n=9,
        )
        return dataclasses.replace(record, answer=Answer(measurements=(kl,)), failure=None)

    asked = [Question(probe="divergence", subject="reference", options={"window": 256})]
    with (
        mock.patch.object(synthetic, "cells", cells),
        mock.patch.object(synthetic, "questions", return_value=asked),
        mock.patch.object(synthetic._Builder, "loss", return_value=0.01),
    ):
        return view(store.read(synthetic.write(folder, edit=edit)))


def test_draws_of_one_scheme_stand_together_under_the_words_that_they_share(tmp_path: Path) -> None:
    shown = shown_of(tmp_path)
    found = seeds.repeated([cell for cell in shown.cells if not cell.baseline])
    assert [(each.label, len(each.cells)) for each in found] == [(f"gptq 4-bit {HOSTILE}", 3), (f"awq 4-bit {HOSTILE}", 3)]
    spread = seeds.spread_of(shown, found[0], "kl_mean", "reference")
    assert spread is not None
    assert (spread.mean, spread.deviation, spread.draws, spread.items) == pytest.approx((0.011, 0.001, 3, 0.002))


def test_the_section_says_which_schemes_differ_beyond_their_draws_and_escapes_all_text(tmp_path: Path) -> None:
    section = seeds.section(shown_of(tmp_path))
    assert section is not None
    text = str(section.body)
    assert "differ in KL on reference beyond their draws: -0.02" in text
    assert "<script>" not in text
    assert "3-bit" not in text, "one draw has no spread"


def test_a_run_without_repetitions_has_no_such_section(tmp_path: Path) -> None:
    assert seeds.section(view(store.read(synthetic.write(tmp_path, small=True)))) is None


def test_two_methods_are_compared_by_their_draws_as_welch_has_it() -> None:
    one, two = np.array([0.010, 0.012, 0.017]), np.array([0.020, 0.0205, 0.021, 0.019])
    spreads = [Spread(mean=float(v.mean()), deviation=float(v.std(ddof=1)), draws=v.size, items=None) for v in (one, two)]
    theirs = scipy_stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    assert seeds.difference(*spreads) == pytest.approx((theirs.low, theirs.high))


def test_two_draws_are_too_few_to_tell_schemes_apart(tmp_path: Path) -> None:
    found = seeds.repeated([cell for cell in shown_of(tmp_path).cells if not cell.baseline])
    few = Spread(mean=1.0, deviation=0.1, draws=2, items=None)
    many = Spread(mean=2.0, deviation=0.1, draws=5, items=None)
    (sentence,) = seeds.sentences("KL", [(found[0], few), (found[1], many)])
    assert "2 draws are too few to tell them apart in KL; write repeat: 3." in sentence


def test_equal_draws_of_equal_methods_differ_by_nothing() -> None:
    same = Spread(mean=0.5, deviation=0.0, draws=3, items=0.1)
    assert seeds.difference(same, same) == (0.0, 0.0)
