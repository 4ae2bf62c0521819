"""What rtn, gptq and awq share: GPTQModel writes their packed artifacts and loads them through its own kernels.

Both formats, GPTQ's (rtn, gptq) and AWQ's, are described in formats/gptq_file.py. Its reading of them is the independent side
of the reload check.

Quantizing runs in float32 (gptq, rtn) or as awq.py says, on weights that are stored as they were: what is not quantized
goes back to the source's dtype before the artifact counts as written.

Kernels on a CPU: 4 bits in groups of 16, 32, 64 or 128 run on ATen's int4 kernel (packed; scales rounded to bf16); all other
widths on the library's torch kernel (packed, dequantized at each call). Its `gptq_torch_int8` kernel is not
used: it rounds the weights a second time to one int8 scale per output channel, so it holds other weights than the artifact.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness import recipes
from harness.artifact import BodyWeight, HeldWeight, LayerKernel, ModelShape, StoredTensor
from harness.files import draft_file
from harness.formats import config_json, gptq_file, quantization_config, safetensors_file
from harness.methods import _gptqmodel_tree, _mixture, _recipe, against_source, layer_errors, refusals, reload
from harness.methods._kernels import proof
from harness.methods.base import Elsewhere, Kernel, LoadRequest, Method, Mixing, Option, QuantizeRequest, RecipeFile
from harness.mixing import Mixture
from harness.models import body, build, source
from harness.models.find import shape_of
from harness.spec import Json, Scheme

if TYPE_CHECKING:
    from gptqmodel.models.base import BaseQModel
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from gptqmodel.quantization.config import BaseQuantizeConfig
    from torch import Tensor
    from transformers import PreTrainedModel

GROUPS = (16, 32, 64, 128)
"""Group sizes that every kernel takes."""

ANY_GROUPS = (-1, *GROUPS)
"""With -1, an output channel (`channel` in a suite): the library's torch kernel runs it, at 4 bits too."""


REQUIREMENTS = ("gptqmodel>=7.6,<7.7",)

MODULES = ("torch", "transformers", "gptqmodel")

PRELOAD = (
    "torch",
    "torch.utils.cpp_extension",
    "transformers.models.auto.modeling_auto",
    "transformers.generation.continuous_batching.utils",
    "transformers.processing_utils",
    "transformers.quantizers.auto",
    "accelerate",
    "threadpoolctl",
    "tokenicer",
)
"""What importing GPTQModel spends most of its time on, and other methods' cells may have imported too."""

BRANCH_MODULES = ("harness.methods.gptqmodel_import",)
"""GPTQModel itself, which starts threads when it is imported and changes transformers."""

_PACKED = "_harness_packed_layers"
"""Attribute of a loaded model: the layers that its file holds packed."""

_JUNK = ("quant_log.csv",)


def import_library() -> None:
    """Imports gptqmodel as it has to be. Its thread pool refuses to start with one CPU worker, its default on two cores. It
    imports OpenVINO, if that is here, to change it for its own ends; that costs memory and time, and OpenVINO reports each
    import home."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 2) // 2)))
    os.environ.setdefault("GPTQMODEL_DISABLE_GIL_WARNING", "1")
    kept_out = "gptqmodel" not in sys.modules and "openvino" not in sys.modules
    if kept_out:
        sys.modules["openvino"] = None  # type: ignore[assignment]  # None = cannot be imported
    try:
        importlib.import_module("gptqmodel")
    finally:
        if kept_out:
            del sys.modules["openvino"]


def quantize(
    request: QuantizeRequest,
    config: BaseQuantizeConfig,
    *,
    float32: bool,
    mixture: Mixture | None = None,
    **arguments: object,
) -> None:
    """Quantizes with a GPTQModel config, saves, puts unquantized tensors in bfloat16, writes the reload check.

    `arguments` go to the library's `quantize`. `float32` computes in float32, otherwise in float16. `mixture`: what `config` says
    of single layers, which the file then has to hold.
    """
    import torch
    from gptqmodel import GPTQModel

    dtype = torch.float32 if float32 else torch.float16
    rows = None
    if request.calibration is not None:
        rows = [{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in request.calibration]
    with _with_its_head(request) as named, _with_padding(named) as folder:
        model = GPTQModel.load(str(folder), config, device=request.device, dtype=dtype, trust_remote_code=False)
        _each_layer_once(model)
        model.quantize(rows, **arguments)
        model.save(str(request.out_dir))
        said = _outputs(model)
        del model
    _tidy(request)
    if mixture is not None:
        _mixture.check(request.out_dir, mixture, gptq_file.ledger(request.out_dir))
    _recipe.note_unmatched(request)
    check_by_unpacking(request)
    layer_errors.add_outputs(request.out_dir, said)


def _outputs(model: BaseQModel) -> dict[str, float]:
    """What GPTQ left of its objective in each layer: the mean over the calibration tokens of the squared change of the layer's
    output, damping included. The library says it divided by the tokens once more, and words where it rounded without text."""
    said = {}
    for entry in model.quant_log:
        if entry.get("process") == "gptq":
            try:
                loss = float(entry["loss"]) * float(entry["samples"])
            except (KeyError, ValueError):
                continue
            if math.isfinite(loss) and loss < _NO_LOSS:
                said[f"{model.extract_layers_node()[0]}.{entry['layer']}.{entry['module']}"] = loss
    return said


_NO_LOSS = 999_999_999.0
"""What the library says of a layer that no token reached."""


def _join_experts(state: dict[str, Tensor], weight: BodyWeight) -> None:
    """Puts the matrices of all experts, which the library keeps one by one, into the one parameter that the model holds."""
    import torch

    place, _, name = weight.name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(name, ())
    names = [[f"{place}.{expert}.{part}.weight" for part in parts] for expert in range(weight.matrices)]
    if parts and all(each in state for expert in names for each in expert):
        state[weight.name] = torch.stack([torch.cat([state.pop(each) for each in expert]) for expert in names])


@contextmanager
def _with_its_head(request: QuantizeRequest) -> Iterator[Path]:
    """Inside, the source as a folder in which the head has the name that the loaded model gives to it: GPTQModel reads weights by
    the names of modules, and knows renamings of some architectures only (GPT-NeoX's head is stored as embed_out)."""
    stored = safetensors_file.checkpoint(request.model_dir)
    name_of = build.renamed(request.model_dir)
    other = {name: name_of(name) for name in stored if name_of(name) == _HEAD and name != _HEAD}
    if not other or any(name.startswith("language_model.") for name in other):
        yield request.model_dir
        return
    with tempfile.TemporaryDirectory(prefix="source-", dir=request.out_dir) as place:
        folder = Path(place)
        _link(request.model_dir, folder, but=lambda path: path.suffix == ".safetensors" or path.name == safetensors_file.INDEX)
        tensors = [(other.get(entry.name, entry.name), entry.dtype, entry.shape) for entry in stored.values()]
        safetensors_file.write(folder / safetensors_file.MODEL, tensors, map(safetensors_file.tensor, stored.values()))
        yield folder


@contextmanager
def _with_padding(source: Path) -> Iterator[Path]:
    """Inside, a checkpoint as a folder whose config.json names a token for padding that the embedding has. Where it names none,
    the library takes the tokenizer's, and fails if that lies beyond the embedding: some classes add one to a vocabulary that has
    none (Qwen2's `<|endoftext|>`). Nothing is padded here, so any token of the vocabulary will do."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(str(source), trust_remote_code=False).get_text_config()
    named = getattr(config, "pad_token_id", None) is not None
    tokenizer = None if named else AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    if tokenizer is None or (tokenizer.pad_token_id or 0) < config.vocab_size:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="padded-") as place:
        folder = Path(place)
        _link(source, folder, but=lambda path: path.name == "config.json")
        config_json.write({**config_json.read(source), "pad_token_id": 0}, folder)
        yield folder


def _link(source: Path, folder: Path, *, but: Callable[[Path], bool]) -> None:
    """Links to the files of a folder in another one, but for those that are written anew."""
    for path in source.iterdir():
        if path.is_file() and not but(path):
            (folder / path.name).symlink_to(path.resolve())


_HEAD = "lm_head.weight"


def _each_layer_once(model: BaseQModel) -> None:
    """The library's list of a block's layers without repetitions: it names a shared expert once per expert, and rounding a layer
    a second time fails."""
    listed = model.simple_layer_modules

    def once(*arguments: object, **named: object) -> list[list[str]]:
        return [list(dict.fromkeys(block)) for block in listed(*arguments, **named)]

    vars(model)["simple_layer_modules"] = once


def check_by_unpacking(request: QuantizeRequest) -> None:
    """Writes the reload check of an artifact in either format: its packed weights, unpacked by this project."""
    state = gptq_file.dequantize(request.out_dir, build.unpacked_dtype(safetensors_file.parameters(request.model_dir)))
    packed = gptq_file.packed_layers(request.out_dir)
    for weight in body.of_model(build.hollow(request.model_dir)[0]):
        if weight.kind == "conv1d" and weight.name in packed:  # the model holds these the other way round
            state[f"{weight.name}.weight"] = state[f"{weight.name}.weight"].t().contiguous()
        elif weight.kind == "experts" and weight.name not in state:
            _join_experts(state, weight)
    reload.write_dense(request, state, "the packed weights, unpacked and run in float32")


def _tidy(request: QuantizeRequest) -> None:
    """Unquantized tensors as artifacts keep them; config.json says so; logs of the library removed."""
    from safetensors.torch import load_file, save_file

    kept = source.kept(request.model_dir)
    packed = gptq_file.packed_layers(request.out_dir)
    for path in sorted(request.out_dir.glob("*.safetensors")):
        state = load_file(str(path))
        for name, tensor in state.items():
            if name.rpartition(".")[0] not in packed:
                state[name] = kept(name, tensor).contiguous()
        with draft_file(path) as draft:
            save_file(state, str(draft), metadata={"format": "pt"})
    for name in ("config.json", "quantize_config.json"):
        path = request.out_dir / name
        config = json.loads(path.read_text(encoding="utf-8"))
        inner = config.get(quantization_config.KEY, config)
        inner.get("meta", {}).pop("offload_to_disk_path", None)  # a temporary folder's name
        if name == "config.json":
            config["dtype"] = "bfloat16"
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in _JUNK:
        (request.out_dir / name).unlink(missing_ok=True)


def load(request: LoadRequest, *, differentiable: bool = False) -> PreTrainedModel:
    """The artifact through GPTQModel's own loader; activations in bf16. `differentiable`: on its torch kernel, through which
    gradients pass."""
    import_library()
    import torch
    from gptqmodel import BACKEND, GPTQModel

    by_torch = differentiable or _per_channel(request.artifact_dir)
    backend = BACKEND.GPTQ_TORCH if by_torch else BACKEND.AUTO
    with _with_padding(request.artifact_dir) as folder:
        loaded = GPTQModel.load(
            str(folder), device=request.device, dtype=torch.bfloat16, backend=backend, trust_remote_code=False
        )
    model: PreTrainedModel = loaded.model.eval()
    vars(model)[_PACKED] = gptq_file.packed_layers(request.artifact_dir)
    if request.device == "cpu":
        # The torch kernel wraps its dequantization in torch.compile: tens of seconds of C++ compilation in every process.
        for _, module in quantized_modules(model):
            vars(module).pop("dequantize_weight", None)
    return model


def _per_channel(folder: Path) -> bool:
    """Whether a layer in the GPTQ format has one scale per channel: of itself the library takes a kernel at 4 bits that fails on
    channels of most sizes."""
    said = quantization_config.quantization(config_json.read(folder))
    if said is None or said.format == "awq":
        return False
    single = config_json.mapping(said.settings, "dynamic").values()
    groups = [each.get("group_size") for each in (said.settings, *single) if isinstance(each, Mapping)]
    return -1 in groups


def quantized_modules(model: PreTrainedModel) -> Iterator[tuple[str, BaseQuantLinear]]:
    """GPTQModel's packed layers by name."""
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    for name, module in model.named_modules():
        if isinstance(module, BaseQuantLinear):
            yield name, module


def kernels(model: PreTrainedModel) -> list[LayerKernel]:
    """Kernel proof per quantized layer, and every decoder layer that is a plain Linear after load: dequantized, where the
    artifact holds it packed."""
    proofs = []
    for name, module in quantized_modules(model):
        kind = type(module).__name__
        op = "aten::_weight_int4pack_mm_for_cpu" if "Aten" in kind else "dequantize + aten::matmul" if "Torch" in kind else kind
        proofs.append(proof(name, kind, module.qweight, op=op))
    quantized = tuple(layer.layer for layer in proofs)
    packed = vars(model).get(_PACKED)
    for name, module in build.decoder_linears(model).items():
        inside = any(name == layer or name.startswith(layer + ".") for layer in quantized)
        if not inside:  # packed in the file and plain here, or plain in the file as well
            dequantized = packed is None or name in packed
            proofs.append(proof(name, "Linear", module.weight, op="aten::linear", dequantized=dequantized))
    return proofs


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return gptq_file.ledger(artifact_dir)


def weights(request: QuantizeRequest) -> list[HeldWeight]:
    """An artifact's weights, for the comparison with the source."""
    read = gptq_file.Reader(request.out_dir)
    return against_source.held(request.out_dir, gptq_file.ledger(request.out_dir), read.shape, read.weight)


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    """Reasons that hold for every format here. What the library's definition of an architecture leaves alone, such as a router,
    is no reason by itself."""
    taken, group = taken_of(shape), scheme.options.get("group_size", -1)  # none where a recipe says it by layer
    return (
        refusals.quantized(shape)
        or refusals.left_by(shape, taken, scheme.method)
        or refusals.undivided_groups(shape, int(group), taken=taken)
        or refusals.undivided(shape, columns=32, rows=32, taken=taken)
        or _mixture.refusal(scheme, shape, taken)
    )


def taken_of(shape: ModelShape | None) -> Callable[[BodyWeight], bool]:
    """Which weights of a model the library quantizes: those that its definition of the architecture names, or without one the
    linear layers."""
    kind = None if shape is None else shape.config.get("model_type")
    return _gptqmodel_tree.taken(str(kind)) or refusals.linear


def mixture_of(request: QuantizeRequest) -> Mixture | None:
    """The widths by layer that the request's scheme asks for; None for a scheme of one width."""
    return _mixture.of_gptq(request, taken_of(shape_of(request.model_dir)))


def dynamic_of(request: QuantizeRequest, mixture: Mixture | None) -> dict[str, Json] | None:
    """What the library is told of single layers: a recipe of one's own as it is, or the widths of a mixture."""
    recipe = recipes.of(request.scheme)
    return _mixture.dynamic(mixture) if recipe is None else recipe.content


def bits_per_weight(scheme: Scheme) -> float:
    """bits + (16-bit scale + zero point of `bits`) / group; the 32-bit group index per input feature is left out, because its
    share depends on the number of rows (32 / rows), and so is what a whole channel shares. Of a mixture its target, which
    has all of them."""
    if scheme.mixture is not None:
        return float(scheme.bits)
    if "group_size" not in scheme.options:  # said by a recipe, the bits perhaps too
        return float(scheme.bits) or 16.0
    group = int(scheme.options["group_size"])
    return float(scheme.bits) + (0 if group < 0 else (16 + float(scheme.bits)) / group)


KERNEL_CUDA: dict[float, Kernel] = {8: "real", 4: "real", 3: "slow", 2: "real"}
"""GPTQ format: Marlin, Machete, ExLlama or Triton at 8, 4 and (Triton) 2 bits; other widths run on the torch kernel."""


def _by_vllm(scheme: Scheme, device: str) -> str | None:
    if scheme.options.get("group_size") == -1:
        return "vLLM is not tried here on one scale per channel in the GPTQ format; write group_size: 32, 64 or 128"
    if not scheme.options.get("sym", True):
        return "vLLM takes the GPTQ format with symmetric steps only; write sym: true"
    if device == "cpu" and scheme.options.get("act_order") == "sorted":
        return "vLLM's kernel on a CPU does not follow act_order: sorted; write act_order: grouped"
    return None


ENGINES = {"vllm": Elsewhere(cpu={4: "real"}, cuda={8: "real", 4: "real"}, refuses=_by_vllm)}
"""vLLM reads the GPTQ format at 4 and 8 bits; on a CPU it has a kernel for 4 (model_executor/layers/quantization/auto_gptq.py and
model_executor/kernels/linear/mixed_precision of 0.32)."""


def batch_size(request: QuantizeRequest) -> int:
    """Calibration rows per forward: about 2048 tokens, which keeps a CPU busy and activations small."""
    length = max(map(len, request.calibration)) if request.calibration else 1
    return max(1, 2048 // length)


UNTAKEN = {"gpt_oss": "GPTQModel takes gpt-oss's experts apart and stores them under names that transformers does not load"}
"""Architectures that no method of the library quantizes, by model type."""


def row(
    *,
    name: str,
    title: str,
    bits: tuple[int, ...],
    options: Mapping[str, Option],
    quantize: Callable[[QuantizeRequest], None],
    summary: str,
    source: str,
    version: str = "1",
    calibrated: bool = True,
    mixing: Mixing | None = None,
    recipe: RecipeFile | None = None,
    supports: Callable[[Scheme, ModelShape | None, str], str | None] = supports,
    kernel_cuda: Mapping[float, Kernel] = KERNEL_CUDA,
    folds: bool = False,
    untaken: Mapping[str, str] = UNTAKEN,
    engines: Mapping[str, Elsewhere] = ENGINES,
) -> Method:
    """A row whose artifacts are in the GPTQ or AWQ format and run on GPTQModel's kernels."""
    return Method(
        name=name,
        title=title,
        version=version,
        bits=bits,
        options=options,
        kernel_cpu={b: "real" if b == 4 else "slow" for b in bits},
        takes=("linear", "derived", "conv1d", "experts", "other"),  # `supports` asks the library's definitions
        kernel_cuda=kernel_cuda,
        engines=engines,
        quantize=quantize,
        load=load,
        supports=supports,
        bits_per_weight=bits_per_weight,
        ledger=ledger,
        weights=weights,
        folds=folds,
        untaken=untaken,
        kernels=kernels,
        calibrated=calibrated,
        mixing=mixing,
        recipe=recipe,
        requirements=REQUIREMENTS,
        extra="gptqmodel",
        modules=MODULES,
        preload=PRELOAD,
        branch_modules=BRANCH_MODULES,
        summary=summary,
        source=source,
    )
