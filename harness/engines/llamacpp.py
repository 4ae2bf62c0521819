"""The engine for GGUF files: llama.cpp, on the same token ids as every other engine.

Promises: ids come from the source model's own tokenizer, never from llama.cpp's; logits are float32 over the whole vocabulary;
windows are decoded one at a time in calls of a fixed number of tokens, so that the same windows give the same bits on the same
machine and threads. As many threads compute as the harness gives torch.

A stored baseline (`store_baseline`) keeps float32 logits, and is labelled so: llama.cpp's head runs on packed weights inside its
own graph, so hidden states would not give its logits back. It is vocabulary/hidden times larger than another engine's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness import kv
from harness.artifact import LayerKernel
from harness.engines import cached_logits, from_logits, moments
from harness.engines.base import CachedScores, EngineFacts, Timing, WindowScores, load_tokenizer
from harness.engines.stored_baseline import StoredFacts
from harness.errors import Unsupported
from harness.formats.gguf_names import linear
from harness.formats.gguf_reader import GgufHeader
from harness.kv import CachedSplit
from harness.methods.base import LoadRequest, Method
from harness.runtimes import llama_cpp
from harness.runtimes.llama_cpp import BATCH, Context, Weights
from harness.scoring.plan import Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.scoring.llamacpp import LlamaCppLM

PLAIN = "f16"
"""What keys and values are kept in where a quantized type is compared with none: llama.cpp's own default."""

RERUN_BATCH = 64
"""Tokens of one call when windows are run again for the noise floor."""


def load(method: Method, request: LoadRequest) -> LlamaCpp:
    """Reloads the GGUF artifact from disk through its method's own loader."""
    weights = method.load(request)
    tokenizer = load_tokenizer(request.model_dir)
    return LlamaCpp(weights, tokenizer, model_dir=request.model_dir, kernels=lambda: method.kernels(weights))


class LlamaCpp:
    """A loaded GGUF file that answers (the engines' `Loaded`, and `Rerun`)."""

    def __init__(
        self,
        weights: Weights,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_dir: Path,
        kernels: Callable[[], list[LayerKernel]] = list,
    ) -> None:
        self.model = weights
        self._tokenizer = tokenizer
        self._model_dir = model_dir
        self._kernels = kernels
        self._lm: LlamaCppLM | None = None
        self._prefilled: tuple[tuple[int, int, int, int], Context, Ints] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    # ------------------------------------------------------------------ windows

    def score_windows(self, windows: Sequence[Sequence[int]], stored: Path | None) -> Iterator[WindowScores]:
        """Scores of each window of T ids at its T-1 targets, in order; with `stored`, compared with what is stored there.

        Raises Unsupported if the stored baseline was made of other tokens or has another vocabulary.
        """
        return self._scores(windows, stored, BATCH, fused=True)

    def rerun_windows(self, windows: Sequence[Sequence[int]], stored: Path) -> tuple[str, Iterator[WindowScores]]:
        """The same weights under another legitimate execution: shorter calls, and attention written out where the cache's type
        lets it be."""
        other = ", attention written out instead of fused" if self.model.attention == "either" else ""
        scores = self._scores(windows, stored, RERUN_BATCH, fused=False)
        return f"calls of {RERUN_BATCH} tokens{other}", scores

    def score_weights(self, windows: Sequence[Sequence[int]], stored: Path | None) -> Iterator[WindowScores]:
        """As `score_windows`, with keys and values unquantized: llama.cpp reads them from its cache in the first call already."""
        return self._scores(windows, stored, BATCH, fused=True, kv_type=self._plain_type)

    @property
    def _plain_type(self) -> str:
        return PLAIN if kv.quantized(self.model.kv_type) else self.model.kv_type

    def _scores(
        self, windows: Sequence[Sequence[int]], stored: Path | None, batch: int, *, fused: bool, kv_type: str | None = None
    ) -> Iterator[WindowScores]:
        baseline = from_logits.opened(windows, stored, vocab_size=self.model.vocab_size)
        return from_logits.scores(windows, baseline, self._logits(windows, batch, fused=fused, kv_type=kv_type))

    def _logits(
        self, windows: Sequence[Sequence[int]], batch: int, *, fused: bool, kv_type: str | None = None
    ) -> from_logits.Logits:
        """What gives the logits of one of these windows; they share a context as long as the longest. `kv_type`: None for the
        file's own."""
        from_logits.checked(windows, context_length=self.model.context_length)
        longest = max(map(len, windows)) - 1
        return lambda window: self.model.context(longest, batch=batch, fused=fused, kv_type=kv_type).each_logits(window[:-1])

    def _fits(self, tokens: int, said: str, more: int = 0) -> None:
        if tokens > self.model.context_length:
            raise Unsupported(said.format(tokens + more, self.model.context_length))

    def store_baseline(self, windows: Sequence[Sequence[int]], folder: Path) -> StoredFacts:
        """Keeps the float32 logits [windows, T-1, vocabulary] in `folder`, which appears at once and complete."""
        return from_logits.store_baseline(
            windows,
            folder,
            self._logits(windows, BATCH, fused=True),
            vocab_size=self.model.vocab_size,
            cut="llama.cpp gives logits",
        )

    def score_cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, stored: Path | None) -> Iterator[CachedScores]:
        """Scores of each window at the targets after the warm-up. The same weights at 16 bits run the same fused attention
        where the device has it, so that nothing but the type of keys and values differs."""
        baseline = from_logits.opened(windows, stored, vocab_size=self.model.vocab_size)
        plain = self._cached(windows, split, PLAIN) if kv.quantized(self.model.kv_type) else None
        return cached_logits.scores(windows, split, baseline, self._cached(windows, split, self.model.kv_type), plain)

    def store_cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, folder: Path) -> StoredFacts:
        """Keeps the float32 logits [windows, T-1-W, vocabulary] in `folder`, which appears at once and complete."""
        logits, size = self._cached(windows, split, self.model.kv_type), self.model.vocab_size
        return cached_logits.store(windows, split, folder, logits, vocab_size=size, cut="llama.cpp gives logits")

    def _cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, kv_type: str) -> cached_logits.Logits:
        """What gives the logits of one of these windows after the warm-up; they share a context as long as the longest."""
        from_logits.checked(windows, context_length=self.model.context_length)
        longest = max(map(len, windows)) - 1

        def logits(window: Sequence[int]) -> Iterator[NDArray[np.float32]]:
            context = self.model.context(longest, batch=max(split.warm_up, split.step), kv_type=kv_type)
            for start, end in split.calls(len(window) - 1):
                if not start:
                    context.row(window[start:end], start, wanted=False)
                    continue
                if end - start > context.outputs:
                    raise Unsupported(cached_logits.TOO_WIDE.format(split.step))
                yield context.row(window[start:end], start)

        return logits

    # ------------------------------------------------------------------ lm-eval

    def lm(self, *, plans: Path | None = None) -> LlamaCppLM:
        """The `lm_eval.api.model.LM` over this file, made once; `plans` is where it keeps what it planned."""
        if self._lm is None:
            from harness.scoring.llamacpp import LlamaCppLM

            self._lm = LlamaCppLM(self.model, tokenizer=self._tokenizer, model_dir=self._model_dir, plan_folder=plans)
        return self._lm

    # ------------------------------------------------------------------ cost

    def time_generation(self, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> Timing:
        """One greedy generation, timed token by token. The context is made before the clock starts, as a server makes it once."""
        context, prompt = self._generation(prompt_tokens, new_tokens, batch, seed)
        steps: list[float] = []
        moments.tell("begin")
        began = time.perf_counter()
        chosen = context.prefill(prompt).argmax(axis=1)
        ttft = time.perf_counter() - began
        moments.tell("first token")
        for place in range(prompt_tokens, prompt_tokens + new_tokens - 1):
            began = time.perf_counter()
            chosen = _step(context, chosen, place)
            steps.append(time.perf_counter() - began)
        moments.tell("end")
        return Timing(ttft_seconds=ttft, step_seconds=tuple(steps))

    def run_phase(self, phase: str, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> dict[str, int]:
        """`prefill`: the prompt up to its first token; its cache is kept. `decode`: `new_tokens` - 1 more steps from there, or,
        if that prompt was not prefilled just before, prefill and those steps; `continued` says which. llama.cpp allocates the
        cache for the whole declared context at once, so its bytes are the same in both."""
        if phase not in ("prefill", "decode"):
            raise ValueError(f"unknown phase {phase!r}")
        asked = (prompt_tokens, new_tokens, batch, seed)
        held, self._prefilled = self._prefilled, None
        continued = phase == "decode" and held is not None and held[0] == asked and held[1].alive
        if held is None or not continued:
            context, prompt = self._generation(*asked)
            chosen = context.prefill(prompt).argmax(axis=1)
        else:
            _, context, chosen = held
        for place in range(prompt_tokens, prompt_tokens + new_tokens - 1) if phase == "decode" else ():
            chosen = _step(context, chosen, place)
        if phase == "prefill":
            self._prefilled = (asked, context, chosen)
        return {
            "kv_cache_bytes": self.model.kv_bytes(context.cells),
            "kv_cache_tokens": context.cells // batch,
            "batch": batch,
            "continued": continued,
        }

    def _generation(self, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> tuple[Context, Ints]:
        """An empty context for the shape, and random prompts [batch, prompt_tokens]: those of every engine for that seed."""
        import torch

        said = "{} tokens do not fit the model's context of {}; choose a shorter prompt or fewer new tokens"
        self._fits(prompt_tokens + new_tokens - 1, said, 1)
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(0, self.model.vocab_size, (batch, prompt_tokens), generator=generator).numpy()
        return self.model.context(prompt_tokens + new_tokens, rows=batch, outputs=batch), prompt

    # ------------------------------------------------------------------ facts

    def _kv_note(self, details: Mapping[str, object]) -> tuple[str, ...]:
        """The same in words, for a record."""
        rotated = details.get("kv_rotated")
        if not isinstance(rotated, dict):
            return ()
        halves = " and ".join(name for half, name in (("k", "keys"), ("v", "values")) if rotated.get(half)) or "nothing"
        return (f"{kv.note('llamacpp', self.model.kv_type)}; llama.cpp rotates {halves} before it quantizes",)

    def _quantized_kv(self) -> dict[str, object]:
        """What is to be known of quantized keys and values: ggml's names, and which of the two llama.cpp rotates."""
        if not kv.quantized(self.model.kv_type):
            return {}
        return {"kv_types": kv.said("llamacpp", self.model.kv_type), "kv_rotated": self.model.rotation()}

    def facts(self) -> EngineFacts:
        kernels = tuple(self._kernels())
        header = self.model.header
        tied = not any(t.name == "output.weight" for t in header.tensors)
        looked_up = 0 if tied else sum(t.bytes for t in header.tensors if t.name == "token_embd.weight")
        unreadable = () if header.metadata.get("tokenizer.ggml.model") != "no_vocab" else ("the file carries no tokenizer",)
        details = self._quantized_kv()
        return EngineFacts(
            engine="llamacpp",
            device=self.model.device,
            kernels=kernels,
            simulated=any(layer.dequantized for layer in kernels),
            resident_weight_bytes=self.model.weight_bytes,
            notes=(*unreadable, *self._kv_note(details)),
            details={
                "architecture": header.metadata["general.architecture"],
                "file_type": header.metadata.get("general.file_type"),
                "threads": self.model.threads,
                "kv_cache": self.model.kv_type,
                **details,
                "attention": self.model.attention,
                "system": llama_cpp.system_info(),
                # A step reads every weight but the table that tokens are looked up in, unless it is the head too.
                "active_weight_bytes": self.model.weight_bytes - looked_up,
                "types": _types(header),
            },
        )


def _step(context: Context, chosen: Ints, place: int) -> Ints:
    """One decode step of all rows at position `place`: the next greedy ids [rows]."""
    rows = len(chosen)
    logits = context.decode(chosen, np.full(rows, place), np.arange(rows), np.ones(rows, bool))
    return np.asarray(logits.argmax(axis=1))


def _types(header: GgufHeader) -> dict[str, dict[str, int]]:
    """Bytes by ggml type, decoder linears apart from the rest."""
    by_type: dict[str, dict[str, int]] = {"linears": {}, "others": {}}
    for tensor in header.tensors:
        kind = by_type["others" if linear(tensor.name) is None else "linears"]
        kind[tensor.type] = kind.get(tensor.type, 0) + tensor.bytes
    return by_type
