"""The tidy table: its columns, its honesty about what is missing, and its exports."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pandas
import pytest

from harness import store
from harness.cli_publish import Format
from harness.report.frame import COLUMNS, EXPORTS, export, frame
from harness.report.tables import TABLES
from harness.report.view import view
from harness.spec import PlanRecord, Record
from tests.report import synthetic


@pytest.fixture(scope="module")
def table(run: store.Run) -> pandas.DataFrame:
    return frame(run)


def test_the_columns_are_the_documented_ones_with_fixed_types(table: pandas.DataFrame) -> None:
    assert tuple(table.columns) == COLUMNS
    assert COLUMNS[:4] == ("model", "method", "bits", "scheme")
    assert {str(table[c].dtype) for c in ("bits", "value", "low", "high")} == {"float64"}
    assert str(table["n"].dtype) == "Int64"


def test_there_is_one_row_per_cell_and_metric(table: pandas.DataFrame) -> None:
    assert not table.duplicated(["model", "scheme", "metric", "subject", "definition"]).any()
    assert table["scheme"].nunique() == 22


def test_values_are_as_stored_and_unrounded(run: store.Run, table: pandas.DataFrame) -> None:
    record = next(r for r in run.records if r.question.probe == "perplexity" and r.cell.label == "gptq 4-bit g64")
    assert record.answer is not None
    row = table[(table.scheme == "gptq 4-bit g64") & (table.metric == "perplexity")].iloc[0]
    stored = record.answer.measurements[0]
    assert (row.value, row.low, row.high, row.n) == (stored.value, stored.low, stored.high, stored.n)
    assert (row.definition, row.unit, row.status) == (stored.definition, stored.unit, "ok")


def test_a_failure_is_a_row_with_its_kind_and_no_value(table: pandas.DataFrame) -> None:
    failed = table[table.scheme == "awq 2-bit g64"]
    assert set(failed.status) == {"oom"}
    assert failed.value.isna().all()
    assert {"perplexity", "bpw_model", "accuracy", "mean_accuracy", "ln_ppl_ratio"} <= set(failed.metric)


def test_what_was_not_run_is_a_row_that_says_so(table: pandas.DataFrame) -> None:
    missing = table[(table.scheme == "hqq 2-bit g64") & (table.metric == "tpot")]
    assert list(missing.status) == ["not run", "not run"]
    assert missing.value.isna().all()


def test_ok_rows_and_only_they_have_values(table: pandas.DataFrame) -> None:
    assert (table.status.eq("ok") == table.value.notna()).all()
    assert table.status.eq("ok").sum() > 1000


def test_derived_comparisons_are_rows_and_the_baseline_is_not_compared_with_itself(table: pandas.DataFrame) -> None:
    derived = {"accuracy_difference", "flips_lost", "mcnemar_p_holm", "recovery", "ln_ppl_ratio", "mean_accuracy_difference"}
    assert derived <= set(table.metric)
    assert not derived & set(table[table.scheme == "bf16"].metric)


def test_an_empty_run_gives_rows_without_values(run: store.Run) -> None:
    table = frame(dataclasses.replace(run, records=()))
    assert len(table) > 22
    assert set(table.status) == {"not run"}
    empty = frame(dataclasses.replace(run, records=(), plan=PlanRecord()))
    assert tuple(empty.columns) == COLUMNS
    assert len(empty) == 0


def test_csv_and_parquet_read_back_as_the_same_table(run: store.Run, table: pandas.DataFrame) -> None:
    again = pandas.read_parquet(io.BytesIO(export(view(run), "parquet")))
    pandas.testing.assert_frame_equal(again, table, check_dtype=False)
    read = pandas.read_csv(
        io.BytesIO(export(view(run), "csv")), keep_default_na=False, na_values={"value": ""}, dtype={"value": float}
    )
    assert list(read.columns) == list(COLUMNS)
    assert read.value.to_numpy() == pytest.approx(table.value.to_numpy(), nan_ok=True)


def test_csv_is_byte_for_byte_what_pandas_writes(run: store.Run, table: pandas.DataFrame) -> None:
    assert export(view(run), "csv") == table.to_csv(index=False, lineterminator="\n").encode()


def test_json_is_strict_and_has_null_where_there_is_no_number(run: store.Run, table: pandas.DataFrame) -> None:
    rows = json.loads(export(view(run), "json"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(rows) == len(table)
    assert tuple(rows[0]) == COLUMNS
    failed = next(r for r in rows if r["status"] == "oom")
    assert failed["value"] is None
    assert failed["n"] is None


def test_every_format_of_the_command_line_is_there() -> None:
    assert set(EXPORTS) | set(TABLES) == {format.value for format in Format}
    assert not set(EXPORTS) & set(TABLES)


def test_an_infinite_value_is_no_number_but_a_status(folder: Path) -> None:
    def infinite(r: Record) -> Record:
        if r.question.probe != "perplexity" or r.answer is None or r.cell.label != "rtn 2-bit g64":
            return r
        first = dataclasses.replace(r.answer.measurements[0], value=math.inf, low=None, high=math.inf)
        return dataclasses.replace(r, answer=dataclasses.replace(r.answer, measurements=(first,)))

    table = frame(store.read(synthetic.write(folder, edit=infinite, small=True)))
    row = table[(table.scheme == "rtn 2-bit g64") & (table.metric == "perplexity")].iloc[0]
    assert row.status == "nonfinite"
    assert math.isnan(row.value)
