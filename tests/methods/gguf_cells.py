"""The real path of every GGUF file type in two child processes: one quantizes, a fresh one reloads.

``python -m tests.methods.gguf_cells quantize|reload FOLDER`` works on FOLDER/source and writes FOLDER/<stage>.json.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from harness.formats import gguf_reader, gguf_types
from harness.methods import METHODS, gguf, reload
from harness.methods.base import LoadRequest, QuantizeRequest, resolve_options, running_of
from harness.spec import Quantized, Running, Scheme
from tests.methods.cells import ROWS

METHOD = METHODS["gguf"]
CELLS: dict[str, dict[str, Any]] = {
    **{name: {"type": name} for name in gguf_types.FILE_TYPES},
    "Q2_K matrix": {"type": "Q2_K", "imatrix": True},
    "Q3_K_S matrix": {"type": "Q3_K_S", "imatrix": True},
    "Q8_0 quantized cache": {"type": "Q8_0", "kv_cache": "q8_0"},
}


def scheme(cell: str) -> Scheme:
    bits = float(gguf_types.FILE_TYPES[CELLS[cell]["type"]][0])
    return Scheme(method="gguf", bits=bits, options=resolve_options(METHOD, CELLS[cell], bits))


def running(cell: str) -> Running:
    return running_of(METHOD, CELLS[cell], scheme(cell).bits)


def request(folder: Path, cell: str, out: Path) -> QuantizeRequest:
    return QuantizeRequest(
        model_dir=folder / "source", out_dir=out, origin=Quantized(scheme=scheme(cell)), calibration=ROWS, device="cpu", seed=0
    )


def quantize(folder: Path) -> dict[str, Any]:
    outcomes: dict[str, Any] = {}
    for cell in CELLS:
        out = folder / "artifacts" / cell
        out.mkdir(parents=True)
        try:
            METHOD.quantize(request(folder, cell, out))
            outcomes[cell] = "ok"
        except Exception:
            outcomes[cell] = traceback.format_exc()
    return outcomes


def load(folder: Path, cell: str, artifact: Path) -> Any:
    return METHOD.load(
        LoadRequest(
            artifact_dir=artifact,
            model_dir=folder / "source",
            origin=Quantized(scheme=scheme(cell)),
            running=running(cell),
            device="cpu",
        )
    )


def damage(folder: Path, cell: str) -> Path:
    """A copy of an artifact in which the blocks of every value projection are moved on by one row: still a valid file."""
    copy = folder / "damaged" / cell
    shutil.copytree(folder / "artifacts" / cell, copy)
    path = copy / gguf.FILE
    data = bytearray(path.read_bytes())
    for tensor in gguf_reader.header(path).tensors:
        if "attn_v" in tensor.name:
            row = tensor.bytes // tensor.shape[0]
            part = data[tensor.offset : tensor.offset + tensor.bytes]
            data[tensor.offset : tensor.offset + tensor.bytes] = part[-row:] + part[:-row]
    path.write_bytes(bytes(data))
    return copy


def reload_all(folder: Path) -> dict[str, Any]:
    outcomes: dict[str, Any] = {}
    exact = None
    for cell in CELLS:
        artifact = folder / "artifacts" / cell
        try:
            weights = load(folder, cell, artifact)
            answers = weights.log_probabilities(ROWS)
            exact = answers if exact is None else exact  # F32 comes first
            outcomes[cell] = {
                "check": reload.check(weights, artifact),
                "divergence": float((exact.exp() * (exact - answers)).sum(-1).mean()),
                "kernels": [(k.layer, k.module, k.op, k.stored_dtype, k.dequantized) for k in METHOD.kernels(weights)],
                "weight_bytes": weights.weight_bytes,
            }
            weights.close()
        except Exception:
            outcomes[cell] = {"error": traceback.format_exc()}
    for cell in ("BF16", "Q4_K_M", "IQ2_S"):
        copy = damage(folder, cell)
        weights = load(folder, cell, copy)
        outcomes[f"damaged {cell}"] = reload.check(weights, copy)
        weights.close()
    return outcomes


def main(stage: str, folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    outcomes = quantize(folder) if stage == "quantize" else reload_all(folder)
    (folder / f"{stage}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
