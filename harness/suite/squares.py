"""The squares of a plan, by where their weights come from: quantized here, given by somebody, or served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import Unsupported
from harness.methods import METHODS, prequantized, refusals
from harness.methods.base import Method, running_of, running_values
from harness.models import find
from harness.probes import PROBES, sequential
from harness.spec import Cell, Given, OriginKind, Question, Scheme, Served
from harness.suite.file import Suite
from harness.suite.plan import PlannedCell, UnsupportedSquare, estimated_bytes
from harness.suite.schemes import Choice
from harness.suite.sources import Source

Square = PlannedCell | UnsupportedSquare


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What all squares of a plan share."""

    suite: Suite
    device: str
    questions: tuple[Question, ...]

    def asked(self, source: Source, kind: OriginKind, *, baseline: bool) -> tuple[Question, ...]:
        """The questions that such a cell can be asked. A baseline is asked all items, whatever budget the others have."""
        fitting = [q for q in self.questions if kind in PROBES[q.probe].origins]
        if source.model.random:
            fitting = [q for q in fitting if not PROBES[q.probe].needs_weights]
        return tuple(sequential.whole(q) if baseline else q for q in fitting)


def squares(source: Source, choices: Sequence[Choice], frame: Frame) -> Iterator[Square]:
    """All squares of one model, its baseline first: the others need its answers. What the suite excludes is left out."""
    for square in _all(source, choices, frame):
        if not any(_matches(square.cell, pattern) for pattern in frame.suite.exclude):
            yield square


def _all(source: Source, choices: Sequence[Choice], frame: Frame) -> Iterator[Square]:
    if source.quantized:
        yield given(source, frame)
    if source.of is not None:
        return
    for choice in sorted(choices, key=lambda c: c.label != frame.suite.baseline):
        if not isinstance(choice.origin, Served):
            yield quantized(source, choice, frame)
        elif choice.of in ("", source.name):
            yield served(source, choice, frame)


def quantized(source: Source, choice: Choice, frame: Frame) -> Square:
    """The source's weights, quantized here: unsupported where the method or a kernel does not take them."""
    cell = Cell(model=source.model, origin=choice.origin, running=choice.running, label=choice.label)
    method = METHODS[cell.method]
    reason = (
        _lacking(method, cell.scheme, frame.device)
        or (refusals.left(source.shape, method.takes, method.name) if cell.bits < 16 else None)
        or method.supports(cell.scheme, source.shape, frame.device)
    )
    if reason is not None:
        return UnsupportedSquare(cell=cell, reason=reason)
    baseline, bpw = choice.label == frame.suite.baseline, method.bits_per_weight(cell.scheme)
    return PlannedCell(
        cell=cell,
        questions=frame.asked(source, "quantized", baseline=baseline),
        baseline=baseline,
        estimated_bpw=bpw,
        estimated_bytes=None if source.shape is None else estimated_bytes(source.shape, bpw, method),
    )


def given(source: Source, frame: Frame) -> Square:
    """The source as somebody quantized it: a cell of the model that it was made of, or, alone, its own baseline."""
    name = prequantized.NAME if source.of is None else source.name
    model = source.of or source.model
    try:
        origin = prequantized.origin(source.model, source.config)
    except Unsupported as error:
        nameless = Given(scheme=Scheme(method=prequantized.NAME, bits=0), checkpoint=source.model)
        running = running_of(METHODS[prequantized.NAME], {}, 0)
        return UnsupportedSquare(cell=Cell(model=model, origin=nameless, running=running, label=name), reason=str(error))
    method = METHODS[origin.scheme.method]
    running = running_of(method, {}, origin.scheme.bits)
    return PlannedCell(
        cell=Cell(model=model, origin=origin, running=running, label=prequantized.label(name, origin.scheme)),
        questions=frame.asked(source, "given", baseline=source.of is None),
        baseline=source.of is None,
        estimated_bpw=method.bits_per_weight(origin.scheme),
        estimated_bytes=find.stored_bytes(source.model),
    )


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
        questions=frame.asked(source, "served", baseline=baseline),
        baseline=baseline,
        estimated_bpw=method.bits_per_weight(cell.scheme),
        estimated_bytes=None,
    )


def _lacking(method: Method, scheme: Scheme, device: str) -> str | None:
    """Why the method cannot quantize to these bits for this device, or None."""
    if scheme.bits not in method.bits:
        offered = ", ".join(f"{b:g}" for b in method.bits)
        return f"{method.name} does not offer {scheme.bits:g} bits (it offers {offered})"
    kernels = method.kernel_cuda if device.startswith("cuda") else method.kernel_cpu
    if kernels.get(scheme.bits) == "none":
        return f"{method.name} has no way to run {scheme.bits:g} bits on {device}"
    return None


def _matches(cell: Cell, pattern: Mapping[str, object]) -> bool:
    """Whether a cell is one of those that an entry of `exclude` names, by what a suite may write of it."""
    values: dict[str, object] = {
        **cell.scheme.options,
        **running_values(cell.running),
        **({"checkpoint": cell.origin.checkpoint.name} if isinstance(cell.origin, Given) else {}),
        **({"url": cell.origin.url} if isinstance(cell.origin, Served) else {}),
        "method": cell.method,
        "bits": cell.bits,
        "model": cell.model.name,
    }
    return all(_one_of(values.get(key), wanted) for key, wanted in pattern.items())


def _one_of(value: object, wanted: object) -> bool:
    return bool(value in wanted if isinstance(wanted, list) else value == wanted)
