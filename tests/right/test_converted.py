"""What llama.cpp cannot convert or run is refused by the plan, and not told by llama.cpp in the middle of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from harness.suite import matrix, plan
from tests.right.cases import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def planned(folder: Path, methods: str) -> plan.Plan:
    path = folder / "mine.yaml"
    path.write_text(f"name: mine\nmodels: [{{path: {folder / 'm'}}}]\nmethods: {methods}\n")
    return matrix.plan(path, device="cpu")


@pytest.mark.parametrize(("family", "refused"), [("Qwen2", True), ("Qwen3", True), ("Llama", False)])
def test_a_scaling_that_llama_cpp_reads_for_llama_alone_is_refused_for_others(family: str, refused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE, rope_parameters=LLAMA3)
    checkpoint(tmp_path / "m", model=getattr(transformers, f"{family}ForCausalLM")(config))
    made = planned(tmp_path, "{gguf: {bits: 8}}")
    assert [("llama3" in s.reason) for s in made.unsupported] == ([True] if refused else [])


@pytest.mark.parametrize(("head", "refused"), [(80, True), (64, False), (None, False)])
def test_a_cache_type_whose_blocks_do_not_divide_a_head_is_refused(head: int | None, refused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = SHAPE if head is None else {**SHAPE, "head_dim": head}
    config = transformers.Qwen3Config(**shape)
    checkpoint(tmp_path / "m", model=transformers.Qwen3ForCausalLM(config))
    made = planned(tmp_path, "{gguf: {bits: 8, kv_cache: [f16, bf16, q8_0, q4_0]}}")
    reasons = {s.cell.running.kv: s.reason for s in made.unsupported}
    assert sorted(reasons) == (["q4_0", "q8_0"] if refused else [])
    for reason in reasons.values():
        assert f"have {head} numbers" in reason
        assert "write kv_cache: f16" in reason
