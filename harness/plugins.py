"""Methods, engines and probes of other packages, found by their entry points.

A package offers a row by an entry point whose name is the row's, in one of three groups::

    [project.entry-points."llm_quant_harness.methods"]
    absmax = "absmax_harness:METHOD"

`load` puts these rows into METHODS, ENGINES and PROBES. It is called where planning starts, so that help and reports import no
other package. A row that cannot be used is left out, with the reason in one line; so is one whose name a row of ours has, or
another package's, because nobody could tell whose number it is. What a suite names is looked up in these tables and nowhere else.

A child gets the same rows: its parent tells it which, and puts each package on its path by itself (`links`), whatever else lies
beside it. So the code that runs is the one whose version is in the key, in environments of other methods too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.engines import ENGINES
from harness.engines.base import Engine
from harness.errors import BadInput, MissingPackage, UnknownName
from harness.methods import METHODS
from harness.methods.base import Method
from harness.methods.not_offered import FAMILIES
from harness.metrics import METRICS
from harness.probes import PROBES
from harness.probes.base import Probe

Kind = Literal["engine", "method", "probe"]
Row = Method | Engine | Probe

GROUPS: dict[Kind, str] = {kind: f"llm_quant_harness.{kind}s" for kind in ("engine", "method", "probe")}
"""Entry-point groups, engines first: methods name them."""

TABLES: dict[Kind, dict[str, Any]] = {"engine": ENGINES, "method": METHODS, "probe": PROBES}
ROWS: dict[Kind, type[Row]] = {"engine": Engine, "method": Method, "probe": Probe}

CHILDS = "QUANT_HARNESS_CHILD_PLUGINS"
"""Environment variable in which a parent tells its child which rows to load."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A row that another package offers: `target` is `module:attribute`, `package` and `version` those of the distribution."""

    kind: Kind
    name: str
    target: str
    package: str
    version: str

    @property
    def provider(self) -> str:
        """The distribution and its version."""
        return f"{self.package} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A row that is left out, and why."""

    plugin: Plugin
    why: str

    def __str__(self) -> str:
        return f"the {self.plugin.kind} {self.plugin.name!r} of {self.plugin.provider} is left out: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What other packages offer here."""

    plugins: tuple[Plugin, ...]
    refused: tuple[Refused, ...]


@functools.cache
def load() -> Loaded:
    """Puts every row that other packages offer into its table, once per process, and says which were left out."""
    offered = [_plugin(kind, entry) for kind, group in GROUPS.items() for entry in importlib.metadata.entry_points(group=group)]
    offered = sorted(dict.fromkeys(offered), key=lambda p: (list(GROUPS).index(p.kind), p.name, p.provider))
    return take(offered)


def take(offered: Sequence[Plugin]) -> Loaded:
    """Loads these rows into their tables. Engines have to come before the methods that name them."""
    plugins, refused = [], []
    own = {kind: frozenset(table) for kind, table in TABLES.items()}
    owners = {method.environment: "quant-harness" for method in METHODS.values()}
    for plugin in offered:
        rivals = [p.provider for p in offered if (p.kind, p.name) == (plugin.kind, plugin.name)]
        try:
            if plugin.name in own[plugin.kind]:
                raise BadInput(f"quant-harness has a {plugin.kind} of that name itself")
            if len(rivals) > 1:
                raise BadInput(f"{' and '.join(rivals)} have a {plugin.kind} of that name; uninstall all but one of them")
            row = _row(plugin)
            if isinstance(row, Method):
                _check_method(row, plugin, owners)
                owners.setdefault(row.environment, plugin.package)
            elif isinstance(row, Probe):
                _check_probe(row, plugin)
            links([plugin])
        except BadInput as error:
            refused.append(Refused(plugin=plugin, why=str(error)))
        else:
            _add(plugin, row)
            plugins.append(plugin)
    return Loaded(plugins=tuple(plugins), refused=tuple(refused))


def of(kind: Kind, name: str) -> Plugin | None:
    """The package's row of that name; None for a row of ours."""
    return next((p for p in load().plugins if (p.kind, p.name) == (kind, name)), None)


def unknown(kind: Kind, name: str, where: str) -> BadInput:
    """What to answer to a name that is in no table: why its package was left out, why nobody offers it, or the nearest names."""
    for refused in load().refused:
        if (refused.plugin.kind, refused.plugin.name) == (kind, name):
            return BadInput(f"{where}: {refused}")
    family = FAMILIES.get(re.sub(r"[^a-z0-9]", "", name.lower())) if kind == "method" else None
    if family is not None:
        return BadInput(f"{where}: {family}")
    return UnknownName(kind, name, TABLES[kind], where)


def used(methods: Iterable[str], probes: Iterable[str]) -> list[Plugin]:
    """The rows of other packages among these methods, their engines, and these probes."""
    names = set(methods)
    wanted = {("method", name) for name in names} | {("engine", METHODS[name].engine) for name in names}
    wanted |= {("probe", name) for name in probes}
    return [p for p in load().plugins if (p.kind, p.name) in wanted]


def links(plugins: Iterable[Plugin]) -> dict[Path, Path]:
    """What to put on a child's path: the package (or single file) of each row under the name by which it is imported."""
    places: dict[Path, Path] = {}
    for plugin in plugins:
        parts = plugin.target.partition(":")[0].split(".")
        for count in range(1, len(parts) + 1):  # a namespace has no file: what counts is the package inside
            file = getattr(sys.modules[".".join(parts[:count])], "__file__", None)
            if file is not None:
                path = Path(file).resolve().parent if Path(file).stem == "__init__" else Path(file).resolve()
                places[Path(*parts[: count - 1]) / path.name] = path
                break
        else:
            raise BadInput(f"{plugin.target} lies in no file, so that no child could import it")
        if not path.exists() or parts[0] == "harness":
            raise BadInput(f"{plugin.target} lies in {path}, from which no child could import it")
    return places


def sources(plugins: Iterable[Plugin]) -> dict[str, str]:
    """SHA-256 of each package's Python files, by package and version: of two with the same version, one may have been edited."""
    files: dict[str, dict[Path, Path]] = {}
    for plugin in plugins:
        files.setdefault(plugin.provider, {}).update(links([plugin]))
    digests = {}
    for provider, places in sorted(files.items()):
        hasher = hashlib.sha256()
        for name, path in sorted(places.items()):
            for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
                hasher.update(f"{name}/{file.relative_to(path)}\0".encode() + file.read_bytes() + b"\0")
        digests[provider] = hasher.hexdigest()
    return digests


def for_child(plugins: Iterable[Plugin]) -> str:
    """The value of CHILDS: which rows a child is to load."""
    return json.dumps([dataclasses.asdict(p) for p in plugins])


def from_parent(text: str) -> dict[str, str]:
    """In a child: loads the rows that the parent told of. A row that cannot be loaded here stays in its table and says why when
    it is used, so that it fails what needs it and nothing else. Returns the reasons by module."""
    refused = take([Plugin(**data) for data in json.loads(text)]).refused if text else ()
    for one in refused:
        _add(one.plugin, _hole(one))
    return {one.plugin.target.partition(":")[0]: one.why for one in refused}


def _plugin(kind: Kind, entry: importlib.metadata.EntryPoint) -> Plugin:
    package = entry.dist
    name, version = ("unknown", "0") if package is None else (package.name, package.version)
    target = entry.value.partition("[")[0].strip()  # after it stand extras, which name no code
    return Plugin(kind=kind, name=entry.name, target=target, package=name, version=version)


def _row(plugin: Plugin) -> Row:
    """The row behind an entry point; BadInput in one line where there is none that can be used."""
    module, _, attribute = plugin.target.partition(":")
    try:
        row = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (Exception, SystemExit) as error:  # whatever another package does when it is imported
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"{plugin.target} cannot be imported: {type(error).__name__}: {said}") from None
    kind = ROWS[plugin.kind]
    if not isinstance(row, kind):
        raise BadInput(f"{plugin.target} is of the type {type(row).__name__}, not harness's {kind.__name__}")
    wrong = misfits(row)
    if wrong:
        raise BadInput(f"{plugin.target}: {'; '.join(wrong)}")
    if row.name != plugin.name or not _NAME.fullmatch(row.name):
        raise BadInput(
            f"{plugin.target} is named {row.name!r}, its entry point {plugin.name!r}: both have to be one name of small letters, "
            "digits, _ and -"
        )
    return row


def _check_method(row: Method, plugin: Plugin, owners: Mapping[str, str]) -> None:
    """BadInput for a method that fits its type and cannot work all the same. `owners`: the package of each environment."""
    wrong = []
    if not row.bits:
        wrong.append("`bits` is empty")
    wrong += [
        f"`{field}` has no entry for {bits:g} bits" for field in ("kernel_cpu", "kernel_cuda") for bits in row.bits
        if bits not in getattr(row, field)
    ]  # fmt: skip
    if row.engine not in ENGINES:
        wrong.append(f"there is no engine {row.engine!r} (there are {', '.join(sorted(ENGINES))})")
    owner = owners.get(row.environment, plugin.package)
    if row.environment != "main" and owner != plugin.package:
        wrong.append(f"the environment {row.environment!r} belongs to {owner}; give yours another name")
    if row.loaded_by and row.loaded_by not in METHODS:
        wrong.append(f"`loaded_by` names no method: {row.loaded_by!r}")
    if row.extra is not None:
        wrong.append("`extra` names an extra of quant-harness; say what to install in `requirements`")
    if row.origin != "quantized":
        wrong.append("checkpoints and servers that are quantized already are read by quant-harness itself")
    if wrong:
        raise BadInput(f"{plugin.target}: {'; '.join(wrong)}")


def _check_probe(row: Probe, plugin: Plugin) -> None:
    """BadInput for a probe with metrics whose names are taken: two numbers of one name would stand in one column."""
    names = [metric.name for metric in row.metrics]
    taken = sorted({name for name in names if name in METRICS or names.count(name) > 1})
    if taken:
        raise BadInput(f"{plugin.target}: there is another metric of the name {taken[0]!r}; give yours another one")


def _add(plugin: Plugin, row: Row) -> None:
    TABLES[plugin.kind][plugin.name] = row
    if isinstance(row, Probe):
        METRICS.update({metric.name: metric for metric in row.metrics})


def _hole(refused: Refused) -> Row:
    """A row that says, whatever it is asked, why the one of its name is not here."""

    def fail(*_: object) -> Any:
        raise MissingPackage(refused.plugin.package, f"the {refused.plugin.kind} {refused.plugin.name!r}", refused.why)

    row: Row
    if refused.plugin.kind == "engine":
        row = Engine(name=refused.plugin.name, title="", modules=(), load=fail)
    elif refused.plugin.kind == "probe":
        row = replace(PROBES["size"], name=refused.plugin.name, metrics=(), measure=fail, prepare=None, needs_model=False)
    else:
        row = replace(METHODS["bf16"], name=refused.plugin.name, quantize=fail, load=fail)
    return row


def misfits(row: object) -> list[str]:
    """What in a row is not of its declared type, each as a clause. Python checks none of it by itself."""
    hints = typing.get_type_hints(type(row))
    return [
        f"`{field.name}` is {_shown(getattr(row, field.name))}, not {_shown_type(hints[field.name])}"
        for field in dataclasses.fields(typing.cast("Any", row))
        if not fits(getattr(row, field.name), hints[field.name])
    ]


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a declared type, down to the items of tuples and mappings. What a callable takes is not looked at."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return value in inside
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inside)
    if origin in (Callable, typing.get_origin(Callable[..., Any])):
        return callable(value)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = (inside[0],) * len(value) if inside[-1] is Ellipsis else inside
        return len(value) == len(each) and all(map(fits, value, each))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(k, inside[0]) and fits(v, inside[1]) for k, v in value.items())
    if origin is type:
        return isinstance(value, type)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _shown_type(hint: Any) -> str:
    return re.sub(r"\b(?:\w+\.)+", "", str(hint)) if typing.get_origin(hint) else getattr(hint, "__name__", str(hint))
