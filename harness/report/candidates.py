"""The cells of a view as a decision sees them: costs, losses with their limits, memory at any context.

Memory elsewhere than where it was measured is arithmetic (docs/recommend.md): a cache grows with the context by the numbers that
the model's shape says, each of as many bytes as the measured cache took; what is not cache stays as it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from harness.decide import KINDS, Cache, Candidate, Kind, Loss, Memory, Number, Speed
from harness.decode import DecodeError, decode
from harness.metrics.divergence import KL_FLOOR
from harness.metrics.latency import TPOT, TTFT
from harness.metrics.memory import (
    KV_CACHE,
    PEAK_DECODE,
    PEAK_DEVICE,
    PEAK_HOST,
    PEAK_LOAD,
    PEAK_PREFILL,
    SERVER,
    SERVER_RSS,
    CacheShape,
)
from harness.metrics.size import FILE
from harness.report.cells import OK, CellView, Outcome, Value, withheld
from harness.report.verdicts import all_within, margin_points, tasks, words
from harness.report.view import View

_LONGEST = 200
_FEWEST_BYTES, _MOST_BYTES = 0.2, 4.05
"""What a number of a cache can take: less than two bits or more than 32 are a shape that does not fit the cache."""


def candidates(view: View) -> tuple[Candidate, ...]:
    """Every planned cell, in the view's order."""
    judged, shapes = bool(tasks(view)), _shapes(view)  # looked up once: they ask every cell
    return tuple(
        _candidate(view, cell, _doubt(view, cell) if judged and not cell.baseline else "", shapes) for cell in view.cells
    )


def _doubt(view: View, cell: CellView) -> str:
    """What the verdicts say where tasks are scored until one, and not every one is within the margin; else empty."""
    if all_within(view, cell):
        return ""
    said = words(view, cell).rstrip(".")
    return f"not every task is shown to be within {margin_points(view)} ({said[:1].lower()}{said[1:] or 'no verdict yet'})"


def _candidate(view: View, cell: CellView, doubt: str, shapes: Mapping[str, Shape]) -> Candidate:
    kinds = {kind: _loss(view, cell, kind, doubt) for kind in KINDS}
    return Candidate(
        id=cell.id,
        label=cell.label,
        model=cell.model,
        method=cell.cell.method,
        bits=cell.cell.bits,
        baseline=cell.baseline,
        simulated=cell.simulated,
        size=_number(_column_value(view, cell, FILE.name, None)),
        memory=_memory(cell),
        speeds=_speeds(view, cell, shapes),
        losses={kind: loss for kind, (loss, _) in kinds.items()},
        alike={kind: alike for kind, (_, alike) in kinds.items()},
    )


def _column_value(view: View, cell: CellView, metric: str, subject: str | None) -> Value | None:
    column = view.column(metric, subject)
    return None if column is None else cell.values[column.key]


def _number(value: Value | None) -> Number:
    if value is None:
        return Number(value=None, reason="not measured")
    if value.status != OK:
        return Number(value=None, reason=_line(f"{value.status}: {value.reason}" if value.reason else value.status))
    return Number(value=value.value, low=value.low, high=value.high)


def _line(reason: str) -> str:
    """A reason in one line that a sentence can hold; all of it stands where failures are listed."""
    words = " ".join(reason.split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


Shape: TypeAlias = tuple[int, int, int]
"""Tokens of the prompt, new tokens, and rows of the batch of a latency measurement."""


def _shapes(view: View) -> dict[str, Shape]:
    """By subject the shapes that anybody was asked, in the order asked."""
    asked: dict[str, Mapping[str, object]] = {}
    for cell in view.cells:
        for outcome in cell.outcomes:
            if outcome.question.probe == "latency":
                asked.setdefault(outcome.question.subject, outcome.question.options)
    shapes = {}
    for subject, options in asked.items():
        prompt, new, batch = (options.get(name) for name in ("prompt", "new", "batch"))
        if isinstance(prompt, int) and isinstance(new, int) and isinstance(batch, int):
            shapes[subject] = (prompt, new, batch)
    return shapes


def _speeds(view: View, cell: CellView, shapes: Mapping[str, Shape]) -> tuple[Speed, ...]:
    """One entry for each shape, so that all cells have the same ones."""
    speeds = []
    for subject, (prompt, new, batch) in shapes.items():
        tpot, ttft = (_number(_column_value(view, cell, name, subject)) for name in (TPOT.name, TTFT.name))
        speeds.append(Speed(prompt=prompt, new=new, batch=batch, tpot=tpot, ttft=ttft))
    return tuple(speeds)


def _loss(view: View, cell: CellView, kind: Kind, doubt: str) -> tuple[Loss, tuple[str, ...]]:
    """`doubt`: why no loss of this cell is shown to be small, whatever its samples say; empty where there is none."""
    if doubt:
        return Loss(value=None, unit="windows" if kind == "kl" else "items", reason=doubt), ()
    family = view.derived.losses.get((cell.model, kind))
    if family is None or cell.id not in family.losses:
        reason = "no divergence was measured" if kind == "kl" else "no task is scored that cells are compared on"
        return Loss(value=None, unit="windows" if kind == "kl" else "items", reason=reason), ()
    alike = family.alike.get(cell.id, ())
    if kind == "kl" and (base := view.baseline_of(cell.model)) is not None:
        # A divergence is never below zero, so it is the noise floor that says who cannot be told from the baseline.
        floor = _column_value(view, base, KL_FLOOR, None)
        limit = floor.value if floor is not None and floor.status == OK else 0.0
        within = {i for i, loss in family.losses.items() if i != base.id and loss.value is not None and loss.value <= limit}
        others = tuple(i for i in alike if i != base.id)
        alike = tuple(i for i in family.losses if i in within) if cell.baseline else others
        alike = (base.id, *others) if cell.id in within else alike
    return family.losses[cell.id], alike


# ---------------------------------------------------------------------- memory


def _memory(cell: CellView) -> Memory:
    outcome = next((o for o in cell.outcomes if o.question.probe == "memory"), None)
    if outcome is None:
        return Memory(measured=None, reason="not measured")
    if outcome.record is None:
        return Memory(measured=None, reason="planned, no outcome stored yet")
    if withheld(outcome, PEAK_HOST):
        return Memory(measured=None, reason="the weights are simulated")
    if outcome.failure is not None:
        return Memory(measured=None, reason=_line(f"{outcome.failure.kind}: {outcome.failure.message}"))
    found = {m.metric: m.value for m in reversed(outcome.measurements)}
    served = next((found[m.name] for m in (SERVER, SERVER_RSS) if m.name in found), None)
    measured = next((found[m.name] for m in (PEAK_DEVICE, PEAK_HOST) if m.name in found), served)
    rows, tokens = outcome.question.options.get("batch"), outcome.facts.get("context_tokens")
    if measured is None or not isinstance(rows, int):
        return Memory(measured=None, reason="no peak could be told")
    if not isinstance(tokens, int):
        tokens = sum(int(outcome.question.options.get(name, 0)) for name in ("prompt", "new"))
    if served is not None and measured == served:
        return Memory(measured=measured, context=tokens, batch=rows, derivable="a server's cache cannot be told from its weights")
    return _derived(cell, outcome, found, measured=measured, tokens=tokens, rows=rows)


def _derived(cell: CellView, outcome: Outcome, found: Mapping[str, float], *, measured: float, tokens: int, rows: int) -> Memory:
    def not_derived(why: str) -> Memory:
        return Memory(measured=measured, context=tokens, batch=rows, derivable=why)

    cache, decode = found.get(KV_CACHE.name), found.get(PEAK_DECODE.name)
    try:
        shape = decode_shape(outcome.facts.get("kv_shape"))
    except DecodeError as error:
        return not_derived(f"the model's shape in the run cannot be read: {error}")
    if shape is None:
        return not_derived("the run does not hold a shape of the model's cache")
    if cache is None or decode is None:
        return not_derived("its cache was not measured apart from the rest")
    window = shape.window if cell.cell.running.engine == "transformers" else None  # the others keep all tokens
    each = 2 * shape.kv_heads * shape.head_size
    parts = [(shape.layers - shape.windowed, None), (shape.windowed, window)]
    numbers = sum(count * each * (tokens if last is None else min(tokens, last)) for count, last in parts) * rows
    per_number = cache / numbers if numbers else 0.0
    if not _FEWEST_BYTES <= per_number <= _MOST_BYTES:
        return not_derived(f"the measured cache ({cache:.0f} bytes) is not one of the model's shape")
    caches = tuple(Cache(bytes_per_token=count * each * per_number, window=last) for count, last in parts if count)
    prompt = int(outcome.question.options.get("prompt", 0))
    of_prompt = rows * sum(c.bytes_per_token * (prompt if c.window is None else min(prompt, c.window)) for c in caches)
    prefill = found.get(PEAK_PREFILL.name, of_prompt) - of_prompt
    return Memory(
        measured=measured,
        context=tokens,
        batch=rows,
        load=found.get(PEAK_LOAD.name, 0.0),
        fixed=max(decode - cache, prefill),
        cache=caches,
    )


def decode_shape(facts: object) -> CacheShape | None:
    """The shape that a memory answer holds; None where it holds none. DecodeError for anything else."""
    shape = None if facts is None else decode(CacheShape, facts)
    if shape is not None and (min(shape.layers, shape.kv_heads, shape.head_size) < 1 or not 0 <= shape.windowed <= shape.layers):
        raise DecodeError("sizes below 1")
    return shape
