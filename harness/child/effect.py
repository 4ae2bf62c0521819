"""Proof that a type of keys and values is not ignored: a cell that quantizes them answers otherwise than with unquantized ones.

Asked of a few fixed tokens, once for each artifact and way of running, before anything of the cell is measured. An engine that
takes a setting and does nothing would give another cell's numbers under this one's name.
"""

from __future__ import annotations

from harness import kv
from harness.engines.base import Loaded, through_cache
from harness.errors import NoEffect
from harness.kv import CachedSplit
from harness.spec import Cell

SPLIT, WINDOW = CachedSplit(warm_up=32, step=16), 65


def prove(cell: Cell, loaded: Loaded) -> None:
    """NoEffect where all answers of a cell that quantizes its keys and values are, bit for bit, those with unquantized ones."""
    if cell.running.engine not in kv.ENGINES or not kv.quantized(cell.running.kv):  # vLLM's type is a flag, with words of its own
        return
    engine, known = through_cache(loaded), min(256, len(loaded.tokenizer))
    window = [(7919 * place) % known for place in range(1, WINDOW + 1)]
    owns = [one.own for one in engine.score_cached([window], SPLIT, None)]
    if not any(own is not None and own.kl is not None and own.kl.any() for own in owns):
        raise NoEffect(
            f"setting had no effect: with kv {cell.running.kv}, {SPLIT.scored(WINDOW)} fixed tokens are answered bit for bit as "
            f"with unquantized keys and values, so {cell.running.engine} takes no notice of it"
        )
