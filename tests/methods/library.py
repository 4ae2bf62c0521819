"""Perplexity and divergence by each library's own documented path, sharing no line with the harness: quantize, save, reload,
answer.

``python -m tests.methods.library quantize|answer FOLDER [CELL...]`` works on FOLDER/source (a checkpoint), rows of token ids in
FOLDER/calibration.json and FOLDER/rows.json, and FOLDER/cells.json: cell -> method, bits, and the options that are not left at
the library's own default. `quantize` saves each cell into FOLDER/library/CELL by the library's own call; `answer`, in a process
of its own, reloads it by the library's own call and writes perplexity and divergence into FOLDER/library/CELL.json. What is
there already is not done again.

Imports nothing of `harness`.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # GPTQModel's thread pool refuses to start with one
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # its torch kernels would compile C++ for a minute in every process

import torch
import transformers

Rows = list[list[int]]
Answer = Callable[[list[int]], Any]
"""Token ids [T] -> logits [T, vocabulary]."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """`save` quantizes source into a folder; `load` answers from that folder (and the source's config) alone."""

    save: Callable[..., None]  # (source, folder, calibration rows, *, bits, options)
    load: Callable[..., Any]  # (source, folder, *, bits, options) -> an `Answer`, or a causal LM of transformers


def plain(source: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.bfloat16).eval()


def empty(source: Path) -> Any:
    """The architecture without weights."""
    config = transformers.AutoConfig.from_pretrained(str(source))
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def not_the_head(module: Any, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and "lm_head" not in name


# ------------------------------------------------------------------------------------------------ unquantized


def bf16_save(source: Path, folder: Path, rows: Rows, *, bits: int) -> None:
    plain(source).save_pretrained(folder)


def bf16_load(source: Path, folder: Path, *, bits: int) -> Any:
    return plain(folder)


# ------------------------------------------------------------------------------------------------ GPTQModel


def as_examples(rows: Rows) -> list[dict[str, list[int]]]:
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]


def at_once(rows: Rows) -> int:
    """Calibration rows per forward, as the harness has them: about 2,048 tokens. The sums over all rows depend on it in their
    last bits, and those turn roundings, which turn others."""
    return max(1, min(len(rows), 2048 // len(rows[0])))


def gptq_save(source: Path, folder: Path, rows: Rows, *, bits: int, group_size: int = 128) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=bits, group_size=group_size)
    model = GPTQModel.load(str(source), config, device="cpu", dtype=torch.float32)
    model.quantize(as_examples(rows), batch_size=at_once(rows))
    model.save(str(folder))


def rtn_save(source: Path, folder: Path, rows: Rows, *, bits: int, group_size: int = 128) -> None:
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import RTNConfig

    model = GPTQModel.load(str(source), RTNConfig(bits=bits, group_size=group_size), device="cpu", dtype=torch.float32)
    model.quantize(None)
    model.save(str(folder))


def awq_save(source: Path, folder: Path, rows: Rows, *, bits: int, group_size: int = 128) -> None:
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization.config import AWQConfig

    config = AWQConfig(bits=bits, group_size=group_size, sym=False)
    model = GPTQModel.load(str(source), config, device="cpu", dtype=torch.float16)
    model.quantize(as_examples(rows), batch_size=at_once(rows), backend=BACKEND.AWQ_TORCH)
    model.save(str(folder))


def gptqmodel_load(source: Path, folder: Path, *, bits: int, group_size: int = 128) -> Any:
    from gptqmodel import GPTQModel

    return GPTQModel.load(str(folder), device="cpu", dtype=torch.bfloat16).model.eval()


# ------------------------------------------------------------------------------------------------ AutoRound


def autoround_save(source: Path, folder: Path, rows: Rows, *, bits: int, iters: int = 200, group_size: int = 128) -> None:
    from auto_round import AutoRound

    AutoRound(
        str(source),
        scheme=f"W{bits}A16",
        group_size=group_size,
        iters=iters,
        dataset=[torch.tensor([row]) for row in rows],
        nsamples=len(rows),
        seqlen=len(rows[0]),
        batch_size=min(8, len(rows)),
        device_map="cpu",
        enable_torch_compile=False,
        seed=0,
    ).quantize_and_save(str(folder), format="auto_round")


def autoround_load(source: Path, folder: Path, *, bits: int, iters: int = 200, group_size: int = 128) -> Any:
    (found,) = {config.parent for config in folder.rglob("config.json")}
    return transformers.AutoModelForCausalLM.from_pretrained(str(found), dtype=torch.bfloat16, device_map="cpu").eval()


# ------------------------------------------------------------------------------------------------ hqq, bitsandbytes


def hqq_save(source: Path, folder: Path, rows: Rows, *, bits: int, group_size: int = 64) -> None:
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    model, config = plain(source), BaseQuantizeConfig(nbits=bits, group_size=group_size)
    AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.bfloat16, device="cpu")
    AutoHQQHFModel.save_quantized(model, str(folder))


def hqq_load(source: Path, folder: Path, *, bits: int, group_size: int = 64) -> Any:
    """The library's loader casts all buffers too: the rotary frequencies are rounded to bf16, which moves 2 bits by 4e-4."""
    from hqq.models.hf.base import AutoHQQHFModel

    return AutoHQQHFModel.from_quantized(str(folder), compute_dtype=torch.bfloat16, device="cpu").eval()


def bnb_save(source: Path, folder: Path, rows: Rows, *, bits: int) -> None:
    kinds: dict[int, dict[str, Any]] = {
        8: {"load_in_8bit": True},
        4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
    }
    config = transformers.BitsAndBytesConfig(**kinds[bits])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(source), quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    )
    model.save_pretrained(str(folder))


def bnb_load(source: Path, folder: Path, *, bits: int) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16, device_map="cpu").eval()


# ------------------------------------------------------------------------------------------------ torchao, quanto


def torchao_config(bits: int, kind: str) -> Any:
    from torchao import quantization as ao
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    if kind == "dynamic":
        return ao.Int8DynamicActivationInt8WeightConfig()
    if bits == 8:
        return ao.Int8WeightOnlyConfig()
    if bits == 4:
        return PrototypeInt4WeightOnlyConfig(group_size=64)
    return ao.IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=ao.PerGroup(64))


def torchao_save(source: Path, folder: Path, rows: Rows, *, bits: int, type: str = "int") -> None:
    from torchao.quantization import quantize_

    model = plain(source)
    quantize_(model, torchao_config(bits, type), filter_fn=not_the_head)
    torch.save(model.state_dict(), folder / "model.pt")


def torchao_load(source: Path, folder: Path, *, bits: int, type: str = "int") -> Any:
    import torchao.prototype.quantization.int4
    import torchao.quantization  # noqa: F401 - makes its tensors known to torch.load

    model = empty(source)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True), assign=True)
    return with_buffers(model, source)


def with_buffers(model: Any, source: Path) -> Any:
    """Rotary frequencies are in no state dict."""
    for name, buffer in plain(source).named_buffers():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, buffer)
    model.tie_weights()
    return model


def quanto_model(source: Path, bits: int, type: str) -> Any:
    from optimum import quanto as library

    model = plain(source)
    library.quantize(model, weights=getattr(library, f"q{type}{bits}"), exclude="lm_head")
    library.freeze(model)
    return model


def quanto_save(source: Path, folder: Path, rows: Rows, *, bits: int, type: str = "int") -> None:
    from optimum import quanto as library

    if bits == 4:
        return  # the library cannot reload them: the scale is looked for where its kernel's layout has none
    model = quanto_model(source, bits, type)
    # Of the two formats that it documents, safetensors puts codes at addresses on which torch's int8 kernel crashes.
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "quantization_map.json").write_text(json.dumps(library.quantization_map(model)))


def quanto_load(source: Path, folder: Path, *, bits: int, type: str = "int") -> Any:
    from optimum import quanto as library

    if bits == 4:
        return quanto_model(source, bits, type)
    model = empty(source)
    quantization = json.loads((folder / "quantization_map.json").read_text())
    library.requantize(model, torch.load(folder / "model.pt", weights_only=False), quantization, device=torch.device("cpu"))
    return with_buffers(model, source)


# ------------------------------------------------------------------------------------------------ llama.cpp

CONVERTER = "LLAMA_CPP"
"""Environment variable that names a source tree of llama.cpp: its converter is in no package."""


def convert(source: Path, target: Path) -> None:
    """llama.cpp's own converter. It knows a tokenizer's rules by a hash over its vocabulary, and asks whoever has another one to
    name them: GPT-2's."""
    tree = Path(os.environ[CONVERTER])
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    from conversion.base import TextModel  # type: ignore[import-not-found]  # the converter's own tree, put on the path above

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", str(source), "--outfile", str(target), "--outtype", "bf16"]
    runpy.run_path(str(tree / "convert_hf_to_gguf.py"), run_name="__main__")


def gguf_save(source: Path, folder: Path, rows: Rows, *, bits: int, type: str) -> None:
    import llama_cpp

    unquantized = folder.parent / "bf16.gguf"
    if not unquantized.is_file():
        code = "import sys; from tests.methods.library import Path, convert; convert(Path(sys.argv[1]), Path(sys.argv[2]))"
        command = [sys.executable, "-c", code, str(source), str(unquantized)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type}")
    failed = llama_cpp.llama_model_quantize(os.fsencode(unquantized), os.fsencode(folder / "model.gguf"), params)
    assert not failed, f"llama_model_quantize returned {failed}"


def gguf_load(source: Path, folder: Path, *, bits: int, type: str) -> Answer:
    from llama_cpp import Llama

    # Attention in one kernel is what llama.cpp itself takes; the Python class asks for the other one, which moves 3 bits by 4e-4.
    model = Llama(str(folder / "model.gguf"), logits_all=True, n_ctx=512, flash_attn=True, verbose=False)

    def answer(row: list[int]) -> Any:
        model.reset()
        model.eval(row)
        return torch.from_numpy(model.scores[: len(row)].copy())

    return answer


# ------------------------------------------------------------------------------------------------ all of them

LIBRARIES: dict[str, Library] = {
    "bf16": Library(save=bf16_save, load=bf16_load),
    "rtn": Library(save=rtn_save, load=gptqmodel_load),
    "gptq": Library(save=gptq_save, load=gptqmodel_load),
    "awq": Library(save=awq_save, load=gptqmodel_load),
    "autoround": Library(save=autoround_save, load=autoround_load),
    "hqq": Library(save=hqq_save, load=hqq_load),
    "bnb": Library(save=bnb_save, load=bnb_load),
    "torchao": Library(save=torchao_save, load=torchao_load),
    "quanto": Library(save=quanto_save, load=quanto_load),
    "gguf": Library(save=gguf_save, load=gguf_load),
}


def measured(answer: Answer, baseline: Answer, rows: Rows) -> dict[str, float]:
    """Over all tokens but the first of each row, in float64: `perplexity`, exp of the mean negative log-likelihood, and `kl`, the
    mean over the same tokens of KL(baseline || answer) over the whole vocabulary in nats."""
    loss, apart, count = 0.0, 0.0, 0
    for row in rows:
        scores, expected = (torch.log_softmax(ask(row[:-1]).double(), dim=-1) for ask in (answer, baseline))
        loss -= float(scores.gather(1, torch.tensor(row[1:])[:, None]).sum())
        apart += float((expected.exp() * (expected - scores)).sum())
        count += len(row) - 1
    return {"perplexity": math.exp(loss / count), "kl": apart / count}


def of_model(model: Any) -> Answer:
    def answer(row: list[int]) -> Any:
        with torch.no_grad():
            return model(input_ids=torch.tensor([row]), use_cache=False).logits[0]

    return answer


def main(stage: str, folder: Path, chosen: list[str]) -> None:
    cells = json.loads((folder / "cells.json").read_text())
    for cell in chosen or cells:
        method, bits, options = cells[cell]
        library, own = LIBRARIES[method], folder / "library" / cell
        target = own.with_name(f"{cell}.json") if stage == "answer" else own
        if target.exists():
            continue
        if stage == "quantize":
            draft = own.with_name(f".draft-{own.name}")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            rows = json.loads((folder / "calibration.json").read_text())
            library.save(folder / "source", draft, rows, bits=int(bits), **options)
            draft.rename(own)
        else:
            loaded = library.load(folder / "source", own, bits=int(bits), **options)
            answer = of_model(loaded) if isinstance(loaded, torch.nn.Module) else loaded
            found = measured(answer, of_model(plain(folder / "source")), json.loads((folder / "rows.json").read_text()))
            target.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
