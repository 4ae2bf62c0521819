"""Suite -> Plan: every cell with its questions, every square that cannot exist with the reason.

Planning touches no torch: it reads the METHODS and PROBES tables and the headers of the models' weight files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import corpora, models, reference
from harness.corpora import Corpus
from harness.errors import BadInput, UnknownName
from harness.errors import Unsupported as Refused
from harness.methods import METHODS, prequantized
from harness.methods.base import Method, Shape
from harness.probes import PROBES, sequential
from harness.probes.base import Wishes
from harness.schemes import schemes_of
from harness.spec import Cell, Json, Model, Question, Scheme, to_json
from harness.suite_file import BUILT_IN, DEVICE, Budget, CorpusEntry, Suite, TaskEntry, line_of, lines, load


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


def plan(path: Path, *, device: str, shapes: Mapping[str, Shape | None] | None = None) -> Plan:
    """All cells and questions of a suite for a device ("cpu", "cuda"). `shapes` overrides what is read from disk (tests)."""
    suite = load(path)
    base, places = path.parent, lines(path.read_text(encoding="utf-8"))

    def where(*keys: str | int) -> str:
        return f"{path}, line {line_of(places, keys)}"

    sources, origin = _sources(suite, base, where)
    for probe in suite.probes:
        if probe not in PROBES:
            raise UnknownName("probe", probe, PROBES, where("probes"))
    texts: dict[str, Corpus] = {}
    wishes = _wishes(suite, base, where, texts)
    folders = {str(t["name"]): str(t["folder"]) for t in wishes.tasks if t["folder"]}
    questions = tuple(q for name in suite.probes for q in PROBES[name].questions(wishes))
    schemes, calibrations = schemes_of(suite, base, where)
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


def choose_device(wish: str) -> str:
    """`auto` becomes `cuda` where the driver lists a GPU, else `cpu`; any other device is taken as said."""
    if not re.fullmatch(DEVICE, wish):
        raise BadInput(f"unknown device {wish!r}; write auto, cpu, cuda or cuda:N")
    if wish != "auto":
        return wish
    from harness.machine import gpus

    return "cuda" if gpus() else "cpu"
