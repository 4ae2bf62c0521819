"""rtn: every weight rounded to the nearest step of its group. No calibration; what the cleverer methods have to beat."""

from __future__ import annotations

from harness.methods import _gptqmodel
from harness.methods.base import Option, QuantizeRequest

BITS = (8, 4, 3, 2)


def quantize(request: QuantizeRequest) -> None:
    _gptqmodel.import_library()
    from gptqmodel.quantization.config import RTNConfig

    options = request.scheme.options
    config = RTNConfig(
        bits=int(request.scheme.bits), group_size=int(options["group_size"]), sym=bool(options["sym"]), pack_impl="original"
    )
    _gptqmodel.quantize(request, config, float32=True)


METHOD = _gptqmodel.row(
    name="rtn",
    version="2",
    title="Round to nearest",
    bits=BITS,
    options={
        "group_size": Option(default=64, choices=_gptqmodel.GROUPS, help="weights that share one scale and zero point"),
        "sym": Option(default=True, choices=(True, False), help="symmetric steps around zero; otherwise with a zero point"),
    },
    quantize=quantize,
    calibrated=False,
    summary="plain rounding in groups, packed in the GPTQ format; needs no data",
    source="GPTQModel (RTNConfig)",
)
