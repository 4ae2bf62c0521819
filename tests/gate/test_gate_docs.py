"""What docs/gate.md shows of the gate's outputs is what they are."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from harness.gate import evidence, junit, markdown, terminal
from tests.gate import reports_by_hand as by_hand

PAGE = Path(__file__).parents[2] / "docs" / "gate.md"


def printed() -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    for part in terminal.drawn(by_hand.example()):
        console.print(part, soft_wrap=not isinstance(part, Table), highlight=False)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def without_commands() -> str:
    """The comment but for its blocks of commands: a page's blocks of commands are run as they stand (tests/test_docs.py)."""
    return re.sub(r"```sh\n.*?\n```\n\n", "", markdown.comment(by_hand.example()), flags=re.DOTALL)


def failing_case() -> str:
    case = next(c for c in ET.fromstring(junit.junit(by_hand.example())).iter("testcase") if c.find("failure") is not None)
    case.tail = None
    return ET.tostring(case, encoding="unicode") + "\n"


def top_of_evidence() -> str:
    told = json.loads(evidence.evidence(by_hand.example()))
    return json.dumps({name: told[name] for name in ("counts", "green", "kind", "schema")}, indent=1) + "\n"


SHOWN = {
    "text": printed,
    "markdown": without_commands,
    "xml": failing_case,
    "json": top_of_evidence,
}


@pytest.mark.parametrize("language", SHOWN)
def test_the_page_shows_what_is_printed(language: str) -> None:
    part = PAGE.read_text(encoding="utf-8").partition("## What it prints")[2]
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
    shown = "\n".join(line.rstrip() for line in block.splitlines())
    assert shown == "\n".join(line.rstrip() for line in SHOWN[language]().splitlines())
