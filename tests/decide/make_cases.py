"""Random cells and limits with the oracle's answers: `python -m tests.decide.make_cases` writes tests/decide/cases.jsonl.gz.

Numbers are drawn from few values, so that ties, limits met exactly and numbers that are missing are common.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from tests.decide.oracle import oracle

PATH = Path(__file__).parent / "cases.jsonl.gz"
COUNT = 1200
SEED = 15

Data = dict[str, Any]


def case(rng: random.Random) -> Data:
    cells: list[Data] = []
    for model in rng.choice([["m"], ["m"], ["m"], ["m", "n"], ["n", "m"], []]):
        shapes = rng.sample([(128, 64, 1), (512, 64, 1), (512, 64, 4), (1024, 64, 1), (512, 512, 4)], rng.randint(0, 3))
        count = rng.randint(1, 8)
        cells += [_cell(rng, model, len(cells) + i, shapes, baseline=i == 0 and rng.random() < 0.9) for i in range(count)]
    for model in ("m", "n"):
        mine = [c for c in cells if c["model"] == model]
        for kind in ("pp", "recovery", "kl"):
            for a in mine:
                for b in mine[: mine.index(a)]:
                    if rng.random() < 0.3:
                        a["alike"][kind].append(b["id"])
                        b["alike"][kind].append(a["id"])
    rng.shuffle(cells) if rng.random() < 0.2 else None
    limits = _limits(rng)
    return {"cells": cells, "limits": limits, "answer": oracle(cells, limits)}


def _cell(rng: random.Random, model: str, index: int, shapes: list[tuple[int, int, int]], *, baseline: bool) -> Data:
    bits = 16 if baseline else rng.choice([8, 4, 4, 3, 2.5])
    method = "bf16" if baseline else rng.choice(["gptq", "awq", "rtn"])
    hard = "not run: planned, no outcome stored yet"
    size = None if rng.random() < 0.08 else rng.choice([1.0, 2.0, 2.0, 3.5, 4.0, 4.0, 8.0]) * 1e9
    return {
        "id": f"c{index}",
        "label": f"{method} {bits:g}-bit {rng.choice(['g64', 'g128', '<b>&', 'é “x”'])}",
        "model": model,
        "method": method,
        "bits": bits,
        "baseline": baseline,
        "simulated": not baseline and rng.random() < 0.12,
        "size": _number(size, None, None, hard),
        "memory": _memory(rng),
        "speeds": [_speed(rng, *shape) for shape in shapes],
        "losses": {kind: _loss(rng, kind, baseline) for kind in ("pp", "recovery", "kl") if rng.random() < 0.95},
        "alike": {kind: [] for kind in ("pp", "recovery", "kl")},
    }


def _number(value: float | None, low: float | None, high: float | None, reason: str) -> Data:
    if value is None:
        return {"value": None, "low": None, "high": None, "reason": reason}
    return {"value": value, "low": low, "high": high, "reason": ""}


def _memory(rng: random.Random) -> Data:
    empty: Data = {
        "measured": None,
        "context": 0,
        "batch": 0,
        "load": 0.0,
        "fixed": 0.0,
        "cache": [],
        "derivable": "",
        "reason": "",
    }
    if rng.random() < 0.1:
        return {**empty, "reason": "oom: killed"}
    measured = rng.choice([2.0, 3.0, 3.0, 5.0]) * 1e9
    known = {**empty, "measured": measured, "context": 575, "batch": 1}
    if rng.random() < 0.15:
        return {**known, "derivable": "the run does not hold a shape of the model's cache"}
    cache = [{"bytes_per_token": rng.choice([65536.0, 131072.0, 36864.0]), "window": rng.choice([None, None, 512])}]
    cache += [{"bytes_per_token": 1024.0, "window": None}] if rng.random() < 0.3 else []
    load = rng.choice([0.0, measured, measured * 0.75])
    return {**known, "load": load, "fixed": measured * 0.9, "cache": cache}


def _speed(rng: random.Random, prompt: int, new: int, batch: int) -> Data:
    tpot = None if rng.random() < 0.1 else rng.choice([0.01, 0.02, 0.02, 0.025, 0.04])
    wide = rng.choice([None, 0.0, 0.05, 0.3])
    low, high = (None, None) if tpot is None or wide is None else (tpot * (1 - wide), tpot * (1 + wide))
    ttft = None if rng.random() < 0.1 else rng.choice([0.2, 0.5, 1.5])
    return {
        "prompt": prompt,
        "new": new,
        "batch": batch,
        "tpot": _number(tpot, low, high, "timeout: no answer"),
        "ttft": _number(ttft, None, None, "timeout: no answer"),
    }


def _loss(rng: random.Random, kind: str, baseline: bool) -> Data:
    unit, n = ("windows", rng.choice([1, 60])) if kind == "kl" else ("items", rng.choice([0, 40, 960, 3000]))
    if baseline:
        return {"value": 0.0, "limits": [0.0] * 4, "critical": [0.0] * 4, "n": n, "unit": unit, "reason": ""}
    nothing: Data = {"value": None, "limits": [None] * 4, "critical": [0.0] * 4, "n": 0, "unit": unit}
    if rng.random() < 0.08:
        return {**nothing, "reason": "a task has no answer"}
    scale = 0.01 if kind == "kl" else 1.0
    value = rng.choice([-0.2, 0.0, 0.1, 0.25, 0.25, 0.5, 1.0, 2.0]) * scale
    value = abs(value) if kind == "kl" else value
    width = rng.choice([0.0, 0.1, 0.25, 0.75, 3.0]) * scale
    critical = rng.choice([[1.6, 2.0, 2.3, 2.9], [0.84, 1.28, 1.64, 2.33]])
    limits = [None if n == 1 else value + width * c / 2 for c in critical]
    return {"value": value, "limits": limits, "critical": critical, "n": n, "unit": unit, "reason": ""}


def _limits(rng: random.Random) -> Data:
    def maybe(share: float, values: list[Any]) -> Any:
        return rng.choice(values) if rng.random() < share else None

    kind = rng.choice(["pp", "pp", "recovery", "kl"])
    return {
        "max_memory": maybe(0.5, [2e9, 3e9, 4e9, 6 * 2.0**30]),
        "context": maybe(0.5, [575, 1, 600, 1088, 4096, 131072]),
        "batch": maybe(0.4, [1, 4, 16]),
        "max_size": maybe(0.3, [1e9, 2e9, 4e9, 5e9]),
        "max_tpot": maybe(0.3, [0.02, 0.03]),
        "max_ttft": maybe(0.2, [0.5, 1.0]),
        "loss": kind,
        "max_loss": maybe(0.9, [0.0025, 0.005, 0.01] if kind == "kl" else [0.25, 0.5, 1.0, 2.0]),
        "confidence": rng.choice([0.8, 0.9, 0.95, 0.95, 0.99]),
        "prefer": rng.choice(["size", "speed", "quality"]),
        "models": maybe(0.15, [["m"], ["n"], ["m", "n"], []]),
        "methods": maybe(0.15, [["awq"], ["gptq", "awq"], []]),
        "bits": maybe(0.15, [[4], [8, 4], [2.5]]),
        "binary": rng.random() < 0.5,
    }


def text() -> str:
    """All cases, one JSON object a line."""
    rng = random.Random(SEED)
    return "".join(json.dumps(case(rng), separators=(",", ":"), ensure_ascii=False) + "\n" for _ in range(COUNT))


if __name__ == "__main__":
    PATH.write_bytes(gzip.compress(text().encode(), mtime=0))
