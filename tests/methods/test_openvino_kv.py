"""Types of keys and values in OpenVINO, on the 16-bit IR of a tiny Llama whose heads have 64 numbers, as TurboQuant wants."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import kv
from harness.errors import NoEffect, Unsupported
from harness.kv import CachedSplit
from harness.methods import METHODS
from harness.methods.base import resolve_options
from harness.spec import Quantized, Running, Scheme
from tests.tiny_llama import loaded, quantized, text, windows

for package in ("openvino", "nncf"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[openvino]'", allow_module_level=True)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.torch.jit:DeprecationWarning",
        "ignore::DeprecationWarning:torch",
        "ignore::FutureWarning",
        "ignore::torch.jit.TracerWarning",
    )
]
METHOD = METHODS["openvino"]
ORIGIN = Quantized(scheme=Scheme(method="openvino", bits=16.0, options=resolve_options(METHOD, {}, 16.0)))
LAYERS, HEADS, SIZE = 2, 2, 64
SPLIT = CachedSplit(warm_up=32, step=16)


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # lm-eval's
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(tmp_path_factory.mktemp("openvino-kv"), ORIGIN)


def engine(folder: Path, word: str) -> Any:
    running = Running(engine="openvino", kv=word, execution="performance")
    return loaded(folder, ORIGIN, running)


def own(folder: Path, word: str) -> float:
    """Mean KL of a type of keys and values against the same IR with unquantized ones."""
    found = list(engine(folder, word).score_cached(windows(2, 97), SPLIT, None))
    return float(np.mean([one.own.kl.mean() for one in found]))


def test_types_of_keys_and_values_cost_what_their_bits_say_and_one_pass_is_blind(folder: Path) -> None:
    cost = {word: own(folder, word) for word in ("int8", "int8/int4", "int4", "turbo4", "turbo3")}
    assert 0 < cost["int8"] < cost["int8/int4"] < cost["int4"]
    assert cost["int8"] < cost["turbo4"] < cost["turbo3"]
    plain, blind = (next(engine(folder, word).score_windows(windows(1, 97), None)).nll for word in ("f16", "int4"))
    assert np.array_equal(plain, blind)


def test_the_compiled_model_says_what_it_keeps_keys_and_values_in(folder: Path) -> None:
    details = engine(folder, "int8/int4").facts().details
    assert details["kv_cache_precision"] == "u8/u4"
    plain = engine(folder, "f16")
    assert plain.model.plain() is plain.model
    assert not plain.model.replays
    assert engine(folder, "turbo4").facts().details["kv_cache_precision"] == "u4 TURBO"


def test_another_type_than_was_asked_for_fails_the_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = importlib.import_module("harness.runtimes.openvino")
    monkeypatch.setattr(runtime, "_cache_settings", lambda kv: {})
    with pytest.raises(NoEffect, match="keys and values in u4 and u4 were asked for, and OpenVINO keeps them in"):
        engine(folder, "int4")


def test_a_state_of_four_bits_is_run_again_and_never_copied(folder: Path) -> None:
    rows = windows(1, 41)[0]
    for word in ("int4", "turbo4"):
        program = engine(folder, word).model
        program.clear()
        program.run(np.array([rows[:24]]), np.empty(0, np.int64))
        kept = program.keep()
        assert kept[1] == []
        first = program.run(np.array([rows[24:40]]), np.arange(16)).copy()
        program.restore(kept)
        assert program.past == 24
        again = program.run(np.array([rows[24:40]]), np.arange(16))
        np.testing.assert_array_equal(first, again)
        asked = {"prompt_tokens": 30, "new_tokens": 4, "batch": 2, "seed": 0}
        used = engine(folder, word).run_phase("decode", **asked)
        assert "kv_cache_bytes" not in used, "the state must not be read"
        plain = engine(folder, "f16").run_phase("decode", **asked)
        assert plain["kv_cache_bytes"] == 2 * 33 * kv.bytes_per_token("openvino", "f16", layers=LAYERS, heads=HEADS, size=SIZE)


def test_a_state_is_filled_to_one_context_after_the_other_and_then_let_go(folder: Path) -> None:
    found = engine(folder, "int4")
    held = [(context, found.model.past, found.model._rows) for context in found.fill((16, 96), rows=3, seed=0)]
    assert held == [(16, 16, 3), (96, 96, 3)]
    assert found.model.past == 0
    with pytest.raises(Unsupported, match="do not fit the model's context of 256"):
        next(found.fill((16, 512), rows=1, seed=0))


def test_choices_read_the_cached_context_in_openvino(folder: Path) -> None:
    from lm_eval.api.instance import Instance

    asked = [(text(4, seed=seed), f" {text(1, seed=seed + 50)}") for seed in range(3)]

    def answers(word: str) -> list[float]:
        found = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in asked]
        return [score for score, _ in engine(folder, word).lm().loglikelihood(found)]

    plain, eight, four = (np.array(answers(word)) for word in ("f16", "int8", "int4"))
    assert 0 < np.abs(eight - plain).mean() < np.abs(four - plain).mean()
