"""The cut between body and head, against the model's own logits."""

from typing import Any

import pytest
import torch

from harness.scoring.head import Split, split
from harness.scoring.widened import products
from tests.scoring import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_of_body_is_the_models_own_logits(name: str, dtype: torch.dtype) -> None:
    model = tiny.model(name).to(dtype)
    cut = split(model)
    ids = torch.randint(3, tiny.VOCAB, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), products(torch.device("cpu"), dtype):
        own = model(input_ids=ids).logits.float()
    hidden = cut.body(ids)
    assert cut.kind == "direct"
    assert hidden.shape[:2] == ids.shape
    assert torch.equal(cut.head(hidden), own)
    rows = cut.head(hidden.reshape(-1, hidden.shape[-1]))
    torch.testing.assert_close(rows, own.reshape(-1, own.shape[-1]), rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_soft_capping_and_scaling_are_read_from_the_configuration_and_said() -> None:
    assert "soft-capped" in split(tiny.model("Gemma2")).note
    assert "/ logits_scaling" in split(tiny.model("Granite")).note
    assert "* logit_scale" in split(tiny.model("Cohere")).note


def test_a_model_with_something_unusual_before_its_head_is_cut_by_a_hook() -> None:
    model = tiny.model("Llama")
    inner = model.forward

    def odd(**kwargs: Any) -> Any:
        # Stands for an architecture of its own: the logits are changed in a way no configuration names.
        out = inner(**kwargs)
        out.logits = out.logits * 1.5 + 0.25
        return out

    model.forward = odd
    cut = split(model)
    ids = torch.arange(3, 33).view(2, 15)
    with torch.no_grad():
        own = odd(input_ids=ids).logits
    assert cut.kind == "hooked"
    torch.testing.assert_close(cut.head(cut.body(ids)), own, rtol=0, atol=1e-5)
    rows = cut.body(ids)[0]
    torch.testing.assert_close(cut.head(rows), own[0], rtol=0, atol=1e-5)
    assert not model.get_output_embeddings()._forward_pre_hooks, "hooks live for one call"


def test_a_model_that_cannot_be_cut_keeps_its_full_logits_and_says_so() -> None:
    model = tiny.model("Llama")
    model.get_output_embeddings = lambda: None
    cut = split(model)
    ids = torch.arange(3, 33).view(2, 15)
    with torch.no_grad():
        own = model(input_ids=ids).logits
    assert cut.kind == "full"
    assert "full logits" in cut.note
    assert torch.equal(cut.head(cut.body(ids)), own)


def _scores(cut: Split, hidden: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = cut.head(hidden)
    return logits.log_softmax(-1)[rows, targets], logits.argmax(-1)[rows] == targets


def test_scores_are_log_softmax_and_argmax_at_the_targets_only() -> None:
    cut = split(tiny.model("Llama"))
    source = torch.Generator().manual_seed(3)
    hidden = cut.body(torch.randint(3, tiny.VOCAB, (8, 50), generator=source)).reshape(400, -1)
    rows = torch.sort(torch.randint(0, 400, (700,), generator=source)).values
    targets = torch.randint(0, tiny.VOCAB, (700,), generator=source)
    targets[::3] = cut.head(hidden).argmax(-1)[rows[::3]]
    found, top = cut.scores(hidden, targets, rows)
    expected, greedy = _scores(cut, hidden, targets, rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert torch.equal(top, greedy)
    assert 0 < int(top.sum()) < 700


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Granite", "Cohere", "Phi", "OPT"])
def test_scores_in_blocks_of_the_vocabulary_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = split(tiny.model(name, vocab_size=3000))
    source = torch.Generator().manual_seed(3)
    hidden = cut.body(torch.randint(3, 3000, (13, 50), generator=source)).reshape(650, -1)
    rows = torch.sort(torch.randint(0, 650, (900,), generator=source)).values
    targets = torch.randint(0, 3000, (900,), generator=source)
    targets[::3] = cut.head(hidden).argmax(-1)[rows[::3]]
    monkeypatch.setattr("harness.scoring.head.WIDE_VOCABULARY", 100)
    monkeypatch.setattr("harness.scoring.head.CHUNK_BYTES", 1)
    found, top = cut.scores(hidden, targets, rows)
    expected, greedy = _scores(cut, hidden, targets, rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
    assert torch.equal(top, greedy)
    assert 300 <= int(top.sum()) < 900


def test_of_equal_logits_in_different_blocks_the_first_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = split(tiny.model("Llama", vocab_size=3000, tie_word_embeddings=False))
    weight = cut.model.get_output_embeddings().weight
    with torch.no_grad():
        weight[700] = weight[2500] = weight[2600] = 50 * torch.ones(64)
    monkeypatch.setattr("harness.scoring.head.WIDE_VOCABULARY", 100)
    monkeypatch.setattr("harness.scoring.head.CHUNK_BYTES", 1)
    _, top = cut.scores(torch.ones(3, 64), torch.tensor([700, 2500, 2600]))
    assert top.tolist() == [True, False, False]


def test_of_equal_logits_the_first_is_greedy() -> None:
    cut = split(tiny.model("Llama", tie_word_embeddings=False))
    weight = cut.model.get_output_embeddings().weight
    with torch.no_grad():
        weight[7] = weight[9] = 50 * torch.ones(64)
    hidden = torch.ones(2, 64)
    _, top = cut.scores(hidden, torch.tensor([7, 9]))
    assert top.tolist() == [True, False]


def test_the_head_never_sees_more_rows_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = split(tiny.model("Llama"))
    seen: list[int] = []
    head = cut._head

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return head(hidden)

    monkeypatch.setattr(cut, "_head", watched)
    count = 3 * cut.chunk_rows() + 5
    cut.scores(torch.randn(count, 64), torch.zeros(count, dtype=torch.long))
    assert max(seen) == cut.chunk_rows()
    assert sum(seen) == count
    assert cut.chunk_rows() * cut.vocab_size * 4 <= 4 << 20


def test_a_broken_model_gives_nan_and_not_a_crash() -> None:
    model = tiny.model("Llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    cut = split(model)
    found, top = cut.scores(cut.body(torch.arange(3, 13)[None])[0], torch.zeros(10, dtype=torch.long))
    assert found.isnan().all()
    assert not top.any()
