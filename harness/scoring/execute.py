"""Runs a plan on a model: batches of rows, headers' keys and values, the head at scored positions only.

Memory: the tokens of a batch follow from a budget of bytes, the budget from what is free; on an out-of-memory error the batch is
halved and tried again, and later batches stay that small. Headers' keys and values live only while a row below them is to come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import is_out_of_memory
from harness.formats import attention_rules
from harness.scoring.head import DEVIATION, Split, apart
from harness.scoring.plan import Ints, Plan, Row, header_order

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import Cache

HOST_BYTES = 64 << 20
"""Activations of one batch on a CPU: larger batches fall out of the caches and gain nothing."""

MOST_TOKENS = 16384
LEAST_TOKENS = 128
MOST_ROWS = 512
CALL_TOKENS = 64
PACKED_CALL_TOKENS = 256
"""What one call costs beyond its tokens, in tokens: with plain linear layers, and with packed ones (which may dequantize their
whole weight on every call). It decides how much padding is taken to save a call, and which headers are worth one."""

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """How far hidden states are from those of the same input in a row of its own, relative to their size (`apart`): because of
    what else is in its row (`packed`), and because of the other rows of its batch (`company`)."""

    packed: float
    company: float


class Executor:
    """Answers plans with one model. Counts what it ran in `calls`, `padded_tokens` and `out_of_memory`."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.bytes_per_token = bytes_per_token(split)
        self.budget_tokens = budget_tokens(split, self.bytes_per_token)
        self.cache_bytes_per_token = cache_bytes_per_token(split)
        self.call_tokens = CALL_TOKENS if plain_linears(split.model) else PACKED_CALL_TOKENS
        self.side = attention_rules.of_loaded(split.model.config).side
        self.alone = not split.together
        """Whether every row is answered in a batch of its own, because neighbours change its answers."""
        self.calls = 0
        self.padded_tokens = 0
        self.out_of_memory = 0

    def run(self, plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(log-probability in nats float32, is-the-argmax bool) of every pair of the plan."""
        logprob = np.full(len(plan.target), np.nan, np.float32)
        greedy = np.zeros(len(plan.target), bool)
        pair_start = np.searchsorted(plan.position, np.arange(len(plan.owner) + 1))

        def answer(owners: Sequence[int], hidden: torch.Tensor) -> None:
            """Scores what is asked in the rows of a batch; `hidden` is [B, T, H], `owners` names its rows."""
            places: list[Ints] = []
            batch: list[Ints] = []
            for row, owner in enumerate(owners):
                first, end = np.searchsorted(plan.owner, [owner, owner + 1])
                places.append(np.arange(first, end))
                batch.append(np.full(end - first, row))
            which = np.concatenate(places)
            if not len(which):
                return
            states = hidden[self._on(np.concatenate(batch)), self._on(plan.offset[which])]
            pairs = np.concatenate([np.arange(pair_start[p], pair_start[p + 1]) for p in which])
            at = np.repeat(np.arange(len(which)), pair_start[which + 1] - pair_start[which])
            scores, top = self.split.scores(states, self._on(plan.target[pairs]), self._on(at))
            logprob[pairs], greedy[pairs] = scores.cpu().numpy(), top.cpu().numpy()

        below: dict[int, list[int]] = {}
        for number, row in enumerate(plan.rows):
            below.setdefault(row.header, []).append(number)
        self._rows(plan, below.get(-1, []), None, answer)
        live: dict[int, KeyValues] = {}
        for number, enter in header_order(plan):
            if not enter:
                del live[number]
                continue
            hidden, live[number] = self._header(plan, number, live.get(plan.headers[number].parent))
            answer([-1 - number], hidden)
            self._rows(plan, below.get(number, []), live[number], answer)
        return logprob, greedy

    def deviation(self, plan: Plan) -> Deviation:
        """How far rows are from plain ones where the plan asks most of them: in the batches that reach furthest, at the last
        branch of the furthest row (none stands further from its prefix) and of the shortest row beside it."""
        worst = Deviation(packed=0.0, company=0.0)
        for batch in self._furthest(plan):
            here = self._batch_deviation(plan, batch)
            worst = Deviation(packed=max(worst.packed, here.packed), company=max(worst.company, here.company))
        return worst

    def _furthest(self, plan: Plan) -> list[list[int]]:
        """Of the rows below headers, of other rows with branches, and of plain ones: the row that reaches furthest, with the
        shortest one that is answered together with it."""
        below: dict[int, list[int]] = {}
        for number, row in enumerate(plan.rows):
            below.setdefault(row.header, []).append(number)
        best: dict[tuple[bool, bool], tuple[tuple[int, int], list[int]]] = {}
        for header, numbers in below.items():
            for batch in self.batches(plan.rows, numbers):
                longest, shortest = (pick(batch, key=plan.reach) for pick in (max, min))
                far = plan.reach(longest), plan.reach(longest) - plan.reach(shortest)
                kind = header >= 0, plan.rows[longest].chain
                if kind not in best or far > best[kind][0]:
                    best[kind] = far, [longest, shortest] if len(batch) > 1 else [longest]
        return [pair for _, pair in best.values()]

    def _batch_deviation(self, plan: Plan, batch: list[int]) -> Deviation:
        rows = [plan.rows[number] for number in batch]
        before, cache = self._above(plan, rows[0].header)
        together = self._forward(rows, cache)
        packed = company = 0.0
        for place, row in enumerate(rows):
            if row.chain and cache is None:
                if place:  # the longest of plain rows is padded with nothing
                    company = max(company, self._apart_from_plain(row, before, together[place]))
                continue
            gap = self._apart_from_plain(row, before, together[place])
            if gap > DEVIATION and len(rows) > 1:  # which of the two is it?
                by_itself = self._forward([row], cache)[0]
                company = max(company, apart(together[place, : len(row.tokens)], by_itself))
                gap = self._apart_from_plain(row, before, by_itself)
            packed = max(packed, gap)
        return Deviation(packed=packed, company=company)

    def _apart_from_plain(self, row: Row, before: Ints, states: torch.Tensor) -> float:
        """How far the states [T, H] of a row's last branch are from those of the same input in a row of its own."""
        leaf = len(row.tokens) - 1
        path = np.flatnonzero((np.arange(len(row.tokens)) <= leaf) & (leaf < row.last))
        plain = self.body(self._on(np.concatenate([before, row.tokens[path]]))[None])[0, -len(path) :]
        # What stands where it stands alone cannot differ, and would hide what does.
        displaced = np.flatnonzero(path != np.arange(len(path)))
        part = self._on(displaced if len(displaced) else np.arange(len(path)))
        return apart(states[self._on(path)][part], plain[part])

    def _above(self, plan: Plan, header: int) -> tuple[Ints, KeyValues | None]:
        """Tokens of a header (-1: none) and of those above it, with their keys and values."""
        if header < 0:
            return np.empty(0, np.int64), None
        before, cache = self._above(plan, plan.headers[header].parent)
        return np.concatenate([before, plan.headers[header].tokens]), self._header(plan, header, cache)[1]

    def batches(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[list[int]]:
        """Rows that may be answered together; see the function `batches`."""
        if self.alone:
            return [[number] for number in sorted(numbers, key=lambda n: -len(rows[n].tokens))]
        return batches(rows, numbers, self.budget_tokens, self.call_tokens, side=self.side)

    def _header(self, plan: Plan, number: int, above: KeyValues | None) -> tuple[torch.Tensor, KeyValues]:
        """Runs one header after the one above it: (hidden states [1, T, H], keys and values of both)."""
        cache = new_cache(above, 1)
        hidden = self.body(self._on(plan.headers[number].tokens)[None], past_key_values=cache, use_cache=True)
        return hidden, held(cache)

    def _rows(
        self,
        plan: Plan,
        numbers: list[int],
        header: KeyValues | None,
        answer: Callable[[Sequence[int], torch.Tensor], None],
    ) -> None:
        todo = self.batches(plan.rows, numbers)[::-1]
        while todo:
            batch = todo.pop()
            try:
                answer(batch, self._forward([plan.rows[number] for number in batch], header))
            except (RuntimeError, MemoryError) as problem:
                if not is_out_of_memory(problem) or len(batch) == 1:
                    raise
                self.out_of_memory += 1
                rest = [number for later in reversed(todo) for number in later]
                longest = max(len(plan.rows[number].tokens) for number in batch)
                self.budget_tokens = max(LEAST_TOKENS, len(batch) * longest // 2)
                todo = self.batches(plan.rows, batch + rest)[::-1]
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _forward(self, rows: list[Row], header: KeyValues | None) -> torch.Tensor:
        """Hidden states [B, T, H] of rows that share a header, padded on the right."""
        width = max(len(row.tokens) for row in rows)
        ids = np.zeros((len(rows), width), np.int64)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row.tokens)] = row.tokens
        if header is None and all(row.chain for row in rows):
            # Causal attention never looks right: padding needs no mask, and attention takes its fastest path.
            return self.body(self._on(ids))
        depth = np.zeros((len(rows), width), np.int64)
        last = np.tile(np.arange(1, width + 1), (len(rows), 1))  # padding sees itself only
        for number, row in enumerate(rows):
            depth[number, : len(row.tokens)] = row.depth
            last[number, : len(row.tokens)] = row.last
        mask = tree_mask(self._on(last), 0 if header is None else header[0][0].shape[2], self.split.hidden_dtype)
        cache = None if header is None else new_cache(header, len(rows))
        return self.body(
            self._on(ids), attention_mask=mask, position_ids=self._on(depth), past_key_values=cache, use_cache=cache is not None
        )

    def body(self, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Hidden states of token ids [B, T], counted."""
        self.calls += 1
        self.padded_tokens += ids.numel()
        return self.split.body(ids, **kwargs)

    def _on(self, array: Ints) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.split.device)


def batches(
    rows: Sequence[Row],
    numbers: Sequence[int],
    budget_tokens: int,
    call_tokens: int,
    *,
    side: Callable[[int], int] = lambda length: 0,
) -> list[list[int]]:
    """Cuts rows into batches of at most `budget_tokens` padded tokens (one row at least), at the least cost of padding and calls.

    Rows with several branches stay apart from plain ones, which need no mask, and so do inputs whose length is of another `side`.
    Longest first: memory runs out early if it does.
    """
    all_cuts: list[list[int]] = []
    kinds: dict[tuple[bool, int], list[int]] = {}
    for number in numbers:
        row = rows[number]
        kinds.setdefault((not row.chain, -side(int(row.depth.max()) + 1)), []).append(number)
    for _, members in sorted(kinds.items()):
        order = sorted(members, key=lambda n: (-len(rows[n].tokens), n))
        widths = [len(rows[n].tokens) for n in order]
        best, start = [0.0] * (len(order) + 1), [0] * (len(order) + 1)
        for end in range(1, len(order) + 1):
            cheapest = float("inf")
            for first in range(end - 1, max(-1, end - 1 - MOST_ROWS), -1):
                padded = (end - first) * widths[first]
                if padded > budget_tokens and end - first > 1:
                    break
                cost = best[first] + padded + call_tokens
                if cost < cheapest:
                    cheapest, start[end] = cost, first
            best[end] = cheapest
        cuts, end = [], len(order)
        while end:
            cuts.append(order[start[end] : end])
            end = start[end]
        all_cuts += cuts[::-1]
    return all_cuts


def tree_mask(last: torch.Tensor, before: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, T, before + T] of trees: token i sees all `before` cached tokens, and token j if j <= i < last[j]."""
    batch, width = last.shape
    place = torch.arange(width, device=last.device)
    seen = (place[None, :] <= place[:, None])[None] & (place[None, :, None] < last[:, None, :])
    mask = torch.zeros(batch, 1, width, before + width, dtype=dtype, device=last.device)
    mask[:, 0, :, before:].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask


def new_cache(header: KeyValues | None, rows: int) -> Cache:
    """A cache of today's transformers that already holds `header` for each of `rows` rows (as views: nothing is copied here)."""
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

    if header is None:
        return DynamicCache()
    layers = []
    for keys, values in header:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)
        layers.append(layer)
    return Cache(layers=list(layers))


def held(cache: Cache) -> KeyValues:
    """Keys and values of a cache, layer by layer."""
    layers: list[Any] = cache.layers  # transformers names kinds of layers that hold none: models that have those share nothing
    return [(layer.keys, layer.values) for layer in layers]


def plain_linears(model: PreTrainedModel) -> bool:
    """Whether the linear layers are torch's own: true of unquantized models, false where modules hold packed weights."""
    kinds = {type(module) for name, module in model.named_modules() if "proj" in name or "fc" in name or "dense" in name}
    return any(kind is torch.nn.Linear for kind in kinds) and not any(
        "Linear" in kind.__name__ and kind is not torch.nn.Linear for kind in kinds
    )


def bytes_per_token(split: Split) -> int:
    """Activations that live at once per token: residual stream, projections, the widest of the feed-forward layer, some slack."""
    config = split.model.config.get_text_config()
    hidden = int(getattr(config, "hidden_size", 0) or split.hidden_size)
    wide = _largest(config, "intermediate_size") or _largest(config, "ffn_dim") or 4 * hidden
    width = split.vocab_size if split.kind == "full" else 0
    return (8 * hidden + 3 * wide + 2 * width) * int(split.hidden_dtype.itemsize)


def cache_bytes_per_token(split: Split) -> int:
    """Keys and values of one token in all layers, at most (models without grouped heads)."""
    config = split.model.config.get_text_config()
    hidden, layers = int(getattr(config, "hidden_size", split.hidden_size)), int(getattr(config, "num_hidden_layers", 1))
    heads = _largest(config, "num_attention_heads") or 1
    grouped = _largest(config, "num_key_value_heads") or heads
    width = int(getattr(config, "head_dim", None) or hidden // heads)
    return max(1, 2 * layers * grouped * width * int(split.hidden_dtype.itemsize))


def _largest(config: PreTrainedConfig, name: str) -> int:
    """A number of a configuration, the largest where each layer has its own; 0 where it names none."""
    value = getattr(config, name, None) or 0
    return int(max(value) if isinstance(value, (list, tuple)) else value)


def budget_tokens(split: Split, per_token: int) -> int:
    """Padded tokens of one batch, from free memory."""
    if split.device.type == "cuda":
        free = torch.cuda.mem_get_info(split.device)[0] // 4
    else:
        free = min(HOST_BYTES, free_host_bytes() // 4)
    return int(min(MOST_TOKENS, max(LEAST_TOKENS, free // per_token)))


def free_host_bytes() -> int:
    """Memory the kernel says can be had without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
