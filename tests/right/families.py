"""Small models of other architectures than Llama's, with random weights large enough that a wrong one shows."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from tests.tiny_llama import VOCAB

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}


def sharpened(model: Any, *, size: float = 0.12, seed: int = 0) -> Any:
    """The model with every matrix drawn anew, so that no method is measured on weights near zero."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.copy_(torch.randn(weight.shape, generator=source) * size)
    model.tie_weights()
    return model.eval()


def gpt2() -> Any:
    config = hf.GPT2Config(
        vocab_size=VOCAB, n_positions=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return sharpened(hf.GPT2LMHeadModel(config))


def gpt_neox() -> Any:
    return sharpened(hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES, intermediate_size=128)))


def mixtral() -> Any:
    config = hf.MixtralConfig(**GROUPED, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2)
    return sharpened(hf.MixtralForCausalLM(config))


def qwen2_moe() -> Any:
    config = hf.Qwen2MoeConfig(
        **GROUPED,
        intermediate_size=64,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return sharpened(hf.Qwen2MoeForCausalLM(config))


def olmoe() -> Any:
    config = hf.OlmoeConfig(**GROUPED, intermediate_size=64, num_experts=4, num_experts_per_tok=2)
    return sharpened(hf.OlmoeForCausalLM(config))


def phi3() -> Any:
    config = hf.Phi3Config(**GROUPED, intermediate_size=128, original_max_position_embeddings=256)
    return sharpened(hf.Phi3ForCausalLM(config))


def mamba2() -> Any:
    config = hf.Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=2,
        state_size=16,
        num_heads=8,
        head_dim=16,
        n_groups=1,
        chunk_size=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return sharpened(hf.Mamba2ForCausalLM(config))


def gemma3() -> Any:
    """With its vision tower: the language model stands in a nested config."""
    text = {
        **GROUPED,
        "intermediate_size": 128,
        "head_dim": 16,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    }
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=VOCAB - 1,
        boi_token_index=VOCAB - 2,
        eoi_token_index=VOCAB - 3,
    )
    return sharpened(hf.Gemma3ForConditionalGeneration(config))


def falcon() -> Any:
    """Its layers are of a class of its own, derived from nn.Linear."""
    config = hf.FalconConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return sharpened(hf.FalconForCausalLM(config))
