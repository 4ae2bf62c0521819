"""Widths by layer for the rows that mix them: chosen from what each layer loses alone, written into the artifact, and read back.

A cell's target is bits per weight of the quantized layers, scales, zero points and indices included: what the probe `size` counts
in the artifact. The widths keep within it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import mixing
from harness.artifact import BodyWeight, ModelShape, StoredTensor
from harness.errors import BadLedger, Unsupported
from harness.formats import gptq_file
from harness.methods import refusals
from harness.methods.base import Mixing, QuantizeRequest, Width
from harness.mixing import Candidate, Mixture
from harness.models import body, build, rounding, sensitivity, source
from harness.spec import Scheme

if TYPE_CHECKING:
    from torch import Tensor

Sizes = Callable[[BodyWeight, Width], int]
"""Stored bits of a weight in a width."""


def widths(scheme: Scheme) -> tuple[Width, ...]:
    """The widths that may be chosen."""
    return tuple(scheme.mixture["widths"]) if scheme.mixture is not None else ()


def made(
    request: QuantizeRequest,
    taken: Callable[[BodyWeight], bool],
    sizes: Sizes,
    asked: Callable[[Sequence[str]], sensitivity.Asked],
) -> Mixture:
    """The mixture that the request's scheme asks for, of the weights that are `taken`. `asked`: how their layers are rounded
    alone."""
    rows, names = request.calibration or (), widths(request.scheme)
    if not rows:
        raise Unsupported("a mixture is made from what layers lose on calibration rows, and there are none")
    weights = [weight for weight in _body(request.model_dir) if taken(weight)]
    question = asked([weight.name for weight in weights])
    found, seconds = sensitivity.table(request.model_dir, rows, question, device=request.device, cache=request.cache)
    layers = tuple(
        Candidate(
            layer=weight.name,
            parameters=weight.parameters,
            bits={str(width): sizes(weight, width) for width in names},
            losses=found.losses[weight.name],
        )
        for weight in weights
    )
    return Mixture(
        target=float(request.scheme.bits),
        rounding=question.rounding,
        tokens=found.tokens,
        seconds=seconds,
        layers=layers,
        chosen=mixing.choose(layers, float(request.scheme.bits)),
    )


def _body(model_dir: Path) -> Sequence[BodyWeight]:
    view = source.known(model_dir)
    return view.body if view is not None and view.body else body.of_model(build.hollow(model_dir)[0])


def unreachable(scheme: Scheme, shape: ModelShape | None, taken: Callable[[BodyWeight], bool], sizes: Sizes) -> str | None:
    """Why a model cannot be mixed to the scheme's target, or None."""
    weights = tuple(filter(taken, refusals.weights_of(shape)))
    if scheme.mixture is None or not weights:
        return None
    others = [weight.name for weight in weights if weight.kind not in ("linear", "derived")]
    if others:
        return f"target_bits mixes linear layers, and {others[0]} is none; write bits: [...] for one width"
    layers = [
        Candidate(
            layer=each.name,
            parameters=each.parameters,
            bits={str(width): sizes(each, width) for width in widths(scheme)},
            losses={},
        )
        for each in weights
    ]
    return mixing.unreachable(float(scheme.bits), mixing.reach(layers))


def check(out_dir: Path, mixture: Mixture, ledger: Iterable[StoredTensor]) -> None:
    """Leaves the mixture beside the artifact, once its ledger shows that each layer is stored in the width that was chosen.
    BadLedger where one is not."""
    stored: dict[str, int] = {}
    for tensor in ledger:
        if tensor.role != "other":
            stored[tensor.layer] = stored.get(tensor.layer, 0) + tensor.bits
    for each in mixture.layers:
        wanted, found = each.bits[mixture.chosen[each.layer]], stored.get(each.layer, 0)
        if wanted != found:
            raise BadLedger(
                f"layer {each.layer} was to be stored in {mixture.chosen[each.layer]} ({wanted:,} bits in all), and the artifact "
                f"holds {found:,} bits of it; the library did not follow the mixture"
            )
    mixing.write(out_dir, mixture)


# ---- the GPTQ format ----


def of_gptq(request: QuantizeRequest, taken: Callable[[BodyWeight], bool]) -> Mixture | None:
    """The mixture of an artifact in the GPTQ format, whose library quantizes what is `taken`; None for a scheme of one width."""
    if request.scheme.mixture is None:
        return None
    options = request.scheme.options
    group, sym = int(options["group_size"]), bool(options.get("sym", True))

    def rounder(bits: int) -> sensitivity.Rounder:
        def rounded(_: str, weight: Tensor) -> Tensor:
            return rounding.in_groups(weight, bits=bits, group=group, symmetric=sym)

        return rounded

    def asked(layers: Sequence[str]) -> sensitivity.Asked:
        return sensitivity.Asked(
            layers=layers,
            rounding=f"to nearest, groups of {group}, {'symmetric' if sym else 'with zero points'}",
            roundings={str(width): rounder(int(width)) for width in widths(request.scheme)},
        )

    return made(request, taken, partial(_gptq_bits, group), asked)


def candidates(request: QuantizeRequest, taken: Callable[[BodyWeight], bool], group: int) -> tuple[Candidate, ...]:
    """The layers that are `taken`, with what each takes in the GPTQ format in each width, and no losses."""
    return tuple(
        Candidate(
            layer=weight.name,
            parameters=weight.parameters,
            bits={str(width): _gptq_bits(group, weight, width) for width in widths(request.scheme)},
            losses={},
        )
        for weight in filter(taken, _body(request.model_dir))
    )


def refusal(scheme: Scheme, shape: ModelShape | None, taken: Callable[[BodyWeight], bool]) -> str | None:
    """Why a model cannot be mixed in the GPTQ format, or None."""
    if scheme.mixture is None:
        return None
    if int(scheme.options["group_size"]) < 0:
        return "target_bits mixes widths in groups, not per channel; choose a smaller group_size"
    return unreachable(scheme, shape, taken, partial(_gptq_bits, int(scheme.options["group_size"])))


def _gptq_bits(group: int, weight: BodyWeight, width: Width) -> int:
    return gptq_file.stored_bits(outputs=weight.rows, inputs=weight.columns, bits=int(width), group=group)


def main(request: QuantizeRequest, mixture: Mixture | None) -> int:
    """The width that the library is told for all layers: of a mixture the one that most have."""
    if mixture is None:
        return int(request.scheme.bits)
    return int(Counter(mixture.chosen.values()).most_common(1)[0][0])


def dynamic(mixture: Mixture | None) -> dict[str, dict[str, int]] | None:
    """What GPTQModel is told of single layers: patterns of their names, each with what is other there."""
    if mixture is None:
        return None
    return {f"+:^{re.escape(layer)}$": {"bits": int(width)} for layer, width in mixture.chosen.items()}


def _per_weight(width: Width, options: Mapping[str, Any]) -> float:
    group = int(options["group_size"])
    return float(width) + (0 if group < 0 else (16 + float(width)) / group)


GPTQ = Mixing(widths=(2, 3, 4, 8), known=(2, 3, 4, 8), bits=_per_weight)
