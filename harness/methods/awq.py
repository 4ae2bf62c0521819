"""awq: scales up the input channels that matter, so that rounding hurts them less, and clips each group where that helps
(Lin et al., AWQ, 2023).

The library searches 20 scalings per group of layers and runs all calibration tokens through the block for each, which is
where its time goes: it grows with the number of calibration tokens and nothing else. The paper (section 5, data
efficiency) finds the search content with a tenth of the text that GPTQ needs, so give it less: see the README's suites.
"""

from __future__ import annotations

from harness.methods import gptqmodel, rtn
from harness.methods.base import Method, Option, QuantizeRequest, Shape
from harness.methods.tensors import undivided
from harness.spec import Scheme

BITS = (8, 4, 3, 2)


def quantize(request: QuantizeRequest) -> None:
    gptqmodel.settle()
    from gptqmodel import BACKEND
    from gptqmodel.quantization.config import AWQConfig

    options = request.scheme.options
    config = AWQConfig(bits=int(request.scheme.bits), group_size=int(options["group_size"]), sym=bool(options["sym"]))
    # Without a named backend the library asks for CUDA.
    backend = BACKEND.AWQ_TORCH if request.device == "cpu" else BACKEND.AUTO
    gptqmodel.quantize(request, config, float32=False, batch_size=gptqmodel.batch_size(request), backend=backend)


def supports(scheme: Scheme, shape: Shape | None, device: str) -> str | None:
    reason = undivided(shape, rows=64)  # the clip search works on blocks of 64 rows
    return reason or gptqmodel.supports(scheme, shape, device)


METHOD = Method(
    name="awq",
    title="AWQ",
    version="1",
    bits=BITS,
    options={
        "group_size": Option(default=128, choices=gptqmodel.GROUPS, help="weights that share one scale and zero point"),
        "sym": Option(default=False, choices=(True, False), help="symmetric steps around zero; otherwise with a zero point"),
    },
    engine="transformers",
    kernel_cpu=gptqmodel.kernel_cpu(BITS),
    kernel_cuda={8: "real", 4: "real", 3: "slow", 2: "slow"},
    quantize=quantize,
    load=gptqmodel.load,
    supports=supports,
    bits_per_weight=rtn.bits_per_weight,
    ledger=gptqmodel.ledger,
    kernels=gptqmodel.kernels,
    calibrated=True,
    requirements=gptqmodel.REQUIREMENTS,
    modules=gptqmodel.MODULES,
    preload=gptqmodel.PRELOAD,
    summary="activation-aware scaling and clipping with a little calibration text",
    source="Lin et al. 2023, arXiv:2306.00978; GPTQModel",
)
