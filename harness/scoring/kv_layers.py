"""Layers of transformers' caches that hold keys and values in a type of the axis `kv`. Importing this brings HQQ and torch's
compiler, where they are installed, and takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import DynamicLayer

from harness import kv as kv_types

_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


_PACKED = 8
"""Rows that HQQ packs into one at 1 bit."""


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


def layer(kv: str, group: int) -> DynamicLayer:
    """A layer for a type of the axis, `group` numbers under one scale. ImportError where its package is not installed."""
    key, value = kv_types.halves(kv)
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
    made: Callable[[], DynamicLayer] | None = getattr(cache_utils, "Fp8QuantizedLayer", None)
    if made is None:
        raise ImportError("this transformers keeps no keys and values in float8; 5.23 does")
    return made()


def _hqq(bits: int, group: int) -> DynamicLayer:
    """The library's layer of HQQ along axis 1, as its documentation advises, given the numbers of one group a row: HQQ unpacks 3
    bits of two dimensions only. It packs up to 8 rows into one, so that their number is filled up with rows of zeros."""
    from transformers.cache_utils import HQQQuantizedLayer

    class Rows(HQQQuantizedLayer):
        def _quantize(self, tensor: torch.Tensor, axis: int = 1) -> Any:
            rows = tensor.reshape(-1, group)
            filled = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _PACKED))
            return super()._quantize(filled, axis), tensor.shape  # type: ignore[no-untyped-call]

        def _dequantize(self, qtensor: Any) -> torch.Tensor:
            packed, shape = qtensor
            rows = torch.as_tensor(super()._dequantize(packed))  # type: ignore[no-untyped-call]
            return rows[: shape.numel() // group].reshape(shape)

    layer: DynamicLayer = Rows(nbits=bits, axis_key=1, axis_value=1, q_group_size=group)
    return layer
