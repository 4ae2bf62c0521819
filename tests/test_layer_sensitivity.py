"""What each layer loses alone is what a model with this layer alone rounded loses, and the model is the same afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.models import build, rounding, sensitivity, source
from tests.right.cases import ROWS, checkpoint
from tests.tiny_llama import llama

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")


def asked(layers: list[str], *widths: int) -> sensitivity.Asked:
    def rounder(bits: int) -> sensitivity.Rounder:
        return lambda _, weight: rounding.in_groups(weight, bits=bits, group=64)

    return sensitivity.Asked(layers=layers, rounding="g64", roundings={str(width): rounder(width) for width in widths})


def direct(model: Any, layer: str, bits: int) -> float:
    """The same with copies of whole models, in double precision."""
    ids = torch.tensor(ROWS)
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
        weight = model.get_submodule(layer).weight
        held = weight.clone()
        weight.copy_(rounding.in_groups(weight, bits=bits, group=64))
        after = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
        weight.copy_(held)
    return float((before.exp() * (before - after)).sum(-1).mean())


def test_each_layers_loss_is_that_of_the_model_with_this_layer_alone_rounded() -> None:
    model = llama().eval()
    layers = list(build.decoder_linears(model))
    found = sensitivity.measure(model, ROWS, asked(layers, 2, 4))
    assert found.tokens == sum(map(len, ROWS))
    assert found.losses.keys() == set(layers)
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        for bits in (2, 4):
            assert found.losses[layer][str(bits)] == pytest.approx(direct(model, layer, bits), rel=2e-3, abs=1e-8)


def test_the_model_is_the_same_afterwards_bit_for_bit() -> None:
    model = llama().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    sensitivity.measure(model, ROWS, asked(list(build.decoder_linears(model)), 2, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_layer_is_put_back_where_its_pass_fails() -> None:
    model = llama().eval()
    layer = next(iter(build.decoder_linears(model)))
    held = model.get_submodule(layer).weight.clone()
    with pytest.raises(RuntimeError, match="broken"), sensitivity.rounded(model, layer, lambda _, weight: weight * 0):
        raise RuntimeError("broken")
    assert torch.equal(model.get_submodule(layer).weight, held)


def test_blocks_that_see_more_than_the_block_before_are_run_whole_and_lose_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama().eval()
    layers = list(build.decoder_linears(model))
    replayed = sensitivity.measure(model, ROWS, asked(layers, 3))
    monkeypatch.setattr(sensitivity, "_blocks", lambda model: [])
    assert sensitivity.measure(model, ROWS, asked(layers, 3)).losses == replayed.losses


def test_a_table_is_made_once_for_all_that_decides_it(tmp_path: Path) -> None:
    view, cache = tmp_path / "view", tmp_path / "cache"
    source.make(checkpoint(tmp_path / "model"), view)
    layers = list(build.decoder_linears(build.hollow(view)[0]))[:2]
    first, took = sensitivity.table(view, ROWS, asked(layers, 2), device="cpu", cache=cache)
    again, nothing = sensitivity.table(view, ROWS, asked(layers, 2), device="cpu", cache=cache)
    assert again == first
    assert (took > 0, nothing) == (True, 0.0)
    sensitivity.table(view, ROWS, asked(layers, 3), device="cpu", cache=cache)
    sensitivity.table(view, ROWS[1:], asked(layers, 2), device="cpu", cache=cache)
    assert len(list((cache / "sensitivity").iterdir())) == 3


def test_rounding_with_a_zero_point_keeps_zero_and_is_no_further_than_half_a_step() -> None:
    weight = torch.randn(8, 128)
    weight[:, ::5] = 0
    rounded = rounding.in_groups(weight, bits=3, group=64, symmetric=False)
    assert bool((rounded[:, ::5] == 0).all())
    groups = weight.reshape(-1, 64)
    step = (groups.amax(1).clamp_min(0) - groups.amin(1).clamp_max(0)) / 7
    assert bool(((rounded - weight).reshape(-1, 64).abs() <= step[:, None] * 1.001).all())
    assert len(rounded.reshape(-1, 64)[0].unique()) <= 8
