"""Two models' distributions over the same positions, compared without holding either whole.

With a vocabulary of 150,000 a few hundred rows of log-probabilities fill hundreds of MiB, several times over. Here both heads
run over the vocabulary in blocks, and all that is asked of a position is summed along: the two log-sum-exps (Milakov and
Gimelshein 2018, online normalizer calculation), and for the divergence

    KL(p || q) = sum_v p_v (ln p_v - ln q_v) = sum_v e^(t_v - m) (t_v - z_v) / sum_v e^(t_v - m) - lse(t) + lse(z)

with t the baseline's logits, z the model's own, m the largest t so far.
"""

from __future__ import annotations

import torch

from harness.scoring.head import BLOCK_ROWS, CHUNK_BYTES, Block

NAMES = ("nll", "kl", "same_top", "base_top", "delta_p", "base_nll")


class _Running:
    """Largest logit, where it stands, and the sum of exponentials of a distribution, block by block; [N] each."""

    def __init__(self, rows: int) -> None:
        self.top = torch.full((rows,), float("-inf"))
        self.place = torch.zeros(rows, dtype=torch.long)
        self.total = torch.zeros(rows)
        self.true = torch.full((rows,), float("nan"))

    def take(self, logits: torch.Tensor, low: int, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a block [N, W]; returns (e^(logit - top) of the block, the factor that sums so far were scaled by)."""
        highest, at = logits.max(dim=-1)
        higher = highest > self.top  # of equal logits the first is the argmax
        self.place = torch.where(higher, at + low, self.place)
        top = torch.maximum(self.top, highest)
        factor = torch.where(self.top == top, 1.0, (self.top - top).exp())
        weights = (logits - torch.where(top == -torch.inf, 0.0, top)[:, None]).exp_()
        self.total = self.total * factor + weights.sum(dim=-1)
        self.top = top
        here = ((targets >= low) & (targets < low + logits.shape[1])).nonzero().squeeze(1)
        self.true[here] = logits[here, targets[here] - low]
        return weights, factor

    def log_total(self) -> torch.Tensor:
        return self.total.log() + self.top


def compare_in_blocks(
    hidden: torch.Tensor, ours: Block, states: torch.Tensor, theirs: Block, targets: torch.Tensor, *, vocab_size: int
) -> dict[str, torch.Tensor]:
    """What `WindowScores` holds, as float32 [N]: of hidden states [N, H] under `ours` against the baseline's [N, H'] under
    `theirs`, at `targets` [N].

    The divergence is exactly 0 where both logits are bit-equal; NaN or infinity where either is, never clipped; a token that
    the baseline rules out adds nothing.
    """
    out = {name: torch.empty(len(targets)) for name in NAMES}
    for start in range(0, len(targets), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        rows, base, wanted = hidden[part], states[part], targets[part]
        width = max(1024, CHUNK_BYTES // (4 * len(rows)))
        mine, other = _Running(len(rows)), _Running(len(rows))
        gap = torch.zeros(len(rows))
        for low in range(0, vocab_size, width):
            high = min(low + width, vocab_size)
            z, t = ours(rows, low, high).float(), theirs(base, low, high).float()
            mine.take(z, low, wanted)
            weights, factor = other.take(t, low, wanted)
            terms = weights.mul_(t - z)
            ruled_out = t == -torch.inf
            if ruled_out.any():
                terms = terms.masked_fill_(ruled_out, 0.0)
            gap = gap * factor + terms.sum(dim=-1)
        ours_true, theirs_true = mine.true - mine.log_total(), other.true - other.log_total()
        out["nll"][part] = -ours_true
        out["kl"][part] = gap / other.total - other.log_total() + mine.log_total()
        out["same_top"][part] = (mine.place == other.place).float()
        out["base_top"][part] = (other.top - other.log_total()).exp()
        out["delta_p"][part] = ours_true.exp() - theirs_true.exp()
        out["base_nll"][part] = -theirs_true
    return out
