"""bnb: bitsandbytes through transformers. 8 bits: LLM.int8 (Dettmers et al., 2022; per-row int8 weights, activations rounded to
int8 at each call, outlier inputs kept in 16 bits). 4 bits: nf4 or fp4 codes in blocks of 64 with a float32 scale, which
`double_quant` rounds to 8 bits in turn (Dettmers et al., QLoRA, 2023). No calibration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import HeldWeight, LayerKernel, ModelShape, Role, StoredTensor
from harness.formats import safetensors_file
from harness.methods import _defaults, against_source, refusals, reload
from harness.methods._kernels import proof
from harness.methods.base import Elsewhere, LoadRequest, Method, Option, QuantizeRequest
from harness.models import build
from harness.spec import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BITS = (8.0, 4.0)
BLOCK, NESTED_BLOCK = 64, 256
"""Weights per scale, and scales per second-level scale (the library's fixed sizes)."""


def quantize(request: QuantizeRequest) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options = request.scheme.options
    kept = _kept(request.model_dir)
    if request.scheme.bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=kept,
            bnb_4bit_quant_type=str(options["type"]),
            bnb_4bit_use_double_quant=bool(options["double_quant"]),
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(
        str(request.model_dir),
        quantization_config=config,
        dtype=torch.bfloat16,
        device_map={"": request.device},
        use_safetensors=True,
        trust_remote_code=False,
    ).eval()
    model.save_pretrained(str(request.out_dir))
    rows = reload.rows_for(reload.vocabulary(model), request.calibration)
    # The same kernel on the same weights: nothing but the order of sums may differ, so the floor is none.
    reload.write(model, rows, request.out_dir, by="the quantizing library's model in memory")


def _kept(model_dir: Path) -> list[str] | None:
    """The modules to leave alone where a model has parts for other inputs than text: those, and what the library leaves alone by
    itself. None where it has none, and the library decides."""
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert

    model, _ = build.hollow(model_dir)
    taken = build.decoder_linears(model).keys()
    head = model.get_output_embeddings()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    others = [name for name, module in linears.items() if name not in taken and module is not head]
    return [*get_keys_to_not_convert(model), *others] if others else None


def load(request: LoadRequest) -> PreTrainedModel:
    import logging

    # At 8 bits the library says at every call of every layer that it computes in float16: thousands of equal lines.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return _defaults.load(request)


def kernels(model: PreTrainedModel) -> list[LayerKernel]:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    proofs = []
    for name, module in build.decoder_linears(model).items():
        op = "aten::linear"
        if isinstance(module, Linear8bitLt):
            op = "bitsandbytes::int8_linear_matmul"
        elif isinstance(module, Linear4bit):
            fused = module.support_avx512bf16_for_cpu if module.weight.device.type == "cpu" else True
            op = "bitsandbytes::gemv_4bit" if fused else "bitsandbytes::gemm_4bit"
        proofs.append(proof(name, type(module).__name__, module.weight, op=op))
    return proofs


_PARTS: dict[str, Role] = {
    "absmax": "scale",
    "nested_absmax": "scale",
    "quant_map": "codebook",
    "nested_quant_map": "codebook",
    "quant_state.bitsandbytes__nf4": "codebook",
    "quant_state.bitsandbytes__fp4": "codebook",
    "SCB": "scale",
    "weight_format": "codebook",
}


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    names = {t.name for t in safetensors_file.stored(artifact_dir)}
    layers = {n.removesuffix(".SCB") for n in names if n.endswith(".SCB")}
    layers |= {n.removesuffix(".weight.absmax") for n in names if n.endswith(".weight.absmax")}

    def roles(name: str) -> tuple[str, Role]:
        for part, role in _PARTS.items():
            for end in (f".weight.{part}", f".{part}"):
                if name.endswith(end) and name.removesuffix(end) in layers:
                    return name.removesuffix(end), role
        layer = name.removesuffix(".weight")
        return (layer, "weight") if name.endswith(".weight") and layer in layers else ("", "other")

    return safetensors_file.ledger(artifact_dir, roles)


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    return against_source.held(request.out_dir, ledger(request.out_dir, request.scheme), _shapes(request.out_dir).__getitem__)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that packed layers stand for: stored so at 8 bits, named in JSON at 4."""
    shapes = {}
    for entry in safetensors_file.stored(folder):
        layer, _, state = entry.name.partition(".weight.quant_state.")
        if state:
            shapes[layer] = tuple(json.loads(safetensors_file.tensor(entry).numpy().tobytes())["shape"])
        elif entry.name.endswith(".weight") and entry.dtype == "I8":
            shapes[entry.name.removesuffix(".weight")] = entry.shape
    return shapes


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if scheme.bits == 8 and (scheme.options["type"] != "nf4" or scheme.options["double_quant"]):
        return "type and double_quant belong to 4 bits; at 8 bits bitsandbytes has one format (LLM.int8)"
    if scheme.bits == 8:
        return refusals.quantized(shape)
    # The CPU's kernel takes the outputs in blocks of 32, and fails an assertion on others.
    rows = 32 if device == "cpu" else 1
    return refusals.quantized(shape) or refusals.undivided(shape, columns=BLOCK, rows=rows)


def _bits_per_weight(scheme: Scheme) -> float:
    """8 bits: a float32 scale per row is left out (32 / columns). 4 bits: 4 + 32/64, or with double quantization
    4 + 8/64 + 32/(64 * 256); the few bytes of codebooks per layer are left out."""
    if scheme.bits == 8:
        return 8.0
    return 4 + 8 / BLOCK + 32 / (BLOCK * NESTED_BLOCK) if scheme.options["double_quant"] else 4 + 32 / BLOCK


def _by_vllm(scheme: Scheme, device: str) -> str:
    return "vLLM 0.32 reads no bitsandbytes checkpoints: its list of quantization methods has none"


METHOD = Method(
    name="bnb",
    title="bitsandbytes",
    bits=BITS,
    options={
        "type": Option(
            default="nf4",
            choices=("nf4", "fp4"),
            bits=(4,),
            named=True,
            help="the 16 code values of 4 bits: normal quantiles or a tiny float",
        ),
        "double_quant": Option(
            default=False, choices=(True, False), bits=(4,), help="round the 4-bit format's scales to 8 bits too"
        ),
    },
    kernel_cpu={8.0: "real", 4.0: "real"},
    kernel_cuda={8.0: "real", 4.0: "real"},
    engines={"vllm": Elsewhere(cpu={8.0: "none", 4.0: "none"}, cuda={8.0: "none", 4.0: "none"}, refuses=_by_vllm)},
    quantize=quantize,
    load=load,
    supports=_supports,
    bits_per_weight=_bits_per_weight,
    ledger=ledger,
    weights=_weights,
    kernels=kernels,
    takes=("linear", "conv1d"),
    requirements=("bitsandbytes>=0.49",),
    extra="bnb",
    modules=("torch", "transformers", "bitsandbytes", "accelerate"),
    preload=("bitsandbytes", "transformers.quantizers.auto"),
    summary="LLM.int8 at 8 bits, nf4 or fp4 at 4; needs no data",
    source="Dettmers et al. 2022 and 2023, arXiv:2208.07339, arXiv:2305.14314; bitsandbytes",
)
