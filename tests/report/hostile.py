"""Strings that somebody could put wherever a report shows text, and a run that holds them everywhere; shared by the tests.

`STRINGS` are at least 200, each named by what it tries. `write` stores a run whose every text is one of them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from harness import store
from harness.costs import CellCost, CellForecast, Expected, PieceCost
from harness.metrics import METRICS
from harness.spec import (
    Answer,
    CalibrationText,
    Cell,
    EnvironmentRecord,
    Failure,
    FailureKind,
    Measurement,
    Model,
    PlannedCellRecord,
    PlanRecord,
    Question,
    Record,
    RunContext,
    RunHeader,
    Scheme,
    UnsupportedRecord,
    digest,
)
from tests.squares import square

SCHEMES = ("javascript", "JaVaScRiPt", "java\tscript", "java\nscript", " javascript", "\x01javascript", "vbscript", "livescript")
HANDLERS = ("onerror", "onload", "onclick", "onmouseover", "onfocus", "onpointerenter", "ontoggle", "onanimationstart", "onbegin")
TAGS = (
    "script",
    "img",
    "svg",
    "iframe",
    "object",
    "embed",
    "link",
    "meta",
    "base",
    "form",
    "style",
    "video",
    "math",
    "template",
    "noscript",
    "xmp",
    "plaintext",
    "textarea",
    "title",
    "details",
    "body",
    "html",
    "select",
    "foreignObject",
    "animate",
)
KINDS: tuple[FailureKind, ...] = ("oom", "timeout", "crash", "error", "unsupported", "input", "environment", "nonfinite")
MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u2028\u2029\u0085\ufffe\uffff\U000e0041"


def _strings() -> Iterator[str]:
    for tag in TAGS:
        yield f"<{tag}>alert(1)</{tag}>"
        yield f"</{tag}><{tag} src=x href=javascript:alert(1) onload=alert(1)>"
    for handler in HANDLERS:
        yield f'" {handler}="alert(1)'
        yield f"' {handler}='alert(1)"
        yield f"x {handler}=alert(1) tabindex=1 autofocus"
        yield f"`{handler}=alert(1)//"
    for scheme in SCHEMES:
        yield f"{scheme}:alert(1)"
        yield f'<a href="{scheme}:alert(1)">x</a>'
        yield f"[x]({scheme}:alert(1))"
    yield from (
        "data:text/html,<script>alert(1)</script>",
        "data:text/html;base64,PHNjcmlwdD4=",
        "file:///etc/passwd",
        "https://evil.example/?q=",
        "//evil.example/x.js",
        "blob:null/1",
        "about:blank",
        "view-source:x",
    )
    yield from (f"abc{mark}def{mark}" for mark in MARKS)
    yield from (f"a\u202egnp.exe{mark}" for mark in MARKS)
    yield from (f"a{hidden}b" for hidden in INVISIBLE)
    yield from (f"c{chr(code)}d" for code in (*range(9), 11, 12, *range(14, 32), 127))
    yield from (
        "../../etc/passwd",
        "..\\..\\windows\\system32",
        "/etc/passwd",
        "C:\\x\\y",
        "a/../../b",
        "%2e%2e%2f",
        "~root",
        "con",
        "a\0.html",
        "-rf",
        "--help",
        "$(touch x)",
        "`touch x`",
        "; rm -rf x",
        "| cat x",
        "&& x",
        "> x",
        "$HOME",
        "%s%s%n",
        "{0.__class__}",
        "{{7*7}}",
        "{% include 'x' %}",
        "${7*7}",
        "#{7*7}",
        "<%= 7*7 %>",
        "${jndi:ldap://x}",
    )
    yield from (
        "<!--",
        "-->",
        "--!>",
        "<![CDATA[",
        "]]>",
        "<?php",
        "?>",
        "<!DOCTYPE x [<!ENTITY y 'z'>]>",
        "&lt;script&gt;",
        "&#x3c;b&#x3e;",
        "&colon;",
        "&NewLine;",
        "&amp;amp;",
        "&#0;",
        "&#x202e;",
        "\\u003cscript\\u003e",
        "\\x3cscript\\x3e",
        "\\",
        "\\\\",
        '\\"',
        "\\'",
        "</script >",
        "</SCRIPT>",
        "</scr\0ipt>",
        "<script/x>",
        "<\u017fcript>",
        "\uff1cscript\uff1e",
        "</style><x>",
        "</title><x>",
    )
    yield from (
        "\\u202e",
        "\\\\u202e",
        "\\\u202e",
        "\\\\\u202e",
        "__proto__",
        "constructor",
        "prototype",
        "toString",
        "hasOwnProperty",
    )
    yield from (
        "=1+1",
        "+1",
        "-1",
        "@SUM(1)",
        "=cmd|' /c x'!A0",
        "\t=1",
        '"',
        "'",
        '""',
        "''",
        '"""',
        ",",
        ";",
        "\n",
        "\r\n",
        "a\nb",
        "|",
        "||",
    )
    yield from (
        "**b**",
        "_i_",
        "# h",
        "- l",
        "> q",
        "```",
        "![x](https://e.example/x.png)",
        "<https://e.example>",
        "\\begin{x}",
        "$x$",
        "%",
        "&",
    )
    yield from (
        "\U0001f4a9",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f1e9\U0001f1ea",
        "e\u0301" * 20,
        "Z\u0351\u036b\u0343" * 30,
        "\u0645\u0631\u062d\u0628\u0627",
        "\u05e9\u05dc\u05d5\u05dd",
        "\u4f60\u597d",
        "\ud7a3",
        "\ufdfd",
    )
    yield from (
        "x" * 10_240,
        "<" * 10_240,
        "\u202e" * 2_000,
        "a " * 5_000,
        "",
        " ",
        "\u00a0",
        "NaN",
        "null",
        "undefined",
        "-0",
        "1e999",
    )
    yield from (
        "expression(alert(1))",
        "url(javascript:alert(1))",
        "x;background:url(//e)",
        "--a:1;}*{display:none",
        "@import 'x';",
        "\\3c b",
    )


STRINGS: tuple[str, ...] = tuple(dict.fromkeys(_strings()))


def write(folder: Path, strings: tuple[str, ...] = STRINGS) -> Path:
    """A stored run in which these strings stand wherever a report shows text: `strings` as the labels of cells, one each, and all
    of STRINGS in turn everywhere else."""
    turn = itertools.cycle(STRINGS)
    models = [
        Model(name=f"m{next(turn)}"),
        Model(name=f"n{next(turn)}", repo="o/r", revision=next(turn), commit=next(turn)),
    ]
    planned, records, costs = [], [], []
    with mock.patch("os.fsync"):
        for number, label in enumerate(strings):
            cell = _cell(number, label, models[number % 2], turn)
            asked = _questions()
            planned.append(PlannedCellRecord(cell=cell, questions=tuple(asked), baseline=number < 2))
            records += [_record(folder, cell, question, number, turn) for question in asked]
            costs.append(_cost(cell, number < 2, turn))
        return _store(folder, planned, records, costs, models, turn)


def _cell(number: int, label: str, model: Model, turn: Iterator[str]) -> Cell:
    first = number < 2
    method, bits = ("bf16", 16) if first else (f"x{next(turn)}", (8, 4, 3, 2)[number % 4])
    scheme = Scheme(method=method, bits=bits, options={"note": next(turn), "n": number})
    return square(scheme, model=model, label=label or "none")


def _record(folder: Path, cell: Cell, question: Question, number: int, turn: Iterator[str]) -> Record:
    failed = number % 5 == 3 and question.probe == "memory"
    failure = Failure(kind=KINDS[number % 8], phase=next(turn), message=next(turn), log_tail=next(turn))
    return Record(
        key=digest({"cell": cell, "question": question}),
        context="c" * 64,
        cell=cell,
        question=question,
        probe_version="1",
        answer=None if failed else _answer(folder, question, number, turn),
        failure=failure if failed else None,
        environment="e" * 64,
        started_at="2026-11-21T04:00:01Z",
        seconds=1.5,
    )


def _cost(cell: Cell, baseline: bool, turn: Iterator[str]) -> CellCost:
    return CellCost(
        cell=cell,
        baseline=baseline,
        started_at="2026-11-21T04:00:01Z",
        seconds=2.0,
        pieces=(PieceCost(what=next(turn), subject=next(turn), seconds=1.0, model_seconds=0.5),),
        questions="q",
        whole=True,
        expected=CellForecast(seconds=Expected(low=1.0, high=4.0, source="same")),
    )


def _store(
    folder: Path,
    planned: list[PlannedCellRecord],
    records: list[Record],
    costs: list[CellCost],
    models: list[Model],
    turn: Iterator[str],
) -> Path:
    path = folder / "20261121T040000Z-hostile.jsonl"
    packages = {f"p{next(turn)[:200]}": next(turn) for _ in range(30)}
    header = RunHeader(
        run=next(turn),
        started_at=next(turn),
        context=RunContext(
            host=next(turn),
            python=next(turn),
            packages_digest=next(turn),
            harness=next(turn),
            commit=next(turn),
            source=next(turn),
            device=next(turn),
            threads=2,
            machine={"cpu": next(turn), "gpus": [{"name": next(turn)}], "system": next(turn), next(turn): next(turn)},
            packages=packages,
        ),
        context_digest="c" * 64,
    )
    wanted = [square(Scheme(method=next(turn), bits=3), model=models[0]) for _ in range(40)]
    squares = [UnsupportedRecord(cell=cell, reason=next(turn)) for cell in wanted]
    texts = [
        CalibrationText(
            model=models[0].name,
            text=next(turn),
            words=next(turn),
            why=next(turn),
            samples=8,
            length=128,
            cells=(planned[2].cell.label,),
            overlap={next(turn): 0.5},
        )
        for _ in range(20)
    ]
    with store.Writer(path, header) as writer:
        writer.plan(
            PlanRecord(
                suite={"name": next(turn), "title": next(turn)},
                baseline="bf16",
                cells=tuple(planned),
                unsupported=tuple(squares),
                commands=tuple(next(turn) for _ in range(10)),
                notes=tuple(next(turn) for _ in range(30)),
                weights={model.name: next(turn) for model in models},
                calibrated_on=tuple(texts),
            )
        )
        writer.environment(EnvironmentRecord(name=next(turn), digest="e" * 64, python=next(turn), packages=packages))
        for record in records:
            writer.record(record)
        for cost in costs:
            writer.cost(cost)
        writer.end(ended_at="2026-11-21T05:00:00Z", questions=len(records))
    return path


def _questions() -> list[Question]:
    return [
        Question(probe="quantize", subject=""),
        Question(probe="size", subject=""),
        Question(probe="divergence", subject=STRINGS[1]),
        Question(probe="tasks", subject=STRINGS[2]),
        Question(probe="memory", subject=STRINGS[4]),
        Question(probe="latency", subject=STRINGS[5], options={"prompt": 128, "new": 8, "batch": 1}),
    ]


def _answer(folder: Path, question: Question, number: int, turn: Iterator[str]) -> Answer:
    """An answer with numbers of the right kind, and a hostile string wherever it has text."""
    baseline = number < 2
    engine = {"name": next(turn), "kernels": {next(turn): 3}, "layers": {next(turn): [next(turn)]}, "notes": [next(turn)]}
    facts: dict[str, object] = {"notes": [next(turn)], "withheld": [next(turn)], "marks": [next(turn)], "engine": engine}
    values: dict[str, tuple[float, str | None]] = {}
    if question.probe == "quantize":
        layers = [{"layer": next(turn), "relative": 0.1 * place, "output": 2.0} for place in (1, 2)]
        errors = store.add_blob(folder, json.dumps({"layers": [*layers, {"layer": 7, "relative": next(turn)}]}).encode(), "json")
        values = {"quantize_seconds": (1.5, None), "quantize_peak_bytes": (4e8, None), "weight_error": (0.1, errors)}
        facts["calibration_tokens"] = next(turn)
    elif question.probe == "size":
        values = {"bpw_model": (4.5 + number % 7, None), "file_bytes": (1e6 + number, None)}
        facts["parts"] = {
            "4.5": {"layers": 3, "parameters": 100},
            "8.5": {"layers": 1, "parameters": 50},
            next(turn): {next(turn): 1},
        }
    elif question.probe == "divergence":
        tokens = [{"before": next(turn), "token": next(turn), "after": next(turn), "kl": 1.5, "p": 0.1, "p_base": next(turn)}]
        worst = store.add_blob(folder, json.dumps({"tokens": tokens}).encode(), "json")
        values = {"kl_mean": (0.01 + number / 1e4, None), "kl_p99": (0.2, None), "kl_max": (2.0, None if baseline else worst)}
    elif question.probe == "tasks":
        rows = []
        for place in range(6):
            row: dict[str, object] = {"id": f"i{place}", "doc": place, "correct": (place + number) % 2, "gold": 1}
            if baseline:
                row["text"] = {"prompt": next(turn), "choices": [next(turn), next(turn), next(turn)], "target": next(turn)}
            rows.append(row)
        values = {"accuracy": (0.5, store.add_blob(folder, json.dumps({"items": rows}).encode(), "json"))}
    elif question.probe == "memory":
        values = {"peak_decode_bytes": (3e7, None), "weight_bytes_resident": (2e7, None), "kv_cache_bytes": (1e6, None)}
    else:
        values = {"ttft": (0.02, None), "tpot": (0.002 + number / 1e6, None), "roofline_share": (0.4, None)}
    measured = [
        Measurement(
            metric=name,
            value=value,
            definition=METRICS[name].definition if number else f"{METRICS[name].definition}{next(turn)}",
            unit=METRICS[name].unit,
            n=6,
            blob=blob,
        )
        for name, (value, blob) in values.items()
    ]
    measured.append(Measurement(metric=f"q{question.probe}", value=1.0, definition=next(turn), unit=next(turn)[:20]))
    return Answer(measurements=tuple(measured), facts=facts)
