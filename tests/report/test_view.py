"""Every planned square has a value or a reason, and what is derived equals an independent computation."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from harness import store
from harness.report.cells import CellView, Value
from harness.report.standing import cost_columns, headline, quality_columns, standings
from harness.report.view import View, view
from harness.spec import Answer, Failure, Measurement, Record, to_json
from tests.intervals import high, low
from tests.report import synthetic


def cell(shown: View, label: str) -> CellView:
    return next(c for c in shown.cells if c.label == label)


def value(shown: View, label: str, metric: str, subject: str | None = None) -> Value:
    column = shown.column(metric, subject)
    assert column is not None, f"no column {metric} {subject}"
    return cell(shown, label).values[column.key]


def record(run: store.Run, label: str, probe: str, subject: str) -> Record:
    return next(r for r in run.records if r.cell.label == label and r.question.probe == probe and r.question.subject == subject)


def items(run: store.Run, label: str, task: str) -> np.ndarray:
    answer = record(run, label, "tasks", task).answer
    assert answer is not None
    blob = answer.measurements[0].blob
    assert blob is not None
    return np.array([i["correct"] for i in json.loads(run.blob(blob))["items"]])


def test_every_planned_cell_has_a_number_or_a_reason_in_every_column(shown: View) -> None:
    assert len(shown.cells) == 22
    assert {c.label for c in shown.cells} >= {"bf16", "rtn 2-bit g64", "awq 2-bit g64", "bnb 4-bit nf4"}
    assert len(shown.columns) > 50
    for one in shown.cells:
        assert set(one.values) == {c.key for c in shown.columns}
        for found in one.values.values():
            assert (found.status == "ok") == math.isfinite(found.value)
            assert found.status == "ok" or found.reason


def test_failed_and_missing_questions_say_which_and_why(shown: View) -> None:
    assert value(shown, "awq 2-bit g64", "perplexity").status == "oom"
    assert "killed" in value(shown, "awq 2-bit g64", "accuracy_difference", "reference_facts").reason
    assert value(shown, "hqq 3-bit g64", "accuracy", "reference_sums").status == "timeout"
    assert value(shown, "hqq 3-bit g64", "mcnemar_p", "reference_sums").status == "timeout"
    assert value(shown, "hqq 2-bit g64", "peak_host_bytes").status == "not run"
    assert [u.cell.bits for u in shown.unsupported] == [3, 2]


def test_the_mean_over_tasks_is_not_given_where_a_task_is_missing(shown: View) -> None:
    found = value(shown, "hqq 3-bit g64", "mean_accuracy")
    assert found.status == "timeout"
    assert "1 of 6 tasks" in found.reason
    assert "reference_sums" in found.reason


def test_a_simulated_cell_shows_accuracy_and_no_memory_or_latency(shown: View) -> None:
    assert cell(shown, "inc 4-bit g64").simulated
    assert value(shown, "inc 4-bit g64", "mean_accuracy").status == "ok"
    withheld = [c for c in shown.columns if c.probe in {"memory", "latency"}]
    assert len(withheld) > 5
    for column in withheld:
        assert cell(shown, "inc 4-bit g64").values[column.key].status == "simulated"


def test_a_simulated_cell_shows_no_latency_even_if_a_record_holds_one(folder: Path) -> None:
    def simulate(r: Record) -> Record:
        return dataclasses.replace(r, simulated=True) if r.cell.label == "rtn 4-bit g64" else r

    shown = view(store.read(synthetic.write(folder, edit=simulate, small=True)))
    assert value(shown, "rtn 4-bit g64", "tpot").status == "simulated"
    assert value(shown, "rtn 8-bit g64", "tpot").status == "ok"


@pytest.mark.parametrize("label", ["gptq 3-bit g64", "rtn 2-bit g64"])
def test_flips_and_mcnemar_agree_with_a_direct_count(run: store.Run, shown: View, label: str) -> None:
    for task in synthetic.TASKS:
        before, after = items(run, "bf16", task), items(run, label, task)
        lost, gained = int((before & ~after).sum()), int((~before & after).sum())
        assert lost + gained > 0
        assert value(shown, label, "flips_lost", task).value == lost
        assert value(shown, label, "flips_gained", task).value == gained
        assert value(shown, label, "mcnemar_p", task).value == pytest.approx(binomtest(lost, lost + gained).pvalue)
        difference = value(shown, label, "accuracy_difference", task)
        assert difference.value == pytest.approx(100 * (gained - lost) / synthetic.ITEMS)
        assert low(difference) < difference.value < high(difference)
        assert value(shown, label, "recovery", task).value == pytest.approx(after.sum() / before.sum())


def test_holm_is_over_all_cells_and_tasks_of_the_run(shown: View) -> None:
    from statsmodels.stats.multitest import multipletests

    raw, corrected = [], []
    for task in synthetic.TASKS:
        for one in shown.cells:
            found = value(shown, one.label, "mcnemar_p", task)
            if found.status == "ok":
                raw.append(found.value)
                corrected.append(value(shown, one.label, "mcnemar_p_holm", task).value)
    assert len(raw) == 20 * 6 - 1
    assert corrected == pytest.approx(multipletests(raw, method="holm")[1])


def test_ln_ppl_ratio_is_the_difference_of_mean_losses(run: store.Run, shown: View) -> None:
    def nll(label: str) -> np.ndarray:
        answer = record(run, label, "perplexity", "reference").answer
        assert answer is not None
        return np.load(io.BytesIO(run.blob(str(answer.measurements[0].blob)))).astype(float)

    found = value(shown, "rtn 3-bit g64", "ln_ppl_ratio")
    assert found.value == pytest.approx(nll("rtn 3-bit g64").mean() - nll("bf16").mean(), rel=1e-6)
    assert low(found) < found.value < high(found)
    assert value(shown, "bf16", "ln_ppl_ratio").status == "baseline"


def test_a_measured_ln_ppl_ratio_is_not_derived_a_second_time(folder: Path) -> None:
    def measured(r: Record) -> Record:
        if r.question.probe != "divergence" or r.answer is None:
            return r
        extra = Measurement(metric="ln_ppl_ratio", value=0.5, definition="measured", unit="nat")
        return dataclasses.replace(r, answer=Answer(measurements=(*r.answer.measurements, extra)))

    shown = view(store.read(synthetic.write(folder, edit=measured, small=True)))
    assert [c.metric.definition for c in shown.of("ln_ppl_ratio")] == ["measured"]


def test_a_tokens_that_are_not_finite_are_left_out_of_both(folder: Path) -> None:
    path = synthetic.write(folder)
    bad = np.full((synthetic.WINDOWS, synthetic.TOKENS - 1), 2.0, dtype=np.float32)
    bad[0, :5] = np.nan

    def with_nan(r: Record) -> Record:
        if r.question.probe != "perplexity" or r.cell.label != "rtn 8-bit g64" or r.answer is None:
            return r
        buffer = io.BytesIO()
        np.save(buffer, bad)
        name = store.add_blob(path.parent, buffer.getvalue(), "npy")
        return dataclasses.replace(r, answer=Answer(measurements=(dataclasses.replace(r.answer.measurements[0], blob=name),)))

    run = store.read(path)
    changed = dataclasses.replace(run, records=tuple(with_nan(r) for r in run.records))
    found = value(view(changed), "rtn 8-bit g64", "ln_ppl_ratio")
    assert found.status == "ok"
    assert found.n == bad.size - 5


def test_missing_blobs_cost_the_comparison_and_nothing_else(folder: Path) -> None:
    run = store.read(synthetic.write(folder, small=True))
    for file in (folder / "blobs").rglob("*.json"):
        file.unlink()
    shown = view(run)
    assert value(shown, "rtn 4-bit g64", "accuracy", "reference_facts").status == "ok"
    assert value(shown, "rtn 4-bit g64", "mean_accuracy").status == "ok"
    assert value(shown, "rtn 4-bit g64", "mean_accuracy").low is None
    found = value(shown, "rtn 4-bit g64", "accuracy_difference", "reference_facts")
    assert found.status == "not comparable"
    assert "not on disk" in found.reason
    assert value(shown, "rtn 4-bit g64", "ln_ppl_ratio").status == "ok"
    assert shown.derived.missing


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"not json",
        b'{"items": 3}',
        b'{"items": [{"id": "a"}]}',
        b'{"items": []}',
        b'{"items": [{"id": "a", "correct": NaN}]}',
    ],
)
def test_a_blob_that_is_garbage_is_a_reason_and_no_crash(run: store.Run, garbage: bytes) -> None:
    from harness.report.compare import compare
    from harness.report.view import view as make

    cells = make(run).cells
    found = compare(lambda name: garbage, cells)
    statuses = {
        v.status for values in found.values.values() for key, v in values.items() if key.startswith("accuracy_difference")
    }
    assert statuses == {"not comparable", "baseline", "oom", "timeout"}


def test_other_items_than_the_baselines_are_never_compared(folder: Path) -> None:
    path = synthetic.write(folder)
    name = store.add_blob(folder, json.dumps({"items": [{"id": "x", "correct": True}]}).encode(), "json")

    def other(r: Record) -> Record:
        if r.cell.label != "rtn 4-bit g64" or r.question.subject != "reference_facts" or r.answer is None:
            return r
        return dataclasses.replace(r, answer=Answer(measurements=(dataclasses.replace(r.answer.measurements[0], blob=name),)))

    run = store.read(path)
    shown = view(dataclasses.replace(run, records=tuple(other(r) for r in run.records)))
    found = value(shown, "rtn 4-bit g64", "accuracy_difference", "reference_facts")
    assert found.status == "not comparable"
    assert "other items" in found.reason


def test_without_a_baseline_answer_there_is_no_comparison_and_it_says_so(folder: Path) -> None:
    shown = view(
        store.read(synthetic.write(folder, edit=lambda r: None if r.cell.label == "bf16" else r, small=True)),
    )
    assert value(shown, "bf16", "perplexity").status == "not run"
    found = value(shown, "rtn 4-bit g64", "ln_ppl_ratio")
    assert found.status == "not comparable"
    assert "baseline" in found.reason


def test_a_task_that_nobody_answered_is_left_out_of_the_mean(folder: Path) -> None:
    lost = synthetic.TASKS[0]
    run = store.read(synthetic.write(folder, edit=lambda r: None if r.question.subject == lost else r, small=True))
    shown = view(run)
    found = value(shown, "rtn 4-bit g64", "mean_accuracy")
    others = [value(shown, "rtn 4-bit g64", "accuracy", task).value for task in synthetic.TASKS[1:]]
    assert found.value == pytest.approx(np.mean(others))
    assert value(shown, "rtn 4-bit g64", "mean_accuracy_difference").status == "ok"


def test_scored_tasks_without_right_and_wrong_are_no_part_of_the_mean(folder: Path) -> None:
    scored = synthetic.TASKS[0]

    def edit(r: Record) -> Record:
        if r.question.subject != scored or r.answer is None:
            return r
        return dataclasses.replace(
            r, answer=Answer(measurements=(Measurement(metric="task_score", value=7.0, definition="lm-eval x", unit=""),))
        )

    shown = view(store.read(synthetic.write(folder, edit=edit, small=True)))
    assert value(shown, "rtn 4-bit g64", "task_score", scored).value == 7.0
    assert value(shown, "rtn 4-bit g64", "mean_accuracy").value < 1
    assert shown.column("accuracy_difference", scored) is None


def test_items_with_partial_credit_have_a_difference_and_no_flips(folder: Path) -> None:
    path = synthetic.write(folder, small=True)
    rng = np.random.default_rng(0)

    def partial(r: Record) -> Record:
        if r.question.subject != synthetic.TASKS[0] or r.answer is None:
            return r
        items = [{"id": str(i), "correct": float(rng.integers(0, 5)) / 4} for i in range(40)]
        name = store.add_blob(folder, json.dumps({"items": items}).encode(), "json")
        return dataclasses.replace(r, answer=Answer(measurements=(dataclasses.replace(r.answer.measurements[0], blob=name),)))

    run = store.read(path)
    shown = view(dataclasses.replace(run, records=tuple(partial(r) for r in run.records)))
    assert value(shown, "rtn 4-bit g64", "accuracy_difference", synthetic.TASKS[0]).status == "ok"
    assert value(shown, "rtn 4-bit g64", "flips_lost", synthetic.TASKS[0]).status == "not comparable"
    assert value(shown, "rtn 4-bit g64", "mean_accuracy_difference").status == "ok"


def test_items_that_share_a_passage_are_resampled_and_tested_together(folder: Path) -> None:
    """With clusters of ten items that flip together the interval is far wider than for as many single items."""
    path = synthetic.write(folder, small=True)
    widths = {}
    for clustered in (False, True):

        def edit(r: Record, clustered: bool = clustered) -> Record:
            if r.question.subject != synthetic.TASKS[0] or r.answer is None:
                return r
            right = r.cell.method == "bf16"
            items = [{"id": str(i), "correct": right or (i // 10) % 4 != 0} for i in range(200)]
            if clustered:
                items = [{**item, "cluster": str(i // 10)} for i, item in enumerate(items)]
            name = store.add_blob(folder, json.dumps({"items": items}).encode(), "json")
            return dataclasses.replace(r, answer=Answer(measurements=(dataclasses.replace(r.answer.measurements[0], blob=name),)))

        run = store.read(path)
        shown = view(dataclasses.replace(run, records=tuple(edit(r) for r in run.records)))
        found = value(shown, "rtn 4-bit g64", "accuracy_difference", synthetic.TASKS[0])
        widths[clustered] = high(found) - low(found)
    assert widths[True] > 2 * widths[False]


def test_each_model_is_compared_with_its_own_baseline(folder: Path) -> None:
    shown = view(store.read(synthetic.write(folder, models=("one", "two"), small=True)))
    assert len(shown.cells) == 44
    for model in ("one", "two"):
        base = shown.baseline_of(model)
        assert base is not None
        assert base.model == model
    stands = headline(shown)
    for model in ("one", "two"):
        assert any(stands[c.id].status == "frontier" for c in shown.cells if c.model == model and c.id in stands)


def test_the_newest_record_of_a_square_counts_whatever_the_order(run: store.Run) -> None:
    old = record(run, "rtn 4-bit g64", "perplexity", "reference")
    assert old.answer is not None
    new = dataclasses.replace(
        old,
        key="f" * 64,
        started_at="2027-01-01T00:00:00Z",
        answer=None,
        failure=Failure(kind="crash", phase="x", message="later"),
    )
    for records in ((*run.records, new), (new, *run.records)):
        assert value(view(dataclasses.replace(run, records=records)), "rtn 4-bit g64", "perplexity").status == "crash"


def test_records_of_squares_that_are_no_longer_planned_are_counted_and_not_drawn(run: store.Run) -> None:
    plan = dataclasses.replace(run.plan, cells=run.plan.cells[:5])
    shown = view(dataclasses.replace(run, plan=plan))
    assert len(shown.cells) == 5
    assert shown.unplanned == len(run.records) - 5 * 13


def test_a_run_without_any_record_draws_all_planned_cells_as_not_run(run: store.Run) -> None:
    shown = view(dataclasses.replace(run, records=(), end=None))
    assert len(shown.cells) == 22
    assert {v.status for c in shown.cells for v in c.values.values()} == {"not run"}
    assert headline(shown) == {}


def test_axes_take_their_direction_from_the_metric_rows(shown: View) -> None:
    qualities, costs = quality_columns(shown), cost_columns(shown)
    assert qualities[0].metric.name == "mean_accuracy"
    assert costs[0].metric.name == "bpw_model"
    assert {"perplexity", "kl_mean", "ln_ppl_ratio", "accuracy"} <= {c.metric.name for c in qualities}
    assert {"file_bytes", "peak_host_bytes", "tpot", "ttft"} <= {c.metric.name for c in costs}
    assert not {c.metric.better for c in (*qualities, *costs)} & {"neither"}
    assert not {c.probe for c in qualities} & {c.probe for c in costs}


def test_the_frontier_uses_paired_noise_so_that_close_cells_are_told_apart(shown: View) -> None:
    """gptq and rtn at 3 bits differ by more than paired noise allows, although their own intervals overlap almost."""
    quality, cost = shown.column("perplexity"), shown.column("bpw_model")
    assert quality is not None
    assert cost is not None
    stands = standings(shown, shown.cells, cost, quality)
    a, b = value(shown, "awq 3-bit g64", "perplexity"), value(shown, "gptq 3-bit g64", "perplexity")
    assert low(a) < high(b), "the plain intervals overlap"
    assert stands[cell(shown, "awq 3-bit g64").id].status == "dominated"


def test_json_of_cells_and_view_of_the_same_run_are_equal_twice(run: store.Run, shown: View) -> None:
    again = view(run)
    assert to_json([c.cell for c in again.cells]) == to_json([c.cell for c in shown.cells])
    for one, two in zip(again.cells, shown.cells, strict=True):
        for key, found in one.values.items():
            other = two.values[key]
            assert (found.status, found.low, found.high, found.n) == (other.status, other.low, other.high, other.n)
