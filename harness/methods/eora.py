"""eora: a GPTQ base with a low-rank adapter that is computed, not trained (Liu et al., EoRA, 2024).

What rounding has changed of a layer's weight is projected into the space in which the layer's inputs lie (eigenvectors of their
second moments on the calibration rows), and its largest parts there become the adapter: what is left hurts the outputs least.
GPTQModel computes it on the artifact that `gptq` has written. It is the training-free relative of gptq+lora: stored, counted and
run as its adapter is (lora.py), and never merged. Its answers are held against the baseline's, as those of any rounding.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness.formats import safetensors_file
from harness.methods import _gptqmodel, lora
from harness.methods.base import QuantizeRequest


def quantize(request: QuantizeRequest) -> None:
    names = lora.packed_base(lora.GPTQ_BASE, request)
    with tempfile.TemporaryDirectory(prefix="eora-") as place:
        _generate(request, Path(place))
        held = safetensors_file.tensors_of(Path(place) / lora.TENSORS)
    lora.finish(lora.GPTQ_BASE, request, {name.removeprefix(lora.PREFIX): tensor for name, tensor in held.items()}, names)


def _generate(request: QuantizeRequest, folder: Path) -> None:
    """Has GPTQModel write the adapter of the packed base into a folder."""
    _gptqmodel.import_library()
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.adapter.adapter import Lora

    rows = [{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in request.calibration or ()]
    GPTQModel.adapter.generate(
        adapter=Lora(path=str(folder), rank=int(request.scheme.options["rank"])),
        model_id_or_path=str(request.model_dir),
        quantized_model_id_or_path=str(request.out_dir),
        calibration_dataset=rows,
        batch_size=_gptqmodel.batch_size(request),
        dtype=torch.bfloat16,  # its kernel takes 16 bits only
        device=request.device,
    )


METHOD = lora.row(
    lora.GPTQ_BASE,
    name="eora",
    title="EoRA",
    bits=(4.0, 3.0, 2.0),
    options=("group_size",),
    quantize=quantize,
    summary="a GPTQ base and a low-rank adapter computed from what rounding changed, without training",
    source="Liu et al. 2024, arXiv:2410.21271; GPTQModel",
)
