"""Each rule of the architecture can fail: small source texts that break it, and twins that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import code_rules
from tools import house, house_figures, house_picture

MODULES = {name: Path("x.py") for name in ("pkg.a", "pkg.b", "pkg.c.d")} | {
    "pkg": Path("__init__.py"),
    "pkg.c": Path("__init__.py"),
}


def imported(text: str, module: str = "pkg.a") -> set[tuple[str, str]]:
    return {(i.target, i.when) for i in house.imports_of(text, module, MODULES)}


@pytest.mark.parametrize(
    ("text", "target", "when"),
    [
        ("import pkg.b", "pkg.b", "import"),
        ("import pkg.b as other", "pkg.b", "import"),
        ("from pkg import b", "pkg.b", "import"),
        ("from pkg.b import name", "pkg.b", "import"),
        ("from pkg import name", "pkg", "import"),
        ("from . import b", "pkg.b", "import"),
        ("from .b import name", "pkg.b", "import"),
        ("from .c.d import name", "pkg.c.d", "import"),
        ("from pkg.b import *", "pkg.b", "import"),
        ("import torch.nn", "torch", "import"),
        ("def f():\n    from pkg import b", "pkg.b", "call"),
        ("f = lambda: __import__('pkg.b')", "pkg.b", "name"),
        ("class C:\n    def m(self):\n        import pkg.b", "pkg.b", "call"),
        ("class C:\n    import pkg.b", "pkg.b", "import"),
        ("if flag:\n    import pkg.b", "pkg.b", "import"),
        ("try:\n    pass\nexcept ImportError:\n    import pkg.b", "pkg.b", "import"),
        ("try:\n    pass\nfinally:\n    import pkg.b", "pkg.b", "import"),
        ("with x:\n    import pkg.b", "pkg.b", "import"),
        ("match x:\n    case 1:\n        import pkg.b", "pkg.b", "import"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg import b", "pkg.b", "typing"),
        ("import typing\nif typing.TYPE_CHECKING:\n    from pkg import b", "pkg.b", "typing"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    from pkg import b", "pkg.b", "import"),
        ("importlib.import_module('pkg.b')", "pkg.b", "name"),
        ("ROW = Method(modules=('torch', 'pkg.b'))", "pkg.b", "name"),
        ("command = [sys.executable, '-m', 'pkg.b']", "pkg.b", "name"),
    ],
)
def test_an_import_is_seen_wherever_it_stands(text: str, target: str, when: str) -> None:
    assert (target, when) in imported(text)


def test_a_relative_import_of_a_package_starts_at_the_package_itself() -> None:
    assert imported("from . import d", "pkg.c") == {("pkg.c.d", "import")}
    assert imported("from .. import b", "pkg.c.d") == {("pkg.b", "import")}


def test_words_that_only_look_like_modules_are_none() -> None:
    assert imported('"""See pkg.b for more."""\nx = "pkg.nothing"') == set()


def test_circles_are_seen_and_chains_are_none() -> None:
    assert house.cycles([("a", "b"), ("b", "c")]) == []
    assert house.cycles([("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]) == [("a", "b", "c")]
    assert house.cycles([("a", "b"), ("b", "a"), ("b", "c"), ("c", "d"), ("d", "c")]) == [("a", "b"), ("c", "d")]


def test_an_arrow_that_does_not_lead_down_is_seen_and_so_is_a_room_without_a_place() -> None:
    assert house.upward([("run", "spec"), ("spec", "run"), ("models", "runtimes"), ("runtimes", "engines")]) == [
        ("spec", "run"),
        ("models", "runtimes"),
        ("runtimes", "engines"),
    ]
    with pytest.raises(KeyError, match="attic has no place in LAYERS"):
        house.upward([("run", "attic")])


def test_what_is_reached_in_the_end_is_followed_through_functions_and_packages(tmp_path: Path) -> None:
    for name, text in {
        "__init__.py": "def f():\n    import pkg.far",
        "far.py": "",
        "a.py": "from pkg.rooms import one",
        "rooms/__init__.py": "import pkg.b",
        "rooms/one.py": "",
        "b.py": "def f():\n    import torch",
    }.items():
        path = tmp_path / "pkg" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    shown = house.read(tmp_path, "pkg")
    assert set(shown.reach(["pkg.a"], {"import"})) == {"pkg", "pkg.a", "pkg.rooms", "pkg.rooms.one", "pkg.b"}
    later = shown.reach(["pkg.a"], {"import", "call"})
    assert set(later) == {"pkg", "pkg.a", "pkg.rooms", "pkg.rooms.one", "pkg.b", "torch"}
    assert later["torch"][-2:] == ("pkg.b", "torch")


def test_the_picture_leaves_out_what_follows_from_other_arrows_and_nothing_else() -> None:
    assert house_picture.reduced([("a", "b"), ("b", "c"), ("a", "c")]) == [("a", "b"), ("b", "c")]
    assert house_picture.reduced([("a", "b"), ("a", "c")]) == [("a", "b"), ("a", "c")]
    assert house_picture.reduced([("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")]) == [("a", "b"), ("b", "c"), ("c", "d")]


def test_the_picture_draws_an_arrow_that_leads_up_in_its_own_colour(tmp_path: Path) -> None:
    for name, text in {
        "spec.py": '"""S."""\nimport harness.run',
        "run.py": '"""R."""\nimport harness.spec',
        "__init__.py": '"""H."""',
    }.items():
        (tmp_path / "harness").mkdir(exist_ok=True)
        (tmp_path / "harness" / name).write_text(text)
    drawn = house_picture.picture(house.read(tmp_path))
    assert drawn.count('class="arrow up"') == 1
    assert "<title>spec imports run</title>" in drawn


@pytest.mark.parametrize(
    "text",
    [
        "print('x')",
        "list(map(print, xs))",
        "say = print",
        "exit()",
        "quit(1)",
        "input()",
        "breakpoint()",
        "raise SystemExit(2)",
        "import sys\nsys.exit(1)",
        "import sys as s\ns.exit(1)",
        "from sys import exit as leave\nleave(1)",
        "import os\nos._exit(1)",
        "import sys\nsys.stdout.write('x')",
        "from sys import stderr\nstderr.write('x')",
        "import builtins\nbuiltins.print(1)",
        "f()\ng()\nprint()\nprint()",
    ],
)
def test_printing_and_leaving_are_seen(text: str) -> None:
    assert code_rules.speaks(text)


@pytest.mark.parametrize(
    "text", ["out.print('x')", "model.exit()", "x = 'print(1)'", "import sys\nsys.argv", "def exit(): ...", "stdout = 1"]
)
def test_what_only_sounds_like_printing_is_none(text: str) -> None:
    assert not code_rules.speaks(text)


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "exec(x)",
        "compile(x, '', 'exec')",
        "__import__(x)",
        "list(map(eval, xs))",
        "from functools import partial\npartial(exec, x)",
        "import builtins\nbuiltins.eval(x)",
        "import pickle",
        "def f():\n    import pickle",
        "from pickle import loads",
        "import marshal",
        "import joblib",
        "import os\nos.system(x)",
        "from os import system as run\nrun(x)",
        "import os\nos.execvp(x, y)",
        "import os\nos.popen(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "import subprocess\nsubprocess.run(x)\nsubprocess.run(y, shell=True)\nsubprocess.run(z)",
        "import subprocess\nsubprocess.run(x, shell=flag)",
        "subprocess.run(x, **{'shell': True})",
        "load(x, trust_remote_code=True)",
        "load(x, trust_remote_code=given)",
        "load(x)\nload(y, trust_remote_code=True)\nload(z, trust_remote_code=False)",
        "options = {'trust_remote_code': True}",
        "options['trust_remote_code'] = True",
        "config.trust_remote_code = True",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "import torch\ntorch.load(x)",
        "import torch\ntorch.load(x, weights_only=False)",
        "import torch\ntorch.load(x, weights_only=True)\ntorch.load(y)",
        "from torch import load\nload(x)",
        "import torch\ntorch.hub.load(x)",
        "import yaml\nyaml.load(x)",
        "import yaml\nyaml.load(x, Loader=yaml.FullLoader)",
        "import yaml\nyaml.load(x, yaml.Loader)",
        "import yaml\nyaml.unsafe_load(x)",
        "import yaml\nclass Loader(yaml.Loader): ...\nyaml.load(x, Loader=Loader)",
        "import yaml\nyaml.load(x, Loader=yaml.SafeLoader)\nyaml.load(y)",
    ],
)
def test_running_what_a_text_says_is_seen(text: str) -> None:
    assert code_rules.runs_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "import re\nre.compile(x)",
        "import torch\ntorch.compile(x)",
        "class R:\n    compile: bool = False",
        "import numpy as np\nnp.load(x, allow_pickle=False)",
        "import torch\ntorch.load(x, weights_only=True)",
        "import yaml\nyaml.safe_load(x)",
        "import yaml\nyaml.load(x, Loader=yaml.SafeLoader)",
        "import yaml\nclass Loader(yaml.SafeLoader): ...\nyaml.load(x, Loader=Loader)",
        "load(x, trust_remote_code=False)",
        "import subprocess\nsubprocess.run(['a', 'b'], check=True)",
        "import os\nos.path.join(a, b)",
    ],
)
def test_what_only_looks_like_running_a_text_is_none(text: str) -> None:
    assert not code_rules.runs_text(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("import importlib\nimportlib.import_module(name)", 1),
        ("from importlib import import_module\nimport_module(name)", 1),
        ("import importlib\nf(importlib.import_module, name)", 1),
        ("import importlib\nimportlib.import_module('pkg.b')", 0),
    ],
)
def test_an_import_that_cannot_be_read_is_seen(text: str, count: int) -> None:
    assert len(code_rules.imports_by_variable(text)) == count


def test_every_call_counts_not_one_of_each_name() -> None:
    import ast

    assert len(code_rules.calls(ast.parse("f(1)\nf(2)\nf(g(3))\nx.f(4)"))) == 5


def complexity(body: str) -> int:
    (function,) = house_figures.functions_of(f"def f(x):\n    {body}\n", "x.py")
    return function.complexity


@pytest.mark.parametrize(
    ("body", "decisions"),
    [
        ("return x", 0),
        ("if x: pass", 1),
        ("if x: pass\n    elif y: pass\n    else: pass", 2),
        ("return a if x else b", 1),
        ("return a and b or c", 2),
        ("for i in x: pass", 1),
        ("while x: pass", 1),
        ("try: pass\n    except A: pass\n    except B: pass", 2),
        ("return [i for i in x if i]", 2),
        ("with x: pass", 0),
        ("match x:\n        case 1: pass\n        case _: pass", 2),
    ],
)
def test_complexity_is_one_plus_the_decisions(body: str, decisions: int) -> None:
    assert complexity(body) == 1 + decisions


def test_lines_of_a_function_are_counted_without_its_decorators_and_with_all_that_is_inside() -> None:
    text = "@wraps\ndef f(x):\n    def g():\n        return 1\n    return g\n\nclass C:\n    def m(self):\n        pass\n"
    assert {f.name: f.lines for f in house_figures.functions_of(text, "x.py")} == {"f": 4, "f.g": 2, "C.m": 2}


def test_functions_with_the_same_work_are_twins_whatever_their_names_are() -> None:
    def body(a: str, b: str, sign: str) -> str:
        return f"def f_{a}({a}):\n    {b} = {a} {sign} 1\n    g({b})\n    return {b}\n"

    twins = house_figures.functions_of(body("x", "y", "+") + body("p", "q", "+") + body("r", "s", "-"), "x.py")
    assert [f.name for f in house_figures.duplicates(twins)] == ["f_x", "f_p"]
