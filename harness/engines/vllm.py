"""The engine for what vLLM serves: the same artifacts, run by vLLM's own model and kernels in this process.

Promises: ids come from the source model's own tokenizer; logits are float32 over the whole vocabulary, made by vLLM's own head of
the hidden states that its model returns (`harness.runtimes.vllm`); a window is asked by itself, so that the same windows give
the same bits; the kernel of each layer is read from the loaded model. What a suite leaves unsaid is vLLM's own default, but for
these: `enforce_eager` (no compiled graphs: what is measured is what was checked), a pool of one GiB for keys and values, no
caching of prefixes, and as many threads as the harness gives torch.

vLLM joins projections that read the same input (`qkv_proj`, `gate_up_proj`), and its layers have its own names here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.artifact import LayerKernel
from harness.engines import from_logits, moments
from harness.engines.base import EngineFacts, Timing, WindowScores, load_tokenizer
from harness.errors import Unsupported
from harness.methods.base import LoadRequest, Method
from harness.runtimes import vllm_import, vllm_server
from harness.runtimes.openai_server import Server
from harness.runtimes.vllm import Core, arguments
from harness.spec import Served

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from harness.engines.stored_baseline import StoredFacts
    from harness.scoring.vllm import VllmLM

FIRST = vllm_import.__name__
"""Imported with this file, for its effect: a rehearsal of loading imports this file."""

_DTYPES = {"fp32": "float32", "fp16": "float16"}
"""What the unquantized rows are held in; everything else computes in bfloat16."""


def load(method: Method, request: LoadRequest) -> Vllm:
    """The packed artifact, loaded by vLLM from its folder."""
    core = Core(request.artifact_dir, settings=_settings(request), w4a8=bool(request.running.flags["w4a8"]))
    packed = {tensor.layer for tensor in method.ledger(request.artifact_dir, request.scheme) if tensor.layer}
    return Vllm(core, load_tokenizer(request.model_dir), model_dir=request.model_dir, device=request.device, packed=packed)


@contextmanager
def serve(request: LoadRequest) -> Iterator[Server]:
    """Inside, the artifact behind vLLM's own server, with the settings of `load`, as it is asked over HTTP."""
    settings = _settings(request)
    with vllm_server.serving(request.artifact_dir, request.model_dir, settings, w4a8=bool(request.running.flags["w4a8"])) as url:
        yield Server(Served(scheme=request.scheme, url=url, model=vllm_server.NAME), load_tokenizer(request.model_dir))


def _settings(request: LoadRequest) -> dict[str, object]:
    dtype = _DTYPES.get(request.scheme.method, "bfloat16")
    return arguments(dtype=dtype, kv=request.running.kv, flags=request.running.flags)


class Vllm:
    """A model in vLLM that answers (the engines' `Loaded`)."""

    def __init__(self, core: Core, tokenizer: PreTrainedTokenizerBase, *, model_dir: Path, device: str, packed: set[str]) -> None:
        self.model = core
        self._tokenizer = tokenizer
        self._model_dir = model_dir
        self._device = device
        self._packed = packed
        self._lm: VllmLM | None = None
        self._prefilled: tuple[int, int, int] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    @property
    def model_seconds(self) -> float:
        """Seconds spent so far in vLLM."""
        return self.model.seconds

    # ------------------------------------------------------------------ windows

    def score_windows(self, windows: Sequence[Sequence[int]], stored: Path | None) -> Iterator[WindowScores]:
        """Scores of each window of T ids at its T-1 targets, in order; with `stored`, compared with what is stored there.

        Raises Unsupported if the stored baseline was made of other tokens or has another vocabulary.
        """
        baseline = from_logits.opened(windows, stored, vocab_size=self.model.vocab_size)
        from_logits.checked(windows, context_length=self.model.context_length - 1)
        return from_logits.scores(windows, baseline, self._logits)

    def _logits(self, window: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        (hidden,) = self.model.hidden([window[:-1]])
        for start, piece in self.model.logits(hidden):
            yield start, piece.numpy()

    def store_baseline(self, windows: Sequence[Sequence[int]], folder: Path) -> StoredFacts:
        raise Unsupported(
            "a model in vLLM is compared with the baseline, and is none: answers are held against those of transformers"
        )

    # ------------------------------------------------------------------ lm-eval

    def lm(self, *, plans: Path | None = None) -> VllmLM:
        """The `lm_eval.api.model.LM` over this model, made once; `plans` is where it keeps what it planned."""
        if self._lm is None:
            from harness.scoring.vllm import VllmLM

            self._lm = VllmLM(self.model, tokenizer=self._tokenizer, model_dir=self._model_dir, plan_folder=plans)
        return self._lm

    # ------------------------------------------------------------------ cost

    def time_generation(self, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> Timing:
        """One greedy generation, timed step by step: vLLM's scheduler, its model and its sampler, without its tokenizer."""
        prompts = self._prompts(prompt_tokens, batch, seed)
        self._prefilled = None
        steps: list[float] = []
        moments.tell("begin")
        began = time.perf_counter()
        self.model.begin(prompts, new_tokens)
        ttft = time.perf_counter() - began
        moments.tell("first token")
        for number in range(2, new_tokens + 1):
            began = time.perf_counter()
            self.model.go_on(number)
            steps.append(time.perf_counter() - began)
        moments.tell("end")
        return Timing(ttft_seconds=ttft, step_seconds=tuple(steps))

    def run_phase(self, phase: str, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> dict[str, int]:
        """`prefill`: the prompt up to its first token; it is kept. `decode`: `new_tokens` - 1 more steps from there, or, if that
        prompt was not prefilled just before, prefill and those steps; `continued` says which. `kv_cache_bytes` is what the
        prompts hold of the pool, `kv_pool_bytes` the pool."""
        if phase not in ("prefill", "decode"):
            raise ValueError(f"unknown phase {phase!r}")
        asked = (prompt_tokens, batch, seed)
        continued = phase == "decode" and self._prefilled == asked
        if not continued:
            self.model.begin(self._prompts(*asked), new_tokens + 1)  # one more than is asked: it has to be there still
        for number in range(2, new_tokens + 1 if phase == "decode" else 2):
            self.model.go_on(number)
        self._prefilled = asked if phase == "prefill" else None
        return {
            "kv_cache_bytes": self.model.used_bytes(),
            "kv_pool_bytes": self.model.pool_bytes(),
            "kv_block_tokens": self.model.block_tokens,
            "kv_cache_tokens": prompt_tokens + (new_tokens - 1 if phase == "decode" else 0),
            "batch": batch,
            "continued": continued,
        }

    def _prompts(self, tokens: int, batch: int, seed: int) -> list[list[int]]:
        """Random prompts: those of every engine for that seed."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        rows: list[list[int]] = torch.randint(0, self.model.vocab_size, (batch, tokens), generator=generator).tolist()
        return rows

    # ------------------------------------------------------------------ facts

    def facts(self) -> EngineFacts:
        layers = kernels(self.model.model, self._packed)
        config = self.model.config
        compiled = str(getattr(config.compilation_config.mode, "name", config.compilation_config.mode))
        note = (
            f"vLLM {self.model.version} in this process: keys and values in {config.cache_config.cache_dtype}, blocks of "
            f"{self.model.block_tokens} tokens, no cache of prefixes, compilation {compiled}"
        )
        rounded = sorted({layer.op for layer in layers if "inputs in 8 bits" in layer.op})
        notes = (note, *(f"{op}: answers differ from those of 16-bit inputs" for op in rounded))
        return EngineFacts(
            engine="vllm",
            device=self._device,
            kernels=tuple(layers),
            simulated=any(layer.dequantized for layer in layers),
            resident_weight_bytes=weight_bytes(self.model.model),
            notes=notes,
            details={
                "version": self.model.version,
                "model_class": type(self.model.model).__name__,
                "runner": type(self.model.runner).__module__,
                "max_model_len": self.model.context_length,
                "max_num_batched_tokens": self.model.step_tokens,
                "max_num_seqs": self.model.step_rows,
                "kv_pool_bytes": self.model.pool_bytes(),
            },
        )


# ---------------------------------------------------------------------- kernels


def kernels(model: Any, packed: set[str]) -> list[LayerKernel]:
    """What computes each linear layer of the decoder, read from the loaded model. `packed`: the layers that the artifact holds
    packed, by the source's names; one of them that vLLM holds unquantized was dequantized."""
    joined: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", None) or {}
    return [_kernel(name, module, _sources(name, joined), packed) for name, module in _linears(model)]


def _linears(model: Any) -> Iterator[tuple[str, Any]]:
    from vllm.model_executor.layers.linear import LinearBase

    for name, module in model.named_modules():
        if isinstance(module, LinearBase):
            yield name, module


def _sources(name: str, joined: Mapping[str, Sequence[str]]) -> list[str]:
    """The layers of the source that one of vLLM's stands for."""
    place, _, own = name.rpartition(".")
    return [f"{place}.{part}" for part in joined.get(own, [own])]


def _kernel(name: str, module: Any, sources: Sequence[str], packed: set[str]) -> LayerKernel:
    """The quantization method of the layer, and below it the kernel that vLLM chose, where there is one."""
    method, scheme, kernel = module.quant_method, getattr(module, "scheme", None), _chosen(module)
    plain = type(method).__name__ == "UnquantizedLinearMethod"
    names = [type(one).__name__ for one in (scheme if scheme is not None else method, kernel) if one is not None]
    op = _plain_op(module) if plain else "emulated" if "Emulation" in names[-1] else _op(module, kernel)
    return LayerKernel(
        layer=name,
        module=f"{type(module).__name__} ({' / '.join(names)})",
        op=op,
        stored_dtype=_stored(module, kernel),
        dequantized=op == "emulated" or (plain and any(source in packed for source in sources)),
    )


def _chosen(module: Any) -> Any:
    """The kernel object that vLLM chose for a layer; None where its method computes by itself."""
    owners = (getattr(module, "quant_method", None), getattr(module, "scheme", None))
    held = (getattr(owner, part, None) for owner in owners for part in ("kernel", "fp8_linear"))
    return next((kernel for kernel in held if kernel is not None), None)


def _op(module: Any, kernel: Any) -> str:
    if getattr(module, "use_w4a8", False):
        return "int4_scaled_mm_cpu, inputs in 8 bits"
    if hasattr(module, "isa_hint"):
        return f"cpu_gemm_wna16 ({module.isa_hint})"
    chosen = getattr(getattr(kernel, "linear_method", None), "__name__", "")
    return chosen.removeprefix("_apply_weights_") or "apply_weights"


def _plain_op(module: Any) -> str:
    """What an unquantized product runs on: on a CPU the function that vLLM put in its place."""
    code = getattr(getattr(module, "cpu_linear", None), "__code__", None)
    names = () if code is None else code.co_names
    return next((name for name in names if name.endswith(("_mm", "_cpu", "_unary"))), "linear")


def _stored(module: Any, kernel: Any) -> str:
    """The type of the largest tensor of a layer; where oneDNN holds the weight by itself, what it was given: 8-bit integers."""
    if hasattr(kernel, "dnnl_handler"):
        return "int8"
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    held = max(tensors, key=lambda tensor: (tensor.numel(), tensor.dim()), default=None)
    return "" if held is None else str(held.dtype).removeprefix("torch.")


def weight_bytes(model: Any) -> int:
    """Bytes of all weights: tensors of the model, each storage once, and those that a CPU kernel has repacked for itself and
    holds where no tensor shows them (a product's rows x columns in the layer's type)."""
    storages: dict[tuple[str, int], int] = {}
    hidden = 0
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            storage = tensor.untyped_storage()
            storages[str(tensor.device), storage.data_ptr()] = storage.nbytes()
        hidden += _repacked(module)
    return sum(storages.values()) + hidden


def _repacked(module: Any) -> int:
    handler = getattr(_chosen(module), "dnnl_handler", None)
    if handler is not None:
        return int(handler.n) * int(handler.k)
    function: Callable[..., torch.Tensor] | None = getattr(module, "cpu_linear", None)
    code = getattr(function, "__code__", None)
    if code is None or not {"handler", "packed_weight", "zen_weight"} & set(code.co_freevars):
        return 0
    shapes = (("output_size_per_partition", "input_size_per_partition"), ("num_embeddings_per_partition", "embedding_dim"))
    rows, columns = next((getattr(module, a), getattr(module, b)) for a, b in shapes if hasattr(module, a))
    return int(rows) * int(columns) * int(module.weight.dtype.itemsize)
