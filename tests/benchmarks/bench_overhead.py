"""Where the time of a finished run went: quantizing, the models' own forwards, what is timed or weighed, and the harness.

    quant-harness run quick --fresh && python tests/benchmarks/bench_overhead.py results/quick

The run must be one invocation that answered everything (`--fresh`), with the machine otherwise idle. Counted as work, as the aim
says it (overhead over quantize + forward): the seconds of the quantizing calls, of scoring and generating inside the models
(each record's `model_seconds`), of latency's rounds, warm-up and the baseline's runs included, and of memory's prefill and
decode. All else is overhead: starting processes, imports, loading artifacts, rehearsals, bandwidth, proofs that a model answers
as its weights say, building tasks, statistics, storage. Loading is given apart too, because a plain script would load each
artifact once. Until 2026-11-25 all that latency and memory did but their loading counted as work, and loading by the quality
probes as overhead that nobody saw.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from harness import store


def wall_seconds(path: Path) -> float:
    """From the header's start to the completion line."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    began, ended = lines[0]["started_at"], next(line["ended_at"] for line in lines if "ended_at" in line)
    return (datetime.datetime.fromisoformat(ended) - datetime.datetime.fromisoformat(began)).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results folder of one suite, or a run file")
    run = store.read(parser.parse_args().results)
    quantize = scoring = rounds = weighed = loading = probes = 0.0
    for record in run.records:
        probes += record.seconds
        phases = {phase.name: phase.seconds for phase in record.phases}
        loading += phases.get("load", 0.0)
        if record.answer is None:
            continue
        facts = record.answer.facts
        quantize += sum(m.value or 0.0 for m in record.answer.measurements if m.metric == "quantize_seconds")
        scoring += float(facts.get("model_seconds", 0.0))
        if record.question.probe == "latency":
            rounds += float(facts["measured_seconds"])
        if record.question.probe == "memory":
            weighed += phases.get("prefill", 0.0) + phases.get("decode", 0.0)
    wall = wall_seconds(run.path)
    forward = scoring + rounds + weighed
    work = quantize + forward
    rows = {
        "wall": wall,
        "quantize": quantize,
        "forward: scoring and generating": scoring,
        "forward: latency's rounds": rounds,
        "forward: memory's prefill and decode": weighed,
        "load": loading,
        "other time inside probes": probes - forward - loading,
        "outside probes (processes, imports, storage)": wall - quantize - probes,
    }
    for name, seconds in rows.items():
        print(f"{name:45} {seconds:9.1f} s  {100 * seconds / wall:5.1f} %")
    print(
        f"overhead over work: {100 * (wall - work) / work:.1f} %; without loading: {100 * (wall - work - loading) / work:.1f} %"
    )


if __name__ == "__main__":
    main()
