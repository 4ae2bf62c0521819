"""Task YAMLs as files: which tasks there are, what one is made of, and whether a foreign one may be used. Without torch and
lm-eval.

lm-eval's own index parses its 14,000 YAMLs, which takes ten seconds and more; names can be read by a line scan in a few tenths.
A folder that a suite names is not trusted: its YAMLs may not name code (`!function`, `class`, `custom_dataset`, metrics of the
hub), their data files have to lie in the folder, and generation takes known arguments only.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from harness.errors import BadInput, MissingPackage, UnknownName
from harness.spec import digest

if TYPE_CHECKING:
    import yaml

TaskConfig: TypeAlias = Mapping[str, object]
"""A task's YAML, read: somebody else's words, so no value is taken for granted."""

_KEY = re.compile(r"""^["']?(task|group|tag)["']?[ \t]*:[ \t]*(.*?)[ \t]*$""", re.MULTILINE)
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*?)[ \t]*$")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

_YAML_LIMIT = 1 << 20
BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""Readers of plain data. `pandas` unpickles, and others fetch."""

_GENERATION = {
    "until",
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "num_beams",
    "repetition_penalty",
}


def lm_eval_tasks() -> Path:
    """The folder of the tasks that come with lm-eval, without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage("lm_eval", "the probe 'tasks'", "pip install lm-eval")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def index(root: Path) -> Mapping[str, tuple[Path, ...]]:
    """Every name of a task, group or tag under `root` with the YAMLs that say it, read line by line, not parsed."""
    return _installed(root) if root == lm_eval_tasks() else _index(root)


@functools.cache
def _installed(root: Path) -> Mapping[str, tuple[Path, ...]]:
    """The index of lm-eval's own 14,000 YAMLs, which do not change while a process runs; a folder of the user's may."""
    return _index(root)


def _index(root: Path) -> Mapping[str, tuple[Path, ...]]:
    places: dict[str, list[Path]] = {}
    for path in _yamls(root):
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        for name in _names(text):
            places.setdefault(name, []).append(path)
    return {name: tuple(paths) for name, paths in places.items()}


def known_tasks(folder: Path | None = None) -> set[str]:
    """Names of tasks, groups and tags: of `folder`, or of lm-eval itself."""
    return set(index(lm_eval_tasks() if folder is None else folder))


def task_digest(name: str, folder: Path | None = None) -> str:
    """SHA-256 of all that makes a task: its YAMLs with what they include; its data files where they are local; for lm-eval's own,
    the functions beside the YAML and lm-eval's version. UnknownName if there is no such task, BadInput if it may not be used."""
    root = lm_eval_tasks() if folder is None else folder
    parts: dict[str, str] = {}
    for path, config in configs(name, root).items():
        files = set(includes(path, root))
        if folder is None:
            files.update(path.parent.glob("*.py"))
        else:
            check(config, path, root)
            files.update(Path(file) for file in data_files(config, path, root))
        parts.update({str(file.relative_to(root.resolve())): _file_digest(file) for file in (f.resolve() for f in files)})
    if folder is None:
        parts["lm_eval"] = importlib.metadata.version("lm_eval")
    return digest({"task": name, "files": parts})


def configs(name: str, root: Path) -> dict[Path, TaskConfig]:
    """The YAMLs that a task, group or tag needs, as `read` reads them, in order of their paths: its own, and those of the tasks
    that it gathers, to any depth."""
    names = index(root)
    if name not in names:
        raise UnknownName("task", name, names)
    needed: dict[Path, TaskConfig] = {}
    todo = [name]
    seen: set[str] = set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        for path in names.get(current, ()):
            if path in needed:
                continue
            needed[path] = read(path, root)
            todo.extend(_children(needed[path].get("task")))
    return dict(sorted(needed.items()))


def read(path: Path, root: Path) -> TaskConfig:
    """A task's YAML with its includes merged in, later keys winning; a function is a `Function`. BadInput with file and line if
    broken."""
    return _read(path, root, ())


class Function(str):
    """A `!function` of a YAML: `module.name`, not resolved."""


def includes(path: Path, root: Path) -> list[Path]:
    """The file and all that it includes, to any depth."""
    files: list[Path] = []
    todo = [path]
    while todo:
        current = todo.pop()
        if current not in files:
            files.append(current)
            todo.extend(_include_paths(_parse(current), current, root))
    return files


def check(config: TaskConfig, path: Path, root: Path) -> None:
    """BadInput if a foreign task could do more than read its own data and score a model."""
    refused = [key for key in ("class", "custom_dataset", "use_prompt") if config.get(key) is not None]
    refused += ["unsafe_code"] if config.get("unsafe_code") else []
    refused += sorted({f"!function {value}" for value in _functions(config)})
    refused += [f"metric {m.get('metric')!r} of the hub" for m in dicts(config.get("metric_list")) if m.get("hf_evaluate")]
    generation = config.get("generation_kwargs") or {}
    if not isinstance(generation, dict):
        raise BadInput(f"{path}: `generation_kwargs` is a mapping, not {generation!r}")
    refused += [f"generation_kwargs.{key}" for key in sorted(set(generation) - _GENERATION)]
    if refused:
        raise BadInput(
            f"{path}: {', '.join(refused)} can run code of the task's author, which a task from a folder may not; "
            "write the task with templates, plain data and lm-eval's own metrics"
        )
    data_files(config, path, root)


def data_files(config: TaskConfig, path: Path, root: Path) -> list[str]:
    """Absolute paths of the local data files of a task; BadInput if one is missing or lies outside of `root`, or if the reader is
    unknown."""
    source = config.get("dataset_path")
    if source is None:
        return []
    kwargs = config.get("dataset_kwargs") or {}
    if not isinstance(source, str) or not isinstance(kwargs, dict):
        raise BadInput(f"{path}: `dataset_path` is a name and `dataset_kwargs` a mapping")
    if kwargs.get("trust_remote_code") or kwargs.get("data_dir") is not None:
        raise BadInput(f"{path}: dataset_kwargs may not hold trust_remote_code or data_dir; name the files in data_files")
    named = list(_strings(kwargs.get("data_files")))
    if source not in BUILDERS:
        if not HUB_ID.fullmatch(source) or "/" not in source or named:
            raise BadInput(
                f"{path}: dataset_path {source!r} is neither a hub id (owner/name) "
                f"nor one of {', '.join(BUILDERS)} with data_files"
            )
        return []
    if not named:
        raise BadInput(f"{path}: dataset_path {source!r} needs dataset_kwargs.data_files")
    return [str(_inside(name, path, root)) for name in named]


def localized(config: TaskConfig, path: Path, root: Path, cache: Path) -> dict[str, object]:
    """The config with its data files as absolute paths, read through a cache of our own. `datasets` remembers files by path, size
    and modification time; so the cache has one folder for each content of the files."""
    local = dict(config)
    given = local.get("dataset_kwargs")
    kwargs = dict(given) if isinstance(given, dict) else {}
    if local.get("dataset_path") in BUILDERS:
        kwargs["data_files"] = _absolute(kwargs.get("data_files"), path, root)
        contents = [_file_digest(Path(file)) for file in _strings(kwargs["data_files"])]
        kwargs["cache_dir"] = str(cache / digest(contents)[:32])
        local["dataset_kwargs"] = kwargs
    return local


# ---------------------------------------------------------------------- small parts


def _yamls(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", ".ipynb_checkpoints"))
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(".yaml"))


def _names(text: str) -> Iterator[str]:
    """Names said at the top level of a YAML: `task: x`, `group: x`, `tag: x`, `tag: [x, y]` or a list of lines."""
    for match in _KEY.finditer(text):
        key, value = match.group(1), _plain(match.group(2))
        if value.startswith("["):
            if key == "tag":
                yield from (name.strip(" \"'") for name in value.strip("[]").split(","))
        elif value:
            yield value
        elif key == "tag":
            for line in text[match.end() + 1 :].splitlines():
                item = _ITEM.fullmatch(line)
                if item is None:
                    break
                yield _plain(item.group(1))


def _plain(value: str) -> str:
    value = value.split(" #")[0].strip()
    return value[1:-1] if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0] else value


def _children(node: object) -> Iterator[str]:
    """Names of the tasks that a group's `task:` list holds, those of groups written inside it too."""
    for item in node if isinstance(node, list) else []:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from (str(item[key]) for key in ("task", "group") if isinstance(item.get(key), str))
            yield from _children(item.get("task"))


def _parse(path: Path) -> dict[str, object]:
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, position: int) -> yaml.Node | None:
            # Nested aliases grow without bound when a value is walked, and no task needs one.
            if self.check_event(yaml.AliasEvent):
                raise BadInput(f"{path}: aliases (*name) are not taken in a task; write the value out")
            return super().compose_node(parent, position)

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Function:
        return Function(loader.construct_scalar(node))

    Loader.add_constructor("!function", function)
    try:
        text = path.read_bytes()
        if len(text) > _YAML_LIMIT:
            raise BadInput(f"{path}: larger than {_YAML_LIMIT} bytes, which no task is")
        config = yaml.load(text, Loader=Loader)  # a SafeLoader that knows one more tag
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: broken YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path}: a task is a YAML mapping, this is a {type(config).__name__}")
    return config


def _read(path: Path, root: Path, above: tuple[Path, ...]) -> dict[str, object]:
    if path in above:
        raise BadInput(f"{path}: includes itself")
    own = _parse(path)
    merged: dict[str, object] = {}
    for other in _include_paths(own, path, root):
        included = _read(other, root, (*above, path))
        included.pop("task_list", None)
        merged.update(included)
    own.pop("include", None)
    return {**merged, **own}


def _include_paths(config: TaskConfig, path: Path, root: Path) -> list[Path]:
    return [_inside(name, path, root) for name in _strings(config.get("include"))]


def _inside(name: str, path: Path, root: Path) -> Path:
    """A file named by a YAML, resolved against the YAML's folder; BadInput if it is none, or not under `root`."""
    if "://" in name or "::" in name:
        raise BadInput(f"{path}: {name!r} is an address; only files in {root} may be named")
    file = (path.resolve().parent / name).resolve()
    if not file.is_relative_to(root.resolve()):
        raise BadInput(f"{path}: {name!r} lies outside of {root}; only files in it may be named")
    if not file.is_file():
        raise BadInput(f"{path}: no such file: {file}")
    return file


def _absolute(node: object, path: Path, root: Path) -> object:
    if isinstance(node, dict):
        return {key: _absolute(value, path, root) for key, value in node.items()}
    if isinstance(node, list):
        return [_absolute(value, path, root) for value in node]
    return str(_inside(str(node), path, root))


def _strings(node: object) -> Iterator[str]:
    """All strings of a value: itself, or of its list or mapping."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _strings(value)


def _functions(node: object) -> Iterator[str]:
    return (value for value in _strings(node) if isinstance(value, Function))


def dicts(node: object) -> Iterable[Mapping[str, object]]:
    """The mappings in a list; none where it is no list."""
    return [item for item in node if isinstance(item, dict)] if isinstance(node, list) else []


def _file_digest(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()
