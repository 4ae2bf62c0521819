"""autoawq: AWQ by AutoAWQ 0.2.9, the library that made it common and is no longer maintained; awq is its successor.

Computes in float16 on a GPU and in float32 on a CPU, and rounds from float16 as it always has. On a CPU its search for scales
restores the weights after each candidate from what it takes for a copy on the CPU, which there is the weight itself: `_copies`
hands it a real one, without which every layer would keep the first candidate's scaling. Four bits with zero points in the GEMM
layout are what it packs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.artifact import ModelShape
from harness.methods import _gptqmodel, _transformers4, refusals
from harness.methods.base import Option, QuantizeRequest
from harness.spec import Scheme

if TYPE_CHECKING:
    import torch
    from awq.quantize.quantizer import AwqQuantizer
    from torch import Tensor

BITS = (4,)
_KNOWN = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "mixtral", "gemma", "opt", "bloom", "gpt_neox", "gptj", "falcon", "phi3"}
)


def quantize(request: QuantizeRequest) -> None:
    import torch
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    rows, written = [list(row) for row in request.calibration or ()], request.out_dir / "written"
    group = int(request.scheme.options["group_size"])
    with _transformers4.older_source(request) as older, _copies():
        model = AutoAWQForCausalLM.from_pretrained(
            str(older.model_dir),
            torch_dtype=torch.float32 if request.device == "cpu" else torch.float16,
            device_map=request.device,
            trust_remote_code=False,
        )
        model.quantize(
            AutoTokenizer.from_pretrained(str(older.model_dir), trust_remote_code=False),
            quant_config={"zero_point": True, "q_group_size": group, "w_bit": 4, "version": "GEMM"},
            calib_data=rows,
            max_calib_samples=len(rows),
            max_calib_seq_len=max(map(len, rows), default=1),
            n_parallel_calib_samples=_gptqmodel.batch_size(request),
        )
        model.save_quantized(str(written))
        entry = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
        _transformers4.write_artifact(older, request.model_dir, written, entry)


@contextmanager
def _copies() -> Iterator[None]:
    """Inside, the library's search for scales restores weights from copies of its own."""
    from awq.quantize.quantizer import AwqQuantizer

    library = AwqQuantizer._compute_best_scale

    def search(
        self: AwqQuantizer,
        x: Tensor,
        w_mean: Tensor,
        x_mean: Tensor,
        module2inspect: torch.nn.Module,
        *rest: object,
        **named: object,
    ) -> Tensor:
        kept = module2inspect.state_dict

        def copies() -> dict[str, Tensor]:
            return {name: tensor.clone() for name, tensor in kept().items()}

        module2inspect.state_dict = copies  # type: ignore[assignment,method-assign]  # of this module, for this search
        try:
            best: Tensor = library(self, x, w_mean, x_mean, module2inspect, *rest, **named)
            return best
        finally:
            del module2inspect.state_dict

    AwqQuantizer._compute_best_scale = search
    try:
        yield
    finally:
        AwqQuantizer._compute_best_scale = library


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    reason = refusals.undivided(shape, rows=64)  # the clip search works on blocks of 64 rows
    return _transformers4.unsupported(shape, _KNOWN, "AutoAWQ") or reason or _gptqmodel.supports(scheme, shape, device)


METHOD = _transformers4.row(
    name="autoawq",
    title="AutoAWQ",
    bits=BITS,
    options={"group_size": Option(default=128, choices=_gptqmodel.GROUPS, help="weights that share one scale and zero point")},
    kernel_cuda={4: "real"},
    quantize=quantize,
    supports=supports,
    loaded_by="awq",
    library="awq",
    folds=True,
    summary="the original AWQ library, unmaintained; its checkpoints run on GPTQModel's kernels",
    source="Lin et al. 2023, arXiv:2306.00978; github.com/casper-hansen/AutoAWQ",
)
