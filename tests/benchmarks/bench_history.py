"""How long a year of nights takes to load and to gate, and how much memory, at a matrix of 50 cells.

    python tests/benchmarks/bench_history.py FOLDER               # writes a year into FOLDER if it is not there, then measures
    python tests/benchmarks/bench_history.py FOLDER --nights 30

The nights are written by the project's own writer: 50 cells, 13 questions each, with the raw samples of tasks, perplexity and
divergence as blobs; the numbers are drawn, never measured. Each command runs in a process of its own; wall and CPU
seconds and the peak of resident memory are the system's.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np

from harness import store
from harness.spec import (
    Answer,
    Cell,
    Measurement,
    Model,
    PlannedCellRecord,
    PlanRecord,
    Question,
    Record,
    RunHeader,
    Scheme,
    digest,
)
from tests.report.synthetic import HEADER, TASKS, _m, questions
from tests.squares import square

CELLS, ITEMS, WINDOWS, TOKENS = 50, 160, 8, 256
START = datetime.datetime(2026, 1, 1, 2, tzinfo=datetime.UTC)
MODEL = Model(name="reference", path="/models/reference")


def cells() -> list[Cell]:
    """A baseline and 49 schemes."""
    schemes = [
        Scheme(method=method, bits=bits, options={"group_size": group})
        for method in ("rtn", "gptq", "awq", "hqq")
        for bits in (8, 4, 3, 2)
        for group in (32, 64, 128, 256)
    ]
    labels = [f"{s.method} {s.bits:g}-bit g{s.options['group_size']}" for s in schemes]
    baseline = square(Scheme(method="bf16", bits=16), model=MODEL, label="bf16")
    made = [square(s, model=MODEL, label=label) for s, label in zip(schemes, labels, strict=True)]
    return [baseline, *made][:CELLS]


class Drawn:
    """The answers of one night: each cell's own items and losses, a little of them otherwise every night."""

    def __init__(self, folder: Path, night: int) -> None:
        self.folder = folder
        self.draw = np.random.default_rng(night)
        self.ease = np.random.default_rng(0).normal(1.0, 1.3, size=ITEMS)
        self.losses = np.random.default_rng(1).gamma(1.2, 1.6, size=(WINDOWS, TOKENS - 1))

    def answer(self, cell: Cell, question: Question) -> Answer:
        match question.probe:
            case "quantize":
                found = [self.near("quantize_seconds", 12.0, 0.05)]
            case "size":
                bits = float(cell.bits) + (0 if cell.bits >= 16 else 0.25)
                sizes = {"nominal_bits": cell.bits, "bpw_quantized": bits, "bpw_model": bits + 0.4, "file_bytes": bits * 1.6e6}
                found = [_m(name, float(value)) for name, value in sizes.items()]
            case "perplexity":
                found = [self.perplexity(cell)]
            case "divergence":
                found = list(self.divergence(cell))
            case "tasks":
                found = [self.accuracy(cell, question.subject)]
            case "memory":
                names = ("peak_decode_bytes", "peak_host_bytes", "weight_bytes_resident", "kv_cache_bytes")
                found = [self.near(name, 2e7 * (place + 1), 0.01) for place, name in enumerate(names)]
            case _:
                found = [self.near(name, value, 0.02) for name, value in (("ttft", 0.05), ("tpot", 0.004), ("throughput", 250.0))]
        return Answer(measurements=tuple(found), facts={"kernels": {"matmul": 84}, "notes": ["drawn, never measured"]})

    def near(self, metric: str, value: float, spread: float) -> Measurement:
        value *= math.exp(self.draw.normal(0, spread))
        return _m(metric, value, value * 0.98, value * 1.02, 20)

    def perplexity(self, cell: Cell) -> Measurement:
        losses = (self.losses + 0.2 / cell.bits + self.draw.normal(0, 0.001, size=self.losses.shape)).astype(np.float32)
        mean = float(losses.mean())
        return _m(
            "perplexity", math.exp(mean), math.exp(mean - 0.05), math.exp(mean + 0.05), losses.size, self.npy(losses), "gptq-256"
        )

    def divergence(self, cell: Cell) -> Iterator[Measurement]:
        apart = self.draw.gamma(0.4, 2.5 / cell.bits**2, size=self.losses.shape).astype(np.float32)
        mean = float(apart.mean())
        yield _m("kl_mean", mean, mean * 0.9, mean * 1.1, apart.size, self.npy(apart))
        yield _m("kl_p99", float(np.quantile(apart, 0.99)), None, None, apart.size)
        yield _m("same_top", 0.97, 0.96, 0.98, apart.size)

    def accuracy(self, cell: Cell, task: str) -> Measurement:
        shift = TASKS.index(task) / 4 + 1.5 / cell.bits
        right = self.ease - shift + self.draw.normal(0, 0.02, size=ITEMS) > 0
        items = [{"id": f"{task}-{number}", "correct": bool(one)} for number, one in enumerate(right)]
        blob = store.add_blob(self.folder, json.dumps({"items": items}).encode(), "json")
        share = float(right.mean())
        reach = 1.96 * math.sqrt(share * (1 - share) / ITEMS)
        return _m("accuracy", share, share - reach, share + reach, ITEMS, blob, f"lm-eval {task} v1 acc, 0-shot")

    def npy(self, array: np.ndarray) -> str:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return store.add_blob(self.folder, buffer.getvalue(), "npy")


def write(folder: Path, night: int) -> Path:
    """One night's run file with its raw samples."""
    started = START + datetime.timedelta(days=night)
    name = f"{started:%Y%m%dT%H%M%S%fZ}-{night:08x}"
    header = RunHeader(
        run=name, started_at=started.isoformat(timespec="seconds"), context=HEADER.context, context_digest=HEADER.context.digest
    )
    matrix, asked, drawn = cells(), questions(), Drawn(folder, night)
    planned = [PlannedCellRecord(cell=c, questions=tuple(asked), baseline=c.label == "bf16") for c in matrix]
    with store.Writer(folder / f"{name}.jsonl", header) as writer:
        writer.plan(
            PlanRecord(suite={"name": folder.name}, baseline="bf16", cells=tuple(planned), weights={"reference": "w" * 64})
        )
        for cell in matrix:
            for question in asked:
                record = Record(
                    key=digest([cell.label, question]),
                    context=header.context_digest,
                    cell=cell,
                    question=question,
                    probe_version="1",
                    answer=drawn.answer(cell, question),
                    environment="e" * 64,
                    started_at=header.started_at,
                    seconds=1.5,
                )
                writer.record(replace(record))
        writer.end(ended_at=header.started_at, questions=len(matrix) * len(asked))
    return writer.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """Seconds of wall clock and of CPU, and peak resident bytes, of one command."""

    wall: float
    cpu: float
    peak_bytes: int
    code: int


def measure(*arguments: str) -> Took:
    """Runs a verb in a process of its own; its output is dropped."""
    command = [sys.executable, "-m", "harness.cli", *arguments]
    started = time.monotonic()
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=silent)
    _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - started
    cpu = usage.ru_utime + usage.ru_stime
    return Took(wall=wall, cpu=cpu, peak_bytes=usage.ru_maxrss * 1024, code=os.waitstatus_to_exitcode(status))


def fill(folder: Path, nights: int) -> None:
    """Writes the nights that are not there yet. Nothing here must outlive a power cut."""
    folder.mkdir(parents=True, exist_ok=True)
    there = len(list(folder.glob("*.jsonl.seal")))
    with mock.patch("os.fsync"):
        for night in range(there, nights):
            write(folder, night)
            if night % 10 == 0:
                print(f"  night {night + 1} of {nights}", file=sys.stderr, flush=True)


def touched(folder: Path) -> Sequence[Path]:
    """Writes one night more; the files that were there and are others now."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    fill(folder, len(list(folder.glob("*.jsonl.seal"))) + 1)
    return [path for path, changed in before.items() if path.stat().st_mtime_ns != changed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the nights are kept, and found again")
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--only-write", action="store_true")
    asked = parser.parse_args()
    fill(asked.folder, asked.nights)
    if asked.only_write:
        return
    runs = sorted(asked.folder.glob("*.jsonl"))
    run_bytes = sum(path.stat().st_size for path in runs)
    blobs = [path.stat().st_size for path in (asked.folder / "blobs").glob("*/*")]
    print(f"{len(runs)} nights, {len(runs) * CELLS:,} cells, {len(runs) * CELLS * len(questions()):,} records")
    print(f"{run_bytes / 2**20:,.0f} MiB of run files, {len(blobs):,} blobs of {sum(blobs) / 2**20:,.0f} MiB")
    print("| command | wall s | CPU s | peak MiB | exit |")
    print("|---|---|---|---|---|")
    commands = {
        "gate latest NEWEST": ["gate", "latest", str(runs[-1])],
        "history FOLDER": ["history", str(asked.folder)],
        "history FOLDER tpot": ["history", str(asked.folder), "tpot"],
    }
    for name, arguments in commands.items():
        took = measure(*arguments)
        print(f"| {name} | {took.wall:.1f} | {took.cpu:.1f} | {took.peak_bytes / 2**20:,.0f} | {took.code} |", flush=True)
    print(f"one night more: {len(touched(asked.folder))} of the files that were there were written to")


if __name__ == "__main__":
    main()
