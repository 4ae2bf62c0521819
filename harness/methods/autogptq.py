"""autogptq: GPTQ by AutoGPTQ 0.7.1, the library that made it common and is no longer maintained; gptq is its successor.

It asks for CUDA where it needs none; on a CPU its device is pointed there and its wait for CUDA left out. It computes in float32
on a CPU and in float16 on a GPU, and packs from float16 as it always has. Of steps with a zero point it stores the zero point 0
as a code that runs over its neighbours, so only symmetric steps are offered.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from harness.artifact import ModelShape
from harness.methods import _gptqmodel, _transformers4
from harness.methods.base import Option, QuantizeRequest, Range
from harness.models import build
from harness.spec import Scheme

BITS = (8, 4, 3, 2)
_KNOWN = frozenset({"llama", "mistral", "qwen2", "mixtral", "gemma", "opt", "bloom", "gpt_neox", "gptj", "gpt2", "falcon", "phi"})


def quantize(request: QuantizeRequest) -> None:
    import torch
    from auto_gptq import BaseQuantizeConfig
    from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP

    options = request.scheme.options
    settings: dict[str, int | float | bool] = {
        "bits": int(request.scheme.bits),
        "group_size": int(options["group_size"]),
        "desc_act": bool(options["act_order"]),
        "sym": True,
        "true_sequential": bool(options["true_sequential"]),
        "damp_percent": float(options["damp"]),
    }
    written = request.out_dir / "written"
    with _transformers4.older_source(request) as older, _on(request.device):
        plain = build.plain(older.model_dir, torch.float32 if request.device == "cpu" else torch.float16, request.device)
        kind = GPTQ_CAUSAL_LM_MODEL_MAP[plain.config.model_type]
        model = kind(plain, False, BaseQuantizeConfig(**settings))
        rows = [{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in request.calibration or ()]
        model.quantize(rows, batch_size=_gptqmodel.batch_size(request))
        model.save_quantized(str(written))
        entry = {**settings, "quant_method": "gptq", "checkpoint_format": "gptq"}
        _transformers4.write_artifact(older, request.model_dir, written, entry)


@contextmanager
def _on(device: str) -> Iterator[None]:
    """Inside, the library works on `device`, and packs from float16."""
    import torch
    from auto_gptq.modeling import _base

    before, packing, waiting = _base.CUDA_0, _base.pack_model, torch.cuda.synchronize
    _base.CUDA_0 = torch.device(device)
    _base.pack_model = lambda model, **named: packing(model=model.half(), **named)
    if device == "cpu":
        torch.cuda.synchronize = lambda *_, **__: None
    logging.getLogger("auto_gptq").setLevel(logging.WARNING)
    try:
        yield
    finally:
        _base.CUDA_0, _base.pack_model, torch.cuda.synchronize = before, packing, waiting


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    return _transformers4.unsupported(shape, _KNOWN, "AutoGPTQ") or _gptqmodel.supports(scheme, shape, device)


METHOD = _transformers4.row(
    name="autogptq",
    title="AutoGPTQ",
    bits=BITS,
    options={
        "group_size": Option(default=128, choices=_gptqmodel.GROUPS, help="weights that share one scale and zero point"),
        "act_order": Option(default=False, choices=(True, False), help="most important columns first (desc_act)"),
        "true_sequential": Option(
            default=True, choices=(True, False), help="quantize the layers of a block one after another, each on quantized inputs"
        ),
        "damp": Option(
            default=0.01,
            types=(float,),
            within=Range(above=0, below=1),
            help="share of the mean diagonal added to the second moments",
        ),
    },
    quantize=quantize,
    supports=supports,
    loaded_by="gptq",
    library="auto_gptq",
    summary="the original GPTQ library, unmaintained; its checkpoints run on GPTQModel's kernels",
    source="Frantar et al. 2022, arXiv:2210.17323; github.com/AutoGPTQ/AutoGPTQ",
)
