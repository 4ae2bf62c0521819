"""Plans kept on disk: tokenization and planning depend on no weight, so all cells of a model share them.

A plan is found again by a key: everything that decides it. A damaged file is made again, and that is said; a plan is written
whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from harness.files import write_atomically
from harness.scoring.plan import PLAN_VERSION, Plan


class PlanCache:
    """`folder`: where plans are kept (None: nowhere). Counts what was `made` and what came `from_disk`; remarks go to `notes`."""

    def __init__(self, folder: Path | None, notes: list[str]) -> None:
        self.folder = folder
        self.notes = notes
        self.made = 0
        self.from_disk = 0

    def find_or_make(self, key: Callable[[], list[object]], make: Callable[[], Plan]) -> Plan:
        """The plan of `key` (plain data, asked for only where plans are kept), or what `make` returns, kept for the next time."""
        path = None
        if self.folder is not None:
            name = hashlib.sha256(json.dumps([PLAN_VERSION, *key()], ensure_ascii=False).encode()).hexdigest()
            path = self.folder / f"{name}.plan.npz"
            try:
                plan = Plan.from_bytes(path.read_bytes())
                self.from_disk += 1
                return plan
            except FileNotFoundError:
                pass
            except ValueError as problem:
                self.notes.append(f"a stored plan could not be read and was made again: {problem}")
        plan = make()
        self.made += 1
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, plan.to_bytes())
        return plan
