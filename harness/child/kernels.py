"""Kernel proof beside an answer: which module and op ran, for which layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.engines.base import EngineFacts
from harness.spec import Answer


def with_kernels(answer: Answer, facts: EngineFacts | None) -> Answer:
    """The answer with the engine's facts beside it: how many layers run on each kernel, and which. Unchanged without a model."""
    if facts is None:
        return answer
    layers: dict[str, list[str]] = {}
    for layer in facts.kernels:
        layers.setdefault(f"{layer.module} · {layer.op} · {layer.stored_dtype}", []).append(layer.layer)
    engine = {
        "name": facts.engine,
        "device": facts.device,
        "kernels": {kernel: len(names) for kernel, names in layers.items()},
        "layers": {kernel: gathered(names) for kernel, names in layers.items()},
        "notes": list(facts.notes),
    }
    return Answer(measurements=answer.measurements, facts={**answer.facts, "engine": engine})


def gathered(names: Sequence[str]) -> list[str]:
    """Layers whose names differ in one number as one entry, numbers in ranges: `model.layers.0-5,7.mlp.up_proj`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        before, after = (name, "") if number is None else (name[: number.start()], name[number.end() :])
        groups.setdefault((before, after), []).extend([] if number is None else [int(number.group())])
    entries = [f"{before}{_ranges(sorted(set(numbers)))}{after}" for (before, after), numbers in groups.items()]
    return entries if len(entries) == len(names) else gathered(entries)


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
