"""Matrix products on CPUs where torch is slow at them. Inside `products(device, dtype)` they are taken another way.

16 bits without units for them: torch multiplies bfloat16 and float16 matrices in plain loops, ten to thirty times slower than
float32 ones, and scoring a small model takes an hour. Here these products are taken in float32 and rounded to the dtype that the
model asked for: what a 16-bit unit does too, which multiplies exactly and adds up in float32.

float32 on AMD's CPUs with AVX-512: torch has MKL multiply, at the speed of AVX2 code; oneDNN, which is in every torch too,
uses the wider units (2.2 times as fast on Zen 5, the one that was tried). Here oneDNN multiplies, as it does anyway in 16 bits.

Only the order of sums differs, as it does between any two machines. Scoring and generating run this way; latency and memory
never do, because there what torch does by itself is what a user of this CPU would get.
"""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.measure import machine

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


@cache
def slow_in_float32() -> bool:
    """Whether torch multiplies float32 matrices by a library that leaves this CPU's widest units idle, while oneDNN does not."""
    mine = machine.cpu_vendor() == "AuthenticAMD" and "avx512f" in machine.cpu_flags()
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return mine and both and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def remark(dtype: torch.dtype) -> str | None:
    """What a record says of products of that dtype that are taken another way on this CPU; None where they are not."""
    name = str(dtype).removeprefix("torch.")
    if lacking(dtype):
        return f"quality: {name} products in float32 and rounded (no units for them here); latency and memory: as torch does"
    if dtype == torch.float32 and slow_in_float32():
        return "quality: float32 products by oneDNN (MKL leaves this CPU's AVX-512 idle); latency and memory: as torch does"
    return None


def products(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """A context in which a model of `dtype` on `device` multiplies the fast way; changes nothing where torch does that itself."""
    if device.type == "cpu" and lacking(dtype):
        return _Widened()  # type: ignore[no-untyped-call]  # torch's own
    if device.type == "cpu" and dtype == torch.float32 and slow_in_float32():
        return _ByOneDnn()  # type: ignore[no-untyped-call]  # torch's own
    return contextlib.nullcontext()


class _Widened(TorchDispatchMode):
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
        product = func(*(_wide(x) for x in args), **{name: _wide(x) for name, x in kwargs.items()})
        return (product[0].to(dtype), *product[1:]) if func is _ATTENTION_PARTS else product.to(dtype)


def _by_onednn(*arguments: Any) -> Any:
    return torch.ops.mkldnn._linear_pointwise(*arguments)


LEAST_ROWS = 8
"""With fewer rows a product reads the weight and does little else; MKL does that as well."""


class _ByOneDnn(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs:
            if func is _aten.linear.default:
                rows, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
            elif func is _aten.mm.default or (func is _aten.matmul.default and args[0].ndim > 1 and args[1].ndim == 2):
                rows, weight, bias = args[0], args[1].t(), None
            elif func is _aten.addmm.default and args[0].ndim == 1:
                rows, weight, bias = args[1], args[2].t(), args[0]
            else:
                return func(*args)
            if _plain_float32(rows) and _plain_float32(weight) and rows.numel() >= LEAST_ROWS * weight.shape[-1]:
                return _by_onednn(rows, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _plain_float32(x: torch.Tensor) -> bool:
    """A subclass may hold packed weights and has products of its own."""
    return type(x) in (torch.Tensor, torch.nn.Parameter) and x.dtype == torch.float32 and x.device.type == "cpu"


def _wide(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype in _NARROW else x
