"""Configurations, splits and columns of data sets of the hub are known at `plan`, which fetches no rows and looks once."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest

from tests.hub.server import Hub
from tests.hub.test_data_of_the_hub import TASK, rows
from tests.hub.world import User, checkpoint

CARD = b"""---
configs:
- config_name: long
  data_files: [{split: test, path: long.jsonl}, {split: train, path: more.jsonl}]
- config_name: short
  data_files: [{split: test, path: short.jsonl}]
---
"""

TOLD = b"""---
configs:
- config_name: default
  data_files: [{split: test, path: test.jsonl}]
dataset_info:
  features: [{name: text, dtype: string}, {name: label, dtype: int64}]
  splits: [{name: test, num_examples: 3}]
---
"""


@pytest.fixture
def sets(hub: Hub) -> Hub:
    """A hub with a model and data sets: with a card, without one, with columns in its card, in Parquet, with a script."""
    import pyarrow
    import pyarrow.parquet

    hub.model("lab/tiny").commit(checkpoint())
    texts = {name: rows(1500, seed) for seed, name in enumerate(("long.jsonl", "more.jsonl", "short.jsonl"))}
    hub.data_set("lab/texts").commit({"README.md": CARD, **texts})
    hub.data_set("lab/plain").commit({"test.jsonl": rows(1500, 0)})
    hub.data_set("lab/told").commit({"README.md": TOLD, "test.jsonl": rows(300, 0)})
    table = io.BytesIO()
    words = [f"word {n} " * 50 for n in range(3000)]
    pyarrow.parquet.write_table(pyarrow.table({"words": words, "label": list(range(3000))}), table, compression="none")
    hub.data_set("lab/packed").commit({"data/train-00000-of-00001.parquet": table.getvalue()})
    hub.data_set("lab/script").commit({"script.py": b"raise SystemExit('a script was run')", "test.jsonl": rows(3, 0)})
    return hub


def answers(user: User, texts: Iterable[str], **environment: str) -> list[str]:
    """What `plan` answers to suites that end with these texts: the notes where it refuses nothing."""
    head = "methods: {fake: [{bits: 16}, {bits: 4}]}\nbaseline: fake 16-bit\nprobes: [%s]\n"
    ends = [head % ("tasks" if text.startswith("tasks") else "quantize, fake") + text for text in texts]
    suites = [str(user.suite("[lab/tiny]", name=f"mine{n}", extra=end, fakes=False)) for n, end in enumerate(ends)]
    code = f"""
from pathlib import Path
from harness.suite import matrix
for suite in {suites}:
    try:
        print(*matrix.plan(Path(suite), device="cpu", cache=Path("cache")).notes)
    except BadInput as error:
        print(error)
"""
    said = user.python(code, **environment).splitlines()
    assert len(said) == len(suites), said
    return said


TEXTS = {
    "corpora: [{repo: lab/texts, split: test}]": (
        "line 6: corpus 'texts': lab/texts has several configurations, and none is named; name one of long, short"
    ),
    "corpora: [{repo: lab/texts, config: lnog, split: test}]": (
        "line 6: corpus 'texts': lab/texts has no configuration 'lnog'; did you mean 'long'? It has long, short"
    ),
    "corpora: [{repo: lab/texts, config: long, split: tst}]": (
        "line 6: corpus 'texts': split: lab/texts (long) has no split 'tst'; did you mean 'test'? It has test, train"
    ),
    "corpora: [{repo: lab/texts, config: short, split: 'test+train[:10%]'}]": (
        "corpus 'texts': split: lab/texts (short) has no split 'train'; it has test"
    ),
    "corpora: [{repo: lab/texts, config: long, split: test, column: txt}]": (
        "corpus 'texts': lab/texts (long) has no column 'txt'; did you mean 'text'? It has text, story, question, choices, "
        "answer; name one with `column`"
    ),
    "corpora: [{repo: lab/texts, config: long, split: test, column: answer}]": (
        "lab/texts (long): column 'answer' holds no text; of text are text, story, question; name one with `column`"
    ),
    "corpora: [{repo: lab/texts, config: long, split: 'test[:10%]+train', column: story}]": "",
    "corpora: [{repo: lab/plain, split: train}]": "corpus 'plain': split: lab/plain has no split 'train'; it has test",
    "corpora: [{repo: lab/plain, config: en, split: test}]": "lab/plain has no configuration 'en'; it has default",
    "corpora: [{repo: lab/plain, split: test}]": "",
    "corpora: [{repo: lab/told, split: test, column: label}]": (
        "lab/told: column 'label' holds no text; of text are text; name one with `column`"
    ),
    "corpora: [{repo: lab/told, split: test, column: words}]": (
        "lab/told has no column 'words'; it has text, label; name one with `column`"
    ),
    "corpora: [{repo: lab/packed, split: train}]": "lab/packed has no column 'text'; it has words, label; name one with `column`",
    "corpora: [{repo: lab/packed, split: train, column: label}]": "column 'label' holds no text; of text are words",
    "corpora: [{repo: lab/packed, split: train, column: words}]": "",
    "corpora: [{repo: lab/script, split: test}]": "lab/script is no data set that `datasets` reads: Dataset scripts are no",
}


def test_what_a_text_asks_of_a_data_set_that_lacks_it_is_one_sentence(user: User, sets: Hub) -> None:
    for said, (text, wanted) in zip(answers(user, TEXTS), TEXTS.items(), strict=True):
        assert (wanted in said) if wanted else (said == ""), (text, said)


def test_no_row_is_fetched_and_a_data_set_is_looked_at_once(user: User, sets: Hub) -> None:
    good = [text for text, wanted in TEXTS.items() if not wanted]
    assert answers(user, good) == [""] * 3
    for name in ("long.jsonl", "test.jsonl", "train-00000-of-00001.parquet"):
        fetched = sets.sent(name)
        assert fetched
        assert all(request.range is not None for request in fetched), name
        size = max(
            len(files[each]) for repo in sets.repos.values() for files in repo.commits.values() for each in files if name in each
        )
        read = sum(_bytes(request.range or "") for request in fetched if "/storage/" in request.path)
        assert read < size, f"{name}: {read} of {size} bytes were read"
    before = len(sets.requests)
    assert answers(user, good) == [""] * 3
    again = [r.path for r in sets.requests[before:] if "/datasets/" in r.path and not r.path.endswith("/auth-check")]
    assert sorted(set(again)) == [f"/api/datasets/lab/{name}" for name in ("packed", "plain", "texts")]
    before = len(sets.requests)
    assert not any("was not looked at" in said for said in answers(user, good, HF_HUB_OFFLINE="1")), "it is remembered"
    assert len(sets.requests) == before


def _bytes(wanted: str) -> int:
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1


def test_a_data_set_that_nobody_can_look_at_is_a_note(user: User, sets: Hub) -> None:
    text = "corpora: [{repo: lab/plain, split: test}]"
    (said,) = answers(user, [text], HF_HUB_OFFLINE="1")
    assert "corpus 'plain': lab/plain was not looked at, because HF_HUB_OFFLINE is set: what it lacks is known when it is" in said
    two = "corpora: [{repo: lab/plain, split: test}, {repo: lab/told, split: test}]"
    (said,) = answers(user, [two], HF_ENDPOINT="http://127.0.0.1:9")
    assert "corpus 'plain': lab/plain was not looked at, because the hub cannot be reached" in said
    assert "corpus 'told': lab/told was not looked at, because the hub cannot be reached" in said


def test_what_a_task_asks_of_a_data_set_that_lacks_it_is_one_sentence(user: User, sets: Hub) -> None:
    folder = user.folder / "tasks"
    folder.mkdir()
    task = TASK.replace("lab/questions", "lab/texts") + "dataset_name: long\n"
    written = {
        "good": task,
        "split": task.replace("test_split: test", "test_split: tset"),
        "held": task.replace("test_split: test", "validation_split: validation"),
        "config": task.replace("dataset_name: long", "dataset_name: lnog"),
        "unnamed": task.replace("dataset_name: long\n", ""),
        "shown": task + "fewshot_split: dev\n",
        "none": task.replace("lab/texts", "lab/nothing"),
    }
    for name, text in written.items():
        (folder / f"{name}.yaml").write_text(text.replace("capitals", name))
    (folder / "all.yaml").write_text("group: all\ntask: [good, split]\n")
    wanted = {
        "{task: good}": "",
        "{task: split}": f"task 'split': {folder}/split.yaml: test_split: lab/texts (long) has no split 'tset'; did you mean",
        "{task: held}": f"{folder}/held.yaml: validation_split: lab/texts (long) has no split 'validation'; it has test, train",
        "{task: config}": "task 'config': lab/texts has no configuration 'lnog'; did you mean 'long'? It has long, short",
        "{task: unnamed}": "lab/texts has several configurations, and none is named; name one of long, short",
        "{task: shown}": "",
        "{task: shown, shots: 2}": f"{folder}/shown.yaml: the split of its examples: lab/texts (long) has no split 'dev'; it has",
        "{task: none}": "has no data set lab/nothing, or it is private and you are not logged in",
        "{task: all}": f"task 'all': {folder}/split.yaml: test_split: lab/texts (long) has no split 'tset'",
    }
    ends = [f"tasks: [{entry.replace('{', '{include: tasks, ')}]" for entry in wanted]
    said = answers(user, ends)
    for answer, (entry, sentence) in zip(said, wanted.items(), strict=True):
        assert (sentence in answer and "line 6: task" in answer) if sentence else answer == "", (entry, answer)


def test_plan_itself_ends_with_two_and_one_line(user: User, sets: Hub) -> None:
    said = user.harness("plan", str(user.suite("[lab/tiny]", extra="corpora: [{repo: lab/plain, split: train}]")), code=2)
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1, said
