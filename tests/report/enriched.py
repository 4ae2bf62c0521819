"""The synthetic run with what only some tests need: percentiles, a noise floor, texts of items and tokens, phases of memory,
kernels, stored widths, weight errors, notes and costs. Never measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness import store
from harness.costs import CellCost, CellForecast, Expected, PieceCost
from harness.metrics import METRICS
from harness.spec import Answer, Measurement, Record
from tests.report import synthetic

KERNEL = "TorchLinear · aten::int4 · int32"


def read(folder: Path, *, small: bool = True, models: tuple[str, ...] = ("reference",)) -> store.Run:
    """A stored run as `synthetic.write` makes it, with more in it."""
    run = store.read(synthetic.write(folder, edit=_editor(folder), small=small, models=models))
    return dataclasses.replace(run, costs=tuple(_cost(p.cell, p.baseline) for p in run.plan.cells))


def _editor(folder: Path) -> Callable[[Record], Record]:
    def edit(record: Record) -> Record:
        answer, more = record.answer, _MORE.get(record.question.probe)
        if answer is None or more is None:
            return record
        return dataclasses.replace(record, answer=more(folder, record, answer))

    return edit


def _add(answer: Answer, facts: dict[str, Any], **values: float) -> Answer:
    added = [_measurement(name, value) for name, value in values.items()]
    return Answer(measurements=(*answer.measurements, *added), facts={**answer.facts, **facts})


def _measurement(name: str, value: float, blob: str | None = None) -> Measurement:
    return Measurement(metric=name, value=value, definition=METRICS[name].definition, unit=METRICS[name].unit, n=2040, blob=blob)


def _divergence(folder: Path, record: Record, answer: Answer) -> Answer:
    mean = answer.measurements[0].value
    values = {
        "kl_median": mean / 9,
        "kl_p90": mean * 3,
        "kl_p95": mean * 5,
        "kl_confidence_25_50": mean * 2,
        "kl_confidence_95_100": mean / 5,
    }
    if record.cell.method == "bf16":
        noise = np.random.default_rng(7).gamma(0.4, 5e-5, size=(8, 255)).astype(np.float32)
        name = store.add_blob(folder, _npy(noise), "npy")
        kept = tuple(dataclasses.replace(m, blob=name) if m.metric == "kl_floor" else m for m in answer.measurements)
        return _add(dataclasses.replace(answer, measurements=kept), {}, **values)
    tokens = [
        {"before": f"the capital of {record.cell.label} is", "token": " Paris", "after": " now", "kl": mean * 40, "base_top": 0.9,
         "same_guess": False, "p_base": 0.87, "p": 0.02, "window": 0, "position": 5}
    ]  # fmt: skip
    blob = store.add_blob(folder, json.dumps({"tokens": tokens}).encode(), "json")
    more = _add(answer, {}, **values)
    return dataclasses.replace(more, measurements=(*more.measurements, _measurement("kl_max", mean * 40, blob)))


def _npy(array: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _tasks(folder: Path, record: Record, answer: Answer) -> Answer:
    """The baseline's items get their texts."""
    if record.cell.method != "bf16":
        return answer
    first = answer.measurements[0]
    rows = json.loads(store.blob_path(folder, str(first.blob)).read_bytes())["items"]
    for number, row in enumerate(rows):
        text = {"prompt": f"Question {number} of {record.question.subject}?", "choices": [" yes", " no"]}
        row |= {"doc": number, "gold": number % 2, "text": text}
    blob = store.add_blob(folder, json.dumps({"items": rows}).encode(), "json")
    return dataclasses.replace(answer, measurements=(dataclasses.replace(first, blob=blob), *answer.measurements[1:]))


def _memory(folder: Path, record: Record, answer: Answer) -> Answer:
    values = {m.metric: m.value for m in answer.measurements}
    peak, parts = values["peak_decode_bytes"], values["weight_bytes_resident"] + values["kv_cache_bytes"]
    return _add(answer, {}, rest_bytes=peak - parts, peak_load_bytes=peak * 0.9, peak_prefill_bytes=peak * 1.2)


def _latency(folder: Path, record: Record, answer: Answer) -> Answer:
    share = 10 + int(record.cell.bits) + len(record.cell.label)
    notes = [f"not alone: other processes used {share}% of all CPU time while this was timed"]
    return _add(answer, {"notes": notes}, roofline_share=0.31, tpot_ratio=0.8)


def _perplexity(folder: Path, record: Record, answer: Answer) -> Answer:
    engine = {
        "name": "transformers",
        "kernels": {KERNEL: 42},
        "layers": {KERNEL: ["model.layers.0-5.mlp.up_proj"]},
        "notes": ["one note"],
    }
    return _add(answer, {"engine": engine})


def _size(folder: Path, record: Record, answer: Answer) -> Answer:
    parts = {f"{record.cell.bits:.1f}": {"layers": 35, "parameters": 900}}
    if record.cell.method == "hqq":
        parts["9.0"] = {"layers": 7, "parameters": 100}
    return _add(answer, {"parts": parts})


def _quantize(folder: Path, record: Record, answer: Answer) -> Answer:
    """rtn and gptq say how far each layer's weight moved; gptq of its outputs, too."""
    if record.cell.method not in ("rtn", "gptq"):
        return answer
    relative = 2.0 ** -float(record.cell.bits)
    rows = [
        {
            "layer": f"model.layers.{number}.mlp.up_proj",
            "relative": relative * (1 + number),
            "output": 7.0 - number if record.cell.method == "gptq" else None,
        }
        for number in range(3)
    ]
    blob = store.add_blob(folder, json.dumps({"layers": rows}).encode(), "json")
    return dataclasses.replace(answer, measurements=(*answer.measurements, _measurement("weight_error", relative * 2, blob)))


_MORE: dict[str, Callable[[Path, Record, Answer], Answer]] = {
    "divergence": _divergence,
    "tasks": _tasks,
    "memory": _memory,
    "latency": _latency,
    "perplexity": _perplexity,
    "size": _size,
    "quantize": _quantize,
}


def _cost(cell: Any, baseline: bool) -> CellCost:
    pieces = tuple(
        PieceCost(what=what, subject="", seconds=s, model_seconds=s) for what, s in (("quantize", 1.5), ("tasks", 60.0))
    )
    expected = CellForecast(seconds=Expected(low=30.0, high=90.0, source="same"))
    return CellCost(
        cell=cell, baseline=baseline, started_at="2026-11-21T04:00:01Z", seconds=70.0, pieces=pieces, questions="q", whole=True,
        expected=expected,
    )  # fmt: skip
