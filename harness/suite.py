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
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from harness import corpora, models, reference
from harness.corpora import Corpus
from harness.errors import BadInput, UnknownName
from harness.errors import Unsupported as Refused
from harness.methods import METHODS, endpoint, prequantized
from harness.methods.base import Method, Shape, resolve_options
from harness.probes import PROBES, sequential
from harness.probes.base import Wishes
from harness.spec import Cell, Json, Model, Question, Scheme, to_json

_PACKAGED = Path(__file__).parent / "suites"
BUILT_IN = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "suites"
"""Suites that come with the package (or lie beside it in a checkout); `quant-harness run quick` finds them by name."""

DEFAULT_PROBES = ("quantize", "size", "perplexity", "divergence", "tasks", "memory", "latency", "serving")


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


def _margin(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{value:g} is no share of the items: write 0.01 for a margin of 1 point of accuracy")
    return value


def _error_rate(value: float) -> float:
    if not 0 < value < 0.5:
        raise ValueError(f"{value:g} is no error rate: write 0.05 for at most one false verdict in twenty")
    return value


Budget = Literal["fixed", "auto"]
"""How many items of a task a cell is scored on: all (that `limit` leaves), or until the verdict of `probes/sequential.py`."""


class TaskEntry(_Strict):
    """A task of lm-eval, or of a folder of task YAMLs named by `include`. `budget` takes the place of the suite's."""

    task: str
    shots: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    include: str | None = None
    budget: Budget | None = None


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


class Serving(_Strict):
    """How running servers are loaded: so many clients at once, each asking `prompt` + `new` tokens again and again, until
    `requests` are answered or `budget` seconds are spent, for each number of clients."""

    concurrency: list[Annotated[int, Field(ge=1, le=1024)]] = Field(default=[1, 2, 4, 8], min_length=1)
    prompt: int = Field(default=128, ge=1)
    new: int = Field(default=64, ge=2)
    requests: int = Field(default=24, ge=1)
    budget: float = Field(default=60.0, gt=0)


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
    budget: Budget = "fixed"
    margin: Annotated[float, AfterValidator(_margin)] = 0.01
    alpha: Annotated[float, AfterValidator(_error_rate)] = 0.05
    beta: Annotated[float, AfterValidator(_error_rate)] = 0.05
    latency: Latency = Latency()
    memory: Memory = Memory()
    serving: Serving = Serving()
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
    checkpoints: tuple[Model, ...] = ()
    """Models that are quantized already and stand for another model of the suite: cells of that one."""

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
                message = f"{'.'.join(map(str, where))}: {item['msg'].removeprefix('Value error, ')}"
            problems.append(f"{path}, line {_line(places, where)}: {message}")
        raise BadInput("\n".join(dict.fromkeys(problems))) from None


def plan(path: Path, *, device: str, shapes: Mapping[str, Shape | None] | None = None) -> Plan:
    """All cells and questions of a suite for a device ("cpu", "cuda"). `shapes` overrides what is read from disk (tests)."""
    suite = load(path)
    base, places = path.parent, _lines(path.read_text(encoding="utf-8"))

    def where(*keys: str | int) -> str:
        return f"{path}, line {_line(places, keys)}"

    sources, origin = _sources(suite, base, where)
    for probe in suite.probes:
        if probe not in PROBES:
            raise UnknownName("probe", probe, PROBES, where("probes"))
    texts: dict[str, Corpus] = {}
    wishes = _wishes(suite, base, where, texts)
    folders = {str(t["name"]): str(t["folder"]) for t in wishes.tasks if t["folder"]}
    questions = tuple(q for name in suite.probes for q in PROBES[name].questions(wishes))
    schemes, calibrations = _schemes(suite, base, where)
    _served_models(schemes, [m.name for m in sources if m.name not in origin], where)
    known_shapes = {m.name: shapes[m.name] if shapes is not None else models.shape(m) for m in sources}
    given = [m for m in sources if (s := known_shapes[m.name]) is not None and prequantized.entry(s.config) is not None]
    if suite.baseline not in {s.label for s in schemes} and len(given) < len(sources):
        raise UnknownName("baseline", suite.baseline, {s.label for s in schemes}, where("baseline"))

    cells: list[PlannedCell] = []
    unsupported: list[Unsupported] = []
    for source in sources:
        known = known_shapes[source.name]
        if source.name in origin and source not in given:
            raise BadInput(
                f"{where('models')}: {source.name!r} is given as a quantization of {origin[source.name].name!r}, but "
                + ("it is not here yet: fetch it first" if known is None else "its config.json names no quantization")
            )
        if source.path is not None and models.is_gguf(Path(source.path)) and source.name not in origin:
            raise BadInput(
                f"{where('models')}: {source.name!r} is a GGUF file, which is asked with the tokenizer of the model that it was "
                "made of: give that one as a model too, and name it here with `of`"
            )
        if source in given:
            square = _prequantized(suite, source, known, origin.get(source.name), questions)
            if isinstance(square, PlannedCell) and not _matches(square.cell, suite.exclude):
                cells.append(square)
            elif isinstance(square, Unsupported):
                unsupported.append(square)
            if source.name in origin:
                continue
        for scheme in sorted(schemes, key=lambda s: s.label != suite.baseline):  # the baseline first: others need its answers
            cell, method = Cell(model=source, scheme=scheme), METHODS[scheme.method]
            if _matches(cell, suite.exclude) or (method.served and scheme.options["of"] not in ("", source.name)):
                continue
            reason = _reason(method, scheme, known, device)
            if reason is not None:
                unsupported.append(Unsupported(cell=cell, reason=reason))
                continue
            baseline = scheme.label == suite.baseline
            asked = [
                q
                for q in questions
                if not (source.random and PROBES[q.probe].needs_weights) and PROBES[q.probe].served in (None, method.served)
            ]
            bpw = method.bits_per_weight(scheme)
            cells.append(
                PlannedCell(
                    cell=cell,
                    questions=tuple(sequential.whole(q) if baseline else q for q in asked),
                    baseline=baseline,
                    estimated_bpw=bpw,
                    estimated_bytes=None if known is None or method.served else estimated_bytes(known, bpw, method),
                )
            )
    for source in sources:
        if source not in given and not any(p.baseline and p.cell.model == source for p in cells):
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
        checkpoints=tuple(m for m in sources if m.name in origin),
    )


def _sources(suite: Suite, base: Path, where: Any) -> tuple[list[Model], dict[str, Model]]:
    """All models, and by name the model that a quantized checkpoint was made `of`. Those come last: others' baselines first."""
    wishes = [(dict(e) if isinstance(e, dict) else e) for e in suite.models]
    made_of = [e.pop("of", None) if isinstance(e, dict) else None for e in wishes]
    sources = [models.model(entry, base) for entry in wishes]
    _unique([m.name for m in sources], f"{where('models')}: model name")
    plain = {m.name: m for m, of in zip(sources, made_of, strict=True) if of is None}
    origin: dict[str, Model] = {}
    for source, of in zip(sources, made_of, strict=True):
        if of is not None:
            if str(of) not in plain:
                raise UnknownName("model (of)", str(of), plain, where("models"))
            origin[source.name] = plain[str(of)]
    return sorted(sources, key=lambda m: m.name in origin), origin


def _served_models(schemes: Sequence[Scheme], names: Sequence[str], where: Any) -> None:
    """Every server's cell belongs to one model of the suite: whose tokenizer it is asked with."""
    for scheme in schemes:
        if not METHODS[scheme.method].served:
            continue
        of, place = str(scheme.options["of"]), where("methods", scheme.method)
        if of and of not in names:
            raise UnknownName("model (of)", of, names, place)
        if not of and len(names) > 1:
            raise BadInput(f"{place}: the suite has several models; say which one {scheme.label!r} serves: of: {names[0]}")


def _prequantized(
    suite: Suite, source: Model, shape: Shape | None, of: Model | None, questions: Sequence[Question]
) -> PlannedCell | Unsupported:
    """The one square of a model that is quantized already: a cell of the model it was made of, or, alone, its own baseline."""
    config = {} if shape is None else shape.config
    asked = [q for q in questions if PROBES[q.probe].served is not True and q.probe != "quantize"]  # nobody quantizes it here
    try:
        scheme = prequantized.scheme(config, None if of is None else source.name)
    except Refused as error:
        name = prequantized.NAME if of is None else source.name
        return Unsupported(cell=Cell(model=of or source, scheme=Scheme(method=name, bits=0, label=name)), reason=str(error))
    return PlannedCell(
        cell=Cell(model=of or source, scheme=scheme),
        questions=tuple(asked),
        baseline=of is None,
        estimated_bpw=METHODS[scheme.method].bits_per_weight(scheme),
        estimated_bytes=models.stored_bytes(source),
    )


def estimated_bytes(shape: Shape, bpw: float, method: Method) -> int:
    """Bytes of the artifact: quantized linears at `bpw`, the rest as stored (16 bits), all at the dtype for native rows."""
    linear = sum(layer.rows * layer.columns for layer in shape.linears)
    rest_bits = bpw if method.native else 16
    return round((linear * bpw + (shape.parameters - linear) * rest_bits) / 8)


def _reason(method: Method, scheme: Scheme, shape: Shape | None, device: str) -> str | None:
    if method.served:  # its bits are what its operator says
        return method.supports(scheme, shape, device)
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
        if METHODS[name].prequantized:
            if grid:
                raise BadInput(f"{where(*keys)}: {name} takes no options: its scheme is read from the checkpoint's config.json")
            continue  # its cells follow from the models
        for given in _product(name, grid, suite, where(*keys)):
            scheme = _scheme(METHODS[name], given, suite, base, where(*keys), calibrations)
            if scheme.identity() not in [s.identity() for s, _ in found]:
                found.append((scheme, given))
    return _labelled([s for s, _ in found]), calibrations


def _product(name: str, grid: Mapping[str, Json], suite: Suite, where: str) -> Iterator[dict[str, Json]]:
    method = METHODS[name]
    axes = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
    if method.served:
        axes.setdefault("bits", [0.0])
        for bits in axes["bits"]:
            if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not 0 <= bits <= 32:
                raise BadInput(f"{where}: {name}: bits: {bits!r} is no bit width; leave it out where it is not known")
    elif "bits" in axes:
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
    for name, option in method.options.items():
        why = None if option.check is None else option.check(resolved[name])
        if why is not None:  # the value is not repeated: it may be a secret that went to the wrong place
            raise BadInput(f"{where}: {method.name}: {name}: {why}")
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
    if method.served:
        label = endpoint.label(resolved, float(given["bits"]))
        return Scheme(
            method=method.name,
            bits=float(given["bits"]),
            options={k: v for k, v in resolved.items() if k != "name"},  # what people call it changes no answer
            label=label,
        )
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
    if method.served:
        return scheme.label
    parts = [method.name, f"{scheme.bits:g}-bit"]
    for name, option in method.options.items():
        value = scheme.options.get(name)
        if name == "group_size":
            if scheme.bits >= 16:  # unquantized: nothing has a scale
                continue
            parts.append({-1: "per-channel", None: "per-channel", 0: "per-layer"}.get(value, f"g{value}"))
        elif value != option.at(scheme.bits) or (
            option.bits is not None and scheme.bits in option.bits and isinstance(value, str)
        ):
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
        serving=suite.serving.model_dump(),
        latency_budget_seconds=suite.latency.budget,
        sequential=_sequential(suite, suite.budget, where),
    )


def _sequential(suite: Suite, budget: Budget, where: Any) -> dict[str, Json] | None:
    """The settings of questions that are asked until a verdict; None where all items are scored. BadInput for settings that
    nothing uses: whoever wrote them expects a verdict."""
    given = suite.model_fields_set & {"margin", "alpha", "beta"}
    budgets = {suite.budget, *(t.budget for t in suite.tasks if isinstance(t, TaskEntry))}
    if given and "auto" not in budgets:
        name = sorted(given)[0]
        raise BadInput(f"{where(name)}: `{name}` is for scoring until a verdict, and all items are scored here; add budget: auto")
    return None if budget == "fixed" else {"margin": suite.margin, "alpha": suite.alpha, "beta": suite.beta}


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
            sequential.KEY: _sequential(suite, entry.budget or suite.budget, where),
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
