"""gptq: rounds column by column and spreads each error over the columns still to come, weighted by the inputs' second moments
(Frantar et al., GPTQ, 2022). `gptaq` also corrects for the error that earlier layers leave in the inputs (Li et al., 2025).
"""

from __future__ import annotations

from harness.artifact import ModelShape
from harness.methods import _gptqmodel, _mixture, _recipe
from harness.methods.base import Option, QuantizeRequest, Range
from harness.spec import Scheme

BITS = (8, 4, 3, 2)
ORDERS = ("grouped", "sorted", "none")
KEYS = (
    *("bits", "group_size", "sym", "mse", "desc_act", "act_group_aware", "damp_percent", "static_groups"),
    *("fallback", "hessian", "gptaq", "foem"),
)
"""What GPTQModel reads of a pattern of its `dynamic` for this method (looper/gptq_processor.py of 7.6)."""


def quantize(request: QuantizeRequest) -> None:
    _gptqmodel.import_library()
    from gptqmodel.quantization.config import GPTAQConfig, QuantizeConfig

    options = request.scheme.options
    order = str(options["act_order"])
    mixture = _gptqmodel.mixture_of(request)
    config = QuantizeConfig(
        bits=_mixture.main(request, mixture),
        dynamic=_gptqmodel.dynamic_of(request, mixture),
        group_size=int(options["group_size"]),
        sym=bool(options["sym"]),
        desc_act=order == "sorted",
        act_group_aware=order == "grouped",
        true_sequential=bool(options["true_sequential"]),
        damp_percent=float(options["damp"]),
        mse=float(options["mse"]),
        pack_impl="original",
        **({"gptaq": GPTAQConfig()} if options["gptaq"] else {}),
    )
    _gptqmodel.quantize(request, config, float32=True, mixture=mixture, batch_size=_gptqmodel.batch_size(request))


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if scheme.options["group_size"] == -1 and scheme.options["act_order"] == "grouped":
        return "act_order: grouped orders groups, and a whole channel is only one; write act_order: none, or sorted"
    return _gptqmodel.supports(scheme, shape, device)


METHOD = _gptqmodel.row(
    name="gptq",
    version="2",
    title="GPTQ",
    bits=BITS,
    options={
        "group_size": Option(
            default=128,
            choices=_gptqmodel.ANY_GROUPS,
            help="weights that share one scale and zero point; channel: all of an output",
        ),
        "sym": Option(default=True, choices=(True, False), help="symmetric steps around zero; otherwise with a zero point"),
        "act_order": Option(
            default="grouped",
            choices=ORDERS,
            help="order of the columns: grouped = important first, groups kept whole (no cost when running); sorted = "
            "classic act-order (desc_act); none = as they come",
        ),
        "true_sequential": Option(
            default=True, choices=(True, False), help="quantize the layers of a block one after another, each on quantized inputs"
        ),
        "gptaq": Option(
            default=False, choices=(True, False), help="asymmetric calibration (GPTAQ): corrects earlier layers' error"
        ),
        "damp": Option(
            default=0.05,
            types=(float,),
            within=Range(above=0, below=1),
            help="share of the mean diagonal added to the second moments",
        ),
        "mse": Option(
            default=0.0,
            types=(float, int),
            within=Range(least=0, most=8),  # beyond, powers of small errors are 0 in float32, and no scale is better than another
            help="search each scale by this norm of the rounding error (2.4 is usual); 0 = off",
        ),
    },
    quantize=_recipe.explained(quantize, "GPTQModel"),
    recipe=_recipe.dynamic_file(KEYS),
    supports=supports,
    mixing=_mixture.GPTQ,
    summary="second-order rounding with calibration text",
    source="Frantar et al. 2022, arXiv:2210.17323; GPTQModel",
)
