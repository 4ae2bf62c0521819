"""rtn: every weight rounded to the nearest step of its group. No calibration; what the cleverer methods have to beat."""

from __future__ import annotations

from dataclasses import replace

from harness.methods import _gptqmodel, _mixture, _recipe
from harness.methods.base import Option, QuantizeRequest

BITS = (8, 4, 3, 2)
KEYS = ("bits", "group_size", "sym", "desc_act", "smooth", "smoother")
"""What GPTQModel reads of a pattern of its `dynamic` for this method (quantization/config.py of 7.6)."""


def quantize(request: QuantizeRequest) -> None:
    _gptqmodel.import_library()
    from gptqmodel.quantization.config import RTNConfig

    options = request.scheme.options
    mixture = _gptqmodel.mixture_of(request)
    config = RTNConfig(
        bits=_mixture.main(request, mixture),
        dynamic=_gptqmodel.dynamic_of(request, mixture),
        group_size=int(options["group_size"]),
        sym=bool(options["sym"]),
        pack_impl="original",
    )
    # Rounding sees no text: what a mixture is calibrated on has decided its widths.
    _gptqmodel.quantize(replace(request, calibration=None), config, float32=True, mixture=mixture)


METHOD = _gptqmodel.row(
    name="rtn",
    version="2",
    title="Round to nearest",
    bits=BITS,
    options={
        "group_size": Option(
            default=64,
            choices=_gptqmodel.ANY_GROUPS,
            help="weights that share one scale and zero point; channel: all of an output",
        ),
        "sym": Option(default=True, choices=(True, False), help="symmetric steps around zero; otherwise with a zero point"),
    },
    quantize=_recipe.explained(quantize, "GPTQModel"),
    recipe=_recipe.dynamic_file(KEYS),
    calibrated=False,
    mixing=_mixture.GPTQ,
    summary="plain rounding in groups, packed in the GPTQ format; needs no data",
    source="GPTQModel (RTNConfig)",
)
