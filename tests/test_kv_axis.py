"""The axis `kv` of a suite: words that engines know, cells that share their weights, and questions that read the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import kv
from harness.errors import BadInput
from harness.kv import CachedSplit, default_split, split_of
from harness.probes import perplexity
from harness.run import identity
from harness.spec import Question
from harness.suite import matrix
from harness.suite.plan import Plan
from tests.right.cases import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

TEXT = "a text of some length that is scored. " * 200


def planned(tmp_path: Path, methods: str, extra: str = "", baseline: str = "bf16") -> Plan:
    """A suite over a folder that looks like a model of heads of 64 numbers."""
    path, text = tmp_path / "kv.yaml", tmp_path / "text.txt"
    text.write_text(TEXT)
    folder = tmp_path / "model"
    if not folder.is_dir():
        checkpoint(folder)
    path.write_text(
        f"name: kv\nmodels: [{{path: {folder}}}]\nbaseline: {baseline}\nprobes: [size, perplexity, divergence]\n"
        f"corpora: [{{path: {text}, window: 32}}]\nmethods: {methods}\n{extra}\n"
    )
    return matrix.plan(path, device="cpu")


def definitions(plan: Plan) -> dict[str, list[str]]:
    """What each cell is asked of the text, by its label."""
    asked = {p.cell.label: [q.options["definition"] for q in p.questions if q.probe == "perplexity"] for p in plan.cells}
    return {label: [str(name) for name in names] for label, names in asked.items()}


def test_the_axis_multiplies_cells_and_their_weights_are_made_once(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{bf16: , rtn: {bits: 4}}", "kv: [bf16, int8, {key: int8, value: int4}]")
    assert not plan.unsupported
    found = {p.cell.label: p.cell.running.kv for p in plan.cells}
    assert {label: word for label, word in found.items() if label.startswith("bf16")} == {
        "bf16": "bf16",
        "bf16 kv=int8": "int8",
        "bf16 kv=int8/int4": "int8/int4",
    }
    assert len(found) == 6
    inputs = identity.gather(plan, tmp_path / "cache")
    cells = [p.cell for p in plan.cells if p.cell.method == "rtn"]
    assert len({inputs.artifact(cell) for cell in cells}) == 1
    assert len({inputs.key(cell, Question(probe="size", subject="")) for cell in cells}) == 3


def test_cells_of_the_axis_are_scored_through_the_cache_and_others_in_one_pass(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{bf16: , rtn: {bits: 4}, hqq: {bits: 4, kv: [bf16, int8]}}")
    found = definitions(plan)
    assert found.pop("bf16") == ["gptq-32", "cached-16+8"]  # the baseline is asked what any cell is asked
    assert all(names == ["gptq-32"] for label, names in found.items() if label.startswith("rtn"))
    assert all(names == ["cached-16+8"] for label, names in found.items() if label.startswith("hqq"))


def test_a_cell_without_the_axis_keeps_its_key_whatever_others_have(tmp_path: Path) -> None:
    def keys(methods: str) -> dict[str, str]:
        plan = planned(tmp_path, methods)
        inputs = identity.gather(plan, tmp_path / "cache")
        return {
            f"{p.cell.label} {q.probe}": inputs.key(p.cell, q)
            for p in plan.cells
            for q in p.questions
            if not p.cell.running.kv and not str(q.options.get("definition", "")).startswith("cached")
        }

    before = keys("{bf16: , rtn: {bits: 4}}")
    after = keys("{bf16: , rtn: {bits: 4}, hqq: {bits: 4, kv: [bf16, int8]}}")
    assert before
    assert before == {name: after[name] for name in before}


def test_a_definition_that_the_suite_names_is_asked_of_every_cell(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{bf16: }", "kv: [bf16, int8]")
    assert set(map(tuple, definitions(plan).values())) == {("cached-16+8",)}
    path = plan.file
    path.write_text(path.read_text().replace("window: 32", "window: 32, definition: gptq-32"))
    assert set(map(tuple, definitions(matrix.plan(path, device="cpu")).values())) == {("gptq-32",)}


def test_a_word_of_the_suite_that_an_engine_does_not_know_is_an_unsupported_cell(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{bf16: }", "kv: [bf16, turbo4]")
    (lost,) = plan.unsupported
    assert lost.cell.label == "bf16 kv=turbo4"
    assert "transformers cannot keep keys and values in turbo4; it takes bf16" in lost.reason


@pytest.mark.parametrize(
    ("methods", "extra", "said"),
    [
        ("{bf16: }", "kv: [bf16, int9]", r'kv: "int9" is no type of keys and values; did you mean int8[?] known: bf16, f16, f32'),
        ("{bf16: }", "kv: [bf16, 8]", r"kv: 8 is no type of keys and values; .*known: bf16"),
        ("{bf16: }", "kv: [int8, int4]", r"none of these is; add one of bf16, f16, f32"),
        ("{bf16: }", "kv: []", r"kv: \[\] is an empty list"),
        ("{bf16: }", "kv: [bf16, {key: int8}]", r"write \{key: int8, value: int4\}"),
        ("{bf16: {kv: [bf16, turbo4]}}", "", r"line \d+: bf16: kv: transformers cannot keep keys and values in turbo4; it takes"),
        ("{bf16: , gguf: {bits: 8, kv: [f16, int8], kv_cache: q8_0}}", "", r"kv and kv_cache say the same; keep kv"),
    ],
)
def test_mistakes_in_the_axis_are_said_with_the_words_that_are_known(methods: str, extra: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        planned(tmp_path, methods, extra)


def test_a_baseline_whose_engine_quantizes_keys_and_values_unasked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"says nothing of its keys and values, and openvino keeps them in u8 then"):
        planned(tmp_path, "{openvino: {bits: 16}, rtn: {bits: 4, kv: [bf16, int8]}}", baseline="openvino 16-bit f16")


def test_cells_can_be_excluded_by_their_keys_and_values(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{bf16: , rtn: {bits: 4}}", "kv: [bf16, int8]\nexclude: [{method: rtn, kv: int8}]")
    assert [p.cell.running.kv for p in plan.cells if p.cell.method == "rtn"] == ["bf16"]


def test_a_split_feeds_every_input_once_and_scores_what_follows_the_warm_up() -> None:
    split = CachedSplit(warm_up=16, step=8)
    assert list(split.calls(31)) == [(0, 16), (16, 24), (24, 31)]
    assert split.scored(32) == 15
    assert split_of("cached-16+8") == split == default_split(32)
    assert split_of("gptq-32") is None
    assert perplexity.unknown("cached-16+8", 32) is None
    assert "scores nothing in windows of 16 tokens" in str(perplexity.unknown("cached-16+8", 16))
    assert "at least 1" in str(perplexity.unknown("cached-16+0", 32))


@pytest.mark.parametrize(
    ("engine", "word", "bits"),
    [
        ("llamacpp", "int8", 8.5),
        ("llamacpp", "int4", 4.5),
        ("llamacpp", "q5_1", 6.0),
        ("llamacpp", "int8/int4", 6.5),
        ("transformers", "int4", 4.5),
        ("transformers", "bf16", 16.0),
        ("openvino", "int8", 9.0),
        ("openvino", "turbo3", 3.5),
    ],
)
def test_bytes_of_a_token_follow_from_the_types(engine: str, word: str, bits: float) -> None:
    numbers = 2 * 5 * 4 * 64  # keys and values, layers, heads, numbers of a head
    assert kv.bytes_per_token(engine, word, layers=5, heads=4, size=64) == numbers * bits / 8


def test_every_word_is_on_the_page_of_words() -> None:
    page = (Path(__file__).parents[1] / "docs" / "kv.md").read_text(encoding="utf-8")
    for engine, table in kv.ENGINES.items():
        for word, kind in table.items():
            if engine != "fake":
                assert f"`{word}`" in page, word
                assert kind.native.split()[0] in page, kind.native
