"""Mixed precision as plain data: which layer of a model is stored in which width, and how that is chosen for a budget of bits.

Choosing one width for each layer so that the sum of losses is least and the sum of sizes within a budget is the multiple-choice
knapsack problem (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11). `choose` solves it by dynamic programming
over the real stored bits, scales and zero points included, in units of their greatest common divisor: exactly, unless the budget
is more than MOST_UNITS units. Then sizes are rounded up to a coarser unit, so that the budget still holds and the choice may be
a little worse than the best.

The loss of a mixture is taken for the sum of what its layers lose alone. That is an assumption; what the cell really loses is
measured on its artifact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.decode import decode
from harness.errors import BadInput
from harness.files import write_atomically

FILE = "mixture.json"
"""Beside an artifact, as a note of the harness: what was chosen, and from which losses."""

MOST_UNITS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layer of `parameters` weights in each width that it may have: bits that it would be stored in, scales and zero points
    included, and what the model would lose by it alone (nats per token), by the width's name; a loss that is not finite is left
    out."""

    layer: str
    parameters: int
    bits: Mapping[str, int]
    losses: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What was chosen for an artifact. `target`: bits per weight of these layers that it had to stay within; `rounding`: how
    each layer was rounded alone to find the losses, on `tokens` tokens of the calibration rows; `seconds` it took, 0 where the
    losses were in the cache; `chosen`: the width of each layer by its name."""

    target: float
    rounding: str
    tokens: int
    seconds: float
    layers: tuple[Candidate, ...]
    chosen: Mapping[str, str]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of these layers, as they follow from the widths."""
        return sum(each.bits[self.chosen[each.layer]] for each in self.layers) / parameters(self.layers)

    @property
    def loss(self) -> float:
        """The sum of what the layers lose alone, in nats per token."""
        return math.fsum(each.losses[self.chosen[each.layer]] for each in self.layers)


def parameters(layers: Sequence[Candidate]) -> int:
    return sum(each.parameters for each in layers)


def reach(layers: Sequence[Candidate]) -> tuple[float, float]:
    """The fewest and the most bits per weight that these layers can be stored in."""
    few, many = (sum(pick(each.bits.values()) for each in layers) for pick in (min, max))
    return few / parameters(layers), many / parameters(layers)


def unreachable(target: float, reached: tuple[float, float]) -> str | None:
    """Why a target of bits per weight cannot be had where widths reach from the one end to the other; None where it can."""
    low, high = reached
    if low <= target <= high:
        return None
    side = "below" if target < low else "above"
    return (
        f"target_bits: {target:g} is {side} what its widths reach here, scales and zero points included: "
        f"{math.ceil(low * 100) / 100:g} to {math.floor(high * 100) / 100:g} bits per weight; choose a target between, or other "
        "widths"
    )


def choose(layers: Sequence[Candidate], target: float) -> dict[str, str]:
    """The width of each layer, so that the sum of losses is least and at most `target` bits per weight are stored. Of equal
    choices the one with fewer bits. BadInput for a target out of reach, or where a layer has no finite loss in any width."""
    why = unreachable(target, reach(layers))
    if why is not None:
        raise BadInput(why)
    widths = [_usable(each) for each in layers]
    least = [each.bits[names[0]] for each, names in zip(layers, widths, strict=True)]
    room = math.floor(target * parameters(layers)) - sum(least)
    if room < 0:
        raise BadInput(f"no mixture of finite losses stays within {target:g} bits per weight; raise target_bits")
    extras = [[each.bits[name] - first for name in names] for each, names, first in zip(layers, widths, least, strict=True)]
    unit = math.gcd(*(extra for some in extras for extra in some)) or 1
    unit = max(unit, math.ceil(room / MOST_UNITS))
    sizes = [[-(-extra // unit) for extra in some] for some in extras]
    losses = [[each.losses[name] for name in names] for each, names in zip(layers, widths, strict=True)]
    picked = _knapsack(sizes, losses, room // unit)
    return {each.layer: names[index] for each, names, index in zip(layers, widths, picked, strict=True)}


def _usable(layer: Candidate) -> list[str]:
    """The widths whose loss is finite, fewest bits first."""
    names = sorted((name for name in layer.bits if name in layer.losses), key=lambda name: layer.bits[name])
    if not names:
        raise BadInput(f"layer {layer.layer} has no finite loss in any width, so none can be chosen for it")
    return names


def _knapsack(sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], room: int) -> list[int]:
    """For each class the index of one item, so that the sum of losses is least and that of sizes at most `room`. The first item
    of each class has size 0."""
    import numpy as np

    best = np.zeros(room + 1)
    picks = []
    for own, costs in zip(sizes, losses, strict=True):
        table = np.full((len(own), room + 1), np.inf)
        for index, (size, cost) in enumerate(zip(own, costs, strict=True)):
            if size <= room:
                table[index, size:] = best[: room + 1 - size] + cost
        pick = np.argmin(table, axis=0)
        picks.append(pick.astype(np.uint8))
        best = np.take_along_axis(table, pick[None], axis=0)[0]
    chosen, left = [], room
    for own, pick in zip(reversed(sizes), reversed(picks), strict=True):
        index = int(pick[left])
        chosen.append(index)
        left -= own[index]
    return chosen[::-1]


def write(folder: Path, mixture: Mixture) -> None:
    write_atomically(folder / FILE, json.dumps(asdict(mixture), allow_nan=False))


def read(folder: Path) -> Mixture | None:
    """What was chosen for the artifact in `folder`; None for one that is no mixture."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return decode(Mixture, json.loads(text))
