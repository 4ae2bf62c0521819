"""Figures about the code: how long, how much branching, how many arrows between rooms, how much is untyped.

`complexity` of a function is McCabe's number (A Complexity Measure, 1976): one plus its decisions. Decisions are `if`, `elif`,
conditional expressions, loops, `except`, cases of `match`, each further operand of `and` and `or`, comprehensions and their
conditions; those of functions inside count where they stand. Lines are physical lines, decorators left out.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools import house

DUPLICATE_STATEMENTS = 3
"""A function's body of fewer statements is no duplicate, however often it stands somewhere."""

Def = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function of a file: `name` with the classes and functions around it."""

    file: str
    name: str
    lines: int
    complexity: int
    body: str
    statements: int

    @property
    def where(self) -> str:
        return f"{self.file}: {self.name}"


def functions(folder: Path) -> list[Function]:
    """All functions and methods below a folder, those inside others included."""
    return [
        function
        for path in sorted(folder.rglob("*.py"))
        for function in functions_of(path.read_text(encoding="utf-8"), path.relative_to(folder).as_posix())
    ]


def functions_of(text: str, file: str) -> list[Function]:
    """All functions of a source text."""
    return list(_functions(ast.parse(text), file, ""))


def _functions(node: ast.AST, file: str, prefix: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        name = f"{prefix}{child.name}" if isinstance(child, (Def, ast.ClassDef)) else prefix
        if isinstance(child, Def):
            yield Function(
                file=file,
                name=name,
                lines=(child.end_lineno or child.lineno) - child.lineno + 1,
                complexity=complexity(child),
                body=_body(child),
                statements=sum(isinstance(inner, ast.stmt) for inner in ast.walk(child)) - 1,
            )
        yield from _functions(child, file, f"{name}." if isinstance(child, (Def, ast.ClassDef)) else prefix)


def complexity(function: ast.AST) -> int:
    """One plus the decisions below a node."""
    count = 1
    for node in ast.walk(function):
        if isinstance(node, (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
    return count


def _body(function: Def) -> str:
    """The body without its docstring, with every name replaced by the place of its first use: equal for equal work."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    places: dict[str, str] = {}
    parts = []
    for statement in body:
        tree = copy.deepcopy(statement)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = places.setdefault(node.id, f"n{len(places)}")
        parts.append(ast.dump(tree))
    return "\n".join(parts)


def lines(folder: Path) -> dict[str, int]:
    """Physical lines of every Python file below a folder."""
    return {
        path.relative_to(folder).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(folder.rglob("*.py"))
    }


def table(root: Path = house.ROOT) -> str:
    """The figures of a tree as a Markdown table."""
    shown = house.read(root)
    code, tests = lines(shown.folder), lines(root / "tests")
    all_functions = functions(shown.folder)
    lengths, branching = ([getattr(f, name) for f in all_functions] for name in ("lines", "complexity"))
    longest, knotted = (max(all_functions, key=lambda f: getattr(f, name)) for name in ("lines", "complexity"))
    file = max(code, key=lambda name: code[name])
    arrows = shown.arrows()
    groups = house.cycles(arrows)
    words = Counter(re.findall(r"\b(?:Any|Json)\b", "\n".join(p.read_text(encoding="utf-8") for p in shown.modules.values())))
    known = {name for layer in house.LAYERS for name in layer.rooms}
    strange = sorted(set(shown.rooms) - known)
    rows = [
        ("rooms in a cycle", f"{sum(map(len, groups))}" + "".join(f" ({', '.join(group)})" for group in groups)),
        ("arrows between rooms", str(len(arrows))),
        ("arrows that do not point down", "no order to say it by" if strange else str(len(house.upward(arrows)))),
        ("`Any`", str(words["Any"])),
        ("`Json`", str(words["Json"])),
        ("files, lines", f"{len(code)}, {sum(code.values()):,}"),
        ("longest file", f"{code[file]} ({file})"),
        ("functions", f"{len(all_functions):,}"),
        ("function lines, median / p90 / max", f"{_ranks(lengths)} ({longest.where})"),
        ("functions over 60 lines", str(sum(n > 60 for n in lengths))),
        ("complexity, median / p90 / max", f"{_ranks(branching)} ({knotted.where})"),
        ("functions with the body of another", str(len(duplicates(all_functions)))),
        ("test lines", f"{sum(tests.values()):,} ({sum(tests.values()) / sum(code.values()):.2f} per line of code)"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def duplicates(all_functions: Sequence[Function]) -> list[Function]:
    """Functions of some length whose body stands elsewhere too, whatever its names are."""
    told = [f for f in all_functions if f.statements >= DUPLICATE_STATEMENTS]
    counts = Counter(f.body for f in told)
    return [f for f in told if counts[f.body] > 1]


def _ranks(values: Sequence[int]) -> str:
    """Median, 90th percentile (nearest rank) and maximum."""
    ordered = sorted(values)
    return " / ".join(str(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) for share in (0.5, 0.9, 1.0))
