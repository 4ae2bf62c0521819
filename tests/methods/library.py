"""Perplexity by each library's own documented path, sharing no line of it with the harness: load, quantize, answer.

``python -m tests.methods.library FOLDER`` works on FOLDER/source and FOLDER/rows.json and writes FOLDER/library.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.methods.cells import here


def model_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder / "source"), dtype=torch.bfloat16).eval()


def not_the_head(module: Any, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and "lm_head" not in name


def torchao_int8(model: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig(), filter_fn=not_the_head)


def torchao_int4(model: Any) -> None:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=64), filter_fn=not_the_head)


def torchao_int2(model: Any) -> None:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=PerGroup(64)), filter_fn=not_the_head)


def torchao_dynamic(model: Any) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig(), filter_fn=not_the_head)


def quanto(kind: str) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        from optimum import quanto as library

        library.quantize(model, weights=getattr(library, kind), exclude="lm_head")
        library.freeze(model)

    return apply


PATHS: dict[str, Callable[[Any], None]] = {
    "torchao-8": torchao_int8,
    "torchao-4": torchao_int4,
    "torchao-2": torchao_int2,
    "torchao-8 dynamic": torchao_dynamic,
    "quanto-8": quanto("qint8"),
    "quanto-8 float": quanto("qfloat8"),
    "quanto-4": quanto("qint4"),
}
"""By the name of the harness's cell for the same scheme. (quanto's 2 bits need a C++ compiler on the library's own path.)"""


def perplexity(model: Any, rows: list[list[int]]) -> float:
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(row) - 1
    return math.exp(total / count)


def main(folder: Path) -> None:
    torch.set_num_threads(2)
    rows = json.loads((folder / "rows.json").read_text())
    found = {}
    for cell in here(PATHS):
        model = model_of(folder)
        PATHS[cell](model)
        found[cell] = perplexity(model, rows)
    (folder / "library.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
