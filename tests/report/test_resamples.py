"""Shared resamples: drawn all at once they are those drawn one by one, and totals are the same however they are summed."""

from __future__ import annotations

import numpy as np
import pytest

from harness.frontier import DRAWS
from harness.report.compare_items import _resampled
from harness.report.derivation import counts
from harness.spec import digest


@pytest.mark.parametrize("blocks", [1, 2, 7, 60, 500])
def test_resamples_are_those_of_one_draw_after_another(blocks: int) -> None:
    rng = np.random.default_rng(int(digest(["draws", "task", blocks])[:16], 16))
    one_by_one = [np.bincount(rng.integers(blocks, size=blocks), minlength=blocks) for _ in range(DRAWS)]
    assert np.array_equal(counts(blocks, "task"), np.stack(one_by_one))


@pytest.mark.parametrize("whole", [True, False])
def test_totals_of_many_cells_are_bit_for_bit_those_of_each(whole: bool) -> None:
    rng = np.random.default_rng(1)
    drawn = counts(97, "task")
    sums = rng.integers(0, 4, size=(30, 97)).astype(float) if whole else rng.uniform(size=(30, 97))
    for row, totals in zip(sums, _resampled(drawn, sums), strict=True):
        assert np.array_equal(totals, drawn @ row)
