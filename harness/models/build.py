"""Source models as transformers builds them: unquantized, in a dtype, or dense with other weights put in."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput
from harness.models.find import settings
from harness.spec import Json

if TYPE_CHECKING:
    from harness.methods.base import LoadRequest  # the methods import this file


def unpacked(model_dir: Path) -> dict[str, tuple[str, list[int]]]:
    """(dtype, shape) by name of every parameter that a quantized checkpoint stands for, from its architecture, without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: ("BF16", list(parameter.shape)) for name, parameter in model.named_parameters()}


def plain(folder: Path, dtype: Any, device: str) -> Any:
    """The checkpoint in `folder` as a transformers causal LM in eval mode: safetensors only, no code of the checkpoint."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(folder),
        **in_dtype(dtype),
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, report = loaded  # transformers' types know of the model only
    complete(report, str(folder))
    return model.eval()


def generation_config(model_dir: Path) -> Any:
    """The rules that a source model decodes by, as transformers reads them: its generation_config.json, else what its config.json
    names (as older checkpoints do)."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(str(model_dir))
    except OSError:  # the folder has none
        return GenerationConfig.from_pretrained(str(model_dir), config_file_name="config.json", _from_model_config=True)


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


def in_dtype(dtype: Any) -> dict[str, Any]:
    """The argument of `from_pretrained` that names the dtype: transformers of environments of their own may call it as of old."""
    import transformers

    return {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": dtype}


def dense(model_dir: Path, state: dict[str, Any], dtype: Any) -> Any:
    """A causal LM of the source's architecture with the given weights, in `dtype` on the CPU: a packed format's reference."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
    config.__dict__.pop("quantization_config", None)  # of a checkpoint that is quantized already: these weights are not
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
    model, report = kind.from_pretrained(None, config=config, state_dict=state, output_loading_info=True, **in_dtype(dtype))
    complete(report, "the unpacked weights")
    return model.eval()


def without(request: LoadRequest, layers: Collection[str], rest: dict[str, Any], *, bias: bool = True) -> Any:
    """The artifact's architecture in bf16 on the device with the weights `rest`. The linear `layers` have no weight: the caller
    puts packed ones in their place. Without `bias` they have none either: the caller's layers bring their own.

    They have none from the first moment on. transformers gives a weight that it does not find its full size, on the device, and
    random values: a model that fits packed would have to fit unpacked first, and filling it takes longer than reading it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(request.artifact_dir), trust_remote_code=False)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))

    def build(model: Any, *arguments: Any, **named: Any) -> None:
        kind.__init__(model, *arguments, **named)
        for name in layers:
            layer = model.get_submodule(name)
            layer.weight = None
            layer.bias = layer.bias if bias else None
            layer._is_hf_initialized = True  # how transformers marks a module that it need not fill

    hollow: Any = type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})
    model, report = hollow.from_pretrained(
        None, config=config, state_dict=rest, dtype=torch.bfloat16, device_map={"": request.device}, output_loading_info=True
    )
    complete(report, str(request.artifact_dir))
    model.__class__ = kind
    return model.eval()


def complete(report: Json, what: str) -> None:
    """BadInput unless every weight of the model was found: a weight left at its random start answers garbage."""
    missing = sorted(report.get("missing_keys", ()))
    wrong = sorted(map(str, report.get("mismatched_keys", ())))
    if missing or wrong:
        raise BadInput(f"{what}: the checkpoint does not fit its config: {(missing or wrong)[:3]} of {len(missing) + len(wrong)}")


def reference_dtype(parameters: int) -> Any:
    """float32, or bf16 for a model of more than two billion parameters: its float32 would not fit where the model does."""
    import torch

    return torch.float32 if parameters < 2_000_000_000 else torch.bfloat16


def decoder_linears(model: Any) -> list[str]:
    """Names of the linear layers of the decoder blocks: what weight-only methods quantize (head and embeddings stay)."""
    import torch

    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]


def own_state(model: Any) -> dict[str, Any]:
    """The model's persistent tensors, each stored once: a head tied to the embeddings is left out."""
    state: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        state[name] = tensor.contiguous()
    return state
