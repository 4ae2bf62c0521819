"""Suites: the product, labels, and what a mistake is answered with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import BadInput, UnknownName
from harness.suite import file, matrix, plan

WriteSuite = Callable[..., Path]


def labels(planned: plan.Plan) -> list[str]:
    return [p.cell.label for p in planned.cells]


def test_lists_inside_a_method_multiply(write_suite: WriteSuite) -> None:
    planned = matrix.plan(write_suite("{bits: [4, 3], value: [1.0, 2.0, 3.0]}"), device="cpu")
    assert len(planned.cells) == 1 + 2 * 3
    assert len(set(labels(planned))) == 7


def test_the_baseline_comes_first_whatever_its_place_in_the_file(write_suite: WriteSuite) -> None:
    path = write_suite("{bits: 4}")
    text = path.read_text().replace("    - {bits: 16}\n    - {bits: 4}", "    - {bits: 4}\n    - {bits: 16}")
    path.write_text(text)
    assert labels(matrix.plan(path, device="cpu")) == ["fake 16-bit", "fake 4-bit"]


def test_included_cells_are_added_and_excluded_ones_are_gone(write_suite: WriteSuite) -> None:
    extra = "include: [{method: fake, bits: 8}]\nexclude: [{method: fake, bits: [3, 2]}]"
    assert labels(matrix.plan(write_suite("{bits: [4, 3, 2]}", extra=extra), device="cpu")) == [
        "fake 16-bit",
        "fake 4-bit",
        "fake 8-bit",
    ]


def test_a_square_that_cannot_exist_is_listed_with_its_reason(write_suite: WriteSuite) -> None:
    planned = matrix.plan(write_suite("{bits: 4, unsupported: needs a moon}", "{bits: 3}"), device="cpu")
    (square,) = planned.unsupported
    assert square.reason == "needs a moon"
    assert labels(planned) == ["fake 16-bit", "fake 3-bit"]


def test_estimated_bytes_are_linears_at_their_bits_and_the_rest_at_sixteen(write_suite: WriteSuite) -> None:
    planned = matrix.plan(write_suite("{bits: 4}"), device="cpu")
    assert planned.cells[1].estimated_bytes == (7 * 64 * 4 + (128 + 3 * 8) * 16) // 8


@pytest.mark.parametrize(
    ("wrong", "line", "says"),
    [
        ("methods:\n  fake: [}", 6, "not valid YAML"),
        ("methods:\n  fak: {bits: 4}", 6, "did you mean 'fake'"),
        ("methods:\n  fake: {bits: 5}", 6, "does not offer 5 bits; it offers 16, 8, 4, 3, 2"),
        ("methods:\n  fake: {bits: 16, valeu: 1}", 6, "did you mean 'value'"),
        ("methods:\n  fake: {bits: 16, value: high}", 6, 'value: "high" is not a number; write value: 1.0'),
        ("methods:\n  fake: {bits: 16, calibration: {samples: 3}}", 6, "takes no calibration data"),
        ("methods:\n  fake: {bits: 16}\nprobe: [fake]", 7, "unknown key 'probe'"),
        ("methods:\n  fake: {bits: 16}\nlimit: none", 7, "limit"),
        ("methods:\n  fake: {bits: 16}\nbudget: all", 7, "is not fixed or auto; write budget: auto"),
        ("methods:\n  fake: {bits: 16}\nbudget: auto\nmargin: 1", 8, "margin: 1 is no share of the items: write 0.01"),
        ("methods:\n  fake: {bits: 16}\nbudget: auto\nmargin: 1 point", 8, "is not a number; write margin: 0.01"),
        ("methods:\n  fake: {bits: 16}\nbudget: auto\nalpha: 0.7", 8, "alpha: 0.7 is no error rate: write 0.05"),
        ("methods:\n  fake: {bits: 16}\nbudget: auto\nbeta: 0", 8, "beta: 0 is no error rate"),
        ("methods:\n  fake: {bits: 16}\nmargin: 0.02", 7, "all items are scored here; add budget: auto"),
        ("methods:\n  fake: {bits: 16}\ntasks: [{task: reference_facts, budget: 500}]", 7, "500 is not fixed or auto"),
        ("methods:\n  fake: {bits: 16}\nlatency: {prompt: [1], speed: 3}", 7, "unknown key 'speed'"),
        ("methods:\n  fake: {bits: 16}\ncorpora: [wikitext3]", 7, "did you mean 'wikitext2'"),
        ("methods:\n  fake: {bits: 16}\ncorpora:\n  - {path: nowhere.txt}", 8, "no such corpus"),
        ("methods:\n  fake: {bits: 8}", 4, "unknown baseline 'fake 16-bit'"),
        ("methods:\n  fake: {bits: 16}\nexclude: [{method: fake}]", 7, "cannot be measured: it is excluded"),
    ],
)
def test_a_mistake_is_answered_with_file_line_and_remedy(
    tmp_path: Path, model_folder: Path, wrong: str, line: int, says: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"name: wrong\nmodels: [{{path: {model_folder}}}]\nprobes: [fake]\nbaseline: fake 16-bit\n{wrong}\n")
    with pytest.raises(BadInput) as caught:
        matrix.plan(path, device="cpu")
    assert f"{path}, line {line}:" in str(caught.value)
    assert says in str(caught.value)


def test_an_unknown_probe_or_task_is_answered_with_the_nearest_name(write_suite: WriteSuite) -> None:
    path = write_suite("{bits: 4}")
    path.write_text(path.read_text().replace("[quantize, fake]", "[tasks]") + "tasks: [reference_fact]\n")
    with pytest.raises(UnknownName, match="did you mean 'reference_facts'"):
        matrix.plan(path, device="cpu")
    path.write_text(path.read_text().replace("[tasks]", "[task]"))
    with pytest.raises(UnknownName, match="did you mean 'tasks'"):
        matrix.plan(path, device="cpu")


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "has no config.json"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}")), "holds no weights"),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "config.json").write_text("{}"),
                (folder / "pytorch_model.bin").write_text("x"),
            ),
            "only pickled weights",
        ),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "config.json").write_text("{}"),
                (folder / "model.safetensors").write_bytes(b"x" * 64),
            ),
            "no safetensors file or it is damaged",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_anything_runs(
    write_suite: WriteSuite, model_folder: Path, tmp_path: Path, prepare: Callable[[Path], object], says: str
) -> None:
    other = tmp_path / "other"
    prepare(other)
    path = write_suite("{bits: 4}")
    path.write_text(path.read_text().replace(str(model_folder), str(other)))
    with pytest.raises(BadInput, match=says):
        matrix.plan(path, device="cpu")


def test_a_budget_makes_other_questions_of_the_cells_and_none_of_the_baseline(write_suite: WriteSuite) -> None:
    path = write_suite("{bits: 4}")
    tasks = "[reference_facts, {task: reference_recall, budget: fixed}]"
    text = path.read_text().replace("[quantize, fake]", "[tasks]") + f"tasks: {tasks}\n"

    def asked(extra: str) -> list[dict[str, dict[str, float] | None]]:
        path.write_text(text + extra)
        planned = matrix.plan(path, device="cpu").cells
        return [{q.subject: q.options.get("sequential") for q in p.questions} for p in planned]

    nothing = {"reference_facts": None, "reference_recall": None}
    assert asked("") == asked("budget: fixed\n") == [nothing, nothing]
    settings = {"margin": 0.02, "alpha": 0.05, "beta": 0.1}
    baseline, cell = asked("budget: auto\nmargin: 0.02\nbeta: 0.1\n")
    assert baseline == nothing
    assert cell == {"reference_facts": settings, "reference_recall": None}
    text = text.replace("budget: fixed", "budget: auto")
    baseline, cell = asked("")
    assert baseline == nothing
    assert cell == {"reference_facts": None, "reference_recall": {"margin": 0.01, "alpha": 0.05, "beta": 0.05}}


def test_a_plan_says_in_words_what_is_scored_until_a_verdict(write_suite: WriteSuite) -> None:
    command = [sys.executable, "-m", "harness.cli", "plan"]

    def said(extra: str) -> str:
        path = write_suite("{bits: 4}", extra=extra)
        return subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=60, check=True).stdout

    words = " ".join(said("budget: auto\nmargin: 0.025\nalpha: 0.02").split())
    assert "budget auto (items): a cell's items are scored in one random order" in words
    assert "within 2.5 points of the baseline" in words
    assert "at most 2 % (within) and 5 % (worse)" in words
    assert "budget" not in said("")


def test_every_built_in_suite_can_be_planned_and_names_the_methods_of_the_main_environment() -> None:
    names = file.built_in()
    assert {"quick", "real", "smollm2-135m", "qwen3-0.6b", "llama-3.2-1b"} <= set(names)
    for name in names:
        path = file.find(name)
        planned = matrix.plan(path, device="cpu")
        methods = {p.cell.method for p in planned.cells}
        if name == "servers":  # what vLLM reads
            assert {"bf16", "gptq", "awq", "autoround", "llmcompressor"} == methods
            continue
        if name == "nightly":  # the few schemes that are deployed, not a choice of all
            assert {"bf16", "rtn", "gptq", "hqq"} == methods
            continue
        if name == "ternary":  # formats of few levels, and what they are compared with
            assert {"bf16", "bitnet", "rtn", "hqq", "gguf"} == methods
            continue
        if name == "low-bits":  # one width for all layers against widths by layer
            assert {"bf16", "rtn", "gptq", "gguf"} == methods
            assert sum(p.cell.scheme.mixture is not None for p in planned.cells) == 10
            continue
        if name in ("kv", "kv-real"):  # types of keys and values in three engines
            assert {"bf16", "gguf", "openvino"} == methods
            continue
        if name == "recovery":  # training, its controls, and the bases of adapters
            assert {"bf16", "rtn", "ft", "ft+ptq", "qat", "bnb", "qlora", "hqq", "hqq+lora"} <= methods
            continue
        assert {"bf16", "rtn", "gptq", "awq", "hqq", "bnb"} <= methods, name
        assert {"fp32", "fp16"} <= methods or name == "real", name


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "quick"], ["methods"], ["run", "--help"]])
def test_looking_does_not_import_torch(arguments: list[str]) -> None:
    code = f"import sys; from harness.cli import app; app({arguments!r}, standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip().endswith("False")


def test_the_plan_as_json_is_data(write_suite: WriteSuite) -> None:
    command = [sys.executable, "-m", "harness.cli", "plan", str(write_suite("{bits: 4}")), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    data = json.loads(done.stdout)
    assert [c["cell"]["origin"]["scheme"]["bits"] for c in data["cells"]] == [16, 4]
    assert data["cells"][0]["baseline"] is True
