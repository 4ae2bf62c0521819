"""Caches of transformers that hold keys and values in a type of the axis `kv`, and hidden states read through them.

`QuantizedCache` is the library's own: its layers quantize with HQQ, optimum-quanto or to float8. Two things of it decide what a
number means, and are kept: the first call is answered from the keys and values as they were computed, and of HQQ and quanto the
newest tokens (up to `residual_length` - 1 = 127) stay unquantized until a call fills the residue. They are computed with after
being dequantized, so that a cache's bytes and speed are not those of its type: quality alone is measured.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from harness.errors import Unsupported
from harness.kv import CachedSplit
from harness.scoring.head import Split

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.cache_utils import Cache

_GROUP = 64
"""Numbers of a head that share a scale: the library's default, or what divides the head's size."""


def new_cache(config: PreTrainedConfig, kv: str) -> Cache:
    """An empty cache in a type of the axis `kv`; '' is the model's own. Unsupported where the library has none for this model, or
    lacks a package for it."""
    from transformers.cache_utils import Cache, DynamicCache, get_layer_types_and_kwargs

    if not kv:
        return DynamicCache(config=config)
    from harness.scoring import kv_layers

    text = config.get_text_config(decoder=True)
    others = sorted(set(get_layer_types_and_kwargs(text)[0]) - {"full_attention"})
    if others:
        raise Unsupported(
            "transformers keeps only the keys and values of full attention in another type, and this model has "
            f"{', '.join(others)}"
        )
    heads = int(text.num_attention_heads)
    group = math.gcd(_GROUP, int(getattr(text, "head_dim", None) or text.hidden_size // heads))
    try:
        layers = [kv_layers.layer(kv, group) for _ in range(int(text.num_hidden_layers))]
    except ImportError as error:
        raise Unsupported(f"kv {kv}: {error}") from None
    return Cache(layers=list(layers))


def hidden_states(cut: Split, row: torch.Tensor, split: CachedSplit, kv: str) -> torch.Tensor:
    """Final hidden states [1, T-1-W, H] of ids [1, T] after the warm-up, each call reading what the calls before it left in a
    cache of type `kv`. Unsupported for a model that keeps no keys and values."""
    cache, parts = new_cache(cut.model.config, kv), []
    for start, end in split.calls(row.shape[1] - 1):
        hidden = cut.body(row[:, start:end], past_key_values=cache, use_cache=True)
        if start:
            parts.append(hidden)
    return torch.cat(parts, dim=1)
