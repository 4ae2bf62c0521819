"""The same numbers from each library's own path: ``python -m tests.library_paths [--only gptq,awq] [--llama-cpp TREE]``.

Every scheme of `CELLS` is made of the reference model twice. `tests.methods.library`, which imports nothing of the harness,
quantizes it with the library's own calls, saves it, reloads it in a fresh process by the library's own loader and sums the
negative log-likelihoods of the held-out windows. The harness makes and measures its cell by its ordinary path (`harness.run`),
or did so before (``--results``). Calibration rows and windows are input data: both sides get the same token ids.

Prints both perplexities and the distance of their logarithms, which is their relative difference. Leaves with 1 where one is
over `SAME`, or where a side failed. `gguf` runs where llama-cpp-python is
installed and a source tree of llama.cpp, which has the converter, is named.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness import envs, reference, store
from harness.engines.base import load_tokenizer
from harness.methods import METHODS
from harness.methods.base import resolve_options
from harness.models import corpora
from harness.spec import Record

SAME = 1e-3
CALIBRATION = {"corpus": "reference", "samples": 8, "length": 128, "seed": 0}
WINDOW, TOKENS = 256, 8192

GROUPS = {"group_size": 64}
CELLS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "bf16": ("bf16", 16, {}),
    "rtn 4": ("rtn", 4, GROUPS),
    **{f"gptq {bits}": ("gptq", bits, GROUPS) for bits in (4, 3, 2)},
    **{f"awq {bits}": ("awq", bits, GROUPS) for bits in (4, 3)},
    **{f"autoround 4, {iters} steps": ("autoround", 4, {"iters": iters, **GROUPS}) for iters in (0, 4)},
    **{f"hqq {bits}": ("hqq", bits, GROUPS) for bits in (4, 3, 2)},
    "bnb nf4": ("bnb", 4, {}),
    "torchao int8": ("torchao", 8, {}),
    "quanto int8": ("quanto", 8, {}),
    **{f"gguf {kind}": ("gguf", bits, {"type": kind}) for kind, bits in (("Q8_0", 8), ("Q4_K_M", 4), ("Q3_K_M", 3))},
}
"""Name -> method, bits, and the options that both sides are told; all others are at their defaults on either side."""


def inputs(folder: Path, chosen: dict[str, Any]) -> None:
    """What the libraries work on: the checkpoint, calibration rows, windows, cells."""
    (folder / "source").symlink_to(reference.MODEL_DIR)
    tokenizer = load_tokenizer(reference.MODEL_DIR)
    seen = tokenizer(corpora.text(reference.CALIBRATION_TEXT), verbose=False)["input_ids"]
    measured = tokenizer(corpora.text(reference.HELDOUT_TEXT), verbose=False)["input_ids"]
    wish: dict[str, Any] = {name: CALIBRATION[name] for name in ("samples", "length", "seed")}
    data = {
        "calibration": corpora.calibration_rows(seen, name="reference", **wish),
        "rows": corpora.windows(measured, WINDOW, TOKENS, "reference"),
        "cells": chosen,
    }
    for name, value in data.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a library's own path answers on the windows: perplexity, and divergence from the source's own answers in nats."""

    perplexity: float
    kl: float


def by_library(folder: Path, cells: list[str]) -> dict[str, Answered | str]:
    """What each cell of one library answers, or the last line that it said."""
    for stage in ("quantize", "answer"):
        command = [sys.executable, "-m", "tests.methods.library", stage, str(folder), *cells]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
        if done.returncode and len(cells) > 1:  # the others have an answer still
            return {name: found for cell in cells for name, found in by_library(folder, [cell]).items()}
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["said nothing"]
            return dict.fromkeys(cells, f"{stage}: exit status {done.returncode}: {said[-1]}")
    return {cell: Answered(**json.loads((folder / "library" / f"{cell}.json").read_text())) for cell in cells}


def suite(chosen: dict[str, tuple[str, float, dict[str, Any]]]) -> dict[str, Any]:
    methods: dict[str, list[dict[str, Any]]] = {"bf16": [{"bits": 16}]}
    for method, bits, options in chosen.values():
        if method != "bf16":
            methods.setdefault(method, []).append({"bits": bits, **options})
    return {
        "name": "library-paths",
        "models": ["reference"],
        "baseline": "bf16",
        "probes": ["perplexity"],
        "calibration": CALIBRATION,
        "methods": methods,
        "corpora": [{"corpus": "reference", "window": WINDOW, "tokens": TOKENS}],
    }


def by_harness(records: tuple[Record, ...], cell: str) -> float | str:
    """The perplexity of a cell's record, or why there is none."""
    method, bits, given = CELLS[cell]
    options = resolve_options(METHODS[method], given, bits)
    for record in records:
        scheme, question = record.cell.scheme, record.question
        found = dict(scheme.options)
        same = found.pop("calibration", CALIBRATION) == CALIBRATION and found == options
        asked = (question.probe, question.subject, question.options.get("window"), question.options.get("tokens"))
        if (record.cell.model.name, scheme.method, scheme.bits) != ("reference", method, bits) or not same:
            continue
        if asked != ("perplexity", "reference", WINDOW, TOKENS):
            continue
        if record.answer is None:
            assert record.failure is not None
            return f"{record.failure.kind}: {record.failure.message}"
        return next(float(m.value) for m in record.answer.measurements if m.metric == "perplexity" and m.value is not None)
    return "no record"


def compare(cell: str, library: Answered | str, measured: float | str) -> tuple[str, bool]:
    """A row of the table, and whether it is as it should be."""
    if isinstance(library, str) or isinstance(measured, str):
        return f"{cell:22} library: {library}; harness: {measured}", False
    distance = abs(math.log(library.perplexity) - math.log(measured))
    said = "" if distance <= SAME else f"  OVER {SAME:g}"
    return f"{cell:22} {library.perplexity:10.5f} {measured:10.5f} {distance:10.1e}{said}", distance <= SAME


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="methods, separated by commas")
    parser.add_argument("--results", type=Path, help="results that hold the harness's cells; without it they are made now")
    parser.add_argument("--llama-cpp", type=Path, help="source tree of llama.cpp (vendor/llama.cpp of llama-cpp-python's sdist)")
    parser.add_argument("--folder", type=Path, help="where to work; default: a new folder under the temporary one")
    asked = parser.parse_args()
    only = {name for name in asked.only.split(",") if name}
    if only - {method for method, _, _ in CELLS.values()}:
        parser.error(f"--only: no cell of {', '.join(sorted(only))}")
    chosen = {cell: row for cell, row in CELLS.items() if not only or row[0] in only}
    for method in dict.fromkeys(row[0] for row in chosen.values()):
        lacking = envs.missing(METHODS[method])
        reason = f"add with: {lacking.install}" if lacking else "name a tree with --llama-cpp" if method == "gguf" else None
        if reason and (lacking or asked.llama_cpp is None):
            print(f"left out: {method}: {reason}")
            chosen = {cell: row for cell, row in chosen.items() if row[0] != method}
    if asked.llama_cpp is not None:
        os.environ["LLAMA_CPP"] = str(asked.llama_cpp.resolve())
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="library-paths-"))
    folder.mkdir(parents=True, exist_ok=True)
    inputs(folder, chosen)
    if asked.results is None:
        (folder / "suite.yaml").write_text(json.dumps(suite(chosen)))  # JSON is YAML
        records = store.read(harness.run(folder / "suite.yaml", results=folder / "results", device="cpu")).records
    else:
        records = store.read(asked.results).records
    print(f"{'':22} {'library':>10} {'harness':>10} {'difference':>10}")
    good = True
    for method in dict.fromkeys(row[0] for row in chosen.values()):
        cells = [cell for cell, row in chosen.items() if row[0] == method]
        own = by_library(folder, cells)
        for cell in cells:
            row, fine = compare(cell, own[cell], by_harness(records, cell))
            print(row, flush=True)
            good = good and fine
    print(f"in {folder}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
