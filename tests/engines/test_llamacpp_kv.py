"""Types of keys and values in llama.cpp, keys and values apart, read through the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import kv
from harness.kv import CachedSplit
from harness.methods import METHODS
from harness.methods.base import resolve_options
from harness.spec import Quantized, Running, Scheme
from tests.tiny_llama import loaded, quantized, windows

for package in ("llama_cpp", "gguf"):
    pytest.importorskip(package, reason=f"{package} is not installed (it compiles for minutes): pip install -e '.[gguf]'")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch", "ignore::FutureWarning"
)
METHOD = METHODS["gguf"]
ORIGIN = Quantized(scheme=Scheme(method="gguf", bits=16.0, options=resolve_options(METHOD, {}, 16.0)))
SPLIT = CachedSplit(warm_up=32, step=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(tmp_path_factory.mktemp("gguf-kv"), ORIGIN)


def engine(folder: Path, word: str) -> Any:
    torch.set_num_threads(1)
    running = Running(engine="llamacpp", kv=word)
    return loaded(folder, ORIGIN, running)


def own(folder: Path, word: str) -> float:
    found = list(engine(folder, word).score_cached(windows(2, 97), SPLIT, None))
    return float(np.mean([one.own.kl.mean() for one in found]))


def test_types_of_keys_and_values_cost_what_their_bits_say_keys_and_values_apart(folder: Path) -> None:
    cost = {word: own(folder, word) for word in ("int8", "int8/int4", "q5_1", "int4")}
    assert 0 < cost["int8"] < cost["int8/int4"] < cost["int4"]
    assert cost["int8"] < cost["q5_1"] < cost["int4"]
    assert own(folder, "q4_0") == cost["int4"]  # two words of one type


def test_through_the_cache_the_unquantized_answers_are_those_of_one_pass(folder: Path) -> None:
    found = engine(folder, "f16")
    rows = windows(2, 97)
    cached = [one.scores.nll for one in found.score_cached(rows, SPLIT, None)]
    whole = [one.nll[32:] for one in found.score_windows(rows, None)]
    np.testing.assert_allclose(np.stack(cached), np.stack(whole), rtol=5e-3, atol=5e-3)


def test_a_check_of_the_weights_does_not_see_the_type(folder: Path) -> None:
    rows = windows(1, 97)
    plain = next(engine(folder, "f16").score_windows(rows, None)).nll
    found = engine(folder, "int4")
    assert not np.array_equal(next(found.score_windows(rows, None)).nll, plain)
    np.testing.assert_array_equal(next(found.score_weights(rows, None)).nll, plain)


def test_the_types_their_bytes_and_the_rotation_are_recorded(folder: Path) -> None:
    found = engine(folder, "int8/int4")
    details = found.facts().details
    assert details["kv_types"] == {"key": "q8_0", "value": "q4_0"}
    assert details["kv_rotated"] == {"k": True, "v": True}  # heads of 64 numbers
    assert "kv_types" not in engine(folder, "f16").facts().details
    used = found.run_phase("prefill", prompt_tokens=100, new_tokens=8, batch=1, seed=0)
    assert used["kv_cache_bytes"] == 256 * kv.bytes_per_token("llamacpp", "int8/int4", layers=2, heads=2, size=64)
