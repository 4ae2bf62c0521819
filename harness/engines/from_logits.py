"""Windows scored by an engine that gives logits only, and compared with a stored baseline.

`Logits` is what such an engine has to offer: the float32 logits after all but the last id of a window, part by part.
A stored baseline that is written here keeps those logits, and is labelled so: vocabulary/hidden times larger than hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from harness.engines.base import WindowScores
from harness.engines.stored_baseline import (
    STATES,
    StoredBaseline,
    StoredFacts,
    equal_length,
    keep_baseline,
    states_file,
    stored_facts,
    token_scores,
    window_scores,
)
from harness.errors import BadInput, Unsupported
from harness.measure.machine import free_disk_bytes

Logits = Callable[[Sequence[int]], Iterator[tuple[int, NDArray[np.float32]]]]
"""Window -> (first position, logits [n, vocabulary]) parts; each may be a view that the next one overwrites."""


def opened(windows: Sequence[Sequence[int]], folder: Path | None, *, vocab_size: int) -> StoredBaseline | None:
    """The stored baseline in `folder`, or None. Unsupported if it was made of other tokens or has another vocabulary."""
    if folder is None:
        return None
    stored = StoredBaseline(folder, device=torch.device("cpu"))
    stored.check(windows, vocab_size=vocab_size)
    return stored


def checked(windows: Sequence[Sequence[int]], *, context_length: int) -> None:
    """BadInput for a window without a target, Unsupported for one that does not fit."""
    for number, window in enumerate(windows):
        if len(window) < 2:
            raise BadInput(f"window {number} has {len(window)} token(s); at least 2 are needed to score one")
        if len(window) - 1 > context_length:
            raise Unsupported(
                f"windows of {len(window)} tokens do not fit the model's context of {context_length}; choose a smaller `window`"
            )


def scores(windows: Sequence[Sequence[int]], baseline: StoredBaseline | None, logits: Logits) -> Iterator[WindowScores]:
    """Scores of each window of T ids at its T-1 targets, in order; with `baseline`, compared with what is stored there."""
    for number, window in enumerate(windows):
        targets = torch.tensor(list(window[1:]), dtype=torch.long)
        states = None if baseline is None else baseline.states(number, 1)[0]
        parts: dict[str, list[NDArray[np.float32]]] = {}
        for start, part_logits in logits(window):
            part = slice(start, start + len(part_logits))
            theirs = None if states is None or baseline is None else baseline.head(states[part])
            for name, values in token_scores(torch.from_numpy(part_logits), targets[part], theirs).items():
                parts.setdefault(name, []).append(values.numpy())
        yield window_scores({name: np.concatenate(arrays) for name, arrays in parts.items()})


def store_baseline(
    windows: Sequence[Sequence[int]], folder: Path, logits: Logits, *, vocab_size: int, cut: str, warm_up: int = 0
) -> StoredFacts:
    """Keeps the float32 logits [windows, T-1, vocabulary] in `folder`, which appears at once and complete. `warm_up`: so many of
    the first positions of a window `logits` does not give."""
    positions = equal_length(windows) - 1 - warm_up

    def write(partial: Path) -> StoredFacts:
        shape = (len(windows), positions, vocab_size)
        size = 4 * shape[0] * shape[1] * shape[2]
        if size > free_disk_bytes(partial) // 2:
            raise Unsupported(
                f"this engine's answers can be kept as logits only, which need {size / 1e9:.1f} GB here; choose a baseline that "
                "runs on transformers (bf16), or limit the corpus with `tokens`"
            )
        with states_file(partial / STATES, shape=shape, dtype=torch.float32) as append:
            for window in windows:
                for _, part in logits(window):
                    append(torch.from_numpy(part))
        return stored_facts(
            windows,
            partial,
            cut=cut,
            width=vocab_size,
            vocab_size=vocab_size,
            dtype=torch.float32,
            head=None,
            positions=positions,
        )

    return keep_baseline(folder, write)
