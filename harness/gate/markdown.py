"""The gate as Markdown, for a comment on a pull request and for a job's summary: the verdict first, what to do next second, the
alarms and one reliable metric open, all else folded.

Every name is escaped (`report/markdown.py`). The text stays within the size of a comment at GitHub; what is cut is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from harness.gate import words
from harness.gate.types import Finding, GateReport
from harness.report import markdown
from harness.report.markup import text as html

MOST_BYTES = 65_536
"""What a comment at GitHub may hold, in characters; kept in bytes of UTF-8, which are never fewer. A job's summary holds more."""

MARKER = "<!-- quant-harness gate -->"
"""The first line, by which a workflow finds the comment it made before."""

MOST_ALARMS = 10
"""Alarms in sentences."""

_ROWS = (50, 20, 5)
"""Rows of one table at most: the most that fit."""

_RELIABLE = ("kl_mean", "mean_accuracy", "perplexity", "accuracy", "task_score")
"""The metric that stands open: the first of these that was compared. Divergence sees more than accuracy."""

_RESERVE = 400
"""Bytes kept for the sentence that says what was cut."""

_CELL, _LINE = 120, 600
"""Characters of a name in a table, and of a sentence with several names."""


Part: TypeAlias = Callable[[int], str]
"""A part of the comment, with at most so many rows in a table."""


def comment(report: GateReport, *, most: int = MOST_BYTES) -> str:
    """The comment, at most `most` bytes of UTF-8. Parts come in the order of their use; where they do not fit, their tables are
    cut first, then the last of them are left out."""
    sign = "\u2705" if report.green else "\u274c"
    foot = _foot(report)
    kept = [MARKER, f"## {sign} {_text(words.verdict(report))}", _steps(report)]
    size = sum(_size(part) for part in (*kept, foot)) + _RESERVE
    left_out = 0
    for part in (*_alarms(report), *_open(report), *_folded(report)):
        fitting = next((made for rows in _ROWS if size + _size(made := part(rows)) <= most), None)
        if fitting is None:
            left_out += 1
        else:
            kept.append(fitting)
            size += _size(fitting)
    if left_out:
        kept.append(f"{words.count(left_out, 'part')} of this comment would make it too long: see the page or the evidence file.")
    return ("\n\n".join([*kept, foot]) + "\n").encode("utf-8", "replace").decode()


def _size(part: str) -> int:
    return len(part.encode("utf-8", "replace")) + 2


def _steps(report: GateReport) -> str:
    lines = ["**Next**"]
    for step in words.steps(report):
        lines.append(_text(step.said))
        lines += [markdown.code("sh", _short(step.command))] if step.command else []
    return "\n\n".join(lines)


def _short(command: str) -> str:
    """A command that a person can copy: a longer one is not a command of this program any more, and is not shown."""
    return command if len(command) <= 2000 else "# the command is too long to be shown here; the evidence file has it"


def _alarms(report: GateReport) -> list[Part]:
    alarms = report.alarms
    if not alarms:
        return []
    lines = [f"- **{_text(f.square.cell, _CELL)}**: {_text(words.sentence(f))}" for f in alarms[:MOST_ALARMS]]
    if len(alarms) > MOST_ALARMS:
        lines.append(f"- and {words.count(len(alarms) - MOST_ALARMS, 'more alarm')}, in the table of what is worse below")
    worse = "### What is worse\n\n" + "\n".join(lines)
    commands = {f.square.name: command for f in alarms[:MOST_ALARMS] if (command := words.replay(report, f))}
    blocks = [f"{_text(name)}\n\n{markdown.code('sh', _short(command))}" for name, command in commands.items()]
    again = _details("Ask each of them again", "\n\n".join(blocks))
    return [lambda rows: worse, *([lambda rows: again] if commands else [])]


def _open(report: GateReport) -> list[Part]:
    """The table of the most reliable metric that was compared."""
    name = _reliable(report)
    shown = [f for f in report.findings if f.square.metric == name]
    return [lambda rows: f"### {_text(shown[0].square.title, _CELL)}\n\n{_table(shown, rows)}"] if name is not None else []


def _reliable(report: GateReport) -> str | None:
    compared = {f.square.metric for f in report.findings if f.change is not None}
    return next((metric for metric in _RELIABLE if metric in compared), None)


def _folded(report: GateReport) -> list[Part]:
    parts: list[Part] = []
    if report.differences:
        parts.append(partial(_causes, report))
    if report.notes:
        notes = "\n".join(f"- {_text(note)}" for note in report.notes)
        parts.append(lambda rows: notes)
    open_one = _reliable(report)
    for verdict in words.ORDER[:-1]:
        found = [f for f in report.findings if f.verdict == verdict]
        if found and not (verdict == "regressed" and len(report.alarms) == len(found) <= MOST_ALARMS):
            parts.append(partial(_fold, f"{words.title(verdict)}: {len(found)}", found))
    others = [f for f in report.findings if f.verdict == "within noise" and f.square.metric != open_one]
    for title in dict.fromkeys(f.square.title for f in others):
        same = [f for f in others if f.square.title == title]
        parts.append(partial(_fold, f"Within noise, {title}: {len(same)}", same))
    return parts


def _causes(report: GateReport, rows: int) -> str:
    lines = [[_text(x, _CELL) for x in (d.what, words.side(d.before), words.side(d.after))] for d in report.differences]
    title = f"What differs between the two runs: {words.causes_words(report.differences)}"
    return _details(title, _cut(["What", "Base", "Candidate"], lines, rows))


def _fold(title: str, findings: Sequence[Finding], rows: int) -> str:
    return _details(title, _table(findings, rows))


def _foot(report: GateReport) -> str:
    lines = [
        _text(words.error_rate(report)),
        f"Base: {_text(words.run_words(report.base))}",
        f"Candidate: {_text(words.run_words(report.candidate))}",
    ]
    if report.accepted is not None:
        lines.append(f"Accepted: {_text(words.run_words(report.accepted))}")
    return "  \n".join(lines)


def _table(findings: Sequence[Finding], rows: int) -> str:
    """Findings of one table, alarms first."""
    head = ["Cell", "Metric", "Base", "Candidate", "Change (95 %)", "Noise", "Threshold", "Verdict"]
    return _cut(head, [_row(f) for f in words.shown_first(findings)], rows, numeric=(False, False, True, True, False, True))


def _row(f: Finding) -> list[str]:
    numbers = [*words.figures(f), words.change(f), words.factor(f), words.threshold(f)]
    verdict = "; ".join([f.verdict, *(_text(remark) for remark in words.remarks(f))])
    names = (f.square.cell, words.about(f), *numbers)
    return [*(_text(name, _CELL) for name in names), f"**{f.verdict}**{verdict[len(f.verdict) :]}" if f.alarm else verdict]


def _cut(head: Sequence[str], lines: Sequence[Sequence[str]], rows: int, numeric: Sequence[bool] = ()) -> str:
    shown = markdown.table(head, lines[:rows], numeric=numeric)
    left = len(lines) - rows
    return f"{shown}\n\nand {words.count(left, 'more row')}" if left > 0 else shown


def _details(summary: str, body: str) -> str:
    """What is folded. The summary is HTML, in which Markdown's escapes would be seen: it is escaped as HTML is."""
    shown = html(re.sub(_HEARD, _QUIET, markdown.line(summary, _LINE)))
    return f"<details><summary>{shown}</summary>\n\n{body}\n\n</details>"


_HEARD = r"([@#])(?=[A-Za-z0-9])"
_QUIET = "\\1\u2060"
"""What GitHub hears as the name of a person or an issue, also where Markdown's escapes keep it from being anything else; a mark
of no width keeps it text."""


def _text(value: str, longest: int = _LINE) -> str:
    """A value as text that calls nobody. The number signs of entities stay."""
    return re.sub(rf"(?<!&){_HEARD}", _QUIET, markdown.text(value, longest))
