"""16-bit matrix products on CPUs that have no units for them.

Without such units torch multiplies bfloat16 and float16 matrices in plain loops, ten to thirty times slower than float32 ones,
and scoring a small model takes an hour. Inside `products(device, dtype)` these products are taken in float32 and rounded to the
dtype that the model asked for: what a 16-bit unit does too, which multiplies exactly and adds up in float32. Only the order of
sums differs, as it does between any two machines. Scoring and generating run this way; latency and memory never do, because
there the slow loops are what a user of this CPU would get.
"""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NARROW = (torch.bfloat16, torch.float16)
_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.linear.default,
    _aten.matmul.default,
    _aten.scaled_dot_product_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}
_ATTENTION_PARTS = _aten._scaled_dot_product_flash_attention_for_cpu.default  # returns its logsumexp too, in float32 anyway


@cache
def lacking(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of that dtype in plain loops. torch asks oneDNN the same."""
    question = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    if question is None or not torch.backends.mkldnn.is_available():
        return False
    return not bool(getattr(torch.ops.mkldnn, question)())


def products(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """A context in which a model of `dtype` on `device` multiplies in float32 and rounds; changes nothing where it need not."""
    return _Widened() if device.type == "cpu" and lacking(dtype) else contextlib.nullcontext()


class _Widened(TorchDispatchMode):  # type: ignore[misc]  # torch's classes are untyped to mypy
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS:
            return func(*args, **kwargs)
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        dtype = tensors[0].dtype
        # A subclass may hold packed weights and has products of its own.
        plain = all(type(x) in (torch.Tensor, torch.nn.Parameter) for x in tensors)
        if dtype not in _NARROW or not plain or tensors[0].device.type != "cpu":
            return func(*args, **kwargs)
        found = func(*(_wide(x) for x in args), **{name: _wide(x) for name, x in kwargs.items()})
        return (found[0].to(dtype), *found[1:]) if func is _ATTENTION_PARTS else found.to(dtype)


def _wide(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype in _NARROW else x
