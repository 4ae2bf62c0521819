"""Tasks whose inputs must not be cut: refused in words where a model takes fewer tokens, and asked once for all their choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import reference
from harness.engines.transformers import Transformers
from harness.errors import Unsupported
from harness.probes.tasks import PROBE
from harness.scoring.cached_lm import CachedLM
from harness.spec import Question
from tests.tiny_llama import WORDS, TinySession, llama, tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch", "ignore::FutureWarning"
)

YAML = """
task: long
dataset_path: json
dataset_kwargs: {data_files: {test: long.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}]
metadata: WHOLE
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def task(folder: Path, *, words: int, whole: bool) -> Path:
    """A folder with a task of four items, each of a context of so many words, with a choice of single tokens."""
    folder.mkdir()
    rows = [
        {"context": " ".join([WORDS[i], *["the river"] * (words // 2)]), "choices": ["the", "a", "of", "to"], "gold": i}
        for i in range(4)
    ]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "long.yaml").write_text(YAML.replace("WHOLE", f"{{version: 1.0, whole: {str(whole).lower()}}}"))
    return folder


def asked(session: TinySession, name: str = "long") -> Any:
    options = {"task": name, "shots": None, "limit": None, "task_digest": "0"}
    return PROBE.measure(session, Question(probe="tasks", subject=name, options=options))


def test_an_input_that_would_be_cut_is_refused_in_words_before_the_model_runs(tmp_path: Path) -> None:
    engine = Transformers(llama(), tokenizer())
    folder = task(tmp_path / "tasks", words=300, whole=True)
    with pytest.raises(Unsupported, match=r"16 of 16 inputs of this task are longer than the 256 tokens that the model takes"):
        asked(TinySession(engine, tmp_path, tasks=folder))
    assert engine.lm().report()["tokens_run"] == 0


def test_a_task_that_does_not_say_so_is_cut_as_lm_eval_cuts_it_also_after_one_that_does(tmp_path: Path) -> None:
    engine = Transformers(llama(), tokenizer())
    with pytest.raises(Unsupported):
        asked(TinySession(engine, tmp_path, tasks=task(tmp_path / "whole", words=300, whole=True)))
    answer = asked(TinySession(engine, tmp_path, tasks=task(tmp_path / "cut", words=300, whole=False)))
    assert answer.facts["lm"]["inputs_cut"] == 16


def test_what_fits_is_answered(tmp_path: Path) -> None:
    answer = asked(TinySession(Transformers(llama(), tokenizer()), tmp_path, tasks=task(tmp_path / "t", words=100, whole=True)))
    assert answer.facts["items"] == 4


def test_through_a_cache_a_context_is_run_once_for_all_choices_of_one_token(tmp_path: Path) -> None:
    engine = Transformers(llama(), tokenizer(), kv="int4")
    asked(TinySession(engine, tmp_path, tasks=task(tmp_path / "t", words=100, whole=True)))
    lm = engine.lm()
    assert isinstance(lm, CachedLM)
    assert lm.report()["model_calls"] == 8  # of four items: the context, and its last token which reads it


@pytest.mark.parametrize("name", reference.LONG_TASKS)
def test_long_recall_is_refused_by_a_model_of_a_short_context(name: str, tmp_path: Path) -> None:
    session = TinySession(Transformers(llama(), tokenizer()), tmp_path, tasks=reference.TASKS_DIR)
    with pytest.raises(Unsupported, match=r"200 of 200 inputs .* ask a shorter one, or a model of a longer context"):
        asked(session, name)
