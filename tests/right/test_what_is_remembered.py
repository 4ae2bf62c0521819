"""Nothing is remembered by path, size and modification time alone."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

import harness
from harness import cli, files, store
from harness.models import find
from harness.models.corpora import tokenizer_digest
from harness.probes import lm_eval_tasks, taskfiles

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["a", "b"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


def swapped(path: Path) -> None:
    """The last byte of a file is another one; size and modification time are as before."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def replaced(path: Path) -> None:
    """Another file of the same size and modification time is put in its place, as rsync -a and tar do."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    swapped(other)
    other.replace(path)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are remembered however young: as if each had been written long ago."""
    monkeypatch.setattr(files, "YOUNG_SECONDS", 0.0)


@pytest.mark.parametrize("change", [swapped, replaced])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.usefixtures("old")
def test_other_bytes_with_the_same_size_and_time_are_another_model(
    change: object, name: str, model_folder: Path, tmp_path: Path
) -> None:
    time.sleep(0.02)  # past one tick of the file system's clock
    before = find.weights_digest(model_folder, tmp_path / "memo.json")
    time.sleep(0.02)
    change(model_folder / name)  # type: ignore[operator]
    assert find.weights_digest(model_folder, tmp_path / "memo.json") != before


@pytest.fixture
def without_change_times(old: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that keeps no change times, as some servers of network file systems do."""

    def stamp(path: Path) -> str:
        info = path.stat()
        return f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} 0"

    monkeypatch.setattr(files, "_stamp", stamp)


def keys(suite: Path, capsys: pytest.CaptureFixture[str], *options: str) -> set[str]:
    """The keys of a suite's questions as `plan` has them."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", str(suite), "--json", "--results", str(suite.parent / "results"), *options])
    assert stopped.value.code == 0
    return {question["key"] for cell in json.loads(capsys.readouterr().out)["cells"] for question in cell["questions"]}


@pytest.mark.usefixtures("old")
def test_a_weight_bit_changed_with_the_times_put_back_makes_other_questions(
    write_suite: Callable[..., Path], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite("{bits: 4}")
    time.sleep(0.02)
    before = keys(suite, capsys, "--paranoid")
    assert keys(suite, capsys) == before
    time.sleep(0.02)
    swapped(model_folder / "model.safetensors")
    assert not keys(suite, capsys) & before


@pytest.mark.usefixtures("without_change_times")
def test_where_change_times_are_not_kept_only_paranoid_notices_a_changed_bit(
    write_suite: Callable[..., Path], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite("{bits: 4}")
    time.sleep(0.02)
    before = keys(suite, capsys, "--paranoid")
    swapped(model_folder / "model.safetensors")
    assert keys(suite, capsys) == before
    after = keys(suite, capsys, "--paranoid")
    assert not after & before
    assert keys(suite, capsys) == after  # what was hashed again is remembered in place of the old


@pytest.mark.usefixtures("without_change_times")
def test_a_paranoid_run_measures_again_what_a_changed_bit_makes_another_model(
    write_suite: Callable[..., Path], model_folder: Path, tmp_path: Path
) -> None:
    suite = write_suite("{bits: 4}")
    time.sleep(0.02)

    def run(*, paranoid: bool = False) -> store.Run:
        return store.read(harness.run(suite, results=tmp_path / "results", cache=tmp_path / "cache", paranoid=paranoid))

    before = run()
    swapped(model_folder / "model.safetensors")
    assert run().plan.weights == before.plan.weights
    again = run(paranoid=True)
    assert again.plan.weights != before.plan.weights
    assert len(again.records) == 2 * len(before.records)


@pytest.mark.usefixtures("old")
def test_a_file_that_did_not_change_is_read_once(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.02)
    before = find.weights_digest(model_folder, tmp_path / "memo.json")
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert find.weights_digest(model_folder, tmp_path / "memo.json") == before


def test_a_file_that_was_just_written_is_not_remembered(model_folder: Path, tmp_path: Path) -> None:
    find.weights_digest(model_folder, tmp_path / "memo.json")
    assert json.loads((tmp_path / "memo.json").read_text()) == {}


def test_a_memory_in_other_words_is_forgotten(model_folder: Path, tmp_path: Path) -> None:
    path = model_folder / "model.safetensors"
    info = path.stat()
    memo = tmp_path / "memo.json"
    memo.write_text(json.dumps({f"{path.resolve()}|{info.st_size}|{info.st_mtime_ns}": "0" * 64}))
    assert find.weights_digest(model_folder, memo) == find.weights_digest(model_folder, tmp_path / "none.json")


@pytest.mark.parametrize("change", [swapped, replaced])
def test_the_data_of_a_task_are_read_again_when_their_bytes_change(change: object, tmp_path: Path) -> None:
    """`datasets` would answer from its cache: it knows a file by path, size and modification time."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(TASK)
    (folder / "items.jsonl").write_text('{"question": "the river", "z": 4}')

    def docs() -> list[int]:
        tasks = lm_eval_tasks.load("mine", folder, tmp_path / "datasets", 0)
        return [doc["z"] for doc in tasks["tasks"]["mine"].test_docs()]

    assert docs() == [4]
    data = folder / "items.jsonl"
    before = data.stat()
    data.write_text('{"question": "the river", "z": 5}')
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change is replaced:
        shutil.copy2(data, folder / "other")
        (folder / "other").replace(data)
    assert docs() == [5]


def test_a_task_that_is_written_after_its_folder_was_looked_at_is_known(tmp_path: Path) -> None:
    assert taskfiles.known_tasks(tmp_path) == set()
    (tmp_path / "mine.yaml").write_text(TASK)
    assert taskfiles.known_tasks(tmp_path) == {"mine"}


def test_a_task_whose_yaml_begins_with_a_byte_order_mark_is_known(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("\ufeff" + TASK.lstrip(), encoding="utf-8")
    (tmp_path / "items.jsonl").write_text('{"question": "the river", "z": 4}\n')
    assert taskfiles.known_tasks(tmp_path) == {"mine"}
    assert lm_eval_tasks.load("mine", tmp_path, tmp_path / "datasets", 0)["tasks"]["mine"].config.task == "mine"


@pytest.mark.parametrize("change", ["rules", "arguments", "merges"])
def test_a_tokenizer_written_in_python_is_known_by_its_arguments_and_the_files_that_they_name(
    change: str, tmp_path: Path
) -> None:
    class Letters(transformers.PythonBackend):
        """One token per character."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)  # type: ignore[no-untyped-call]

        def get_vocab(self) -> dict[str, int]:
            return {chr(i): i for i in range(128)}

    (tmp_path / "merges").write_text("a b")
    before = tokenizer_digest(Letters(merges_file=str(tmp_path / "merges"), lower=True))
    assert tokenizer_digest(Letters(merges_file=str(tmp_path / "merges"), lower=True)) == before
    if change == "merges":
        (tmp_path / "merges").write_text("a c")
    other = Letters(
        merges_file=str(tmp_path / "merges"), lower=change != "arguments", **({"bos_token": "a"} if change == "rules" else {})
    )
    assert tokenizer_digest(other) != before
