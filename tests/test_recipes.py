"""Recipes of one's own in a suite: found, read as plain data, in label and identity, and refused where they are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import recipes
from harness.artifact import ArtifactRecord, StoredFile
from harness.child import bound
from harness.errors import BadInput
from harness.run import identity, serving
from harness.spec import to_json
from harness.suite import matrix
from harness.suite.plan import Plan

EIGHT = '"+:.*down_proj": {bits: 8}\n'


def planned(tmp_path: Path, methods: str, recipe: str | bytes = EIGHT, name: str = "mine.yaml") -> Plan:
    (tmp_path / name).write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
    path = tmp_path / "own.yaml"
    path.write_text(f"name: own\nmodels: [reference]\nprobes: [size]\nmethods:\n  bf16:\n{methods}\n", encoding="utf-8")
    return matrix.plan(path, device="cpu")


def refusal(tmp_path: Path, methods: str, recipe: str | bytes = EIGHT) -> str:
    with pytest.raises(BadInput) as caught:
        planned(tmp_path, methods, recipe)
    return str(caught.value)


def test_a_recipe_stands_in_the_label_with_its_digest_and_in_the_scheme_unchanged(tmp_path: Path) -> None:
    text = '"-:.*v_proj": {}\n"+:.*down_proj": {group_size: 32, bits: 8}\n'
    plan = planned(tmp_path, "  gptq: {bits: 4, group_size: 64, dynamic: mine.yaml}", text)
    cell = plan.cells[1].cell
    recipe = recipes.of(cell.scheme)
    assert recipe is not None
    assert cell.label == f"gptq 4-bit g64 by mine@{recipe.digest[:8]}"
    assert list(recipe.content.items()) == [("-:.*v_proj", {}), ("+:.*down_proj", {"group_size": 32, "bits": 8})]
    assert json.dumps(recipe.content) == json.dumps(json.loads(to_json(cell.scheme.options)["recipe"]["text"]))
    assert "read back" in plan.cells[1].note


def test_the_content_decides_the_artifact_and_neither_the_files_name_nor_its_comments(tmp_path: Path) -> None:
    def artifact(recipe: str, name: str = "mine.yaml") -> Path:
        plan = planned(tmp_path, f"  rtn: {{bits: 4, dynamic: {name}}}", recipe, name)
        return identity.gather(plan, tmp_path / "cache").artifact(plan.cells[1].cell)

    one = artifact(EIGHT)
    assert artifact(f"# mine\n{EIGHT}") == one
    assert artifact(EIGHT, "other.yaml") == one
    assert artifact('"+:.*down_proj": {bits: 3}') != one
    # The first pattern that matches decides, so their order is part of the content.
    two = '"+:.*proj": {bits: 8}\n', '"+:.*down_proj": {bits: 2}\n'
    assert artifact("".join(two)) != artifact("".join(reversed(two)))


def test_recipes_multiply_cells_and_stand_beside_the_plain_scheme(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text('"+:.*v_proj": {bits: 8}')
    plan = planned(tmp_path, "  rtn: [{bits: 4}, {bits: [4, 3], dynamic: [mine.yaml, other.yaml]}]")
    assert [each.cell.label.partition("@")[0] for each in plan.cells] == [
        "bf16",
        "rtn 4-bit g64",
        *("rtn 4-bit g64 by mine", "rtn 4-bit g64 by other", "rtn 3-bit g64 by mine", "rtn 3-bit g64 by other"),
    ]


def test_an_absolute_path_is_taken_and_a_way_out_of_the_folder_is_not(tmp_path: Path) -> None:
    apart, suite = tmp_path / "apart", tmp_path / "suite"
    apart.mkdir()
    suite.mkdir()
    (apart / "far.yaml").write_text(EIGHT)
    assert "by far@" in planned(suite, f"  rtn: {{bits: 4, dynamic: {apart / 'far.yaml'}}}").cells[1].cell.label
    assert "outside of the suite's folder" in refusal(suite, "  rtn: {bits: 4, dynamic: ../apart/far.yaml}")
    (suite / "link.yaml").symlink_to(apart / "far.yaml")
    assert "outside of the suite's folder" in refusal(suite, "  rtn: {bits: 4, dynamic: link.yaml}")
    assert "is no file" in refusal(suite, "  rtn: {bits: 4, dynamic: nowhere.yaml}")
    assert "write dynamic: mine.yaml" in refusal(suite, "  rtn: {bits: 4, dynamic: 5}")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: {}\nb: !!python/object/apply:os.system [id]\n", 2, "is no plain data"),
        ("a: {bits: !!python/name:os.system }\n", 1, "is no plain data"),
        ("- 8\n- 4\n", 1, "a recipe is a mapping"),
        ("", 1, "a recipe is a mapping"),
        ("just words", 1, "a recipe is a mapping"),
        ("a: {bits: 8}\na: {bits: 4}\n", 2, "is written twice"),
        ("a: &x {bits: 8}\nb: *x\n", 1, "no anchors"),
        ("a: {when: 2026-01-01}\n", 1, "is no plain data"),
        ("a: {bits: .nan}\n", 1, "no number that can be used"),
        ("4: {bits: 8}\n", 1, "is a key and no text"),
        ("a: {bits: 8\n", 2, "not valid YAML"),
        ("a: {}\nb: 8\n", 2, "is a pattern of layers"),
        ("a: {bits: 8}\nb: {bit: 4}\n", 2, "takes no notice of 'bit'"),
        ("a: " + "[" * 20 + "]" * 20, 1, "nested deeper"),
        ("a: " + "[" * 30000 + "]" * 30000, None, "nested"),
        ("a: {bits: 8}\n" + "# " + "x" * (1 << 16), 1, "has at most 64 KiB"),
        (b"a: \xff\xfe", None, "cannot be read as text"),
    ],
)
def test_a_hostile_file_is_refused_with_its_line(tmp_path: Path, text: str | bytes, line: int | None, said: str) -> None:
    message = refusal(tmp_path, "  rtn: {bits: 4, dynamic: mine.yaml}", text)
    assert said in message
    assert message.startswith(f"{tmp_path / 'mine.yaml'}" + (f", line {line}: " if line else ""))


def test_a_bomb_of_aliases_is_never_unfolded(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    assert "anchors" in refusal(tmp_path, "  rtn: {bits: 4, dynamic: mine.yaml}", bomb)


def test_a_recipe_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    assert "awq takes no dynamic: it belongs to" in refusal(tmp_path, "  awq: {bits: 4, dynamic: mine.yaml}")
    both = refusal(tmp_path, "  gptq: {target_bits: 3.5, dynamic: mine.yaml}")
    assert "both choose widths by layer" in both


def test_what_a_recipe_was_not_tried_in_is_said(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  gptq: {bits: 4, dynamic: mine.yaml, engine: [transformers, vllm]}")
    assert [each.reason for each in plan.unsupported if "recipe" in each.reason] == [
        "vLLM is not tried here on recipes of one's own; write engine: transformers"
    ]


def test_a_recipe_that_says_all_of_the_scheme_has_no_bits_but_those_that_its_entry_writes(tmp_path: Path) -> None:
    recipe = "q_stage: {q_modifiers: {QuantizationModifier: {targets: [Linear], ignore: [lm_head], scheme: W4A16}}}"
    plan = planned(tmp_path, "  llmcompressor: [{recipe: mine.yaml}, {bits: 4, recipe: mine.yaml}]\nbits: [8, 4, 3]", recipe)
    unknown, said = (each for each in plan.cells if each.cell.method == "llmcompressor")
    assert (unknown.cell.bits, said.cell.bits) == (0, 4)
    assert unknown.cell.label.startswith("llmcompressor by mine@")
    assert said.cell.label.startswith("llmcompressor 4-bit by mine@")
    assert unknown.bits_unknown
    assert not said.bits_unknown
    assert set(unknown.cell.scheme.options) == {"recipe", "calibration"}
    # Nothing to hold it against is known, and plain rounding to the bits that are said.
    assert bound.rounding(unknown.cell) is None
    assert bound.rounding(said.cell) == bound.Rounding(bits=4, group=64)


@pytest.mark.parametrize(
    ("recipe", "line", "said"),
    [
        ("quant_modifiers: {QuantizationModifier: {targets: [Linear]}}", 1, "passes over 'quant_modifiers'"),
        ("q_stage:\n  q: {QuantizationModifier: {}}", 2, "passes over 'q'"),
        ("q_stage:\n  q_modifiers:\n    MagnitudePruningModifier: {update_scheduler: 'calc(1)'}", 3, "takes weights away"),
        ("q_stage:\n  q_modifiers:\n    SparseGPTModifier: {sparsity: 0.5}", 3, "takes weights away"),
        ("q_stage:\n  q_modifiers:\n    GPTQModifier:\n      observer: /tmp/x.py:Evil", 4, "a recipe brings no code"),
        ("q_stage:\n  q_modifiers:\n    GPTQModifier: {a: [{b: x.py:Evil}]}", 3, "a recipe brings no code"),
        ("q_stage:\n  q_modifiers:\n    GPTQModifier: 4", 3, "write its settings as a mapping"),
    ],
)
def test_what_llm_compressor_would_pass_over_or_run_is_refused(tmp_path: Path, recipe: str, line: int, said: str) -> None:
    message = refusal(tmp_path, "  llmcompressor: {recipe: mine.yaml}", recipe)
    assert message.startswith(f"{tmp_path / 'mine.yaml'}, line {line}: ")
    assert said in message


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("layers: {down_proj: {bits: 8}}", "is none of scheme, layer_config, ignore_layers"),
        ("layer_config: {down_proj: {bits: 4, sym: false}}", "cannot be stored in the GPTQ format"),
        ("layer_config: {down_proj: MXFP4}", "is no scheme that the GPTQ format holds"),
        ("scheme: FP8_STATIC", "is no scheme that the GPTQ format holds"),
        ("scheme: {bits: 8, act_bits: 8}", "cannot be stored in the GPTQ format"),
        ("layer_config: [down_proj]", "is a mapping of layers"),
        ("ignore_layers: [down_proj]", "is one text"),
    ],
)
def test_what_autorounds_export_cannot_hold_is_refused(tmp_path: Path, recipe: str, said: str) -> None:
    assert said in refusal(tmp_path, "  autoround: {scheme_file: mine.yaml}", recipe)


def test_how_an_artifact_of_a_recipe_is_served_is_said_of_what_reads_its_widths(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  gptq: {bits: 4, dynamic: mine.yaml}")
    artifact = ArtifactRecord(digest="d", folder="f", files=(StoredFile(name="model.safetensors", bytes=1, sha256="0" * 64),))
    assert [way.runtime for way in serving.ways(plan.cells[1].cell, artifact)] == ["GPTQModel"]
    assert serving.library(plan.cells[1].cell) == ""


def test_channel_is_a_word_for_a_group_where_a_method_has_such_groups(tmp_path: Path) -> None:
    methods = "  rtn: {bits: 4, group_size: [channel, -1, 64]}\n  gptq: {bits: 4, group_size: channel, act_order: none}"
    plan = planned(tmp_path, methods)
    assert [each.cell.label for each in plan.cells] == [
        *("bf16", "rtn 4-bit per-channel", "rtn 4-bit g64", "gptq 4-bit per-channel none")
    ]
    assert plan.cells[1].cell.scheme.options["group_size"] == -1
    left = planned(tmp_path, f"{methods}\nexclude: [{{method: rtn, group_size: channel}}]")
    assert len(left.cells) == len(plan.cells) - 1


def test_what_a_channel_is_not_tried_with_is_said(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  gptq: {bits: 4, group_size: channel}\n  rtn: {target_bits: 4, group_size: channel}")
    reasons = " ".join(each.reason for each in plan.unsupported)
    assert "write act_order: none, or sorted" in reasons
    assert "target_bits mixes widths in groups, not per channel" in reasons
