"""Windows scored through the cache by an engine that gives logits only.

`CachedLogits` is what such an engine offers: a window's logits after the warm-up, part by part, with its own type of keys and
values or with an unquantized one, everything else the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from harness.engines import from_logits
from harness.engines.base import CachedScores, WindowScores
from harness.engines.stored_baseline import StoredBaseline, StoredFacts, token_scores, window_scores
from harness.kv import CachedSplit

Logits = Callable[[Sequence[int]], Iterator[NDArray[np.float32]]]
"""Window -> logits [n, vocabulary] of consecutive positions after the warm-up; each may be a view that the next overwrites."""

TOO_WIDE = "calls of {} tokens give more logits of this vocabulary than there is room for; write a smaller R in cached-W+R"


def scores(
    windows: Sequence[Sequence[int]], split: CachedSplit, baseline: StoredBaseline | None, logits: Logits, plain: Logits | None
) -> Iterator[CachedScores]:
    """Scores of each window of T ids at the T-1-W targets after the warm-up. `plain`: the same weights with unquantized keys and
    values; None where the cell's own are."""
    for number, window in enumerate(windows):
        targets = torch.tensor(list(window[split.warm_up + 1 :]), dtype=torch.long)
        theirs = None if baseline is None else baseline.states(number, 1)[0]
        # Kept for one window: an engine's own logits are overwritten by the next call, and one context is in memory at a time.
        own = None if plain is None else [torch.from_numpy(part.copy()) for part in plain(window)]
        parts: list[dict[str, torch.Tensor]] = []
        own_parts: list[dict[str, torch.Tensor]] = []
        start = 0
        for index, found in enumerate(logits(window)):
            part = slice(start, start + len(found))
            ours = torch.from_numpy(found)
            head = None if theirs is None or baseline is None else baseline.head(theirs[part])
            parts.append(token_scores(ours, targets[part], head))
            if own is not None:
                own_parts.append(token_scores(ours, targets[part], own[index]))
            start = part.stop
        yield CachedScores(scores=_joined(parts), own=_joined(own_parts) if own_parts else None)


def store(
    windows: Sequence[Sequence[int]], split: CachedSplit, folder: Path, logits: Logits, *, vocab_size: int, cut: str
) -> StoredFacts:
    """Keeps the float32 logits [windows, T-1-W, vocabulary] in `folder`, which appears at once and complete."""

    def placed(window: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        start = 0
        for part in logits(window):
            yield start, part
            start += len(part)

    return from_logits.store_baseline(windows, folder, placed, vocab_size=vocab_size, cut=cut, warm_up=split.warm_up)


def _joined(parts: Sequence[dict[str, torch.Tensor]]) -> WindowScores:
    return window_scores({name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]})
