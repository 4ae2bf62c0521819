"""What the report shows of energy: figures with the idle power that was subtracted, an axis of the chart, or one note."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.metrics.latency import ENERGY_PER_TOKEN
from harness.report import View, notes, speed, view
from harness.report.axes import chart_axes
from harness.spec import Answer, Measurement, Record
from harness.store import Run
from tests.report import enriched

REASON = "this is a virtual machine"


def changed(run: Run, change: Callable[[Answer], Answer]) -> View:
    def record(one: Record) -> Record:
        return one if one.question.probe != "latency" or one.answer is None else replace(one, answer=change(one.answer))

    return view(replace(run, records=tuple(record(one) for one in run.records)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return enriched.read(tmp_path_factory.mktemp("rich"))


def counted(answer: Answer) -> Answer:
    one = answer.measurements[0]
    shape = one.definition[one.definition.index("[") :] if "[" in one.definition else ""
    joules = Measurement(
        metric=ENERGY_PER_TOKEN.name,
        value=0.042,
        low=0.041,
        high=0.044,
        n=7,
        unit="J",
        definition=f"{ENERGY_PER_TOKEN.definition}, CPU packages (RAPL) {shape}",
    )
    facts = {**answer.facts, "energy": {"counter": "CPU packages (RAPL)", "idle_watts": 21.5}}
    return replace(answer, measurements=(*answer.measurements, joules), facts=facts)


def test_energy_stands_with_latency_in_its_own_prefix_and_with_the_power_of_the_idle_machine(run: Run) -> None:
    section = speed.section(changed(run, counted))
    assert section is not None
    assert "Energy per token" in section.body
    assert "mJ" in section.body
    assert "less the power of the idle machine just before: 21.50 W." in section.body


def test_energy_is_an_axis_of_the_chart(run: Run) -> None:
    names = {axis.column.metric.name for axis in chart_axes(changed(run, counted)).cost}
    assert ENERGY_PER_TOKEN.name in names
    assert ENERGY_PER_TOKEN.name not in {axis.column.metric.name for axis in chart_axes(view(run)).cost}


def test_a_machine_without_counters_says_so_once_whatever_the_number_of_cells(run: Run) -> None:
    shown = changed(run, lambda answer: replace(answer, facts={**answer.facts, "energy": {"unsupported": REASON}}))
    said = [note for note in notes.notes(shown) if REASON in note.text]
    assert [note.text for note in said] == [f"No energy is shown (unsupported): {REASON}."]
    assert said[0].lines == ()
    section = speed.section(shown)
    assert section is not None
    assert "Energy" not in section.body


def test_a_run_from_before_says_nothing_of_energy(run: Run) -> None:
    assert not [note for note in notes.notes(view(run)) if "nergy" in note.text]
