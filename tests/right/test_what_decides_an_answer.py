"""Everything that changes an answer is in the key, and every cell decodes by the source's rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.models import build, find, repository
from tests.right.cases import cell, checkpoint, edit, failures, loaded, quantized, run

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

SETTINGS = (
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "processor_config.json",
    "model.safetensors.index.json",
)

GENERATE = """
task: next_words
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_file_beside_the_weights_that_can_change_an_answer_is_in_the_digest(
    name: str, model_folder: Path, tmp_path: Path
) -> None:
    (model_folder / name).parent.mkdir(exist_ok=True)
    index = '{"weight_map": {"a": "model.safetensors"}}'
    without = find.weights_digest(model_folder, tmp_path / "memo")
    (model_folder / name).write_text(index)
    first = find.weights_digest(model_folder, tmp_path / "memo")
    (model_folder / name).write_text(index + " ")
    assert len({without, first, find.weights_digest(model_folder, tmp_path / "memo")}) == 3


@pytest.mark.parametrize("name", ["README.md", "artifact.json", ".gitattributes", "modeling_x.py", "picture.png"])
def test_a_file_that_nothing_reads_is_not(name: str, model_folder: Path, tmp_path: Path) -> None:
    without = find.weights_digest(model_folder, tmp_path / "memo")
    (model_folder / name).write_text("{}")
    assert find.weights_digest(model_folder, tmp_path / "memo") == without


def test_an_artifact_carries_the_sources_own_files_whatever_a_library_wrote(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / repository.TEMPLATES).mkdir(parents=True)
    out.mkdir()
    carried = (
        "generation_config.json",
        "tokenizer.json",
        "spiece.model",
        "chat_template.jinja",
        f"{repository.TEMPLATES}/a.jinja",
    )
    for name in (*carried, "config.json", "hqq.json", "linked.model"):
        (source / name).write_text(f"the source's {name}")
    for name in ("generation_config.json", "config.json", "hqq.json"):
        (out / name).write_text("the library's")
    (out / "linked.model").symlink_to(source / "linked.model")
    build.carry(source, out)
    assert {name: (out / name).read_text() for name in carried} == {name: f"the source's {name}" for name in carried}
    assert [(out / name).read_text() for name in ("config.json", "hqq.json")] == ["the library's"] * 2
    assert (out / "linked.model").is_symlink()


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("name", ["bf16", "hqq", "torchao", "quanto"])
def test_a_cell_decodes_by_the_rules_of_its_source(name: str, place: str, tmp_path: Path) -> None:
    """Of config.json too, where older checkpoints keep them."""
    source = checkpoint(tmp_path / "source")
    if place == "config.json":
        (source / "generation_config.json").unlink()
    edit(source / place, repetition_penalty=1.3, eos_token_id=[2, 7])
    asked = cell(name, 16 if name == "bf16" else 8)
    artifact = quantized(source, tmp_path / "artifact", asked)
    (artifact / "generation_config.json").unlink(missing_ok=True)
    rules = loaded(source, artifact, asked).model.generation_config
    assert (rules.repetition_penalty, rules.eos_token_id) == (1.3, [2, 7])


@pytest.mark.slow
def test_all_methods_generate_by_one_set_of_rules_which_the_record_names(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    edit(source / "generation_config.json", repetition_penalty=1.3, no_repeat_ngram_size=2)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "next_words.yaml").write_text(GENERATE)
    rows = [{"question": f"the river {word}", "answer": "x"} for word in ("runs", "has", "birds")]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    methods = ", ".join(f"{name}: {{bits: 8}}" for name in ("rtn", "gptq", "awq", "hqq", "bnb", "torchao", "quanto"))
    methods += ", autoround: {bits: 8, iters: 0}"
    task = "tasks: [{include: ., task: next_words}]\nprobes: [tasks]\n"
    stored = run(tmp_path, models="[{path: source, name: m}]", methods=methods, extra=task)
    assert not failures(stored)
    assert len(stored.records) == 9
    for record in stored.records:
        assert record.answer is not None
        rules = record.answer.facts["decoding"]
        assert (rules["repetition_penalty"], rules["no_repeat_ngram_size"]) == (1.3, 2)
    artifacts = list((tmp_path / "cache" / "artifacts").iterdir())
    assert len(artifacts) == 9
    for artifact in artifacts:
        for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
            assert (artifact / name).read_bytes() == (source / name).read_bytes()


def test_another_generation_rule_is_another_question_and_another_artifact(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    before = find.weights_digest(source, tmp_path / "memo")
    edit(source / "generation_config.json", repetition_penalty=1.3)
    assert find.weights_digest(source, tmp_path / "memo") != before
