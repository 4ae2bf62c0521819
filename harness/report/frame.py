"""Stored results as a tidy table: one row per cell and metric, derived comparisons included, and its exports.

Columns: model, method, bits, scheme, metric, subject, definition, value, low, high, n, unit, status. A failed or missing question
keeps its rows: value NaN, `status` the failure's kind or "not run". Values are as stored (bytes, seconds, fractions), never
rounded, so that a notebook computes from what was measured.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from harness.report.cells import ABSENT, BASELINE
from harness.report.numbers import display, show, show_interval
from harness.report.view import View, view
from harness.store import Run

if TYPE_CHECKING:
    import pandas
    from pandas._libs.missing import NAType

COLUMNS = ("model", "method", "bits", "scheme", "metric", "subject", "definition", "value", "low", "high", "n", "unit", "status")


def frame(run: Run) -> pandas.DataFrame:
    """The tidy table of a run: cells in plan order, metrics in the order asked. `n` is a nullable integer."""
    return frame_of(view(run))


def frame_of(shown: View) -> pandas.DataFrame:
    import pandas

    rows = [
        (
            cell.model,
            cell.cell.method,
            float(cell.cell.bits),
            cell.label,
            column.metric.name,
            column.subject,
            column.metric.definition,
            value.value,
            float("nan") if value.low is None else value.low,
            float("nan") if value.high is None else value.high,
            value.n,
            column.metric.unit,
            value.status,
        )
        for cell in shown.cells
        for column in shown.columns
        # the baseline is not compared with itself, and what an answer never holds is no missing number
        if (value := cell.values[column.key]).status not in {ABSENT, BASELINE}
    ]
    table: pandas.DataFrame = pandas.DataFrame(rows, columns=list(COLUMNS))
    kinds = {"bits": "float64", "value": "float64", "low": "float64", "high": "float64", "n": "Int64"}
    texts = {name: "str" for name in COLUMNS if name not in kinds}
    typed: pandas.DataFrame = table.astype({**kinds, **texts})
    return typed


def export(run: Run, format: str) -> bytes:
    """The tidy table as bytes: `table` (for a terminal), `csv`, `json` (a list of objects), `markdown`, or `parquet`."""
    return EXPORTS[format](frame(run))


def _csv(table: pandas.DataFrame) -> bytes:
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text.encode()


def _json(table: pandas.DataFrame) -> bytes:
    """Strict JSON: a number that is not there is null, an infinite one its name."""
    rows = [{k: _plain(v) for k, v in row.items()} for row in table.to_dict(orient="records")]
    return (json.dumps(rows, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


Scalar: TypeAlias = "str | int | float | NAType | None"


def _plain(value: Scalar) -> str | int | float | None:
    """What JSON can say of a square: None where there is nothing, an infinite number by its name."""
    import pandas

    if value is None or isinstance(value, str):
        return value
    if pandas.isna(value):
        return None
    return str(value) if value in (float("inf"), float("-inf")) else value


def _markdown(table: pandas.DataFrame) -> bytes:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'|'.join('---:' if c in _NUMERIC else '---' for c in COLUMNS)}|"]
    lines += [f"| {' | '.join(_cell(v) for v in row)} |" for row in table.itertuples(index=False)]
    return ("\n".join(lines) + "\n").encode()


_NUMERIC = {"bits", "value", "low", "high", "n"}


def _cell(value: Scalar) -> str:
    plain = _plain(value)
    if plain is None:
        return ""
    text = f"{plain:.6g}" if isinstance(plain, float) else str(plain)
    for character in "\\|<>*_`[]":  # Markdown renders HTML and emphasis: names are shown as they are
        text = text.replace(character, f"\\{character}" if character not in "<>" else {"<": "&lt;", ">": "&gt;"}[character])
    return " ".join(text.split())


def _table(table: pandas.DataFrame) -> bytes:
    """For a terminal: numbers in the units people read, intervals beside them. Plain text, no escape sequences."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="")
    for name in ("model", "scheme", "metric", "subject", "value", "95 % interval", "unit", "n", "status"):
        drawn.add_column(name, justify="right" if name in {"value", "95 % interval", "n"} else "left", no_wrap=True)
    for row in table.to_dict(orient="records"):
        values = [row["value"]] if row["status"] == "ok" else []
        how = display(row["unit"], values)
        low, high = (None if _plain(row[k]) is None else row[k] for k in ("low", "high"))
        texts = [row["model"], row["scheme"], row["metric"], row["subject"]]
        texts += [show(v, row["unit"], how) for v in values] or [""]
        texts += [show_interval(low, high, row["unit"], how, value=v) for v in values] or [""]
        texts += [how.label, "" if _plain(row["n"]) is None else str(row["n"]), row["status"]]
        drawn.add_row(*(Text(_printable(t)) for t in texts))
    buffer = io.StringIO()
    width = 4 + sum(3 + max((len(str(v)) for v in table[c]), default=0) for c in ("model", "scheme", "metric", "subject", "unit"))
    Console(file=buffer, width=max(120, width + 90), color_system=None, legacy_windows=False).print(drawn)
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines()).encode()


def _printable(text: str) -> str:
    """Without control characters: a stored name must not steer the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _parquet(table: pandas.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


EXPORTS: dict[str, Callable[[pandas.DataFrame], bytes]] = {
    "table": _table,
    "csv": _csv,
    "json": _json,
    "markdown": _markdown,
    "parquet": _parquet,
}
