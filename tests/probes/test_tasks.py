"""Task accuracy against lm-eval's own `hf` model, and what a hostile task may not do."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from harness.engines.transformers import Transformers
from harness.errors import BadInput, Nonfinite, UnknownName, Unsupported
from harness.forking import held_back
from harness.probes import taskfiles, tasks_prepare
from harness.probes.items import text_of
from harness.probes.requests import ProbeRequests, TaskRequest
from harness.probes.tasks import PROBE, known_tasks, task_digest
from harness.spec import Answer, Measurement, Question
from tests.intervals import high, low
from tests.tiny_llama import WORDS, TinySession, llama, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""

GENERATE = """
task: mine_generate
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match}]
metadata: {version: 2.0}
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def items(count: int, seed: int = 0, **extra: Any) -> list[dict[str, Any]]:
    source = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(source.choice(WORDS) for _ in range(source.randrange(1, most)))

    return [
        {"question": words(9), "choices": [words(5) for _ in range(4)], "gold": source.randrange(4), **extra}
        for _ in range(count)
    ]


def write_items(folder: Path, rows: list[dict[str, Any]], name: str = "items.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one task of forty items."""
    found = tmp_path / "tasks"
    write_items(found, items(40))
    (found / "mine.yaml").write_text(CHOICE.format(name="mine", data="items.jsonl"))
    return found


def session(tmp_path: Path, folder: Path | None, model: Any = None) -> TinySession:
    return TinySession(Transformers(llama() if model is None else model, tokenizer()), tmp_path, tasks=folder)


def question(task: str = "mine", shots: int | None = None, limit: int | None = None) -> Question:
    return Question(probe="tasks", subject=task, options={"task": task, "shots": shots, "limit": limit, "task_digest": "0"})


def measured(answer: Answer, metric: str) -> Measurement:
    return next(m for m in answer.measurements if m.metric == metric)


def lm_evals_own(folder: Path, task: str, cache: Path, shots: int | None = None, limit: int | None = None) -> dict[str, Any]:
    """What lm-eval's `hf` model says of the same model, on the same YAML with its data path written out."""
    import lm_eval
    import yaml
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    config = yaml.safe_load((folder / f"{task}.yaml").read_text())
    name = config["dataset_kwargs"]["data_files"]["test"]
    config["dataset_kwargs"] = {"data_files": {"test": str(folder / name)}, "cache_dir": str(cache)}
    lm = HFLM(pretrained=llama(), tokenizer=tokenizer(), batch_size=4)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=lm,
        tasks=[config],
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    return found


def test_a_task_of_the_suite_becomes_one_question() -> None:
    task = TaskRequest(name="mine", shots=5, limit=10, folder=None, digest="d", verdict=None)
    (found,) = PROBE.questions(ProbeRequests(tasks=(task,)))
    assert found.subject == "mine"
    assert found.options == {"task": "mine", "shots": 5, "limit": 10, "task_digest": "d"}


@pytest.mark.parametrize("shots", [None, 2])
def test_multiple_choice_equals_lm_evals_own_hf_model(shots: int | None, folder: Path, tmp_path: Path) -> None:
    asked = session(tmp_path, folder)
    answer = PROBE.measure(asked, question(shots=shots))
    wanted = lm_evals_own(folder, "mine", tmp_path / "other", shots=shots)
    own = wanted["results"]["mine"]
    accuracy = measured(answer, "accuracy")
    assert 0 < accuracy.value < 1
    assert accuracy.value == own["acc,none"]
    assert measured(answer, "accuracy_norm").value == own["acc_norm,none"]
    assert accuracy.n == 40
    assert low(accuracy) < accuracy.value < high(accuracy)
    assert accuracy.definition == f"lm-eval mine v1.0 acc, {shots or 0}-shot"
    assert measured(answer, "accuracy_norm").definition == f"lm-eval mine v1.0 acc_norm, {shots or 0}-shot"
    kept = json.loads(asked.blobs[str(accuracy.blob)])
    assert (kept["task"], kept["metric"], len(kept["items"])) == ("mine", "acc", 40)
    for item, sample in zip(kept["items"], wanted["samples"]["mine"], strict=True):
        assert item["id"] == sample["doc_hash"][:16]
        assert item["correct"] == sample["acc"]
        assert item["correct_norm"] == sample["acc_norm"]
        likelihoods = [responses[0][0] for responses in sample["resps"]]
        assert item["loglikelihoods"] == pytest.approx(likelihoods, abs=1e-4)
        others = [value for i, value in enumerate(likelihoods) if i != sample["target"]]
        assert item["margin"] == pytest.approx(likelihoods[sample["target"]] - max(others), abs=2e-4)


def test_generation_equals_lm_evals_own_hf_model(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    rows = items(12)
    model = llama()
    words = tokenizer()
    for row in rows[:5]:  # the right answer of some items is what the model says
        ids = torch.tensor([words(row["question"])["input_ids"]])
        new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0)
        row["choices"][row["gold"]] = words.decode(new[0, ids.shape[1] :], skip_special_tokens=True).split(".")[0]
    write_items(folder, rows)
    (folder / "mine_generate.yaml").write_text(GENERATE)
    answer = PROBE.measure(session(tmp_path, folder), question("mine_generate"))
    own = lm_evals_own(folder, "mine_generate", tmp_path / "other")["results"]["mine_generate"]
    accuracy = measured(answer, "accuracy")
    assert accuracy.value == own["exact_match,none"] > 0
    assert accuracy.definition == "lm-eval mine_generate v2.0 exact_match, 0-shot"
    assert [m.metric for m in answer.measurements] == ["accuracy"]


def test_the_baseline_keeps_what_was_asked_and_a_cell_only_its_answers(folder: Path, tmp_path: Path) -> None:
    base, cell = session(tmp_path / "a", folder), session(tmp_path / "b", folder)
    base.is_baseline = True
    PROBE.measure(base, question(limit=7))
    PROBE.measure(cell, question(limit=7))
    kept, bare = (json.loads(one.blobs["items.json"])["items"] for one in (base, cell))
    assert [{**row, "text": None} for row in kept] == [{**row, "text": None} for row in bare], "the same answers"
    assert not any("text" in row for row in bare)
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    for row, item in zip(kept, rows[:7], strict=True):
        assert item["question"] in row["text"]["prompt"]
        assert [choice.strip() for choice in row["text"]["choices"]] == list(item["choices"])


def test_a_long_prompt_keeps_its_end_and_says_that_something_is_left_out() -> None:
    kept = text_of([("x" * 5000 + "the question?", "y" * 300)] * 30, 0, choices=True)
    assert kept.prompt.startswith("…x")
    assert kept.prompt.endswith("the question?")
    assert len(kept.prompt) == 401
    assert len(kept.choices) == 12
    assert kept.choices[0] == "y" * 120 + "…"


def test_a_limit_takes_the_first_items(folder: Path, tmp_path: Path) -> None:
    asked = session(tmp_path, folder)
    answer = PROBE.measure(asked, question(limit=7))
    docs = [item["doc"] for item in json.loads(asked.blobs["items.json"])["items"]]
    assert measured(answer, "accuracy").n == 7
    assert docs == list(range(7))


def test_asking_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first, second = session(tmp_path / "a", folder), session(tmp_path / "b", folder)
    assert PROBE.measure(first, question(shots=1)).measurements == PROBE.measure(second, question(shots=1)).measurements
    assert first.blobs == second.blobs


@pytest.mark.parametrize("limit", [None, 7])
def test_a_task_that_was_built_before_forking_gives_the_same_bytes_once(limit: int | None, folder: Path, tmp_path: Path) -> None:
    asked = question(shots=2, limit=limit)
    first, second = session(tmp_path / "a", folder), session(tmp_path / "b", folder)
    plain = PROBE.measure(first, asked)
    assert PROBE.prepare is not None
    with held_back():  # as in a branch: what reads data into an empty cache waits for threads
        PROBE.prepare([(asked, folder)], second.cache)
    assert len(tasks_prepare.PREPARED) == 1
    (folder / "mine.yaml").unlink()  # nothing is read again
    assert PROBE.measure(second, asked).measurements == plain.measurements
    assert first.blobs == second.blobs
    assert not tasks_prepare.PREPARED, "requests carry what a model said, so they answer for one model only"


def test_data_that_take_too_long_are_left_to_the_cells(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_prepare, "load", lambda *_: signal.pause())  # a reader that never comes back
    before = psutil.Process().children()
    clock = itertools.count(step=tasks_prepare.PREPARE_SECONDS + 1)
    tasks_prepare.prepare([(question(), folder)], tmp_path, clock=lambda: float(next(clock)))
    assert not tasks_prepare.PREPARED
    assert psutil.Process().children() == before  # the reader was ended


def test_data_that_crash_their_reader_are_left_to_the_cells(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = os.getpid()
    asked: list[int] = []
    monkeypatch.setattr(tasks_prepare, "load", lambda *_: asked.append(1) if os.getpid() == ours else os._exit(3))
    tasks_prepare.prepare([(question(), folder)], tmp_path)
    assert not asked, "what killed one process is not tried in another"
    assert not tasks_prepare.PREPARED


def test_a_task_that_cannot_be_built_before_forking_is_left_to_the_cells(folder: Path, tmp_path: Path) -> None:
    (folder / "items.jsonl").write_text("{broken")
    assert PROBE.prepare is not None
    PROBE.prepare([(question(), folder), (question("missing"), folder)], tmp_path)
    assert not tasks_prepare.PREPARED
    with pytest.raises(BadInput, match="cannot be read"):
        PROBE.measure(session(tmp_path, folder), question())


def test_a_group_is_one_number_over_all_items_of_its_tasks(folder: Path, tmp_path: Path) -> None:
    write_items(folder, items(10, seed=5), "more.jsonl")
    (folder / "second.yaml").write_text(CHOICE.format(name="second", data="more.jsonl"))
    aggregate = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 3.0}\n"
    (folder / "both.yaml").write_text(f"group: both\ntask: [mine, second]\n{aggregate}")
    asked = session(tmp_path, folder)
    answer = PROBE.measure(asked, question("both"))
    parts = [measured(PROBE.measure(session(tmp_path, folder), question(name)), "accuracy") for name in ("mine", "second")]
    whole = measured(answer, "accuracy")
    assert whole.n == 50
    assert whole.value == pytest.approx((parts[0].value * 40 + parts[1].value * 10) / 50)
    assert answer.facts["lm_eval_aggregate"] == pytest.approx(whole.value)
    assert answer.facts["tasks"]["second"] == {"items": 10, "accuracy": parts[1].value}
    assert whole.definition == "lm-eval both v3.0 (2 tasks, over all items) acc, 0-shot"
    kept = json.loads(asked.blobs["items.json"])["items"]
    assert [item["task"] for item in kept] == ["mine"] * 40 + ["second"] * 10


def test_a_tag_gathers_the_tasks_that_carry_it(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.yaml").write_text(CHOICE.format(name="mine", data="items.jsonl") + "tag: [sorted, pile]\n")
    assert {"mine", "sorted", "pile"} <= known_tasks(folder)
    assert measured(PROBE.measure(session(tmp_path, folder), question("pile")), "accuracy").n == 40


def test_items_that_share_a_passage_are_one_cluster_and_widen_the_interval(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    rows = [dict(row, passage=f"passage {i // 2}") for i, row in enumerate(items(1) * 40)]
    for i, row in enumerate(rows):
        row["question"] = WORDS[i // 2 % 20]  # pairs of equal items: two answers, one observation
    write_items(folder, rows)
    (folder / "mine.yaml").write_text(CHOICE.format(name="mine", data="items.jsonl"))
    asked = session(tmp_path, folder)
    clustered = measured(PROBE.measure(asked, question()), "accuracy")
    kept = json.loads(asked.blobs["items.json"])["items"]
    assert [item["cluster"] for item in kept[:3]] == ["passage 0", "passage 0", "passage 1"]
    assert len({item["id"] for item in kept}) == 40  # equal items keep apart
    write_items(folder, [{k: v for k, v in row.items() if k != "passage"} for row in rows])
    alone = measured(PROBE.measure(session(tmp_path / "b", folder), question()), "accuracy")
    assert alone.value == clustered.value
    assert high(clustered) - low(clustered) > 1.1 * (high(alone) - low(alone))


def test_a_task_without_accuracy_gives_lm_evals_own_aggregate(folder: Path, tmp_path: Path) -> None:
    text = CHOICE.format(name="mine", data="items.jsonl").replace("{metric: acc}, {metric: acc_norm}", "{metric: brier_score}")
    (folder / "mine.yaml").write_text(text)
    answer = PROBE.measure(session(tmp_path, folder), question())
    (found,) = answer.measurements
    assert (found.metric, found.definition) == ("task_score", "lm-eval mine v1.0 brier_score, 0-shot")
    assert found.value == pytest.approx(
        lm_evals_own(folder, "mine", tmp_path / "o")["results"]["mine"]["brier_score,none"], abs=1e-5
    )


def test_nan_weights_give_a_typed_failure_and_no_number(folder: Path, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(Nonfinite, match="the artifact is broken"):
        PROBE.measure(session(tmp_path, folder, model), question())


def test_items_with_nan_likelihoods_count_as_wrong_and_mark_the_cell(folder: Path, tmp_path: Path) -> None:
    rows = items(40)
    rows[4]["question"] = rows[9]["question"] = "Ω"
    write_items(folder, rows)
    model = llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer(bos=False)("Ω")["input_ids"][0]] = float("nan")
    asked = session(tmp_path, folder, model)
    answer = PROBE.measure(asked, question())
    assert answer.facts["marked"] == "nonfinite"
    assert answer.facts["nonfinite_items"] == 2
    kept = json.loads(asked.blobs["items.json"])["items"]
    assert [i for i, item in enumerate(kept) if item.get("nonfinite")] == [4, 9]
    assert kept[4]["correct"] == kept[9]["correct"] == 0.0
    assert measured(answer, "accuracy").n == 40


def test_a_task_with_no_items_is_bad_input(folder: Path, tmp_path: Path) -> None:
    write_items(folder, [])
    with pytest.raises(BadInput, match="'mine': its data cannot be read: there is nothing in it"):
        PROBE.measure(session(tmp_path, folder), question())


def test_broken_data_are_bad_input(folder: Path, tmp_path: Path) -> None:
    (folder / "items.jsonl").write_text('{"question": "a", "choices"\n')
    with pytest.raises(BadInput, match="its data cannot be read"):
        PROBE.measure(session(tmp_path, folder), question())


@pytest.mark.parametrize(
    ("change", "shots", "says"),
    [
        ({"choices": ["", "is", "are", "was"]}, None, r"cannot build it \(.*mine.yaml\): IndexError.*; likely a choice is empty"),
        (
            {},
            60,
            "cannot ask it: ValueError: Sample larger than population.*; likely it has fewer examples than `shots` asks for",
        ),
        ({"gold": 9}, None, r"cannot build it \(.*mine.yaml\): IndexError.*; likely compare its templates"),
        ({"gold": None}, None, "cannot (build|ask) it.*; likely "),
    ],
)
def test_a_task_that_lm_eval_cannot_run_is_named_with_the_likely_cause(
    change: dict[str, object], shots: int | None, says: str, folder: Path, tmp_path: Path
) -> None:
    write_items(folder, [{**item, **change} for item in items(40)])
    with pytest.raises(BadInput, match=f"(?s)task 'mine': lm-eval {says}"):
        PROBE.measure(session(tmp_path, folder), question(shots=shots))


def test_an_error_of_the_scorer_is_not_laid_on_the_task(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise KeyError("ours")

    monkeypatch.setattr("harness.scoring.planned.make_plan", broken)
    with pytest.raises(KeyError, match="ours"):
        PROBE.measure(session(tmp_path, folder), question())


# ---------------------------------------------------------------------- names and digests


def test_lm_evals_own_tasks_are_known_without_importing_it() -> None:
    known = known_tasks()
    assert {"hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "mmlu", "gsm8k", "wikitext"} <= known
    assert len(known) > 10_000


def test_the_quick_index_names_what_lm_evals_own_index_names() -> None:
    from lm_eval.tasks import TaskManager

    for part in ("mmlu", "arc", "hellaswag", "bbh", "blimp", "super_glue", "lambada"):
        root = taskfiles.lm_eval_tasks() / part
        own = set(TaskManager(include_defaults=False, include_path=root).all_tasks)
        assert own
        assert own - known_tasks(root) == set(), part


def test_a_group_is_followed_down_to_its_tasks() -> None:
    found = {path.name for path in taskfiles.configs("mmlu", taskfiles.lm_eval_tasks())}
    assert {"_mmlu.yaml", "mmlu_anatomy.yaml", "mmlu_world_religions.yaml"} <= found
    assert len(found) >= 58


def test_an_unknown_task_names_its_neighbours(folder: Path) -> None:
    with pytest.raises(UnknownName, match="'hellaswag'"):
        task_digest("helaswag")
    with pytest.raises(UnknownName, match="did you mean 'mine'"):
        task_digest("minne", folder)


def test_the_digest_follows_yaml_includes_and_data_and_nothing_else(folder: Path) -> None:
    (folder / "base").write_text("test_split: test\n")
    (folder / "mine.yaml").write_text("include: base\n" + CHOICE.format(name="mine", data="items.jsonl"))
    seen = {task_digest("mine", folder)}
    (folder / "unrelated.yaml").write_text("task: other\n")
    assert task_digest("mine", folder) in seen
    (folder / "base").write_text("test_split: train\n")
    seen.add(task_digest("mine", folder))
    write_items(folder, items(41))
    seen.add(task_digest("mine", folder))
    (folder / "mine.yaml").write_text((folder / "mine.yaml").read_text() + "num_fewshot: 1\n")
    seen.add(task_digest("mine", folder))
    assert len(seen) == 4
    assert task_digest("hellaswag") == task_digest("hellaswag") != task_digest("arc_easy")


# ---------------------------------------------------------------------- hostile tasks


HOSTILE = {
    "a function": ("process_docs: !function evil.run", "!function evil.run"),
    "a function in a list": ("metric_list: [{metric: !function evil.run}]", "!function evil.run"),
    "a class": ("class: evil.Task", "class"),
    "a data set of code": ("custom_dataset: evil", "custom_dataset"),
    "code to be run": ("unsafe_code: true", "unsafe_code"),
    "a prompt file": ("use_prompt: 'evil.yaml:x'", "use_prompt"),
    "a metric of the hub": ("metric_list: [{metric: acc, hf_evaluate: true}]", "of the hub"),
    "remote code in generation": ("generation_kwargs: {custom_generate: evil/repo}", "custom_generate"),
    "remote code in data": ("dataset_kwargs: {trust_remote_code: true, data_files: items.jsonl}", "trust_remote_code"),
    "a reader that unpickles": ("dataset_path: pandas", "neither a hub id"),
    "a local script": ("dataset_path: ./evil.py", "neither a hub id"),
    "a file elsewhere": ("dataset_kwargs: {data_files: {test: ../../secret.jsonl}}", "outside of"),
    "an absolute file": ("dataset_kwargs: {data_files: /etc/passwd}", "outside of"),
    "an address": ("dataset_kwargs: {data_files: 'https://evil.example/x.jsonl'}", "is an address"),
    "an include elsewhere": ("include: ../outside.yaml", "outside of"),
    "a missing file": ("dataset_kwargs: {data_files: absent.jsonl}", "no such file"),
    "an object of Python": ("doc_to_text: !!python/object/apply:os.system [id]", "broken YAML"),
    "aliases": ("a: &a [x, x]\nb: [*a, *a]", "aliases"),
    "no mapping": (None, "a task is a YAML mapping"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_task_is_refused_before_anything_runs(what: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text("task: x\n")
    (tmp_path.parent / "secret.jsonl").write_text("{}\n")
    line, message = HOSTILE[what]
    own = CHOICE.format(name="mine", data="items.jsonl")
    if line is None:
        (folder / "mine.yaml").write_text("- task: mine\n")
        (folder / "link.yaml").write_text("[1, 2]\n# task\ntask: mine")
        with pytest.raises(BadInput):
            taskfiles.read(folder / "mine.yaml", folder)
        return
    key = line.partition(":")[0]
    own = "\n".join(x for x in own.splitlines() if not x.startswith(f"{key}:"))
    (folder / "mine.yaml").write_text(f"{own}\n{line}\n")
    with pytest.raises(BadInput, match=message):
        task_digest("mine", folder)
    with pytest.raises(BadInput, match=message):
        PROBE.measure(session(tmp_path, folder), question())


def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    write_items(tmp_path, items(3), "secret.jsonl")
    (folder / "linked.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (folder / "mine.yaml").write_text(CHOICE.format(name="mine", data="linked.jsonl"))
    with pytest.raises(BadInput, match="outside of"):
        task_digest("mine", folder)


def test_an_unknown_metric_is_not_fetched_from_the_hub(folder: Path, tmp_path: Path) -> None:
    text = CHOICE.format(name="mine", data="items.jsonl").replace("{metric: acc_norm}", "{metric: evil/metric}")
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(BadInput, match="no metric 'evil/metric'"):
        PROBE.measure(session(tmp_path, folder), question())


def test_a_template_cannot_reach_python(folder: Path, tmp_path: Path) -> None:
    import lm_eval.utils

    plain = lm_eval.utils.env
    target = tmp_path / "reached"
    attack = "{{ cycler.__init__.__globals__.os.system('touch " + str(target) + "') }}"
    text = CHOICE.format(name="mine", data="items.jsonl").replace("{{question}}", attack)
    assert attack in text
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"SecurityError: .*; likely a template reaches for Python"):
        PROBE.measure(session(tmp_path, folder), question())
    assert not target.exists()
    assert lm_eval.utils.env is plain


def test_own_templates_may_use_lm_evals_filters(folder: Path, tmp_path: Path) -> None:
    text = CHOICE.format(name="mine", data="items.jsonl").replace("{{question}}", "{{question | regex_replace('a', 'o')}}")
    (folder / "mine.yaml").write_text(text)
    assert measured(PROBE.measure(session(tmp_path, folder), question()), "accuracy").n == 40


def test_a_data_set_that_cannot_be_had_is_unsupported(folder: Path, tmp_path: Path) -> None:
    text = CHOICE.format(name="mine", data="items.jsonl").replace("dataset_path: json", "dataset_path: nobody/nothing")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("dataset_kwargs"))
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(Unsupported, match="cannot be had here"):
        PROBE.measure(session(tmp_path, folder), question())


# ---------------------------------------------------------------------- lm-eval's own tasks, their data sets made up


def made_up(path: str, name: str | None = None, **_: Any) -> Any:
    """Rows in the shape of the hub's data sets, all splits alike."""
    import datasets

    source = random.Random(f"{path}{name}")

    def words() -> str:
        return " ".join(source.choice(WORDS) for _ in range(5))

    rows: list[dict[str, Any]] = []
    for i in range(6):
        shapes: dict[str, dict[str, Any]] = {
            "hellaswag": {"ctx_a": words(), "ctx_b": words(), "endings": [words() for _ in range(4)], "label": str(i % 4)}
            | {"activity_label": "Walking"},
            "ai2_arc": {"question": words(), "choices": {"text": [words() for _ in range(4)], "label": list("ABCD")}}
            | {"answerKey": "ABCD"[i % 4]},
            "mmlu": {"question": words(), "choices": [words() for _ in range(4)], "answer": i % 4, "subject": name},
            "winogrande": {
                "sentence": f"{words()} _ {words()}",
                "option1": "birds",
                "option2": "lamps",
                "answer": "12"[i % 2],
            },
        }
        rows.append(next(row for key, row in shapes.items() if key in path))
    split = datasets.Dataset.from_list(rows)
    return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test", "dev"), split))


@pytest.mark.parametrize("name", ["hellaswag", "arc_easy", "winogrande"])
def test_lm_evals_own_tasks_run_with_their_functions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", made_up)
    answer = PROBE.measure(session(tmp_path, None), question(name, shots=1))
    found = measured(answer, "accuracy")
    assert found.n == 6
    assert found.definition.startswith(f"lm-eval {name} v1.0 acc, 1-shot")
    assert (name == "winogrande") == ("accuracy_norm" not in {m.metric for m in answer.measurements})


def test_mmlu_is_one_number_over_all_its_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", made_up)
    answer = PROBE.measure(session(tmp_path, None), question("mmlu", limit=1))
    found = measured(answer, "accuracy")
    assert found.n == len(answer.facts["tasks"]) == 57
    assert answer.facts["lm_eval_aggregate"] == pytest.approx(found.value)
    assert found.definition == "lm-eval mmlu v2 (57 tasks, over all items) acc, 0-shot"
