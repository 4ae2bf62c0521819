"""Plain forwards to test the engine and the stored baseline against, and models with unusual heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from harness.engines.base import WindowScores
from harness.engines.transformers import Transformers
from tests.tiny_llama import tokenizer

SCALED: dict[str, Any] = {
    "Gemma2": {"final_logit_softcapping": 5.0, "head_dim": 16, "sliding_window": 512},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.25},
    "Phi": {},  # a head with a bias
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 32},  # a projection between body and head
    "Mamba": {},  # no attention, no key-value cache
}


def scaled(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    common = {"vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.2}
    attention = {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = getattr(transformers, f"{name}Config")(**common, **({} if name == "Mamba" else attention), **SCALED[name])
    return getattr(transformers, f"{name}ForCausalLM")(config).to(dtype).eval()


def engine(model: Any) -> Transformers:
    return Transformers(model, tokenizer())


def plain_logprobs(model: Any, window: list[int]) -> np.ndarray:
    """Log-probabilities [T-1, V] in float64 from one plain forward of one window."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([window])).logits[0, :-1].double()
    return torch.log_softmax(logits, dim=-1).numpy()


def joined(scores: list[WindowScores], name: str) -> np.ndarray:
    return np.stack([getattr(score, name) for score in scores])
