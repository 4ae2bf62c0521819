"""llmcompressor: vLLM's quantization toolkit, in an environment of its own (it pins an older transformers).

Writes compressed-tensors checkpoints, the format that vLLM serves with fast kernels on CUDA. Transformers, which runs the cells
here, decompresses every layer to 16 bits at the first forward, on every device: the accuracy is that of the scheme, memory and
speed are not, so every cell is simulated and shows neither.

`activations: 8` rounds the inputs of every linear layer to eight bits per token while the model runs (the library does it in
floating point); `smooth` moves their outliers into the weights first (Xiao et al., SmoothQuant, 2023). That is the default at 8
bits, W8A8. `type: float` is FP8 (e4m3), `nv` and `mx` are the FP4 formats NVFP4 and MXFP4 with 16-bit activations, which need a
GPU of the newest kind for anything but this simulation.

`recipe` takes a file in the library's own words in the place of all of that; what it did is read back from the artifact.

Reload check: weight-only artifacts are unpacked by this project and run in float32; where activations are rounded, the library's
model in memory answers instead, because that rounding is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness import recipes
from harness.artifact import HeldWeight, LayerKernel, ModelShape
from harness.errors import BadInput, Unsupported
from harness.formats import compressed_tensors
from harness.methods import _defaults, _llmcompressor_recipe, _recipe, against_source, refusals, reload
from harness.methods._gptqmodel import batch_size
from harness.methods._kernels import held_wide, proof
from harness.methods.base import Elsewhere, Kernel, LoadRequest, Method, Option, QuantizeRequest, Range
from harness.models import build
from harness.spec import Scheme

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier
    from torch import Tensor
    from transformers import PreTrainedModel

BITS = (8.0, 4.0, 3.0, 2.0)
TYPES = ("int", "float", "nv", "mx")
_PRESETS = {"float": "FP8_DYNAMIC", "nv": "NVFP4A16", "mx": "MXFP4A16"}
_BITS_OF = {"float": 8.0, "nv": 4.0, "mx": 4.0}
_GROUP_OF = {"float": -1, "nv": 16, "mx": 32}
WIDE = 16.0
"""Bits of a weight that is left as it was."""


def quantize(request: QuantizeRequest) -> None:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoTokenizer

    from harness.scoring.widened import products

    options, rows = request.scheme.options, [list(row) for row in request.calibration or ()]
    model = build.plain(request.model_dir, torch.bfloat16, request.device)
    recipe = recipes.of(request.scheme)
    needed = recipe is not None or options["algorithm"] != "rtn" or float(options["smooth"]) > 0
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}) if needed else None
    with _unpinned(request.device), _llmcompressor_recipe.without_code(), products(torch.device(request.device), torch.bfloat16):
        oneshot(
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(str(request.model_dir), trust_remote_code=False),
            recipe=_modifiers(request.scheme) if recipe is None else recipe.text,
            dataset=data,
            num_calibration_samples=len(rows),
            max_seq_length=max(map(len, rows), default=1),
            batch_size=batch_size(request),
            shuffle_calibration_samples=False,
        )
    model.eval()
    own = recipe is not None
    if own and _recipe.tied(request.model_dir) and _llmcompressor_recipe.quantizes_head(model):
        raise Unsupported(_recipe.TIED)
    rounded = _llmcompressor_recipe.rounds_activations(model) if own else _rounds_activations(request.scheme)
    if rounded:
        positions = reload.rows_for(int(model.config.vocab_size), request.calibration)
        reload.write(model, positions, request.out_dir, by="the quantizing library's model in memory")
    model.save_pretrained(str(request.out_dir), save_compressed=True)
    if not rounded:
        wide = build.unpacked_dtype(sum(p.numel() for p in model.parameters()))
        del model
        state = compressed_tensors.dequantize(request.out_dir, _one_width(request.scheme), wide)
        reload.write_dense(request, state, "the packed weights, unpacked and run in float32")


def _rounds_activations(scheme: Scheme) -> bool:
    return scheme.options["type"] == "float" or int(scheme.options["activations"]) < 16


def _one_width(scheme: Scheme) -> int | None:
    """The bits of all codes; None where a recipe says them by layer."""
    return int(scheme.bits) if recipes.of(scheme) is None else None


def _modifiers(scheme: Scheme) -> list[Modifier]:
    """The library's modifiers of a scheme, in the order they run."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    options, kind = scheme.options, str(scheme.options["type"])
    what: dict[str, object] = {"targets": ["Linear"], "ignore": ["lm_head"]}
    if kind == "int":
        group = int(options["group_size"])
        weights: dict[str, object] = {
            "num_bits": int(scheme.bits),
            "type": "int",
            "symmetric": bool(options["sym"]),
            "dynamic": False,
        }
        weights |= {"strategy": "group", "group_size": group} if group > 0 else {"strategy": "channel"}
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        group_0: dict[str, object] = {"targets": ["Linear"], "weights": weights}
        if int(options["activations"]) < 16:
            group_0["input_activations"] = inputs
        what = {"ignore": ["lm_head"], "config_groups": {"group_0": group_0}}
    else:
        what["scheme"] = _PRESETS[kind]
    first: list[Modifier] = []
    if float(options["smooth"]) > 0:
        first.append(SmoothQuantModifier(smoothing_strength=float(options["smooth"])))
    if options["algorithm"] == "awq":
        first.append(AWQModifier())
    return [*first, (GPTQModifier if options["algorithm"] == "gptq" else QuantizationModifier)(**what)]


@contextmanager
def _unpinned(device: str) -> Iterator[None]:
    """Inside, the library does not pin memory on a machine without an accelerator, where its AWQ would stop at that."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    library = IntermediatesCache.pin_memory
    if device == "cpu":
        IntermediatesCache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = library


def load(request: LoadRequest) -> PreTrainedModel:
    """The artifact through transformers, brought to where it stays: layers are decompressed at the first forward."""
    import torch

    model = _defaults.load(request)
    with torch.inference_mode():
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=request.device), use_cache=False)
    return model


def kernels(model: PreTrainedModel) -> list[LayerKernel]:
    """Every linear layer of the decoder: the dtype that its weight is held in once the model has answered."""
    proofs = []
    for name, module in build.decoder_linears(model).items():
        weight = next((t for part in ("weight", "weight_packed") if (t := getattr(module, part, None)) is not None), None)
        if weight is None:
            raise BadInput(f"{name} holds no weight that is known here; its kernel cannot be told")
        op = "decompressed once + aten::linear" if held_wide(weight) else "decompressed + aten::linear"
        proofs.append(proof(name, type(module).__name__, weight, op=op))
    return proofs


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    def dense(layer: str) -> Tensor:
        return compressed_tensors.weight(request.out_dir, layer, _one_width(request.scheme))

    def shape(layer: str) -> tuple[int, ...]:
        return tuple(dense(layer).shape)

    rows = compressed_tensors.ledger(request.out_dir, request.scheme)
    return against_source.held(request.out_dir, rows, shape, dense)


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if recipes.of(scheme) is not None:
        return refusals.quantized(shape)
    options, kind = scheme.options, str(scheme.options["type"])
    group, smooth = int(options["group_size"]), float(options["smooth"])
    if reason := refusals.quantized(shape):
        return reason
    if smooth and not _rounds_activations(scheme):
        return "smooth belongs to rounded activations; write smooth: 0, or activations: 8"
    if kind != "int":
        if scheme.bits != _BITS_OF[kind]:
            return f"type {kind} is a format of {_BITS_OF[kind]:g} bits; write bits: {_BITS_OF[kind]:g}, or leave type out"
        if options["algorithm"] != "rtn":
            return f"type {kind} is offered with algorithm: rtn only; write that"
        if not options["sym"]:
            return f"type {kind} has no zero points; leave sym out"
        if group != _GROUP_OF[kind]:
            return f"type {kind} has groups of its own; write group_size: {_GROUP_OF[kind]}"
        if int(options["activations"]) != (8 if kind == "float" else 16):
            return f"type {kind} settles how activations are rounded; leave activations out"
        return refusals.undivided(shape, columns=max(group, 1))
    if int(options["activations"]) < 16 and not options["sym"] and scheme.bits == 8:
        return "eight bits with rounded activations are symmetric; leave sym out"
    if options["algorithm"] == "awq" and group < 0:
        return "awq is offered in groups; write group_size: 32, 64 or 128"
    return refusals.undivided_groups(shape, group)


def bits_per_weight(scheme: Scheme) -> float:
    """Codes, a 16-bit scale per group and, unless symmetric, a zero point of `bits`; NVFP4 has a byte per 16 weights, MXFP4 one
    per 32. One scale per row (16 / columns) is left out. Of a recipe the bits that the suite says, or the most that it can be."""
    if recipes.of(scheme) is not None:
        return scheme.bits or WIDE
    kind, group = str(scheme.options["type"]), int(scheme.options["group_size"])
    if kind != "int":
        return {"float": 8.0, "nv": 4.5, "mx": 4.25}[kind]
    extra = 16 + (0 if scheme.options["sym"] else scheme.bits)
    return scheme.bits + (extra / group if group > 0 else 0)


def _by_vllm(scheme: Scheme, device: str) -> str | None:
    """What vLLM 0.32 has no kernel for, by the type and by how activations are rounded."""
    options, kind = scheme.options, str(scheme.options["type"])
    if device != "cpu":
        return None
    if kind in ("nv", "mx"):
        return f"vLLM has no kernel on a CPU for type {kind}; it runs on a GPU"
    if kind == "int" and scheme.bits == 8 and int(options["activations"]) > 8:
        return "vLLM's kernel for 8-bit integers on a CPU rounds activations too; write activations: 8"
    if kind == "int" and scheme.bits == 4 and int(options["activations"]) < 16:
        return "vLLM's kernel for 4-bit integers on a CPU takes weights alone; write activations: 16"
    return None


_SIMULATED: dict[float, Kernel] = dict.fromkeys(BITS, "simulated")

METHOD = Method(
    name="llmcompressor",
    title="LLM Compressor",
    bits=BITS,
    options={
        "type": Option(
            default="int", choices=TYPES, help="int; float = FP8 weights and activations (8 bits); nv, mx = NVFP4, MXFP4 (4 bits)"
        ),
        "algorithm": Option(
            default="gptq", defaults={8.0: "rtn"}, choices=("rtn", "gptq", "awq"), help="how the weights are rounded"
        ),
        "group_size": Option(
            default=128,
            defaults={8.0: -1},
            choices=(-1, 16, 32, 64, 128),
            help="weights that share one scale; -1 = an output channel",
        ),
        "sym": Option(default=True, choices=(True, False), help="symmetric steps around zero; otherwise with a zero point"),
        "activations": Option(
            default=16, defaults={8.0: 8}, choices=(16, 8), help="bits of the inputs of each layer; 8 = rounded per token"
        ),
        "smooth": Option(
            default=0.0,
            defaults={8.0: 0.5},
            types=(float, int),
            within=Range(least=0, most=1),
            help="SmoothQuant's strength: how far outliers of activations move into the weights; 0 = off",
        ),
    },
    kernel_cpu=_SIMULATED,
    kernel_cuda=_SIMULATED,
    engines={"vllm": Elsewhere(cpu={8: "real", 4: "real"}, cuda={8: "real", 4: "real"}, refuses=_by_vllm)},
    quantize=_recipe.explained(quantize, "LLM Compressor"),
    recipe=_llmcompressor_recipe.FILE,
    load=load,
    supports=supports,
    bits_per_weight=bits_per_weight,
    ledger=compressed_tensors.ledger,
    weights=_weights,
    folds=True,
    kernels=kernels,
    calibrated=True,
    environment="llmcompressor",
    requirements=("llmcompressor==0.14.0.1", "torch==2.13.0", "transformers==5.17.0", "lm-eval==0.4.13"),
    modules=("torch", "transformers", "llmcompressor", "compressed_tensors"),
    summary="SmoothQuant W8A8, W4A16 to W2A16, FP8, NVFP4, MXFP4 as vLLM reads them; simulated here",
    source="github.com/vllm-project/llm-compressor",
)
