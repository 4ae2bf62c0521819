"""The rules of the code base, proved: who may import whom and when, what the code must not do, how long it may be.

Imports are read by `tools.house`, which sees every one of them wherever it stands; what the code does is read by `code_rules`.
`test_code_rules.py` shows for each rule a source text that breaks it.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import harness
from tests import code_rules
from tools import house, house_figures, house_picture

ROOT = Path(__file__).parents[1]
HOUSE = house.read()
FILES = sorted(path.relative_to(HOUSE.folder).as_posix() for path in HOUSE.modules.values())

KNOWN: dict[str, str] = {}
"""What breaks a rule today, with the day on which it was seen. An entry that no longer occurs fails the test of its rule."""


def allowed(*kinds: str) -> set[str]:
    """Known exceptions whose text holds one of `kinds`."""
    return {entry for entry in KNOWN if any(kind in entry for kind in kinds)}


# ---- who imports whom ----


def test_every_room_has_a_place_in_the_order() -> None:
    placed = [name for layer in house.LAYERS for name in layer.rooms]
    assert len(placed) == len(set(placed))
    assert set(HOUSE.rooms) == set(placed)


def test_all_arrows_between_rooms_point_down_wherever_the_import_stands() -> None:
    arrows = HOUSE.arrows()
    wrong = {
        f"{one.source.removeprefix('harness.')} -> {one.target.removeprefix('harness.')}"
        for arrow in house.upward(arrows)
        for one in arrows[arrow]
    }
    assert wrong == allowed(" -> ")


def test_no_rooms_import_each_other_in_a_circle() -> None:
    known = allowed(" -> ")
    arrows = [
        arrow
        for arrow, ones in HOUSE.arrows().items()
        if not all(f"{i.source.removeprefix('harness.')} -> {i.target.removeprefix('harness.')}" in known for i in ones)
    ]
    assert house.cycles(arrows) == []


def test_no_files_import_each_other_in_a_circle_when_they_are_imported() -> None:
    assert house.cycles((i.source, i.target) for i in HOUSE.imports if i.when == "import" and i.target in HOUSE.modules) == []


def test_the_picture_and_the_table_of_rooms_are_what_the_imports_make() -> None:
    for path, text in house_picture.pages(HOUSE).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is another house's; make it again: python -m tools.house"


def test_importing_the_package_imports_its_version_and_an_empty_room() -> None:
    first = {i.target for i in HOUSE.imports if i.source == "harness" and i.when == "import"} & set(HOUSE.modules)
    assert first == {"harness.version", "harness.run"}
    assert {i.target for i in HOUSE.imports if i.source in first} == {"__future__"}


def test_the_version_is_the_one_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert harness.__version__ == project["version"]


def test_public_functions_are_there_whatever_has_been_imported() -> None:
    # Importing `harness.run` for the first time sets the attribute `run` of the package: it has to happen before the function's.
    rooms = [f"harness.{name}" for name in harness.__all__ if f"harness.{name}" in HOUSE.modules]
    code = f"import importlib, harness\nfor name in {rooms!r}: importlib.import_module(name)\nimport harness.run.workspace\n"
    code += "assert all(callable(getattr(harness, name)) for name in ('run', 'frame', 'render'))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


# ---- heavy libraries ----

HEAVY = {"torch", "transformers", "lm_eval", "plotly", "gptqmodel", "hqq", "bitsandbytes", "torchao", "optimum", "datasets"}
HEAVY |= {"auto_round", "auto_gptq", "awq", "llmcompressor", "neural_compressor", "modelopt", "triton", "openvino", "nncf"}
HEAVY |= {"llama_cpp", "gguf", "accelerate", "pandas", "pyarrow", "vllm"}

MODULES_FOR_HEAVY = (
    "engines/transformers.py",
    "engines/stored_baseline.py",
    "engines/from_logits.py",
    "engines/cached_logits.py",
    "engines/held_bytes.py",
    "engines/warm.py",
    "runtimes/llama_cpp.py",
    "runtimes/openvino.py",
    "runtimes/vllm_import.py",
    "scoring/",
    "reference/network.py",
    "reference/train.py",
    "reference/evaluate.py",
    "reference/tokenizer.py",
)


def imported_at_once(file: str) -> set[str]:
    """Top-level names that a file imports when it is imported."""
    name = next(name for name, path in HOUSE.modules.items() if path == HOUSE.folder / file)
    return {i.target.split(".")[0] for i in HOUSE.imports if i.source == name and i.when == "import"}


@pytest.mark.parametrize("file", [f for f in FILES if not f.startswith(MODULES_FOR_HEAVY)])
def test_heavy_libraries_are_imported_only_where_they_are_used(file: str) -> None:
    assert not imported_at_once(file) & HEAVY


@pytest.mark.parametrize("place", MODULES_FOR_HEAVY)
def test_who_may_import_heavy_libraries_at_once_does(place: str) -> None:
    assert any(imported_at_once(f) & HEAVY for f in FILES if f.startswith(place))


# ---- what a child in another environment imports ----

CHILD = ("harness.child.serve", "harness.envs.health", "harness.models.random_weights")
"""What is started in other interpreters, or tells what is."""

BESIDE = {"torch", "transformers", "numpy", "scipy", "safetensors", "lm_eval", "tqdm", "llama_cpp", "openvino", "vllm"}
"""What an environment has that answers questions (docs/environments.md), or the runtime that its engine is made for."""


def test_what_a_child_imports_at_once_is_the_standard_library_and_the_harness() -> None:
    reached = HOUSE.reach(CHILD, {"import"})
    strange = {name: path for name, path in reached.items() if name not in HOUSE.modules and name not in sys.stdlib_module_names}
    assert strange == {}
    assert {"harness.child.worker", "harness.methods.gptq", "harness.probes.tasks", "harness.formats"} <= set(reached)


def test_an_interpreter_without_any_package_imports_exactly_what_the_reading_says(tmp_path: Path) -> None:
    (tmp_path / "harness").symlink_to(HOUSE.folder)
    code = textwrap.dedent(f"""
        import importlib, sys
        sys.path.insert(0, {str(tmp_path)!r})
        for name in {CHILD!r}:
            importlib.import_module(name)
        print(*[name for name in sys.modules if name.split(".")[0] == "harness"])
    """)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(HOUSE.reach(CHILD, {"import"})) & set(HOUSE.modules)


def test_what_a_child_imports_later_finds_its_libraries_in_every_environment_that_answers() -> None:
    reached = set(HOUSE.reach(CHILD[:1], {"import", "call", "name"})) & set(HOUSE.modules)
    assert {"harness.engines.transformers", "harness.scoring.lm"} <= reached
    strange = {
        (i.source, i.target)
        for i in HOUSE.imports
        if i.source in reached and i.when == "import" and i.target not in {*HOUSE.modules, *sys.stdlib_module_names, *BESIDE}
    }
    assert strange == set()


# ---- what reads results ----

PURE = ("report", "frontier", "gate", "publish")
"""Rooms that turn stored results into pages and verdicts, wherever they are."""

BELOW_PURE = {*PURE, "harness", "decide", "store", "stats", "metrics"}
BELOW_PURE |= {"artifact", "costs", "decode", "errors", "files", "forking", "kv", "proof", "recipes", "series", "spec", "version"}


def test_the_report_reaches_nothing_that_runs_or_measures_not_even_inside_a_function() -> None:
    pure = [name for name in HOUSE.modules if house.room(name) in PURE]
    reached = HOUSE.reach(pure, {"import", "call", "name", "typing"})
    empty = "harness.run"  # the room's `__init__`, which the package imports and which imports nothing
    wrong = {house.room(name): path for name, path in reached.items() if name in HOUSE.modules and name != empty}
    wrong = {room: path for room, path in wrong.items() if room not in BELOW_PURE}
    assert wrong == {}
    assert not {name.split(".")[0] for name in reached} & (HEAVY - {"plotly", "pandas", "pyarrow"})


# ---- what the code must not do ----

SPEAKERS = {
    "cli.py": {"sys.stdout.write", "sys.exit", "SystemExit"},  # whose 1 is typer's where a pipe was closed
    "cli_publish.py": {"sys.stdout.write", "sys.stdout.buffer.write"},
    "cli_env.py": {"sys.stdout.write"},
    "cli_recommend.py": {"sys.stdout.write"},
    "child/serve.py": {"sys.exit", "os._exit"},  # a child leaves without the handlers of libraries whose threads are gone
    "child/branch.py": {"os._exit", "sys.stderr.write"},  # its standard error is the server's log
    "forking.py": {"os._exit"},
    "probes/tasks_prepare.py": {"os._exit"},
    "methods/fake.py": {"os._exit"},
    "plugins.py": {"SystemExit"},  # what another package may raise when it is imported
    "reference/corpus.py": {"print"},  # scripts that made the reference model
    "reference/evaluate.py": {"print"},
    "reference/train.py": {"print"},
}


@pytest.mark.parametrize("file", FILES)
def test_only_the_command_line_prints_or_exits(file: str) -> None:
    said = {line.partition(": ")[2] for line in code_rules.speaks((HOUSE.folder / file).read_text(encoding="utf-8"))}
    assert said == SPEAKERS.get(file, set())


@pytest.mark.parametrize("file", FILES)
def test_nothing_unpickles_evaluates_or_trusts_code_of_a_checkpoint(file: str) -> None:
    assert code_rules.runs_text((HOUSE.folder / file).read_text(encoding="utf-8")) == []


IMPORT_BY_VARIABLE = {"child/serve.py": 2, "probes/memory.py": 1, "plugins.py": 1}
"""Modules that rows of methods, engines and probes name, which the reading of imports sees as strings; and other packages."""


@pytest.mark.parametrize("file", FILES)
def test_what_is_imported_has_a_name_that_can_be_read(file: str) -> None:
    text = (HOUSE.folder / file).read_text(encoding="utf-8")
    assert len(code_rules.imports_by_variable(text)) == IMPORT_BY_VARIABLE.get(file, 0)


# ---- how long and how branched ----

FILE_LINES, FUNCTION_LINES, COMPLEXITY = 500, 60, 26
"""The most that a file, a function and its decisions may be. ruff's C901 counts fewer kinds of decisions; its bound is in
pyproject.toml."""

FUNCTIONS = house_figures.functions(HOUSE.folder)


def test_no_file_is_longer_than_people_read_at_once() -> None:
    long = {name for name, count in house_figures.lines(HOUSE.folder).items() if count > FILE_LINES}
    assert long == {entry for entry in KNOWN if entry.endswith(".py")}


def test_no_function_is_longer_than_a_screen() -> None:
    assert {f.where for f in FUNCTIONS if f.lines > FUNCTION_LINES} == allowed(".py: ")


def test_no_function_decides_too_much() -> None:
    assert {f.where for f in FUNCTIONS if f.complexity > COMPLEXITY} <= allowed("matrix.py: plan")


def test_no_function_does_the_work_of_another() -> None:
    twice = {f.where for f in house_figures.duplicates(FUNCTIONS)}
    assert {where.partition(":")[0] for where in twice} <= {"scoring/llamacpp.py", "scoring/openvino.py"}
