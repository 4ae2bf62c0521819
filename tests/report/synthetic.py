"""A synthetic run as the pipeline would store it: seeded numbers of realistic shape, never measured, for tests of the report.

22 planned cells of one model (three unquantized, five methods at up to four bit widths) on one corpus and six tasks. Some cells
fail, one is simulated, some questions are not yet answered, some squares are unsupported. Item-level samples are drawn
with a shared difficulty per item, so that paired statistics see what they see in real data.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from harness import store
from harness.metrics import METRICS
from harness.spec import (
    Answer,
    Cell,
    Failure,
    Measurement,
    Model,
    Phase,
    PlannedCellRecord,
    PlanRecord,
    Question,
    Record,
    RunContext,
    RunHeader,
    Scheme,
    UnsupportedRecord,
    digest,
)
from tests.squares import square

TASKS = (
    "reference_facts",
    "reference_tracking",
    "reference_agreement",
    "reference_compare",
    "reference_recall",
    "reference_sums",
)
CHANCE = {"reference_facts": 0.25, "reference_tracking": 0.25, "reference_agreement": 0.5, "reference_compare": 0.5}
ITEMS, WINDOWS, TOKENS = 500, 60, 256
PARAMETERS, EMBEDDING = 12_600_000, 2_100_000
VOCABULARY, HIDDEN = 16_384, 128

METHODS: dict[str, tuple[int, ...]] = {"rtn": (8, 4, 3, 2), "gptq": (8, 4, 3, 2), "awq": (8, 4, 3, 2), "hqq": (8, 4, 3, 2)}
DAMAGE = {"rtn": 1.0, "gptq": 0.45, "awq": 0.6, "hqq": 0.8, "bnb": 0.7, "inc": 0.9}
LOSS = {8: 0.0006, 4: 0.035, 3: 0.2, 2: 1.6}  # nats per token of plain rounding

Edit = Callable[[Record], Record | None]


def cells(model: Model) -> list[Cell]:
    schemes = {name: Scheme(method=name, bits=bits) for name, bits in (("bf16", 16), ("fp32", 32), ("fp16", 16))}
    for method, widths in METHODS.items():
        schemes |= {f"{method} {b}-bit g64": Scheme(method=method, bits=b, options={"group_size": 64}) for b in widths}
    schemes |= {"bnb 8-bit int8": Scheme(method="bnb", bits=8), "bnb 4-bit nf4": Scheme(method="bnb", bits=4)}
    schemes |= {"inc 4-bit g64": Scheme(method="inc", bits=4, options={"group_size": 64})}
    return [square(scheme, model=model, label=label) for label, scheme in schemes.items()]


def questions() -> list[Question]:
    return [
        Question(probe="quantize", subject=""),
        Question(probe="size", subject=""),
        Question(probe="perplexity", subject="reference", options={"window": TOKENS}),
        Question(probe="divergence", subject="reference", options={"window": TOKENS}),
        *(Question(probe="tasks", subject=t, options={"shots": 0, "limit": ITEMS}) for t in TASKS),
        Question(probe="memory", subject="512+64 x1", options={"prompt": 512, "new": 64, "batch": 1}),
        *(Question(probe="latency", subject=f"pp{p} tg64 b1", options={"prompt": p, "new": 64, "batch": 1}) for p in (128, 512)),
    ]


def write(
    folder: Path,
    *,
    seed: int = 0,
    models: Iterable[str] = ("reference",),
    edit: Edit | None = None,
    shuffle: int | None = None,
    small: bool = False,
) -> Path:
    """Writes results into `folder` and returns the run file. `edit` changes or drops (None) a record before it is stored;
    `shuffle` stores the same records in another order; `small` asks few items and windows, where only the form matters."""
    with mock.patch("os.fsync"):  # nothing here must outlive a power cut
        return _write(folder, seed, models, edit, shuffle, (40, 8) if small else (ITEMS, WINDOWS))


def _write(
    folder: Path, seed: int, models: Iterable[str], edit: Edit | None, shuffle: int | None, sizes: tuple[int, int]
) -> Path:
    planned, unsupported, records = [], [], []
    builder = _Builder(folder, seed, *sizes)
    for name in models:
        model = Model(name=name, path="harness/reference/model")
        for cell in cells(model):
            asked = questions()
            planned.append(PlannedCellRecord(cell=cell, questions=tuple(asked), baseline=cell.method == "bf16"))
            records += [r for q in asked if (r := builder.record(cell, q)) is not None]
        for bits in (3, 2):
            cell = square(Scheme(method="bnb", bits=bits), model=model)
            unsupported.append(UnsupportedRecord(cell=cell, reason=f"bnb does not offer {bits} bits (it offers 8, 4)"))
    if edit is not None:
        records = [kept for r in records if (kept := edit(r)) is not None]
    if shuffle is not None:
        random.Random(shuffle).shuffle(records)
    path = folder / "20261121T040000Z-synthetic.jsonl"
    with store.Writer(path, HEADER) as writer:
        writer.plan(
            PlanRecord(
                suite={"name": "quick", "title": "Synthetic numbers: never measured", "models": list(models), "seed": seed},
                baseline="bf16",
                cells=tuple(planned),
                unsupported=tuple(unsupported),
                commands=("quant-harness run quick.yaml",),
            )
        )
        for record in records:
            writer.record(record)
        writer.end(ended_at="2026-11-21T05:00:00Z", questions=sum(len(p.questions) for p in planned))
    return path


HEADER = RunHeader(
    run="20261121T040000Z-synthetic",
    started_at="2026-11-21T04:00:00Z",
    context=RunContext(
        host="0123456789ab",
        python="3.11.2",
        packages_digest="d" * 64,
        harness="0.1.0",
        commit="0123456789abcdef0123456789abcdef01234567",
        source="f" * 64,
        device="cpu",
        threads=2,
        machine={
            "cpu": "Synthetic CPU @ 2.0 GHz",
            "cores": 2,
            "cores_usable": 2,
            "cpu_flags": ["avx2", "avx512f"],
            "memory_bytes": 17_179_869_184,
            "gpus": [],
            "system": "Linux",
            "kernel": "6.1.0",
            "architecture": "x86_64",
            "python": "3.11.2",
            "governor": None,
        },
        packages={
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "lm-eval": "0.4.13",
            "gptqmodel": "7.6.0",
            "hqq": "0.2.8.post1",
        },
    ),
    context_digest="c" * 64,
)


class _Builder:
    """Draws the answers of one run; item difficulties and the baseline's token losses are shared by all cells."""

    def __init__(self, folder: Path, seed: int, items: int, windows: int) -> None:
        self.folder = folder
        self.seed = seed
        self.items = items
        self.windows = windows
        rng = np.random.default_rng(seed)
        self.base_nll = rng.gamma(1.2, 1.6, size=(windows, TOKENS - 1)) * rng.uniform(0.85, 1.15, size=(windows, 1))
        self.ease = {t: rng.normal(1.6, 1.3, size=items) for t in TASKS}

    def rng(self, *parts: object) -> np.random.Generator:
        key = hashlib.sha256(repr((self.seed, *parts)).encode()).digest()
        return np.random.default_rng(int.from_bytes(key[:8], "big"))

    def record(self, cell: Cell, question: Question) -> Record | None:
        outcome = self.answer(cell, question)
        if outcome is None:
            return None
        failed = isinstance(outcome, Failure)
        return Record(
            key=digest({"cell": cell, "question": question}),
            context="c" * 64,
            cell=cell,
            question=question,
            probe_version="1",
            answer=None if isinstance(outcome, Failure) else outcome,
            failure=outcome if isinstance(outcome, Failure) else None,
            simulated=cell.method == "inc",
            phases=() if failed else (Phase(name=question.probe, seconds=1.5, peak_bytes={}),),
            environment="e" * 64,
            started_at="2026-11-21T04:00:01Z",
            seconds=1.5,
        )

    def answer(self, cell: Cell, question: Question) -> Answer | Failure | None:
        method, bits = cell.method, cell.bits
        if (method, bits) == ("awq", 2):
            return Failure(
                kind="oom",
                phase="quantize",
                message="the kernel killed the quantizing child: it needed more than the 15.2 GB that were free",
                log_tail="quantizing model.layers.3.mlp.down_proj\nquantizing model.layers.4.self_attn.q_proj\nKilled\n",
            )
        if (method, bits) == ("hqq", 3) and question.subject == "reference_sums":
            return Failure(kind="timeout", phase="measure", message="no answer within 3600 s", log_tail="0%|   | 0/500\n")
        if (method, bits) == ("hqq", 2) and question.probe in {"memory", "latency"}:
            return None  # the run was stopped here
        if (method, bits) == ("inc", 4) and question.probe in {"memory", "latency"}:
            return Failure(
                kind="unsupported",
                phase="measure",
                message="simulated: the weights are held dequantized to 16 bits, so memory and speed are not those of the scheme",
            )
        answer: Answer | None = getattr(self, f"_{question.probe}")(cell, question)
        return answer

    def loss(self, cell: Cell) -> float:
        bits = cell.bits
        return 0.0 if bits >= 16 else LOSS[int(bits)] * DAMAGE[cell.method]

    def bpw(self, cell: Cell) -> float:
        bits = cell.bits
        return float(bits) if bits >= 16 else bits + (16 + (0 if cell.method == "rtn" else bits)) / 64

    def nll(self, cell: Cell) -> Any:
        if cell.method == "bf16":
            return self.base_nll.astype(np.float32)
        rng, loss = self.rng("nll", cell.name), self.loss(cell)
        return (self.base_nll + rng.normal(loss, 0.01 + math.sqrt(loss) * 0.5, size=self.base_nll.shape)).astype(np.float32)

    def _quantize(self, cell: Cell, question: Question) -> Answer:
        seconds = {"gptq": 24.0, "awq": 61.0}.get(cell.method, 1.2)
        return Answer(measurements=(_m("quantize_seconds", seconds),))

    def _size(self, cell: Cell, question: Question) -> Answer:
        bpw = self.bpw(cell)
        linear = PARAMETERS - EMBEDDING
        bits = bpw * linear + EMBEDDING * (32 if cell.bits == 32 else 16)
        return Answer(
            measurements=(
                _m("nominal_bits", float(cell.bits)),
                _m("bpw_quantized", bpw),
                _m("bpw_model", bits / PARAMETERS),
                _m("file_bytes", bits / 8 + 40_000),
            )
        )

    def _perplexity(self, cell: Cell, question: Question) -> Answer:
        nll = self.nll(cell)
        mean, spread = float(nll.mean()), float(nll.mean(axis=1).std() / math.sqrt(self.windows)) * 1.96
        blob = self.npy(nll)
        values = (math.exp(mean), math.exp(mean - spread), math.exp(mean + spread))
        return Answer(measurements=(_m("perplexity", *values, nll.size, blob, f"gptq-{TOKENS}"),))

    def _divergence(self, cell: Cell, question: Question) -> Answer:
        rng = self.rng("kl", cell.name)
        scale = 0.0 if cell.method == "bf16" else 0.0002 + self.loss(cell) * 0.9
        kl = (rng.gamma(0.4, 2.5, size=self.base_nll.shape) * scale).astype(np.float32)
        error = float(kl.mean(axis=1).std() / math.sqrt(self.windows)) * 1.96
        mean, same = float(kl.mean()), math.exp(-3 * math.sqrt(scale) * 0.3)
        logits = kl.size * VOCABULARY * 2
        reference = {
            "kind": "final hidden states",
            "dtype": "bfloat16",
            "states_bytes": logits * HIDDEN // VOCABULARY,
            "head_bytes": VOCABULARY * HIDDEN * 2,
            "float16_logit_bytes": logits,
        }
        return Answer(
            facts={"stored_baseline": reference},
            measurements=(
                _m("kl_mean", mean, max(0.0, mean - error), mean + error, kl.size, self.npy(kl)),
                _m("kl_p99", float(np.quantile(kl, 0.99)), None, None, kl.size),
                *([_m("kl_floor", 2e-5, 1.8e-5, 2.2e-5, 16384)] if cell.method == "bf16" else []),
                _m("same_top", same, same - 0.002, min(1.0, same + 0.002), kl.size),
            ),
        )

    def _tasks(self, cell: Cell, question: Question) -> Answer:
        task = question.subject
        noise = 0.0 if cell.method == "bf16" else 0.12 + 0.9 * math.sqrt(self.loss(cell))
        shift = 2.0 * self.loss(cell)
        rng = self.rng("items", cell.name, task)
        chance = CHANCE.get(task, 0.02)
        lucky = self.rng("luck", task).uniform(size=self.items) < chance
        correct = (self.ease[task] - shift + noise * rng.normal(size=self.items) > -0.4) | lucky
        items = [{"id": f"{task}-{i}", "correct": bool(c)} for i, c in enumerate(correct)]
        blob = store.add_blob(self.folder, json.dumps({"items": items}).encode(), "json")
        p = float(correct.mean())
        error = 1.96 * math.sqrt(p * (1 - p) / self.items)
        return Answer(
            measurements=(
                _m("accuracy", p, max(0.0, p - error), min(1.0, p + error), self.items, blob, f"lm-eval {task} v1 acc, 0-shot"),
            )
        )

    def _memory(self, cell: Cell, question: Question) -> Answer:
        peak = self.bpw(cell) * PARAMETERS / 8 * 1.1 + 31e6 + self.rng("memory", cell.name).uniform(0, 4e5)
        cache, weights = 1.2e6, self.bpw(cell) * PARAMETERS / 8
        parts = {
            "peak_decode_bytes": peak,
            "peak_host_bytes": peak * 1.03,
            "weight_bytes_resident": weights,
            "kv_cache_bytes": cache,
        }
        return Answer(measurements=tuple(_m(name, float(round(value)), n=1) for name, value in parts.items()))

    def _latency(self, cell: Cell, question: Question) -> Answer:
        slow = {"gptq": 1.4, "awq": 1.7, "hqq": 2.1, "bnb": 1.2}.get(cell.method, 1.0)
        tpot = slow * (2.2 + self.bpw(cell) * 0.11) / 1000 * self.rng("latency", cell.name).uniform(0.98, 1.02)
        ttft = tpot * question.options["prompt"] / 9
        raw = store.add_blob(self.folder, json.dumps({"ttft": [ttft], "tpot": [tpot], "cell": cell.name}).encode(), "json")
        return Answer(
            measurements=(
                _m("ttft", ttft, ttft * 0.98, ttft * 1.02, 20, raw),
                _m("tpot", tpot, tpot * 0.98, tpot * 1.02, 20, raw),
                _m("throughput", 1 / tpot, 0.98 / tpot, 1.02 / tpot, 20, raw),
            )
        )

    def npy(self, array: Any) -> str:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return store.add_blob(self.folder, buffer.getvalue(), "npy")


def _m(
    metric: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    blob: str | None = None,
    definition: str | None = None,
) -> Measurement:
    row = METRICS[metric]
    return Measurement(
        metric=metric, value=value, definition=definition or row.definition, unit=row.unit, low=low, high=high, n=n, blob=blob
    )
