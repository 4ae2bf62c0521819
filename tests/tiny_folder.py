"""A checkpoint's folder without a model: all tensors of a Llama of one layer, all zero, in the shapes that its config.json says.
Enough for everything that does not ask a model anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VOCABULARY = 16


def write(folder: Path, *, hidden: int = 8) -> None:
    """The folder, which may exist. `hidden`: units of every layer."""
    folder.mkdir(exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    layers = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    shapes = {
        "embed_tokens": (VOCABULARY, hidden),
        **{f"layers.0.{name}_proj": (hidden, hidden) for name in layers},
        "layers.0.input_layernorm": (hidden,),
        "layers.0.post_attention_layernorm": (hidden,),
        "norm": (hidden,),
    }
    tensors = {f"model.{name}.weight": np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
