"""What a suite says that is no mistake in its form, and what `plan` answers before anything runs: cells that would be measured in
vain or vanish in silence, folders in which nothing can be written, a machine that is another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness import cli, reference
from harness.errors import BadInput, UnknownName
from harness.models import corpora
from harness.suite import matrix, plan
from tests import tiny_folder

HEAD = "name: mine\nmodels: [reference]\n"


def planned(folder: Path, text: str) -> plan.Plan:
    path = folder / "mine.yaml"
    path.write_text(text)
    return matrix.plan(path, device="cpu")


def labels(made: plan.Plan) -> list[str]:
    return [p.cell.label for p in made.cells]


def asked(folder: Path, *more: str, text: str = HEAD + "methods: {rtn: {bits: 4}}\nprobes: [size]\n") -> Result:
    (folder / "mine.yaml").write_text(text)
    results = () if "--results" in more else ("--results", str(folder / "results"))
    cache = () if "--cache" in more else ("--cache", str(folder / "cache"))
    return CliRunner().invoke(cli.app, ["plan", str(folder / "mine.yaml"), *results, *cache, *more])


# ---- exclude ----


def test_what_is_excluded_is_not_planned(tmp_path: Path) -> None:
    made = planned(
        tmp_path, HEAD + "bits: [8, 4]\nmethods: {rtn: , hqq: }\nexclude: [{method: rtn, bits: [4, 3]}, {method: hqq, bits: 8}]\n"
    )
    assert labels(made) == ["bf16", "rtn 8-bit g64", "hqq 4-bit g64"]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{methd: rtn}", "did you mean 'method'"),
        ("{method: rnt}", "did you mean 'rtn'"),
        ('{method: rtn, bits: "4"}', 'bits: "4" is a text; write bits: 4'),
        ("{method: rtn, bits: 3}", "no cell with method: rtn has bits: 3; there is bits: 4"),
        ("{sym: 1}", "write sym: true"),
        ("{model: referenc}", "did you mean model: reference"),
        ("{}", "would take out every cell"),
    ],
)
def test_an_exclude_that_takes_nothing_out_is_refused_with_its_line(entry: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="line 4:") as caught:
        planned(tmp_path, HEAD + f"methods: {{rtn: {{bits: 4}}}}\nexclude: [{entry}]\n")
    assert says in str(caught.value)


def test_an_excluded_baseline_is_told_at_the_entry_that_excludes_it(tmp_path: Path) -> None:
    text = HEAD + "methods: {rtn: {bits: [8, 4]}}\nexclude:\n  - {method: rtn, bits: 8}\n  - {method: bf16}\n"
    with pytest.raises(BadInput, match=r"line 6: .* it is excluded"):
        planned(tmp_path, text)


# ---- equal values are one cell ----


def test_equal_values_are_one_cell_with_one_label(tmp_path: Path) -> None:
    made = planned(tmp_path, HEAD + "methods: {rtn: {bits: [4, 4.0], group_size: [64, 64.0]}, gptq: {bits: 4, mse: [2, 2.0]}}\n")
    assert labels(made) == ["bf16", "rtn 4-bit g64", "gptq 4-bit g128 mse=2"]


# ---- baselines ----


def test_a_baseline_may_be_named_by_the_label_that_plan_shows(tmp_path: Path, model_folder: Path) -> None:
    tiny_folder.write(model_folder, hidden=576)
    head = f"name: mine\nmodels: [{{path: {model_folder}}}]\nmethods: {{bf16: , gptq: {{bits: 4}}}}\n"
    for name in ("gptq 4-bit g64", "gptq 4-bit g128"):
        made = planned(tmp_path, head + f"baseline: {name}\n")
        assert [(p.cell.label, p.baseline) for p in made.cells] == [("gptq 4-bit g64", True), ("bf16", False)]
    with pytest.raises(UnknownName) as caught:
        planned(tmp_path, head + "baseline: gptq 4-bit g32\n")
    assert caught.value.nearest == ("gptq 4-bit g64",), "a label that plan shows"


# ---- texts ----


@pytest.mark.parametrize("name", ["empty", "notes"])
def test_a_folder_without_a_text_is_refused_wherever_a_text_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    if name == "notes":
        (tmp_path / name / "readme.md").write_text("no text of ours")
    for entry in (
        f"methods: {{rtn: }}\ncorpora: [{{path: ./{name}}}]\n",
        f"methods: {{gptq: }}\ncalibration: {{corpus: {{path: ./{name}}}}}\n",
    ):
        with pytest.raises(BadInput, match=r"line 4: .*holds no .txt, .jsonl or .parquet file"):
            planned(tmp_path, HEAD + entry)


def test_a_folder_of_too_little_text_is_refused_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("a few words")
    with pytest.raises(BadInput, match=r"line 4: .*fewer than one window of 256 tokens"):
        planned(tmp_path, HEAD + "methods: {rtn: }\ncorpora: [{path: ./texts, window: 256}]\n")


def test_two_calibration_files_of_one_stem_are_shown_by_their_paths(tmp_path: Path) -> None:
    for folder, words in (("a", "one text of its own. " * 400), ("b", "quite another text. " * 400)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cal.txt").write_text(words)
    entries = ", ".join(f"{{bits: 4, calibration: {{corpus: {{path: ./{folder}/cal.txt}}}}}}" for folder in ("a", "b"))
    made = planned(tmp_path, HEAD + f"methods: {{gptq: [{entries}]}}\n")
    assert [text.words for text in made.calibrated_on] == ["./a/cal.txt", "./b/cal.txt"]


def test_the_reference_models_two_texts_share_no_document() -> None:
    scored, shown = (corpora.text(path).split("\n\n") for path in (reference.HELDOUT_TEXT, reference.CALIBRATION_TEXT))
    assert min(len(scored), len(shown)) > 1000
    assert not set(scored) & set(shown)


# ---- what is asked ----


def test_a_probe_that_is_named_and_has_nothing_to_ask_is_said(tmp_path: Path) -> None:
    made = planned(tmp_path, HEAD + "methods: {rtn: {bits: 4}}\nprobes: [size, tasks]\n")
    assert made.notes == ("probe 'tasks' has no questions in this suite: it needs tasks: [arc_easy]",)
    assert not planned(tmp_path, HEAD + "methods: {rtn: {bits: 4}}\nlatency: {prompt: [64]}\n").notes


def test_shots_are_counted_where_the_examples_are_here(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    rows = [{"q": f"{n}?", "a": str(n)} for n in range(12)]
    for name, some in (("train", rows[:4]), ("test", rows[4:])):
        (tmp_path / "tasks" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (tmp_path / "tasks" / "count.yaml").write_text(
        "task: count\ndataset_path: json\ndataset_kwargs: {data_files: {train: train.jsonl, test: test.jsonl}}\n"
        "training_split: train\ntest_split: test\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: a\n"
    )
    text = HEAD + "methods: {rtn: {bits: 4}}\ntasks:\n  - {include: ./tasks, task: count, shots: SHOTS}\n"
    assert planned(tmp_path, text.replace("SHOTS", "4")).cells
    with pytest.raises(
        BadInput, match=r"line 5: task 'count' has 4 examples to show, and shots: 5 asks for more; write shots: 4"
    ):
        planned(tmp_path, text.replace("SHOTS", "5"))


def test_a_default_prompt_beyond_the_models_context_is_said_and_a_written_one_refused(tmp_path: Path, model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text()) | {"max_position_embeddings": 256}
    (model_folder / "config.json").write_text(json.dumps(config))
    head = f"name: mine\nmodels: [{{path: {model_folder}}}]\nmethods: {{bf16: }}\nprobes: [memory]\n"
    (note,) = planned(tmp_path, head).notes
    assert "a prompt of 512 tokens is more than the context of model 'tiny', 256, and this is the default" in note
    with pytest.raises(BadInput, match=r"line 5: memory: a prompt of 300 tokens .* write memory: {prompt: 256}"):
        planned(tmp_path, head + "memory: {prompt: 300}\n")


def test_a_token_that_is_not_set_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD + "methods: {bf16: , endpoint: {url: 'http://127.0.0.1:9/v1', model: m, token_env: MY_TOKEN}}\n"
    monkeypatch.delenv("MY_TOKEN", raising=False)
    assert any("$MY_TOKEN, which is not set here; export it before `run`" in note for note in planned(tmp_path, text).notes)
    monkeypatch.setenv("MY_TOKEN", "x")
    assert not any("MY_TOKEN" in note for note in planned(tmp_path, text).notes)


# ---- which model it is ----


def changed(folder: Path, **changes: object) -> str:
    """A suite of the checkpoint in `folder` with other words in its config.json; None takes a word out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return f"name: mine\nmodels: [{{path: {folder}}}]\nmethods: {{bf16: }}\nprobes: [size]\n"


@pytest.mark.parametrize("kind", [None, "", 5, ["llama"]])
def test_a_config_that_names_no_type_is_refused_with_the_one_that_its_architecture_has(
    kind: object, tmp_path: Path, model_folder: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        planned(tmp_path, changed(model_folder, model_type=kind))
    assert str(caught.value) == (
        f"{tmp_path}/mine.yaml, line 2: model 'tiny': the config.json of {model_folder} names no model_type, by which "
        'transformers knows the model\'s class; add "model_type": "llama", which its architectures name'
    )


def test_a_config_of_neither_type_nor_architecture_is_refused(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(BadInput, match=r"names no model_type, .*; fetch it again, or save the model again$"):
        planned(tmp_path, changed(model_folder, model_type=None, architectures=None))


def test_a_config_of_no_architecture_is_taken_for_what_its_type_says(tmp_path: Path, model_folder: Path) -> None:
    assert planned(tmp_path, changed(model_folder, architectures=None)).cells


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (
            "lama",
            "; did you mean 'llama'? Correct model_type, or install a transformers that knows it: pip install -U transformers",
        ),
        ("zzz9", "; correct model_type, or install a transformers that knows it: pip install -U transformers"),
    ],
)
def test_a_type_that_transformers_does_not_know_is_refused_with_the_nearest_one(
    kind: str, remedy: str, tmp_path: Path, model_folder: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        planned(tmp_path, changed(model_folder, model_type=kind))
    assert f"cannot load the model type {kind!r} as a causal language model: transformers " in str(caught.value)
    assert str(caught.value).endswith(f"knows no such type{remedy}")


def test_an_adapter_is_no_model(tmp_path: Path, model_folder: Path) -> None:
    text = changed(model_folder)
    (model_folder / "config.json").rename(model_folder / "adapter_config.json")
    with pytest.raises(
        BadInput, match=r"tiny holds an adapter \(LoRA, ...\) and no model; merge it into its base model first: Peft"
    ):
        planned(tmp_path, text)


def test_two_models_of_one_name_are_told_how_to_get_another(tmp_path: Path, model_folder: Path) -> None:
    text = changed(model_folder).replace("models: [", f"models: [{{path: {model_folder}}}, ")
    with pytest.raises(
        BadInput, match=r"line 2: model name 'tiny' is used twice; names must differ; write {path: ..., name: another}$"
    ):
        planned(tmp_path, text)


def test_a_text_in_another_encoding_is_refused_with_the_line_of_the_suite(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("ein Männlein steht im Walde ".encode("latin1") * 100)
    with pytest.raises(BadInput, match=r"mine.yaml, line 4: .*old.txt: is not UTF-8 text \(byte 5\); convert it first: iconv"):
        planned(tmp_path, HEAD + "methods: {bf16: }\ncorpora: [{path: old.txt, window: 64}]\n")


def test_a_type_is_asked_of_a_checkpoint_that_is_quantized_already_too(tmp_path: Path, model_folder: Path) -> None:
    given = tmp_path / "given"
    tiny_folder.write(given)
    plain = changed(model_folder)
    for kind, said in ((None, "names no model_type"), ("lama", "did you mean 'llama'")):
        changed(given, model_type=kind, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 4})
        with pytest.raises(BadInput, match=said):
            planned(
                tmp_path, plain.replace(f"[{{path: {model_folder}}}]", f"[{{path: {model_folder}}}, {{path: {given}, of: tiny}}]")
            )


# ---- models of the hub ----


def test_a_model_that_nobody_can_look_at_is_said_with_the_name_that_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = "name: mine\nmodels: [NAME]\nmethods: {bf16: }\nprobes: [size]\n"
    (note,) = planned(tmp_path, text.replace("NAME", "referense")).notes
    assert "'referense' is taken for referense of the hub" in note
    assert "HF_HUB_OFFLINE is set" in note
    assert note.endswith("did you mean models: [reference]?")
    (note,) = planned(tmp_path, text.replace("NAME", "llama-3.2-1B")).notes
    assert note.endswith("did you mean models: [{shape: llama-3.2-1b}]?")
    (note,) = planned(tmp_path, text.replace("NAME", "lab/referense")).notes
    assert "did you mean" not in note


def test_an_address_of_the_hub_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "me:secret@127.0.0.1:9")
    with pytest.raises(BadInput, match=r"write HF_ENDPOINT=http://127.0.0.1:9") as caught:
        planned(tmp_path, "name: mine\nmodels: [lab/llama]\nmethods: {bf16: }\nprobes: [size]\n")
    assert "secret" not in str(caught.value)


def test_a_file_of_weights_is_told_to_be_named_by_its_folder(tmp_path: Path, model_folder: Path) -> None:
    for entry in (f"{{path: {model_folder}/model.safetensors}}", f"{model_folder.name}/model.safetensors"):
        with pytest.raises(BadInput, match=f"is a file, .* write path: {model_folder}$"):
            planned(model_folder.parent, f"name: mine\nmodels: [{entry}]\nmethods: {{bf16: }}\nprobes: [size]\n")


# ---- folders and machines ----


@pytest.mark.parametrize("option", ["--results", "--cache"])
def test_plan_refuses_a_folder_in_which_run_could_not_write(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, why in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file"),
        (Path("/proc/x"), "in /proc"),
    ):
        done = asked(tmp_path, option, str(place))
        assert isinstance(done.exception, BadInput)
        assert f"{place}: cannot be written" in str(done.exception)
        assert why in str(done.exception)
        assert f"{option} DIR" in str(done.exception)


def test_plan_makes_no_folder_to_see_whether_it_could(tmp_path: Path) -> None:
    assert asked(tmp_path, "--results", str(tmp_path / "a" / "b")).exit_code == 0
    assert not (tmp_path / "a").exists()
    assert not list(tmp_path.glob(".draft-*"))


def test_a_plan_for_a_gpu_that_is_not_here_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.measure import nvidia

    monkeypatch.setattr(nvidia, "gpus", lambda: ())
    done = asked(tmp_path, "--device", "cuda")
    assert done.exit_code == 0
    assert "this plan is for another machine: device cuda, and the driver (nvidia-smi) lists no GPU here" in done.output
    assert "another machine" not in asked(tmp_path, "--device", "cpu").output


def test_plan_heads_the_bits_of_the_layers_and_those_of_the_model(tmp_path: Path) -> None:
    made = planned(tmp_path, HEAD + "methods: {rtn: {bits: 4}}\nprobes: [size]\n")
    bits = made.cells[1].estimated_bits_of_the_model
    assert bits is not None
    assert bits > made.cells[1].estimated_bpw, "embeddings and head are left in 16 bits"
    said = " ".join(asked(tmp_path).output.split())
    assert f"{made.cells[1].estimated_bpw:.2f}" in said
    assert f"{bits:.2f}" in said
    assert "the model" in said
