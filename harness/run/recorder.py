"""Which run file records go to, and the clock that stamps them."""

from __future__ import annotations

import datetime
from pathlib import Path

from harness import store
from harness.errors import OlderSchema


def same_context(folder: Path, context: str) -> Path | None:
    """The newest run file that was made under the same context."""
    for path in sorted(folder.glob("*.jsonl"), reverse=True):
        try:
            header = store.read_header(path)
        except OlderSchema:  # it stays as it is, and a new run begins
            continue
        if header is not None and header.get("context_digest") == context:
            return path
    return None


def new_run(folder: Path, context: str) -> Path:
    return folder / f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S%fZ}-{context[:8]}.jsonl"


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
