"""rtn: every weight rounded to the nearest step of its group. No calibration; what the cleverer methods have to beat."""

from __future__ import annotations

from harness.methods import gptqmodel
from harness.methods.base import Method, Option, QuantizeRequest, Shape
from harness.spec import Scheme

BITS = (8, 4, 3, 2)


def quantize(request: QuantizeRequest) -> None:
    gptqmodel.settle()
    from gptqmodel.quantization.config import RTNConfig

    options = request.scheme.options
    config = RTNConfig(
        bits=int(request.scheme.bits), group_size=int(options["group_size"]), sym=bool(options["sym"]), pack_impl="original"
    )
    gptqmodel.quantize(request, config, float32=True)


def bits_per_weight(scheme: Scheme) -> float:
    """bits + (16-bit scale + zero point of `bits`) / group; the 32-bit group index per input feature is left out, because its
    share depends on the number of rows (32 / rows)."""
    return float(scheme.bits) + (16 + float(scheme.bits)) / int(scheme.options["group_size"])


def supports(scheme: Scheme, shape: Shape | None, device: str) -> str | None:
    return gptqmodel.supports(scheme, shape, device)


METHOD = Method(
    name="rtn",
    title="Round to nearest",
    version="1",
    bits=BITS,
    options={
        "group_size": Option(default=64, choices=gptqmodel.GROUPS, help="weights that share one scale and zero point"),
        "sym": Option(default=True, choices=(True, False), help="symmetric steps around zero; otherwise with a zero point"),
    },
    engine="transformers",
    kernel_cpu=gptqmodel.kernel_cpu(BITS),
    kernel_cuda=gptqmodel.KERNEL_CUDA,
    quantize=quantize,
    load=gptqmodel.load,
    supports=supports,
    bits_per_weight=bits_per_weight,
    ledger=gptqmodel.ledger,
    kernels=gptqmodel.kernels,
    requirements=gptqmodel.REQUIREMENTS,
    extra="gptqmodel",
    modules=gptqmodel.MODULES,
    preload=gptqmodel.PRELOAD,
    apart=gptqmodel.APART,
    summary="plain rounding in groups, packed in the GPTQ format; needs no data",
    source="GPTQModel (RTNConfig)",
)
