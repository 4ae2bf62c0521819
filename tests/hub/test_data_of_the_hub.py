"""Data sets by their hub ids, for texts and for tasks: read at one commit, which is in the key; refused in words; kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.hub.server import Hub, Repo
from tests.hub.world import TOKEN, User, checkpoint
from tests.tiny_llama import llama, text, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

TASK = """task: capitals
dataset_path: lab/questions
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""


def rows(count: int, seed: int) -> bytes:
    """JSON Lines with a `text`, a `story` and a question."""
    lines = [
        {
            "text": text(3, seed=seed + n),
            "story": f"story {n}",
            "question": text(1, seed=n),
            "choices": [" a", " b"],
            "answer": n % 2,
        }
        for n in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read(entry: str, use: str = "measure") -> str:
    """A program that fetches a corpus and prints its text."""
    return f"""
from pathlib import Path
from harness.models import corpora
source = corpora.corpus({entry}, Path("."), {use!r}, "mine.yaml, line 3")
print(corpora.text(corpora.fetch(source, Path("cache"))))
"""


def test_a_text_of_the_hub_is_named_by_repository_split_column_and_revision(user: User, hub: Hub) -> None:
    card = b"---\nconfigs:\n- config_name: long\n  data_files: [{split: test, path: long.jsonl}]\n- config_name: short\n  data_files: [{split: test, path: short.jsonl}]\n---\n"  # noqa: E501
    old = hub.data_set("lab/texts").commit({"README.md": card, "long.jsonl": rows(3, 0), "short.jsonl": rows(1, 0)})
    hub.data_set("lab/texts").commit({"README.md": card, "long.jsonl": rows(4, 7), "short.jsonl": rows(1, 7)})
    long = "{'repo': 'lab/texts', 'config': 'long', 'split': 'test'%s}"
    assert user.python(read(long % "")) == "\n\n".join(text(3, seed=7 + n) for n in range(4)) + "\n"
    assert user.python(read(long % ", 'column': 'story'")) == "\n\n".join(f"story {n}" for n in range(4)) + "\n"
    assert user.python(read(long % f", 'revision': '{old}'")) == "\n\n".join(text(3, seed=n) for n in range(3)) + "\n"


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("{'repo': 'lab/texts', 'split': 'train'}", "corpus 'texts': lab/texts (default, train) cannot be read: Unknown split"),
        (
            "{'repo': 'lab/texts', 'split': 'test', 'column': 'words'}",
            "has no column 'words'; its columns: text, story, question",
        ),
        (
            "{'repo': 'lab/texts', 'split': 'test', 'column': 'answer'}",
            "column 'answer' of lab/texts holds no text; name another",
        ),
        ("{'repo': 'lab/texts', 'split': 'test', 'revision': 'v9'}", "corpus 'texts': lab/texts has no revision 'v9'"),
        ("{'repo': 'lab/none', 'split': 'test'}", "has no data set lab/none, or it is private and you are not logged in"),
        ("{'repo': 'lab/gated', 'split': 'test'}", "corpus 'gated': lab/gated is gated: it is given to those who accept its"),
        ("{'repo': 'lab/texts'}", "mine.yaml, line 3: lab/texts: name a `split`, such as test"),
        ("{'repo': 'lab/texts', 'path': 'x.txt'}", "a corpus with `path` takes no `repo`; a data set of the hub is"),
        ("{'corpus': 'wikitext2', 'split': 'test'}", "a corpus with `corpus` takes no `split`"),
    ],
)
def test_a_text_of_the_hub_that_cannot_be_had_is_one_sentence(entry: str, sentence: str, user: User, hub: Hub) -> None:
    hub.data_set("lab/texts").commit({"test.jsonl": rows(3, 0)})
    hub.repos["datasets/lab/gated"] = Repo(access="gated")
    hub.data_set("lab/gated").commit({"test.jsonl": rows(3, 0)})
    said = user.python(read(entry))
    assert sentence in said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1, said


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("{repo: lab/none, split: test}", "has no data set lab/none, or it is private and you are not logged in"),
        ("{repo: lab/texts, split: test, revision: v9}", "corpus 'texts': lab/texts has no revision 'v9'"),
        ("{repo: lab/gated, split: test}", "corpus 'gated': lab/gated is gated"),
    ],
)
def test_a_text_of_the_hub_is_looked_for_by_plan(entry: str, sentence: str, user: User, hub: Hub) -> None:
    hub.model("lab/tiny").commit(checkpoint())
    hub.data_set("lab/texts").commit({"test.jsonl": rows(3, 0)})
    hub.repos["datasets/lab/gated"] = Repo(access="gated")
    hub.data_set("lab/gated").commit({"test.jsonl": rows(3, 0)})
    said = user.harness("plan", str(user.suite("[lab/tiny]", extra=f"corpora: [{entry}]")), code=2)
    assert sentence in said
    assert len(said.splitlines()) == 1, said


def test_offline_a_text_that_is_here_is_read_and_one_that_is_not_is_one_sentence(user: User, hub: Hub) -> None:
    hub.data_set("lab/texts").commit({"test.jsonl": rows(3, 0)})
    here = user.python(read("{'repo': 'lab/texts', 'split': 'test'}"))
    asked = len(hub.requests)
    assert user.python(read("{'repo': 'lab/texts', 'split': 'test'}"), HF_HUB_OFFLINE="1") == here
    said = user.python(read("{'repo': 'lab/other', 'split': 'test'}"), HF_HUB_OFFLINE="1")
    assert said == (
        f"error: corpus 'other': lab/other is not (or not whole) in the local cache {user.hub_cache}, and HF_HUB_OFFLINE is set; "
        "unset it, or name a local file: corpora: [{path: text.txt}]\n"
    )
    assert len(hub.requests) == asked


def test_rows_of_another_commit_are_never_taken_for_those_that_are_asked_for(user: User, hub: Hub) -> None:
    """Offline, `datasets` gives the newest rows that it has, whatever commit is asked for."""
    old = hub.data_set("lab/texts").commit({"test.jsonl": rows(3, 0)})
    new = hub.data_set("lab/texts").commit({"test.jsonl": rows(3, 7)})
    code = (
        "import datasets\nfrom harness.models import hub\n"
        "print(len(hub.rows('lab/texts', None, {!r}, load=datasets.load_dataset)['test']))"
    )
    assert user.python(code.format(new)) == "3\n"
    refused = code.replace("print", "try:\n    print", 1) + "\nexcept ValueError as error:\n    print(error)"
    said = user.python(refused.format(old), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    assert said == f"the rows of lab/texts in the local cache are not those of its commit {old}\n"


def test_a_task_names_the_data_sets_of_the_hub_that_it_is_made_of(user: User, hub: Hub) -> None:
    folder = user.folder / "tasks"
    folder.mkdir()
    (folder / "one.yaml").write_text(TASK)
    (folder / "two.yaml").write_text(TASK.replace("capitals", "rivers") + "dataset_kwargs: {revision: v1}\n")
    (folder / "both.yaml").write_text("group: both\ntask: [capitals, rivers]\n")
    (user.folder / "mine.yaml").write_text(
        "name: mine\nmodels: [reference]\nmethods: {bf16: }\nprobes: [tasks]\ntasks: [{task: both, include: tasks}]\n"
    )
    said = user.harness("run", "mine.yaml", code=2)
    assert "line 5: task 'both': the hub at" in said
    assert "has no data set lab/questions" in said
    for branch in ("main", "v1"):
        hub.data_set("lab/questions").commit({"test.jsonl": rows(3, 0)}, branch)
    (cell,) = user.planned(user.folder / "mine.yaml")
    assert isinstance(cell["questions"], list)
    (question,) = cell["questions"]
    assert question["options"]["data_sets"] == {"lab/questions@main": "hub", "lab/questions@v1": "hub"}
    del hub.repos["datasets/lab/questions"]
    shutil.rmtree(user.hub_cache)
    said = user.harness("run", "mine.yaml", code=2, HF_HUB_OFFLINE="1")
    assert "error: task 'both': lab/questions is not (or not whole) in the local cache" in said


@pytest.mark.slow
def test_a_model_is_asked_about_texts_and_tasks_of_the_hub_and_again_when_their_revisions_move(
    user: User, hub: Hub, tmp_path: Path
) -> None:
    """Real parts throughout: a tiny Llama, lm-eval, datasets. The data sets are gated, the token is searched for."""
    llama(dtype=torch.bfloat16, hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    hub.model("lab/llama").commit({p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()})
    for name in ("texts", "questions"):
        hub.repos[f"datasets/lab/{name}"] = Repo(access="gated")
        hub.data_set(f"lab/{name}").commit({"test.jsonl": rows(20, 0)})
    (user.folder / "tasks").mkdir()
    (user.folder / "tasks" / "one.yaml").write_text(TASK)
    (user.folder / "mine.yaml").write_text(
        "name: mine\nmodels: [lab/llama]\nmethods: {bf16: , rtn: {bits: 4, group_size: 32}}\nprobes: [perplexity, tasks]\n"
        "corpora: [{repo: lab/texts, split: test, window: 64}]\ntasks: [{task: capitals, include: tasks}]\n"
    )
    said = user.harness("run", "mine.yaml", code=0, HF_TOKEN=TOKEN)
    first = user.records()
    assert [r.failure for r in first] == [None] * 4, said
    commit = hub.data_set("lab/questions").branches["main"]
    tasks = [r for r in first if r.question.probe == "tasks" and r.answer is not None]
    assert [r.answer.facts["data_sets"] for r in tasks if r.answer] == [{"lab/questions@main": commit}] * 2
    assert [m.n for r in tasks if r.answer for m in r.answer.measurements if m.metric == "accuracy"] == [20, 20]

    asked = len(hub.requests)
    user.harness("run", "mine.yaml", "--fresh", code=0, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    again = user.records()  # of the new run file
    assert [(r.key, r.failure) for r in again] == [(r.key, None) for r in first]
    assert [m.value for r in again if r.answer for m in r.answer.measurements] == [
        m.value for r in first if r.answer for m in r.answer.measurements
    ]
    assert len(hub.requests) == asked

    hub.data_set("lab/questions").commit({"test.jsonl": rows(25, 3)})
    user.harness("run", "mine.yaml", code=0, HF_TOKEN=TOKEN)
    moved = user.records()[len(again) :]
    assert [r.question.probe for r in moved] == ["tasks", "tasks"]  # the text has not moved
    assert not {r.key for r in moved} & {r.key for r in again}
    assert [m.n for r in moved if r.answer for m in r.answer.measurements if m.metric == "accuracy"] == [25, 25]

    hub.data_set("lab/texts").commit({"test.jsonl": rows(25, 3)})
    before = len(user.records())
    user.harness("run", "mine.yaml", code=0, HF_TOKEN=TOKEN)
    assert {r.question.probe for r in user.records()[before:]} == {"perplexity"}

    files = [p for p in user.folder.rglob("*") if p.is_file()]
    assert [p for p in files if TOKEN.encode() in p.read_bytes()] == []
