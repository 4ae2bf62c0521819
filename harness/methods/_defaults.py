"""What a method does unless its row says otherwise: its artifacts are safetensors that transformers loads as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, LayerKernel, ModelShape, StoredTensor
from harness.formats import packed_names
from harness.methods import _kernels, against_source, refusals
from harness.models import build
from harness.spec import Running, Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.methods.base import LoadRequest, QuantizeRequest


def load(request: LoadRequest) -> PreTrainedModel:
    """The artifact through transformers; activations in bf16."""
    import torch

    return build.plain(request.artifact_dir, torch.bfloat16, request.device)


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    """Any model that is not quantized yet."""
    return refusals.quantized(shape)


def runs(running: Running, shape: ModelShape | None) -> str | None:
    """In every way that its options name."""
    return None


def bits_per_weight(scheme: Scheme) -> float:
    """The bits that the scheme is named after, for want of an estimate of scales and zero points."""
    return float(scheme.bits)


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return packed_names.ledger(artifact_dir)


def weights(request: QuantizeRequest) -> list[HeldWeight]:
    """Shapes of packed layers as far as their names tell."""
    return against_source.held(request.out_dir, packed_names.ledger(request.out_dir), packed_names.shapes(request.out_dir).get)


def kernels(model: PreTrainedModel) -> list[LayerKernel]:
    return _kernels.of_modules(model)


def sees_text(scheme: Scheme) -> bool:
    return True
