"""ft, ft+ptq and qat: three cells that belong together, and ask whether training with rounded weights pays.

All three see the same rows in the same order for the same steps at the same rate (`train:` of the suite). `ft` trains the plain
model and stores it unquantized; `ft+ptq` rounds those weights afterwards; `qat` trains with the weights rounded in every forward
pass (fake quantization, torchao's QATConfig; gradients pass the rounding unchanged, Bengio et al. 2013) and rounds them so at
the end. What qat gains over plain rounding may be the training's and not the rounding's: only against ft+ptq is it its own.

All parameters are trained, embeddings and norms too, from the source's weights and in float32; what is stored and rounded are the
trained weights in bfloat16, as every source's are. They are kept beside the cache's artifacts (training/weights.py), and the
artifact is compared with *them*: with the source it has nothing in common but its shapes. So no answers of these cells are held
against the baseline's, which says nothing of a model that was trained on; the record says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, ModelShape
from harness.formats import safetensors_file
from harness.methods import _gptqmodel, _packed_intx, against_source, native, refusals, reload
from harness.methods.base import LoadRequest, Method, QuantizeRequest
from harness.models import build
from harness.spec import Json, Scheme
from harness.training import weights
from harness.training.loop import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recipe(request: QuantizeRequest) -> Recipe:
    """What the scheme's option `train` asks for."""
    return Recipe(**request.scheme.options["train"])


def trained_weights(request: QuantizeRequest) -> Path:
    """The folder with the weights that a cell's artifact is made of, once they are trained."""
    assert request.training is not None
    return weights.view(request.training)


Change = Callable[["PreTrainedModel"], None]


def _unchanged(model: PreTrainedModel) -> None:
    """Plain training rounds nothing."""


def _trained(request: QuantizeRequest, *, prepare: Change = _unchanged, restore: Change = _unchanged) -> Path:
    """The weights of training, made now or before. `prepare` and `restore`: of `weights.trained`."""
    assert request.calibration is not None
    assert request.training is not None
    return weights.trained(
        request.model_dir,
        request.calibration,
        recipe(request),
        folder=request.training,
        device=request.device,
        progress=request.progress,
        prepare=prepare,
        restore=restore,
    )


def _rounding(request: QuantizeRequest) -> Path:
    """The weights of training with rounded weights, made now or before."""
    import torch
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    def prepare(model: PreTrainedModel) -> None:
        layers = set(build.decoder_linears(model))
        config = QATConfig(_packed_intx.config(request.scheme), step="prepare")
        quantize_(model, config, filter_fn=lambda _, name: name in layers)

    def restore(model: PreTrainedModel) -> None:
        # Without a base: plain layers again. Only they are asked, for what matches is not looked into.
        quantize_(model, QATConfig(step="convert"), filter_fn=lambda module, _: isinstance(module, torch.nn.Linear))

    return _trained(request, prepare=prepare, restore=restore)


def _note(request: QuantizeRequest) -> None:
    assert request.training is not None
    weights.note_log(request.training, request.out_dir)


def _quantize_ft(request: QuantizeRequest) -> None:
    import torch

    trained = _trained(request)
    model = build.plain(trained, torch.bfloat16, request.device)
    safetensors_file.save(safetensors_file.tensors(trained, device="cpu"), request.out_dir / safetensors_file.MODEL)
    (request.out_dir / "config.json").write_bytes((trained / "config.json").read_bytes())
    rows = reload.rows_for(reload.vocabulary(model), request.calibration)
    reload.write(model, rows, request.out_dir, by="the trained model in memory")
    _note(request)


def _quantize_ptq(request: QuantizeRequest) -> None:
    _packed_intx.write(request, _trained(request))
    _note(request)


def _quantize_qat(request: QuantizeRequest) -> None:
    _packed_intx.write(request, _rounding(request))
    _note(request)


def _load_ft(request: LoadRequest) -> PreTrainedModel:
    import torch

    return build.plain(request.artifact_dir, torch.bfloat16, request.device)


def _weights_ft(request: QuantizeRequest) -> list[HeldWeight]:
    return against_source.held(request.out_dir, native.ledger(request.out_dir, request.scheme))


def _supports_ft(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    return refusals.quantized(shape)


ALL_WEIGHTS = "all weights"
"""What is trained without any rounding, so that no library but torch decides it."""


def _trains_plain(scheme: Scheme) -> Json:
    return ALL_WEIGHTS


def _trains_rounded(scheme: Scheme) -> Json:
    return {"rounded": [scheme.bits, *(scheme.options[name] for name in ("type", "group_size"))]}


FT = Method(
    name="ft",
    title="Fine-tuned",
    bits=(16.0,),
    kernel_cpu={16.0: "real"},
    kernel_cuda={16.0: "real"},
    quantize=_quantize_ft,
    load=_load_ft,
    supports=_supports_ft,
    ledger=native.ledger,
    weights=_weights_ft,
    compared_with=trained_weights,
    kernels=native.kernels,
    calibrated=True,
    trains=_trains_plain,
    modules=("torch", "transformers", "safetensors"),
    summary="the source trained a little further and not quantized: the control of ft+ptq and qat, and no baseline",
    source="AdamW (Loshchilov and Hutter 2019), arXiv:1711.05101",
)

FT_PTQ = Method(
    name="ft+ptq",
    title="Fine-tuned, then rounded",
    bits=_packed_intx.BITS,
    options=_packed_intx.OPTIONS,
    kernel_cpu={bits: "real" if bits == 4 else "slow" for bits in _packed_intx.BITS},
    kernel_cuda=_gptqmodel.KERNEL_CUDA,
    quantize=_quantize_ptq,
    load=_packed_intx.load,
    supports=_packed_intx.supports,
    bits_per_weight=_gptqmodel.bits_per_weight,
    ledger=_gptqmodel.ledger,
    weights=_gptqmodel.weights,
    compared_with=trained_weights,
    kernels=_packed_intx.kernels,
    takes=("linear",),
    calibrated=True,
    trains=_trains_plain,
    requirements=("torchao>=0.18,<0.19", *_gptqmodel.REQUIREMENTS),
    extra="training",
    modules=("torch", "transformers", "torchao", "gptqmodel"),
    preload=("torchao.quantization", *_gptqmodel.PRELOAD),
    branch_modules=_gptqmodel.BRANCH_MODULES,
    summary="ft's weights in torchao's plain rounding, packed in the GPTQ format: what qat has to beat",
    source="torchao (IntxWeightOnlyConfig); PyTorch's own quantization",
)

QAT = replace(
    FT_PTQ,
    name="qat",
    title="Quantization-aware training",
    quantize=_quantize_qat,
    trains=_trains_rounded,
    controls=("ft", "ft+ptq"),
    summary="trained with the weights rounded in every pass (torchao's QATConfig), then rounded so; stands beside ft and ft+ptq",
    source="torchao (QATConfig); Jacob et al. 2018, arXiv:1712.05877",
)
