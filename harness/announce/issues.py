"""Which issues are opened, kept, and closed after a night. Pure: a gate's report and the open issues in, actions out.

A regression is a cell that is worse: however many of its squares show it, and for however many nights, it is one issue. Its first
line is a comment that no reader sees and that says which cell it is, since when, and which squares; so nothing is remembered
anywhere else.

- a cell that is worse and has no issue gets one;
- a cell that still is gets its issue's text brought up to date, of which nobody is told, and a comment only where another of
  its squares has become worse;
- an issue is closed, with a comment, when every square of it was compared and none is worse. What is missing, failed, muted,
  flaky or not comparable closes nothing.

The same report twice changes nothing the second time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.gate import words
from harness.gate.types import Finding, GateReport
from harness.report import markdown
from harness.report.markdown import text
from harness.spec import digest

LABEL = "quant-harness regression"
"""Only issues with this label are ever looked at or changed; who may give labels is the tracker's to decide."""

MOST_SQUARES = 20
"""Sentences in an issue."""

_MARK = re.compile(
    r"<!-- quant-harness regression ([0-9a-f]{16}) since (\S{1,80}) last (\S{1,80}) squares ((?:[0-9a-f]{12} ?)+)-->"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """An open issue with the label."""

    number: int
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    title: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A new text, and a comment where people should be told ('' where not)."""

    number: int
    body: str
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    number: int
    comment: str


Action = Open | Update | Close


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """What the first line of an issue says: the cell, the first run and the last one that saw it, the squares."""

    cell: str
    since: str
    last: str
    squares: frozenset[str]

    def __str__(self) -> str:
        squares = " ".join(sorted(self.squares))
        return f"<!-- quant-harness regression {self.cell} since {self.since} last {self.last} squares {squares} -->"


def actions(report: GateReport, issues: Sequence[Issue]) -> Iterator[Action]:
    """What is to be done, regressions in the order of the report first. Of several issues of one cell the oldest counts."""
    known: dict[str, tuple[Issue, _Mark]] = {}
    for issue in sorted(issues, key=lambda each: each.number):
        mark = _mark_of(issue.body)
        if mark is not None:
            known.setdefault(mark.cell, (issue, mark))
    worse: dict[str, list[Finding]] = {}
    for alarm in report.alarms:
        worse.setdefault(_cell(report, alarm), []).append(alarm)
    for cell, alarms in worse.items():
        yield from _worse(report, cell, alarms, known.get(cell))
    judged = {_square(f): f for f in report.findings}
    for cell, (issue, mark) in known.items():
        if cell not in worse and _well(mark, judged):
            yield Close(number=issue.number, comment=f"Not worse any more: {text(words.run_words(report.candidate))}.")


def _worse(report: GateReport, cell: str, alarms: Sequence[Finding], before: tuple[Issue, _Mark] | None) -> Iterator[Action]:
    squares, run = frozenset(map(_square, alarms)), _one_word(report.candidate.run)
    if before is None:
        mark = _Mark(cell=cell, since=run, last=run, squares=squares)
        yield Open(title=_title(report, alarms[0]), body=_body(report, alarms, mark))
        return
    issue, old = before
    mark = _Mark(cell=cell, since=old.since, last=run, squares=old.squares | squares)
    if mark == old:
        return
    more = [alarm for alarm in alarms if _square(alarm) not in old.squares]
    said = "\n".join(f"- {text(words.sentence(alarm))}" for alarm in more[:MOST_SQUARES])
    comment = f"Also worse since {text(words.run_words(report.candidate))}:\n\n{said}" if more else ""
    yield Update(number=issue.number, body=_body(report, alarms, mark), comment=comment)


def _well(mark: _Mark, judged: Mapping[str, Finding]) -> bool:
    """Whether every square of an issue was compared and found not worse."""
    return all(s in judged and judged[s].verdict in ("within noise", "improved") for s in mark.squares)


def _title(report: GateReport, alarm: Finding) -> str:
    """One line of plain text: titles are not Markdown."""
    return " ".join(f"Regression: {alarm.square.cell} ({report.candidate.suite})".split())[:200]


def _body(report: GateReport, alarms: Sequence[Finding], mark: _Mark) -> str:
    lines = [str(mark), f"**{text(alarms[0].square.cell)}** is worse than {text(words.run_words(report.base))}."]
    shown = [f"- {text(words.sentence(alarm))}" for alarm in alarms[:MOST_SQUARES]]
    shown += [f"- and {len(alarms) - MOST_SQUARES} more squares"] if len(alarms) > MOST_SQUARES else []
    lines.append("\n".join(shown))
    lines.append(f"First seen in {text(mark.since)}, last in {text(mark.last)}.")
    commands = dict.fromkeys(c for a in alarms if (c := report.commands.get(a.square.name)))
    if commands:
        lines += ["Ask it again:", markdown.code("sh", "\n".join(commands))]
    if report.differences:
        lines.append(f"What differs between the two runs: {text(words.causes_words(report.differences))}")
    lines.append("This issue is closed by the first night in which every square of it was compared and none is worse.")
    return "\n\n".join(lines)


def _mark_of(body: str) -> _Mark | None:
    found = _MARK.match(body)
    if found is None:
        return None
    return _Mark(cell=found[1], since=found[2], last=found[3], squares=frozenset(found[4].split()))


def _cell(report: GateReport, finding: Finding) -> str:
    return digest([report.candidate.suite, finding.square.identity])[:16]


def _square(finding: Finding) -> str:
    square = finding.square
    return digest([square.identity, square.metric, square.subject, square.definition])[:12]


def _one_word(name: str) -> str:
    """A run's name as the mark can hold it."""
    return re.sub(r"[^\w.-]", "-", name)[:80] or "unknown"
