"""A cell's answers are held against the baseline's: beyond what its bits bring, it fails or is marked, with words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.artifact import LinearLayer, ModelShape, StoredTensor
from harness.child import bound
from harness.engines.transformers import Transformers
from harness.errors import BadAnswers, Nonfinite
from harness.methods import METHODS
from harness.methods.base import resolve_options
from harness.probes import size
from harness.report.terminal import terminal_table
from harness.report.view import view
from harness.spec import Cell, Scheme
from tests.right.cases import cell, checkpoint, failures, run, values
from tests.squares import square
from tests.tiny_llama import llama, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, what its baseline left)."""
    folder = tmp_path_factory.mktemp("bound")
    model = llama(hidden_size=128, tie_word_embeddings=False)
    checkpoint(folder / "m", model=model, dtype=torch.float32)
    keep(folder, [bound.Rounding(bits=4, group=64), bound.Rounding(bits=3, group=64)])
    return folder / "m", folder / "left"


def engine() -> Transformers:
    return Transformers(llama(hidden_size=128, tie_word_embeddings=False).eval(), tokenizer())


def keep(folder: Path, wanted: list[bound.Rounding]) -> None:
    (folder / "left").mkdir(exist_ok=True)
    fresh = iter([engine() for _ in wanted])
    bound.keep(folder / "left", wanted, engine(), fresh, model_dir=folder / "m", cache=folder)


def disturbed(share: float) -> Transformers:
    """The model with noise of this share of each weight's size in its layers."""
    loaded = engine()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():  # type: ignore[attr-defined]
            if name.endswith("proj.weight"):
                weight.add_(torch.randn(weight.shape, generator=draw) * weight.std() * share)
    return loaded


def asked(bits: float, name: str = "hqq") -> Cell:
    return cell(name, bits)


def test_the_tokens_are_512_fixed_ones_of_the_text(baseline: tuple[Path, Path]) -> None:
    _, left = baseline
    kept = bound.known(left)
    assert kept is not None
    assert [len(window) for window in kept.windows] == [129] * 4
    again = bound._windows(engine(), baseline[0], left.parent)
    assert again == kept.windows


def test_equal_weights_are_at_no_distance(baseline: tuple[Path, Path]) -> None:
    answers = bound.hold(asked(8.0), engine(), baseline[1], fault=lambda: "FAULT")
    assert answers is not None
    assert answers.kl < 1e-6
    assert answers.limit == 0.05
    assert answers.said == ""


def test_eight_bits_that_are_far_off_fail_with_the_reason(baseline: tuple[Path, Path]) -> None:
    with pytest.raises(
        BadAnswers, match=r"nats from the baseline's on 512 fixed tokens, where 8 bits bring them within 0\.05; the art"
    ):
        bound.hold(asked(8.0), disturbed(0.5), baseline[1], fault=lambda: "FAULT")


def test_a_scheme_that_is_known_to_be_worse_is_marked_instead(
    baseline: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "hqq", replace(METHODS["hqq"], worse={8.0: "its layers lose a bit of each code"}))
    answers = bound.hold(asked(8.0), disturbed(0.5), baseline[1], fault=lambda: "FAULT")
    assert answers is not None
    assert answers.said.endswith("its layers lose a bit of each code")


def test_fewer_bits_are_held_against_plain_rounding(baseline: tuple[Path, Path]) -> None:
    kept = bound.known(baseline[1])
    assert kept is not None
    four, three = (kept.roundings[f"{bits} bits, groups of 64"] for bits in (4, 3))
    assert four is not None
    assert three is not None
    assert 0.001 < four < three
    near = bound.hold(asked(4.0), disturbed(0.1), baseline[1], fault=lambda: "FAULT")
    assert near is not None
    assert near.limit == pytest.approx(10 * four)
    assert near.said == ""
    far = bound.hold(asked(4.0), disturbed(3.0), baseline[1], fault=lambda: "FAULT")
    assert far is not None
    assert far.kl > 10 * four
    assert "more than ten times the" in far.said
    assert "plain rounding to 4 bits in groups of 64" in far.said


def test_what_is_mostly_not_finite_is_broken_and_a_few_are_marked(baseline: tuple[Path, Path]) -> None:
    kept = bound.known(baseline[1])
    assert kept is not None
    loaded = engine()
    with torch.no_grad():
        loaded.model.model.norm.weight[0] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(Nonfinite, match="512 of 512 fixed tokens are answered with NaN or infinity; FAULT"):
        bound.hold(asked(8.0), loaded, baseline[1], fault=lambda: "FAULT")
    last = engine()
    token = kept.windows[0][-2]
    seen = sum(token in window[:-1] for window in kept.windows)
    if seen < 3:
        with torch.no_grad():
            last.model.model.embed_tokens.weight[token] = float("nan")  # type: ignore[attr-defined]
        answers = bound.hold(asked(8.0), last, baseline[1], fault=lambda: "FAULT")
        assert answers is not None
        assert "of 512 fixed tokens are answered with NaN or infinity" in answers.said


def test_another_vocabulary_is_not_compared(baseline: tuple[Path, Path]) -> None:
    other = Transformers(llama(hidden_size=128, vocab_size=600).eval(), tokenizer())
    assert bound.hold(asked(8.0), other, baseline[1], fault=lambda: "FAULT") is None


def test_a_short_context_gets_shorter_windows(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m", model=llama(hidden_size=64, max_position_embeddings=40))
    loaded = Transformers(llama(hidden_size=64, max_position_embeddings=40).eval(), tokenizer())
    windows = bound._windows(loaded, tmp_path / "m", tmp_path)
    assert {len(window) for window in windows} == {33}
    assert sum(len(window) - 1 for window in windows) == 512


@pytest.mark.slow
def test_plain_rounding_is_that_of_rtn(tmp_path: Path) -> None:
    """The whole way: every record of a compared cell says how far it is, and rtn is as far as plain rounding."""
    checkpoint(tmp_path / "m", model=llama(hidden_size=128, tie_word_embeddings=False))
    extra = "probes: [size, divergence]\n"
    stored = run(tmp_path, methods="rtn: {bits: [8, 4, 3]}, hqq: {bits: 4}", models="[{path: ./m, name: m}]", extra=extra)
    assert failures(stored) == []
    facts = {
        r.cell.name: r.answer.facts["answers"]
        for r in stored.records
        if r.answer is not None and r.question.probe == "divergence" and not r.cell.name.endswith("bf16")
    }
    measured = values(stored, "kl_mean")
    for name, answers in facts.items():
        assert answers["kl"] == pytest.approx(measured[name], rel=0.5)  # other tokens
    for bits in (4, 3):
        answers = facts[f"m / rtn {bits}-bit g64"]
        assert answers["kl"] == pytest.approx(answers["limit"] / 10, rel=0.02)
    assert facts["m / hqq 4-bit g64"]["limit"] == facts["m / rtn 4-bit g64"]["limit"]
    assert facts["m / rtn 8-bit g64"]["limit"] == 0.05


def test_a_mark_is_shown_with_its_words(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m", model=llama(hidden_size=64))
    stored = run(tmp_path, methods="hqq: {bits: 4}", models="[{path: ./m, name: m}]", extra="probes: [size]\n")
    record = next(r for r in stored.records if r.cell.method == "hqq")
    assert record.answer is not None
    marked = replace(record, answer=replace(record.answer, facts={**record.answer.facts, "marks": ["it is far off"]}))
    seen = view(replace(stored, records=tuple(marked if r is record else r for r in stored.records)))
    assert [c.marks for c in seen.cells] == [(), ("it is far off",)]
    table = terminal_table(seen)
    assert "it is far off" in str(table.caption)
    assert any("marked" in str(text) for text in table.columns[0].cells)


def test_stored_bits_that_are_not_those_of_the_plan_mark_the_record() -> None:
    """Two layers, one of which was left in 16 bits."""
    layers = tuple(LinearLayer(name=name, rows=64, columns=64) for name in ("a", "b"))
    shape = ModelShape(architecture="?", parameters=8192, linears=layers, hidden=64, layers=1, vocab=1, tied=False, dtype="BF16")
    counts = size._Counts(source=shape, stored={}, body=(), view=None)
    packed = [
        StoredTensor(name="a.codes", layer="a", role="weight", bits=4 * 4096),
        StoredTensor(name="a.scale", layer="a", role="scale", bits=16 * 64),
        StoredTensor(name="a.g_idx", layer="a", role="index", bits=32 * 64),
    ]
    kept = StoredTensor(name="b.weight", layer="", role="other", bits=16 * 4096)
    other = [replace(tensor, name=tensor.name.replace("a", "b", 1), layer="b") for tensor in packed]
    assert size._unlike_the_plan(4.25, [*packed, *other], counts) is None
    said = "its linear layers take 10.12 bits per weight, where 4.25 were planned"
    assert size._unlike_the_plan(4.25, [*packed, kept], counts) == said
    parts = {"4.8": {"layers": 1, "parameters": 4096}, "16.0": {"layers": 1, "parameters": 4096}}
    assert size._parts([*packed, kept], counts) == parts


def test_rounding_takes_the_cells_own_group() -> None:
    def wanted(name: str, bits: float, **options: object) -> bound.Rounding | None:
        method = METHODS[name]
        return bound.rounding(square(Scheme(method=name, bits=bits, options=resolve_options(method, options, bits))))  # type: ignore[arg-type]

    assert wanted("hqq", 4, group_size=128) == bound.Rounding(bits=4, group=128)
    assert wanted("bnb", 4) == bound.Rounding(bits=4, group=bound.GROUP)
    assert wanted("hqq", 8) is None
