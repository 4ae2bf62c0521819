"""Whether two run files hold equal measurements, whatever code wrote them: `python tests/compare_runs.py BEFORE AFTER`.

A change that should change no number is proved by two runs of one suite, one before it and one after it.
Measurements are joined on model, label of the cell, probe, subject and metric. Value, interval, count, definition,
unit and the bytes of the raw samples must be equal to the bit. What no two runs share is counted apart: latency,
memory, and the seconds and bytes of quantizing. It reads the lines themselves, not the harness's own types, so that
it can read files of other versions. Exit code 1: they differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIES = ("latency", "memory", "quantize", "serving")
"""Probes whose numbers depend on the minute in which they were measured."""

Name = tuple[str, str, str, str, str]
"""Model, label of the cell, probe, subject, metric."""


def label(cell: dict[str, Any]) -> str:
    """The cell's label: at its own level, or in the scheme or the origin that an older or newer version keeps it in."""
    for part in (cell, cell.get("scheme"), cell.get("origin"), (cell.get("origin") or {}).get("scheme")):
        if part and part.get("label"):
            return str(part["label"])
    raise ValueError(f"a cell without a label: {cell}")


def outcomes(path: Path) -> Iterator[tuple[Name, dict[str, Any]]]:
    """Every measurement and every failure of a run file; a failure stands under the metric ''."""
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record.get("kind") != "record":
            continue
        place = (
            record["cell"]["model"]["name"],
            label(record["cell"]),
            record["question"]["probe"],
            record["question"]["subject"],
        )
        if record["failure"] is not None:
            yield (*place, ""), {"failure": record["failure"]["kind"], "message": record["failure"]["message"]}
            continue
        for one in record["answer"]["measurements"]:
            yield (*place, one.pop("metric")), one


def compare(before: Path, after: Path) -> tuple[list[str], int, int]:
    """Differences in words, the number of equal measurements, and the number of those that vary by their nature."""
    old, new = dict(outcomes(before)), dict(outcomes(after))
    differences = [f"only in {before}: {' / '.join(name)}" for name in old.keys() - new.keys()]
    differences += [f"only in {after}: {' / '.join(name)}" for name in new.keys() - old.keys()]
    equal = varying = 0
    for name in old.keys() & new.keys():
        if name[2] in VARIES and not ("failure" in old[name] or "failure" in new[name]):
            varying += 1
        elif old[name] != new[name]:
            differences.append(f"{' / '.join(name)}: {old[name]} is now {new[name]}")
        elif (blob := old[name].get("blob")) and _blob(before, blob) != _blob(after, blob):
            differences.append(f"{' / '.join(name)}: the raw samples differ")
        else:
            equal += 1
    return sorted(differences), equal, varying


def _blob(run: Path, name: str) -> bytes:
    path = run.parent / "blobs" / name[:2] / name
    return path.read_bytes()


def main() -> None:
    differences, equal, varying = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    for line in differences:
        print(line)
    print(
        f"{equal} equal to the bit, raw samples included; {varying} of latency, memory and quantizing; {len(differences)} differ"
    )
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
