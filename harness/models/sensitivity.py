"""What a model loses by each of its layers alone: one layer of the loaded model is rounded, the answers to a few calibration rows
are compared with those before, and the layer is put back.

The loss is the mean over the tokens of KL(before || rounded) over the whole vocabulary, in nats, from float32 log-softmax of
both, summed as divergence is (docs/definitions.md). Nothing else of the model is rounded meanwhile.

A forward pass begins at the block of the rounded layer: what the block before it answered is kept, and the blocks before hand it
through. Whether that gives the same logits, bit for bit, is tried at every block; where it does not, the whole model runs, and
the numbers are the same. So a table costs about half as many forward passes as there are layers times widths.

Kept in the cache by all that decides it. Version 1 (2026-11-30): first definition.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from harness.decode import decode
from harness.files import write_atomically
from harness.models import build, source
from harness.spec import digest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

VERSION = 1
"""Raised when the same rows give other losses. It stands in the scheme of every mixture."""

TOKENS = 2048
"""So many tokens of the first calibration rows are answered; one row at least."""

LOGITS_BYTES = 256 * 2**20
"""Rows are answered together as long as their logits take no more."""

Rounder = Callable[[str, "Tensor"], "Tensor"]
"""A layer's name and weight [outputs, inputs] -> the same weight rounded, in its dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`losses`: by layer and width, in nats per token; what is not finite is left out. `tokens`: how many were answered.
    `seconds`: what it took to make."""

    losses: Mapping[str, Mapping[str, float]]
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which layers of a model, each rounded how: `roundings` by the width's name, all of the kind `rounding`, which names all
    that decides what they do."""

    layers: Sequence[str]
    rounding: str
    roundings: Mapping[str, Rounder]


def table(
    model_dir: Path, rows: Sequence[Sequence[int]], asked: Asked, *, device: str, cache: Path | None
) -> tuple[Table, float]:
    """(the table, what it took now: 0 where it was in the cache). A folder that is no view of a checkpoint (models/source.py) has
    no name that says what is in it, so nothing is kept of it."""
    known = _place(model_dir, rows, asked, device=device, cache=cache)
    if known is not None and known.is_file():
        return decode(Table, json.loads(known.read_text(encoding="utf-8"))), 0.0
    model = build.plain(model_dir, build.unpacked_dtype(_parameters(model_dir)), device)
    made = measure(model, _first(rows), asked)
    if known is not None:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(known, json.dumps(asdict(made), allow_nan=False))
    return made, made.seconds


def measure(model: PreTrainedModel, rows: Sequence[Sequence[int]], asked: Asked) -> Table:
    """Rounds each layer of `model` alone, in each way, and puts it back. `rows` are of equal length."""
    import torch

    begun = time.monotonic()
    sums: dict[str, dict[str, float]] = {layer: dict.fromkeys(asked.roundings, 0.0) for layer in asked.layers}
    device = next(model.parameters()).device
    vocabulary = int(cast("Tensor", model.get_input_embeddings().weight).shape[0])
    together = max(1, LOGITS_BYTES // (4 * vocabulary * len(rows[0])))
    with torch.inference_mode():
        for start in range(0, len(rows), together):
            ids = torch.tensor([list(row) for row in rows[start : start + together]], dtype=torch.long, device=device)
            for layer, width, loss in _of_rows(model, ids, asked):
                sums[layer][width] += loss
    tokens = sum(map(len, rows))
    losses = {
        layer: {width: max(0.0, total / tokens) for width, total in own.items() if math.isfinite(total)}
        for layer, own in sums.items()
    }
    return Table(losses=losses, tokens=tokens, seconds=time.monotonic() - begun)


def _place(model_dir: Path, rows: Sequence[Sequence[int]], asked: Asked, *, device: str, cache: Path | None) -> Path | None:
    import torch
    import transformers

    if cache is None or source.known(model_dir) is None:
        return None
    decides = {
        "version": VERSION,
        "source": model_dir.name,  # a view is named by the digest of its weights
        "rows": _first(rows),
        "layers": list(asked.layers),
        "rounding": asked.rounding,
        "widths": sorted(asked.roundings),
        "device": device.split(":")[0],
        "packages": [torch.__version__, transformers.__version__],
    }
    return cache / "sensitivity" / f"{digest(decides)[:32]}.json"


def _first(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rows that are answered: the first ones, all as long as the shortest."""
    length = min(map(len, rows))
    return [list(row[:length]) for row in rows[: max(1, TOKENS // length)]]


def _parameters(model_dir: Path) -> int:
    view = source.known(model_dir)
    return 0 if view is None else view.parameters


def _of_rows(model: PreTrainedModel, ids: Tensor, asked: Asked) -> Iterator[tuple[str, str, float]]:
    """(layer, width, sum of KL over the tokens of `ids` [rows, tokens])."""
    before = _log_probabilities(model, ids)
    blocks = _blocks(model)
    places = {layer: _block_of(model, blocks, layer) for layer in asked.layers}
    for layer in (layer for layer, place in places.items() if place is None):
        yield from _each_width(model, ids, layer, before, asked)
    kept: object = None
    for number, block in enumerate(blocks):
        with _beginning_at(blocks, number, kept):
            answer, now = _answer_of(model, ids, block)
            same = now.equal(before)
            if same:
                for layer in (layer for layer, place in places.items() if place == number):
                    yield from _each_width(model, ids, layer, before, asked)
        if not same:  # this architecture's blocks see more than what the block before answers
            for layer in (layer for layer, place in places.items() if place is not None and place >= number):
                yield from _each_width(model, ids, layer, before, asked)
            return
        kept = answer


def _each_width(
    model: PreTrainedModel, ids: Tensor, layer: str, before: Tensor, asked: Asked
) -> Iterator[tuple[str, str, float]]:
    for width, rounder in asked.roundings.items():
        with rounded(model, layer, rounder):
            after = _log_probabilities(model, ids)
        yield layer, width, _divergence(before, after)


@contextlib.contextmanager
def rounded(model: PreTrainedModel, layer: str, rounder: Rounder) -> Iterator[None]:
    """Inside, the layer holds its rounded weight; afterwards the very tensor that it held before."""
    weight = cast("Tensor", model.get_submodule(layer).weight)
    held = weight.data
    weight.data = rounder(layer, held)
    try:
        yield
    finally:
        weight.data = held


def _log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    import torch

    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return torch.log_softmax(logits.float(), dim=-1)


def _divergence(before: Tensor, after: Tensor) -> float:
    """Sum over the tokens of KL(before || after), of log-probabilities [rows, tokens, vocabulary]."""
    total = 0.0
    for ours, theirs in zip(before, after, strict=True):  # a row at a time: what is written stays in the processor's cache
        ratio = ours - theirs
        total += float(ratio.neg().expm1_().add_(ratio).mul_(ours.exp()).sum(dim=-1).double().sum())
    return total


def _blocks(model: PreTrainedModel) -> Sequence[Module]:
    """The decoder's blocks in order; none where they are not found by their number."""
    from torch import nn

    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    found = [module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return list(found[0]) if found and count else []


def _block_of(model: PreTrainedModel, blocks: Sequence[Module], layer: str) -> int | None:
    module = model.get_submodule(layer)
    return next((number for number, block in enumerate(blocks) if any(m is module for m in block.modules())), None)


@contextlib.contextmanager
def _beginning_at(blocks: Sequence[Module], number: int, kept: object) -> Iterator[None]:
    """Inside, the blocks before the one with this number answer `kept`, what the last of them answered before."""

    def hand_through(*_: object, **__: object) -> object:
        return kept

    try:
        for block in blocks[:number]:
            vars(block)["forward"] = hand_through
        yield
    finally:
        for block in blocks[:number]:
            vars(block).pop("forward", None)


def _answer_of(model: PreTrainedModel, ids: Tensor, block: Module) -> tuple[object, Tensor]:
    """(what a block answers, the log-probabilities of the model) in one pass."""
    seen: list[object] = []
    hook = block.register_forward_hook(lambda _module, _given, answer: seen.append(answer))
    try:
        now = _log_probabilities(model, ids)
    finally:
        hook.remove()
    return seen[-1], now
