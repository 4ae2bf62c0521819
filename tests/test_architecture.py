"""The rules of the code base, proved: who may import whom, and what must not be imported early."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "harness"
HEAVY = {"torch", "transformers", "lm_eval", "plotly", "gptqmodel", "hqq", "bitsandbytes", "torchao", "optimum", "datasets"}
HEAVY |= {"auto_round", "auto_gptq", "awq", "llmcompressor", "neural_compressor", "modelopt", "triton"}
MODULES_FOR_HEAVY = (
    "engines/transformers.py",
    "engines/reference_store.py",
    "engines/from_logits.py",
    "scoring/",
    "reference/train.py",
    "reference/evaluate.py",
    "reference/tokenizer.py",
)
FOREIGN = ("spec.py", "errors.py", "artifact.py", "forking.py", "child/", "models/", "measure/", "formats/")
FOREIGN += ("methods/", "probes/")
"""What runs inside foreign environments: its top level imports the standard library and each other only."""


def top_level_imports(path: Path) -> set[str]:
    """Modules imported when the file is imported (not inside functions, not for type checkers only)."""
    found: set[str] = set()
    pending: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += node.body + node.orelse
        elif isinstance(node, ast.Try):
            pending += node.body
    return found


FILES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py"))


@pytest.mark.parametrize("name", [f for f in FILES if not f.startswith(MODULES_FOR_HEAVY)])
def test_heavy_libraries_are_imported_only_where_they_are_used(name: str) -> None:
    assert not {module.split(".")[0] for module in top_level_imports(ROOT / name)} & HEAVY


@pytest.mark.parametrize("name", [f for f in FILES if f.startswith(FOREIGN)])
def test_what_runs_in_foreign_environments_imports_the_standard_library_only(name: str) -> None:
    import sys

    roots = {module.split(".")[0] for module in top_level_imports(ROOT / name)}
    assert roots <= {*sys.stdlib_module_names, "harness"}


@pytest.mark.parametrize("name", ["spec.py", "errors.py"])
def test_the_core_imports_nothing_of_ours_but_itself(name: str) -> None:
    ours = {module for module in top_level_imports(ROOT / name) if module.startswith("harness")}
    assert ours <= {"harness.errors", "harness.spec"}


@pytest.mark.parametrize("name", [f for f in FILES if f.startswith(("report/", "frontier.py", "gate.py"))])
def test_report_and_frontier_cannot_reach_the_runner(name: str) -> None:
    banned = (
        "harness.run",
        "harness.child",
        "harness.envs",
        "harness.engines",
        "harness.scoring",
        "harness.measure",
    )
    assert not [module for module in top_level_imports(ROOT / name) if module.startswith(banned)]


@pytest.mark.parametrize("name", [f for f in FILES if f != "cli.py" and not f.startswith("reference/")])
def test_only_the_command_line_prints_or_exits(name: str) -> None:
    calls = [n for n in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(n, ast.Call)]
    said = {ast.unparse(c.func) for c in calls}
    assert not said & {"print", "exit", "quit"}
    assert name == "child/serve.py" or "sys.exit" not in said


@pytest.mark.parametrize("name", FILES)
def test_nothing_unpickles_or_evaluates(name: str) -> None:
    text = (ROOT / name).read_text()
    calls = {ast.unparse(n.func): n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)}
    assert not set(calls) & {"eval", "exec", "pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "os.system"}
    if "yaml.load" in calls:
        assert "class Loader(yaml.SafeLoader)" in text
        assert "Loader=Loader" in ast.unparse(calls["yaml.load"])
    for function, node in calls.items():
        if function.endswith("torch.load"):
            assert "weights_only=True" in ast.unparse(node)
        assert "trust_remote_code=True" not in ast.unparse(node)
        assert "shell=True" not in ast.unparse(node)
