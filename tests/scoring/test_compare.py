"""Distributions compared block by block: the same numbers as whole ones in float64."""

from __future__ import annotations

import pytest
import torch

from harness.scoring.compare import compare_in_blocks
from harness.scoring.head import BLOCK_ROWS, Block

VOCAB, HIDDEN = 5000, 16


def head(seed: int, *, ruled_out: int | None = None) -> tuple[torch.Tensor, Block]:
    weight = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(seed))

    def block(hidden: torch.Tensor, low: int, high: int) -> torch.Tensor:
        logits = hidden @ weight[low:high].T
        if ruled_out is not None and low <= ruled_out < high:
            logits[:, ruled_out - low] = -torch.inf
        return logits

    return weight, block


def rows(count: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def targets(count: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("count", [3, BLOCK_ROWS + 17])
def test_blocks_give_the_sums_of_whole_distributions_in_float64(count: int) -> None:
    hidden, wanted = rows(count), targets(count)
    ours, our_block = head(1)
    theirs, their_block = head(2)
    found = compare_in_blocks(hidden, our_block, hidden, their_block, wanted, vocab_size=VOCAB)
    q = torch.log_softmax(hidden.double() @ ours.double().T, -1)
    p = torch.log_softmax(hidden.double() @ theirs.double().T, -1)
    true_q, true_p = (x.gather(1, wanted[:, None]).squeeze(1) for x in (q, p))
    expected = {
        "nll": -true_q,
        "kl": (p.exp() * (p - q)).sum(-1),
        "same_top": (p.argmax(-1) == q.argmax(-1)).double(),
        "base_top": p.exp().amax(-1),
        "delta_p": true_q.exp() - true_p.exp(),
        "base_nll": -true_p,
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=2e-5, atol=2e-5, msg=name)


def test_a_model_against_itself_diverges_by_exactly_nothing() -> None:
    _, block = head(1)
    found = compare_in_blocks(rows(40), block, rows(40), block, targets(40), vocab_size=VOCAB)
    assert bool((found["kl"] == 0).all())
    assert bool((found["delta_p"] == 0).all())
    assert bool((found["same_top"] == 1).all())


@pytest.mark.parametrize("token", [0, 1023, 1024, VOCAB - 1])
def test_a_token_that_the_baseline_rules_out_adds_nothing_and_one_that_the_cell_rules_out_is_infinite(token: int) -> None:
    _, plain = head(1)
    _, without = head(1, ruled_out=token)
    hidden, wanted = rows(600), targets(600)
    base = compare_in_blocks(hidden, plain, hidden, without, wanted, vocab_size=VOCAB)
    assert bool(torch.isfinite(base["kl"]).all())
    assert bool((base["kl"] > -1e-5).all())
    cell = compare_in_blocks(hidden, without, hidden, plain, wanted, vocab_size=VOCAB)
    assert bool((cell["kl"] == torch.inf).all())


def test_nan_stays_nan() -> None:
    _, block = head(1)
    broken = rows(8)
    broken[3, 0] = torch.nan
    found = compare_in_blocks(broken, block, rows(8), block, targets(8), vocab_size=VOCAB)
    assert bool(found["kl"][3].isnan())
    assert bool(found["nll"][3].isnan())
    assert not bool(found["kl"][[0, 1, 2, 4, 5, 6, 7]].isnan().any())
