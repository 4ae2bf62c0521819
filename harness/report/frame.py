"""Stored results as a tidy table: one row per cell and metric, derived comparisons included, and its exports.

Columns: model, method, bits, scheme, metric, subject, definition, value, low, high, n, unit, status, key. A failed or missing
question keeps its rows: value NaN, `status` the failure's kind or "not run". `key` is the record's, which `run --only` takes;
empty where there is no record, or where a number is made of several. Values are as stored (bytes, seconds, fractions), never
rounded, so that a notebook computes from what was measured.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from harness.report.cells import ABSENT, BASELINE, CellView, Column
from harness.report.view import View, view
from harness.store import Run

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "model",
    "method",
    "bits",
    "scheme",
    "metric",
    "subject",
    "definition",
    "value",
    "low",
    "high",
    "n",
    "unit",
    "status",
    "key",
)


def frame(run: Run) -> pandas.DataFrame:
    """The tidy table of a run: cells in plan order, metrics in the order asked. `n` is a nullable integer."""
    return frame_of(view(run))


Row: TypeAlias = tuple[str, str, float, str, str, str, str, float, float | None, float | None, int | None, str, str, str]
"""One cell and metric, in the order of COLUMNS."""


def rows_of(shown: View) -> list[Row]:
    return [
        (
            cell.model,
            cell.cell.method,
            float(cell.cell.bits),
            cell.label,
            column.metric.name,
            column.subject,
            column.metric.definition,
            value.value,
            value.low,
            value.high,
            value.n,
            column.metric.unit,
            value.status,
            _key(cell, column),
        )
        for cell in shown.cells
        for column in shown.columns
        # the baseline is not compared with itself, and what an answer never holds is no missing number
        if (value := cell.values[column.key]).status not in {ABSENT, BASELINE}
    ]


def _key(cell: CellView, column: Column) -> str:
    """The key of the one record that the number rests on: the answer of the column's probe, or for what is derived the cell's
    answer about the same subject."""
    keys = [
        outcome.record.key
        for outcome in cell.outcomes
        if outcome.record is not None
        and outcome.question.subject == column.subject
        and (outcome.question.probe == column.probe or (column.derived and any(m.samples for m in outcome.metrics)))
    ]
    return keys[0] if len(keys) == 1 else ""


def frame_of(shown: View) -> pandas.DataFrame:
    import pandas

    table: pandas.DataFrame = pandas.DataFrame(rows_of(shown), columns=list(COLUMNS))
    kinds = {"bits": "float64", "value": "float64", "low": "float64", "high": "float64", "n": "Int64"}
    texts = {name: "str" for name in COLUMNS if name not in kinds}
    typed: pandas.DataFrame = table.astype({**kinds, **texts})
    return typed


def export(shown: View, format: str) -> bytes:
    """The tidy table as bytes: `csv`, `json` (a list of objects), or `parquet`."""
    return EXPORTS[format](shown)


def _csv(shown: View) -> bytes:
    """What is not there is empty. Without pandas, whose import takes longer than all else; the bytes are its own."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([None if value != value else value for value in row] for row in rows_of(shown))
    return buffer.getvalue().encode("utf-8", "surrogatepass")


def _json(shown: View) -> bytes:
    """Strict JSON: a number that is not there is null, an infinite one its name."""
    rows = [{name: _plain(value) for name, value in zip(COLUMNS, row, strict=True)} for row in rows_of(shown)]
    return (json.dumps(rows, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def _plain(value: str | float | None) -> str | float | None:
    """What JSON can say of a square: None where there is nothing, an infinite number by its name."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def _parquet(shown: View) -> bytes:
    buffer = io.BytesIO()
    frame_of(shown).to_parquet(buffer, index=False)
    return buffer.getvalue()


EXPORTS: dict[str, Callable[[View], bytes]] = {"csv": _csv, "json": _json, "parquet": _parquet}
"""Formats of the tidy table by name; `tables.TABLES` has those for people."""
