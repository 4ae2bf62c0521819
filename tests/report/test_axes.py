"""What the chart can be drawn by, and in which colours."""

from __future__ import annotations

import itertools
import re
from importlib import resources

import numpy as np
import pytest

from harness.methods import METHODS
from harness.report.axes import FLIPS, MEAN_RECOVERY, ChartAxis, chart_axes
from harness.report.charts import payload
from harness.report.derived import FLIPS_GAINED, FLIPS_LOST, MEAN_ACCURACY
from harness.report.families import FAMILIES, family
from harness.report.view import View
from harness.stats import wilson

Colour = np.ndarray


def axis(shown: View, metric: str) -> ChartAxis:
    axes = chart_axes(shown)
    return next(a for a in (*axes.quality, *axes.cost) if a.column.metric.name == metric)


def test_recovery_is_the_share_of_the_baselines_mean_that_is_kept(shown: View) -> None:
    mean, recovery = shown.column(MEAN_ACCURACY.name), axis(shown, MEAN_RECOVERY.name)
    assert mean is not None
    base = next(c for c in shown.cells if c.baseline)
    cell = next(c for c in shown.cells if c.label == "gptq 3-bit g64")
    value = recovery.values[cell.id]
    assert value.value == pytest.approx(cell.values[mean.key].value / base.values[mean.key].value)
    assert value.low is not None
    assert value.high is not None
    apart = cell.values[mean.key]
    assert apart.low is not None
    assert apart.high is not None
    unpaired = (apart.high - apart.low) / base.values[mean.key].value
    assert value.low < value.value < value.high
    assert value.high - value.low < unpaired, "the same items for both: narrower than the mean's own interval"
    assert (recovery.values[base.id].value, recovery.values[base.id].low) == (1.0, None)


def test_flips_of_all_tasks_are_counted_both_ways(shown: View) -> None:
    cell = next(c for c in shown.cells if c.label == "awq 4-bit g64")
    columns = shown.of(FLIPS_LOST.name, FLIPS_GAINED.name)
    flips = sum(cell.values[c.key].value for c in columns)
    items = sum(cell.values[c.key].n or 0 for c in columns) // 2
    value, expected = axis(shown, FLIPS.name).values[cell.id], wilson(flips, items)
    assert (value.value, value.low, value.high, value.n) == (flips / items, expected.low, expected.high, items)
    lacking = next(c for c in shown.cells if c.label == "hqq 3-bit g64")
    assert axis(shown, FLIPS.name).values[lacking.id].status == "timeout", "one task has no answer, so the sum has none"


def test_shares_near_the_ceiling_are_drawn_by_what_is_missing(shown: View) -> None:
    scales = {c.metric: c.scale for c in payload(shown).columns}
    assert scales["mean_accuracy"] == "error"
    assert scales["kl_mean"] == "log"
    assert scales["bpw_model"] == "linear"


def test_every_method_has_a_family_and_there_are_at_most_eight() -> None:
    assert len(FAMILIES) <= 8
    unquantized = {name for name, row in METHODS.items() if row.unquantized}
    others = {name for name in METHODS if family(name) == "other"} - unquantized
    assert others == {"llmcompressor", "modelopt", "prequantized", "endpoint"} | {n for n in METHODS if n.startswith("fake")}
    assert family("a method of another package") == "other"


# Machado, Oliveira and Fernandes 2009, table of severity 1.0; linear RGB.
SIGHT = {
    "all cones": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> Colour:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    made: Colour = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return made


def lab(rgb: Colour) -> Colour:
    """CIE 1976 L*a*b*, D65."""
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_the_colours_of_the_families_differ_to_every_kind_of_eye(theme: int, sight: str) -> None:
    style = (resources.files("harness.report") / "assets" / "report.css").read_text(encoding="utf-8")
    names = [f"--m{i}" for i in range(len(FAMILIES))] + ["--native"]
    colours = [re.findall(rf"{name}: (#[0-9a-f]{{6}});", style)[theme] for name in names]
    seen = [lab(SIGHT[sight] @ linear(c)) for c in colours]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
    assert nearest > 15, "a difference of 2 is just noticeable side by side; marks lie apart and are small"
