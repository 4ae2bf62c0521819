"""Gate reports made by hand, for tests of what a gate prints: figures of realistic shape, never measured."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from harness.gate.types import Difference, Figure, Finding, Flip, GateReport, Past, RunName, Square

BASE = RunName(
    path="results/nightly/2026-11-28T020000Z-7f3a.jsonl",
    run="2026-11-28T020000Z-7f3a",
    suite="nightly",
    started_at="2026-11-28T02:00:00Z",
    commit="1a64254c9d1e",
    host="bench-1",
    finished=True,
)
CANDIDATE = dataclasses.replace(
    BASE,
    path="results/nightly/2026-11-29T020000Z-91bc.jsonl",
    run="2026-11-29T020000Z-91bc",
    started_at="2026-11-29T02:00:00Z",
    commit="560a470b11aa",
)
LABELS = ("gptq 4-bit g64", "awq 4-bit g64", "rtn 8-bit")


def square(metric: str = "mean_accuracy", *, label: str = LABELS[0], **other: Any) -> Square:
    """A square of the reference model."""
    known = {
        "mean_accuracy": {"title": "Mean accuracy", "subject": "mean of 6 tasks", "unit": "share", "definition": "mean"},
        "kl_mean": {"title": "Mean KL divergence", "subject": "reference", "unit": "nat", "definition": "kl"},
        "perplexity": {"title": "Perplexity", "subject": "reference", "unit": "", "definition": "windows"},
        "tpot": {"title": "Time per token", "subject": "prompt 128, batch 1", "unit": "s", "definition": "median"},
        "file_bytes": {"title": "Size on disk", "subject": "", "unit": "B", "definition": "files"},
    }
    given = {"model": "reference-12m", "label": label, "identity": f"identity of {label}", "metric": metric}
    return Square(**{**given, **known.get(metric, {}), **other})


def lost_accuracy(**other: Any) -> Finding:
    given: dict[str, Any] = {
        "square": square(),
        "kind": "items",
        "verdict": "regressed",
        "before": Figure(value=0.964, low=0.955, high=0.972, n=3000),
        "after": Figure(value=0.941, low=0.931, high=0.95, n=3000),
        "change": 2.3,
        "low": 1.4,
        "high": 3.2,
        "change_unit": "points",
        "p": 3e-6,
        "adjusted": 7e-4,
        "threshold": 0.25,
        "threshold_from": "the default policy",
        "factor": 2.3 / 0.9,
        "keys": ("a" * 64, "b" * 64),
        "flips": (
            Flip(task="facts", item="facts-17", won=False),
            Flip(task="facts", item="facts-3", won=False),
            Flip(task="sums", item="sums-8", won=True),
        ),
    }
    return Finding(**{**given, **other})


def slower(**other: Any) -> Finding:
    given: dict[str, Any] = {
        "square": square("tpot", label=LABELS[1]),
        "kind": "fenced",
        "verdict": "regressed",
        "before": Figure(value=0.0021),
        "after": Figure(value=0.00235),
        "change": 0.119,
        "low": 0.1,
        "high": 0.138,
        "change_unit": "share",
        "threshold": 0.04,
        "threshold_from": "the fence of its own last 30 nights",
        "factor": 6.3,
        "keys": ("c" * 64,),
    }
    return Finding(**{**given, **other})


def quiet(place: int) -> Finding:
    """A square within its noise."""
    return Finding(
        square=square("kl_mean", label=LABELS[place % 3], subject=f"text {place}"),
        kind="tokens",
        verdict="within noise",
        before=Figure(value=0.0123, low=0.011, high=0.0136, n=15360),
        after=Figure(value=0.0124, low=0.0111, high=0.0137, n=15360),
        change=0.0081,
        low=-0.016,
        high=0.033,
        change_unit="share",
        p=0.31,
        adjusted=1.0,
        threshold=0.05,
        threshold_from="the default policy",
        factor=0.33,
        keys=("d" * 64,),
    )


def others() -> tuple[Finding, ...]:
    """One finding of each verdict that is no alarm."""
    lacking: dict[str, Any] = {"kind": "losses", "before": Figure(value=8.41, low=8.2, high=8.6, n=15360)}
    return (
        Finding(square=square("perplexity"), verdict="missing", reason="the candidate's plan does not ask it", **lacking),
        Finding(square=square("perplexity", label=LABELS[1]), verdict="failed", reason="crash: killed by signal 9", **lacking),
        Finding(
            square=square("tpot"),
            kind="fenced",
            verdict="not comparable",
            before=Figure(value=0.0021),
            after=Figure(value=0.0019),
            reason="other machine (bench-1, then bench-2)",
        ),
        Finding(
            square=square("file_bytes"),
            kind="exact",
            verdict="improved",
            before=Figure(value=3_936_665),
            after=Figure(value=3_936_664),
            change=-1 / 3_936_665,
            change_unit="share",
        ),
        Finding(square=square("kl_mean", label=LABELS[2]), kind="tokens", verdict="new", after=Figure(value=0.0004)),
    )


DIFFERENCES = (
    Difference(what="package gptqmodel", before="7.6.0", after="7.6.1"),
    Difference(what="package numpy", before="2.4.0", after="2.4.1"),
    Difference(what="commit", before="1a64254c9d1e", after="560a470b11aa"),
    Difference(what="weights of awq 4-bit g64", before="sha256 91ab", after=""),
)


def red(**other: Any) -> GateReport:
    """A night with two alarms and one finding of each other verdict."""
    alarms = (lost_accuracy(), slower())
    given: dict[str, Any] = {
        "base": BASE,
        "candidate": CANDIDATE,
        "accepted": None,
        "findings": (*(quiet(n) for n in range(6)), *others(), *alarms),
        "differences": DIFFERENCES,
        "notes": ("1 line of the candidate is damaged and was left out.",),
        "tests": 231,
        "alpha": 0.01,
        "commands": {f.square.name: f"quant-harness run nightly --only {f.keys[0]}" for f in alarms},
    }
    return GateReport(**{**given, **other})


def example() -> GateReport:
    """A short night, for the documentation: one alarm, one square that is missing, one within its noise."""
    return red(
        findings=(quiet(0), lost_accuracy(), others()[0]),
        differences=DIFFERENCES[:1],
        notes=(),
        commands={},
    )


def green(**other: Any) -> GateReport:
    """A night in which nothing is worse, and one square could not be compared."""
    return red(
        **{"findings": (*(quiet(n) for n in range(6)), others()[2]), "differences": (), "notes": (), "commands": {}, **other}
    )


def history(f: Finding, values: tuple[float, ...], *, machines: str = "") -> dict[tuple[str, str, str, str], tuple[Past, ...]]:
    """One night for each value, the last on the day before the candidate."""
    nights = tuple(
        Past(
            started_at=f"2026-11-{28 - len(values) + place + 1:02d}T02:00:00Z",
            run=BASE.run if place == len(values) - 1 else f"night {place}",
            value=value,
            baseline=None,
            machine=machines[place] if machines else "m",
        )
        for place, value in enumerate(values)
    )
    return {(f.square.identity, f.square.metric, f.square.subject, f.square.definition): nights}


def hostile(strings: tuple[str, ...], **other: Any) -> GateReport:
    """A red report whose every text is one of these strings in turn."""
    turn = itertools.cycle(strings)
    texts: dict[str, Any] = {name: next(turn) for name in ("path", "run", "suite", "started_at", "commit", "host")}
    run = dataclasses.replace(BASE, **texts)
    findings = tuple(_hostile(f, turn) for f in (*red().findings, *(dataclasses.replace(f, muted="x") for f in red().alarms)))
    return GateReport(
        base=run,
        candidate=dataclasses.replace(run, path=next(turn), suite=next(turn)),
        accepted=run,
        findings=findings,
        differences=tuple(Difference(what=next(turn), before=next(turn), after=next(turn)) for _ in range(5)),
        notes=(next(turn), next(turn)),
        tests=231,
        alpha=0.01,
        commands={f.square.name: next(turn) for f in findings},
        **other,
    )


def _hostile(f: Finding, turn: Iterator[str]) -> Finding:
    texts: dict[str, Any] = {
        name: next(turn) for name in ("model", "label", "identity", "metric", "title", "subject", "definition", "unit")
    }
    return dataclasses.replace(
        f,
        square=dataclasses.replace(f.square, **{**texts, "unit": f.square.unit}),
        reason=next(turn),
        threshold_from=next(turn),
        muted=next(turn) if f.muted else "",
        keys=tuple(next(turn) for _ in f.keys),
        flips=tuple(dataclasses.replace(flip, task=next(turn), item=next(turn)) for flip in f.flips),
    )
