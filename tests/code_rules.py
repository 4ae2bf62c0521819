"""What the code must not do, as checks of a source text: each returns one line per place that breaks its rule.

Names are followed through the file's imports: `from os import system as run_it; run_it(...)` is `os.system`. A rule looks at
every mention of a name, not only at calls, because a function that is handed on is called too (`map(eval, texts)`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

SPEAKING = {
    *("print", "input", "breakpoint", "exit", "quit", "SystemExit", "sys.exit", "os._exit", "os.abort"),
    *("sys.stdout.write", "sys.stdout.buffer.write", "sys.stderr.write", "sys.stdout.writelines", "sys.stderr.writelines"),
}
"""What prints or ends the process."""

RUNNING_TEXT = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "subprocess.getoutput", "pty.spawn"),
    *("subprocess.getstatusoutput", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("yaml.load_all", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.Loader", "runpy.run_path", "runpy.run_module", "torch.hub"),
}
"""What runs a text as code, or builds whatever objects a text names."""

RUNNING_PREFIXES = ("os.exec", "os.spawn", "torch.hub.")

UNPICKLING = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
"""Modules whose data are programs."""

MUST_BE_FALSE = {"trust_remote_code", "shell", "allow_pickle"}
"""Arguments, keys and attributes that nothing but a literal False may be given to."""


def speaks(text: str) -> list[str]:
    """Mentions of what prints or ends the process."""
    return [f"line {line}: {name}" for line, name in mentions(ast.parse(text)) if name in SPEAKING]


def runs_text(text: str) -> list[str]:
    """Places that could run what a file or a caller says."""
    tree = ast.parse(text)
    problems = [
        (line, name)
        for line, name in mentions(tree)
        if name in RUNNING_TEXT or name.startswith(RUNNING_PREFIXES) or name.split(".")[0] in UNPICKLING
    ]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            problems += [(node.lineno, f"import {m}") for m in modules if m.split(".")[0] in UNPICKLING]
        problems += _not_false(node)
    names = aliases(tree)
    for call in calls(tree):
        problems += _careless_load(call, qualified(call.func, names) or "", tree, names)
    return [f"line {line}: {said}" for line, said in sorted(set(problems))]


def imports_by_variable(text: str) -> list[str]:
    """Calls of `import_module` whose module is no literal: the picture of imports cannot see them."""
    tree = ast.parse(text)
    names = aliases(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and qualified(node.func, names) == "importlib.import_module":
            literal = bool(node.args) and isinstance(node.args[0], ast.Constant)
            found += [] if literal else [f"line {node.lineno}: {ast.unparse(node)}"]
        elif isinstance(node, ast.Call) and "importlib.import_module" in [qualified(a, names) for a in node.args]:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def calls(tree: ast.AST) -> list[ast.Call]:
    """Every call, however many there are of one function."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def mentions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that is read, with its line: dotted as far as it goes, and followed through the file's imports."""
    names = aliases(tree)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load) and id(node) not in inner:
            name = qualified(node, names)
            if name is not None:
                yield node.lineno, name


def aliases(tree: ast.AST) -> dict[str, str]:
    """What the imported names of a file stand for, wherever they are imported."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def qualified(node: ast.AST, names: Mapping[str, str]) -> str | None:
    """The dotted name of an expression, or None where it is none (the result of a call, say)."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([names.get(node.id, node.id), *reversed(parts)]).removeprefix("builtins.")


def _not_false(node: ast.AST) -> list[tuple[int, str]]:
    """Where something but False is given to what must be False, in any of the ways to write it."""
    given: list[tuple[object, ast.expr]] = []
    if isinstance(node, ast.keyword):
        given = [(node.arg, node.value)]
    elif isinstance(node, ast.Dict):
        given = [(key.value, value) for key, value in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)]
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Attribute):
                given.append((target.attr, node.value))
            elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                given.append((target.slice.value, node.value))
    return [
        (value.lineno, f"{name}={ast.unparse(value)}")
        for name, value in given
        if isinstance(name, str) and name in MUST_BE_FALSE and not (isinstance(value, ast.Constant) and value.value is False)
    ]


def _careless_load(call: ast.Call, name: str, tree: ast.AST, names: Mapping[str, str]) -> list[tuple[int, str]]:
    """`torch.load` of more than weights; `yaml.load` with a loader that builds objects."""
    keywords = {k.arg: k.value for k in call.keywords}
    if name == "torch.load":
        only = keywords.get("weights_only")
        sound = isinstance(only, ast.Constant) and only.value is True
    elif name == "yaml.load":
        loader = keywords.get("Loader", call.args[1] if len(call.args) > 1 else None)
        safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
        own = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.bases and {qualified(base, names) for base in node.bases} <= safe
        }
        sound = loader is not None and qualified(loader, names) in safe | own
    else:
        return []
    return [] if sound else [(call.lineno, ast.unparse(call))]
