"""Which files of a hub repository are a model: the weights that transformers reads and what lies beside them, or one GGUF file.

A repository that holds no model that may be loaded is refused here, by the list of its files, before anything is fetched.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from harness.errors import BadInput, UnknownName
from harness.formats import config_json, gguf_reader, quantization_config, safetensors_file
from harness.formats.safetensors_file import INDEX, MODEL, brief
from harness.models import hub
from harness.spec import Model

SETTINGS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".bpe", ".spm")
"""Ends of the names of the files beside the weights that can change an answer: configuration, generation rules, tokenizer, chat
templates, the index of the shards. Which of them a library reads is its own affair, so all of them count."""

TEMPLATES = "additional_chat_templates"
"""The folder in which transformers keeps the chat templates of a tokenizer beyond the first."""

_TOKENIZERS = ("tokenizer", "spiece.", "sentencepiece", "vocab", "tekken.")


def of_a_tokenizer(name: str) -> bool:
    return name.startswith(_TOKENIZERS) or name.endswith(".tiktoken")


def snapshot_of(source: Model) -> hub.Snapshot | None:
    """The hub model's repository at its commit; None for another model, and where the commit is not known."""
    if source.repo is None or source.commit is None:
        return None
    return hub.Snapshot(repo=source.repo, commit=source.commit)


def wanted(source: Model, snapshot: hub.Snapshot) -> list[str] | None:
    """The names of the files to fetch of a hub model: the weights that transformers reads and all `settings` beside them, or all
    parts of a GGUF file; never code or pickles. None where the hub cannot be reached for the list. BadInput where the repository
    holds no model that may be loaded."""
    what = f"model {source.name!r}"
    known = hub.files(snapshot, what=what)
    if known is None:
        return None
    if source.file is not None:
        return _gguf_files(source, source.file, known)
    weights = _weight_names(source, snapshot, known)
    if weights is None:
        return None
    beside = [name for name in known if "/" not in name and name.endswith(SETTINGS)]
    templates = [name for name in known if re.fullmatch(rf"{TEMPLATES}/[^/]+\.jinja", name)]
    if "config.json" not in known:
        raise BadInput(f"{what}: {source.repo} has no config.json, so it is not a transformers checkpoint")
    if not any(of_a_tokenizer(name) for name in beside):
        raise BadInput(
            f"{what}: {source.repo} holds no tokenizer (tokenizer.json, tokenizer.model, ...); fetch it "
            f"(hf download {source.repo} --local-dir DIR), add the tokenizer of the model that it was made of, and give the "
            "folder as `path`"
        )
    return sorted({*weights, *beside, *templates})


def _gguf_files(source: Model, file: str, known: Mapping[str, hub.HubFile]) -> list[str]:
    """The GGUF file of a repository that a suite names, with all its parts."""
    if file not in known:
        offered = [name for name in known if gguf_reader.is_gguf(Path(name))]
        if not offered:
            raise BadInput(f"model {source.name!r}: {source.repo} holds no GGUF file; drop `file`, or correct `repo`")
        raise UnknownName(f"file of {source.repo}", file, offered, f"model {source.name!r}")
    folder, name = file[: file.rfind("/") + 1], Path(file).name
    names = [folder + part for part in gguf_reader.part_names(name)]
    missing = [part for part in names if part not in known]
    if missing:
        raise BadInput(f"model {source.name!r}: {source.repo} lacks parts of {name}: {', '.join(missing)}; choose another file")
    return names


_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


def _weight_names(source: Model, snapshot: hub.Snapshot, known: Mapping[str, hub.HubFile]) -> list[str] | None:
    """The weight files of a repository, as `safetensors_file.weight_files` chooses them in a folder."""
    what = f"model {source.name!r}"
    if INDEX in known:
        index = hub.one(snapshot, INDEX, what=what)
        if index is None:
            return None
        try:
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{what}: {INDEX} of {source.repo} is damaged; tell its owner, or give another revision") from None
        names = sorted({Path(str(name)).name for name in named})
        lost = [name for name in names if name not in known]
        if lost:
            raise BadInput(f"{what}: {source.repo} lacks {brief(lost)}, which {INDEX} names; give another revision")
        return names
    if MODEL in known:
        return [MODEL]
    loose = [name for name in known if "/" not in name and name.endswith(".safetensors")]
    if loose:
        config = hub.one(snapshot, "config.json", what=what) if "config.json" in known else None
        if config is not None and quantization_config.quantization(config_json.read(config.parent)) is None:
            raise BadInput(
                f"{what}: transformers reads {MODEL}, or the files that {INDEX} names, and {source.repo} holds only "
                f"{brief(loose)}; give another revision or repository, or fetch it, add the index, and give the folder as `path`"
            )
        return loose
    files = [name for name in known if gguf_reader.is_gguf(Path(name))]
    if files:
        raise BadInput(
            f"{what}: {source.repo} holds GGUF files ({brief(files)}); name one of them with `file`, and with `of` the model "
            "that it was made of"
        )
    pickled = sorted(name for name in known if name.endswith(_PICKLES))
    why = f"only pickled weights ({brief(pickled)}), which can run code when loaded" if pickled else "no weights"
    raise BadInput(
        f"{what}: {source.repo} holds {why}; look for a repository or a revision with safetensors (on many pickled ones, "
        "revision: refs/pr/1), or convert it yourself: "
        'AutoModelForCausalLM.from_pretrained(...).save_pretrained("DIR")'
    )


def is_whole(source: Model, snapshot: hub.Snapshot) -> bool:
    """Whether all files of a hub model are in the local cache: of a fetch that was stopped, only some are."""
    with contextlib.suppress(BadInput):  # what is wrong with it is said where it is fetched
        names = wanted(source, snapshot)
        if names is not None:
            return all((snapshot.folder / name).exists() for name in names)
        # The cache was filled by an older library, which leaves no list of files.
        if source.file is not None:
            return all(path.is_file() for path in gguf_reader.parts(snapshot.folder / source.file))
        return (snapshot.folder / "config.json").is_file() and bool(safetensors_file.weight_files(snapshot.folder))
    return False
