"""Verdicts on a synthetic run whose tasks are rewritten as if they had been asked until one: what is said, and of which cells."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from harness import store
from harness.decide import Limits, decide, say
from harness.probes import sequential
from harness.report import View, terminal_table, view
from harness.report.candidates import candidates
from harness.report.standing import quality_columns
from harness.spec import Measurement, Question, Record
from tests.report import synthetic

WISH = {"margin": 0.01, "alpha": 0.05, "beta": 0.05}
VERDICT = {8: sequential.WITHIN, 4: sequential.WITHIN, 3: sequential.UNDECIDED, 2: sequential.WORSE}


def asked(question: Question) -> Question:
    if question.probe != "tasks":
        return question
    return dataclasses.replace(question, options={**question.options, sequential.KEY: WISH})


def rewritten(record: Record) -> Record:
    """As if until a verdict: 8 and 4 bits within the margin, 3 undecided, 2 worse; rtn at 4 bits worse on one task."""
    if record.question.probe != "tasks" or record.cell.method == "bf16":
        return record
    question = asked(record.question)
    if record.answer is None:
        return dataclasses.replace(record, question=question)
    worse = record.cell.label == "rtn 4-bit g64" and question.subject == "reference_recall"
    verdict = sequential.WORSE if worse else VERDICT.get(int(record.cell.bits), sequential.WITHIN)
    said: dict[str, Any] = {"definition": "lm-eval acc, until a verdict", "n": 20}
    found = (
        Measurement(metric="sequential_verdict", value=verdict, unit="verdict", **said),
        Measurement(metric="sequential_items", value=20.0, unit="items", **{**said, "n": 40}),
        Measurement(metric="sequential_difference", value=-0.5, low=-2.0, high=1.0, unit="points", **said),
        Measurement(metric="sequential_accuracy", value=0.7, low=0.5, high=0.9, unit="share", **said),
    )
    return dataclasses.replace(record, question=question, answer=dataclasses.replace(record.answer, measurements=found))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> View:
    run = store.read(synthetic.write(tmp_path_factory.mktemp("verdicts"), small=True))
    cells = tuple(
        c if c.baseline else dataclasses.replace(c, questions=tuple(asked(q) for q in c.questions)) for c in run.plan.cells
    )
    plan = dataclasses.replace(run.plan, cells=cells)
    return view(dataclasses.replace(run, plan=plan, records=tuple(rewritten(r) for r in run.records)))


def test_only_a_cell_whose_every_verdict_is_within_the_margin_is_picked(shown: View) -> None:
    cells = candidates(shown)
    limits = Limits(loss="kl", max_loss=1e6)  # the verdicts alone decide
    (answer,) = decide(cells, limits).recommendations
    sizes = {c.label: c.size.value or 0.0 for c in cells if c.bits == 4}
    assert min(sizes, key=sizes.__getitem__) == "rtn 4-bit g64", "the smallest is worse on one task"
    del sizes["rtn 4-bit g64"]
    picked, worse = ({c.id: c.label for c in cells}[answer.pick or ""], next(c.id for c in cells if c.label == "rtn 4-bit g64"))
    assert sizes[picked] == min(sizes.values())
    said = say(cells, limits, answer).fails[worse]
    assert "not every task is shown to be within 1 point" in said
    assert "worse on 1 task (reference_recall)" in said


def test_neither_p_values_nor_means_nor_ranks_are_made_of_parts_of_items(shown: View) -> None:
    names = {c.metric.name for c in shown.columns}
    assert not names & {"mcnemar_p", "mcnemar_p_holm", "accuracy_difference", "recovery", "mean_accuracy", "flips_lost"}
    assert not {c.metric.name for c in quality_columns(shown)} & {"accuracy", "sequential_accuracy", "sequential_difference"}
    (accuracy,) = {c.key for c in shown.of("accuracy") if c.subject == "reference_facts"}
    assert {c.label for c in shown.cells if c.values[accuracy].status == "ok"} == {"bf16"}
    assert {c.values[accuracy].status for c in shown.cells if not c.baseline} == {"absent"}


def test_the_terminal_shows_counts_and_no_accuracy_of_the_baseline_alone(shown: View) -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(terminal_table(shown))
    drawn = console.export_text()
    assert "accuracy" not in drawn
    assert "verdicts: tasks within / worse / undecided, margin 1 point" in " ".join(drawn.split())
    lines = {line[:14].strip(): line for line in drawn.splitlines()}
    assert "5 / 1 / 0" in lines["rtn 4-bit g64"]
    assert "0 / 6 / 0" in lines["rtn 2-bit g64"]
    assert "0 / 0 / 5" in lines["hqq 3-bit g64"], "one of its tasks timed out"
