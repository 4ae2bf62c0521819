"""What a gate says, in sentences that all its outputs share: the verdict first, what to do next second, then each finding.

Numbers are written as the report writes them. Nothing is escaped here: each output escapes what it is given.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.decide.numbers import significant
from harness.gate.types import Against, Difference, Figure, Finding, Flip, GateReport, RunName, Verdict
from harness.report.numbers import DASH, THIN, Display, display, show, with_unit

ORDER: tuple[Verdict, ...] = ("regressed", "failed", "missing", "not comparable", "improved", "new", "within noise")
"""Verdicts as they are shown: what asks for a person first."""

ARROW = "\u2192"
_MOST_DIGITS = 12
_KEY = 12
_CAUSES = {
    "regression": "seen again when it was asked once more beside its baseline",
    "stale baseline": "its baseline moved as well when both were asked once more: the stored baseline is stale",
    "flaky": "not seen again when it was asked once more: flaky",
    "machine": "the machine moved: its baseline became worse in the same way",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do next: a sentence, and the command that does it ('' where there is none)."""

    said: str
    command: str = ""


# ---- the whole ----


def verdict(report: GateReport) -> str:
    """The first line: `red: 2 of 231 squares are worse; 1 failed`."""
    number = len(squares(report.findings))
    if not number:
        return f"{colour(report)}: there was no square to compare"
    worse = len(squares(report.alarms))
    failed, missing = (_many(report, v) for v in ("failed", "missing"))
    compared = any(f.verdict in ("within noise", "improved", "regressed") for f in report.findings)
    if worse:
        first = f"{worse} of {count(number, 'square')} {'is' if worse == 1 else 'are'} worse"
    elif not compared:
        first = f"none of {count(number, 'square')} was compared"
    else:
        first = "nothing that was measured is worse" if failed or missing else "nothing is worse"
        first = "nothing that was compared is worse" if _many(report, "not comparable") and not (failed or missing) else first
    quiet = len(squares(f for f in report.findings if f.verdict == "regressed" and not f.alarm))
    also = [f"{failed} failed"] if failed else []
    also += [f"{missing} {'is' if missing == 1 else 'are'} missing"] if missing else []
    beside = [f"{_many(report, 'not comparable')} could not be compared"] if compared and _many(report, "not comparable") else []
    beside += [f"{quiet} worse {'one does' if quiet == 1 else 'ones do'} not count (muted, or not seen again)"] if quiet else []
    parts = [first, ", ".join(also), ", ".join(beside)] if worse else [", ".join(also), first, ", ".join(beside)]
    return f"{colour(report)}: {'; '.join(p for p in parts if p)}"


def _many(report: GateReport, verdict: Verdict) -> int:
    """How many squares have a verdict."""
    return len(squares(f for f in report.findings if f.verdict == verdict))


def colour(report: GateReport) -> str:
    return "green" if report.green else "red"


def squares(findings: Iterable[Finding]) -> list[str]:
    """The names of the squares that these are about, each once: one that is compared with two runs is one square."""
    return list(dict.fromkeys(f"{f.square.identity}|{f.square.definition}|{f.square.name}" for f in findings))


def steps(report: GateReport) -> tuple[Step, ...]:
    """What to do next, the most useful first. Never empty."""
    made: list[Step] = []
    alarms = report.alarms
    base, candidate = shlex.quote(report.base.path), shlex.quote(report.candidate.path)
    if alarms and not report.confirmed:
        one = len(squares(alarms)) == 1
        many = "Ask the alarms once more, each beside its baseline, before they count:"
        said = "Ask the alarm once more, beside its baseline, before it counts:" if one else many
        made.append(Step(said=said, command=f"quant-harness gate {base} {candidate} --confirm {_suite(report)}"))
    if alarms and any(d.what.startswith("package ") for d in report.differences):
        cell = shlex.quote(alarms[0].square.cell)
        first = "" if len({f.square.cell for f in alarms}) == 1 else f", for the first of the cells ({alarms[0].square.cell})"
        said = f"Packages differ between the two runs. Find the one that did it{first}:"
        made.append(Step(said=said, command=f"quant-harness bisect {base} {candidate} {cell}"))
    if alarms:
        said = "If the loss is intended, accept it; it is not alarmed again:"
        made.append(Step(said=said, command=f"quant-harness accept {candidate} --why 'REASON'"))
    failed, missing = (any(f.verdict == v for f in report.findings) for v in ("failed", "missing"))
    if failed or missing:
        what = "failed and what is missing" if failed and missing else "failed" if failed else "is missing"
        retry = " --retry-failed" if failed else ""
        made.append(Step(said=f"Measure what {what}:", command=f"quant-harness run {_suite(report)}{retry}"))
    if report.green and _many(report, "not comparable"):
        command = f"quant-harness gate {base} {candidate} --all"
        made.append(Step(said="What could not be compared is no pass; see each with its reason:", command=command))
    if any(f.cause == "stale baseline" for f in report.findings):
        said = "The stored baseline is stale. Make the candidate the one to compare with:"
        made.append(Step(said=said, command=f"quant-harness accept {candidate} --why 'the baseline moved'"))
    return tuple(made) or (Step(said="Nothing to do."),)


def replay(report: GateReport, f: Finding) -> str:
    """The command that asks exactly this again, also where it was asked before: what the report says, else that of the records
    it rests on (the first digits of a key are enough); '' without both."""
    if f.square.name in report.commands:
        return report.commands[f.square.name]
    only = " ".join(f"--only {shlex.quote(key[:_KEY])}" for key in f.keys)
    return f"quant-harness run {_suite(report)} {only} --fresh" if only else ""


def _suite(report: GateReport) -> str:
    return shlex.quote(report.candidate.asked or report.candidate.suite or "SUITE")


def error_rate(report: GateReport) -> str:
    """How often such a gate is wrong when nothing changed."""
    if not report.tests:
        return "No statistical test was made: what was compared had to be equal, or could not be compared."
    these = "this 1 test" if report.tests == 1 else f"these {count(report.tests, 'test')}"
    share = f"{significant(100 * report.alpha)}{THIN}%"
    return (
        f"At most {share} of nights in which nothing changed raise any false alarm over {these}. "
        "Sizes, kernels, latency and memory are judged without a test."
    )


def counts(report: GateReport) -> list[tuple[Verdict, int]]:
    """How many findings there are of each verdict, in the order in which they are shown; none that is not there."""
    return [(v, report.count(v)) for v in ORDER if report.count(v)]


def title(verdict: Verdict) -> str:
    """A verdict as a heading: `Worse`, `Not comparable`."""
    return "Worse" if verdict == "regressed" else verdict.capitalize()


def rest(findings: Sequence[Finding]) -> str:
    """Findings that are not shown one by one, as one line: `216 within noise, 3 new`."""
    numbers = [(v, sum(f.verdict == v for f in findings)) for v in ORDER]
    return ", ".join(f"{show(n, 'count')} {v}" for v, n in numbers if n)


def run_words(run: RunName) -> str:
    """`RUN of SUITE, 2026-11-29T02:00:00Z, on HOST, commit 0123456`."""
    parts = [f"{run.run} of {run.suite}" if run.suite else run.run, run.started_at]
    parts += [f"on {run.host}"] if run.host else []
    parts += [f"commit {run.commit[:12]}"] if run.commit else []
    parts += [] if run.finished else ["not finished"]
    return ", ".join(p for p in parts if p)


def causes_words(differences: Sequence[Difference]) -> str:
    """What differs, counted: `3 packages, commit, weights of m`."""
    packages = sum(d.what.startswith("package ") for d in differences)
    others = [d.what for d in differences if not d.what.startswith("package ")]
    parts = [count(packages, "package")] if packages else []
    parts += others if len(others) <= 3 else [*others[:2], f"{len(others) - 2} more things"]
    return ", ".join(parts)


# ---- one finding ----


def sentence(f: Finding) -> str:
    """All that is to be said of one finding, without its cell: `Accuracy, mean of 6 tasks: 96.4 % → 94.1 %, 2.3 points worse
    (1.4 to 3.2), 2.6× its own noise; threshold 0.25 points, from the policy; p 3e-6`."""
    return f"{about(f)}: {found(f)}"


def found(f: Finding) -> str:
    """The same without the metric's name; the verdict where nothing else is known."""
    parts = [", ".join(p for p in (pair(f), change(f), noise(f)) if p)]
    reach = threshold(f)
    parts += [reach if f.kind == "exact" else f"threshold {reach}"] if reach else []
    parts += [tested(f)] if tested(f) else []
    parts += [f"{count(len(lost), 'item')} lost and {len(won)} gained" for lost, won in [flips(f)] if f.flips]
    parts += remarks(f)
    return "; ".join(p for p in parts if p) or f.verdict


def about(f: Finding) -> str:
    """The square in words, without its cell, and the run that it is compared with where that is not BASE."""
    return f"{f.square.what}{against(f.against)}"


def against(which: Against) -> str:
    return ", against the accepted run" if which == "accepted" else ""


def remarks(f: Finding) -> list[str]:
    """What has to be said beside the numbers: the reason, that it is muted, what asking once more showed."""
    parts = [f.reason] if f.reason else []
    parts += [f"muted: {f.muted}"] if f.muted else []
    return parts + ([_CAUSES[f.cause]] if f.cause else [])


def pair(f: Finding) -> str:
    """`96.4 % → 94.1 %`; with one of the two, it alone and where it stands."""
    before, after = figures(f)
    if before and after:
        return f"{before} {ARROW} {after}"
    return f"was {before}" if before else f"now {after}" if after else ""


def figures(f: Finding) -> tuple[str, str]:
    """The two numbers with their unit, in so many digits that they differ where they are different; '' for none."""
    known = [x.value for x in (f.before, f.after) if x is not None]
    how = display(f.square.unit, known)
    if len(known) == 2 and known[0] != known[1] and all(map(math.isfinite, known)) and how.label != "p":
        digits = how.decimals or 0
        while not _told_apart(known, f.square.unit, how) and digits < _MOST_DIGITS:
            digits += 1
            how = Display(factor=how.factor, label=how.label, decimals=digits)
    return _number(f.before, f.square.unit, how), _number(f.after, f.square.unit, how)


def _told_apart(values: Sequence[float], unit: str, how: Display) -> bool:
    """Whether two numbers are written apart, and neither as a zero that it is not."""
    written = [show(value, unit, how) for value in values]
    zeros = [not any(c in "123456789" for c in one) for one in written]
    return written[0] != written[1] and not any(zero and value != 0 for zero, value in zip(zeros, values, strict=True))


def _number(figure: Figure | None, unit: str, how: Display) -> str:
    return "" if figure is None else with_unit(show(figure.value, unit, how), how)


def change(f: Finding) -> str:
    """`2.3 points worse (1.4 to 3.2)`, `0.4 points better (0.1 to 0.7)`; '' where no change is known."""
    if f.change is None:
        return ""
    if not f.change_unit:
        return "no change" if f.change == 0 else "it differs"
    if math.isnan(f.change):
        return "the change is not a number"
    how = _display(f)
    sign = -1 if f.change < 0 else 1
    size = _counted(show(abs(f.change), f.change_unit, how), how)
    between = ""
    if f.low is not None and f.high is not None and (f.low, f.high) != (0, 0):
        ends = sorted((sign * f.low, sign * f.high))
        between = f" ({show(ends[0], f.change_unit, how)} to {show(ends[1], f.change_unit, how)})"
    if f.change == 0:
        return f"no change{between}"
    return f"{size} {'worse' if sign > 0 else 'better'}{between}"


def _display(f: Finding) -> Display:
    """How a change is written: in the digits that its noise leaves it, and in no more than four that say something."""
    how = display(f.change_unit, [1.0])
    size = how.factor * abs(f.change or 0.0)
    width = how.factor * abs(f.high - f.low) / 2 if f.low is not None and f.high is not None else 0.0
    carried = 0 if how.label in ("%", "points") else 1
    wanted = [carried - _power(x) for x in (width or size,) if x > 0 and math.isfinite(x)]
    most = 3 - _power(size) if size > 0 and math.isfinite(size) else 1
    return Display(factor=how.factor, label=how.label, decimals=max(1, min([*wanted, most, _MOST_DIGITS])))


def _power(value: float) -> int:
    return math.floor(math.log10(value))


def _counted(number: str, how: Display) -> str:
    """With its unit: one point, two points."""
    return f"{number} point" if how.label == "points" and number == "1" else with_unit(number, how)


def noise(f: Finding) -> str:
    """`2.6× its own noise`; '' where there is no interval."""
    return f"{factor(f)} its own noise" if f.factor is not None else ""


def factor(f: Finding) -> str:
    """`2.6×`; beyond a thousand it says no more than that."""
    return "" if f.factor is None else f"{abs(f.factor):.1f}×" if abs(f.factor) <= 1000 else "> 1000×"


def threshold(f: Finding) -> str:
    """`0.25 points, from the policy`."""
    if f.kind == "exact":
        return "any difference counts" if f.verdict in ("regressed", "improved") else ""
    if f.threshold is None:
        return ""
    how = display(f.change_unit, [1.0])
    number = significant(how.factor * f.threshold) if math.isfinite(f.threshold) else show(f.threshold, f.change_unit)
    return _counted(number, how) + (f", from {f.threshold_from}" if f.threshold_from else "")


def tested(f: Finding) -> str:
    """`p 3e-6 (corrected 7e-4)`."""
    if f.p is None:
        return ""
    return f"p {probability(f.p)}" + ("" if f.adjusted is None else f" (corrected {probability(f.adjusted)})")


def probability(p: float) -> str:
    """Three digits after the point; below 0.001 one digit and its power of ten."""
    if not math.isfinite(p) or p >= 0.001:
        return show(p, "p")
    if p < 1e-99:
        return "below 1e-99"
    head, _, power = f"{p:.0e}".partition("e")
    return f"{head}e{int(power)}"


def flips(f: Finding) -> tuple[tuple[Flip, ...], tuple[Flip, ...]]:
    """Items whose answer changed: lost and gained."""
    return tuple(x for x in f.flips if not x.won), tuple(x for x in f.flips if x.won)


def count(number: int, what: str) -> str:
    """`1 square`, `18 000 squares`."""
    return f"{show(number, 'count')} {what}{'' if number == 1 else 's'}"


def side(text: str) -> str:
    """One side of a difference: a dash where there is nothing."""
    return text or DASH


def shown_first(findings: Iterable[Finding]) -> list[Finding]:
    """In the order in which they are shown: alarms, then by verdict, in plan order among equals."""
    return sorted(findings, key=lambda f: (not f.alarm, ORDER.index(f.verdict)))
