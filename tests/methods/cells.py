"""The real path of every method in two child processes: one quantizes all cells, a fresh one reloads them all.

``python -m tests.methods.cells quantize|reload FOLDER`` works on FOLDER/source and writes FOLDER/<stage>.json. Many cells share
a child because importing the libraries takes longer than a cell.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from harness.methods import METHODS, reload
from harness.methods.base import LoadRequest, QuantizeRequest, resolve_options
from harness.spec import Scheme

CELLS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "fp32": ("fp32", 32, {}),
    "bf16": ("bf16", 16, {}),
    "fp16": ("fp16", 16, {}),
    **{f"{name}-{bits:g}": (name, bits, {}) for name in ("rtn", "gptq", "awq", "hqq", "bnb") for bits in METHODS[name].bits},
    "rtn-4 zero": ("rtn", 4, {"sym": False, "group_size": 32}),
    "gptq-2 zero": ("gptq", 2, {"sym": False, "group_size": 32}),
    "gptq-3 sorted": ("gptq", 3, {"act_order": "sorted", "true_sequential": False}),
    "gptq-4 gptaq": ("gptq", 4, {"act_order": "none", "gptaq": True, "mse": 2.4}),
    "awq-4 sym": ("awq", 4, {"sym": True, "group_size": 64}),
    "hqq-4 axis0": ("hqq", 4, {"axis": 0}),
    "bnb-4 fp4": ("bnb", 4, {"type": "fp4"}),
    "bnb-4 double": ("bnb", 4, {"double_quant": True}),
}
ROWS = [[3 + (7 * i * i + 11 * row) % 500 for i in range(64)] for row in range(8)]


def scheme(cell: str) -> Scheme:
    name, bits, options = CELLS[cell]
    return Scheme(method=name, bits=float(bits), options=resolve_options(METHODS[name], options, float(bits)))


def quantize(folder: Path) -> dict[str, Any]:
    outcomes: dict[str, Any] = {}
    for cell in CELLS:
        method = METHODS[CELLS[cell][0]]
        out = folder / "artifacts" / cell
        out.mkdir(parents=True)
        try:
            method.quantize(
                QuantizeRequest(
                    model_dir=folder / "source",
                    out_dir=out,
                    scheme=scheme(cell),
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
    request = LoadRequest(artifact_dir=artifact, model_dir=folder / "source", scheme=scheme(cell), device="cpu")
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


def reload_all(folder: Path) -> dict[str, Any]:
    import torch

    ids = torch.tensor(ROWS)
    outcomes: dict[str, Any] = {}
    exact = None
    for cell in CELLS:
        artifact = folder / "artifacts" / cell
        try:
            model = load(folder, cell, artifact)
            with torch.inference_mode():
                answers = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), dim=-1)
            exact = answers if exact is None else exact
            outcomes[cell] = {
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
    for cell, suffix in (("rtn-4", "scales"), ("awq-3", "qweight"), ("hqq-2", "zero"), ("bnb-4", "absmax")):
        copy = damage(folder, cell, suffix)
        outcomes[f"damaged {cell}"] = reload.check(load(folder, cell, copy), copy)
    return outcomes


def main(stage: str, folder: Path) -> None:
    import torch

    torch.set_num_threads(2)
    outcomes = quantize(folder) if stage == "quantize" else reload_all(folder)
    (folder / f"{stage}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
