"""Work in a forked process beside this one: the same results, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness import forking, store
from harness.report.compare import compare
from harness.report.derivation import Derived
from harness.report.view import view
from tests.report import synthetic
from tests.scratch import ROOT


def test_work_is_done_in_another_process_and_its_result_is_handed_over() -> None:
    wait = forking.beside(lambda: (os.getpid(), np.arange(100_000)))
    where, numbers = wait()
    assert where != os.getpid()
    assert numbers.sum() == 4_999_950_000


def test_an_error_of_the_work_is_raised_where_its_result_is_waited_for() -> None:
    wait = forking.beside(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        wait()


def test_work_whose_process_is_killed_is_done_here() -> None:
    here = os.getpid()

    def work() -> str:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done here"

    assert forking.beside(work)() == "done here"


def test_where_no_process_can_be_had_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    assert forking.beside(lambda: os.getpid())() == os.getpid()


@pytest.mark.parametrize("processors", [2, 3, 64])
def test_models_that_are_compared_in_several_processes_give_the_same(
    processors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.write(tmp_path, models=[f"model-{i}" for i in range(10)])
    run = store.read(tmp_path)
    cells = view(run).cells
    monkeypatch.setattr(forking, "processors", lambda: 1)
    alone = compare(run.blob, cells)
    begun, beside = [], forking.beside

    def counted(work: Callable[[], Derived]) -> Callable[[], Derived]:
        begun.append(work)
        return beside(work)

    monkeypatch.setattr(forking, "beside", counted)
    monkeypatch.setattr(forking, "processors", lambda: processors)
    together = compare(run.blob, cells)
    assert len(begun) == min(processors, len(cells) // 100) - 1
    assert begun
    _equal(alone, together)


def _equal(one: Derived, other: Derived) -> None:
    for name in ("columns", "values", "missing", "losses"):
        assert repr(getattr(one, name)) == repr(getattr(other, name)), name  # the order, too
    assert {key: items.ids for key, items in one.items.items()} == {key: items.ids for key, items in other.items.items()}
    assert one.draws.keys() == other.draws.keys()
    for column, draws in one.draws.items():
        assert list(draws) == list(other.draws[column])
        assert all(np.array_equal(row, other.draws[column][cell]) for cell, row in draws.items())


def test_the_command_line_starts_without_what_a_report_needs() -> None:
    heavy = "[name for name in ('numpy', 'scipy', 'pandas', 'plotly', 'torch', 'harness.report') if name in sys.modules]"
    code = f"import sys, harness.cli; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]"
