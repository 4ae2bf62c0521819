"""The real path of every method in child processes: some quantize all cells, fresh ones reload them all.

``python -m tests.methods.cells quantize|reload FOLDER PART PARTS`` works on every PARTS-th cell of FOLDER/source and writes
FOLDER/<stage>-<part>.json. Many cells share a child because importing the libraries takes longer than a cell.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import envs
from harness.methods import METHODS, prequantized, reload
from harness.methods.base import LoadRequest, QuantizeRequest, resolve_options
from harness.spec import Given, Model, Quantized, Running, Scheme

EVERY = ("rtn", "gptq", "awq", "autoround", "hqq", "bitnet", "bnb", "torchao", "quanto")
QUICK: dict[str, dict[str, Any]] = {"autoround": {"iters": 4}}

CELLS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "fp32": ("fp32", 32, {}),
    "bf16": ("bf16", 16, {}),
    "fp16": ("fp16", 16, {}),
    **{f"{name}-{bits:g}": (name, bits, QUICK.get(name, {})) for name in EVERY for bits in METHODS[name].bits},
    "rtn-4 zero": ("rtn", 4, {"sym": False, "group_size": 32}),
    "gptq-2 zero": ("gptq", 2, {"sym": False, "group_size": 32}),
    "gptq-3 sorted": ("gptq", 3, {"act_order": "sorted", "true_sequential": False}),
    "gptq-4 gptaq": ("gptq", 4, {"act_order": "none", "gptaq": True, "mse": 2.4}),
    "awq-4 sym": ("awq", 4, {"sym": True, "group_size": 64}),
    "autoround-4 searched": ("autoround", 4, {"iters": 0}),
    "autoround-3 plain": ("autoround", 3, {"iters": 0, "opt_rtn": False, "group_size": 32}),
    "hqq-4 axis0": ("hqq", 4, {"axis": 0}),
    "bnb-4 fp4": ("bnb", 4, {"type": "fp4"}),
    "bnb-4 double": ("bnb", 4, {"double_quant": True}),
    "torchao-8 intx": ("torchao", 8, {"type": "intx"}),
    "torchao-8 groups": ("torchao", 8, {"group_size": 32}),
    "torchao-8 dynamic": ("torchao", 8, {"type": "dynamic"}),
    "torchao-8 float": ("torchao", 8, {"type": "float"}),
    "torchao-4 intx": ("torchao", 4, {"type": "intx", "group_size": -1}),
    "torchao-4 search": ("torchao", 4, {"scale_search": True, "group_size": 32}),
    "torchao-2 search": ("torchao", 2, {"scale_search": True, "group_size": 32}),
    "quanto-8 float": ("quanto", 8, {"type": "float"}),
    "quanto-4 g32": ("quanto", 4, {"group_size": 32}),
    "quanto-2 hqq": ("quanto", 2, {"optimizer": "hqq", "group_size": 32}),
}
DAMAGED = {
    "rtn-4": "scales",
    "awq-3": "qweight",
    "autoround-2": "scales",
    "hqq-2": "zero",
    "bitnet-1.58": "weight",
    "bnb-4": "absmax",
    "torchao-4": "scale_and_zero",
    "quanto-4": "shift",
}
LIBRARY = ("gptq-4", "hqq-4", "autoround-4", "bnb-4", *(f"torchao-{bits}" for bits in (8, 4, 2)), "torchao-8 dynamic")
LIBRARY += ("quanto-8", "quanto-8 float", "quanto-4")
"""Cells that are compared with the library's own path. (quanto's 2 bits need a C++ compiler on that path.)"""
GIVEN = ("gptq-4", "gptq-3 sorted", "awq-4", "bnb-8", "bnb-4")
ROWS = [[3 + (7 * i * i + 11 * row) % 500 for i in range(64)] for row in range(8)]


def absent(cell: str) -> str | None:
    """What a cell's method lacks here and how to add it, or None."""
    lacking = envs.missing(METHODS[CELLS[cell][0]])
    return None if lacking is None else f"{', '.join(lacking.packages)} not installed; add with: {lacking.install}"


def here(cells: Iterable[str]) -> list[str]:
    return [cell for cell in cells if absent(cell) is None]


RUNNING = Running(engine="transformers")


def scheme(cell: str) -> Scheme:
    name, bits, options = CELLS[cell]
    return Scheme(method=name, bits=float(bits), options=resolve_options(METHODS[name], options, float(bits)))


def quantize(folder: Path, mine: slice) -> dict[str, Any]:
    outcomes: dict[str, Any] = {}
    for cell in here(CELLS)[mine]:
        method = METHODS[CELLS[cell][0]]
        out = folder / "artifacts" / cell
        out.mkdir(parents=True)
        try:
            method.quantize(
                QuantizeRequest(
                    model_dir=folder / "source",
                    out_dir=out,
                    origin=Quantized(scheme=scheme(cell)),
                    calibration=ROWS if method.calibrated else None,
                    device="cpu",
                    seed=0,
                )
            )
            outcomes[cell] = "ok"
        except Exception:
            outcomes[cell] = traceback.format_exc()
    return outcomes


def load(folder: Path, cell: str, artifact: Path) -> Any:
    request = LoadRequest(
        artifact_dir=artifact, model_dir=folder / "source", origin=Quantized(scheme=scheme(cell)), running=RUNNING, device="cpu"
    )
    return METHODS[CELLS[cell][0]].load(request)


def damage(folder: Path, cell: str, suffix: str) -> Path:
    """A copy of an artifact whose tensors ending in `suffix` are moved on by one place: still a valid file."""
    from safetensors.torch import load_file, save_file

    copy = folder / "damaged" / cell
    shutil.copytree(folder / "artifacts" / cell, copy)
    state = load_file(copy / "model.safetensors")
    found = {
        name: tensor.flatten().roll(1).view(tensor.shape) if name.endswith(suffix) else tensor for name, tensor in state.items()
    }
    assert any(name.endswith(suffix) for name in state)
    save_file(found, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def given_as_it_is(folder: Path, cell: str) -> Path:
    """The artifact of a cell as what it is too: a checkpoint that is quantized already. Returns the links to it."""
    artifact, out = folder / "artifacts" / cell, folder / "given" / cell
    out.mkdir(parents=True)
    found = prequantized.scheme(json.loads((artifact / "config.json").read_text()))
    METHODS["prequantized"].quantize(
        QuantizeRequest(
            model_dir=artifact,
            out_dir=out,
            origin=Given(scheme=found, checkpoint=Model(name="given")),
            calibration=None,
            device="cpu",
            seed=0,
        )
    )
    return out


def reload_all(folder: Path, mine: slice) -> dict[str, Any]:
    import torch

    from harness.engines.transformers import Transformers

    ids = torch.tensor(ROWS)
    tokenizer: Any = None  # windows of token ids need none
    outcomes: dict[str, Any] = {}
    with torch.inference_mode():
        unquantized = load(folder, "fp32", folder / "artifacts" / "fp32")
        exact = torch.log_softmax(unquantized(input_ids=ids, use_cache=False).logits, dim=-1)
    for cell in here(CELLS)[mine]:
        artifact = folder / "artifacts" / cell
        try:
            model = load(folder, cell, artifact)
            with torch.inference_mode():
                answers = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), dim=-1)
            nll = [float(v) for scores in Transformers(model, tokenizer).score_windows(ROWS, None) for v in scores.nll]
            outcomes[cell] = {
                "perplexity": math.exp(sum(nll) / len(nll)),
                "check": reload.check(model, artifact),
                "divergence": float((exact.exp() * (exact - answers)).sum(-1).mean()),
                "dtype": str(model.dtype),
                "training": model.training,
                "kernels": [
                    (k.layer, k.module, k.op, k.stored_dtype, k.dequantized) for k in METHODS[CELLS[cell][0]].kernels(model)
                ],
            }
        except Exception:
            outcomes[cell] = {"error": traceback.format_exc()}
    for cell in here(DAMAGED)[mine]:
        copy = damage(folder, cell, DAMAGED[cell])
        outcomes[f"damaged {cell}"] = reload.check(load(folder, cell, copy), copy)
    for cell in here(GIVEN)[mine]:
        out = given_as_it_is(folder, cell)
        found = prequantized.scheme(json.loads((out / "config.json").read_text()))
        request = LoadRequest(artifact_dir=out, model_dir=out, origin=Quantized(scheme=found), running=RUNNING, device="cpu")
        model = METHODS["prequantized"].load(request)
        with torch.inference_mode():
            answers = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), dim=-1)
        own = load(folder, cell, folder / "artifacts" / cell)
        with torch.inference_mode():
            expected = torch.log_softmax(own(input_ids=ids, use_cache=False).logits.float(), dim=-1)
        outcomes[f"given {cell}"] = {
            "label": prequantized.label("prequantized", found),
            "check": reload.check(model, out),
            "reference": json.loads((out / reload.FILE).read_text()).get("by"),
            "same": torch.equal(answers, expected),
            "links": sorted(p.name for p in out.iterdir() if p.is_symlink()),
            "bits": sum(t.bits for t in METHODS["prequantized"].ledger(out, found) if t.role != "other"),
            "kernels": METHODS["prequantized"].kernels(model) == METHODS[CELLS[cell][0]].kernels(own),
        }
    return outcomes


def main(stage: str, folder: Path, part: int, parts: int) -> None:
    import torch

    torch.set_num_threads(1)
    mine = slice(part, None, parts)
    outcomes = quantize(folder, mine) if stage == "quantize" else reload_all(folder, mine)
    (folder / f"{stage}-{part}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
