"""How much of a calibration text is scored as well.

`share` is the part of the calibration text's characters that lie in a run of `RUN` characters or more which the scored text
holds too. Runs of blanks count as one blank; case and punctuation count. Runs of 50 characters are what GPT-4's authors looked
for in its training text (OpenAI 2023, arXiv:2303.08774, appendix C). Characters need no tokenizer, so that the share means the
same for every model, and no blanks between words, so that it means the same in every language.

Runs are compared by 64-bit hashes: two texts of ten million characters share one by chance with a probability of 5e-6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RUN = 50
"""Characters, about ten words of English."""


def share(calibration: str, scored: str) -> float:
    """Part of the characters of `calibration` in runs of at least `RUN` that `scored` holds too, 0 to 1. A text shorter than a
    run counts as one run. 0 for an empty text."""
    import numpy as np

    ours, theirs = " ".join(calibration.split()), " ".join(scored.split())
    if len(ours) < RUN:
        return float(bool(ours) and ours in theirs)
    found = np.isin(_hashes(ours), _hashes(theirs))
    steps = np.zeros(len(ours) + 1, dtype=np.int64)
    steps[:-RUN] += found
    steps[RUN:] -= found
    return float(np.count_nonzero(np.cumsum(steps)[:-1]) / len(ours))


def _hashes(text: str) -> NDArray[np.uint64]:
    """A hash of each run of RUN characters of the text, by where it starts: a polynomial modulo 2^64 in scattered code points.
    Runs are put together from shorter ones, of 1, 2, 4 ... characters."""
    import numpy as np

    count = len(text) - RUN + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    power: NDArray[np.uint64] = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # those of SplitMix64's finalizer
        power = (power + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(factor)
        power ^= power >> np.uint64(31)
    base, length = 0x100000001B3, 1
    made: NDArray[np.uint64] = np.zeros(len(text), dtype=np.uint64)
    done, left = 0, RUN
    while left:
        if left & 1:  # `power` holds the runs of `length` characters
            made = made[: len(power) - done] * np.uint64(pow(base, length, 1 << 64)) + power[done:]
            done += length
        left >>= 1
        if left:
            power = power[: len(power) - length] * np.uint64(pow(base, length, 1 << 64)) + power[length:]
            length *= 2
    return made[:count]
