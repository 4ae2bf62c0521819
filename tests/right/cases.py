"""Small checkpoints with random weights, as people have them, and what a run of the harness says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from harness import store
from harness.engines import ENGINES
from harness.methods import METHODS
from harness.methods.base import LoadRequest, QuantizeRequest, resolve_options, running_of
from harness.run import runner
from harness.spec import Cell, Record, Scheme
from harness.suite.matrix import plan
from tests.squares import square
from tests.tiny_llama import llama, text, tokenizer

ROWS = [[3 + (7 * i * i + 11 * row) % 500 for i in range(64)] for row in range(8)]


def checkpoint(folder: Path, *, model: Any = None, dtype: torch.dtype = torch.bfloat16, words: Any = None) -> Path:
    """`model` (a tiny Llama by default) and a tokenizer saved as transformers saves them."""
    (llama() if model is None else model).to(dtype).save_pretrained(folder)
    (tokenizer() if words is None else words).save_pretrained(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None takes one out."""
    data = json.loads(path.read_text()) if path.is_file() else {}
    data = {key: value for key, value in {**data, **changes}.items() if value is not None}
    path.write_text(json.dumps(data))


def run(folder: Path, *, methods: str, models: str, extra: str = "") -> store.Run:
    """Plans and runs a suite whose baseline is bf16 on a text of this folder; results and cache lie in the folder too."""
    (folder / "text.txt").write_text(text(60))
    suite = folder / "right.yaml"
    head = f"name: right\nmodels: {models}\nbaseline: bf16\nmethods: {{bf16: , {methods}}}\n"
    corpora = "corpora: [{path: text.txt, window: 64}]\ncalibration: {corpus: reference, samples: 4, length: 32}\n"
    suite.write_text(head + corpora + (extra or "probes: [size, perplexity, divergence]\n"))
    settings = runner.Settings(results=folder / "results", cache=folder / "cache", threads=1)
    return store.read(runner.run(plan(suite, device="cpu"), settings))


def values(stored: store.Run, metric: str) -> dict[str, float]:
    """Of every cell that has the metric, by the cell's name."""
    return {
        r.cell.name: m.value for r in stored.records if r.answer is not None for m in r.answer.measurements if m.metric == metric
    }


def failures(stored: store.Run) -> list[Record]:
    return [r for r in stored.records if r.failure is not None]


def cell(name: str, bits: float, **options: Any) -> Cell:
    method = METHODS[name]
    scheme = Scheme(method=name, bits=bits, options=resolve_options(method, options, bits))
    return square(scheme, running=running_of(method, options, bits))


def quantized(source: Path, out: Path, asked: Cell) -> Path:
    """The artifact of a cell, made in this process."""
    out.mkdir(parents=True)
    method = METHODS[asked.method]
    rows = ROWS if method.calibrated else None
    request = QuantizeRequest(model_dir=source, out_dir=out, origin=asked.origin, calibration=rows, device="cpu", seed=0)
    method.quantize(request)
    return out


def loaded(source: Path, artifact: Path, asked: Cell) -> Any:
    """The artifact as the cell's engine loads it."""
    method = METHODS[asked.method]
    request = LoadRequest(artifact_dir=artifact, model_dir=source, origin=asked.origin, running=asked.running, device="cpu")
    return ENGINES[method.engine].load(method, request)
