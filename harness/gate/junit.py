"""The gate as JUnit XML: one test case per square, in the form that Jenkins, GitLab and GitHub's actions read.

`failure`: worse, with the command that asks it again. `error`: it failed, or is missing: without a number nothing is proven, and
the gate is red. `skipped`: not comparable, new, muted, or not seen again; with the reason. So a suite has failures or errors
exactly where the gate is red. A projection of the evidence: it holds nothing that the evidence does not.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter

from harness.gate import words
from harness.gate.types import Finding, GateReport

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even as references (section 2.2 of the recommendation)."""


def junit(report: GateReport) -> bytes:
    """UTF-8 bytes of the file."""
    cases = [_case(report, f, name) for f, name in zip(report.findings, _names(report.findings), strict=True)]
    tags = Counter(child.tag for case in cases for child in case)
    numbers = {"tests": str(len(cases)), "failures": str(tags["failure"]), "errors": str(tags["error"]), "time": "0"}
    whole = ET.Element("testsuites", {"name": "quant-harness gate", **numbers})
    suite = ET.SubElement(whole, "testsuite", {"name": _text(report.candidate.suite or "gate"), **numbers})
    suite.set("skipped", str(tags["skipped"]))
    if _TIMESTAMP.fullmatch(report.candidate.started_at):
        suite.set("timestamp", report.candidate.started_at[:19])
    suite.set("hostname", _text(report.candidate.host))
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(report).items():
        ET.SubElement(properties, "property", {"name": name, "value": _text(value)})
    suite.extend(cases)
    ET.SubElement(suite, "system-out").text = _text("\n".join(_said(report)))
    ET.indent(whole, " ")
    written: bytes = ET.tostring(whole, encoding="UTF-8", xml_declaration=True, short_empty_elements=True)
    return written + b"\n"


_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}.*")


def _properties(report: GateReport) -> dict[str, str]:
    named = {"base": report.base, "candidate": report.candidate, "accepted": report.accepted}
    said = {name: words.run_words(run) for name, run in named.items() if run is not None}
    return {"verdict": words.verdict(report), **said, "error rate": words.error_rate(report)}


def _said(report: GateReport) -> list[str]:
    lines = [words.verdict(report)]
    lines += [f"{step.said} {step.command}".strip() for step in words.steps(report)]
    lines += [f"{d.what}: {words.side(d.before)} {words.ARROW} {words.side(d.after)}" for d in report.differences]
    return [*lines, *report.notes]


def _names(findings: tuple[Finding, ...]) -> list[str]:
    """A name for each test case that no other of its cell has: its definition is added where two share one, then a number."""
    cells = [_text(f.square.cell) for f in findings]
    names = [_text(words.about(f)) for f in findings]
    twice = Counter(zip(cells, names, strict=True))
    seen: Counter[tuple[str, str]] = Counter()
    unique = []
    for f, cell, name in zip(findings, cells, names, strict=True):
        told = f"{name} [{_text(f.square.definition)}]" if twice[cell, name] > 1 else name
        seen[cell, told] += 1
        unique.append(told if seen[cell, told] == 1 else f"{told} ({seen[cell, told]})")
    return unique


def _case(report: GateReport, f: Finding, name: str) -> ET.Element:
    case = ET.Element("testcase", {"classname": _text(f.square.cell), "name": _text(name), "time": "0"})
    said = words.sentence(f)
    if f.alarm:
        command = words.replay(report, f)
        lines = [said, f"Ask it again: {command}" if command else "", *(f"record {key}" for key in f.keys)]
        body = "\n".join(line for line in lines if line)
        ET.SubElement(case, "failure", {"type": "regressed", "message": _text(said)}).text = _text(body)
    elif f.verdict in ("failed", "missing"):
        ET.SubElement(case, "error", {"type": f.verdict, "message": _text(f"{f.verdict}: {said}")}).text = _text(said)
    elif f.verdict not in ("within noise", "improved"):
        word = "muted" if f.muted else f.cause or f.verdict
        ET.SubElement(case, "skipped", {"message": _text(f"{word}: {said}")})
    else:
        ET.SubElement(case, "system-out").text = _text(f"{f.verdict}: {said}")
    return case


def _text(value: str) -> str:
    """Without what XML 1.0 forbids: in its place stands U+FFFD."""
    return _FORBIDDEN.sub("\ufffd", value)
