"""The distribution is called `llm-quant-harness`. On the package index `quant-harness` is another project: a command of ours that
named it would install a stranger's code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import harness
from tests import scratch
from tests.scratch import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = "llm-quant-harness"
OLD = [
    re.compile(r"(?<!llm-)\bquant[-_]harness\["),  # an extra: in a command, a message or a requirement
    re.compile(
        r"\b(?:pip|pipx|uv|uvx|poetry)\b[^\n`]*?\b(?:install|download|add|run)\b[^\n`]*?(?<![\w/.-])quant[-_]harness(?![-\w/.])"
    ),
    re.compile(r"""^name\s*=\s*["']quant[-_]harness["']""", re.MULTILINE),  # of a project
    re.compile(r"""\b(?:version|distribution|requires|metadata)\(\s*["']quant[-_]harness["']"""),  # of importlib.metadata
]


def old_names(text: str) -> list[str]:
    return [hit.group(0) for pattern in OLD for hit in pattern.finditer(text)]


def texts() -> dict[str, str]:
    """Every text file of the checkout but this one, by its path."""
    read = {}
    for name in scratch.files():
        path = ROOT / name
        if path == Path(__file__) or path.stat().st_size > 5_000_000:
            continue
        try:
            read[name] = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
    return read


def test_no_file_names_the_other_project() -> None:
    files = texts()
    assert {"README.md", "pyproject.toml", "harness/envs/__init__.py", "docs/llamacpp.md"} <= files.keys()
    assert not {name: hits for name, text in files.items() if (hits := old_names(text))}


@pytest.mark.parametrize(
    "text",
    [
        'pip install "quant-harness[gguf]"',
        "pip install --upgrade quant-harness",
        "uv add quant-harness",
        'f"pip install quant_harness[{extra}]"',
        'name = "quant-harness"\n',
        'importlib.metadata.version("quant-harness")',
        'all = ["quant-harness[hqq]"]',
    ],
)
def test_the_old_name_is_seen_where_it_would_install_or_look_up_the_other_project(text: str) -> None:
    assert old_names(text)


@pytest.mark.parametrize(
    "text",
    [
        'pip install "llm-quant-harness[gguf]"',
        "pip install --upgrade llm-quant-harness",
        "pip install -e . && quant-harness/run",
        "quant-harness run quick",
        "https://github.com/quant-harness/quant-harness",
        '    name="quant-harness",\n',
    ],
)
def test_the_name_of_the_command_and_of_the_repository_is_left_alone(text: str) -> None:
    assert not old_names(text)


def test_the_distribution_its_command_and_its_package_have_their_names() -> None:
    assert PROJECT["name"] == NAME
    assert PROJECT["scripts"] == {"quant-harness": "harness.cli:main"}
    assert harness.__name__ == "harness"


def test_every_extra_that_a_text_names_exists() -> None:
    named = {
        extra.strip()
        for text in texts().values()
        for extras in re.findall(r"llm-quant-harness\[([a-z0-9, ]+)\]", text)
        for extra in extras.split(",")
    }
    assert len(named) > 5
    assert named <= PROJECT["optional-dependencies"].keys()


def test_the_project_its_citation_and_the_package_name_one_version_and_one_licence() -> None:
    assert PROJECT["version"] == harness.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (harness.__version__, PROJECT["license"])
