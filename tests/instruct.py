"""Two instruct tokenizers as models come with, and the tasks that they are asked: ours, and what lm-eval's `hf` makes of them.

`chatml`: turns between <|im_start|> and <|im_end|>, the latter the end of a sequence; no BOS at all; a system message of its
own where the conversation has none. `inst`: [INST] ... [/INST] with the system message inside the first turn; the template
writes BOS, and the tokenizer puts one before every text too.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from harness.probes.prompting import Prompting
from harness.spec import Question
from tests.tiny_llama import WORDS, tokenizer

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou answer which city has water.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start>{{ message['role'] }}\n{{ message['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
DATED = (
    "{{ bos_token }}Today is {{ strftime_now('%d %B %Y') }}."
    "{% for message in messages %}\n{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
)

TOKENIZERS: dict[str, tuple[bool, dict[str, Any]]] = {
    "chatml": (
        False,
        {
            "special": ["<|im_start|>", "<|im_end|>"],
            "additional_special_tokens": ["<|im_start|>"],
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "chat_template": CHATML,
        },
    ),
    "inst": (True, {"chat_template": INST}),
}


def words(name: str, **changes: Any) -> Any:
    """An instruct tokenizer by its name."""
    bos, settings = TOKENIZERS[name]
    return tokenizer(bos, **{**settings, **changes})


CHOICE = """
task: asked
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
fewshot_split: test
output_type: multiple_choice
description: "The following are questions about a city."
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1.0}
"""
GENERATE = """
task: said
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
fewshot_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
metadata: {version: 2.0}
"""
BEGUN = CHOICE.replace("task: asked", "task: begun").replace("doc_to_choice", 'gen_prefix: "The answer is"\ndoc_to_choice')
"""The answer is begun for the model: its last turn is gone on with."""

TASKS = {"asked": CHOICE, "said": GENERATE, "begun": BEGUN}


def write_tasks(folder: Path, count: int = 12, **more: str) -> Path:
    source = random.Random(3)

    def some(most: int) -> str:
        return " ".join(source.choice(WORDS) for _ in range(source.randrange(1, most)))

    rows = [{"question": some(7), "choices": [some(4) for _ in range(3)], "gold": source.randrange(3)} for _ in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in {**TASKS, **more}.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def question(task: str, asked: Prompting, *, shots: int = 2) -> Question:
    options = {"task": task, "shots": shots, "limit": None, "task_digest": "0", **asked.options()}
    return Question(probe="tasks", subject=task, options=options)


def lm_evals_own(folder: Path, cache: Path, lm: Any, *names: str, shots: int = 2, **flags: Any) -> dict[str, Any]:
    """What lm-eval itself gives with its own flags `apply_chat_template`, `system_instruction`, `fewshot_as_multiturn`."""
    import lm_eval
    import yaml
    from lm_eval.tasks import TaskManager

    configs = [yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in names]
    for config in configs:
        config["dataset_kwargs"] = {"data_files": {"test": str(folder / "items.jsonl")}, "cache_dir": str(cache)}
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=lm,
        tasks=configs,
        num_fewshot=shots,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
        **flags,
    )
    return found
