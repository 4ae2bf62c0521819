"""The real path of OpenVINO's schemes in a child process: quantize, reload from disk, answer; and the libraries' own path.

``python -m tests.methods.openvino_cells FOLDER`` works on FOLDER/source and writes FOLDER/outcomes.json. The library's path shares
no line with the harness: a graph without a cache, `nncf.compress_weights`, one forward per row in float32.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from harness.engines import ENGINES
from harness.methods import METHODS, openvino_ir, reload
from harness.methods.base import QuantizeRequest, resolve_options
from harness.spec import Cell, Model, Scheme
from tests.methods.cells import ROWS

METHOD = METHODS["openvino"]
CELLS: dict[str, tuple[float, dict[str, Any]]] = {
    "16": (16, {}),
    "16 accuracy": (16, {"execution": "accuracy"}),
    "8": (8, {}),
    "8 sym": (8, {"type": "int8_sym"}),
    "4": (4, {"group_size": 64}),
    "4 sym": (4, {"type": "int4_sym", "group_size": 64}),
    "4 channel": (4, {"group_size": -1}),
    "4 awq": (4, {"group_size": 64, "awq": True}),
    "4 scales": (4, {"group_size": 64, "scale_estimation": True}),
    "4 gptq": (4, {"group_size": 64, "gptq": True}),
    "4 lora": (4, {"group_size": 64, "lora_correction": True}),
    "4 mixed": (4, {"group_size": 64, "ratio": 0.5}),
}
DAMAGED = ("16", "8", "4 sym")
LIBRARY = {"16 accuracy": None, "8": "INT8_ASYM", "8 sym": "INT8_SYM", "4": "INT4_ASYM", "4 sym": "INT4_SYM"}


def scheme(cell: str, **changes: Any) -> Scheme:
    bits, options = CELLS[cell]
    return Scheme(method="openvino", bits=float(bits), options=resolve_options(METHOD, {**options, **changes}, float(bits)))


def quantize(folder: Path, cell: str) -> None:
    out = folder / "artifacts" / cell
    out.mkdir(parents=True)
    METHOD.quantize(
        QuantizeRequest(
            model_dir=folder / "source", out_dir=out, scheme=scheme(cell), calibration=ROWS[:4], device="cpu", seed=0
        )
    )


def load(folder: Path, cell: str, artifact: Path, **changes: Any) -> Any:
    named = Cell(model=Model(name="m"), scheme=scheme(cell, **changes))
    return ENGINES["openvino"].load(named, artifact, folder / "source", "cpu")


def perplexity(loaded: Any) -> float:
    nll = [float(v) for scores in loaded.score_windows(ROWS, None) for v in scores.nll]
    return math.exp(sum(nll) / len(nll))


def reloaded(folder: Path, cell: str) -> dict[str, Any]:
    artifact = folder / "artifacts" / cell
    loaded = load(folder, cell, artifact)
    answers = loaded.model.log_probabilities(ROWS)
    facts = loaded.facts()
    return {
        "check": reload.check(loaded.model, artifact),
        "answers": answers[:8, :16].tolist(),
        "kernels": [(k.layer, k.module, k.op, k.stored_dtype, k.dequantized) for k in facts.kernels],
        "settings": facts.details,
        "notes": list(facts.notes),
        "weight_bytes": facts.resident_weight_bytes,
        "perplexity": perplexity(load(folder, cell, artifact, execution="accuracy")),
    }


def damaged(folder: Path, cell: str) -> str | None:
    """The reload check's words on a copy of an artifact in which every value projection's codes are moved on by one row."""
    copy = folder / "damaged" / cell
    shutil.copytree(folder / "artifacts" / cell, copy)
    path = copy / openvino_ir.BIN
    data = bytearray(path.read_bytes())
    for constant in openvino_ir.constants(copy):
        if constant.parameter.endswith("v_proj.weight") and constant.role == "weight":
            row = constant.bytes // constant.shape[0]
            part = data[constant.offset : constant.offset + constant.bytes]
            data[constant.offset : constant.offset + constant.bytes] = part[-row:] + part[:-row]
    path.write_bytes(bytes(data))
    return reload.check(load(folder, cell, copy).model, copy)


def library(folder: Path, mode: str | None) -> float:
    import nncf
    import openvino as ov
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder / "source"), dtype=torch.float32).eval()

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    length = len(ROWS[0])
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    graph = ov.convert_model(Plain(), example_input=torch.tensor(ROWS[:1]))
    if mode is not None:
        group = {"group_size": 64} if mode.startswith("INT4") else {}
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode[mode], **group)
    target = folder / f"library-{mode}.xml"
    ov.save_model(graph, str(target))
    compiled = ov.Core().compile_model(str(target), "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    total, count = 0.0, 0
    for row in ROWS:
        logits = torch.from_numpy(compiled([[row]])[0])[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum"))
        count += len(row) - 1
    return math.exp(total / count)


def attempt(work: Any, *given: Any) -> Any:
    try:
        return work(*given)
    except Exception:
        return {"error": traceback.format_exc()}


def main(folder: Path) -> None:
    import torch

    torch.set_num_threads(2)
    outcomes: dict[str, Any] = {"seconds": {}}
    for cell in CELLS:
        began = time.perf_counter()
        outcomes[f"quantize {cell}"] = attempt(quantize, folder, cell)
        outcomes["seconds"][cell] = time.perf_counter() - began
        outcomes[cell] = attempt(reloaded, folder, cell)
    for cell in DAMAGED:
        outcomes[f"damaged {cell}"] = attempt(damaged, folder, cell)
    for cell, mode in LIBRARY.items():
        outcomes[f"library {cell}"] = attempt(library, folder, mode)
    outcomes["telemetry"] = sys.modules.get("openvino_telemetry") is not None
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
