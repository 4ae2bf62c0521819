"""The house seen from outside: which module imports which, whether all arrows point down, and figures about the code.

    python -m tools.house            writes docs/house.svg and the table of rooms in docs/house.md
    python -m tools.house figures    prints the figures of this tree (or of another: figures FOLDER)

Everything is read from the source text; nothing of the package is imported. Standard library only. The test of the
architecture reads the same table of layers, so the picture cannot show another house than the one that is enforced.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
PACKAGE = "harness"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Rooms side by side: none of them imports another of the same layer. `why`: why they stand there."""

    rooms: tuple[str, ...]
    why: str


LAYERS = (
    Layer(rooms=("cli",), why="the verbs: they call everything, and nothing calls them"),
    Layer(rooms=("cli_bisect",), why="the verb `bisect`, which judges as `gate` does"),
    Layer(
        rooms=("cli_gate", "cli_history"), why="the verbs `gate`, `history` and `accept`, which speak as those that publish do"
    ),
    Layer(rooms=("cli_publish",), why="the verbs that show and publish what is stored; they speak as `env` does"),
    Layer(
        rooms=("cli_announce", "cli_export", "cli_verify"),
        why="the verbs `announce`, `export` and `verify`, which say what they do as `env` and `run` do",
    ),
    Layer(
        rooms=("cli_env", "cli_progress", "cli_recommend"),
        why="the verbs `env` and `recommend` and the progress of `run`, which the command line takes in",
    ),
    Layer(rooms=("harness",), why="the public functions, which call what the verbs call"),
    Layer(rooms=("run",), why="starts environments and children, and keeps what they answer"),
    Layer(rooms=("announce",), why="tells a tracker what a gate found"),
    Layer(rooms=("gate",), why="judges stored runs against each other, and draws its page with the report's pieces"),
    Layer(
        rooms=("envs", "forecast", "report"),
        why="environments start children to try methods; forecast and report read the store, the forecast a plan besides",
    ),
    Layer(rooms=("child", "suite"), why="a child does jobs and knows no suite, a suite is planned without starting a child"),
    Layer(rooms=("plugins",), why="fills the tables of probes, engines and methods from other packages"),
    Layer(rooms=("probes",), why="they ask engines, and know methods by their rows"),
    Layer(rooms=("engines",), why="they load what methods wrote, and answer through scoring"),
    Layer(rooms=("methods",), why="they write and load artifacts: formats, models and runtimes lie below them"),
    Layer(
        rooms=("scoring", "training"),
        why="lm-eval's requests on any model, and a model's weights trained further; they know no method and no engine",
    ),
    Layer(rooms=("models", "runtimes"), why="a source model is a folder for torch, a runtime does without torch"),
    Layer(rooms=("formats", "reference"), why="they read files and packaged data, and load no model"),
    Layer(
        rooms=("measure", "metrics", "mixing", "recipes", "stats", "store", "frontier", "decide", "forking"),
        why="they know neither models nor methods",
    ),
    Layer(
        rooms=("artifact", "costs", "decode", "errors", "files", "kv", "proof", "series"),
        why="what most rooms share: artifacts, costs, types, messages, files and lines, words of the cache, a run's last line",
    ),
    Layer(rooms=("spec", "version"), why="the vocabulary as types: it imports nothing of the house"),
)
"""The order of the house, from the top. A room imports rooms of lower layers only."""

When = Literal["import", "call", "typing", "name"]
"""`import`: when the module is imported. `call`: inside a function. `typing`: for type checkers only. `name`: a string that is
a module's name, as in `modules=(...)`, `import_module("...")` and `python -m ...`."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Import:
    """One place where a module names another. `target` is a module of the package, or the top-level name of a library."""

    source: str
    target: str
    line: int
    when: When


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """All modules of a package with their imports."""

    folder: Path
    modules: Mapping[str, Path]
    imports: tuple[Import, ...]

    @property
    def rooms(self) -> tuple[str, ...]:
        return tuple(sorted({room(name) for name in self.modules}))

    def arrows(self) -> dict[tuple[str, str], list[Import]]:
        """Imports between rooms, type checkers' included, by (from, to)."""
        between: dict[tuple[str, str], list[Import]] = {}
        for one in self.imports:
            if one.target in self.modules and room(one.source) != room(one.target):
                between.setdefault((room(one.source), room(one.target)), []).append(one)
        return dict(sorted(between.items()))

    def reach(self, start: Iterable[str], when: Collection[When]) -> dict[str, tuple[str, ...]]:
        """Every module that is imported from `start` in the end, with the chain that leads there.

        A module brings the packages that it lies in. Of the whole package's own `__init__` only what runs when it is
        imported counts: its functions are called by nobody inside."""
        paths: dict[str, tuple[str, ...]] = {}
        pending: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in start]
        by_source: dict[str, list[Import]] = {}
        for one in self.imports:
            if one.when in when and (one.source != self.folder.name or one.when == "import"):
                by_source.setdefault(one.source, []).append(one)
        while pending:
            name, path = pending.pop()
            if name in paths:
                continue
            paths[name] = path
            parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)] if name in self.modules else []
            pending += [(p, (*path, p)) for p in parents]
            pending += [(one.target, (*path, one.target)) for one in by_source.get(name, ())]
        return paths


def room(module: str) -> str:
    """The first part below the package: a folder, or a file at its top; the package's own `__init__` is called after it."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def read(root: Path = ROOT, package: str = PACKAGE) -> House:
    """The package below `root`, from its source."""
    folder = root / package
    modules = {_name(path, root): path for path in sorted(folder.rglob("*.py"))}
    imports = [i for name, path in modules.items() for i in imports_of(path.read_text(encoding="utf-8"), name, modules)]
    return House(folder=folder, modules=modules, imports=tuple(sorted(set(imports))))


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(text: str, module: str, modules: Mapping[str, Path]) -> list[Import]:
    """Every import of a module's source text, wherever it stands, and every string that is a module's name."""
    path = modules.get(module)
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    imports: list[Import] = []
    for node, when in _walk(ast.parse(text), "import"):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in modules and "." in node.value:
            names, when = [node.value], "name"
        for name in names:
            target = name if name in modules else name.split(".")[0]
            if target != module:
                imports.append(Import(source=module, target=target, line=node.lineno, when=when))
    return imports


def _walk(node: ast.AST, when: When) -> Iterator[tuple[ast.stmt | ast.expr, When]]:
    """All statements and expressions below a node, each with the moment at which it runs."""
    for field, value in ast.iter_fields(node):
        inner: When = when
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and field == "body":
            inner = "typing" if when == "typing" else "call"
        elif isinstance(node, ast.If) and field == "body" and _for_type_checkers(node.test):
            inner = "typing"
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, (ast.stmt, ast.expr)):
                yield child, inner
            if isinstance(child, ast.AST):
                yield from _walk(child, inner)


def _for_type_checkers(test: ast.expr) -> bool:
    return isinstance(test, (ast.Name, ast.Attribute)) and ast.unparse(test).split(".")[-1] == "TYPE_CHECKING"


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that a `from` import names, relative ones counted from the package of the file."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    above = ".".join(parts[: len(parts) - node.level + 1])
    return f"{above}.{node.module}" if node.module else above


def cycles(arrows: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Groups of nodes that reach each other (strongly connected components of more than one node; Tarjan 1972)."""
    below: dict[str, list[str]] = {}
    for source, target in arrows:
        below.setdefault(source, []).append(target)
        below.setdefault(target, [])
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in below[node]:
            if target not in number:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], number[target])
        if low[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(tuple(sorted(group)))

    for node in sorted(below):
        if node not in number:
            visit(node)
    return sorted(groups)


def depth(name: str) -> int:
    """The layer of a room, 0 at the top. KeyError for a room that has no place in LAYERS."""
    for place, layer in enumerate(LAYERS):
        if name in layer.rooms:
            return place
    raise KeyError(f"{name} has no place in LAYERS (tools/house.py): give it one, and say why it stands there")


def upward(arrows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Arrows that do not lead to a lower layer."""
    return [(source, target) for source, target in arrows if depth(target) <= depth(source)]


def main(arguments: list[str]) -> int:
    from tools import house_figures, house_picture

    if arguments[:1] == ["figures"]:
        sys.stdout.write(house_figures.table(Path(arguments[1]) if arguments[1:] else ROOT))
        return 0
    if arguments:
        sys.stderr.write("usage: python -m tools.house [figures [FOLDER]]\n")
        return 2
    house = read()
    for path, text in house_picture.pages(house).items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
