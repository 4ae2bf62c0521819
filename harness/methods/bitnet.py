"""bitnet: -1, 0 and 1 with one scale for a matrix, and activations in 8 bits (BitNet b1.58; Ma et al. 2024, arXiv:2402.17764).

A matrix that holds one magnitude beside zero was trained so, and is packed as it is. Any other is rounded by the paper's rule:
its scale is the mean of its absolute values, and what is nearer to it than to zero becomes one step ("absmean"). That destroys
a model that was not trained for it, and its numbers show it.

Artifacts are transformers' own BitNet checkpoints: four weights to a byte, unpacked at each call on every device (packed
memory, no speed). Every layer's inputs are rounded to 8 bits, token by token, when the model runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, LayerKernel, ModelShape, StoredTensor
from harness.formats import bitnet_file, config_json, safetensors_file
from harness.formats.quantization_config import KEY
from harness.methods import against_source, refusals, reload
from harness.methods._kernels import proof
from harness.methods._rounded_inputs import round_inputs_of
from harness.methods.base import Kernel, LoadRequest, Method, QuantizeRequest
from harness.models import build
from harness.spec import Scheme

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BITS = 1.58


def levels(weight: Tensor) -> tuple[Tensor, float]:
    """A matrix as -1, 0 and 1, and its scale: the one magnitude that it holds, or the mean of its absolute values (equation 3 of
    the paper)."""
    import torch

    wide = weight.float()
    magnitude = float(wide.abs().max())
    trained = bool(((wide == 0) | (wide.abs() == magnitude)).all())
    scale = (magnitude or 1.0) if trained else max(float(wide.abs().mean()), 1e-5)  # of zeros alone, any number is one
    return (wide / scale).round().clamp(-1, 1).to(torch.int8), scale


def quantize(request: QuantizeRequest) -> None:
    import torch

    model = build.plain(request.model_dir, torch.bfloat16, "cpu")
    layers = build.decoder_linears(model)
    left = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in layers]
    state: dict[str, Tensor] = {}
    for name, linear in layers.items():
        steps, scale = levels(linear.weight.data)
        state[f"{name}.weight"] = bitnet_file.pack(steps)
        state[f"{name}.{bitnet_file.SCALE}"] = torch.tensor([1 / scale], dtype=torch.bfloat16)  # its class divides by it
        linear.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    state = {**build.own_state(model), **state}
    safetensors_file.save(state, request.out_dir / safetensors_file.MODEL)
    settings = {**bitnet_file.SETTINGS, "modules_to_not_convert": left}
    config_json.write({**config_json.read(request.model_dir), "dtype": "bfloat16", KEY: settings}, request.out_dir)
    write_answers(request)


def write_answers(request: QuantizeRequest) -> None:
    """The reload check's answers: the packed weights, unpacked by this project and run in float32, on inputs rounded to 8 bits.
    The floor is the same in bfloat16."""
    state = dict(bitnet_file.dequantized(request.out_dir))
    dtype = build.unpacked_dtype(sum(t.numel() for t in state.values()))
    model = build.dense(request.model_dir, state, dtype)
    round_inputs_of(build.decoder_linears(model).values(), blocks=())
    rows = reload.rows_for(reload.vocabulary(model), request.calibration)
    name = str(dtype).removeprefix("torch.")
    by = f"the packed weights, unpacked and run in {name} on inputs of 8 bits"
    reload.write(model, rows, request.out_dir, by=by, noisy=lambda: model.bfloat16())


def load(request: LoadRequest) -> PreTrainedModel:
    """The artifact through transformers. On a CPU what its layers have compiled runs as it is written: compiling takes half a
    minute of C++ in every process."""
    import torch

    if request.device == "cpu":
        torch.compiler.set_stance("force_eager")
    return build.plain(request.artifact_dir, torch.bfloat16, request.device)


def kernels(model: PreTrainedModel) -> list[LayerKernel]:
    from transformers.integrations.bitnet import BitLinear

    return [
        proof(name, "BitLinear", module.weight, op="unpack to bfloat16 + aten::linear on inputs of 8 bits", dequantized=False)
        for name, module in model.named_modules()
        if isinstance(module, BitLinear)
    ]


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    packed = bitnet_file.packed_layers(artifact_dir)
    return safetensors_file.ledger(
        artifact_dir, safetensors_file.by_suffix({"weight": "weight", bitnet_file.SCALE: "scale"}, packed)
    )


def weights(request: QuantizeRequest) -> list[HeldWeight]:
    packed = bitnet_file.packed_layers(request.out_dir)
    return against_source.held(
        request.out_dir, ledger(request.out_dir, request.scheme), lambda layer: bitnet_file.shape(packed[layer])
    )


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    return refusals.quantized(shape) or refusals.undivided(shape, rows=bitnet_file.ROWS)


_SLOW: dict[float, Kernel] = {BITS: "slow"}

METHOD = Method(
    name="bitnet",
    title="BitNet b1.58",
    bits=(BITS,),
    kernel_cpu=_SLOW,
    kernel_cuda=_SLOW,
    quantize=quantize,
    load=load,
    supports=supports,
    bits_per_weight=lambda scheme: 2.0,
    ledger=ledger,
    weights=weights,
    kernels=kernels,
    modules=("torch", "transformers", "accelerate"),
    summary="-1, 0 and 1 with one scale for a matrix, activations in 8 bits: for models that were trained so; needs no data",
    source="Ma et al. 2024, arXiv:2402.17764; transformers (BitNetQuantConfig)",
)
