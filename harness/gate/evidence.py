"""The gate's evidence: all that it found, as one JSON file, of which every other output can be made again.

    {"kind": "quant-harness gate", "schema": 2, "green": false, "said": [...], "counts": {...}, "report": {...}}

`report` is a `GateReport`, field by field; the others are made of it, for readers that only ask for the verdict. Sorted, strict
JSON: numbers that are not finite are the texts "nan", "inf" and "-inf". The same report gives the same bytes.
"""

from __future__ import annotations

import json

from harness.decode import DecodeError, decode
from harness.errors import BadInput, NewerSchema
from harness.gate import words
from harness.gate.types import GateReport
from harness.spec import Json, to_json

KIND = "quant-harness gate"

SCHEMA = 2
"""Version of the file. 1 (2026-11-30). 2 (2026-11-30): a finding has `tokens`."""


def evidence(report: GateReport) -> bytes:
    """The file's bytes: ASCII, one line feed at the end."""
    return (json.dumps(_told(report), indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def _told(report: GateReport) -> dict[str, Json]:
    steps = [f"{step.said} {step.command}".strip() for step in words.steps(report)]
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "green": report.green,
        "said": [words.verdict(report), *steps, words.error_rate(report)],
        "counts": dict(words.counts(report)),
        "report": to_json(decode(GateReport, to_json(report))),  # numbers as their types say, so that it reads back the same
    }


def read(data: bytes, name: str) -> GateReport:
    """The report that `evidence` wrote into the file `name`. BadInput for what is no evidence, or was changed so that its
    verdict is not the one that its findings give; NewerSchema for a file of a later version."""
    try:
        told = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise BadInput(f"{name}: not JSON; evidence is written by: quant-harness gate BASE CANDIDATE --json FILE") from None
    if not isinstance(told, dict) or told.get("kind") != KIND:
        raise BadInput(f"{name}: no evidence of a gate; it is written by: quant-harness gate BASE CANDIDATE --json FILE")
    schema = told.get("schema")
    if type(schema) is not int or schema < 1:
        raise BadInput(f"{name}: names no schema; write it again with: quant-harness gate BASE CANDIDATE --json FILE")
    if schema > SCHEMA:
        raise NewerSchema(
            f"{name}: written with evidence schema {schema}, this quant-harness reads up to {SCHEMA}; "
            "upgrade it with: pip install --upgrade llm-quant-harness"
        )
    try:
        report = decode(GateReport, told.get("report"))
    except (DecodeError, RecursionError) as error:
        raise BadInput(
            f"{name}: its report is not what schema {SCHEMA} says ({error}); write it again with: "
            "quant-harness gate BASE CANDIDATE --json FILE"
        ) from None
    if told != _told(report):
        raise BadInput(
            f"{name}: what it says of its report is not what the report says; it was changed, or another version wrote it: "
            "write it again with: quant-harness gate BASE CANDIDATE --json FILE"
        )
    return report


def _no_number(name: str) -> Json:
    raise ValueError(f"{name} is no number of JSON")
