"""The squares of a plan, by where their weights come from: quantized here, given by somebody, or served."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import kv as kv_types
from harness import recipes
from harness.engines import ENGINES
from harness.errors import Unsupported
from harness.formats import gguf_reader
from harness.methods import METHODS, prequantized, refusals
from harness.methods.base import BY_SENSITIVITY, Method, running_of
from harness.models import find
from harness.probes import PROBES, sequential
from harness.spec import Cell, Given, OptionValue, OriginKind, Quantized, Question, Running, Scheme, Served, digest
from harness.suite import kv_axis, options
from harness.suite.calibration import CalibrationTexts, on
from harness.suite.file import Suite
from harness.suite.labels import flag_words
from harness.suite.plan import PlannedCell, UnsupportedSquare, estimated_bytes
from harness.suite.schemes import Choice
from harness.suite.sources import Source

Square = PlannedCell | UnsupportedSquare


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What all squares of a plan share. `open_corpora`: those whose definition the suite leaves open, so that cells on the axis
    `kv` are scored through the cache and all others in one pass. `ways`: whether there are cells with the axis (True) and without
    (False)."""

    suite: Suite
    device: str
    questions: tuple[Question, ...]
    texts: CalibrationTexts
    open_corpora: frozenset[str] = frozenset()
    ways: frozenset[bool] = frozenset({False})

    def asked(
        self, source: Source, kind: OriginKind, *, engine: str, baseline: bool, cached: bool = False, mixed: bool = False
    ) -> tuple[Question, ...]:
        """The questions that such a cell can be asked, one of the axis `kv` if it is `cached`, a mixture whose widths are chosen
        here if it is `mixed`. A baseline is asked all items, whatever budget the others have, and in every way that another
        cell is."""
        ways = self.ways if baseline else {cached}
        serves = kind == "served" or ENGINES[engine].serve is not None
        fitting = [
            q
            for q in self.questions
            if kind in PROBES[q.probe].origins
            and (serves or not PROBES[q.probe].own_server)
            and engine in (PROBES[q.probe].engines or (engine,))
            and self._fits(q, ways)
        ]
        if not mixed:
            fitting = [q for q in fitting if not PROBES[q.probe].of_mixtures]
        if source.model.random:
            fitting = [q for q in fitting if not PROBES[q.probe].needs_weights]
        return tuple(sequential.whole(q) if baseline else q for q in fitting)

    def _fits(self, question: Question, ways: Collection[bool]) -> bool:
        definition = question.options.get("definition")
        if definition is None or question.subject not in self.open_corpora or "corpus_digest" not in question.options:
            return True
        return (kv_types.split_of(str(definition)) is not None) in ways


def squares(source: Source, choices: Sequence[Choice], frame: Frame) -> Iterator[Square]:
    """All squares of one model, its baseline first: the others need its answers. What a group size that fell makes the same as
    another is left out."""
    seen: set[str] = set()
    for square in sorted(_all(source, choices, frame), key=lambda s: not (isinstance(s, PlannedCell) and s.baseline)):
        own = digest(square.cell.identity())
        if own not in seen:
            yield square
        seen.add(own)


def _all(source: Source, choices: Sequence[Choice], frame: Frame) -> Iterator[Square]:
    if source.quantized:
        yield from given(source, frame)
    if source.of is not None:
        return
    for choice in sorted(choices, key=lambda c: c.label != frame.suite.baseline):
        if not isinstance(choice.origin, Served):
            yield quantized(source, choice, frame)
        elif choice.of in ("", source.name):
            yield served(source, choice, frame)


def quantized(source: Source, choice: Choice, frame: Frame) -> Square:
    """The source's weights, quantized here: unsupported where the method or a kernel does not take them."""
    method, asked = METHODS[choice.origin.scheme.method], choice.label
    scheme, why = on(choice.origin.scheme, frame.texts, source)
    choice = replace(choice, origin=Quantized(scheme=scheme))
    choice, reason, note = _in_groups_that_fit(method, choice, source, frame)
    cell = Cell(model=source.model, origin=choice.origin, running=choice.running, label=choice.label)
    own, kept = cell.running.engine == method.engine, choice.kept
    reason = reason or (None if kept is None else kept.reason)
    reason = reason or (method.runs(cell.running, source.shape) if own else _elsewhere(method, cell, frame.device))
    baseline = frame.suite.baseline in (asked, choice.label)  # the label before a group size fell, or the one that is shown
    if reason is None and baseline and not own:
        reason = f"answers in {cell.running.engine} are held against the baseline's, and are none; name {method.name} itself"
    if reason is not None:
        return UnsupportedSquare(cell=cell, reason=reason)
    bpw = method.bits_per_weight(cell.scheme)
    return PlannedCell(
        cell=cell,
        questions=frame.asked(
            source,
            "quantized",
            engine=cell.running.engine,
            baseline=baseline,
            cached=kept is not None,
            mixed=(cell.scheme.mixture or {}).get("from") == BY_SENSITIVITY,
        ),
        baseline=baseline,
        estimated_bpw=bpw,
        estimated_bytes=None if source.shape is None else estimated_bytes(source.shape, bpw, method),
        note="; ".join(filter(None, (choice.note, note, _of_recipe(cell)))),
        parameters=None if source.shape is None else source.shape.parameters,
        why_this_text=why,
    )


def _of_recipe(cell: Cell) -> str:
    """What a plan says of the bits of a cell with a recipe of one's own."""
    if recipes.of(cell.scheme) is None:
        return ""
    if cell.bits == recipes.UNKNOWN_BITS:
        return "its recipe alone says its bits; they are read back from the artifact"
    return f"the estimate is of {cell.bits:g} bits for all layers; what its recipe does is read back from the artifact"


def _in_groups_that_fit(method: Method, choice: Choice, source: Source, frame: Frame) -> tuple[Choice, str | None, str]:
    """(the choice, why it cannot be, what was changed of it). A group size that the suite does not name falls to the largest one
    below that fits the model; one that it names stays, and the sizes that would fit are told."""
    scheme = choice.origin.scheme
    reason = _lacking(method, scheme, frame.device)
    if reason is None and scheme.bits < 16:
        reason = refusals.left(source.shape, method.takes, method.name) or refusals.untaken(source.shape, method.untaken)
    if reason is not None:
        return choice, reason, ""
    reason = method.supports(scheme, source.shape, frame.device)
    option = method.options.get("group_size")
    if reason is None or option is None or "group_size" not in scheme.options or not option.applies(scheme.bits):
        return choice, reason, ""
    sizes = sorted((size for size in option.choices or () if isinstance(size, int)), reverse=True)
    others = {size: choice.grouped_by(size) for size in sizes if size != scheme.options["group_size"]}
    fitting = [size for size, other in others.items() if method.supports(other.origin.scheme, source.shape, frame.device) is None]
    why = reason.removesuffix("; choose a smaller group_size")
    if fitting and "group_size" in choice.written:
        told = ", ".join(f"{size} (an output channel)" if size == -1 else f"{size}" for size in fitting)
        return choice, f"{why}; what fits: group_size: {told}", ""
    default = scheme.options["group_size"]
    smaller = [size for size in fitting if 0 < size < default]
    if not smaller:
        return choice, reason, ""
    return others[smaller[0]], None, f"groups of {smaller[0]} in place of the default {default}: {why}"


def given(source: Source, frame: Frame) -> Iterator[Square]:
    """The source as somebody quantized it: a cell of the model that it was made of, or, alone, its own baseline; one in each
    engine and for each type of keys and values that the suite names."""
    suite = frame.suite
    words = kv_axis.axis(suite.kv, "the suite") if suite.kv is not None else ()
    name = prequantized.NAME if source.of is None else source.name
    model = source.of or source.model
    try:
        origin = prequantized.origin(source.model, source.config)
    except Unsupported as error:
        nameless = Given(scheme=Scheme(method=prequantized.NAME, bits=0), checkpoint=source.model)
        running = running_of(METHODS[prequantized.NAME], {}, 0)
        yield UnsupportedSquare(cell=Cell(model=model, origin=nameless, running=running, label=name), reason=str(error))
        return
    method = METHODS[origin.scheme.method]
    for engine in _engines(method, suite):
        for word in words or (None,):
            running = _given_running(method, origin, engine, suite)
            elsewhere = "" if engine == method.engine else f" in {engine}{flag_words(running)}"
            cell = Cell(model=model, origin=origin, running=running, label=prequantized.label(name, origin.scheme) + elsewhere)
            kept = None if word is None else kv_axis.kept(words, word, cell.running, method, own=False, where="the suite")
            yield _given(source, frame, cell, kept)


def _given_running(method: Method, origin: Given, engine: str, suite: Suite) -> Running:
    """How a given checkpoint runs in an engine: with what the suite says of that one's settings (checked by schemes.py)."""
    flags = method.running_options if engine == method.engine else ENGINES[engine].flags
    said: dict[str, OptionValue] = {}
    for grid in _grids(method, suite):
        said |= {name: options.value(flags[name], name, value) for name, value in grid.items() if name in flags}
    return running_of(method, said, origin.scheme.bits, engine=engine, flags=flags)


def _given(source: Source, frame: Frame, cell: Cell, kept: kv_axis.Kept | None) -> Square:
    """A given checkpoint's cell, with its keys and values as `kept` says."""
    method = METHODS[cell.method]
    engine, own = cell.running.engine, cell.running.engine == method.engine
    if kept is not None:
        cell = replace(cell, running=kv_axis.run_in(cell.running, kept.word), label=cell.label + kept.suffix)
    reason = None if own else _given_elsewhere(source, _engines(method, frame.suite), method, frame.device, engine)
    if kept is not None:
        reason = reason or kept.reason or (method.runs(cell.running, source.shape) if own else None)
    if reason is not None:
        return UnsupportedSquare(cell=cell, reason=reason)
    baseline = source.of is None and own and (kept is None or not kept.suffix)
    return PlannedCell(
        cell=cell,
        questions=frame.asked(source, "given", engine=engine, baseline=baseline, cached=kept is not None),
        baseline=baseline,
        estimated_bpw=_stored_bits(source) or method.bits_per_weight(cell.scheme),
        estimated_bytes=find.stored_bytes(source.model),
    )


def _engines(method: Method, suite: Suite) -> list[str]:
    """The engines in which the suite wants given checkpoints, the method's own first where it is among them."""
    named = [grid.get("engine", method.engine) for grid in _grids(method, suite)] or [method.engine]
    every = [str(name) for each in named for name in (each if isinstance(each, list) else [each])]
    return sorted(dict.fromkeys(every), key=lambda name: name != method.engine)


def _grids(method: Method, suite: Suite) -> list[dict[str, object]]:
    """What the suite says of given checkpoints under the method's name."""
    entry = suite.methods.get(method.name)
    return [grid or {} for grid in entry] if isinstance(entry, list) else [entry or {}]


def _given_elsewhere(source: Source, engines: Sequence[str], method: Method, device: str, engine: str) -> str | None:
    """Why a given checkpoint is not asked in an engine other than the method's own, or None."""
    if source.of is None and method.engine not in engines:
        return f"alone it is its own baseline, which runs in {method.engine}; write engine: [{method.engine}, {engine}]"
    row = ENGINES[engine]
    return f"{row.title} has no environment for {device} here" if row.places and row.place(device) is None else None


def _stored_bits(source: Source) -> float | None:
    """Bits per weight that a given GGUF file stores: a mixture has a name and not one width. None for any other checkpoint."""
    path = None if source.model.path is None else Path(source.model.path)
    return gguf_reader.bits_per_weight(path) if path is not None and gguf_reader.is_gguf(path) else None


def served(source: Source, choice: Choice, frame: Frame) -> Square:
    """The source behind a running server. Its bits are what its operator says, so that no width is refused."""
    cell = Cell(model=source.model, origin=choice.origin, running=choice.running, label=choice.label)
    method = METHODS[cell.method]
    reason = method.supports(cell.scheme, source.shape, frame.device)
    if reason is not None:
        return UnsupportedSquare(cell=cell, reason=reason)
    baseline = choice.label == frame.suite.baseline
    return PlannedCell(
        cell=cell,
        questions=frame.asked(source, "served", engine=cell.running.engine, baseline=baseline),
        baseline=baseline,
        estimated_bpw=method.bits_per_weight(cell.scheme),
        estimated_bytes=None,
        parameters=None if source.shape is None else source.shape.parameters,
    )


def _elsewhere(method: Method, cell: Cell, device: str) -> str | None:
    """Why an engine other than the method's own does not run its artifact on this device, or None."""
    run, engine, kind = method.engines[cell.running.engine], ENGINES[cell.running.engine], device.partition(":")[0]
    if cell.scheme.mixture is not None:
        return f"{engine.title} is not tried here on widths that differ by layer; write engine: {method.engine} for target_bits"
    if recipes.of(cell.scheme) is not None:
        return f"{engine.title} is not tried here on recipes of one's own; write engine: {method.engine}"
    if engine.places and engine.place(device) is None:
        return f"{engine.title} has no environment for {device} here"
    refused = run.refuses(cell.scheme, kind)
    if refused is not None:
        return refused
    if (run.cuda if kind == "cuda" else run.cpu).get(cell.bits, "none") == "none":
        return f"{engine.title} has no kernel on {device} for {cell.bits:g} bits as {method.name} writes them"
    return None


def _lacking(method: Method, scheme: Scheme, device: str) -> str | None:
    """Why the method cannot quantize to these bits for this device, or None."""
    if scheme.mixture is not None and method.mixing is not None:
        return None
    if method.recipe is not None and method.recipe.whole and recipes.of(scheme) is not None:
        return None
    if scheme.bits not in method.bits:
        offered = ", ".join(f"{b:g}" for b in method.bits)
        return f"{method.name} does not offer {scheme.bits:g} bits (it offers {offered})"
    kernels = method.kernel_cuda if device.startswith("cuda") else method.kernel_cpu
    if kernels.get(scheme.bits) == "none":
        return f"{method.name} has no way to run {scheme.bits:g} bits on {device}"
    return None
