"""Suite -> Plan: every cell with its questions, every square that cannot exist with the reason.

Planning touches no torch: it reads the METHODS and PROBES tables and the headers of the models' weight files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import plugins
from harness.artifact import ModelShape
from harness.errors import BadInput, UnknownName
from harness.formats.quantization_config import quantization
from harness.methods import METHODS
from harness.methods.base import Method
from harness.models import find
from harness.models.corpora import Corpus
from harness.probes import PROBES, sequential
from harness.spec import Cell, Json, Scheme
from harness.suite.file import DEVICE, line_of, lines, load
from harness.suite.plan import Plan, PlannedCell, Unsupported, estimated_bytes
from harness.suite.questions import wishes_of
from harness.suite.schemes import schemes_of
from harness.suite.sources import check_served_models, prequantized_square, sources_of


def plan(path: Path, *, device: str, shapes: Mapping[str, ModelShape | None] | None = None) -> Plan:  # noqa: C901
    """All cells and questions of a suite for a device ("cpu", "cuda"). `shapes` overrides what is read from disk (tests)."""
    plugins.load()
    suite = load(path)
    base, places = path.parent, lines(path.read_text(encoding="utf-8"))

    def where(*keys: str | int) -> str:
        return f"{path}, line {line_of(places, keys)}"

    sources, origin = sources_of(suite, base, where)
    for probe in suite.probes:
        if probe not in PROBES:
            raise plugins.unknown("probe", probe, where("probes"))
    texts: dict[str, Corpus] = {}
    wishes = wishes_of(suite, base, where, texts)
    folders = {str(t["name"]): str(t["folder"]) for t in wishes.tasks if t["folder"]}
    questions = tuple(q for name in suite.probes for q in PROBES[name].questions(wishes))
    schemes, calibrations = schemes_of(suite, base, where)
    check_served_models(schemes, [m.name for m in sources if m.name not in origin], where)
    known_shapes = {m.name: shapes[m.name] if shapes is not None else find.shape(m) for m in sources}
    given = [m for m in sources if (s := known_shapes[m.name]) is not None and quantization(s.config) is not None]
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
        if source.path is not None and find.is_gguf(Path(source.path)) and source.name not in origin:
            raise BadInput(
                f"{where('models')}: {source.name!r} is a GGUF file, which is asked with the tokenizer of the model that it was "
                "made of: give that one as a model too, and name it here with `of`"
            )
        if source in given:
            square = prequantized_square(suite, source, known, origin.get(source.name), questions)
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


def _reason(method: Method, scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    if method.served:  # its bits are what its operator says
        return method.supports(scheme, shape, device)
    if scheme.bits not in method.bits:
        offered = ", ".join(f"{b:g}" for b in method.bits)
        return f"{method.name} does not offer {scheme.bits:g} bits (it offers {offered})"
    kernels = method.kernel_cuda if device.startswith("cuda") else method.kernel_cpu
    if kernels.get(scheme.bits) == "none":
        return f"{method.name} has no way to run {scheme.bits:g} bits on {device}"
    return method.supports(scheme, shape, device)


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


def choose_device(wish: str) -> str:
    """`auto` becomes `cuda` where the driver lists a GPU, else `cpu`; any other device is taken as said."""
    if not re.fullmatch(DEVICE, wish):
        raise BadInput(f"unknown device {wish!r}; write auto, cpu, cuda or cuda:N")
    if wish != "auto":
        return wish
    from harness.measure.nvidia import gpus

    return "cuda" if gpus() else "cpu"
