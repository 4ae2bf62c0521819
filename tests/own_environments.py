"""Runs every method that has an environment of its own for real: ``python -m tests.own_environments [FOLDER]``.

Builds the environments (minutes and gigabytes, from the package index), lets each method quantize and reload a tiny model,
runs own_environments.yaml on the reference model into FOLDER (default: a new one under the temporary folder), and prints the
table. No part of the test suite, which builds nothing. Leaves with 1 where a check or a cell failed, but for the cells that have
to fail in their reload: those it wants to see there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import harness
from harness import envs, store
from harness.run import workspace

SUITE = Path(__file__).with_suffix(".yaml")
GARBAGE = {"inc 8-bit g128 no-sym"}
"""Cells whose library answers otherwise than their weights say."""


def main(folder: Path) -> int:
    cache, failed = workspace.default_cache(), 0
    for environment in envs.environments().values():
        if environment.name == envs.MAIN:
            continue
        with envs.obtain(environment, cache, print):
            pass
        problems = envs.check(environment, cache, print)
        print(f"{environment.name}: {'; '.join(problems) or 'well'}")
        failed += len(problems)
    path = harness.run(SUITE, results=folder / "results")
    stored = store.read(path)
    for record in stored.records:
        if record.failure is None:
            continue
        known = record.cell.label in GARBAGE and record.failure.phase == "reload"
        failed += not known
        print(f"{record.failure.kind}: {record.cell.name}: {record.question.probe}: {record.failure.message}")
    asked = {r.cell.label for r in stored.records if r.failure is not None and r.failure.phase == "reload"}
    failed += len(GARBAGE - asked)
    frame = harness.frame(path)
    print(frame.to_string())
    harness.render(path, folder / "report.html")
    print(f"report: {folder / 'report.html'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="own-environments-"))))
