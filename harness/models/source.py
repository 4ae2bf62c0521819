"""One checkpoint for all cells: what transformers loads of a folder, as a folder that holds this and nothing else.

A published folder holds more than its model: masks and frequencies that are computed anew, layers that no class loads, a tied
head stored once more, a second set of weights. Every library has its own reading of such a folder. So the folder is read once,
as transformers reads it, and methods, converters, baseline and ledger all get a *view*: links to what is loaded, and copies of
the files that hold anything else, without it. No weight is changed.

Refused (BadInput, in one sentence): a weight that the model has and the file lacks or has in another shape; a tensor of a loaded
layer that nothing reads (the scales of a quantization that the config does not name); a layer or part that the config says
nothing of (it is the config of another model); weights stored as integers; a model that transformers cannot load without code of
the checkpoint. What its class ignores, what models compute anew, layers for multi-token prediction that the config counts, other
heads and towers are left out, and named in `Source.unread`. `plan` asks the same of the headers alone (models/fit.py).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from harness.artifact import BodyWeight, StoredTensor
from harness.decode import decode
from harness.errors import BadInput
from harness.files import draft_folder
from harness.formats import safetensors_file
from harness.formats.safetensors_file import INDEX, MODEL, HeaderEntry, brief
from harness.models import body, find
from harness.models.build import hollow, renamed
from harness.spec import digest, to_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.loading_report import LoadStateDictInfo

VERSION = 5
"""Raised when the same folder gives another view."""

FACTS = "source.json"
"""Written last into a view: a folder without it is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What transformers loads of a checkpoint. `parameters` counts every parameter of the loaded model once, tied ones too,
    buffers not. `unread`: the stored tensors that it does not load. `rows`: those of the embedding. `body`: what quantizing is
    about (models/body.py). `renamed`: how the loaded model calls stored tensors, where it does so otherwise. `transposed`: the
    stored weights of layers that hold them as [inputs, outputs] (GPT-2's Conv1D). `tied`: the loaded model's names of weights
    that are others'."""

    folder: Path
    parameters: int
    unread: tuple[str, ...]
    rows: int
    body: tuple[BodyWeight, ...]
    renamed: Mapping[str, str]
    transposed: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    def share(self, ledger: Iterable[StoredTensor]) -> float:
        """The share of the body that is quantized in an artifact with this ledger, whose layers have the names of the loaded
        model or of the file."""
        own = [replace(t, layer=self.loaded(t.layer)) for t in ledger if t.role == "weight"]
        return body.share(own, self.body)

    def loaded(self, layer: str) -> str:
        """The loaded model's name of a layer."""
        return self.renamed.get(f"{layer}.weight", layer).removesuffix(".weight")


def place(weights: str, transformers_version: str, cache: Path) -> Path:
    """Where the view of a checkpoint with this digest of its weights lies, made or not."""
    name = digest({"weights": weights, "transformers": transformers_version, "version": VERSION})
    return cache / "sources" / name[:32]


def known(folder: Path) -> Source | None:
    """The view in `folder`; None where there is none, or where what it links to is gone."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        source = Source(
            folder=folder,
            parameters=int(facts["parameters"]),
            unread=tuple(facts["unread"]),
            rows=int(facts["rows"]),
            body=tuple(decode(BodyWeight, weight) for weight in facts["body"]),
            renamed=dict(facts["renamed"]),
            transposed=tuple(facts["transposed"]),
            tied=tuple(facts["tied"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return source if all(path.exists() for path in folder.iterdir()) else None


def make(model_dir: Path, folder: Path) -> Source:
    """Writes the view of the checkpoint in `model_dir` into `folder`, which appears at once and complete. Needs torch."""
    stored = safetensors_file.checkpoint(model_dir)
    model, unread = _loaded(model_dir, stored)
    copies, untied = _tied(model, stored)
    name_of = renamed(model_dir)
    with draft_folder(folder) as draft:
        _link(model_dir, draft, left_out={*unread, *copies}, untied=untied)
        facts = {
            "parameters": _parameters(model, untied),
            "unread": sorted({*unread, *copies}),
            "rows": cast("Tensor", model.get_input_embeddings().weight).shape[0],
            "body": to_json(body.of_model(model)),
            "renamed": {name: loaded for name in sorted(stored) if (loaded := name_of(name)) != name},
            "transposed": _transposed(model, stored),
            "tied": [] if untied else sorted(getattr(model, "all_tied_weights_keys", {})),
        }
        (draft / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    view = known(folder)
    assert view is not None
    return view


def check_ids(ids: Sequence[int], rows: int, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """BadInput where the ids of a text name a token beyond the `rows` of the model's embedding: a tokenizer larger than its
    model."""
    largest = max(ids, default=0)
    if largest >= rows:
        raise BadInput(
            f"{text}: the tokenizer gives the id {int(largest)} ({tokenizer.convert_ids_to_tokens(int(largest))!r}), and the "
            f"model's embedding has {rows} rows, so it knows no such token; take the tokenizer that the model was trained "
            "with, or resize its embedding (model.resize_token_embeddings) and train the new rows"
        )


def float32_names(model_dir: Path, dtype: torch.dtype) -> set[str]:
    """The stored tensors that transformers holds in float32 in a model of another `dtype`: a class may ask for that (router
    biases, recurrent states)."""
    import torch

    if dtype == torch.float32:
        return set()
    stored = safetensors_file.checkpoint(model_dir)
    model, _ = _without_memory(model_dir, stored, dtype)
    wide = (name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32)
    return {_as_stored(name, stored) for name in wide} & stored.keys()


def kept(model_dir: Path) -> Callable[[str, Tensor], Tensor]:
    """How an artifact of the checkpoint in `model_dir` holds a tensor (name, tensor) that it does not quantize: in bfloat16,
    or in float32 where transformers does. What the source was stored in decides nothing."""
    import torch

    wide = float32_names(model_dir, torch.bfloat16)

    def held(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(torch.float32 if name in wide else torch.bfloat16) if tensor.is_floating_point() else tensor

    return held


def not_loaded(model_dir: Path, stored: Mapping[str, HeaderEntry]) -> set[str]:
    """The tensors of `stored` that transformers does not load by the config.json in a folder, whose weights need not be there.
    BadInput for those that it should."""
    return _loaded(model_dir, stored)[1]


def _loaded(model_dir: Path, stored: Mapping[str, HeaderEntry]) -> tuple[PreTrainedModel, set[str]]:
    """The model as transformers loads it, without memory, and the stored names that it does not load."""
    import torch

    model, unexpected = _without_memory(model_dir, stored, torch.bfloat16)
    _check_numbers(model_dir, model, stored, unexpected)
    ignored = {_as_stored(name, stored) for name, why in unexpected.items() if why == "ignored"}
    others = {_as_stored(name, stored) for name, why in unexpected.items() if why != "ignored"}
    unknown = sorted(name for name in others if not _derived(stored[name]))
    lost = [name for name in unknown if not _apart(name, model)]
    if lost:
        raise BadInput(
            f"{model_dir}: {brief(lost)}: stored with layers that are loaded, but nothing reads "
            f"{'it' if len(lost) == 1 else 'them'}, so the model would not be the one that was saved; name the quantization that "
            "they belong to in config.json, or save the model again"
        )
    _check_parts(model_dir, model, unknown)
    return model, {*ignored, *others}


def _check_numbers(model_dir: Path, model: PreTrainedModel, stored: Mapping[str, HeaderEntry], unread: Collection[str]) -> None:
    """BadInput where integers are stored in the place of weights: without a quantization they would be cast, and mean nothing."""
    own = {_as_stored(name, stored): tensor for name, tensor in model.state_dict().items()}
    left = {_as_stored(name, stored) for name in unread}
    whole = sorted(t.name for t in stored.values() if t.dtype.startswith(("I", "U", "BOOL")) and t.name not in left)
    cast_ones = [name for name in whole if name not in own or own[name].is_floating_point()]
    if cast_ones:
        raise BadInput(
            f"{model_dir}: {brief(cast_ones)}: stored as integers ({stored[cast_ones[0]].dtype}), and config.json has no "
            "quantization_config that says what they mean; add the quantization_config that they were saved with, or save the "
            "model unquantized"
        )


_SPARE = re.compile(r"nextn|mtp", re.IGNORECASE)
_OTHER_PARTS = re.compile(
    r"(^|\.)(mtp\w*|\w*vision\w*|visual|\w*audio\w*|\w*image\w*|speech\w*|multi_modal\w*|mm_\w+|talker|token2wav|score|classifier|"
    r"qa_outputs|v_head|value_head)(\.|$)"
)
"""Parts that published checkpoints hold beside a language model: multi-token prediction, towers for other inputs, other heads."""


def _check_parts(model_dir: Path, model: PreTrainedModel, names: Sequence[str]) -> None:
    """BadInput for stored layers and parts that neither the config accounts for nor any such checkpoint has: its config.json is
    that of another model."""
    said = model.config.get_text_config().to_dict() | model.config.to_dict()
    spare = sum(v for k, v in said.items() if _SPARE.search(k) and isinstance(v, int) and not isinstance(v, bool))
    beyond = {name: place for name in names if (place := _beyond(name, model)) is not None}
    more = [name for name, (layer, layers) in beyond.items() if layer >= layers + spare]
    fix = "take the config.json that was saved with these weights, or save the model again"
    if more:
        layer, layers = beyond[more[0]]
        raise BadInput(
            f"{model_dir}: {brief(more)}: of layer {layer}, and by config.json there are {layers} layers (0 to {layers - 1}), so "
            f"what is stored would be measured in part; the config is likely that of another model: {fix}"
        )
    strange = [name for name in names if name not in beyond and not _OTHER_PARTS.search(name)]
    if strange:
        raise BadInput(
            f"{model_dir}: {brief(strange)}: stored, and a {type(model).__name__} has no such part, so what is stored would be "
            f"measured in part; the config is likely that of another model: {fix}"
        )


def _beyond(name: str, model: PreTrainedModel) -> tuple[int, int] | None:
    """(the layer of a tensor, how many there are) of one that belongs to a layer beyond the last; else None."""
    import torch

    for start in (model, getattr(model, model.base_model_prefix, model)):
        module: torch.nn.Module = start
        for part in name.split("."):
            if isinstance(module, torch.nn.ModuleList) and part.isdigit() and int(part) >= len(module):
                return int(part), len(module)
            following = dict(module.named_children()).get(part)
            if following is None:
                break
            module = following
    return None


def _without_memory(
    model_dir: Path, stored: Mapping[str, HeaderEntry], dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Literal["ignored", "unexpected"]]]:
    """What `from_pretrained` makes of the stored names, dtypes and shapes, without their values, and the keys that it does not
    load: those that the class ignores, and others."""
    import torch
    import transformers

    dtypes = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip
    strange = sorted(t.name for t in stored.values() if t.dtype not in dtypes)
    if strange:
        raise BadInput(f"{model_dir}: {brief(strange)}: a number format that no model is loaded from")
    state = {t.name: torch.empty(t.shape, dtype=dtypes[t.dtype], device="meta") for t in stored.values()}
    without_weights, config = hollow(model_dir)
    kind = type(without_weights)
    unexpected: set[str] = set()

    def adjust(model: PreTrainedModel, info: LoadStateDictInfo) -> None:
        unexpected.update(info.unexpected_keys)  # before those that the class ignores are taken out
        kind._adjust_missing_and_unexpected_keys(model, info)

    watched: type[PreTrainedModel] = type(
        kind.__name__, (kind,), {"_adjust_missing_and_unexpected_keys": adjust, "__module__": kind.__module__}
    )
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)  # all that it would say is said here
    try:
        loaded: object = watched.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        transformers.logging.set_verbosity(before)
    model, report = cast("tuple[PreTrainedModel, Mapping[str, Collection[object]]]", loaded)
    _complete(model_dir, report)
    left = set(map(str, report["unexpected_keys"]))
    return model, {name: "unexpected" if name in left else "ignored" for name in unexpected | left}


def tokenizer_of(model_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder; code that a checkpoint brings along is never run. BadInput where there is none that
    transformers can load."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False)
    except Exception as error:  # of its own, of its file formats' and of the tokenizers library
        raise BadInput(
            f"{model_dir}: its tokenizer cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]}); fetch "
            'or save it again: AutoTokenizer.from_pretrained("ORIGINAL").save_pretrained("DIR")'
        ) from None
    return tokenizer


def _complete(model_dir: Path, report: Mapping[str, Collection[object]]) -> None:
    missing = sorted(map(str, report["missing_keys"]))
    if prefix := _wrapper(missing, {str(name) for name in report["unexpected_keys"]}):
        raise BadInput(
            f"{model_dir}: its tensors are stored under {prefix!r}, which is no name of this model; save the model that it wraps "
            '(of PEFT: model.merge_and_unload()): .save_pretrained("DIR")'
        )
    if missing:
        raise BadInput(
            f"{model_dir}: the weights of {brief(missing)} are missing, and a default in their place would be "
            "another model; fetch or save the model again, or correct config.json"
        )
    wrong = sorted(str(entry[0]) if isinstance(entry, (tuple, list)) else str(entry) for entry in report["mismatched_keys"])
    if wrong:
        raise BadInput(f"{model_dir}: {brief(wrong)}: stored in another shape than config.json says; correct it")


def _wrapper(missing: Sequence[str], unread: set[str]) -> str:
    """What stands before the names of all stored tensors that are not read, where these are missing ones without it; else ''."""
    some = min(unread, default="")
    prefix = some.removesuffix(max((name for name in missing if some.endswith(f".{name}")), key=len, default=some))
    return prefix if prefix and unread <= {prefix + name for name in missing} else ""


def _as_stored(name: str, stored: Collection[str]) -> str:
    """The stored name of a key that transformers reports, which may have another prefix."""
    if name in stored:
        return name
    return next((other for other in stored if other.endswith(f".{name}") or name.endswith(f".{other}")), name)


def _apart(name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor belongs to a part that this model does not have at all: another head or tower, a layer beyond the last."""
    import torch

    parts = name.split(".")
    inner = getattr(model, model.base_model_prefix, model)
    module: torch.nn.Module = model
    starts = {id(model), id(inner)}
    for part in parts[:-1]:
        following = getattr(module, part, None) if not part.isdigit() else dict(module.named_children()).get(part)
        if not isinstance(following, torch.nn.Module):
            return id(module) in starts or isinstance(module, torch.nn.ModuleList)
        module = following
    return len(parts) == 1


_DERIVED = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids|attn_mask|causal_mask)$")


def _derived(tensor: HeaderEntry) -> bool:
    """Whether a tensor is one that models compute: rotary frequencies, positions, a causal mask [1, 1, n, n]."""
    mask = len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1) and tensor.shape[2] == tensor.shape[3]
    return bool(_DERIVED.search(tensor.name)) or (mask and tensor.name.endswith(".bias"))


def _tied(model: PreTrainedModel, stored: Mapping[str, HeaderEntry]) -> tuple[set[str], bool]:
    """Of weights that the config ties and the file stores twice: the copies that are equal, and whether some are not, which
    transformers then does not tie."""
    import torch

    copies: set[str] = set()
    untied = False
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        pair = [_as_stored(name, stored) for name in (target, source)]
        if pair[0] == pair[1] or not all(name in stored for name in pair):
            continue
        one, other = (safetensors_file.tensor(stored[name]) for name in pair)
        if one.shape == other.shape and torch.equal(one.float(), other.float()):
            copies.add(pair[0])
        else:
            untied = True
    return copies, untied


def _transposed(model: PreTrainedModel, stored: Collection[str]) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    layers = [name for name, module in model.named_modules() if isinstance(module, Conv1D)]
    return [_as_stored(f"{layer}.weight", stored) for layer in layers]


def loaded_names(model_dir: Path, names: Sequence[str]) -> dict[str, str]:
    """The names of the loaded model's tensors that tensors under `names` become, those of its parts where several become one.
    A name that transformers has no rule for stays."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    model, _ = hollow(model_dir)
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    others = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix, state = model.base_model_prefix, model.state_dict()
    return {name: rename_source_key(name, renamings, others, prefix, state)[0] for name in names}


def _parameters(model: PreTrainedModel, untied: bool) -> int:
    ties = {} if untied else dict(getattr(model, "all_tied_weights_keys", {}))
    counts = {id(p): p.numel() for n, p in model.named_parameters(remove_duplicate=False) if n not in ties}
    return sum(counts.values())


def _link(model_dir: Path, out: Path, *, left_out: Collection[str], untied: bool) -> None:
    """All that the view holds but its facts: links, and copies of what differs."""
    for path in find.settings(model_dir):
        target = out / path.relative_to(model_dir)
        target.parent.mkdir(exist_ok=True)
        if not path.name.endswith(INDEX) and path.name not in ("config.json", FACTS):
            target.symlink_to(path.resolve())
    config = model_dir / "config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    held = _without_attentions(_said_to_be_untied(said) if untied else said)
    if held != said:
        (out / "config.json").write_text(json.dumps(held, indent=2), encoding="utf-8")
    else:
        (out / "config.json").symlink_to(config.resolve())
    files = safetensors_file.weight_files(model_dir)
    index: dict[str, str] = {}
    for path in files:
        tensors = safetensors_file.header(path)
        kept = [tensor for tensor in tensors if tensor.name not in left_out]
        if len(kept) == len(tensors):
            (out / path.name).symlink_to(path.resolve())
        elif kept:
            tensors_in_order = [(tensor.name, tensor.dtype, tensor.shape) for tensor in kept]
            safetensors_file.write(out / path.name, tensors_in_order, map(safetensors_file.tensor, kept))
        index.update({tensor.name: path.name for tensor in kept})
    if set(index.values()) != {MODEL}:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (out / INDEX).write_text(text, encoding="utf-8")


def _without_attentions(config: object) -> object:
    """A configuration that does not ask for attention weights beside the answers: they change no answer, cost memory, and
    transformers saves no model that asks for them with its default attention."""
    if isinstance(config, dict):
        return {k: _without_attentions(v) for k, v in config.items() if k != "output_attentions" or not v}
    return config


def _said_to_be_untied(config: object) -> object:
    if isinstance(config, dict):
        return {k: False if k == "tie_word_embeddings" else _said_to_be_untied(v) for k, v in config.items()} | (
            {"tie_word_embeddings": False} if "model_type" in config else {}
        )
    return config
