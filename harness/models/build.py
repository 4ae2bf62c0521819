"""Source models as transformers builds them: unquantized, in a dtype, or dense with other weights put in."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from harness.errors import BadInput
from harness.formats import config_json, quantization_config
from harness.models import body
from harness.models.find import settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

State: TypeAlias = "Mapping[str, Tensor]"
"""Tensors by the names that the source model gives them."""


def unquantized_config(model_dir: Path) -> PretrainedConfig:
    """The configuration in `model_dir` as that of an unquantized model. With the entry of a checkpoint that is quantized already,
    transformers would make packed layers."""
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
    config.__dict__.pop(quantization_config.KEY, None)
    return config


def hollow(model_dir: Path) -> tuple[PreTrainedModel, PretrainedConfig]:
    """The causal LM that transformers makes of a folder's config.json, without weights or memory, and its configuration. BadInput
    where it makes none; code that a checkpoint brings along is never run."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = config_json.read(model_dir)
    _check_kind(model_dir, raw)
    own = "it comes with code of its own (auto_map), which is never run here" if raw.get("auto_map") else ""
    try:
        config = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
        config.__dict__.pop("quantization_config", None)  # null, or this would be no source
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False), config
    except Exception as error:  # what transformers cannot make of a configuration it says in many types
        why = own or f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('. ')}{_way_out(raw)}"
        raise BadInput(
            f"{model_dir}: transformers {transformers.__version__} cannot load the model type {raw.get('model_type')!r} as a "
            f"causal language model: {why}"
        ) from None


def _way_out(config: config_json.ModelConfig) -> str:
    """What a config.json says that asks for more than the model: how attention is computed."""
    asked = [key for key in ("attn_implementation", "_attn_implementation") if key in config]
    return f"; take {asked[0]} out of config.json, which is no part of the model" if asked else ""


def _check_kind(model_dir: Path, config: config_json.ModelConfig) -> None:
    """BadInput for a config.json of no type, which transformers would guess from the folder's name, or of one that this version
    does not know."""
    import transformers

    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise BadInput(f"{model_dir}: config.json names no model_type; fetch it again, or save it with the model's own class")
    if kind not in transformers.CONFIG_MAPPING:
        near = difflib.get_close_matches(kind, transformers.CONFIG_MAPPING.keys(), n=1, cutoff=0.7)
        remedy = f"; did you mean {near[0]!r}? Correct model_type, or install" if near else "; correct model_type, or install"
        remedy += " a transformers that knows it: pip install -U transformers"
        own = "; it comes with code of its own (auto_map), which is never run here" if config.get("auto_map") else ""
        raise BadInput(
            f"{model_dir}: cannot load the model type {kind!r} as a causal language model: transformers "
            f"{transformers.__version__} knows no such type{own or remedy}"
        )


def renamed(model_dir: Path) -> Callable[[str], str]:
    """How transformers calls a stored tensor once it is loaded, where that is another name and nothing else: a prefix that the
    checkpoint lacks, a head or a block that was called otherwise. What it joins or splits keeps its name."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    model, _ = hollow(model_dir)
    known = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]

    def name_of(stored: str) -> str:
        if stored in known:
            return stored
        loaded, converted = rename_source_key(stored, renamings, converters, model.base_model_prefix, known)
        return str(loaded) if converted is None else stored

    return name_of


def unpacked(model_dir: Path) -> dict[str, tuple[str, list[int]]]:
    """(dtype, shape) by name of every parameter that a quantized checkpoint stands for, from its architecture, without memory."""
    model, _ = hollow(model_dir)
    return {name: ("BF16", list(parameter.shape)) for name, parameter in model.named_parameters()}


def plain(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The checkpoint in `folder` as a transformers causal LM in eval mode: safetensors only, no code of the checkpoint."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        str(folder),
        **in_dtype(dtype),
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    return _whole(loaded, str(folder))


def generation_config(model_dir: Path) -> GenerationConfig:
    """The rules that a source model decodes by, as transformers reads them: its generation_config.json, else what its config.json
    names (as older checkpoints do), else transformers' defaults."""
    from transformers import GenerationConfig

    if (model_dir / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(str(model_dir))
    if (model_dir / "config.json").is_file():
        return GenerationConfig.from_pretrained(str(model_dir), config_file_name="config.json", _from_model_config=True)
    return GenerationConfig()


_CARRIED = (
    "generation_config", "chat_template", "tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "spiece",
    "sentencepiece", "processor_config", "preprocessor_config",
)  # fmt: skip


def carry(model_dir: Path, out_dir: Path) -> None:
    """Copies into an artifact what its answers need beside the weights, as the source has it: generation rules, tokenizer, chat
    templates. What a library wrote under these names is its own reading of them; links to the source stay."""
    for path in settings(model_dir):
        target = out_dir / path.relative_to(model_dir)
        known = path.name.startswith(_CARRIED) or path.suffix not in (".json", ".txt")
        if known and not target.is_symlink():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument of `from_pretrained` that names the dtype: transformers of environments of their own may call it as of old."""
    import transformers

    return {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": dtype}


def dense(model_dir: Path, state: State, dtype: torch.dtype) -> PreTrainedModel:
    """A causal LM of the source's architecture with the given weights, in `dtype` on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    config = unquantized_config(model_dir)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
    loaded = kind.from_pretrained(None, config=config, state_dict=state, output_loading_info=True, **in_dtype(dtype))
    return _whole(loaded, "the unpacked weights")


def without(folder: Path, layers: Collection[str], rest: State, *, device: str, bias: bool = True) -> PreTrainedModel:
    """The architecture of the artifact in `folder`, in bf16 on the device, with the weights `rest`. The linear `layers` have no
    weight: the caller puts packed ones in their place. Without `bias` they have none either: the caller's layers bring their own.

    These layers are built without weights. transformers would allocate each weight that it does not find, in full and on the
    device, and fill it with random numbers: a model that fits packed would have to fit unpacked first, and filling it takes
    longer than reading it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))

    def build(model: PreTrainedModel, *arguments: object, **named: object) -> None:
        kind.__init__(model, *arguments, **named)
        for place in {model.get_submodule(name.rpartition(".")[0]) for name in layers}:
            # Mamba-2 fills the weights of layers from the module around them. All that such a module has is read from the file,
            # unless it computes buffers.
            if not any(True for _ in place.buffers(recurse=False)):
                vars(place)["_is_hf_initialized"] = True
        for name in layers:
            layer = model.get_submodule(name)
            layer.register_parameter("weight", None)
            if not bias:
                layer.register_parameter("bias", None)
            vars(layer)["_is_hf_initialized"] = True  # how transformers marks a module that it need not fill

    own = {"__init__": build, "__module__": kind.__module__}
    weightless: type[PreTrainedModel] = type(kind.__name__, (kind,), own)
    loaded = weightless.from_pretrained(
        None, config=config, state_dict=rest, dtype=torch.bfloat16, device_map={"": device}, output_loading_info=True
    )
    model = _whole(loaded, str(folder))
    model.__class__ = kind
    return model


def _whole(loaded: object, what: str) -> PreTrainedModel:
    """The model in eval mode of what `from_pretrained` returns with its loading info, once that is `complete`."""
    model, report = cast("tuple[PreTrainedModel, Mapping[str, Collection[object]]]", loaded)  # their types know the model only
    complete(report, what)
    model.eval()
    return model


def complete(report: Mapping[str, Collection[object]], what: str) -> None:
    """BadInput unless transformers' `report` says that the checkpoint has every weight of the model: a weight left at its random
    start answers garbage."""
    missing = sorted(map(str, report.get("missing_keys", ())))
    wrong = sorted(map(str, report.get("mismatched_keys", ())))
    if missing or wrong:
        raise BadInput(f"{what}: the checkpoint does not fit its config: {(missing or wrong)[:3]} of {len(missing) + len(wrong)}")


def unpacked_dtype(parameters: int) -> torch.dtype:
    """float32, or bf16 for a model of more than two billion parameters: its float32 would not fit where the model does."""
    import torch

    return torch.float32 if parameters < 2_000_000_000 else torch.bfloat16


def decoder_linears(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """The linear layers of the decoder blocks by name: what weight-only methods quantize (head and embeddings stay, and so do
    towers for other inputs than text)."""
    import torch

    head = model.get_output_embeddings()
    return {name: m for name, m in body.text_modules(model).items() if isinstance(m, torch.nn.Linear) and m is not head}


def own_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's persistent tensors, each stored once: a head tied to the embeddings is left out."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        state[name] = tensor.contiguous()
    return state
