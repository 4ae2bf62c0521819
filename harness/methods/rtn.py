"""rtn: every weight rounded to the nearest step of its group. No calibration; what the cleverer methods have to beat."""

from __future__ import annotations

from harness.artifact import ModelShape
from harness.methods import _gptqmodel
from harness.methods.base import Method, Option, QuantizeRequest
from harness.spec import Scheme

BITS = (8, 4, 3, 2)


def quantize(request: QuantizeRequest) -> None:
    _gptqmodel.settle()
    from gptqmodel.quantization.config import RTNConfig

    options = request.scheme.options
    config = RTNConfig(
        bits=int(request.scheme.bits), group_size=int(options["group_size"]), sym=bool(options["sym"]), pack_impl="original"
    )
    _gptqmodel.quantize(request, config, float32=True)


def bits_per_weight(scheme: Scheme) -> float:
    """bits + (16-bit scale + zero point of `bits`) / group; the 32-bit group index per input feature is left out, because its
    share depends on the number of rows (32 / rows)."""
    return float(scheme.bits) + (16 + float(scheme.bits)) / int(scheme.options["group_size"])


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    return _gptqmodel.supports(scheme, shape, device)


METHOD = Method(
    name="rtn",
    title="Round to nearest",
    version="1",
    bits=BITS,
    options={
        "group_size": Option(default=64, choices=_gptqmodel.GROUPS, help="weights that share one scale and zero point"),
        "sym": Option(default=True, choices=(True, False), help="symmetric steps around zero; otherwise with a zero point"),
    },
    engine="transformers",
    kernel_cpu=_gptqmodel.kernel_cpu(BITS),
    kernel_cuda=_gptqmodel.KERNEL_CUDA,
    quantize=quantize,
    load=_gptqmodel.load,
    supports=supports,
    bits_per_weight=bits_per_weight,
    ledger=_gptqmodel.ledger,
    kernels=_gptqmodel.kernels,
    requirements=_gptqmodel.REQUIREMENTS,
    extra="gptqmodel",
    modules=_gptqmodel.MODULES,
    preload=_gptqmodel.PRELOAD,
    apart=_gptqmodel.APART,
    summary="plain rounding in groups, packed in the GPTQ format; needs no data",
    source="GPTQModel (RTNConfig)",
)
