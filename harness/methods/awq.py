"""awq: scales up the input channels that matter, so that rounding hurts them less, and clips each group where that helps
(Lin et al., AWQ, 2023).

The library searches 20 scalings per group of layers, running all calibration tokens through the block for each: that part
grows with the calibration text, and the paper (section 5.3) finds the search content with a tenth of the text that GPTQ
needs. Its clip search computes every weight's product with 512 tokens for each of ten bounds; `best_clip` finds the same
bounds from the inputs' second moments instead, which costs about a fiftieth of the arithmetic, and takes its place.

Computes in float16 on a GPU, as the method's own code does (in bfloat16 the eight-bit codes of the search would be rounded), and
in float32 on a CPU, most of which multiply float16 in plain loops: three times faster where that was measured. The library was
not made for that, so `_float32` puts two things right for as long as it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from harness.artifact import ModelShape
from harness.methods import _gptqmodel, refusals
from harness.methods.base import Elsewhere, Option, QuantizeRequest
from harness.spec import Scheme

if TYPE_CHECKING:
    import torch
    from gptqmodel.looper.awq_processor import AWQProcessor
    from gptqmodel.looper.named_module import NamedModule
    from torch import Tensor

BITS = (8, 4, 3, 2)


def quantize(request: QuantizeRequest) -> None:
    _gptqmodel.import_library()
    from gptqmodel import BACKEND
    from gptqmodel.quantization.config import AWQConfig

    options = request.scheme.options
    config = AWQConfig(bits=int(request.scheme.bits), group_size=int(options["group_size"]), sym=bool(options["sym"]))
    # Without a named backend the library asks for CUDA.
    backend = BACKEND.AWQ_TORCH if request.device == "cpu" else BACKEND.AUTO
    float32 = request.device == "cpu"
    with _moments_for_clip(), _float32() if float32 else nullcontext():
        _gptqmodel.quantize(request, config, float32=float32, batch_size=_gptqmodel.batch_size(request), backend=backend)


def best_clip(weight: Tensor, inputs: Tensor, *, bits: int, sym: bool, group: int, grid: int = 20, shrink: float = 0.5) -> Tensor:
    """The clipping bound of each group that disturbs the layer's output least: [rows, groups, 1], float32.

    `weight` [rows, columns], `inputs` [tokens, columns]. Candidates are the group's largest weight times 1, 1 - 1/grid, ...
    down to 1 - shrink. With d = rounded(clipped w) - w, the mean squared disturbance over the tokens, mean (d x)^2, is
    d' M d with M = mean x x' per group, so the tokens enter once, through M.
    """
    import torch

    rows = weight.shape[0]
    w = weight.float().reshape(rows, -1, group).transpose(0, 1)  # [groups, rows, group]
    x = inputs.float().reshape(-1, w.shape[0], group).transpose(0, 1)  # [groups, tokens, group]
    moments = x.transpose(1, 2) @ x / x.shape[1]
    largest = w.abs().amax(dim=-1, keepdim=True)
    best, least = largest.clone(), torch.full_like(largest, float("inf"))
    for step in range(int(shrink * grid)):
        bound = largest * (1 - step / grid)
        d = _rounded(torch.clamp(w, -bound, bound), bits, sym) - w
        error = ((d @ moments) * d).sum(dim=-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, bound, best)
    return best.transpose(0, 1).contiguous()


def _rounded(w: Tensor, bits: int, sym: bool) -> Tensor:
    """`w` on the steps of its groups (last axis), as the format rounds it."""
    import torch

    if sym:
        top = (1 << bits - 1) - 1
        scale = w.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5) / top
        return torch.clamp(torch.round(w / scale), -top - 1, top) * scale
    low, high, top = w.amin(dim=-1, keepdim=True), w.amax(dim=-1, keepdim=True), (1 << bits) - 1
    scale = (high - low).clamp(min=1e-5) / top
    zero = (-torch.round(low / scale)).clamp(0, top)
    return (torch.clamp(torch.round(w / scale) + zero, 0, top) - zero) * scale


@contextmanager
def _moments_for_clip() -> Iterator[None]:
    """Inside, the library's clip search is `best_clip` on the tokens it would have sampled."""
    from gptqmodel.looper.awq_processor import AWQProcessor

    library = AWQProcessor._compute_best_clip

    def search(
        self: AWQProcessor,
        w: Tensor,
        input_feat: Tensor,
        n_grid: int = 20,
        max_shrink: float = 0.5,
        n_sample_token: int = 512,
    ) -> Tensor:
        inputs = input_feat.view(-1, input_feat.shape[-1])
        inputs = inputs[:: max(1, inputs.shape[0] // n_sample_token)].to(w.device)
        group = self.qcfg.group_size if self.qcfg.group_size > 0 else w.shape[1]
        bound = best_clip(w, inputs, bits=self.qcfg.bits, sym=self.qcfg.sym, group=group, grid=n_grid, shrink=max_shrink)
        return bound.to(w.dtype)

    AWQProcessor._compute_best_clip = search
    try:
        yield
    finally:
        AWQProcessor._compute_best_clip = library


@contextmanager
def _float32() -> Iterator[None]:
    """Inside, the library searches and packs float32 weights on a CPU.

    Its scale search restores each weight from `weight.detach().to(float32).cpu().contiguous()`, which on a CPU and in float32 is
    the weight itself: every candidate would be rounded on top of the one before. And its packed layer takes 16-bit weights only,
    which at that point already lie on the steps: half moves them by less than a tenth of one, at 8 bits.
    """
    from gptqmodel.looper.awq_processor import AWQProcessor

    searching, packing = AWQProcessor._compute_best_scale, AWQProcessor.pack_module

    def search(
        self: AWQProcessor,
        x: Tensor,
        w_mean: Tensor,
        x_mean: Tensor,
        inspected: torch.nn.Module,
        linears: list[torch.nn.Linear],
        *rest: object,
        **named: object,
    ) -> tuple[Tensor, float]:
        for linear in linears:
            linear.weight.detach = linear.weight.data.clone  # type: ignore[method-assign]  # of this tensor, for this search
        try:
            best: tuple[Tensor, float] = searching(self, x, w_mean, x_mean, inspected, linears, *rest, **named)
            return best
        finally:
            for linear in linears:
                del linear.weight.detach

    def pack(self: AWQProcessor, module: NamedModule) -> None:
        layer = self.gptq_model.model.get_submodule(module.full_name)
        layer.weight.data = layer.weight.data.half()
        packing(self, module)

    AWQProcessor._compute_best_scale, AWQProcessor.pack_module = search, pack
    try:
        yield
    finally:
        AWQProcessor._compute_best_scale, AWQProcessor.pack_module = searching, packing


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    taken = _gptqmodel.taken_of(shape)
    return (
        refusals.left_by(shape, lambda weight: weight.kind != "conv1d" and taken(weight), scheme.method)
        or refusals.undivided(shape, rows=64, taken=taken)  # the clip search works on blocks of 64 rows
        or _gptqmodel.supports(scheme, shape, device)
    )


UNTAKEN = {
    **_gptqmodel.UNTAKEN,
    "bloom": "GPTQModel's AWQ runs Bloom's attention without its residual, and ends",
    "gemma3_text": "GPTQModel's AWQ runs Gemma 3's rotary positions without the type of the layer, and ends",
    "gpt_neo": "GPTQModel's AWQ runs GPT-Neo's attention without its mask's length, and ends",
    "opt": "GPTQModel's AWQ scales layers of OPT and divides none of the weights before them, so that its answers are wrong "
    "at any width",
}
"""Architectures that GPTQModel 7.6 was tried on, by model type."""

METHOD = _gptqmodel.row(
    name="awq",
    title="AWQ",
    version="3",
    bits=BITS,
    options={
        "group_size": Option(default=128, choices=_gptqmodel.GROUPS, help="weights that share one scale and zero point"),
        "sym": Option(default=False, choices=(True, False), help="symmetric steps around zero; otherwise with a zero point"),
    },
    kernel_cuda={8: "real", 4: "real", 3: "slow", 2: "slow"},
    engines={"vllm": Elsewhere(cpu={4: "real"}, cuda={4: "real"})},  # auto_awq.py of vLLM 0.32 takes 4 bits only
    quantize=quantize,
    supports=supports,
    folds=True,
    untaken=UNTAKEN,
    summary="activation-aware scaling and clipping with a little calibration text",
    source="Lin et al. 2023, arXiv:2306.00978; GPTQModel",
)
