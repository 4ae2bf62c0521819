"""The perplexity of an exported folder by the runtime that it is made for, which is all that loads it.

``python -m tests.export.by_runtime RUNTIME FOLDER TEXT WINDOW TOKENS`` cuts the text into windows by the folder's own tokenizer
and prints exp of the mean negative log-likelihood of all tokens but the first of each. Imports nothing of `harness`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.methods.library import Answer, gguf_load, gptqmodel_load, of_model


def by_transformers(folder: Path) -> Answer:
    return of_model(transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16).eval())


def by_gptqmodel(folder: Path) -> Answer:
    return of_model(gptqmodel_load(folder, folder, bits=4))


def by_llama_cpp(folder: Path) -> Answer:
    return gguf_load(folder, folder, bits=4, type="")


def by_openvino(folder: Path) -> Answer:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report home
    import numpy as np
    import openvino

    request = openvino.Core().compile_model(str(folder / "openvino_model.xml"), "CPU").create_infer_request()

    def answer(row: list[int]) -> Any:
        request.reset_state()
        given = {
            "input_ids": np.array([row], np.int64),
            "attention_mask": np.ones((1, len(row)), np.int64),
            "position_ids": np.arange(len(row), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return torch.from_numpy(np.array(request.infer(given)[0]))[0]

    return answer


RUNTIMES: dict[str, Callable[[Path], Answer]] = {
    "transformers": by_transformers,
    "gptqmodel": by_gptqmodel,
    "llama_cpp": by_llama_cpp,
    "openvino": by_openvino,
}


def main(runtime: str, folder: Path, text: Path, window: int, tokens: int) -> None:
    ids = transformers.AutoTokenizer.from_pretrained(str(folder))(text.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    answer = RUNTIMES[runtime](folder)
    loss, count = 0.0, 0
    for start in range(0, tokens - window + 1, window):
        row = ids[start : start + window]
        scores = torch.log_softmax(answer(row[:-1]).double(), dim=-1)
        loss -= float(scores.gather(1, torch.tensor(row[1:])[:, None]).sum())
        count += len(row) - 1
    print(math.exp(loss / count))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
