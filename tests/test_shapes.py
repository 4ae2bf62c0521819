"""Speed without weights: a shape filled with random weights has a size, a memory and a speed, and no quality."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import store
from harness.errors import BadInput
from harness.models import find, random_weights
from harness.report import render
from harness.report.view import view
from harness.run import runner
from harness.suite import matrix

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 4096,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    path = tmp_path / "speed.yaml"
    path.write_text(
        "name: speed\nmodels: [{shape: tiny.json}]\nmethods: {bf16: }\ncorpora: [reference]\ntasks: [reference_facts]\n"
        "latency: {prompt: [16], new: 4, batch: [1], budget: 1}\nmemory: {prompt: 16, new: 4, batch: 1}\n"
    )
    return path


@pytest.mark.slow
def test_a_shape_is_asked_for_cost_and_never_for_quality(suite_file: Path, tmp_path: Path) -> None:
    planned = matrix.plan(suite_file, device="cpu")
    (cell,) = planned.cells
    assert cell.cell.model.name == "tiny (random weights)"
    assert {q.probe for q in cell.questions} == {"quantize", "size", "memory", "latency"}
    stored = store.read(runner.run(planned, runner.Settings(results=tmp_path / "results", cache=tmp_path / "cache")))
    assert {r.question.probe: r.status for r in stored.records} == dict.fromkeys(("quantize", "size", "memory", "latency"), "ok")
    page = render(stored).decode()
    assert "Without quality: tiny (random weights)." in page
    assert {column.probe for column in view(stored).columns} == {"quantize", "size", "memory", "latency"}


@pytest.mark.slow
def test_a_filled_shape_has_exactly_the_parameters_that_its_config_describes(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    shape = find.shape_of(random_weights.folder(tmp_path / "tiny.json", tmp_path / "cache"))
    attention = 64 * 64 * 2 + 64 * 32 * 2
    block = attention + 3 * 64 * 128 + 2 * 64
    assert shape.parameters == 4096 * 64 + 2 * block + 64
    assert shape.dtype == "BF16"
    assert sum(layer.rows * layer.columns for layer in shape.linears) == 2 * (attention + 3 * 64 * 128)


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(BadInput, match="names no model_type"):
        find.model({"shape": "x.json"}, tmp_path)
    with pytest.raises(BadInput, match=r"did you mean 'llama-3\.2-1b'"):
        find.model({"shape": "llama-3.2-1"}, tmp_path)
