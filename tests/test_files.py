"""Drafts: whole or not there, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import files
from harness.run.workspace import sweep


def test_a_file_is_replaced_at_once_and_its_draft_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_atomically(path, "one ä")
    files.write_atomically(path, b"two", lasting=True)
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_that_cannot_be_finished_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_text("former")

    def half() -> None:
        with files.draft_file(path) as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert path.read_text() == "former"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_only_what_must_last_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    files.write_atomically(tmp_path / "a", "x")
    assert not synced
    files.write_atomically(tmp_path / "a", "x", lasting=True)
    assert len(synced) == 1


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "artifact"
    with files.draft_folder(target) as draft:
        (draft / "weights").write_text("1")
        assert not target.exists()
    assert (target / "weights").read_text() == "1"
    with files.draft_folder(target) as draft:
        (draft / "other").write_text("2")
    assert os.listdir(target) == ["other"], "a former folder is replaced, not added to"
    with pytest.raises(ZeroDivisionError), files.draft_folder(target) as draft:
        raise ZeroDivisionError
    assert os.listdir(target) == ["other"]
    assert os.listdir(target.parent) == ["artifact"]


def test_a_folder_that_somebody_else_made_meanwhile_can_be_kept(tmp_path: Path) -> None:
    target = tmp_path / "store"

    def second() -> None:
        with files.draft_folder(target, over=False) as draft:
            (draft / "mine").write_text("1")
            target.mkdir()
            (target / "theirs").write_text("2")

    with pytest.raises(files.AlreadyThere):
        second()
    assert os.listdir(target) == ["theirs"]
    assert os.listdir(tmp_path) == ["store"]


def test_files_are_moved_beside_those_that_stay(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "README.md").write_text("stays")
    (target / "config.json").write_text("old")
    with files.drafts_into(target) as draft:
        (draft / "config.json").write_text("new")
        assert (target / "config.json").read_text() == "old"
    assert {p.name: p.read_text() for p in target.iterdir()} == {"README.md": "stays", "config.json": "new"}
    assert os.listdir(tmp_path) == ["model"]


def test_what_a_killed_process_left_is_swept_away_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal\n"
        "from harness import files\n"
        f"cache = pathlib.Path({str(tmp_path)!r})\n"
        "with files.draft_folder(cache / 'artifacts' / 'a'), files.draft_file(cache / 'digests.json') as draft:\n"
        "    draft.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    left = [*tmp_path.glob(".draft-*"), *tmp_path.glob("*/.draft-*")]
    assert len(left) == 2
    with files.draft_folder(tmp_path / "artifacts" / "b") as mine:
        sweep(tmp_path)
        assert mine.is_dir()
    assert not [path for path in left if path.exists()]
