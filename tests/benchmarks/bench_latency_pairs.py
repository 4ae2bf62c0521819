"""A model timed against itself: how often two medians of the same thing differ by more than 2 %.

    python tests/benchmarks/bench_latency_pairs.py --model FOLDER --repeats 100

Loads the model twice, as the latency probe does with a cell and its baseline, and repeats the probe's own paired measurement.
For each repeat it takes the median of the within-round ratios (`tpot_ratio`, `ttft_ratio`) and the ratio of the two medians; an
honest clock on an idle machine has at least 95 of 100 of them within 2 % of 1. Says what else the machine was doing, because
on a busy one the answer is about the neighbours. Ends with 1 if the share of the paired ratios is below `--share`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from harness.engines.base import Timing
from harness.measure import conditions
from harness.probes.latency import runner
from harness.probes.requests import GenerationShape
from harness.probes.rounds import median, quiet, run_rounds, tpot


def load(folder: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    from harness.engines.base import load_tokenizer
    from harness.engines.transformers import Transformers

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, trust_remote_code=False).eval()
    return Transformers(model, load_tokenizer(folder))


def ratios(cell: list[Timing], base: list[Timing]) -> dict[str, float]:
    """Every ratio should be 1: medians of paired ratios, and ratios of the two medians."""
    pairs = list(zip(cell, base, strict=True))
    return {
        "tpot, median of paired ratios": median([tpot(a) / tpot(b) for a, b in pairs]).value,
        "tpot, ratio of medians": median([tpot(a) for a in cell]).value / median([tpot(b) for b in base]).value,
        "ttft, median of paired ratios": median([a.ttft_seconds / b.ttft_seconds for a, b in pairs]).value,
        "ttft, ratio of medians": median([a.ttft_seconds for a in cell]).value / median([b.ttft_seconds for b in base]).value,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a local folder with a transformers checkpoint")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--budget", type=float, default=5.0, help="seconds of one repeat, both models together")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--within", type=float, default=0.02)
    parser.add_argument("--share", type=float, default=0.95)
    parser.add_argument("--json", type=Path, help="writes every repeat's ratios and conditions here")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    shape = GenerationShape(prompt=given.prompt, new=given.new, batch=given.batch)
    one, two = runner(load(given.model, given.dtype), shape), runner(load(given.model, given.dtype), shape)
    print(f"{given.model.name} {given.dtype} against itself at {shape.name}, {torch.get_num_threads()} threads")
    rows: list[dict[str, Any]] = []
    for index in range(given.repeats):
        before = conditions.snapshot()
        with quiet():
            rounds = run_rounds(one, two, budget_seconds=given.budget, seed=index)
        during = conditions.between(before, conditions.snapshot())
        found = ratios(rounds.cell, rounds.base)
        rows.append({"ratios": found, "rounds": len(rounds.cell), "stopped": rounds.stopped, "conditions": during})
        shown = "  ".join(f"{value:.4f}" for value in found.values())
        others = during.others_cpu_share
        print(
            f"{index + 1:4d}  {shown}  {len(rounds.cell):3d} rounds  others {'?' if others is None else f'{others:.0%}'}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(rows))
    worst = 1.0
    for name in rows[0]["ratios"]:
        off = sorted(abs(row["ratios"][name] - 1) for row in rows)
        share = sum(value <= given.within for value in off) / len(off)
        worst = min(worst, share) if "paired" in name else worst
        half, most = off[len(off) // 2], off[-1]
        print(f"{name:30s} within {given.within:.0%}: {share:.1%} of {len(off)}; off by {half:.2%} at median, {most:.2%} at most")
    busy = sorted(row["conditions"]["others_cpu_share"] or 0.0 for row in rows)
    print(f"others used {busy[len(busy) // 2]:.1%} of all CPU time at the median, {busy[-1]:.1%} at most")
    return 0 if worst >= given.share else 1


if __name__ == "__main__":
    sys.exit(main())
