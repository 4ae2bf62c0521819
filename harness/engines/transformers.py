"""The engine for everything that loads as a transformers causal LM: one forward code path for every torch-based method.

Promises: no [batch, length, vocabulary] tensor beyond one chunk ever exists; log-probabilities are float32 log-softmax; windows
are batched by a fixed token budget (not by free memory), so that the same windows give the same bits on the same machine and a
baseline compared with its own stored answers (`stored_baseline.py`) has a divergence of exactly 0. Only an out-of-memory error
changes the batches.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import kv as kv_types
from harness.artifact import LayerKernel
from harness.engines import moments
from harness.engines.base import CachedScores, EngineFacts, Timing, WindowScores, load_tokenizer
from harness.engines.held_bytes import bytes_of
from harness.engines.stored_baseline import (
    HEAD,
    STATES,
    TOKENS_PER_BATCH,
    PlainHead,
    StoredBaseline,
    StoredFacts,
    equal_length,
    keep_baseline,
    plain_head,
    states_file,
    stored_facts,
    token_scores,
    window_scores,
)
from harness.errors import BadInput, Unsupported, is_out_of_memory
from harness.kv import CachedSplit
from harness.methods.base import LoadRequest, Method
from harness.models import build, source
from harness.scoring import kv_cache
from harness.scoring.compare import NAMES, compare_in_blocks
from harness.scoring.head import Split, device_of, split, unwrap
from harness.scoring.widened import remark

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.scoring import FastLM
    from harness.scoring.cached_lm import CachedLM


_KV_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


def load(method: Method, request: LoadRequest) -> Transformers:
    """Reloads the packed artifact from disk through its method's own loader; the device is a torch device name."""
    model = method.load(request)
    # The source's rules for every cell: not all libraries keep them, and some keep their own reading.
    unwrap(model).generation_config = build.generation_config(request.model_dir)
    tokenizer = load_tokenizer(request.model_dir)
    _refuse_unknown_ids(unwrap(model), tokenizer)
    return Transformers(
        model, tokenizer, model_dir=request.model_dir, kernels=lambda: method.kernels(model), kv=request.running.kv
    )


def _refuse_unknown_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Has a model say in words what it cannot embed, where its tokenizer is larger than its embedding: torch's own error names no
    token, and on a GPU it ends the process."""
    embedding = model.get_input_embeddings()
    rows = int(getattr(embedding, "num_embeddings", 0))
    if not rows or max(tokenizer.get_vocab().values()) < rows:
        return

    def check(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        source.check_ids(inputs[0].flatten().tolist(), rows, tokenizer, "an input")

    embedding.register_forward_pre_hook(check)


class Transformers:
    """A loaded causal LM that answers (the engines' `Loaded`, `Rerun` and `ThroughCache`). `model` is any transformers causal LM
    in eval mode on its device, `model_dir` the source model, for its limits (None: the model's own), `kv` what it keeps keys and
    values in ('': its own type)."""

    def __init__(
        self,
        model: object,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_dir: Path | None = None,
        kernels: Callable[[], list[LayerKernel]] = list,
        kv: str = "",
    ) -> None:
        self.model = model
        self.kv = kv
        self._inner = unwrap(model)
        self._tokenizer = tokenizer
        self._model_dir = model_dir
        self._kernels = kernels
        self._split: Split | None = None
        self._lm: FastLM | CachedLM | None = None
        self._seconds = 0.0
        self._answered = False  # whether a forward pass has run
        self._prefilled: tuple[tuple[int, int, int], torch.Tensor, object] | None = None
        # Asked once: reading a signature takes as long as a small model's layer, and decode steps are timed.
        self._forward_takes = frozenset(inspect.signature(self._inner.forward).parameters)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    @property
    def split(self) -> Split:
        """Body and head of the model, cut at the first use. One small forward proves the cut: what is timed or weighed never
        asks."""
        if self._split is None:
            self._split = split(self.model)
        return self._split

    @property
    def device(self) -> torch.device:
        return device_of(self._inner)

    @property
    def model_seconds(self) -> float:
        """Seconds spent so far in scoring and generating by the model itself: what is left of a probe's time is the harness's."""
        return self._seconds + (self._lm.model_seconds if self._lm is not None else 0.0)

    # ------------------------------------------------------------------ windows

    def score_windows(self, windows: Sequence[Sequence[int]], stored: Path | None) -> Iterator[WindowScores]:
        """Scores of each window of T ids at its T-1 targets, in order; with `stored`, compared with what is stored there.

        Raises Unsupported if the stored baseline was made of other tokens or has another vocabulary.
        """
        baseline = None if stored is None else StoredBaseline(stored, device=self.device)
        if baseline is not None:
            baseline.check(windows, vocab_size=self.split.vocab_size)
        budget = TOKENS_PER_BATCH if baseline is None else baseline.tokens_per_batch
        for start, rows, hidden in self._bodies(windows, budget):
            yield from self._score(rows, hidden, None if baseline is None else (baseline, start))

    def rerun_windows(self, windows: Sequence[Sequence[int]], stored: Path) -> tuple[str, Iterator[WindowScores]]:
        """The same weights under another legitimate execution: one window per forward, and the attention written out instead of
        fused (where the architecture has both). The stored baseline differs by rounding: the noise floor of divergence."""
        baseline = StoredBaseline(stored, device=self.device)
        baseline.check(windows, vocab_size=self.split.vocab_size)
        before = getattr(self._inner.config, "_attn_implementation", None)
        other = "eager" if before == "sdpa" else None
        name = "one window per forward" + (", eager attention instead of sdpa" if other else "")

        def scores() -> Iterator[WindowScores]:
            with _attention(self._inner, other):
                for start, rows, hidden in self._bodies(windows, 1):
                    yield from self._score(rows, hidden, (baseline, start))

        return name, scores()

    def score_cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, stored: Path | None) -> Iterator[CachedScores]:
        """Scores of each window at the targets after the warm-up, each call reading what those before it left in the cache."""
        baseline = None if stored is None else StoredBaseline(stored, device=self.device)
        if baseline is not None:
            baseline.check(windows, vocab_size=self.split.vocab_size)
        for number, rows, hidden in self._cached_bodies(windows, split, self.kv):
            scores = self._score(rows, hidden, None if baseline is None else (baseline, number))[0]
            own = None
            if kv_types.quantized(self.kv):
                _, _, plain = next(self._cached_bodies(windows[number : number + 1], split, ""))
                own = self._against(rows, hidden, plain)
            yield CachedScores(scores=scores, own=own)

    def store_cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, folder: Path) -> StoredFacts:
        """Keeps the final hidden states [windows, T-1-W, hidden] of what is scored after the warm-up, and the head."""
        positions = split.scored(equal_length(windows))
        bodies = self._cached_bodies(windows, split, self.kv)
        return keep_baseline(folder, lambda partial: self._store_states(windows, positions, bodies, partial))

    def _cached_bodies(
        self, windows: Sequence[Sequence[int]], split: CachedSplit, kv: str
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """As `_bodies`, of the ids from the last of the warm-up on. One window at a time: a cache may have one scale for its
        rows."""
        if "past_key_values" not in self._forward_takes:
            raise Unsupported("this architecture keeps a state and no keys and values, so there is no type to keep them in")
        for number, window in enumerate(windows):
            self._fits(number, len(window))
            row = torch.tensor([list(window)], dtype=torch.long, device=self.device)
            began = time.perf_counter()
            with torch.inference_mode():
                hidden = kv_cache.hidden_states(self.split, row, split, kv)
            self._seconds += time.perf_counter() - began
            yield number, row[:, split.warm_up :], hidden

    def _against(self, rows: torch.Tensor, hidden: torch.Tensor, plain: torch.Tensor) -> WindowScores:
        """Scores of hidden states [1, T-1, H] of ids [1, T] against those of the same weights with a plain cache."""
        with torch.inference_mode():
            flat, states = (each.reshape(-1, each.shape[-1]) for each in (hidden, plain))
            out = self._compared(flat, states, self.split.head, rows[0, 1:])
        return window_scores({name: values.cpu().numpy() for name, values in out.items()})

    def store_baseline(self, windows: Sequence[Sequence[int]], folder: Path) -> StoredFacts:
        """Keeps the final hidden states [windows, T-1, hidden] and the head in `folder`, which appears at once and complete.

        Streams: one batch is in memory at a time. Returns the facts that are stored too. All windows have one length T; raises
        BadInput otherwise.
        """
        positions, bodies = equal_length(windows) - 1, self._bodies(windows, TOKENS_PER_BATCH)
        return keep_baseline(folder, lambda partial: self._store_states(windows, positions, bodies, partial))

    def _store_states(
        self,
        windows: Sequence[Sequence[int]],
        positions: int,
        bodies: Iterator[tuple[int, torch.Tensor, torch.Tensor]],
        folder: Path,
    ) -> StoredFacts:
        cut = self.split
        head = plain_head(cut, self._inner, windows[0])
        width = cut.hidden_size if head is not None else cut.vocab_size
        dtype = cut.hidden_dtype if head is not None else torch.float32
        with states_file(folder / STATES, shape=(len(windows), positions, width), dtype=dtype) as append:
            for _, _, hidden in bodies:
                if head is not None:
                    append(hidden)
                else:
                    flat = hidden.reshape(-1, hidden.shape[-1])
                    for rows in flat.split(cut.chunk_rows()):
                        append(cut.head(rows))
        if head is not None:
            head.save(folder / HEAD)
        return stored_facts(
            windows,
            folder,
            cut=cut.note,
            width=width,
            vocab_size=cut.vocab_size,
            dtype=dtype,
            head=head,
            positions=positions,
        )

    def _fits(self, number: int, length: int) -> None:
        context = getattr(self._inner.config.get_text_config(), "max_position_embeddings", None)
        if length < 2:
            raise BadInput(f"window {number} has {length} token(s); at least 2 are needed to score one")
        if context is not None and length - 1 > context:
            raise Unsupported(
                f"windows of {length} tokens do not fit the model's context of {context}; choose a smaller `window`"
            )

    def _bodies(self, windows: Sequence[Sequence[int]], budget: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """(index of the first window, ids [B, T], hidden states [B, T-1, H]) of consecutive batches of equally long windows.

        B = budget / T, at least 1. Halved, and tried again, if memory runs out; the last id of a window is never an input.
        """
        cut = self.split
        start = 0
        limit = len(windows)
        while start < len(windows):
            length = len(windows[start])
            self._fits(start, length)
            # Where neighbours change an answer, a window stands alone.
            most = min(limit, max(1, budget // length)) if cut.together else 1
            stop = start + 1
            while stop < len(windows) and stop - start < most and len(windows[stop]) == length:
                stop += 1
            rows = torch.tensor([list(window) for window in windows[start:stop]], dtype=torch.long, device=self.device)
            began = time.perf_counter()
            try:
                with torch.inference_mode():
                    hidden = cut.body(rows[:, :-1])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or stop - start == 1:
                    raise
                limit = (stop - start) // 2
                _free_device_memory()
                continue
            self._seconds += time.perf_counter() - began
            yield start, rows, hidden
            start = stop

    def _score(self, rows: torch.Tensor, hidden: torch.Tensor, baseline: tuple[StoredBaseline, int] | None) -> list[WindowScores]:
        began = time.perf_counter()
        with torch.inference_mode():
            scored = self._scored(rows, hidden, baseline)
        self._seconds += time.perf_counter() - began
        return scored

    def _scored(
        self, rows: torch.Tensor, hidden: torch.Tensor, baseline: tuple[StoredBaseline, int] | None
    ) -> list[WindowScores]:
        cut = self.split
        count, positions = rows.shape[0], rows.shape[1] - 1
        flat = hidden.reshape(count * positions, -1)
        targets = rows[:, 1:].reshape(-1)
        if baseline is None:
            out = {"nll": -cut.scores(flat, targets)[0]}
        else:
            stored, first = baseline
            states = stored.states(first, count).reshape(count * positions, -1)
            if cut.block is not None and isinstance(stored.head, PlainHead) and self.device.type == "cpu":
                out = compare_in_blocks(flat, cut.block, states, stored.head.block, targets, vocab_size=cut.vocab_size)
            else:
                out = self._compared(flat, states, stored.head, targets)
        arrays = {name: values.view(count, positions).cpu().numpy() for name, values in out.items()}
        return [window_scores({name: array[i] for name, array in arrays.items()}) for i in range(count)]

    def _compared(
        self, flat: torch.Tensor, states: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], targets: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """As `compare_in_blocks`, the whole vocabulary at once for a chunk of rows."""
        cut = self.split
        out = {name: torch.empty(len(targets), dtype=torch.float32, device=flat.device) for name in NAMES}
        step = cut.chunk_rows()
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            for name, values in token_scores(cut.head(flat[part]), targets[part], head(states[part])).items():
                out[name][part] = values
        return out

    # ------------------------------------------------------------------ lm-eval

    def lm(self, *, plans: Path | None = None) -> FastLM | CachedLM:
        """The `lm_eval.api.model.LM` over this very model object, made once; `plans` is where it keeps what it planned. Keys and
        values of another type are read from the cache."""
        if self._lm is None:
            from harness.scoring import FastLM
            from harness.scoring.cached_lm import CachedLM
            from harness.scoring.requests import longest_input, source_config

            longest = None if self._model_dir is None else longest_input(source_config(self._model_dir), self._tokenizer)
            if self._own_cache:
                self._lm = CachedLM(self.split, self.kv, tokenizer=self._tokenizer, max_length=longest, plan_folder=plans)
            else:
                self._lm = FastLM(
                    pretrained=self.model, tokenizer=self._tokenizer, plan_folder=plans, cut=self.split, max_length=longest
                )
        return self._lm

    # ------------------------------------------------------------------ cost

    def time_generation(self, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> Timing:
        """One greedy generation, timed token by token. The loop is written out, so that no generation library's overhead is
        measured.

        `ttft_seconds` ends when the first token is known; each later entry is one decode step of the whole batch.
        """
        self._quality_only()
        prompt = self._prompt(prompt_tokens, batch, seed)
        steps: list[float] = []
        self._synchronize()
        moments.tell("begin")
        began = time.perf_counter()
        token, cache = self._step(prompt, None)
        self._synchronize()
        ttft = time.perf_counter() - began
        moments.tell("first token")
        for _ in range(new_tokens - 1):
            began = time.perf_counter()
            token, cache = self._step(token, cache)
            self._synchronize()
            steps.append(time.perf_counter() - began)
        moments.tell("end")
        return Timing(ttft_seconds=ttft, step_seconds=tuple(steps))

    def run_phase(self, phase: str, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> dict[str, int]:
        """`prefill`: the prompt up to its first token; its cache is kept. `decode`: `new_tokens` - 1 more steps from there (so
        that its peak is its own), or, if that prompt was not prefilled just before, prefill and those steps; `continued` says
        which. Returns the cache's bytes at the end."""
        if phase not in ("prefill", "decode"):
            raise ValueError(f"unknown phase {phase!r}")
        self._quality_only()
        asked = (prompt_tokens, batch, seed)
        held, self._prefilled = self._prefilled, None
        continued = phase == "decode" and held is not None and held[0] == asked
        if held is None or not continued:
            held = None  # an earlier prompt's cache is no part of this phase
            token, cache = self._step(self._prompt(*asked), None)
        else:
            _, token, cache = held
            held = None
        for _ in range(new_tokens - 1 if phase == "decode" else 0):
            token, cache = self._step(token, cache)
        self._synchronize()
        if phase == "prefill":
            self._prefilled = (asked, token, cache)
        tokens = prompt_tokens + (new_tokens - 1 if phase == "decode" else 0)
        return {"kv_cache_bytes": bytes_of(cache), "kv_cache_tokens": tokens, "batch": batch, "continued": continued}

    @property
    def _own_cache(self) -> bool:
        """Whether keys and values are kept in another type than the model computes in."""
        return any(word not in ("", _KV_NAMES.get(self._inner.dtype, "")) for word in kv_types.halves(self.kv))

    def _quality_only(self) -> None:
        if self._own_cache:
            raise Unsupported(
                f"kv {self.kv}: transformers unpacks such a cache before each step and keeps some of it unquantized, so its "
                "memory and speed are not those of the type; its quality is measured"
            )

    def _prompt(self, tokens: int, batch: int, seed: int) -> torch.Tensor:
        """Random token ids [batch, tokens], the same for the same seed on every device."""
        generator = torch.Generator().manual_seed(seed)
        table: Any = self._inner.get_input_embeddings()
        vocab = int(table.weight.shape[0])
        return torch.randint(0, vocab, (batch, tokens), generator=generator).to(self.device)

    def _step(self, ids: torch.Tensor, cache: object) -> tuple[torch.Tensor, object]:
        """(next greedy ids [batch, 1], cache): one forward of the model as its users call it, logits of the last position
        only."""
        takes = self._forward_takes
        # Recurrent architectures keep their state under another name: Mamba in cache_params, RWKV in state.
        name = next(name for name in ("past_key_values", "cache_params", "state") if name in takes)
        given: dict[str, object] = {} if cache is None else {name: cache}
        if "logits_to_keep" in takes:
            given["logits_to_keep"] = 1
        with torch.inference_mode():
            output = self._inner(input_ids=ids, use_cache=True, **given)
            self._answered = True
            return output.logits[:, -1:].argmax(dim=-1), getattr(output, name)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # ------------------------------------------------------------------ facts

    def _notes(self) -> tuple[str, ...]:
        note = remark(getattr(self._inner, "dtype", torch.float32)) if self.device.type == "cpu" else None
        said = kv_types.note("transformers", self.kv) if self._own_cache else None
        return tuple(each for each in (note, said) if each is not None)

    def facts(self) -> EngineFacts:
        if not self._answered:  # some formats are unpacked by the first forward pass, and held so from then on
            self._step(self._prompt(1, 1, 0), None)
        kernels = tuple(self._kernels())
        return EngineFacts(
            engine="transformers",
            device=str(self.device),
            kernels=kernels,
            simulated=any(layer.dequantized for layer in kernels),
            resident_weight_bytes=bytes_of(self._inner),
            notes=self._notes(),
            details={
                "model_class": type(self._inner).__name__,
                "attention": str(getattr(self._inner.config, "_attn_implementation", "")),
                "threads": torch.get_num_threads(),
                **({"kv_cache": kv_types.said("transformers", self.kv)} if self.kv else {}),
            },
        )


# ---------------------------------------------------------------------- small parts


@contextmanager
def _attention(model: PreTrainedModel, implementation: str | None) -> Iterator[None]:
    """Another attention implementation of the same model for a while; None changes nothing."""
    if implementation is None:
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _free_device_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
