"""Fails unless the report exists, every planned number of a finished run is there (simulated cells show no cost), and the
numbers make sense: the baseline equals itself, 8 bits lose next to nothing, calibration helps at 3 bits."""

from __future__ import annotations

import sys
from pathlib import Path

from harness import store

NOT_WHEN_SIMULATED = {"memory", "latency"}


def main(results: Path, report: Path) -> int:
    run = store.read(results)
    outcomes = {(r.cell.label, r.question.probe, r.question.subject): r for r in run.records}
    problems = [] if run.ended else ["the run has no end line"]
    if not report.is_file() or report.stat().st_size < 100_000:
        problems.append(f"{report} is missing or too small to be a report")
    numbers = 0
    cells = run.plan.cells
    for planned in cells:
        label = planned.cell.label
        for question in planned.questions:
            record = outcomes.get((label, question.probe, question.subject))
            what = f"{label}: {question.probe} {question.subject}".strip()
            if record is None:
                problems.append(f"{what}: not run")
            elif record.failure is not None:
                simulated = record.failure.kind == "unsupported" and "simulated" in record.failure.message
                if not (simulated and question.probe in NOT_WHEN_SIMULATED):
                    problems.append(f"{what}: {record.failure.kind}: {record.failure.message}")
            elif record.answer is None or not record.answer.measurements:
                problems.append(f"{what}: no number")
            else:
                numbers += len(record.answer.measurements)
    problems += senseless(run)
    print(f"{len(cells)} cells, {numbers} numbers, {len(problems)} problems")
    print("\n".join(problems))
    return 1 if problems else 0


def senseless(run: store.Run) -> list[str]:
    """What contradicts how quantization works, whatever the machine."""
    values = {
        (r.cell.method, r.cell.bits, m.metric): m
        for r in run.records
        if r.answer is not None and r.question.probe in {"perplexity", "divergence"}
        for m in r.answer.measurements
    }
    problems = []
    itself = values["bf16", 16, "kl_mean"]
    if itself.value != 0:
        problems.append(f"the baseline diverges from itself: {itself.value}")
    floor = values["bf16", 16, "kl_floor"].value
    for method in ("rtn", "gptq", "awq", "hqq", "bnb"):
        if not values[method, 8, "kl_mean"].value < 10 * floor:
            problems.append(
                f"{method} at 8 bits diverges by {values[method, 8, 'kl_mean'].value}, ten times the noise floor {floor}"
            )
    if not values["gptq", 3, "perplexity"].value < values["rtn", 3, "perplexity"].value:
        problems.append("gptq is no better than rtn at 3 bits")
    return problems


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
