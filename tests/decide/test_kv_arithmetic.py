"""Memory at another context than the measured one: the arithmetic against measurements of the embedded model at two contexts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import store
from harness.decide import Candidate, memory_at
from harness.formats.cache_shape import CacheShape, cache_shape
from harness.measure import memory_phases
from harness.metrics.memory import KV_CACHE
from harness.report.candidates import candidates
from harness.report.view import view

SUITE = """
name: {name}
models: [reference]
baseline: bf16
methods: {{bf16: null}}
probes: [size, memory]
memory: {{prompt: {prompt}, new: 16, batch: {batch}}}
"""


def measured(folder: Path, name: str, *, prompt: int, batch: int) -> tuple[Candidate, float]:
    """The embedded model's only cell, measured in a run of its own, and the bytes of its cache."""
    (folder / f"{name}.yaml").write_text(SUITE.format(name=name, prompt=prompt, batch=batch))
    command = [sys.executable, "-m", "harness.cli", "run", f"{name}.yaml", "--cache", "cache", "--report", f"{name}.html"]
    here = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[1])}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600, env=here)
    shown = view(store.read(folder / "results" / name))
    (cell,) = shown.cells
    column = shown.column(KV_CACHE.name)
    assert column is not None
    return candidates(shown)[0], cell.values[column.key].value


@pytest.mark.slow
@pytest.mark.skipif(memory_phases.resident() is None, reason="the kernel's counters are Linux's")
def test_memory_derived_from_one_context_is_what_is_measured_at_another(tmp_path: Path) -> None:
    short, short_cache = measured(tmp_path, "short", prompt=64, batch=1)
    long, long_cache = measured(tmp_path, "long", prompt=448, batch=2)
    assert (short.memory.context, short.memory.batch, long.memory.context, long.memory.batch) == (79, 1, 463, 2)
    assert short.memory.derivable == long.memory.derivable == ""
    for one, other, other_cache in ((short, long, long_cache), (long, short, short_cache)):
        context, batch = other.memory.context, other.memory.batch
        assert sum(part.bytes_per_token for part in one.memory.cache) * context * batch == other_cache  # to the byte
        derived, is_derived, _ = memory_at(one, context, batch)
        assert is_derived
        assert derived is not None
        assert other.memory.measured is not None
        # What computing takes is not in the arithmetic: the activations of a prompt seven times as long, twice as many rows.
        assert derived == pytest.approx(other.memory.measured, rel=0.1)
    assert short_cache < long_cache


def test_a_configuration_says_how_many_numbers_a_token_takes() -> None:
    plain = {"num_hidden_layers": 12, "num_attention_heads": 8, "hidden_size": 512}
    assert cache_shape(plain) == CacheShape(layers=12, kv_heads=8, head_size=64)
    grouped = plain | {"num_key_value_heads": 2, "head_dim": 128}
    assert cache_shape({"text_config": grouped}) == CacheShape(layers=12, kv_heads=2, head_size=128)
    windowed = plain | {"sliding_window": 512, "layer_types": ["sliding_attention"] * 10 + ["full_attention"] * 2}
    assert cache_shape(windowed) == CacheShape(layers=12, kv_heads=8, head_size=64, windowed=10, window=512)
    assert cache_shape(windowed | {"use_sliding_window": False}) == CacheShape(layers=12, kv_heads=8, head_size=64)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"kv_lora_rank": 512},
        {"layer_types": ["linear_attention", "full_attention"]},
        {"num_key_value_heads": [2, 4]},
        {"num_kv_shared_layers": 10},
    ],
)
def test_a_cache_of_another_make_has_no_shape(other: dict[str, object]) -> None:
    plain: dict[str, object] = {"num_hidden_layers": 12, "num_attention_heads": 8, "hidden_size": 512}
    assert cache_shape(plain | other if other else {"model_type": "rwkv"}) is None
