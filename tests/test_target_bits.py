"""`target_bits` of a suite: mixtures beside cells of one width, their neighbours, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.artifact import ArtifactRecord, StoredFile
from harness.errors import BadInput
from harness.run import identity, serving
from harness.suite import matrix
from harness.suite.plan import Plan

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")


def planned(tmp_path: Path, methods: str, extra: str = "") -> Plan:
    path = tmp_path / "mixed.yaml"
    path.write_text(
        f"name: mixed\nmodels: [reference]\nprobes: [size, sensitivity]\nmethods:\n  bf16:\n{methods}\n{extra}\n",
        encoding="utf-8",
    )
    return matrix.plan(path, device="cpu")


def labels(plan: Plan) -> list[str]:
    return [each.cell.label for each in plan.cells]


def test_targets_are_labels_and_identity_and_neighbours_are_added(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  gptq: {target_bits: [3.5, 4.5], group_size: 64}")
    assert labels(plan) == [
        "bf16",
        "gptq mixed 3.5-bit g64",
        "gptq mixed 4.5-bit g64",
        "gptq 4-bit g64",
        "gptq 3-bit g64",
        "gptq 8-bit g64",
    ]
    mixed = plan.cells[1]
    assert mixed.estimated_bpw == 3.5
    assert mixed.cell.scheme.mixture == {"from": "sensitivity", "widths": [2, 3, 4, 8], "version": 1}
    notes = {each.cell.label: each.note for each in plan.cells}
    assert notes["gptq 3-bit g64"] == "added, because gptq mixed to 3.5 bits is set beside it"
    inputs = identity.gather(plan, tmp_path / "cache")
    assert len({inputs.artifact(each.cell) for each in plan.cells}) == len(plan.cells)


def test_widths_that_the_suite_lists_are_not_added_twice(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  rtn: {bits: [4, 3], target_bits: 3.5}")
    assert labels(plan) == ["bf16", "rtn 4-bit g64", "rtn 3-bit g64", "rtn mixed 3.5-bit g64"]
    assert not any(each.note for each in plan.cells)


def test_a_mixture_of_as_many_bits_as_a_width_is_another_cell(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  rtn: {bits: 4, target_bits: 4}", "exclude: [{method: rtn, bits: 4}]")
    assert labels(plan) == ["bf16", "rtn mixed 4-bit g64", "rtn 3-bit g64"]
    plan = planned(tmp_path, "  rtn: {bits: 4, target_bits: 4}", "exclude: [{method: rtn, target_bits: 4}]")
    assert labels(plan) == ["bf16", "rtn 4-bit g64", "rtn 3-bit g64"]


def test_only_mixtures_are_asked_what_decided_their_widths(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  rtn: {bits: 4, target_bits: 3.5}")
    asked = {each.cell.label: [q.probe for q in each.questions] for each in plan.cells}
    assert asked["rtn mixed 3.5-bit g64"] == ["size", "sensitivity"]
    assert asked["rtn 4-bit g64"] == asked["bf16"] == ["size"]


def test_a_mixture_sees_a_text_where_rounding_sees_none(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  rtn: {bits: 4, target_bits: 3.5, calibration: {samples: 8, length: 128}}")
    options = {each.cell.label: each.cell.scheme.options for each in plan.cells}
    assert options["rtn mixed 3.5-bit g64"]["calibration"]["samples"] == 8
    assert "calibration" not in options["rtn 4-bit g64"]


def test_the_text_the_widths_and_the_way_of_choosing_are_in_the_key(tmp_path: Path) -> None:
    def artifact(entry: str) -> Path:
        plan = planned(tmp_path, f"  rtn: {{target_bits: 3.5{entry}}}")
        return identity.gather(plan, tmp_path / "cache").artifact(plan.cells[1].cell)

    every = [artifact(e) for e in ("", ", widths: [2, 4, 8]", ", calibration: {seed: 1}", ", group_size: 32", ", sym: false")]
    assert len(set(every)) == len(every)
    assert artifact(", from: sensitivity") == every[0]


def test_sets_of_widths_multiply_cells_and_are_told_in_the_label(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  rtn: {target_bits: 3.5, widths: [[2, 4], [3, 4, 8]]}")
    assert labels(plan)[1:3] == ["rtn mixed 3.5-bit g64 of 2,4", "rtn mixed 3.5-bit g64 of 3,4,8"]


def test_another_engine_is_an_unsupported_cell_and_says_why(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  gptq: {target_bits: 3.5, engine: [transformers, vllm]}")
    (lost, *_) = [each for each in plan.unsupported if each.cell.scheme.mixture is not None]
    assert "write engine: transformers for target_bits" in lost.reason


def test_a_target_that_indices_put_out_of_reach_is_refused_with_the_range_of_this_model(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  rtn: {target_bits: 2.3}")
    (lost,) = plan.unsupported
    assert "target_bits: 2.3 is below what its widths reach here, scales and zero points included: 2.3" in lost.reason
    assert "to 8.4" in lost.reason


@pytest.mark.parametrize(
    ("methods", "extra", "said"),
    [
        (
            "  rtn: {target_bits: 1.5}",
            "",
            r"line 6: rtn: target_bits: 1\.5 is below what widths 2, 3, 4, 8 reach.*2\.28 to 8\.38",
        ),
        ("  rtn: {target_bits: 9}", "", r"rtn: target_bits: 9 is above what widths 2, 3, 4, 8 reach"),
        (
            "  rtn: {target_bits: many}",
            "",
            r'rtn: target_bits: "many" is no number of bits per weight; write target_bits: \[3\.5\]',
        ),
        ("  hqq: {target_bits: 3.5}", "", r"hqq has no mixtures, so no target_bits; those that have: rtn, gptq"),
        ("  rtn: {widths: [2, 4]}", "", r"rtn: widths is of a mixture, and there is none; add target_bits"),
        (
            "  rtn: {target_bits: 3.5, widths: [2, 5]}",
            "",
            r"rtn: widths: 5 is no width of a mixture; name two or more of 2, 3, 4, 8",
        ),
        ("  rtn: {target_bits: 3.5, widths: [4]}", "", r"rtn: widths: \[4\] leaves nothing to choose"),
        (
            "  rtn: {target_bits: 3.5, from: luck}",
            "",
            r'rtn: from: "luck" is no way of choosing its widths; write from: sensitivity',
        ),
        ("  rtn: {bits: 4}", "include: [{method: rtn, bits: 4, target_bits: 3.5}]", r"line \d: bits: 4 is one width .*keep one"),
    ],
)
def test_mistakes_are_said_with_what_would_be_right(methods: str, extra: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        planned(tmp_path, methods, extra)


def test_an_export_of_a_mixture_names_the_one_loader_that_was_seen_to_read_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  gptq: {bits: 4, target_bits: 4}")
    cells = {each.cell.label: each.cell for each in plan.cells}
    artifact = ArtifactRecord(digest="d", folder="f", files=(StoredFile(name="model.safetensors", bytes=1, sha256="0" * 64),))
    assert {way.runtime for way in serving.ways(cells["gptq 4-bit g128"], artifact)} == {"vLLM", "GPTQModel"}
    assert [way.runtime for way in serving.ways(cells["gptq mixed 4-bit g128"], artifact)] == ["GPTQModel"]
    assert serving.library(cells["gptq mixed 4-bit g128"]) == ""


def test_rows_that_choose_widths_in_their_own_way_say_so_in_the_label_and_keep_no_table(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  autoround: {target_bits: 3.5, from: [autoscheme, sensitivity]}")
    asked = {each.cell.label: {q.probe for q in each.questions} for each in plan.cells if each.cell.scheme.mixture is not None}
    assert asked == {
        "autoround mixed 3.5-bit g128": {"size"},
        "autoround mixed 3.5-bit g128 from sensitivity": {"size", "sensitivity"},
    }


def test_a_mixture_of_openvino_says_its_type_and_has_uniform_neighbours(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  openvino: {target_bits: 5.5, type: int4_sym, group_size: 64}")
    assert labels(plan)[1:] == [
        "openvino mixed 5.5-bit int4_sym g64",
        "openvino 8-bit int8_asym per-channel",
        "openvino 4-bit int4_sym g64",
    ]


def test_a_file_of_llama_cpp_mixes_types_and_stands_beside_its_own_mixtures(tmp_path: Path) -> None:
    plan = planned(tmp_path, "  gguf: {target_bits: 3.0}")
    assert labels(plan)[1:] == ["gguf mixed 3-bit", "gguf 3-bit Q3_K_M", "gguf 2-bit Q2_K"]
    assert plan.cells[1].cell.scheme.options.keys() == {"imatrix", "mixture", "calibration"}
