"""How long `report` and `results --format csv` take, and how large the page is, before and after, side by side.

    git worktree add ../before 226957c
    python tests/benchmarks/bench_report.py ../before .                       # 506 synthetic cells
    python tests/benchmarks/bench_report.py ../before . --results results/quick

Each command runs in a process of its own, `--times` times in turn, on an idle machine, after one run that compiles the tree's
files; the median is printed with the CPU seconds and the peak memory. Each tree reads synthetic cells that its own writer
wrote, so that trees of different schemas can be compared. The CSV of both trees is compared byte for byte: a faster report may
change no number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MODELS = 23
COMMANDS = {"report": ["report"], "csv": ["results", "--format", "csv"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """Seconds of wall clock and of CPU, and peak resident bytes, of one command."""

    wall: float
    cpu: float
    peak_bytes: int


def measure(tree: Path, arguments: list[str], compiled: Path) -> Took:
    """Runs Python on a tree, which stands alone on the path: the folder that this was started in does not (-P). `compiled`:
    where what Python compiles is kept."""
    command = [sys.executable, "-P", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "PYTHONPYCACHEPREFIX": str(compiled)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.monotonic()
    pid = os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - started
    if status:
        raise SystemExit(f"{tree}: {' '.join(command)} failed")
    return Took(wall=wall, cpu=usage.ru_utime + usage.ru_stime, peak_bytes=usage.ru_maxrss * 1024)


WRITE = """
import sys
from pathlib import Path
from tests.report import synthetic
synthetic.write(Path(sys.argv[1]), models=[f"model-{i}" for i in range(int(sys.argv[2]))])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", type=Path, help="checkouts, the one before first")
    parser.add_argument("--results", type=Path, help="stored results; by default 506 synthetic cells")
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        compiled, results = folder / "compiled", {}
        for number, tree in enumerate(asked.trees):
            results[tree] = (asked.results or folder / f"synthetic-{number}").resolve()
            if asked.results is None:
                measure(tree, ["-c", WRITE, str(results[tree]), str(MODELS)], compiled)
        written: dict[str, list[bytes]] = {}
        for name, (verb, *options) in COMMANDS.items():
            took: dict[Path, list[Took]] = {tree: [] for tree in asked.trees}
            for time_of in range(asked.times + 1):
                for tree in asked.trees:  # in turn, so that a slow minute of the machine meets all of them
                    target = folder / f"{name}.{'html' if name == 'report' else 'csv'}"
                    command = ["-m", "harness.cli", verb, str(results[tree]), *options, "-o", str(target)]
                    one = measure(tree, command, compiled)
                    if time_of:  # the first one compiles
                        took[tree].append(one)
                    if time_of == asked.times:
                        written.setdefault(name, []).append(target.read_bytes())
            for tree, size in zip(asked.trees, map(len, written[name]), strict=True):
                wall, cpu = (statistics.median(getattr(t, kind) for t in took[tree]) for kind in ("wall", "cpu"))
                peak = max(t.peak_bytes for t in took[tree])
                print(
                    f"{name:8} {tree!s:24} {wall:7.2f} s, CPU {cpu:7.2f} s, peak {peak / 1e6:7.0f} MB, file {size / 1e6:6.2f} MB"
                )
        same = len(set(written["csv"])) == 1
        print("the CSV of all trees is the same, byte for byte" if same else "the CSV DIFFERS between the trees")
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
