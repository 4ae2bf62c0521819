"""How an exported artifact is served: which runtimes read its layout, and what to type inside its folder.

Which programs read what comes from their own documentation; each way says whether this project runs it. A layout that only the
harness reads (library tensors in safetensors, because the library itself would pickle) is said to be one.
"""

from __future__ import annotations

import pprint
import shlex

from harness import plugins, recipes
from harness.artifact import ArtifactRecord
from harness.formats import openvino_ir
from harness.formats.gguf_types import TYPES
from harness.methods import METHODS
from harness.report.card import Way
from harness.spec import Cell, Quantized, to_json

CHANGES_NUMBERS = False
"""It says what others can do with an artifact."""

_GPTQ = ("rtn", "gptq", "autoround", "autogptq")
_AWQ = ("awq", "autoawq")
_LIBRARY = ("hqq", "torchao", "quanto", "inc", "qlora", "hqq+lora", "gptq+lora", "eora")

_NOT_RUN = "Not run by quant-harness."
_RUN = "quant-harness measured it with this runtime."
_AS_ENGINE = "quant-harness has vLLM as an engine (docs/vllm.md) that loads the same folder; this command it does not run."


def library(cell: Cell) -> str:
    """The hub's name of the library that reads the folder; '' where it has none for it."""
    if cell.running.engine in ("transformers", "vllm"):
        by_itself = _layout(cell) in ("", "library tensors", "modelopt") or cell.scheme.mixture is not None
        by_itself = by_itself or (_layout(cell) == "gptq" and recipes.of(cell.scheme) is not None)
        return "" if by_itself else "transformers"
    return {"llamacpp": "gguf", "openvino": "openvino"}.get(cell.running.engine, "")


def ways(cell: Cell, artifact: ArtifactRecord) -> tuple[Way, ...]:
    """The ways of serving the artifact of a cell, the best first."""
    engine = cell.running.engine
    if engine == "llamacpp":
        return _llama_cpp(cell, artifact)
    if engine == "openvino":
        return _openvino()
    layout = _layout(cell)
    if layout == "library tensors":
        return _by_the_harness(cell)
    if layout == "modelopt":
        kind = "modelopt_fp4" if cell.bits == 4 else "modelopt"
        served = _vllm(f"vllm serve . --quantization {kind}", f"On a GPU that has the format. {_NOT_RUN}")
        return (served, *_by_the_harness(cell))
    if layout == "":
        return ()
    if cell.scheme.mixture is not None or recipes.of(cell.scheme) is not None:  # widths by layer, not tried in vLLM here
        return (_transformers(layout) if layout == "compressed-tensors" else _gptqmodel(),)
    return (*_by_vllm(layout, cell.bits), _gptqmodel() if layout in ("gptq", "awq") else _transformers(layout))


def _layout(cell: Cell) -> str:
    """What the folder's tensors are, by the name that vLLM and transformers give it; '' where nobody here knows."""
    method = cell.method
    if method in METHODS and (METHODS[method].unquantized or method == "ft"):
        return "plain"
    if method in ("ft+ptq", "qat"):  # of the same file, but computed by torchao, where activations are rounded too
        return "library tensors" if cell.scheme.options.get("type") == "dynamic" else "gptq"
    if method == "prequantized":
        return str(cell.scheme.options.get("format", ""))
    known = {**dict.fromkeys(_GPTQ, "gptq"), **dict.fromkeys(_AWQ, "awq"), "bnb": "bitsandbytes", "modelopt": "modelopt"}
    known |= {"bitnet": "bitnet", "llmcompressor": "compressed-tensors", **dict.fromkeys(_LIBRARY, "library tensors")}
    if plugins.of("method", method) is not None:
        return "library tensors"
    return known.get(method, "")


def _by_vllm(layout: str, bits: float) -> tuple[Way, ...]:
    """vLLM's command where it has kernels for the layout: AWQ's have 4 bits only, the two other packed ones 8 and 4."""
    taken = {"awq": (4,), "gptq": (8, 4), "compressed-tensors": (8, 4)}.get(layout, (bits,))
    if bits not in taken:
        return ()
    if layout in ("plain", "gptq", "awq", "compressed-tensors"):
        on_cpu = "" if layout == "plain" else "On a CPU it has kernels for 4 bits, and for 8 where inputs are rounded too. "
        return (_vllm("vllm serve .", f"{on_cpu}{_AS_ENGINE}"),)
    return (_vllm("vllm serve .", f"On a GPU. {_NOT_RUN}"),)


def _vllm(command: str, note: str) -> Way:
    return Way(runtime="vLLM", language="sh", code=command, note=note)


def _gptqmodel() -> Way:
    code = 'from gptqmodel import GPTQModel\n\nmodel = GPTQModel.load(".")'
    return Way(runtime="GPTQModel", language="python", code=code, note=_RUN)


_PACKAGES = {"bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed-tensors", "auto-round": "auto-round"}
_PACKAGES |= {"torchao": "torchao", "hqq": "hqq", "quanto": "optimum-quanto", "aqlm": "aqlm"}


def _transformers(layout: str) -> Way:
    package = _PACKAGES.get(layout)
    needs = f"It needs the package {package} for this layout. " if package else ""
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".", dtype="bfloat16")\n'
        'tokenizer = AutoTokenizer.from_pretrained(".")'
    )
    return Way(runtime="Transformers", language="python", code=code, note=f"{needs}{_RUN}")


def _llama_cpp(cell: Cell, artifact: ArtifactRecord) -> tuple[Way, ...]:
    file = next(file.name for file in artifact.files if file.name.lower().endswith(".gguf"))
    kv = cell.running.kv
    cache = f" --cache-type-k {shlex.quote(kv)} --cache-type-v {shlex.quote(kv)}" if kv and kv != "f16" else ""
    quantized = " --flash-attn on" if kv.startswith("q") else ""  # llama.cpp quantizes values with it only
    server = f"llama-server --model {shlex.quote(file)}{cache}{quantized} --port 8000"
    wide = [f" --type_k {number} --type_v {number}" for number, block in TYPES.items() if cache and block.name == kv.upper()]
    fused = " --flash_attn true" if quantized else ""
    bound = f"python -m llama_cpp.server --model {shlex.quote(file)}{''.join(wide)}{fused} --n_ctx 0 --port 8000"
    python = f"from llama_cpp import Llama\n\nmodel = Llama({file!r}, n_ctx=0)"
    return (
        Way(runtime="llama.cpp's server", language="sh", code=server, note=_NOT_RUN),
        Way(
            runtime="llama.cpp's server in llama-cpp-python",
            language="sh",
            code=bound,
            note="It needs the package llama-cpp-python[server]. Tests of quant-harness serve an export with it.",
        ),
        Way(runtime="llama-cpp-python", language="python", code=python, note=_RUN),
    )


def _openvino() -> tuple[Way, ...]:
    convert = "convert_tokenizer . --with-detokenizer --output ."
    genai = 'import openvino_genai\n\nmodel = openvino_genai.LLMPipeline(".", "CPU")'
    plain = f'import openvino\n\nmodel = openvino.Core().compile_model("{openvino_ir.XML}", "CPU")'
    return (
        Way(
            runtime="OpenVINO Model Server and GenAI",
            language="sh",
            code=convert,
            note=f"Both want the tokenizer as an IR; the package openvino-tokenizers makes it. {_NOT_RUN}",
        ),
        Way(runtime="OpenVINO GenAI", language="python", code=genai, note=f"After that. {_NOT_RUN}"),
        Way(runtime="OpenVINO", language="python", code=plain, note=_RUN),
    )


def _by_the_harness(cell: Cell) -> tuple[Way, ...]:
    """Through the loader of the method's row, which needs nothing but the folder."""
    method = METHODS.get(cell.method)
    if method is None or not isinstance(cell.origin, Quantized):
        return ()
    install = f'pip install "llm-quant-harness[{method.extra}]"' if method.extra else f"what the method {cell.method} needs"
    scheme = pprint.pformat(to_json(cell.scheme.options), width=110)
    code = "\n".join(
        [
            "from pathlib import Path",
            "",
            "from harness.methods import METHODS",
            "from harness.methods.base import LoadRequest",
            "from harness.spec import Quantized, Running, Scheme",
            "",
            f"options = {scheme}",
            f"scheme = Scheme(method={cell.method!r}, bits={float(cell.bits)!r}, options=options)",
            f"running = Running(engine={cell.running.engine!r})",
            'here = Path(".")',
            "origin = Quantized(scheme=scheme)",
            'request = LoadRequest(artifact_dir=here, model_dir=here, origin=origin, running=running, device="cpu")',
            f"model = METHODS[{cell.method!r}].load(request)",
        ]
    )
    note = f"The folder holds the library's tensors without its pickles, which no server reads; {install} does. {_RUN}"
    return (Way(runtime="quant-harness", language="python", code=code, note=note),)
