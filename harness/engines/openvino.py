"""The engine for OpenVINO IRs: the CPU runtime, on the same token ids as every other engine.

Promises: ids come from the source model's own tokenizer; logits are float32 over the whole vocabulary; windows run one at a time
in calls of a fixed number of tokens; as many threads compute as the harness gives torch. `execution: performance` is what the
runtime does by itself, and what it is deployed with: sums in bf16 where the CPU has units for it, inputs of packed products and
the KV cache in 8 bits. What it was in the end is asked of the compiled model and kept with every record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness import kv
from harness.artifact import LayerKernel
from harness.engines import cached_logits, from_logits, moments
from harness.engines.base import CachedScores, EngineFacts, Timing, WindowScores, load_tokenizer
from harness.engines.stored_baseline import StoredFacts
from harness.errors import Unsupported
from harness.formats.openvino_ir import constants
from harness.kv import CachedSplit
from harness.methods.base import LoadRequest, Method
from harness.runtimes.openvino import BATCH, Program
from harness.scoring.plan import Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.scoring.openvino import OpenVinoLM

FILL = 32
"""Tokens of each row in one call where a state is filled to be weighed."""

RERUN_BATCH = 64
"""Tokens of one call when windows are run again for the noise floor."""


def load(method: Method, request: LoadRequest) -> OpenVino:
    """Reloads the IR from disk through its method's own loader."""
    program = method.load(request)
    return OpenVino(
        program,
        load_tokenizer(request.model_dir),
        model_dir=request.model_dir,
        artifact_dir=request.artifact_dir,
        kernels=lambda: method.kernels(program),
    )


class OpenVino:
    """A compiled IR that answers (the engines' `Loaded`, and `Rerun`)."""

    def __init__(
        self,
        program: Program,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_dir: Path,
        artifact_dir: Path,
        kernels: Callable[[], list[LayerKernel]] = list,
    ) -> None:
        self.model = program
        self._tokenizer = tokenizer
        self._model_dir = model_dir
        self._artifact_dir = artifact_dir
        self._kernels = kernels
        self._lm: OpenVinoLM | None = None
        self._prefilled: tuple[tuple[int, int, int], int, Ints] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    # ------------------------------------------------------------------ windows

    def score_windows(self, windows: Sequence[Sequence[int]], stored: Path | None) -> Iterator[WindowScores]:
        """Scores of each window of T ids at its T-1 targets, in order; with `stored`, compared with what is stored there.

        Raises Unsupported if the stored baseline was made of other tokens or has another vocabulary.
        """
        return self._scores(windows, stored, BATCH)

    def rerun_windows(self, windows: Sequence[Sequence[int]], stored: Path) -> tuple[str, Iterator[WindowScores]]:
        """The same weights under another legitimate execution: shorter calls, so that more is read back from the KV cache."""
        return f"calls of {RERUN_BATCH} tokens", self._scores(windows, stored, RERUN_BATCH)

    def _scores(self, windows: Sequence[Sequence[int]], stored: Path | None, step: int) -> Iterator[WindowScores]:
        baseline = from_logits.opened(windows, stored, vocab_size=self.model.vocab_size)
        from_logits.checked(windows, context_length=self.model.context_length)
        return from_logits.scores(windows, baseline, lambda window: self.model.each_logits(window[:-1], step=step))

    def store_baseline(self, windows: Sequence[Sequence[int]], folder: Path) -> StoredFacts:
        """Keeps the float32 logits [windows, T-1, vocabulary] in `folder`, which appears at once and complete."""
        from_logits.checked(windows, context_length=self.model.context_length)
        return from_logits.store_baseline(
            windows,
            folder,
            lambda window: self.model.each_logits(window[:-1]),
            vocab_size=self.model.vocab_size,
            cut="OpenVINO gives logits",
        )

    def score_cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, stored: Path | None) -> Iterator[CachedScores]:
        """Scores of each window at the targets after the warm-up. What the types cost by themselves is seen against the same IR
        compiled with unquantized ones."""
        baseline = from_logits.opened(windows, stored, vocab_size=self.model.vocab_size)
        plain = self._cached(windows, split, self.model.plain()) if kv.quantized(self.model.kv) else None
        return cached_logits.scores(windows, split, baseline, self._cached(windows, split, self.model), plain)

    def store_cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, folder: Path) -> StoredFacts:
        """Keeps the float32 logits [windows, T-1-W, vocabulary] in `folder`, which appears at once and complete."""
        logits, size = self._cached(windows, split, self.model), self.model.vocab_size
        return cached_logits.store(windows, split, folder, logits, vocab_size=size, cut="OpenVINO gives logits")

    def _cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, program: Program) -> cached_logits.Logits:
        from_logits.checked(windows, context_length=self.model.context_length)
        if split.step > program.most_logits:
            raise Unsupported(cached_logits.TOO_WIDE.format(split.step))
        return lambda window: program.cached_logits(window, split)

    # ------------------------------------------------------------------ lm-eval

    def lm(self, *, plans: Path | None = None) -> OpenVinoLM:
        """The `lm_eval.api.model.LM` over this IR, made once; `plans` is where it keeps what it planned."""
        if self._lm is None:
            from harness.scoring.openvino import OpenVinoLM

            self._lm = OpenVinoLM(self.model, tokenizer=self._tokenizer, model_dir=self._model_dir, plan_folder=plans)
        return self._lm

    # ------------------------------------------------------------------ cost

    def time_generation(self, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> Timing:
        """One greedy generation, timed token by token; the output head sees the last token of the prompt only."""
        self._fits(prompt_tokens + new_tokens - 1)
        prompt = self._prompt(prompt_tokens, batch, seed)
        self.model.clear()
        steps: list[float] = []
        moments.tell("begin")
        began = time.perf_counter()
        chosen = self._next(prompt)
        ttft = time.perf_counter() - began
        moments.tell("first token")
        for _ in range(new_tokens - 1):
            began = time.perf_counter()
            chosen = self._next(chosen[:, None])
            steps.append(time.perf_counter() - began)
        moments.tell("end")
        return Timing(ttft_seconds=ttft, step_seconds=tuple(steps))

    def run_phase(self, phase: str, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> dict[str, int | str]:
        """`prefill`: the prompt up to its first token; its cache is kept. `decode`: `new_tokens` - 1 more steps from there, or,
        if that prompt was not prefilled just before, prefill and those steps; `continued` says which."""
        if phase not in ("prefill", "decode"):
            raise ValueError(f"unknown phase {phase!r}")
        self._fits(prompt_tokens + new_tokens - 1)
        asked = (prompt_tokens, batch, seed)
        held, self._prefilled = self._prefilled, None
        continued = phase == "decode" and held is not None and held[0] == asked and held[1] == self.model.uses
        if held is None or not continued:
            self.model.clear()
            chosen = self._next(self._prompt(*asked))
        else:
            chosen = held[2]
        for _ in range(new_tokens - 1 if phase == "decode" else 0):
            chosen = self._next(chosen[:, None])
        if phase == "prefill":
            self._prefilled = (asked, self.model.uses, chosen)
        return {
            # Of a type of few bits the state must not be read: no figure here. The probe `kv_memory` weighs it (docs/kv.md).
            **({} if kv.quantized(self.model.kv) else {"kv_cache_bytes": self.model.kv_bytes()}),
            "kv_cache_tokens": self.model.past,
            "batch": batch,
            "continued": continued,
        }

    def fill(self, contexts: Sequence[int], *, rows: int, seed: int) -> Iterator[int]:
        """Fills a new state of `rows` rows of random tokens to each of the contexts, in calls of `FILL` tokens of each row."""
        self._fits(max(contexts))
        tokens = self._prompt(max(contexts), rows, seed)
        try:
            self.model.renew()
            for context in contexts:
                for start in range(self.model.past, context, FILL):
                    self.model.run(tokens[:, start : min(start + FILL, context)], np.empty(0, np.int64))
                    self.model.forget_ids()
                yield context
        finally:
            self.model.renew()

    def _next(self, ids: Ints) -> Ints:
        """The greedy ids [batch] after the last of ids [batch, tokens]."""
        batch, length = ids.shape
        return np.asarray(self.model.run(ids, length * np.arange(1, batch + 1) - 1).argmax(axis=1))

    def _prompt(self, tokens: int, batch: int, seed: int) -> Ints:
        """Random prompts [batch, tokens]: those of every engine for that seed."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        prompt: Ints = torch.randint(0, self.model.vocab_size, (batch, tokens), generator=generator).numpy()
        return prompt

    def _fits(self, tokens: int) -> None:
        if tokens > self.model.context_length:
            raise Unsupported(
                f"{tokens + 1} tokens do not fit the model's context of {self.model.context_length}; "
                "choose a shorter prompt or fewer new tokens"
            )

    # ------------------------------------------------------------------ facts

    def facts(self) -> EngineFacts:
        kernels = tuple(self._kernels())
        stored = constants(self._artifact_dir)
        weights = sum(c.bytes for c in stored)
        looked_up = sum(c.bytes for c in stored if c.parameter.endswith("embed_tokens.weight"))
        tied = not any(c.parameter == "lm_head.weight" for c in stored)
        settings = self.model.settings
        group = settings["dynamic_quantization_group_size"]
        inputs = f"inputs of packed products in 8 bits by {group} where the kernel can, " if group else ""
        note = (
            f"execution {self.model.execution}: sums in {settings['inference_precision_hint']}, {inputs}"
            f"KV cache in {settings['kv_cache_precision']}"
        )
        return EngineFacts(
            engine="openvino",
            device="cpu",
            kernels=kernels,
            simulated=any(layer.dequantized for layer in kernels),
            resident_weight_bytes=weights,
            notes=(note,),
            details={
                "version": self.model.version,
                **settings,
                # A step reads every weight but the table that tokens are looked up in, unless it is the head too.
                "active_weight_bytes": weights - (0 if tied else looked_up),
            },
        )
