"""Types by tensor for GGUF files: chosen as other widths are (_mixture.py), with ggml's own blocks as the rounding, and handed to
`llama_model_quantize` as one override for each tensor.

Embeddings, head and norms are stored as llama.cpp stores them in a file of the type BASE: they are no part of the target.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.artifact import BodyWeight, ModelShape
from harness.formats import gguf_names
from harness.formats.gguf_types import BLOCKS
from harness.methods import _mixture, refusals
from harness.methods.base import Mixing, QuantizeRequest, Width
from harness.mixing import Mixture
from harness.models import sensitivity
from harness.spec import Scheme

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

BASE = "Q4_K_M"
"""The file type that decides what the mixture does not."""

_DEFAULT = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def of(request: QuantizeRequest, importance: Mapping[str, NDArray[np.float32]]) -> Mixture:
    """The mixture that the request asks for. `importance`: by GGUF name, empty where none is used."""
    kinds = tuple(map(str, _mixture.widths(request.scheme)))

    def asked(layers: Sequence[str]) -> sensitivity.Asked:
        weighed = "with" if importance else "without"
        return sensitivity.Asked(
            layers=layers,
            rounding=f"to ggml's types {weighed} the importance matrix of the calibration rows",
            roundings={kind: _rounder(kind, importance) for kind in kinds},
        )

    return _mixture.made(request, refusals.linear, sizes, asked)


def _rounder(kind: str, importance: Mapping[str, NDArray[np.float32]]) -> Callable[[str, Tensor], Tensor]:
    def rounder(layer: str, weight: Tensor) -> Tensor:
        import torch

        from harness.runtimes import ggml

        matrix = importance.get(str(gguf_names.gguf_name(f"{layer}.weight")))
        made = ggml.rounded(weight.detach().float().cpu().numpy(), kind, matrix)
        return torch.from_numpy(made).to(device=weight.device, dtype=weight.dtype)

    return rounder


def sizes(weight: BodyWeight, kind: Width) -> int:
    """Stored bits of a weight in a type, scales included."""
    block = BLOCKS[str(kind)]
    return weight.parameters // block.weights * block.size * 8


def refusal(scheme: Scheme, shape: ModelShape | None) -> str | None:
    """Why a model cannot be mixed to the scheme's target, or None."""
    for kind in map(str, _mixture.widths(scheme)):
        reason = refusals.undivided(shape, columns=BLOCKS[kind].weights)
        if reason is not None:
            small = ", ".join(name for name in map(str, MIXING.known) if BLOCKS[name].weights == 32)
            return f"{reason}, the blocks of {kind}; choose widths with blocks of 32: widths: [{small}]"
    return _mixture.unreachable(scheme, shape, refusals.linear, sizes)


def overrides(mixture: Mixture) -> dict[str, str]:
    """Pattern of a GGUF tensor's name -> its type, for every layer of the mixture."""
    names = {layer: str(gguf_names.gguf_name(f"{layer}.weight")) for layer in mixture.chosen}
    return {f"^{re.escape(names[layer])}$": kind for layer, kind in mixture.chosen.items()}


def _bits(kind: Width, options: Mapping[str, Any]) -> float:
    return BLOCKS[str(kind)].bits_per_weight


MIXING = Mixing(
    widths=_DEFAULT,
    known=("Q2_K", "Q3_K", "Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"),
    bits=_bits,
    options=("imatrix",),
    beside=(8, 6, 5, 4, 3, 2),
)
