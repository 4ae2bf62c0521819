"""Suite -> Plan: every cell with its questions, every square that cannot exist with the reason.

Planning touches no torch: it reads the METHODS and PROBES tables and the headers of the models' weight files. What holds the
weights of a model in transformers, a process of its own says where it must be asked (models/body.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import plugins
from harness.artifact import ModelShape
from harness.errors import BadInput, UnknownName
from harness.methods import METHODS
from harness.probes import PROBES
from harness.spec import Quantized, Served
from harness.suite import conversations, data_sets, exclude, inputs, kv_axis, training
from harness.suite.calibration import CalibrationTexts, described, option
from harness.suite.file import DEVICE, SuiteFile, load
from harness.suite.plan import Plan, PlannedCell, UnsupportedSquare
from harness.suite.questions import questions_of, requests_of, texts_of, without_questions
from harness.suite.schemes import Choice, check_served_models, choices_of, started, unset_tokens
from harness.suite.sources import Source, looked_at, out_of_reach, sources_of
from harness.suite.sources import notes as notes_of
from harness.suite.squares import Frame, Square, squares


def plan(path: Path, *, device: str, cache: Path | None = None, shapes: Mapping[str, ModelShape | None] | None = None) -> Plan:
    """All cells and questions of a suite for a device ("cpu", "cuda"). `cache`: where what models are made of is remembered.
    `shapes` overrides what is read from disk (tests)."""
    plugins.load()
    written = load(path)
    suite = written.suite
    sources = sources_of(written)
    texts = texts_of(written)
    requests = requests_of(written, texts)
    calibrations = CalibrationTexts(written)
    choices = choices_of(written, calibrations)
    frame = Frame(
        suite=suite,
        device=device,
        questions=questions_of(written, requests),
        texts=calibrations,
        open_corpora=frozenset(c.name for c in requests.corpora if c.open),
        ways=_ways(written, sources, choices),
    )
    check_served_models(written, choices, [s.name for s in sources if s.of is None])
    through_transformers = any(_by_transformers(choice) for choice in choices)
    sources = looked_at(sources, written, shapes, bodies=through_transformers, cache=cache)
    inputs.check(written, sources, texts, {c.name: c for c in requests.corpora}.values())
    notes = (
        *out_of_reach(sources),
        *without_questions(written, requests),
        *unset_tokens(choices),
        *started(choices),
        *inputs.beyond_context(written, sources),
        *conversations.notes(written, sources, requests.tasks),
        *notes_of(sources),
    )
    all_squares = _left(written, sources, choices, frame)
    _check_labels(written, all_squares)
    _check_artifacts(written, all_squares)
    cells = tuple(s for s in all_squares if isinstance(s, PlannedCell))
    labels = {p.cell.label for p in cells}
    notes = (*notes, *training.notes([c for c in choices if c.label in labels]), *_asked_of_none(written, cells))
    seen = {str(wish["corpus"]) for p in cells if (wish := option(p.cell.scheme)) is not None}
    given = {name: text for name, text in calibrations.by_name.items() if name in seen}
    inputs.check_calibration(written, sources, cells, given)
    notes = (*notes, *data_sets.notes(written, [*texts.values(), *given.values()], requests.tasks, cache=cache))
    on_texts = described(cells, given, texts)
    training.check_overlap(written, cells, on_texts)
    return Plan(
        suite=suite,
        file=path,
        device=device,
        cells=cells,
        unsupported=tuple(s for s in all_squares if isinstance(s, UnsupportedSquare)),
        texts=texts,
        calibrations=given,
        calibrated_on=on_texts,
        task_folders={t.name: t.folder for t in requests.tasks if t.folder is not None},
        checkpoints=tuple(s.model for s in sources if s.of is not None),
        source_grids={s.name: s.grid for s in sources if s.grid is not None},
        notes=notes,
    )


def _left(written: SuiteFile, sources: Sequence[Source], choices: Sequence[Choice], frame: Frame) -> list[Square]:
    """The squares that `exclude` leaves. UnknownName for a baseline that is no label of a square, or was none before a group size
    fell; BadInput for an entry of `exclude` that takes nothing out, or a baseline that cannot be measured."""
    every = [square for source in sources for square in squares(source, choices, frame)]
    shown = {square.cell.label for square in every}
    if written.suite.baseline not in {*shown, *(c.label for c in choices)} and not all(s.quantized for s in sources):
        raise UnknownName("baseline", written.suite.baseline, shown, written.where("baseline"))
    exclude.check(written, [square.cell for square in every])
    _check_baselines(written, sources, every)
    return [square for square in every if exclude.entry_of(written, square.cell) is None]


def _asked_of_none(written: SuiteFile, cells: Sequence[PlannedCell]) -> list[str]:
    """A line for each probe that the suite names itself, and that is asked of cells of which there are none."""
    if "probes" not in written.suite.model_fields_set:
        return []
    named = [PROBES[name] for name in written.suite.probes]
    said = []
    if not any(p.cell.scheme.mixture is not None for p in cells):
        only = [probe.name for probe in named if probe.of_mixtures]
        said += [
            f"probe {name!r} is asked of widths by layer, and this suite has none: gptq: {{target_bits: 4.0}}" for name in only
        ]
    for probe in named:
        if probe.engines and not any(p.cell.running.engine in probe.engines for p in cells):
            engines = " or ".join(probe.engines)
            said.append(f"probe {probe.name!r} is asked of cells that run in {engines}, and this suite has none")
    return said


def _ways(written: SuiteFile, sources: Sequence[Source], choices: Sequence[Choice]) -> frozenset[bool]:
    """Whether there are cells on the axis `kv` (True), and others (False)."""
    given = [written.suite.kv is not None for source in sources if source.quantized]
    return frozenset([*given, *(choice.kept is not None for choice in choices)])


def _by_transformers(choice: Choice) -> bool:
    """Whether transformers loads the model for this choice, so that its classes decide what can be quantized."""
    return not isinstance(choice.origin, Served) and "transformers" in METHODS[choice.origin.scheme.method].modules


def _check_baselines(written: SuiteFile, sources: Sequence[Source], squares: Sequence[Square]) -> None:
    """BadInput where a model that is not quantized already has no baseline, with the reason."""
    wanted = written.suite.baseline
    for source in sources:
        own = [s for s in squares if s.cell.model == source.model]
        if source.quantized:
            continue
        said = f"the baseline {wanted!r} of model {source.name!r} cannot be measured"
        baselines = [s for s in own if isinstance(s, PlannedCell) and s.baseline]
        if not baselines:
            reasons = [s.reason for s in own if isinstance(s, UnsupportedSquare) and s.cell.label == wanted]
            place = written.where(*(("baseline",) if "baseline" in written.suite.model_fields_set else ("methods",)))
            raise BadInput(f"{place}: {said}: {reasons[0] if reasons else 'this model has no such cell'}")
        if METHODS[baselines[0].cell.method].trains is not None:
            raise BadInput(
                f"{written.where('baseline')}: {said}: its weights were trained further, so a divergence from them would not be "
                "one from the model; write baseline: bf16"
            )
        if kv_axis.said(written):
            kv_axis.check_baseline(written, baselines[0].cell, [s.cell for s in own])
        entries = [exclude.entry_of(written, s.cell) for s in baselines]
        if all(entry is not None for entry in entries):
            raise BadInput(
                f"{written.where('exclude', entries[0] or 0)}: {said}: it is excluded; name another one with `baseline`"
            )


def _check_artifacts(written: SuiteFile, squares: Sequence[Square]) -> None:
    """UnknownName where a server is to serve what no cell of its model writes here."""
    for square in squares:
        origin = square.cell.origin
        if not isinstance(origin, Served) or not origin.artifact:
            continue
        own = [s for s in squares if s.cell.model == square.cell.model and isinstance(s.cell.origin, Quantized)]
        refused = [s.reason for s in own if isinstance(s, UnsupportedSquare) and s.cell.label == origin.artifact]
        place = written.where("methods", square.cell.method)
        if refused:
            raise BadInput(f"{place}: artifact: {origin.artifact!r} cannot be made: {refused[0]}")
        if origin.artifact not in {s.cell.label for s in own}:
            raise UnknownName("cell (artifact)", origin.artifact, [s.cell.label for s in own], place)


def _check_labels(written: SuiteFile, squares: Sequence[Square]) -> None:
    """BadInput where two cells of a model have one label: a report could not tell them apart."""
    seen: set[tuple[str, str]] = set()
    for square in squares:
        place = (square.cell.model.name, square.cell.label)
        if place in seen:
            raise BadInput(
                f"{written.where('models')}: two cells of model {place[0]!r} are called {place[1]!r}; give the checkpoint or the "
                "server another name: name: ..."
            )
        seen.add(place)


def choose_device(wish: str, *, here: bool) -> str:
    """`auto` becomes `cuda` where the driver lists a GPU, else `cpu`; any other device is taken as said. BadInput for one that is
    none, and where the device must be `here`, for a GPU that the driver does not list."""
    if not re.fullmatch(DEVICE, wish):
        raise BadInput(f"unknown device {wish!r}; write auto, cpu, cuda or cuda:N")
    if wish == "cpu" or not (here or wish == "auto"):
        return wish
    from harness.measure.nvidia import gpus

    count = len(gpus())
    if wish == "auto":
        return "cuda" if count else "cpu"
    if why := _absent(wish, count):
        raise BadInput(f"device {wish}: {why}; write --device cpu, or mend the driver")
    return wish


def not_here(device: str) -> str | None:
    """What is to be said of a plan for a device that this machine has not; None where it has it."""
    from harness.measure.nvidia import gpus

    why = None if device == "cpu" else _absent(device, len(gpus()))
    return None if why is None else f"this plan is for another machine: device {device}, and {why}, so `run` refuses it here"


def _absent(device: str, count: int) -> str | None:
    """Why a machine with so many GPUs has not this one."""
    if int(device.partition(":")[2] or 0) < count:
        return None
    listed = f"lists {count} GPU{'s' if count > 1 else ''}" if count else "lists no GPU"
    return f"the driver (nvidia-smi) {listed} here"
