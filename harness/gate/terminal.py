"""The gate in a terminal: the verdict, what to do next, a table of what asks for a person, and the rest as one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.gate import words
from harness.gate.types import Finding, GateReport
from harness.report.numbers import THIN
from harness.report.terminal import named, plain

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

MOST_ROWS, MOST_REASONS, MOST_CAUSES = 40, 8, 12
"""Findings, reasons and differences that are shown one by one, unless all are asked for."""

_STYLES = {"regressed": "bold red", "failed": "red", "missing": "red", "improved": "green"}
_SHOWN = ("regressed", "failed", "missing", "improved")


def drawn(report: GateReport, *, everything: bool = False) -> list[Text | Table]:
    """What is printed, top to bottom: tables, and texts, each of which is a line of its own (to be printed with `soft_wrap`, so
    that a command stays one). `everything`: each finding has its row, and nothing is cut."""
    from rich.text import Text

    parts: list[Text | Table] = [Text(_plain(words.verdict(report)), style="bold green" if report.green else "bold red")]
    for step in words.steps(report):
        parts.append(Text(_plain(step.said)))
        parts += [Text(_plain(f"  {step.command}"), style="bold")] if step.command else []
    ordered = words.shown_first(report.findings)
    shown = ordered if everything else [f for f in ordered if f.verdict in _SHOWN]
    rest = [] if everything else [*shown[MOST_ROWS:], *(f for f in ordered if f.verdict not in _SHOWN)]
    cut = shown[: len(shown) if everything else MOST_ROWS]
    if cut:
        parts += [Text(""), table(cut)]
    parts += [Text(_plain(line)) for line in _below(report, rest, everything=everything)]
    return parts


def table(findings: Sequence[Finding]) -> Table:
    """One row for each finding. A long name is broken, a number never."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column("verdict", overflow="fold")
    made.add_column("square", overflow="fold", min_width=12)
    for title in ("before", "after"):
        made.add_column(title, justify="right", no_wrap=True)
    made.add_column("change (95 %)", overflow="fold", min_width=11)
    made.add_column("noise", justify="right", no_wrap=True)
    for f in findings:
        before, after = words.figures(f)
        remark = "; ".join(words.remarks(f))
        name = Text(f"{named(f.square.cell)}\n{_plain(words.about(f))}")
        changed, threshold = words.change(f), words.threshold(f)
        said = "\n".join(part for part in (changed, threshold and f"threshold {threshold}") if part) if changed else remark
        squares = [before, after, said, words.factor(f)]
        made.add_row(_verdict(f), name, *(Text("\n".join(map(_plain, square.split("\n")))) for square in squares))
        if remark and words.change(f):
            made.add_row("", Text(_plain(remark), style="dim"))
    return made


def _verdict(f: Finding) -> Text:
    from rich.text import Text

    quiet = f.verdict == "regressed" and not f.alarm
    word = "muted" if quiet and f.muted else f.cause if quiet else f.verdict
    return Text(word, style="dim" if quiet else _STYLES.get(f.verdict, ""))


def _below(report: GateReport, rest: Sequence[Finding], *, everything: bool) -> list[str]:
    lines = [""]
    lines += [f"And {words.rest(rest)}. Every one of them: --all"] if rest else []
    lines += _reasons([f for f in rest if f.verdict == "not comparable"])
    if report.differences:
        most = len(report.differences) if everything else MOST_CAUSES
        lines += ["", f"What differs between the two runs: {words.causes_words(report.differences)}."]
        lines += [f"  {d.what}: {words.side(d.before)} {words.ARROW} {words.side(d.after)}" for d in report.differences[:most]]
        left = len(report.differences) - most
        lines += [f"  and {left} more"] if left > 0 else []
    lines += ["", *report.notes, words.error_rate(report)]
    lines += [f"base       {words.run_words(report.base)}", f"candidate  {words.run_words(report.candidate)}"]
    return lines + ([f"accepted   {words.run_words(report.accepted)}"] if report.accepted is not None else [])


def _reasons(findings: Sequence[Finding]) -> list[str]:
    """What could not be compared, by its reason: it is no pass, so that it is named."""
    by_reason: dict[str, list[Finding]] = {}
    for f in findings:
        by_reason.setdefault(f.reason or "no reason was given", []).append(f)
    lines = []
    for reason, same in list(by_reason.items())[:MOST_REASONS]:
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        lines.append(f"  not comparable: {same[0].square.name}{more}: {reason}")
    left = len(by_reason) - len(lines)
    return lines + ([f"  and {words.count(left, 'more reason')}"] if left > 0 else [])


def _plain(text: str) -> str:
    """Without what steers a terminal; the thin spaces of our own numbers stay."""
    return THIN.join(map(plain, text.split(THIN)))
