"""openvino: NNCF's weight compression of an exported model, run by the OpenVINO CPU runtime.

16 bits: the exported model with its weights in float16, as OpenVINO saves it by default: what the engine changes, and nothing
else. 8 bits: one scale per output channel, with a zero point (`int8_asym`) or without. 4 bits: groups of `group_size` weights
with a float16 scale (and a zero point of 4 bits). NNCF keeps embeddings and output head at 8 bits (`int8_asym`) below 16.

The artifact is an IR with a stateful KV cache that OpenVINO GenAI and Model Server read as it is (with tokenizer and
configuration beside it). NNCF's and OpenVINO's reports home are switched off (`harness.runtimes.openvino`).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness import kv
from harness.artifact import HeldWeight, LayerKernel, ModelShape, StoredTensor
from harness.errors import Unsupported
from harness.formats import attention_rules, config_json, openvino_export, openvino_ir, safetensors_file
from harness.formats.safetensors_file import brief
from harness.methods import _openvino_mixture, refusals, reload
from harness.methods._rounded_inputs import round_inputs_of
from harness.methods.base import Kernel, LoadRequest, Method, Option, QuantizeRequest, Range
from harness.models import build
from harness.spec import Running, Scheme

if TYPE_CHECKING:
    import openvino as ov
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.runtimes.openvino import Program

FACTS = "openvino.json"
BITS = {"f16": 16.0, "int8_asym": 8.0, "int8_sym": 8.0, "int4_asym": 4.0, "int4_sym": 4.0}
SEARCHES = ("awq", "scale_estimation", "gptq", "lora_correction")
_BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def quantize(request: QuantizeRequest) -> None:
    from harness.runtimes import openvino

    openvino.quiet()
    import openvino as ov
    import torch

    model = build.plain(request.model_dir, torch.float32, request.device)
    config = model.config.get_text_config()
    why = openvino_export.refusal(config.to_dict())
    if why is not None:  # what `plan` could not see in config.json
        raise Unsupported(why)
    linears = list(build.decoder_linears(model))
    vectors = {name: t.detach().clone() for name, t in build.own_state(model).items() if t.dim() < 2}
    if request.scheme.bits == 16:  # as they are saved; what NNCF has compressed keeps its vectors in float32
        vectors = {name: t.half().float() for name, t in vectors.items()}
    matrices = {name for name, t in build.own_state(model).items() if t.dim() > 1}
    graph = openvino_export.export(model)
    if request.scheme.bits < 16:
        graph = _compressed(graph, request)
    ov.save_model(graph, str(request.out_dir / openvino_ir.XML), compress_to_fp16=True)
    del graph, model
    facts = {
        "layers": linears,
        "context_length": int(config.max_position_embeddings),
        "hidden_size": int(config.hidden_size),
        "vocab_size": int(config.vocab_size),
        **request.scheme.options,
    }
    facts.pop("calibration", None)
    (request.out_dir / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for name in (*_BESIDE, *(p.name for p in request.model_dir.glob("*.jinja"))):
        if (request.model_dir / name).is_file():
            shutil.copyfile(request.model_dir / name, request.out_dir / name)
    _write_answers(request, vectors, matrices)


def _compressed(graph: ov.Model, request: QuantizeRequest) -> ov.Model:
    """The graph with compressed weights; what searches gets the calibration rows, one at a time."""
    import nncf
    import numpy as np

    options = request.scheme.options
    given: dict[str, object] = {"mode": nncf.CompressWeightsMode[str(options["type"]).upper()]}
    if request.scheme.bits < 8:
        given |= {"group_size": int(options["group_size"]), "ratio": _openvino_mixture.ratio(request.scheme)}
        if request.scheme.mixture is not None:
            given["sensitivity_metric"] = nncf.SensitivityMetric(request.scheme.mixture["from"])
        given |= {name: True for name in SEARCHES if options[name]}
        if needs_rows(request.scheme):
            if not request.calibration:
                raise ValueError("this search needs calibration rows")
            rows = [
                {
                    "input_ids": np.array([row], np.int64),
                    "attention_mask": np.ones((1, len(row)), np.int64),
                    "position_ids": np.arange(len(row), dtype=np.int64)[None],
                    "beam_idx": np.zeros(1, np.int32),
                }
                for row in request.calibration
            ]
            given |= {"dataset": nncf.Dataset(rows), "subset_size": len(rows)}
            given["advanced_parameters"] = nncf.AdvancedCompressionParameters(
                gptq_params=nncf.quantization.advanced_parameters.AdvancedGPTQParameters(subset_size=len(rows))
            )
    return nncf.compress_weights(graph, **given)


def needs_rows(scheme: Scheme) -> bool:
    """Whether anything is searched for on text: a method, or which layers get 8 bits."""
    if scheme.mixture is not None:
        mixes = scheme.mixture["from"] != _openvino_mixture.FREE
    else:
        mixes = scheme.bits < 8 and float(scheme.options["ratio"]) < 1
    return mixes or (scheme.bits < 8 and any(scheme.options[name] for name in SEARCHES))


def _write_answers(request: QuantizeRequest, vectors: Mapping[str, Tensor], matrices: Collection[str]) -> None:
    """The reload check's answers: every matrix unpacked from the IR by this project's code, the source's vectors as the IR
    has them, run by transformers. So the export itself is checked too: graph, mask, positions.

    The runtime may round the inputs of packed products to 8 bits in groups of 32, so the floor is the distance of the same
    weights in bf16 with inputs rounded like that."""
    import torch

    unpacked = openvino_ir.unpacked(request.out_dir)
    lost = sorted(set(matrices) - unpacked.keys())
    if lost:
        raise RuntimeError(f"the IR does not name the weights of {brief(lost)}, so it cannot be checked")
    state = {**vectors, **{name: torch.from_numpy(unpacked[name]) for name in matrices}}
    dtype = build.unpacked_dtype(sum(t.numel() for t in state.values()))
    model = build.dense(request.model_dir, state, dtype)
    rows = reload.rows_for(int(model.config.get_text_config().vocab_size), request.calibration)

    def noisy() -> PreTrainedModel:
        rough = model.bfloat16()
        if request.scheme.bits < 16:
            round_inputs_of(build.decoder_linears(rough).values(), blocks=(32,))
        return rough

    name = str(dtype).removeprefix("torch.")
    reload.write(model, rows, request.out_dir, by=f"the IR's constants, unpacked here and run by torch in {name}", noisy=noisy)


def _weights(request: QuantizeRequest) -> list[HeldWeight]:
    """The matrices, which keep their names in the IR, and of 16 bits their values. Vectors do not: they are folded into other
    shapes. That they are the source's the reload check has compared: its answers are those of the source's vectors."""
    plain = request.scheme.bits == 16
    vectors = [e for e in safetensors_file.checkpoint(request.model_dir).values() if len(e.shape) < 2]
    held = [HeldWeight(name=entry.name, shape=entry.shape, quantized=True) for entry in vectors]
    for constant in openvino_ir.constants(request.out_dir):
        if constant.parameter and constant.role == "weight" and not constant.adapter:
            read = partial(_values, request.out_dir, constant) if plain else None
            shape = (constant.shape[0], math.prod(constant.shape[1:]))
            held.append(HeldWeight(name=constant.parameter, shape=shape, quantized=not plain, read=read))
    return held


def _values(folder: Path, constant: openvino_ir.Constant) -> Tensor:
    import torch

    values = torch.from_numpy(openvino_ir.values(folder, constant))
    return values.half() if constant.type == "f16" else values


def load(request: LoadRequest) -> Program:
    from harness.runtimes.openvino import Program

    return Program(request.artifact_dir, execution=request.running.execution, kv=request.running.kv)


def _runs(running: Running, shape: ModelShape | None) -> str | None:
    """Why OpenVINO cannot keep keys and values in a type: TurboQuant rotates heads of a multiple of 64 numbers."""
    turbo = running.kv and any("TURBO" in kind.native for kind in kv.types("openvino", running.kv))
    if shape is None or not turbo:
        return None
    head = refusals.head_size(shape)
    if head % 64 == 0:
        return None
    return f"TurboQuant takes heads of a multiple of 64 numbers, and those of this model have {head}; write kv: int4"


def _kernels(program: Program) -> list[LayerKernel]:
    return program.kernels()


def _layers(artifact_dir: Path) -> set[str]:
    return set(json.loads((artifact_dir / FACTS).read_text(encoding="utf-8"))["layers"])


def _ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return openvino_ir.ledger(artifact_dir, _layers(artifact_dir))


def _supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    options, kind = scheme.options, str(scheme.options["type"])
    if device != "cpu":
        return "OpenVINO runs on the CPU here; use --device cpu"
    if scheme.mixture is not None:
        if BITS[kind] != 4:
            return f"a mixture of 4 and 8 bits has a type of 4 bits, not {kind}; write type: int4_asym"
    elif BITS[kind] != scheme.bits:
        return f"type {kind} belongs to {BITS[kind]:g} bits"
    group = int(options["group_size"])
    if scheme.bits > 4 and scheme.mixture is None:
        if group > 0:
            return f"at {scheme.bits:g} bits an output channel has one scale; leave group_size out"
        set_ = [name for name in SEARCHES if options[name]] + (["ratio"] if float(options["ratio"]) != 1 else [])
        if set_:
            return f"{', '.join(set_)} belong{'s' if len(set_) == 1 else ''} to 4 bits"
    if options["gptq"] and options["lora_correction"]:
        return "NNCF takes gptq or lora_correction, not both"
    if shape is None:
        return None
    if reason := refusals.quantized(shape):
        return reason
    if config_json.mapping(shape.config, "text_config"):
        return "the model has parts for other inputs than text, and the export takes language models alone"
    return openvino_export.refusal(attention_rules.complete(shape.config)) or refusals.undivided_groups(shape, group)


def _bits_per_weight(scheme: Scheme) -> float:
    """At 4 bits a float16 scale and, if asymmetric, 4 bits of zero point per group; a channel's scale is left out."""
    if scheme.bits > 4:  # a mixture's target too
        return float(scheme.bits)
    ratio = _openvino_mixture.ratio(scheme)
    return ratio * _openvino_mixture.bits(4, scheme.options) + (1 - ratio) * 8


_GROUPED = (4.0,)
"""Bit widths with groups and searches."""

_REAL: dict[float, Kernel] = {16.0: "real", 8.0: "real", 4.0: "real"}

METHOD = Method(
    name="openvino",
    title="OpenVINO (NNCF)",
    bits=tuple(_REAL),
    options={
        "type": Option(
            default="int4_asym",
            defaults={16.0: "f16", 8.0: "int8_asym", 4.0: "int4_asym"},
            choices=tuple(BITS),
            named=True,
            help="NNCF's mode, which belongs to one bit width; asym has zero points, sym has none",
        ),
        "group_size": Option(
            default=128,
            defaults={16.0: -1, 8.0: -1},
            choices=(-1, 16, 32, 64, 128, 256),
            bits=_GROUPED,
            help="weights that share one scale; -1 = an output channel",
        ),
        "ratio": Option(
            default=1.0,
            types=(int, float),
            within=Range(above=0, most=1),  # NNCF takes 0 for no wish, and then all layers get 4 bits
            bits=_GROUPED,
            help="share of the layers at 4 bits, the most sensitive others at 8",
        ),
        "awq": Option(default=False, choices=(True, False), bits=_GROUPED, help="NNCF's activation-aware scaling"),
        "scale_estimation": Option(
            default=False, choices=(True, False), bits=_GROUPED, help="scales that lower the error of each layer's output"
        ),
        "gptq": Option(default=False, choices=(True, False), bits=_GROUPED, help="NNCF's error-compensated rounding"),
        "lora_correction": Option(
            default=False, choices=(True, False), bits=_GROUPED, help="8-bit adapters that take back a part of the error"
        ),
    },
    running_options={
        "execution": Option(
            default="performance",
            choices=("performance", "accuracy"),
            help="the runtime's own setting (16-bit sums where the CPU has them, inputs and KV cache in 8 bits), or float32",
        ),
    },
    engine="openvino",
    kernel_cpu=_REAL,
    kernel_cuda=dict.fromkeys(_REAL, "none"),
    quantize=quantize,
    load=load,
    supports=_supports,
    runs=_runs,
    bits_per_weight=_bits_per_weight,
    ledger=_ledger,
    weights=_weights,
    kernels=_kernels,
    calibrated=True,
    mixing=_openvino_mixture.MIXING,
    sees_text=needs_rows,
    requirements=("openvino>=2026.4", "nncf>=3.4"),
    extra="openvino",
    modules=("torch", "transformers", "openvino", "nncf"),
    summary="weight compression to 8 and 4 bits, with AWQ, scale estimation, GPTQ; run by the OpenVINO CPU runtime",
    source="openvinotoolkit/nncf, openvinotoolkit/openvino",
)
