"""Markdown in which every name stays text: one that holds a tag, a link, a fence or a table's bar is shown, and does nothing.

Written for the hub's pages and for terminals: CommonMark with GitHub's tables. What a reader would take for structure becomes an
entity or gets a backslash; control characters, line breaks and marks that turn the direction of writing are not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST = 200
"""Characters of a name that are repeated, unless somebody asks for more."""

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "$": "&#36;", "\\": "&#92;"}
_ESCAPED = "*[]`~!#{}@"


def line(value: object, longest: int = LONGEST) -> str:
    """A value as one line of plain characters, no more than `longest`: for places that need no escaping."""
    words = " ".join(str(value).split())
    seen = "".join(c if c.isprintable() else "\ufffd" for c in words)
    return seen if len(seen) <= longest else f"{seen[:longest]}…"


def text(value: object, longest: int = LONGEST) -> str:
    """A value as text between other text."""
    escaped = "".join(_ENTITIES.get(c) or (f"\\{c}" if c in _ESCAPED else c) for c in line(value, longest))
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)  # within a word it means nothing
    escaped = re.sub(r":(?=//)", r"\\:", escaped)
    escaped = re.sub(r"(?i)\bwww\.", lambda found: f"{found[0][:-1]}\\.", escaped)
    escaped = re.sub(r"^(\d{1,9})([.)])(?=\s|$)", r"\1\\\2", escaped)  # what would begin a list, or underline a heading
    return re.sub(r"^([-+](?=\s|$)|-(?=-)|=)", r"\\\1", escaped)


def code(language: str, content: str) -> str:
    """A block of code, which nothing in it can end."""
    shown = "".join(c if c == "\n" or c.isprintable() else "\ufffd" for c in content)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[bool] = ()) -> str:
    """A table of squares that are Markdown already (`text`)."""
    align = [*numeric, *([False] * (len(head) - len(numeric)))]
    lines = [head, ["---:" if right else "---" for right in align], *rows]
    return "\n".join(f"| {' | '.join(squares)} |" for squares in lines)
