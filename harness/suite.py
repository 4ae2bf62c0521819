"""suites/*.yaml -> Suite -> Plan: every cell with its questions, every square that cannot exist with the reason.

Reads with `yaml.safe_load`, validates with pydantic, and reports a mistake with file and line. Planning touches no torch: it
reads the METHODS and PROBES tables and the headers of the models' weight files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness import corpora, models, reference
from harness.corpora import Corpus
from harness.errors import BadInput, UnknownName
from harness.methods import METHODS
from harness.methods.base import Method, Shape, resolve_options
from harness.probes import PROBES
from harness.probes.base import Wishes
from harness.spec import Cell, Json, Question, Scheme, to_json

_PACKAGED = Path(__file__).parent / "suites"
BUILT_IN = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "suites"
"""Suites that come with the package (or lie beside it in a checkout); `quant-harness run quick` finds them by name."""

DEFAULT_PROBES = ("quantize", "size", "perplexity", "divergence", "tasks", "memory", "latency")


_DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(_Strict):
    """What calibrated methods see: `samples` rows of `length` tokens drawn with `seed` from a corpus."""

    corpus: str | dict[str, Any] = "reference"
    samples: int = Field(default=128, ge=1)
    length: int = Field(default=512, ge=8)
    seed: int = 0


class CorpusEntry(_Strict):
    """A text to measure on. `window` in tokens; `tokens` limits how many are scored."""

    corpus: str | None = None
    path: str | None = None
    name: str | None = None
    window: int = Field(default=2048, ge=2)
    tokens: int | None = Field(default=None, ge=2)
    definition: str | None = None


class TaskEntry(_Strict):
    """A task of lm-eval, or of a folder of task YAMLs named by `include`."""

    task: str
    shots: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    include: str | None = None


class Latency(_Strict):
    """Shapes to time: each prompt length x batch, generating `new` tokens; `budget` in seconds per shape."""

    prompt: list[int] = [128, 512]
    new: int = Field(default=64, ge=2)
    batch: list[int] = [1]
    budget: float = Field(default=30.0, gt=0)


class Memory(_Strict):
    """The declared context of the memory figures, in tokens, and the batch."""

    prompt: int = Field(default=512, ge=1)
    new: int = Field(default=64, ge=1)
    batch: int = Field(default=1, ge=1)


class Suite(_Strict):
    """A matrix and what to measure, as written by a person. Lists inside a method's options multiply."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str = ""
    models: list[str | dict[str, Any]] = Field(min_length=1)
    baseline: str = "bf16"
    bits: list[float] | None = None
    methods: dict[str, dict[str, Any] | list[dict[str, Any]] | None] = Field(min_length=1)
    include: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    calibration: Calibration = Calibration()
    corpora: list[str | CorpusEntry] = []
    tasks: list[str | TaskEntry] = []
    limit: int | None = Field(default=None, ge=1)
    latency: Latency = Latency()
    memory: Memory = Memory()
    probes: list[str] = list(DEFAULT_PROBES)
    device: str = Field(default="auto", pattern=_DEVICE)
    seed: int = 0
    timeout: float = Field(default=3600.0, gt=0, description="seconds for one question")
    quantize_timeout: float = Field(default=14400.0, gt=0, description="seconds to quantize one cell")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """A supported square: what will be asked of it, and the estimated bytes of its artifact (None until the model is here)."""

    cell: Cell
    questions: tuple[Question, ...]
    baseline: bool
    estimated_bpw: float
    estimated_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """A square that cannot exist, and why."""

    cell: Cell
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All squares of a suite on one device, with where the inputs are found (paths are no part of any question)."""

    suite: Suite
    file: Path
    device: str
    cells: tuple[PlannedCell, ...]
    unsupported: tuple[Unsupported, ...]
    texts: Mapping[str, Corpus]
    calibrations: Mapping[str, Corpus]
    task_folders: Mapping[str, str]

    def to_json(self) -> Json:
        """The plan line of a run file: everything that decides what the report must draw."""
        return {
            "suite": self.suite.model_dump(mode="json"),
            "baseline": self.suite.baseline,
            "cells": [
                {
                    "cell": to_json(p.cell),
                    "questions": to_json(p.questions),
                    "baseline": p.baseline,
                    "estimated_bpw": p.estimated_bpw,
                    "estimated_bytes": p.estimated_bytes,
                }
                for p in self.cells
            ],
            "unsupported": [{"cell": to_json(u.cell), "reason": u.reason} for u in self.unsupported],
            "commands": [f"quant-harness run {self.file.stem if self.file.parent == BUILT_IN else self.file}"],
        }


def find(name: str) -> Path:
    """A suite by path, or by the name of a built-in one. UnknownName with the nearest names when there is none."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        if not path.is_file():
            raise BadInput(f"{path}: no such suite file; built-in suites: {', '.join(built_in())}")
        return path
    if name not in built_in():
        raise UnknownName("suite", name, built_in())
    return BUILT_IN / f"{name}.yaml"


def built_in() -> list[str]:
    return sorted(p.stem for p in BUILT_IN.glob("*.yaml"))


def load(path: Path) -> Suite:
    """Reads and validates a suite file. BadInput names the file and the line."""
    try:
        raw = path.read_text(encoding="utf-8")
        data = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadInput(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}, line 1: a suite is a mapping with `name`, `models` and `methods`")
    try:
        return Suite.model_validate(data)
    except ValidationError as error:
        places = _lines(raw)
        problems = []
        for item in error.errors():
            where = tuple(part for part in item["loc"] if part not in _UNION_ARMS)
            if item["type"] == "extra_forbidden":
                known = ", ".join(sorted(Suite.model_fields)) if len(where) == 1 else "see docs/suites.md"
                message = f"unknown key {where[-1]!r}; known: {known}"
            else:
                message = f"{'.'.join(map(str, where))}: {item['msg']}"
            problems.append(f"{path}, line {_line(places, where)}: {message}")
        raise BadInput("\n".join(dict.fromkeys(problems))) from None


def plan(path: Path, *, device: str, shapes: Mapping[str, Shape | None] | None = None) -> Plan:
    """All cells and questions of a suite for a device ("cpu", "cuda"). `shapes` overrides what is read from disk (tests)."""
    suite = load(path)
    base, places = path.parent, _lines(path.read_text(encoding="utf-8"))

    def where(*keys: str | int) -> str:
        return f"{path}, line {_line(places, keys)}"

    sources = [models.model(entry, base) for entry in suite.models]
    _unique([m.name for m in sources], f"{where('models')}: model name")
    for probe in suite.probes:
        if probe not in PROBES:
            raise UnknownName("probe", probe, PROBES, where("probes"))
    texts: dict[str, Corpus] = {}
    wishes = _wishes(suite, base, where, texts)
    folders = {str(t["name"]): str(t["folder"]) for t in wishes.tasks if t["folder"]}
    questions = tuple(q for name in suite.probes for q in PROBES[name].questions(wishes))
    schemes, calibrations = _schemes(suite, base, where)
    if suite.baseline not in {s.label for s in schemes}:
        raise UnknownName("baseline", suite.baseline, {s.label for s in schemes}, where("baseline"))

    cells: list[PlannedCell] = []
    unsupported: list[Unsupported] = []
    for source in sources:
        known = shapes[source.name] if shapes is not None else models.shape(source)
        for scheme in sorted(schemes, key=lambda s: s.label != suite.baseline):  # the baseline first: others need its answers
            cell = Cell(model=source, scheme=scheme)
            if _matches(cell, suite.exclude):
                continue
            reason = _reason(METHODS[scheme.method], scheme, known, device)
            if reason is not None:
                unsupported.append(Unsupported(cell=cell, reason=reason))
                continue
            bpw = METHODS[scheme.method].bits_per_weight(scheme)
            cells.append(
                PlannedCell(
                    cell=cell,
                    questions=tuple(q for q in questions if not (source.random and PROBES[q.probe].needs_weights)),
                    baseline=scheme.label == suite.baseline,
                    estimated_bpw=bpw,
                    estimated_bytes=None if known is None else estimated_bytes(known, bpw, METHODS[scheme.method]),
                )
            )
    for source in sources:
        if not any(p.baseline and p.cell.model == source for p in cells):
            why = next(
                (u.reason for u in unsupported if u.cell.model == source and u.cell.scheme.label == suite.baseline),
                "it is excluded",
            )
            raise BadInput(
                f"{where('baseline')}: the baseline {suite.baseline!r} of model {source.name!r} cannot be measured: {why}"
            )
    return Plan(
        suite=suite,
        file=path,
        device=device,
        cells=tuple(cells),
        unsupported=tuple(unsupported),
        texts=texts,
        calibrations=calibrations,
        task_folders=folders,
    )


def estimated_bytes(shape: Shape, bpw: float, method: Method) -> int:
    """Bytes of the artifact: quantized linears at `bpw`, the rest as stored (16 bits), all at the dtype for native rows."""
    linear = sum(layer.rows * layer.columns for layer in shape.linears)
    rest_bits = bpw if method.native else 16
    return round((linear * bpw + (shape.parameters - linear) * rest_bits) / 8)


def _reason(method: Method, scheme: Scheme, shape: Shape | None, device: str) -> str | None:
    if scheme.bits not in method.bits:
        offered = ", ".join(f"{b:g}" for b in method.bits)
        return f"{method.name} does not offer {scheme.bits:g} bits (it offers {offered})"
    kernels = method.kernel_cuda if device.startswith("cuda") else method.kernel_cpu
    if kernels.get(scheme.bits) == "none":
        return f"{method.name} has no way to run {scheme.bits:g} bits on {device}"
    return method.supports(scheme, shape, device)


def _schemes(suite: Suite, base: Path, where: Any) -> tuple[list[Scheme], dict[str, Corpus]]:
    """All schemes of the matrix in suite order, with labels that are unique and short."""
    calibrations: dict[str, Corpus] = {}
    found: list[tuple[Scheme, dict[str, Json]]] = []
    grids: list[tuple[str, Mapping[str, Json], Sequence[str | int]]] = []
    for name, entry in suite.methods.items():
        if isinstance(entry, list):
            grids.extend((name, grid, ("methods", name, index)) for index, grid in enumerate(entry))
        else:
            grids.append((name, entry or {}, ("methods", name)))
    for index, extra in enumerate(suite.include):
        if "method" not in extra:
            raise BadInput(f"{where('include', index)}: an included cell names its method: include: [{{method: gptq, bits: 4}}]")
        grids.append((str(extra["method"]), {k: v for k, v in extra.items() if k != "method"}, ("include", index)))
    for name, grid, keys in grids:
        if name not in METHODS:
            raise UnknownName("method", name, METHODS, where(*keys))
        for given in _product(name, grid, suite, where(*keys)):
            scheme = _scheme(METHODS[name], given, suite, base, where(*keys), calibrations)
            if scheme.identity() not in [s.identity() for s, _ in found]:
                found.append((scheme, given))
    return _labelled([s for s, _ in found]), calibrations


def _product(name: str, grid: Mapping[str, Json], suite: Suite, where: str) -> Iterator[dict[str, Json]]:
    method = METHODS[name]
    axes = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
    if "bits" in axes:
        for bits in axes["bits"]:
            if bits not in method.bits:
                offered = ", ".join(f"{b:g}" for b in method.bits)
                raise BadInput(f"{where}: {name} does not offer {bits} bits; it offers {offered}: write bits: [{offered}]")
    elif method.native or suite.bits is None:
        axes["bits"] = list(method.bits)
    else:
        axes["bits"] = list(suite.bits)
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _scheme(
    method: Method, given: Mapping[str, Json], suite: Suite, base: Path, where: str, calibrations: dict[str, Corpus]
) -> Scheme:
    options = {k: v for k, v in given.items() if k not in {"bits", "calibration"}}
    for name, value in options.items():
        if name not in method.options:
            raise UnknownName(
                f"option of {method.name}", name, [*method.options, "bits", *(["calibration"] * method.calibrated)], where
            )
        option = method.options[name]
        if option.choices is not None and value not in option.choices:
            allowed = ", ".join(map(str, option.choices))
            raise BadInput(f"{where}: {method.name} does not take {name}: {value}; it takes {allowed}")
        kinds = option.types or ((type(option.default),) if option.default is not None else ())
        if kinds and option.choices is None and not isinstance(value, kinds):
            raise BadInput(f"{where}: {method.name}: {name}: {value!r} is not {' or '.join(k.__name__ for k in kinds)}")
    resolved = resolve_options(method, options, float(given["bits"]))
    if method.calibrated:
        try:
            wish = Calibration.model_validate({**suite.calibration.model_dump(), **(given.get("calibration") or {})})
        except ValidationError as error:
            raise BadInput(f"{where}: calibration: {error.errors()[0]['msg']}") from None
        source = corpora.corpus(wish.corpus, base, "calibrate", where)
        calibrations[source.name] = source
        resolved["calibration"] = {**wish.model_dump(), "corpus": source.name}
    elif "calibration" in given:
        raise BadInput(f"{where}: {method.name} takes no calibration data; remove `calibration`")
    return Scheme(method=method.name, bits=float(given["bits"]), options=resolved)


def _labelled(schemes: Sequence[Scheme]) -> list[Scheme]:
    """`gptq 4-bit g64`, then whatever differs from the method's defaults, then whatever still tells twins apart."""
    named = [replace(s, label=_label(s)) for s in schemes]
    for scheme_index, scheme in enumerate(named):
        twins = [s for s in named if s.label == scheme.label]
        if len(twins) > 1:
            differing = sorted(k for k in scheme.options if len({str(t.options.get(k)) for t in twins}) > 1)
            extra = " ".join(f"{k}={_short(scheme.options[k])}" for k in differing)
            named[scheme_index] = replace(scheme, label=f"{scheme.label} {extra}")
    return named


def _label(scheme: Scheme) -> str:
    method = METHODS[scheme.method]
    if method.native:
        return method.name
    parts = [method.name, f"{scheme.bits:g}-bit"]
    for name, option in method.options.items():
        value = scheme.options.get(name)
        if name == "group_size":
            parts.append("per-channel" if value in (-1, None) else f"g{value}")
        elif value != option.default or (option.bits is not None and scheme.bits in option.bits and isinstance(value, str)):
            parts.append((name if value else f"no-{name}") if isinstance(value, bool) else _short(value))
    return " ".join(parts)


def _short(value: Json) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}:{_short(v)}" for k, v in sorted(value.items()))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wishes(suite: Suite, base: Path, where: Any, texts: dict[str, Corpus]) -> Wishes:
    return Wishes(
        corpora=list(_corpora(suite, base, where, texts)),
        tasks=list(_tasks(suite, base, where)),
        latency=[
            {"prompt": p, "new": suite.latency.new, "batch": b}
            for p, b in itertools.product(suite.latency.prompt, suite.latency.batch)
        ],
        memory=suite.memory.model_dump(),
        latency_budget_seconds=suite.latency.budget,
    )


def _corpora(suite: Suite, base: Path, where: Any, texts: dict[str, Corpus]) -> Iterator[dict[str, Json]]:
    for index, wish in enumerate(suite.corpora):
        entry = CorpusEntry(corpus=wish) if isinstance(wish, str) else wish
        source = corpora.corpus(entry.model_dump(), base, "measure", where("corpora", index))
        name = entry.name or source.name
        if name in texts:
            raise BadInput(f"{where('corpora', index)}: two corpora are called {name!r}; give one a `name`")
        texts[name] = source
        path = None if source.path is None else Path(source.path)
        yield {
            "name": name,
            "window": entry.window,
            "tokens": entry.tokens,
            "definition": entry.definition or f"gptq-{entry.window}",
            "digest": f"hub:{source.name}" if path is None else corpora.digest(path),
        }


def _tasks(suite: Suite, base: Path, where: Any) -> Iterator[dict[str, Json]]:
    from harness.probes.tasks import known_tasks, task_digest

    if not suite.tasks or "tasks" not in suite.probes:
        return
    seen: list[str] = []
    for index, wish in enumerate(suite.tasks):
        entry = TaskEntry(task=wish) if isinstance(wish, str) else wish
        folder: Path | None = None
        if entry.include is not None:
            folder = (base / Path(entry.include).expanduser()).resolve()
            if not folder.is_dir():
                raise BadInput(f"{where('tasks', index)}: no such folder of tasks: {folder}; correct `include`")
        elif entry.task in reference.TASKS:
            folder = reference.TASKS_DIR
        known = known_tasks(folder)
        if entry.task not in known:
            raise UnknownName("task", entry.task, {*known, *reference.TASKS}, where("tasks", index))
        seen.append(entry.task)
        yield {
            "name": entry.task,
            "shots": entry.shots,
            "limit": entry.limit if entry.limit is not None else suite.limit,
            "folder": None if folder is None else str(folder),
            "digest": task_digest(entry.task, folder),
        }
    _unique(seen, f"{where('tasks')}: task")


def _matches(cell: Cell, patterns: Sequence[Mapping[str, Json]]) -> bool:
    fields: dict[str, Json] = {
        **cell.scheme.options,
        "method": cell.scheme.method,
        "bits": cell.scheme.bits,
        "model": cell.model.name,
    }
    return any(all(_one_of(fields.get(key), value) for key, value in pattern.items()) for pattern in patterns)


def _one_of(value: Json, wanted: Json) -> bool:
    return bool(value in wanted if isinstance(wanted, list) else value == wanted)


def _unique(names: Sequence[str], what: str) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise BadInput(f"{what} {twice[0]!r} is used twice; names must differ")


_UNION_ARMS = {"str", "CorpusEntry", "TaskEntry", "dict[str,any]", "list[dict[str,any]]"}
"""What pydantic puts into an error's place for each arm of a union; people know nothing of them."""


def _lines(raw: str) -> dict[tuple[str | int, ...], int]:
    """Line number (from 1) of every key and item of a YAML text."""
    places: dict[tuple[str | int, ...], int] = {}

    def walk(node: yaml.Node, keys: tuple[str | int, ...]) -> None:
        places.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = (*keys, key.value)
                places[below] = key.start_mark.line + 1
                walk(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*keys, index))

    node = yaml.compose(raw, Loader=yaml.SafeLoader)
    if node is not None:
        walk(node, ())
    return places


def _line(places: Mapping[tuple[str | int, ...], int], keys: Sequence[str | int]) -> int:
    """Line of the longest known prefix of `keys`."""
    for length in range(len(keys), -1, -1):
        if tuple(keys[:length]) in places:
            return places[tuple(keys[:length])]
    return 1


def choose_device(wish: str) -> str:
    """`auto` becomes `cuda` where the driver lists a GPU, else `cpu`; any other device is taken as said."""
    if not re.fullmatch(_DEVICE, wish):
        raise BadInput(f"unknown device {wish!r}; write auto, cpu, cuda or cuda:N")
    if wish != "auto":
        return wish
    from harness.machine import gpus

    return "cuda" if gpus() else "cpu"
