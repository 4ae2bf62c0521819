"""Where the time of a finished run went: quantizing, the models' own forwards, what is timed or weighed, and the harness.

    quant-harness run quick --fresh && python tests/benchmarks/bench_overhead.py results/quick

The run must be one invocation that answered everything (`--fresh`), with the machine otherwise idle. Counted as work: the
seconds of quantizing, of scoring and generating inside the models (each record's `model_seconds`), and of the latency and
memory probes less their loading, which last as long as the suite's budget says. All else is overhead: starting processes,
imports, loading artifacts, building tasks, statistics, storage. Loading is given apart, because a plain script would load each
artifact once too.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from harness import store

ALONE = ("latency", "memory")


def wall_seconds(path: Path) -> float:
    """From the header's start to the completion line."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    began, ended = lines[0]["started_at"], next(line["ended_at"] for line in lines if "ended_at" in line)
    return (datetime.datetime.fromisoformat(ended) - datetime.datetime.fromisoformat(began)).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results folder of one suite, or a run file")
    run = store.read(parser.parse_args().results)
    quantize = model = alone = loading = probes = 0.0
    for record in run.records:
        probes += record.seconds
        load = sum(phase.seconds for phase in record.phases if phase.name == "load")
        loading += load
        if record.answer is None:
            continue
        quantize += sum(m.value or 0.0 for m in record.answer.measurements if m.metric == "quantize_seconds")
        model += float(record.answer.facts.get("model_seconds", 0.0))
        if record.question.probe in ALONE:
            alone += record.seconds - load
    wall = wall_seconds(run.path)
    work = quantize + model + alone
    rows = {
        "wall": wall,
        "quantize": quantize,
        "forward (model_seconds)": model,
        "latency and memory, without load": alone,
        "load": loading,
        "other time inside probes": probes - model - alone - loading,
        "outside probes (processes, checks, storage)": wall - quantize - probes,
    }
    for name, seconds in rows.items():
        print(f"{name:45} {seconds:9.1f} s  {100 * seconds / wall:5.1f} %")
    print(
        f"overhead over work: {100 * (wall - work) / work:.1f} %; without loading: {100 * (wall - work - loading) / work:.1f} %"
    )


if __name__ == "__main__":
    main()
