"""The health check itself: its model is a real checkpoint, and a method that works passes it in the environment of the tests."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from harness.decode import decode
from harness.envs import disk, health
from harness.formats import safetensors_file
from harness.methods import METHODS
from harness.models import find
from harness.spec import Scheme, to_json


def test_the_tiny_model_is_a_checkpoint_that_every_group_and_block_divides(tmp_path: Path) -> None:
    folder = health.tiny_model(tmp_path / "model")
    shape = find.shape_of(folder)
    assert len(shape.linears) == 7 * health.LAYERS
    assert {(layer.rows, layer.columns) for layer in shape.linears} == {(256, 256)}
    assert {row.dtype for row in safetensors_file.header(folder / "model.safetensors")} == {"BF16"}
    with (folder / "model.safetensors").open("rb") as file:
        stored = file.read()[-2 * 256 * 256 :]
    weights = (numpy.frombuffer(stored, dtype="<u2").astype(numpy.uint32) << 16).view(numpy.float32)
    sizes = numpy.abs(weights[: 256 * 128])
    assert sizes.min() >= 2**-9
    assert sizes.max() < 2**-5
    assert abs(float(weights[: 256 * 128].mean())) < 1e-3


@pytest.mark.slow
def test_a_method_that_works_passes_in_fresh_processes(tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    found = health.check(METHODS["hqq"], python=Path(sys.executable), home=tmp_path / "home")
    assert found.ok, found.message + found.log_tail
    assert found.version == METHODS["hqq"].version
    assert not list(tmp_path.glob("home/artifacts/*/.draft*"))
    assert len(list(tmp_path.glob("home/artifacts/hqq/verified-*.json"))) == 1


def test_a_method_that_fails_says_in_which_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_first", lambda method, shape: (_scripted("raise:no such kernel"), "cpu"))
    found = health.check(METHODS["fake"], python=Path(sys.executable), home=tmp_path / "home")
    assert not found.ok
    assert found.message.startswith("error in quantize: RuntimeError: no such kernel")
    assert "Traceback" in found.log_tail
    assert decode(disk.Health, to_json(found)) == found


def test_a_method_that_can_run_on_no_device_here_is_imported_and_says_that_it_was_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.measure.nvidia.gpus", tuple)
    needs_cuda = replace(METHODS["fake"], kernel_cpu=dict.fromkeys(METHODS["fake"].bits, "none"), modules=("json",))
    found = health.check(needs_cuda, python=Path(sys.executable), home=tmp_path / "home")
    assert found.ok
    assert found.message == "not tried, its packages were only imported: it can run on no device of this machine"
    lacking = replace(needs_cuda, modules=("json", "no_such_module"))
    found = health.check(lacking, python=Path(sys.executable), home=tmp_path / "other")
    assert not found.ok
    assert "no_such_module cannot be imported" in found.message


def test_a_python_that_does_not_start_is_said(tmp_path: Path) -> None:
    wrong = tmp_path / "python"
    wrong.write_text("#!/bin/sh\necho no such library >&2\nexit 1\n")
    wrong.chmod(0o755)
    found = health.check(METHODS["fake"], python=wrong, home=tmp_path / "home")
    assert not found.ok
    assert "no such library" in found.message


def _scripted(script: str) -> Scheme:
    options = {name: option.default for name, option in METHODS["fake"].options.items()}
    return Scheme(method="fake", bits=4, options={**options, "on_quantize": script})
