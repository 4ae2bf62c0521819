"""What types of keys and values cost and save: bytes of a token, memory at longer contexts, and what they do to the answers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness import kv
from harness.decode import DecodeError
from harness.metrics.divergence import KV_KL_MEAN
from harness.metrics.kv_memory import KV_BYTES_PER_TOKEN
from harness.metrics.memory import KV_CACHE, WEIGHTS, CacheShape
from harness.report.candidates import decode_shape
from harness.report.cells import CellView
from harness.report.markup import Markup, el, join
from harness.report.numbers import show
from harness.report.pieces import by_model, cells_of, head_of, numeric, quantity, subjects, table, value_of
from harness.report.section import Section
from harness.report.view import View
from harness.spec import Measurement

CONTEXTS = (1024, 8192, 32768)
"""Tokens of context at which weights and cache are added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A cell's type of keys and values: bytes of a token by arithmetic (`each`), as the engine counts what it holds (`counted`),
    and as they were weighed from outside (`weighed`); and bytes of the weights. None where it is not known."""

    cell: CellView
    each: float | None
    counted: float | None
    weighed: Measurement | None
    weights: float | None

    @property
    def held(self) -> float | None:
        """Bytes of a token as they were held: weighed, where they were."""
        return self.counted if self.weighed is None else self.weighed.value


def section(view: View) -> Section | None:
    blocks = by_model(view, functools.partial(_block, view))
    if not blocks:
        return None
    return Section(
        id="kv",
        nav="KV cache",
        title="Keys and values",
        lead="Memory at a context is derived: the weights as they are held, and so many bytes of keys and values for each token, "
        "as an engine counts them or, with their extremes in brackets, as the process grew by them. "
        "The last column says from which context on a type saves more than one bit of every weight would.",
        body=join(*blocks),
    )


def _block(view: View, model: str) -> Markup | None:
    cells = [cell for cell in cells_of(view, model) if cell.cell.running.kv and cell.cell.running.engine in kv.ENGINES]
    if not any(kv.quantized(cell.cell.running.kv) for cell in cells):
        return None
    shape = next((found for cell in cells_of(view, model) if (found := _shape(cell)) is not None), None)
    kept = [_kept(view, cell, shape) for cell in cells]
    corpora = subjects(view, KV_KL_MEAN)
    columns: list[str | Markup] = ["cell", "keys", "values"]
    columns += [numeric(f"KL by the type, {subject}", "nat") for subject in corpora]
    columns += [numeric("a token, arithmetic", "B"), numeric("a token, held", "B")]
    columns += [numeric(f"at {tokens:,} tokens") for tokens in CONTEXTS]
    columns.append(numeric("worth a weight bit from", "tokens"))
    rows = [_row(view, one, kept, corpora) for one in kept]
    return table("What keys and values take and cost", columns, rows)


def _shape(cell: CellView) -> CacheShape | None:
    for outcome in cell.outcomes:
        try:
            shape = decode_shape(outcome.facts.get("kv_shape"))
        except DecodeError:
            continue
        if shape is not None:
            return shape
    return None


def _kept(view: View, cell: CellView, shape: CacheShape | None) -> Kept:
    running = cell.cell.running
    known = all(word in kv.ENGINES.get(running.engine, {}) for word in kv.halves(running.kv))
    each = None
    if shape is not None and known:
        each = kv.bytes_per_token(running.engine, running.kv, layers=shape.layers, heads=shape.kv_heads, size=shape.head_size)
    counted = weights = weighed = None
    for outcome in cell.outcomes:
        found = {m.metric: m for m in outcome.measurements}
        tokens, batch = outcome.facts.get("context_tokens"), outcome.question.options.get("batch")
        weighed = found.get(KV_BYTES_PER_TOKEN.name, weighed)
        if WEIGHTS.name in found:
            weights = found[WEIGHTS.name].value
        if KV_CACHE.name in found and isinstance(tokens, int) and isinstance(batch, int) and tokens * batch > 0:
            counted = found[KV_CACHE.name].value / (tokens * batch)
    return Kept(cell=cell, each=each, counted=counted, weighed=weighed, weights=weights)


def _row(view: View, one: Kept, others: Sequence[Kept], corpora: Sequence[str]) -> Markup:
    key, value = kv.halves(one.cell.cell.running.kv)
    squares = [el("td", key), el("td", value)]
    for subject in corpora:
        found = value_of(view, one.cell, KV_KL_MEAN, subject)
        squares.append(el("td", "–" if found is None else show(found[0].value, "nat"), cls="num"))
    squares.append(el("td", "–" if one.each is None else f"{one.each:,.0f}", cls="num"))
    squares.append(el("td", _held(one), cls="num"))
    for tokens in CONTEXTS:
        known = one.held is not None and one.weights is not None
        squares.append(el("td", quantity((one.weights or 0) + (one.held or 0) * tokens, "B") if known else "–", cls="num"))
    squares.append(el("td", _worth(one, others), cls="num"))
    return el("tr", head_of(one.cell), *squares)


def _held(one: Kept) -> str:
    if one.held is None:
        return "–"
    weighed = one.weighed
    if weighed is None or weighed.low is None or weighed.high is None:
        return f"{one.held:,.0f}"
    return f"{one.held:,.0f} [{weighed.low:,.0f}, {weighed.high:,.0f}]"


def _worth(one: Kept, others: Sequence[Kept]) -> str:
    """The context from which on the bytes that a type saves are more than those of one bit of every weight. Weighed bytes are
    held against weighed ones only, counted ones against counted."""
    plain, bits = next((other for other in others if _unquantized(other.cell, one.cell)), None), one.cell.cell.bits
    if plain is None or plain is one or plain.weights is None or bits <= 0:
        return "–"
    if plain.weighed is not None and one.weighed is not None:
        saved = plain.weighed.value - one.weighed.value
    elif plain.counted is not None and one.counted is not None:
        saved = plain.counted - one.counted
    else:
        return "–"
    return f"{math.ceil(plain.weights / bits / saved):,}" if saved > 0 else "–"


def _unquantized(other: CellView, cell: CellView) -> bool:
    """Whether another cell runs the same weights in the same engine with unquantized keys and values."""
    theirs = other.cell
    same = theirs.origin == cell.cell.origin and theirs.running.engine == cell.cell.running.engine
    return same and not kv.quantized(theirs.running.kv)
