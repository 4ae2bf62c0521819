"""Caches of transformers that hold keys and values in a type of the axis `kv`, and hidden states read through them.

`QuantizedCache` is the library's own: its layers quantize with HQQ, optimum-quanto or to float8. Two things of it decide what a
number means, and are kept: the first call is answered from the keys and values as they were computed, and of HQQ and quanto the
newest tokens (up to `residual_length` - 1 = 127) stay unquantized until a call fills the residue. They are computed with after
being dequantized, so that a cache's bytes and speed are not those of its type: quality alone is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from harness import kv as kv_types
from harness.errors import Unsupported
from harness.kv import CachedSplit
from harness.scoring.head import Split

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_GROUP = 64
"""Numbers of a head that share a scale: the library's default, or what divides the head's size."""

_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


class PlainLayer(DynamicLayer):
    """Keys and values kept in another float type than the model computes in."""

    def __init__(self, stored: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' functions have no types
        self._stored = stored

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states.to(self._stored), value_states.to(self._stored), *args, **kwargs)
        return keys.to(key_states.dtype), values.to(value_states.dtype)


class ApartLayer(DynamicLayer):
    """Keys in the type of one layer, values in that of another. Each layer is given both, and answers for its half alone."""

    def __init__(self, keys: DynamicLayer, values: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' functions have no types
        self._halves = (keys, values)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (half.update(key_states, value_states, *args, **kwargs) for half in self._halves)
        return keys[0], values[1]

    def get_seq_length(self) -> int:
        return int(self._halves[0].get_seq_length())


def new_cache(config: PreTrainedConfig, kv: str) -> Cache:
    """An empty cache in a type of the axis `kv`; '' is the model's own. Unsupported where the library has none for this model, or
    lacks a package for it."""
    if not kv:
        return DynamicCache(config=config)
    from transformers.cache_utils import get_layer_types_and_kwargs

    text = config.get_text_config(decoder=True)
    others = sorted(set(get_layer_types_and_kwargs(text)[0]) - {"full_attention"})
    if others:
        raise Unsupported(
            "transformers keeps only the keys and values of full attention in another type, and this model has "
            f"{', '.join(others)}"
        )
    heads = int(text.num_attention_heads)
    group = math.gcd(_GROUP, int(getattr(text, "head_dim", None) or text.hidden_size // heads))
    key, value = kv_types.halves(kv)
    try:
        layers = [_layer(key, value, group) for _ in range(int(text.num_hidden_layers))]
    except ImportError as error:
        raise Unsupported(f"kv {kv}: {error}") from None
    return Cache(layers=list(layers))


def _layer(key: str, value: str, group: int) -> DynamicLayer:
    return _half(key, group) if key == value else ApartLayer(_half(key, group), _half(value, group))


def _half(word: str, group: int) -> DynamicLayer:
    if word in _DTYPES:
        return PlainLayer(_DTYPES[word])
    native = kv_types.ENGINES["transformers"][word].native
    backend, _, bits = native.partition(" ")
    if backend == "hqq":
        return _hqq(int(bits), group)
    if backend == "quanto":
        from transformers.cache_utils import QuantoQuantizedLayer

        quanto: DynamicLayer = QuantoQuantizedLayer(nbits=int(bits), axis_key=0, axis_value=0, q_group_size=group)
        return quanto
    from transformers import cache_utils

    made: Callable[[], DynamicLayer] | None = getattr(cache_utils, "Fp8QuantizedLayer", None)
    if made is None:
        raise ImportError("this transformers keeps no keys and values in float8; 5.23 does")
    return made()


def _hqq(bits: int, group: int) -> DynamicLayer:
    """The library's layer of HQQ along axis 1, as its documentation advises, given the numbers of one group a row: HQQ unpacks 3
    bits of two dimensions only."""
    from transformers.cache_utils import HQQQuantizedLayer

    class Rows(HQQQuantizedLayer):
        def _quantize(self, tensor: torch.Tensor, axis: int = 1) -> Any:
            return super()._quantize(tensor.reshape(-1, group), axis), tensor.shape  # type: ignore[no-untyped-call]

        def _dequantize(self, qtensor: Any) -> torch.Tensor:
            packed, shape = qtensor
            return torch.as_tensor(super()._dequantize(packed)).reshape(shape)  # type: ignore[no-untyped-call]

    layer: DynamicLayer = Rows(nbits=bits, axis_key=1, axis_value=1, q_group_size=group)
    return layer


def hidden_states(cut: Split, row: torch.Tensor, split: CachedSplit, kv: str) -> torch.Tensor:
    """Final hidden states [1, T-1-W, H] of ids [1, T] after the warm-up, each call reading what the calls before it left in a
    cache of type `kv`. Unsupported for a model that keeps no keys and values."""
    cache, parts = new_cache(cut.model.config, kv), []
    for start, end in split.calls(row.shape[1] - 1):
        hidden = cut.body(row[:, start:end], past_key_values=cache, use_cache=True)
        if start:
            parts.append(hidden)
    return torch.cat(parts, dim=1)
