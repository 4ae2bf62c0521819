"""Widths by layer: the choice is the best one within the budget, whatever the sizes."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from harness import mixing
from harness.errors import BadInput
from harness.mixing import Candidate, Mixture


def layer(name: str, parameters: int, bits: dict[str, int], losses: dict[str, float]) -> Candidate:
    return Candidate(layer=name, parameters=parameters, bits=bits, losses=losses)


def drawn(seed: int, count: int) -> list[Candidate]:
    """Layers of odd sizes whose losses fall with bits, mostly."""
    draw = random.Random(seed)
    layers = []
    for number in range(count):
        parameters = draw.randrange(50, 400)
        widths = {"2": 2, "3": 3, "4": 4, "8": 8}
        bits = {name: width * parameters + draw.randrange(0, 90) for name, width in widths.items()}
        losses = {name: draw.random() * 4.0**-width for name, width in widths.items()}
        layers.append(layer(f"l{number}", parameters, bits, losses))
    return layers


def cost(layers: list[Candidate], chosen: dict[str, str]) -> tuple[float, int]:
    return sum(each.losses[chosen[each.layer]] for each in layers), sum(each.bits[chosen[each.layer]] for each in layers)


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_within_the_budget_loses_less(seed: int) -> None:
    layers = drawn(seed, 5)
    low, high = mixing.reach(layers)
    target = low + (high - low) * random.Random(seed).random()
    chosen = mixing.choose(layers, target)
    room = target * mixing.parameters(layers)
    every = [
        dict(zip((each.layer for each in layers), names, strict=True)) for names in itertools.product("2348", repeat=len(layers))
    ]
    best = min(loss for loss, bits in (cost(layers, each) for each in every) if bits <= room)
    loss, bits = cost(layers, chosen)
    assert bits <= room
    assert loss == pytest.approx(best, rel=1e-12)


def test_sizes_beyond_the_table_are_rounded_up_and_the_budget_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = drawn(3, 30)
    exact, _ = cost(layers, mixing.choose(layers, 3.6))
    monkeypatch.setattr(mixing, "MOST_UNITS", 500)
    loss, bits = cost(layers, mixing.choose(layers, 3.6))
    assert bits <= 3.6 * mixing.parameters(layers)
    assert exact <= loss <= 1.2 * exact


def test_the_ends_of_the_reach_are_the_narrowest_and_the_widest_everywhere() -> None:
    layers = drawn(1, 6)
    low, high = mixing.reach(layers)
    assert set(mixing.choose(layers, low).values()) == {"2"}
    few, _ = cost(layers, mixing.choose(layers, high))
    assert few == pytest.approx(sum(min(each.losses.values()) for each in layers))


@pytest.mark.parametrize(("target", "side"), [(1.5, "below"), (12.0, "above")])
def test_a_target_out_of_reach_is_refused_with_the_range(target: float, side: str) -> None:
    layers = [layer("a", 100, {"2": 230, "8": 825}, {"2": 1.0, "8": 0.1})]
    with pytest.raises(BadInput, match=rf"{side} what its widths reach here.*: 2\.3 to 8\.25 bits per weight"):
        mixing.choose(layers, target)


def test_a_width_without_a_finite_loss_is_never_chosen() -> None:
    layers = [layer("a", 100, {"2": 200, "4": 400}, {"4": 0.1}), layer("b", 100, {"2": 200, "4": 400}, {"2": 0.3, "4": 0.2})]
    assert mixing.choose(layers, 3.0) == {"a": "4", "b": "2"}
    with pytest.raises(BadInput, match=r"no mixture of finite losses stays within 2\.5"):
        mixing.choose(layers, 2.5)
    with pytest.raises(BadInput, match="layer a has no finite loss in any width"):
        mixing.choose([layer("a", 100, {"2": 200, "4": 400}, {})], 3.0)


def test_a_mixture_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    layers = tuple(drawn(5, 3))
    made = Mixture(target=4.0, rounding="r", tokens=8, seconds=0.5, layers=layers, chosen=mixing.choose(layers, 4.0))
    mixing.write(tmp_path, made)
    assert mixing.read(tmp_path) == made
    assert json.loads((tmp_path / mixing.FILE).read_text())["target"] == 4.0
    assert mixing.read(tmp_path / "none") is None
    loss, bits = cost(list(layers), dict(made.chosen))
    assert made.loss == pytest.approx(loss)
    assert made.bits_per_weight == bits / mixing.parameters(layers)
