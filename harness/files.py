"""Files and folders that are whole or not there: written beside their place as a draft, which is renamed once it is complete.

A rename within a folder is atomic, so a crash leaves the former content or none, never a half. A draft is named
`.draft-NAME-PID`; what a killed process left is known by its process id (`drafted_by`). `Hashes` knows the digests of files
without reading them twice. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class AlreadyThere(Exception):
    """Another process has put a folder where a draft was to go."""


class Changed(Exception):
    """A file was written to while it was read."""


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


YOUNG_SECONDS = 2.0
"""A file that changed so short a time ago is not remembered: it may change again within one tick of the file system's clock."""


class Hashes:
    """The SHA-256 of files, remembered in the file `memo` under device, inode, size, modification time and change time, so that a
    140 GB checkpoint is read once.

    Tools that put other bytes in a file's place and restore its modification time (rsync -a, tar, container layers) change its
    inode or its change time, which no tool can set: the file is hashed again. What this cannot see: bytes that change below the
    file system (a failing disk), or a network file system whose server keeps no change times.
    """

    def __init__(self, memo: Path) -> None:
        self._memo = memo
        self._known = _remembered(memo)

    def known(self, path: Path) -> str | None:
        """The hash of a file where it is remembered as it is now."""
        return self._known.get(_stamp(path))

    def of(self, path: Path) -> str:
        """The hash of a file, read where it is not remembered. Changed where the file changes meanwhile."""
        stamp = _stamp(path)
        if stamp in self._known:
            return self._known[stamp]
        hashed = sha256(path)
        if _stamp(path) != stamp:
            raise Changed(f"{path}: changed while it was read")
        if not _young(path):
            self._known[stamp] = hashed
        return hashed

    def keep(self) -> None:
        """Writes what is known into the memo, beside what another process has put there meanwhile."""
        self._memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._memo, json.dumps(_remembered(self._memo) | self._known))


def sha256(path: Path, copied: Callable[[bytes], object] | None = None) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits. `copied` is given every part as it is read."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            hasher.update(chunk)
            if copied is not None:
                copied(chunk)
    return hasher.hexdigest()


def _remembered(memo: Path) -> dict[str, str]:
    try:
        known = json.loads(memo.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {stamp: value for stamp, value in known.items() if re.fullmatch(r"\d+( \d+){4}", stamp) and isinstance(value, str)}


def _stamp(path: Path) -> str:
    info = path.stat()
    return f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


def _young(path: Path) -> bool:
    info = path.stat()
    return time.time_ns() - max(info.st_mtime_ns, info.st_ctime_ns) < YOUNG_SECONDS * 1e9


def _draft(path: Path) -> Path:
    return path.with_name(f".draft-{path.name}-{os.getpid()}")
