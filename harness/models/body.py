"""A model's body: the weights that its decoder multiplies with, embedding and head aside, as the modules of the loaded model hold
them. Only the modules say what a method can take: a file stores the experts of a mixture one by one, and the model holds them as
one tensor of three dimensions; GPT-2 stores matrices as any model does, and multiplies with them the other way round.

`of_model` reads a model that stands on the meta device. `of_configs` does so for `plan`, in a process of its own, because
`plan` imports no torch; what it learns is kept by configuration and version of transformers. Most architectures have no other
weights than those of linear layers, which the text of their file shows (`_only_linear`): for these nothing is started.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact import BodyWeight, StoredTensor, WeightKind
from harness.decode import decode
from harness.errors import BadInput
from harness.files import write_atomically
from harness.formats import config_json
from harness.formats.config_json import ModelConfig
from harness.spec import digest, to_json

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

VERSION = 1
"""Raised when the same configuration gives another body."""

ENOUGH = 0.9
"""The least share of the body that a method must quantize, unless it was told to leave something."""

_SECONDS = 300.0
_SAID = "body.json"
_known: dict[str, str] = {}  # of this process, by the digest that also names the file in the cache


def of_model(model: PreTrainedModel) -> tuple[BodyWeight, ...]:
    """The body of a transformers causal LM. Towers for other inputs than text, and what joins them, are no part of it."""
    import torch
    from transformers.pytorch_utils import Conv1D

    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    aside = {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    weights: dict[int, BodyWeight] = {}

    def add(name: str, tensor: torch.Tensor, kind: WeightKind, rows: int, columns: int, matrices: int = 1) -> None:
        weights.setdefault(
            id(tensor), BodyWeight(name=name, kind=kind, rows=rows, columns=columns, matrices=matrices)
        )  # shared ones once

    for name, module in text_modules(model).items():
        if id(module) in aside or isinstance(module, torch.nn.Embedding):
            continue
        if isinstance(module, torch.nn.Linear):
            kind: WeightKind = "linear" if type(module) is torch.nn.Linear else "derived"
            add(name, module.weight, kind, module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            add(name, module.weight, "conv1d", module.weight.shape[1], module.weight.shape[0])
        elif not isinstance(module, convolutions):
            for part, tensor in module.named_parameters(recurse=False):
                sizes = tuple(tensor.shape)
                if len(sizes) == 3 and min(sizes) > 1:
                    add(f"{name}.{part}", tensor, "experts", sizes[1], sizes[2], sizes[0])
                elif len(sizes) == 2 and part == "weight" and min(sizes) > 1:
                    add(name, tensor, "other", *sizes)
    return tuple(sorted(weights.values(), key=lambda weight: weight.name))


def text_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules by name that answer to text: all, or those of the decoder where the model has parts for other inputs."""
    modules = dict(model.named_modules())
    if model.config.get_text_config() is model.config:
        return modules
    decoder = model.get_decoder()
    start = next((name for name, module in modules.items() if module is decoder), "")
    if not start:
        return modules
    return {name: module for name, module in modules.items() if name == start or name.startswith(f"{start}.")}


def parameters(body: Iterable[BodyWeight]) -> int:
    return sum(weight.parameters for weight in body)


def weights_of(layer: str, body: Mapping[str, BodyWeight]) -> int:
    """How many weights of the body a layer of an artifact stands for; 0 where it is none of the body's. `body`: by name. A layer
    has the name of its weight, or of one expert of a weight that holds all: `experts.3.up_proj` is half of one matrix of
    `experts.gate_up_proj`."""
    layer = layer.removesuffix(".weight")
    if layer in body:
        return body[layer].parameters
    expert = _EXPERT.fullmatch(layer)
    if expert is None:
        return 0
    fused = [w for w in body.values() if w.kind == "experts" and w.name.startswith(expert[1])]
    return min((w.parameters // (w.matrices * (2 if _TWO.search(w.name) else 1)) for w in fused), default=0)


_EXPERT = re.compile(r"(.*?\.\d+\.).*experts\.\d+\.[^.]+")
_TWO = re.compile(r"gate_up|input_linear|w13")


def share(ledger: Iterable[StoredTensor], body: Sequence[BodyWeight]) -> float:
    """The share of the body that is quantized in an artifact with this ledger."""
    known = {weight.name: weight for weight in body}
    return sum(weights_of(layer, known) for layer in {t.layer for t in ledger if t.role == "weight"}) / parameters(body)


def left(body: Sequence[BodyWeight], taken: Callable[[BodyWeight], bool]) -> tuple[float, tuple[BodyWeight, ...]]:
    """Of the body, the share of the weights that are not `taken`, and these."""
    kept = tuple(weight for weight in body if not taken(weight))
    return parameters(kept) / max(1, parameters(body)), kept


def of_configs(configs: Mapping[str, ModelConfig], *, cache: Path | None) -> dict[str, tuple[BodyWeight, ...] | None]:
    """The body of the model that transformers makes of each config.json, by the models' names; None where every weight is that of
    a linear layer, which the headers of the file show as well, and where torch and transformers are not here. `cache`: where
    it is remembered.

    BadInput says why transformers makes no causal language model of one."""
    version = transformers_here()
    asked = {name: config for name, config in configs.items() if version is not None and not _only_linear(config)}
    keys = {n: digest({"config": to_json(c), "transformers": version, "version": VERSION})[:32] for n, c in asked.items()}
    memos = {key: None if cache is None else cache / "bodies" / f"{key}.json" for key in keys.values()}
    for key, memo in memos.items():
        if key not in _known and memo is not None and memo.is_file():
            _known[key] = memo.read_text(encoding="utf-8")
    new = {keys[name]: config for name, config in asked.items() if keys[name] not in _known}
    _known.update(_asked(new) if new else {})
    bodies: dict[str, tuple[BodyWeight, ...] | None] = dict.fromkeys(configs)
    for name, key in keys.items():
        said, memo = json.loads(_known[key]), memos[key]
        if isinstance(said, str):
            raise BadInput(f"model {name!r}: {said}")
        if memo is not None and not memo.is_file():
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memo, _known[key])
        bodies[name] = tuple(decode(BodyWeight, weight) for weight in said)
    return bodies


def transformers_here() -> str | None:
    """The version of transformers that is installed here beside torch; None without one of them."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return None


def kind_of(architecture: str) -> str | None:
    """The `model_type` of a class such as "LlamaForCausalLM", as transformers' own table has it: the one that the class is called
    after, or the only one. None where there is none. The package is looked at as files, never imported."""
    spec = importlib.util.find_spec("transformers")
    table = None if spec is None or spec.origin is None else Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    if table is None or not table.is_file():
        return None
    found = set(re.findall(rf'\("([\w.-]+)", "{re.escape(architecture)}"\)', table.read_text(encoding="utf-8")))
    named = [kind for kind in found if architecture.lower().startswith(re.sub(r"[^a-z0-9]", "", kind))]
    return max(named, key=len) if named else found.pop() if len(found) == 1 else None


def _asked(configs: Mapping[str, ModelConfig]) -> dict[str, str]:
    """What a process of its own says of each: the body as JSON, or a text that says why there is none."""
    with tempfile.TemporaryDirectory(prefix="configs-") as place:
        folders = {key: Path(place) / key for key in configs}
        for key, folder in folders.items():
            folder.mkdir()
            config_json.write(configs[key], folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-m", "harness.models.body", *map(str, folders.values())],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        silent = json.dumps("transformers made no model of its config.json, and the process that tried ended without a word")
        said = {key: folder / _SAID for key, folder in folders.items()}
        return {key: path.read_text(encoding="utf-8") if path.is_file() else silent for key, path in said.items()}


_PARAMETER = re.compile(r"\bParameter\(\s*(?!torch\.(?:ones|zeros)\([\w.]+\)\))")
_MATRICES = re.compile(r"\bConv\w*\(|\bConv1D\b|register_parameter|\((?:nn\.)?Linear\):")


def _only_linear(config: ModelConfig) -> bool:
    """Whether the text of the architecture's file in transformers shows that no weight but those of linear layers, embeddings and
    norms is in it: no convolution, and no parameter that is more than a vector. The package is looked at as files, never
    imported. Configurations with anything unusual are left to transformers."""
    kind = config.get("model_type")
    spec = importlib.util.find_spec("transformers")
    plain = isinstance(kind, str) and re.fullmatch(r"[a-z0-9_]+", kind)
    nested = any(isinstance(config.get(key), dict) for key in ("text_config", "vision_config", "audio_config", "encoder"))
    if not plain or spec is None or spec.origin is None or nested or config.get("auto_map"):
        return False
    if any("attn_implementation" in key for key in config):
        return False
    file = Path(spec.origin).parent / "models" / str(kind) / f"modeling_{kind}.py"
    if not file.is_file():
        return False
    text = file.read_text(encoding="utf-8")
    causal = "ForCausalLM(" in text or "LMHeadModel(" in text
    foreign = re.search(r"^from \.\.(?!\.)\w+\.?\S* import", text, re.MULTILINE)  # classes of another architecture
    return causal and not foreign and not _PARAMETER.search(text) and not _MATRICES.search(text)


def _main(folders: Sequence[str]) -> None:
    """Leaves in each folder what its config.json makes."""
    from harness.models.build import hollow

    for folder in map(Path, folders):
        try:
            said: object = to_json(of_model(hollow(folder)[0]))
        except BadInput as error:
            said = str(error).replace(f"{folder}: ", "")
        write_atomically(folder / _SAID, json.dumps(said))


if __name__ == "__main__":
    _main(sys.argv[1:])
