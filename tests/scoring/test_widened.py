"""16-bit products in float32: the same numbers up to their rounding, and only where a CPU needs it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harness.scoring import widened
from tests.tiny_llama import llama

# torch warns of its own use of torch.jit when parts of it are first imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CPU = torch.device("cpu")


@pytest.fixture
def needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "lacking", lambda dtype: dtype in (torch.bfloat16, torch.float16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("needed")
def test_products_are_those_of_float32_rounded_once(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((4, 7, 64), (32, 64), (32,)))
    with torch.inference_mode(), widened.products(CPU, dtype):
        found = [torch.nn.functional.linear(x, w, b), x @ w.T, torch.bmm(x, x.mT)]
    wide = [
        torch.nn.functional.linear(x.float(), w.float(), b.float()),
        x.float() @ w.float().T,
        torch.bmm(x.float(), x.float().mT),
    ]
    for one, other in zip(found, wide, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.usefixtures("needed")
def test_a_model_answers_as_near_to_float32_as_it_does_without(attention: str) -> None:
    wide = llama()
    narrow = llama(dtype=torch.bfloat16)
    for model in (wide, narrow):
        model.set_attn_implementation(attention)
    ids = torch.arange(2, 66).view(2, 32)
    with torch.inference_mode():
        exact = wide(ids).logits
        plain = narrow(ids).logits
        with widened.products(CPU, torch.bfloat16):
            found = narrow(ids).logits
    assert found.dtype == torch.bfloat16
    assert float((found - exact).abs().mean()) < 1.2 * float((plain - exact).abs().mean())


def test_nothing_changes_where_it_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "lacking", lambda dtype: False)
    monkeypatch.setattr(widened, "slow_in_float32", lambda: False)
    x = torch.randn(64, 64, dtype=torch.bfloat16)
    plain = x @ x
    with widened.products(CPU, torch.bfloat16):
        assert torch.equal(x @ x, plain)


@pytest.mark.usefixtures("needed")
def test_float32_and_packed_tensors_keep_their_own_products() -> None:
    class Packed(torch.Tensor):
        pass

    x = torch.randn(8, 8)
    with widened.products(CPU, torch.bfloat16):
        assert torch.equal(x @ x, torch.mm(x, x))
        kept = x.bfloat16().as_subclass(Packed)
        assert isinstance(kept @ kept, Packed)


def test_float32_is_never_lacking() -> None:
    assert not widened.lacking(torch.float32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of what oneDNN is asked to multiply, on a CPU whose float32 products it is to take."""
    monkeypatch.setattr(widened, "slow_in_float32", lambda: True)
    found: list[torch.Size] = []
    real = torch.ops.mkldnn._linear_pointwise

    def multiply(rows: torch.Tensor, *rest: object) -> torch.Tensor:
        found.append(rows.shape)
        product: torch.Tensor = real(rows, *rest)
        return product

    monkeypatch.setattr(widened, "_by_onednn", multiply)
    return found


def test_float32_products_of_many_rows_are_onednns(asked: list[torch.Size]) -> None:
    draw = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*shape, generator=draw) for shape in ((4, 7, 64), (32, 64), (32,)))
    flat = x.flatten(0, 1)
    linear = torch.nn.functional.linear
    products: list[Callable[[], torch.Tensor]] = [
        lambda: linear(x, w, b),
        lambda: linear(x, w),
        lambda: flat @ w.T,
        lambda: torch.addmm(b, flat, w.T),
    ]
    with torch.inference_mode():
        plain = [one() for one in products]
        with widened.products(CPU, torch.float32):
            found = [one() for one in products]
            few = linear(x[0], w, b)
    assert len(asked) == len(products), "seven rows are too few to be worth it"
    torch.testing.assert_close(few, linear(x[0], w, b), rtol=0, atol=0)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_onednn_gets_no_packed_and_no_narrow_tensors(asked: list[torch.Size]) -> None:
    class Packed(torch.Tensor):
        pass

    x = torch.randn(16, 16)
    with torch.inference_mode(), widened.products(CPU, torch.float32):
        assert isinstance(x.as_subclass(Packed) @ x, Packed)
        assert (x.bfloat16() @ x.bfloat16()).dtype == torch.bfloat16
        assert (x.double() @ x.double()).dtype == torch.float64
    assert asked == []
