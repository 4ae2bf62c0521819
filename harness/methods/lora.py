"""qlora, hqq+lora, gptq+lora: a quantized base that stays as it is, and a small adapter that is trained to recover what it lost.

To each linear layer of the body with the packed weight W belongs a pair A [rank, inputs], B [outputs, rank]; the layer answers
W x + B A x (Hu et al. 2021, scaled by 1: alpha = rank). A begins as random numbers drawn with the run's seed, B as zeros; both
are trained in float32 on rows and steps as the other training methods (Dettmers et al., QLoRA, 2023, for the NF4 base), and
stored in bfloat16. The base is quantized, saved and loaded first, so that what is trained on is what will answer.

The adapter is stored apart, in `adapter/` and in PEFT's own format (an adapter_config.json beside the base would have
transformers load another model), and runs beside the base: its bytes are in the ledger of its layer, its products in every
latency. It is not merged: rounding the sum again gives other weights than those that were trained (`MERGED`).

The base is compared with the source as that of its own row is. The answers are not: they are those of a model that was trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.artifact import HeldWeight, LayerKernel, ModelShape, StoredTensor
from harness.errors import Unsupported
from harness.files import draft_file, write_atomically
from harness.formats import safetensors_file
from harness.methods import bnb, gptq, hqq, reload
from harness.methods.base import LoadRequest, Method, Option, QuantizeRequest, resolve_options
from harness.methods.finetune import recipe
from harness.models import build
from harness.spec import Json, OptionValue, Quantized, Running, Scheme
from harness.training import loop, weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FOLDER, TENSORS, CONFIG = "adapter", "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""Before the names of tensors in PEFT's files."""

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
BASE_ROWS = 128
"""Of the rows that are trained on, so many are what a calibrated base sees."""

PEFT = "peft>=0.21,<0.22"

MERGED = (
    "merging rounds base plus adapter a second time, and small changes are rounded away: on the reference model's nf4 a rank of "
    "4 brings perplexity from 2.986 to 2.951, and merged back to 2.986; leave merge out"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What an adapter is trained on: a row, its options that are set for every scheme, and how it is loaded to be trained on."""

    row: Method
    options: Mapping[str, Json]
    load: Callable[[LoadRequest], PreTrainedModel]

    def scheme(self, scheme: Scheme) -> Scheme:
        """The base's own scheme."""
        given = {**self.options, **{name: value for name, value in scheme.options.items() if name in self.row.options}}
        return Scheme(method=self.row.name, bits=scheme.bits, options=resolve_options(self.row, given, scheme.bits))

    def quantized(self, request: QuantizeRequest) -> QuantizeRequest:
        rows = request.calibration[:BASE_ROWS] if self.row.calibrated and request.calibration is not None else None
        return replace(request, origin=Quantized(scheme=self.scheme(request.scheme)), calibration=rows)

    def loaded(self, request: LoadRequest) -> LoadRequest:
        return replace(request, origin=Quantized(scheme=self.scheme(request.scheme)))


def _config(scheme: Scheme, layers: list[str]) -> Any:
    from peft import LoraConfig

    rank = int(scheme.options["rank"])
    return LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, bias="none", target_modules=layers, task_type="CAUSAL_LM")


def _with_adapter(model: PreTrainedModel, scheme: Scheme, layers: list[str]) -> None:
    """Puts an untrained adapter beside these layers, in place. Unsupported where PEFT has none for what holds their weights."""
    import peft

    try:
        peft.inject_adapter_in_model(_config(scheme, layers), model)
    except ValueError as error:
        raise Unsupported(f"PEFT {peft.__version__} has no adapter for these layers: {error}") from None


def _adapter(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapter's tensors by the names that PEFT gives them, without its prefix."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model)
    return {name: tensor.detach() for name, tensor in state.items()}


def packed_base(base: Base, request: QuantizeRequest) -> list[str]:
    """Writes the base into the artifact; the names of the layers that it holds packed."""
    base.row.quantize(base.quantized(request))
    return sorted({tensor.layer for tensor in base.row.ledger(request.out_dir, request.scheme) if tensor.layer})


def finish(base: Base, request: QuantizeRequest, held: Mapping[str, Tensor], names: list[str]) -> None:
    """Puts an adapter (tensors by PEFT's names) beside the base in the artifact, and writes the reload check of both."""
    _store(request, held, names)
    model = _load(base, _load_request(request))
    rows = reload.rows_for(reload.vocabulary(model), request.calibration)
    # The same kernels on the same weights: nothing but the order of sums may differ, so the floor is none.
    reload.write(model, rows, request.out_dir, by="the packed base with its adapter, loaded when it was made")


def _quantize(base: Base, request: QuantizeRequest) -> None:
    names = packed_base(base, request)
    folder = request.training
    assert folder is not None
    if not (folder / TENSORS).is_file():
        _train(base, request, names, folder)
    finish(base, request, safetensors_file.tensors_of(folder / TENSORS), names)
    weights.note_log(folder, request.out_dir)


def _train(base: Base, request: QuantizeRequest, names: list[str], folder: Path) -> None:
    """Trains an adapter on the base that lies in the artifact, and keeps it in `folder`."""
    import torch

    assert request.calibration is not None
    model = base.load(base.loaded(_load_request(request)))
    model.requires_grad_(False)
    torch.manual_seed(request.seed)
    _with_adapter(model, request.scheme, names)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    wish = recipe(request)
    teacher = _teacher(request) if wish.loss == "kl" else None
    log = loop.train(model, request.calibration, wish, folder=folder, teacher=teacher, progress=request.progress)
    weights.write_log(folder, log)
    held = {name: tensor.to(device="cpu", dtype=torch.bfloat16) for name, tensor in _adapter(model).items()}
    with draft_file(folder / TENSORS) as draft:
        safetensors_file.save(held, draft)
    (folder / loop.CHECKPOINT).unlink(missing_ok=True)


def _teacher(request: QuantizeRequest) -> PreTrainedModel:
    import torch

    return build.plain(request.model_dir, torch.bfloat16, request.device)


def _load_request(request: QuantizeRequest) -> LoadRequest:
    return LoadRequest(
        artifact_dir=request.out_dir,
        model_dir=request.model_dir,
        origin=request.origin,
        running=Running(engine="transformers"),
        device=request.device,
    )


def _store(request: QuantizeRequest, held: Mapping[str, Tensor], layers: list[str]) -> None:
    """The adapter in PEFT's format, beside the base."""
    folder = request.out_dir / FOLDER
    folder.mkdir(exist_ok=True)
    safetensors_file.save({PREFIX + name: tensor for name, tensor in held.items()}, folder / TENSORS)
    settings = _config(request.scheme, layers).to_dict()
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    write_atomically(folder / CONFIG, json.dumps({**settings, "inference_mode": True}, indent=2, sort_keys=True, default=str))


def _load(base: Base, request: LoadRequest) -> PreTrainedModel:
    import torch
    from peft import set_peft_model_state_dict

    model: PreTrainedModel = base.row.load(base.loaded(request))
    held = {n.removeprefix(PREFIX): t for n, t in safetensors_file.tensors_of(request.artifact_dir / FOLDER / TENSORS).items()}
    layers = sorted({name.partition(".lora_")[0] for name in held})
    _with_adapter(model, request.scheme, layers)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    result = set_peft_model_state_dict(model, held)
    if result.unexpected_keys:
        raise Unsupported(f"the adapter holds tensors that the model has no place for: {result.unexpected_keys[:3]}")
    model.requires_grad_(False)
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def _ledger(base: Base, artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    adapter = [
        StoredTensor(
            name=f"{FOLDER}/{entry.name}",
            layer=entry.name.removeprefix(PREFIX).partition(".lora_")[0],
            role="adapter",
            bits=entry.bits,
        )
        for entry in safetensors_file.stored(artifact_dir / FOLDER)
    ]
    return [*base.row.ledger(artifact_dir, scheme), *adapter]


def _weights(base: Base, request: QuantizeRequest) -> list[HeldWeight]:
    held = base.row.weights
    assert held is not None
    return list(held(base.quantized(request)))


def _kernels(base: Base, model: PreTrainedModel) -> list[LayerKernel]:
    """The base's, under the names of its layers; the adapter's two products stand beside each."""
    with _unwrapped(model):
        proofs = base.row.kernels(model)
    return [replace(each, op=f"{each.op} + adapter") for each in proofs]


@contextmanager
def _unwrapped(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the base's layers stand where their wrappers stand, so that a row sees the model that it loads."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrappers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, wrapper in wrappers.items():
        model.set_submodule(name, wrapper.get_base_layer())
    try:
        yield
    finally:
        for name, wrapper in wrappers.items():
            model.set_submodule(name, wrapper)


def row(
    base: Base,
    *,
    name: str,
    title: str,
    bits: tuple[float, ...],
    options: tuple[str, ...],
    summary: str,
    source: str,
    quantize: Callable[[QuantizeRequest], None] | None = None,
) -> Method:
    """A row whose artifacts are a packed base and an adapter, one that is trained unless `quantize` says otherwise."""
    own = base.row

    def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
        if scheme.options["merge"]:
            return MERGED
        if scheme.options.get("group_size") == -1:
            return "adapters are not tried here beside one scale per channel; write group_size: 64"
        return own.supports(base.scheme(scheme), shape, device)

    def trains(scheme: Scheme) -> Json:
        return {"adapter": base.scheme(scheme).identity(), "version": own.version, "rank": scheme.options["rank"]}

    return Method(
        name=name,
        title=title,
        bits=bits,
        options={
            "rank": Option(default=16, choices=RANKS, named=True, help="rows of the adapter's inner matrix, for every layer"),
            "merge": Option(default=False, choices=(False, True), help="refused, with the reason: the adapter stays apart"),
            **{each: _set(own.options[each], base.options.get(each)) for each in options},
        },
        kernel_cpu={each: own.kernel_cpu[each] for each in bits},
        kernel_cuda={each: own.kernel_cuda[each] for each in bits},
        quantize=quantize or (lambda request: _quantize(base, request)),
        load=lambda request: _load(base, request),
        supports=supports,
        bits_per_weight=lambda scheme: own.bits_per_weight(base.scheme(scheme)),
        ledger=lambda artifact, scheme: _ledger(base, artifact, scheme),
        weights=lambda request: _weights(base, request),
        kernels=lambda model: _kernels(base, model),
        takes=own.takes,
        calibrated=True,
        trains=trains if quantize is None else None,
        requirements=(PEFT, *own.requirements),
        extra="training",
        modules=(*own.modules, "peft"),
        preload=own.preload,
        branch_modules=own.branch_modules,
        summary=summary,
        source=source,
    )


def _set(option: Option, default: OptionValue) -> Option:
    """An option of a base's row, with the default that the base has here."""
    return option if default is None else replace(option, default=default)


def _gptq_to_train(request: LoadRequest) -> PreTrainedModel:
    from harness.methods import _gptqmodel

    return _gptqmodel.load(request, differentiable=True)


QLORA = row(
    Base(row=bnb.METHOD, options={"type": "nf4"}, load=bnb.load),
    name="qlora",
    title="QLoRA",
    bits=(4.0,),
    options=("double_quant",),
    summary="an nf4 base and a trained low-rank adapter beside it, which is counted and run with it",
    source="Dettmers et al. 2023, arXiv:2305.14314; PEFT, bitsandbytes",
)

HQQ_LORA = row(
    Base(row=hqq.METHOD, options={}, load=hqq.load),
    name="hqq+lora",
    title="HQQ with LoRA",
    bits=(4.0, 3.0, 2.0),
    options=("group_size",),
    summary="an HQQ base and a trained low-rank adapter beside it",
    source="Hu et al. 2021, arXiv:2106.09685; PEFT, hqq",
)

GPTQ_BASE = Base(row=gptq.METHOD, options={"group_size": 64}, load=_gptq_to_train)

GPTQ_LORA = row(
    GPTQ_BASE,
    name="gptq+lora",
    title="GPTQ with LoRA",
    bits=(4.0, 3.0, 2.0),
    options=("group_size",),
    summary="a GPTQ base, calibrated on the first 128 of the rows that are trained on, and a trained low-rank adapter beside it",
    source="Hu et al. 2021, arXiv:2106.09685; PEFT, GPTQModel",
)
