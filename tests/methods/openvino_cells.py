"""The real path of OpenVINO's schemes in a child process: quantize, reload from disk, answer; and the libraries' own path.

``python -m tests.methods.openvino_cells FOLDER`` works on FOLDER/source and writes FOLDER/outcomes.json. The library's path
shares no line with the harness: a graph without a cache, `nncf.compress_weights`, one forward per row in float32.
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
from harness.formats import openvino_ir
from harness.methods import METHODS, reload
from harness.methods.base import LoadRequest, QuantizeRequest, resolve_options, running_of
from harness.spec import Quantized, Scheme
from tests.methods.cells import ROWS as ALL_ROWS

METHOD = METHODS["openvino"]
CELLS: dict[str, tuple[float, dict[str, Any]]] = {
    "16": (16, {}),
    "8": (8, {}),
    "4 sym": (4, {"type": "int4_sym", "group_size": 64}),
    "4 searched": (4, {"group_size": 32, "awq": True, "scale_estimation": True, "ratio": 0.5}),
}
"""`gptq` and `lora_correction` take NNCF half a minute on any model, so no test runs them."""

VARIANTS: dict[str, dict[str, Any]] = {
    # Its head is more than a product, and not the table; its attention has biases. (Qwen3 was tried by hand: the same.)
    "Granite": {"logits_scaling": 3.0, "tie_word_embeddings": False, "attention_bias": True},
}
DAMAGED = ("4 sym",)
LIBRARY = {"4 sym": "INT4_SYM"}
ROWS = [row[:48] for row in ALL_ROWS[:3]]


def scheme(cell: str) -> Scheme:
    bits, options = CELLS[cell]
    return Scheme(method="openvino", bits=float(bits), options=resolve_options(METHOD, options, float(bits)))


def quantize(folder: Path, cell: str) -> None:
    out = folder / "artifacts" / cell
    out.mkdir(parents=True)
    METHOD.quantize(
        QuantizeRequest(
            model_dir=folder / "source",
            out_dir=out,
            origin=Quantized(scheme=scheme(cell)),
            calibration=ROWS,
            device="cpu",
            seed=0,
        )
    )


def load(folder: Path, cell: str, artifact: Path, **changes: Any) -> Any:
    origin, running = Quantized(scheme=scheme(cell)), running_of(METHOD, changes, scheme(cell).bits)
    source = folder / "source"
    request = LoadRequest(artifact_dir=artifact, model_dir=source, origin=origin, running=running, device="cpu")
    return ENGINES["openvino"].load(METHOD, request)


def perplexity(loaded: Any) -> float:
    nll = [float(v) for scores in loaded.score_windows(ROWS, None) for v in scores.nll]
    return math.exp(sum(nll) / len(nll))


def reloaded(folder: Path, cell: str) -> dict[str, Any]:
    artifact = folder / "artifacts" / cell
    loaded = load(folder, cell, artifact)
    facts = loaded.facts()
    return {
        "check": reload.check(loaded.model, artifact),
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


def variant(folder: Path, name: str) -> dict[str, Any]:
    """Another architecture: what the reload check says, and the perplexity here and by torch on float16's values."""
    import torch
    import transformers

    source, out = folder / name, folder / "artifacts" / name
    shape: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2}
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**{**shape, **VARIANTS[name]})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms start at 0 and 1, where a mistake would not show
                parameter.add_(0.3 * torch.randn(parameter.shape))
            parameter.copy_(parameter.half().float())
    model.save_pretrained(source)
    out.mkdir(parents=True)
    given = Scheme(method="openvino", bits=16.0, options=resolve_options(METHOD, {}, 16.0))
    running = running_of(METHOD, {"execution": "accuracy"}, 16.0)
    METHOD.quantize(
        QuantizeRequest(model_dir=source, out_dir=out, origin=Quantized(scheme=given), calibration=None, device="cpu", seed=0)
    )
    program = METHOD.load(
        LoadRequest(artifact_dir=out, model_dir=source, origin=Quantized(scheme=given), running=running, device="cpu")
    )
    with torch.no_grad():
        wanted = torch.log_softmax(model(input_ids=torch.tensor(ROWS)).logits[:, :-1].flatten(0, 1), dim=-1)
    return {
        "check": reload.check(program, out),
        "difference": float((program.log_probabilities(ROWS) - wanted).abs().max()),
        "spread": float(wanted.std()),
    }


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
    for name in VARIANTS:
        outcomes[name] = attempt(variant, folder, name)
    for cell, mode in LIBRARY.items():
        outcomes[f"library {cell}"] = attempt(library, folder, mode)
    outcomes["telemetry"] = sys.modules.get("openvino_telemetry") is not None
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
