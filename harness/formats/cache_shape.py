"""How many numbers a token of context takes in the KV cache, read from a checkpoint's configuration."""

from __future__ import annotations

from harness.formats.config_json import ModelConfig, integer, text_part, words
from harness.metrics.memory import CacheShape

_ATTENTION = {"full_attention", "sliding_attention"}


def cache_shape(config: ModelConfig) -> CacheShape | None:
    """The shape that a configuration describes; None where its layers keep something else than keys and values of equal heads
    (states of a recurrent model, latent vectors, layers of several sizes)."""
    text = text_part(config)
    layers, heads = integer(text, "num_hidden_layers", "n_layer"), integer(text, "num_attention_heads", "n_head")
    hidden = integer(text, "hidden_size", "n_embd")
    kinds = words(text, "layer_types")
    if not layers or not heads or not hidden or text.get("kv_lora_rank") or not set(kinds) <= _ATTENTION:
        return None
    if isinstance(text.get("num_key_value_heads"), list) or text.get("num_kv_shared_layers"):
        return None
    kv_heads = 1 if text.get("multi_query") else integer(text, "num_key_value_heads", default=heads)
    head = integer(text, "head_dim", default=hidden // heads)
    window = integer(text, "sliding_window") if text.get("use_sliding_window") is not False else 0
    windowed = (kinds.count("sliding_attention") if kinds else layers) if window else 0
    return CacheShape(layers=layers, kv_heads=kv_heads, head_size=head, windowed=windowed, window=window if windowed else None)
