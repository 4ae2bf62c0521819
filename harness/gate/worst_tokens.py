"""The tokens of an alarm of a divergence, with their text: where the cell is furthest from its baseline now, and what it was.

The candidate's side-car holds its tokens of largest divergence with the text around them (`probes/divergence.py`), the other
run's raw samples how far it was from its baseline at the same places. What is not kept, or not on this disk, is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from harness.errors import HarnessError
from harness.frontier import Floats
from harness.gate import samples
from harness.gate.samples import Unpaired
from harness.gate.types import Finding, WorstToken
from harness.metrics.divergence import KL_MAX, KL_MEAN
from harness.report.compare_tokens import table_of
from harness.series import square_identity
from harness.spec import Json, Record
from harness.store import Run

MOST, CHARACTERS = 8, 300
"""Tokens of one alarm, and characters of the text on each side of one."""


def shown(findings: Sequence[Finding], base: Run, candidate: Run, accepted: Run | None) -> list[Finding]:
    """The findings, alarms of a divergence with their tokens."""
    then = {"base": base, "accepted": base if accepted is None else accepted}
    return [
        replace(f, tokens=_tokens(f, then[f.against], candidate)) if f.kind == "tokens" and f.verdict == "regressed" else f
        for f in findings
    ]


def _tokens(f: Finding, then: Run, now: Run) -> tuple[WorstToken, ...]:
    record = next((r for r in reversed(now.records) if r.key in f.keys), None)
    rows = [] if record is None else _rows(now, record)
    earlier = _table(then, f, record) if rows and record is not None else None
    return tuple(_token(row, earlier) for row in rows if _number(row.get("kl")) is not None)[:MOST]


def _rows(run: Run, record: Record) -> list[dict[str, Json]]:
    """The rows of the side-car with the tokens of largest divergence."""
    name = _blob(record, KL_MAX)
    if not name:
        return []
    try:
        kept = json.loads(run.blob(name))
    except (OSError, HarnessError, ValueError, RecursionError):
        return []
    rows = kept.get("tokens") if isinstance(kept, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _table(run: Run, f: Finding, asked: Record) -> Floats | None:
    """Divergences [windows, tokens] of the same cell and text in the other run."""
    question = asked.question
    for record in reversed(run.records):
        same = (record.question.probe, record.question.subject) == (question.probe, question.subject)
        if same and square_identity(record.cell) == f.square.identity:
            try:
                return samples.parsed(table_of, run, _blob(record, KL_MEAN) or None)
            except Unpaired:
                return None
    return None


def _blob(record: Record, metric: str) -> str:
    measured = () if record.answer is None else record.answer.measurements
    return next((m.blob for m in measured if m.metric == metric and m.blob is not None), "")


def _token(row: dict[str, Json], earlier: Floats | None) -> WorstToken:
    before, token, after = (str(row.get(name, "")) for name in ("before", "token", "after"))
    return WorstToken(
        before=before[-CHARACTERS:],
        token=token[:CHARACTERS],
        after=after[:CHARACTERS],
        kl=_number(row.get("kl")) or 0.0,
        earlier=None if earlier is None else _at(earlier, row.get("window"), row.get("position")),
        p_base=_number(row.get("p_base")),
        p=_number(row.get("p")),
    )


def _at(table: Floats, window: Json, position: Json) -> float | None:
    """The entry of a place: a token has one place more in its window than in the table, which begins with the second one."""
    if type(window) is not int or type(position) is not int:
        return None
    if not (0 <= window < table.shape[0] and 0 < position <= table.shape[1]):
        return None
    return _number(float(table[window, position - 1]))


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None
