"""Files and folders that are whole or not there: written beside their place as a draft, which is renamed once it is complete.

A rename within a folder is atomic, so a crash leaves the former content or none, never a half. A draft is named
`.draft-NAME-PID`; what a killed process left is known by its process id (`drafted_by`). Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class AlreadyThere(Exception):
    """Another process has put a folder where a draft was to go."""


def write_atomically(path: Path, data: bytes | str, *, lasting: bool = False) -> None:
    """Writes a file at once. `lasting`: it is on the disk when this returns. What can be made again, or is only read by a process
    that lives now, need not be."""
    with draft_file(path, lasting=lasting) as draft:
        draft.write_bytes(data if isinstance(data, bytes) else data.encode())


@contextlib.contextmanager
def draft_file(path: Path, *, lasting: bool = False) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends well, and is removed when it does not."""
    draft = _draft(path)
    try:
        yield draft
        if lasting:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def draft_folder(path: Path, *, over: bool = True) -> Iterator[Path]:
    """An empty folder to fill; it becomes `path` when the block ends well, and is removed when it does not. A former `path` is
    replaced, or with `over=False` kept: then AlreadyThere says that somebody else was first."""
    draft = _draft(path)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        if over:
            shutil.rmtree(path, ignore_errors=True)
        try:
            draft.replace(path)
        except OSError as error:
            if path.exists():  # the system says so in different ways
                raise AlreadyThere(f"{path}: another process has made it meanwhile") from error
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def drafts_into(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; its files are moved into `folder` one by one when the block ends well. Others there stay."""
    draft = _draft(folder)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(draft.iterdir()):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def drafted_by(path: Path) -> int | None:
    """The id of the process that writes a draft, from its name; None for what is no draft."""
    pid = path.name.rpartition("-")[2]
    return int(pid) if path.name.startswith(".draft-") and pid.isdigit() else None


def tail(path: Path, characters: int = 2000) -> str:
    """The end of a log, readable whatever bytes are in it; '' when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4 * characters))
            return file.read().decode("utf-8", errors="replace")[-characters:]
    except OSError:
        return ""


def _draft(path: Path) -> Path:
    return path.with_name(f".draft-{path.name}-{os.getpid()}")
