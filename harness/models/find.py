"""Finds a model and says what can be known of it without torch: folder, digest, shape.

A model is an embedded one (``reference``, ``reference-ternary``), a local folder, a hub repository at a revision, or one GGUF
file of either. Only safetensors and GGUF are taken: a pickle checkpoint is refused with the reason. Shapes come from the
headers, never from loading weights; for a hub model that is not in the local cache, `plan` asks the hub for the headers only.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from harness import reference
from harness.artifact import LinearLayer, ModelShape
from harness.errors import BadInput, UnknownName
from harness.files import Changed, Hashes, sha256
from harness.formats import attention_rules, config_json, gguf_reader, quantization_config, safetensors_file
from harness.formats.config_json import ModelConfig
from harness.formats.safetensors_file import INDEX, MODEL, brief, is_lfs_pointer
from harness.models import fit, grid, hub, random_weights, repository, unpacked
from harness.models.fit import Headers
from harness.spec import Model, digest

_BOOKKEEPING = re.compile(rf"artifact\.json|reload_check\.json|verified-\w+\.json|{re.escape(grid.NOTE)}")
"""What this project writes beside weights; it decides no answer of a model that is made of them."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def model(entry: str | Mapping[str, object], base: Path) -> Model:
    """A suite's entry as a `Model`; relative paths are relative to the suite file's folder `base`.

    A plain string is ``reference`` or ``reference-ternary``, an existing folder, or a hub id; ``{shape: ...}`` is a built-in
    shape's name or a config."""
    if isinstance(entry, str):
        if entry == "reference":
            return Model(name="reference", path=str(reference.MODEL_DIR))
        if entry == "reference-ternary":
            return Model(name="reference-ternary", path=str(reference.TERNARY_DIR), packed=True)
        if entry.startswith((".", "/", "~")) or (entry and (base / entry).exists()):
            return model({"path": entry}, base)
        return model({"repo": entry}, base)
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        raise UnknownName("key of a model", unknown[0], _KEYS)
    if sum(entry.get(kind) is not None for kind in ("path", "repo", "shape")) != 1:
        raise BadInput(f"a model names one of path, repo and shape, this one: {dict(entry)}")
    for_the_hub = [key for key in ("file", "revision") if entry.get(key) is not None and entry.get("repo") is None]
    if for_the_hub:
        raise BadInput(f"a model's `{for_the_hub[0]}` belongs to a `repo` of the hub, and this one has none: {dict(entry)}")
    if entry.get("shape") is not None:
        return _shaped(str(entry["shape"]), entry.get("name"), base)
    if entry.get("path") is not None:
        folder = (base / Path(str(entry["path"])).expanduser()).resolve()
        return Model(name=str(entry.get("name") or folder.name), path=str(folder))
    repo = str(entry["repo"])
    if not _HUB_ID.fullmatch(repo):
        raise BadInput(f"{repo!r} is neither a folder that exists nor a hub id (owner/name){_written_right(repo)}")
    revision, file = entry.get("revision"), entry.get("file")
    if file is not None and not gguf_reader.is_gguf(Path(str(file))):
        raise BadInput(f"a model's `file` names one GGUF file of its repository, and {file!r} is none: {dict(entry)}")
    return Model(
        name=str(entry.get("name") or Path(str(file or repo)).name),
        repo=repo,
        revision=None if revision is None else str(revision),
        file=None if file is None else str(file),
    )


def _written_right(repo: str) -> str:
    """How an address of the hub, or a name with its revision, is written in a suite."""
    found = _ADDRESS.fullmatch(repo) or re.fullmatch(r"([\w.-]+/[\w.-]+)[@:]([\w./-]+)", repo)
    if found is None:
        return ""
    name, revision = found.groups()
    return f"; write {{repo: {name}{f', revision: {revision}' if revision else ''}}}"


_ADDRESS = re.compile(r"https?://[^/]+/([\w.-]+/[\w.-]+?)(?:/(?:tree|blob|resolve)/([\w.-]+)(?:/.*)?)?/?")


def meant(source: Model) -> str:
    """`; did you mean ...?` for a hub id without an owner that is near the name of a model that is built in, else ''."""
    name = source.repo or ""
    spellings = {name: f"models: [{name}]" for name in ("reference", "reference-ternary")}
    spellings |= {shape: f"models: [{{shape: {shape}}}]" for shape in random_weights.known()}
    near = [] if "/" in name else difflib.get_close_matches(name.lower(), spellings, n=1, cutoff=0.6)
    return f"; did you mean {spellings[near[0]]}?" if near else ""


_KEYS = ("path", "repo", "shape", "name", "revision", "file")


def _shaped(wish: str, name: object, base: Path) -> Model:
    path = random_weights.KNOWN / f"{wish}.json" if wish in random_weights.known() else (base / Path(wish).expanduser()).resolve()
    if not path.exists():
        raise UnknownName("shape", wish, [*random_weights.known(), "a path to a config.json"])
    random_weights.config_of(path)
    label = str(name or (path.stem if path.is_file() and path.name != "config.json" else path.parent.name))
    return Model(name=f"{label} (random weights)", path=str(path), random=True)


def is_one_file(source: Model) -> bool:
    """Whether a model is a GGUF file, here or on the hub."""
    return gguf_reader.is_gguf(Path(source.file or source.path or ""))


def check_folder(folder: Path, name: str) -> None:
    """BadInput unless the folder holds a checkpoint that may be loaded (or is a GGUF file)."""
    _check_fetched(folder, name)
    if gguf_reader.is_gguf(folder):
        if not folder.is_file():
            raise BadInput(f"model {name!r}: no such file: {folder}; correct `path` in the suite")
        gguf_reader.parts(folder)
        return
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.gguf")):
        raise BadInput(
            f"model {name!r}: {folder} holds GGUF files; give one of them as `path`, and with `of` the checkpoint in "
            "safetensors that it was made of"
        )
    if folder.is_file():
        raise BadInput(
            f"model {name!r}: {folder} is a file, and a model is the folder that holds it; write path: {folder.parent}"
        )
    if not folder.is_dir():
        raise BadInput(f"model {name!r}: no such folder: {folder}; correct `path` in the suite")
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise BadInput(
            f"model {name!r}: {folder} holds an adapter (LoRA, ...) and no model; merge it into its base model first: "
            'PeftModel.from_pretrained(BASE, "ADAPTER").merge_and_unload().save_pretrained("DIR")'
        )
    if not (folder / "config.json").is_file():
        raise BadInput(f"model {name!r}: {folder} has no config.json, so it is not a transformers checkpoint")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        why = f"only pickled weights ({pickled[0]}), which can run code when loaded" if pickled else "no weights"
        raise BadInput(
            f"model {name!r}: {folder} holds {why}; save it as safetensors first: "
            'AutoModelForCausalLM.from_pretrained(...).save_pretrained("DIR")'
        )
    why_not = _several_checkpoints(folder) or _unlike_its_index(folder)
    if why_not:
        raise BadInput(f"model {name!r}: {folder}: {why_not}")
    _check_tokenizer(folder, name)


def _check_fetched(folder: Path, name: str) -> None:
    """BadInput for pointers that stand where files should."""
    pointers = sorted(p.name for p in ([folder] if folder.is_file() else folder.glob("*.*")) if is_lfs_pointer(p))
    if pointers:
        raise BadInput(
            f"model {name!r}: {folder}: {brief(pointers)}: a Git LFS pointer in the place of the file: the repository was cloned "
            "without git-lfs; run in it: git lfs install && git lfs pull"
        )


def _check_tokenizer(folder: Path, name: str) -> None:
    """BadInput for a folder without a tokenizer, or with a damaged one."""
    if not any(repository.of_a_tokenizer(path.name) for path in settings(folder)):
        raise BadInput(
            f"model {name!r}: {folder} holds no tokenizer (tokenizer.json, tokenizer.model, ...); add that of the model it was "
            'made of: AutoTokenizer.from_pretrained("ORIGINAL").save_pretrained("DIR")'
        )
    tokenizer = folder / "tokenizer.json"
    try:
        whole = not tokenizer.is_file() or isinstance(json.loads(tokenizer.read_text(encoding="utf-8")), dict)
    except ValueError:
        whole = False
    if not whole:
        raise BadInput(
            f"model {name!r}: {tokenizer} is damaged or cut off; fetch or save it again: "
            'AutoTokenizer.from_pretrained("ORIGINAL").save_pretrained("DIR")'
        )


def _several_checkpoints(folder: Path) -> str | None:
    """Why a folder holds more than one checkpoint, of which each library would read its own; None where it holds one.

    Files beside those that transformers reads are no second checkpoint (consolidated.safetensors of Mistral's, a LoRA's): nothing
    is handed to a method but what `source.make` links to.
    """
    index, single = folder / INDEX, folder / MODEL
    files = safetensors_file.weight_files(folder)
    if index.is_file():
        if single.is_file() and single not in files:
            return (
                f"beside {single.name} lies an index of other files ({brief(p.name for p in files)}), and libraries "
                "differ in which they read; take the one that is left over out of the folder"
            )
        return None
    if not single.is_file() and quantization_config.quantization(config_json.read(folder)) is None:
        return (
            f"transformers reads model.safetensors, or the files that model.safetensors.index.json names, and here are only "
            f"{brief(p.name for p in files)}; rename the file, or add the index"
        )
    return None


def _unlike_its_index(folder: Path) -> str | None:
    """Why the files of a folder are not what their index says, tensor by tensor; None where they are, or where there is none."""
    files: dict[str, list[str]] = {}
    for path in safetensors_file.weight_files(folder):
        for tensor in safetensors_file.header(path):
            files.setdefault(tensor.name, []).append(path.name)
    twice = sorted(name for name, places in files.items() if len(places) > 1)
    if twice:
        return (
            f"{brief(twice)}: in more than one file ({', '.join(files[twice[0]])}), and libraries differ in which they "
            "read; save the model again"
        )
    index = folder / INDEX
    if not index.is_file():
        return None
    named = {str(n): Path(str(f)).name for n, f in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    lost = sorted(name for name, file in named.items() if files.get(name) != [file])
    if lost:
        return f"{brief(lost)}: not in the file that {index.name} names; fetch or save the model again"
    more = sorted(files.keys() - named.keys())
    if more:
        return (
            f"{brief(more)}: in a file of {index.name} that does not name it, and libraries differ in reading it; "
            "save the model again"
        )
    return None


def locate(source: Model) -> Path | None:
    """The local folder of a model, or None when it is a hub model that is not in the local cache yet, or a shape."""
    if source.random:
        return None
    if source.path is not None:
        return Path(source.path)
    snapshot = repository.snapshot_of(source)
    if snapshot is None or not snapshot.folder.is_dir() or not repository.is_whole(source, snapshot):
        return None
    return snapshot.folder / (source.file or "")


def at_hand(source: Model, cache: Path) -> Path | None:
    """What `fetch` would return, where nothing has to be done for it; else None."""
    if source.packed:
        return unpacked.known(Path(str(source.path)), cache)
    return locate(source)


def pinned(source: Model) -> Model:
    """A hub model with the commit that its revision names now; any other model as it is. BadInput says what the hub refuses."""
    if source.repo is None:
        return source
    return replace(source, commit=hub.commit(source.repo, source.revision, what=f"model {source.name!r}"))


def fetch(source: Model, cache: Path, *, tell: hub.Fetching = hub.quiet) -> Path:
    """Downloads a hub model (or finds it in the local cache), or fills a shape, and returns the folder. `tell` hears how much is
    here. BadInput says why it cannot be had."""
    if source.random:
        return random_weights.folder(Path(str(source.path)), cache)
    if source.path is not None:
        check_folder(Path(source.path), source.name)
        return unpacked.folder(Path(source.path), cache) if source.packed else Path(source.path)
    what = f"model {source.name!r}"
    snapshot = repository.snapshot_of(source)
    names = None if snapshot is None else repository.wanted(source, snapshot)
    if snapshot is None or names is None:
        place = locate(source)  # a cache that was filled by an older library holds no list of files
        if place is None:
            raise hub.unreachable(str(source.repo), what=what, instead=hub.LOCAL_MODEL)
    else:
        place = hub.fetch(snapshot, names, what=what, tell=tell) / (source.file or "")
    check_folder(place, source.name)
    return place


def bytes_to_fetch(source: Model) -> int:
    """Bytes that `fetch` would download: 0 for what is here, and for what nobody can say without the hub."""
    snapshot = repository.snapshot_of(source)
    names = None if snapshot is None else repository.wanted(source, snapshot)
    if snapshot is None or names is None:
        return 0
    known = hub.files(snapshot, what=f"model {source.name!r}") or {}
    return hub.lacking(snapshot, [known[name] for name in names])


def modeling_modules(sources: Iterable[Model]) -> list[str]:
    """transformers' modules that hold the architectures of models which lie here: importing one takes as long as loading a small
    model, so it is done once, before forking. The package is looked at as files, never imported; a name that it does not know
    (the config is the checkpoint's word) is left out, and loading says what is wrong with it."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return []
    known = Path(spec.origin).parent / "models"
    modules: dict[str, None] = {}
    for source in sources:
        place = Path(str(source.path)) if source.random else locate(source)  # a shape's config, or a checkpoint's folder
        if place is None:
            continue
        try:
            kind = str(random_weights.config_of(place)["model_type"])
        except BadInput:
            continue
        if re.fullmatch(r"[a-z0-9_]+", kind) and (known / kind / f"modeling_{kind}.py").is_file():
            modules[f"transformers.models.{kind}.modeling_{kind}"] = None
    return list(modules)


def shape(source: Model) -> ModelShape | None:
    """Shape of a model from its headers; None when it is on a hub that cannot be reached from here."""
    folder = locate(source)
    if folder is not None:
        check_folder(folder, source.name)
        return _shape(unpacked.config_of(folder), unpacked.tensors(folder)) if source.packed else shape_of(folder)
    looked_at = None if source.random else _on_the_hub(source)
    return None if looked_at is None else looked_at[0]


@functools.lru_cache(maxsize=64)  # a commit never changes
def _on_the_hub(source: Model) -> tuple[ModelShape, int, Headers] | None:
    """Shape, bytes and headers of the tensors of a hub model (no headers of a GGUF file), from the beginnings of its files, which
    alone are fetched. None where the hub cannot be reached; BadInput says what it refuses, or what is wrong with the
    repository."""
    what = f"model {source.name!r}"
    snapshot = repository.snapshot_of(source)
    names = None if snapshot is None else repository.wanted(source, snapshot)
    if snapshot is None or names is None:
        return None
    if source.file is not None:
        known = hub.files(snapshot, what=what) or {}
        headers = []
        for name in names:
            with hub.beginning(snapshot, name, what=what) as file:
                headers.append(gguf_reader.read(file, known[name].bytes, f"{source.repo}: {name}"))
        header = gguf_reader.joined(headers, f"{source.repo}: {source.file}")
        return gguf_reader.shape(header), sum(tensor.bytes for tensor in header.tensors), {}
    config = hub.one(snapshot, "config.json", what=what)
    if config is None:
        return None
    held = hub.tensors(snapshot, [name for name in names if name.endswith(".safetensors")], what=what)
    bits = sum(safetensors_file.BITS[dtype] * math.prod(sizes) for dtype, sizes in held.values())
    return _shape(config_json.read(config.parent), held), bits // 8, held


def shape_of(folder: Path, stored: Mapping[str, tuple[str, list[int]]] | None = None) -> ModelShape:
    """Shape of the checkpoint in a local folder; `stored` takes the place of what its headers say."""
    if gguf_reader.is_gguf(folder):
        return gguf_reader.shape_of(folder)
    return _shape(config_json.read(folder), tensors(folder) if stored is None else stored)


def stored_bytes(source: Model) -> int | None:
    """Bytes of the checkpoint's tensors; None when it is on a hub that cannot be reached from here."""
    folder = locate(source)
    if folder is None:
        looked_at = None if source.random else _on_the_hub(source)
        return None if looked_at is None else looked_at[1]
    if source.packed:
        return sum(2 * math.prod(sizes) for _, sizes in unpacked.tensors(folder).values())
    if gguf_reader.is_gguf(folder):
        return sum(tensor.bytes for tensor in gguf_reader.header(folder).tensors)  # not asked of a file that is refused
    return sum(entry.bits for entry in safetensors_file.checkpoint(folder).values()) // 8


def unread(source: Model, config: ModelConfig, *, cache: Path | None) -> tuple[str, ...]:
    """The tensors of a model's files that transformers does not load; () where it is on a hub that cannot be reached, and of a
    GGUF file. BadInput where the files are not the model that its config describes (models/fit.py)."""
    folder = locate(source)
    if source.random or source.packed or is_one_file(source):
        return ()
    looked_at = _on_the_hub(source) if folder is None else None
    held = tensors(folder) if folder is not None else None if looked_at is None else looked_at[2]
    if held is None:
        return ()
    try:
        return fit.unread(config, held, cache=cache)
    except BadInput as error:
        raise BadInput(f"model {source.name!r}: {folder or source.repo}: {error}") from None


def filled(source: Model, *, cache: Path | None) -> ModelShape | None:
    """What the model will be that is made of a shape; None where transformers is not here to say it. BadInput where it makes
    none."""
    config = random_weights.config_of(Path(str(source.path)))
    try:
        held = fit.tensors(config, cache=cache)
    except BadInput as error:
        raise BadInput(f"shape {source.path}: {error}") from None
    return None if held is None else _shape({k: v for k, v in config.items() if k != quantization_config.KEY}, held)


def tensors(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Every stored tensor: name -> (safetensors dtype such as "BF16", shape), from the headers alone."""
    return {name: (entry.dtype, list(entry.shape)) for name, entry in safetensors_file.checkpoint(folder).items()}


def weights_digest(folder: Path, memo: Path) -> str:
    """SHA-256 over names and bytes of the weights and of all `settings` beside them. The hash of a file is remembered in `memo`
    (`files.Hashes`)."""
    hashes = Hashes(memo)
    try:
        parts = {name: hashes.of(path) for name, path in _digested(folder).items()}
    except Changed as error:
        raise BadInput(f"{error}; run again when it is written") from None
    hashes.keep()
    return digest(parts)


SMALL_BYTES = 1 << 24
"""A file of this size is hashed in a few hundredths of a second."""


def remembered_digest(folder: Path, memo: Path) -> str | None:
    """`weights_digest` where it can be had at once: every file is remembered as it is now, or small. Else None."""
    hashes = Hashes(memo)
    parts: dict[str, str] = {}
    for name, path in _digested(folder).items():
        known = hashes.known(path)
        if known is None and path.stat().st_size > SMALL_BYTES:
            return None
        parts[name] = sha256(path) if known is None else known
    return digest(parts)


def _digested(folder: Path) -> dict[str, Path]:
    """The files that a digest is made of, by their names in it. A GGUF file has any name; its parts have their numbers."""
    if gguf_reader.is_gguf(folder):
        return {str(number or ""): path for number, path in enumerate(gguf_reader.parts(folder))}
    files = sorted([*safetensors_file.weight_files(folder), *settings(folder)])
    return {path.relative_to(folder).as_posix(): path for path in files}


def settings(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder beside its weights that can change an answer; see `repository.SETTINGS`."""
    places = (*folder.iterdir(), *(folder / repository.TEMPLATES).glob("*.jinja"))
    return sorted(p for p in places if p.suffix in repository.SETTINGS and not _BOOKKEEPING.fullmatch(p.name) and p.is_file())


_BLOCK = re.compile(r"(^|\.)(layers|h|blocks|block)\.\d+\.")
_NOT_LINEAR = re.compile(r"(norm|layernorm|ln_\d|embed|wte|wpe|rotary|conv)", re.IGNORECASE)


_DECODER = re.compile(r"(?:(?:model\.|transformer\.|gpt_neox\.)?(?:language_model\.)?(?:model\.)?)(?:layers|h)\.(\d+)\.")
_DERIVED = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids)$")


def _loaded(config: ModelConfig, stored: Mapping[str, tuple[str, list[int]]]) -> dict[str, tuple[str, list[int]]]:
    """The stored tensors that an unquantized model very likely loads, for estimates without torch; `source.make` finds out. Not
    masks, frequencies, layers beyond the last, the copy of a tied head."""
    text = config_json.text_part(config)
    layers = config_json.integer(text, "num_hidden_layers", "n_layer")
    tied = _tied(config, unknown=False)
    shapes = [sizes for name, (_, sizes) in stored.items() if re.search(r"(embed_tokens|wte|embed_in)\.weight$", name)]

    def loads(name: str, dtype: str, sizes: list[int]) -> bool:
        block = _DECODER.match(name)
        beyond = block is not None and 0 < layers <= int(block.group(1))
        copy = tied and name.endswith(("lm_head.weight", "embed_out.weight")) and sizes in shapes
        return not (beyond or copy or _DERIVED.search(name) or dtype.startswith(("BOOL", "I", "U")))

    return {name: (dtype, sizes) for name, (dtype, sizes) in stored.items() if loads(name, dtype, sizes)}


def _tied(config: ModelConfig, *, unknown: bool) -> bool:
    """Whether the output head is the embedding: as config.json says, or the default of its class, or else `unknown`."""
    for part in (config, config_json.text_part(config), attention_rules.complete(config)):
        if "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    return unknown


def _shape(config: ModelConfig, stored: Mapping[str, tuple[str, list[int]]]) -> ModelShape:
    text = config_json.text_part(config)
    if quantization_config.quantization(config) is None:
        stored = _loaded(config, stored)
    linears = tuple(
        LinearLayer(name=name[: -len(".weight")], rows=sizes[0], columns=sizes[1])
        for name, (_, sizes) in sorted(stored.items())
        if len(sizes) == 2 and name.endswith(".weight") and _BLOCK.search(name) and not _NOT_LINEAR.search(name)
    )
    dtypes = [dtype for dtype, _ in stored.values()]
    return ModelShape(
        architecture=config_json.architecture(config),
        parameters=sum(math.prod(sizes) for _, sizes in stored.values()),
        linears=linears,
        hidden=config_json.integer(text, "hidden_size", "n_embd"),
        layers=config_json.integer(text, "num_hidden_layers", "n_layer"),
        vocab=config_json.integer(text, "vocab_size"),
        tied=_tied(config, unknown=True),
        dtype=max(set(dtypes), key=dtypes.count) if dtypes else "?",
        config=config,
    )
