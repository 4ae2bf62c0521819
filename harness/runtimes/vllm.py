"""vLLM inside this process: its engine core without processes of its own, so that the loaded model is in reach.

Token ids in; final hidden states and float32 logits over the whole vocabulary out. The states are what vLLM's own model returns
for the tokens of a step, read by a hook; the logits are made of them by vLLM's own head (`compute_logits`). That they are the
ones it answers from is checked: the token that vLLM chooses after each of the first prompts has the largest logit here as well.

A step's tokens lie one request after another, in an order that is vLLM's own. So a step is asked whole prompts only, and its rows
are told apart by the tokens themselves. Prefixes are not cached: states of cached tokens would not be computed.

`quiet` has to run before anything of vLLM is imported; importing this module does it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import Unsupported, is_out_of_memory
from harness.spec import OptionValue

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",  # a measurement tells nobody
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model in this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the harness says how many threads compute, and pins none
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_HOST_IP": "127.0.0.1",  # nothing is asked of a network
}

SERVER_SETTINGS = {name: value for name, value in SETTINGS.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
"""The same for its own server, which has processes of its own."""

STARTS = 8
"""So many prompts are checked against the token that vLLM chose."""

LOGIT_BYTES = 64 << 20
"""Logits of one piece at most."""

NEAR = 0.25
"""How far the logit of the token that vLLM chose may lie below the largest one: two steps of bf16 at 16, for equals."""


def quiet() -> None:
    """Settings that vLLM reads from the environment when it is imported."""
    os.environ.update(SETTINGS)


quiet()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the model was given in one step, and what it returned: ids [n], positions [n], hidden states [n, H]."""

    ids: Tensor
    positions: Tensor
    hidden: Tensor


class Core:
    """One model in vLLM. `settings` by the names of its engine arguments; `w4a8`: whether 4-bit layers round their inputs to 8
    bits on a CPU that has units for it."""

    def __init__(self, folder: Path, *, settings: Mapping[str, object], w4a8: bool) -> None:
        """Unsupported, with vLLM's message in short, for an artifact that it cannot load."""
        os.environ |= rounding(w4a8=w4a8)
        import vllm

        self.version: str = vllm.__version__
        self.engine = _engine(folder, settings, self.version)
        self.runner: Any = self.engine.model_executor.driver_worker.worker.model_runner
        self.model: Any = self.runner.get_model()
        self.config: Any = self.engine.vllm_config
        self._numbers = itertools.count()
        self._seen: list[Seen] | None = None
        self._checked = 0
        self._held: list[str] = []
        self.seconds = 0.0
        self.model.register_forward_hook(self._watch, with_kwargs=True)

    # ------------------------------------------------------------------ limits

    @property
    def vocab_size(self) -> int:
        return int(self.config.model_config.get_vocab_size())

    @property
    def context_length(self) -> int:
        return int(self.config.model_config.max_model_len)

    @property
    def step_tokens(self) -> int:
        """Tokens of one step at most."""
        return int(self.config.scheduler_config.max_num_batched_tokens)

    @property
    def step_rows(self) -> int:
        return int(self.config.scheduler_config.max_num_seqs)

    # ------------------------------------------------------------------ states and logits

    def hidden(self, prompts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Final hidden states [tokens, H] of each prompt, in order. A prompt fits the context with one token to come."""
        for group in self._groups(prompts):
            yield from self._states(group)

    def logits(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first row, float32 logits [n, vocabulary]) of hidden states [N, H], piece by piece."""
        import torch

        step = max(1, LOGIT_BYTES // (4 * self.vocab_size))
        for start in range(0, len(hidden), step):
            began = time.perf_counter()
            with torch.inference_mode():
                piece = self.model.compute_logits(hidden[start : start + step])[:, : self.vocab_size].float().cpu()
            self.seconds += time.perf_counter() - began
            yield start, piece

    def log_probabilities(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Log-probabilities [positions, vocabulary] (float32) after each token but the last of each row (the reload check)."""
        import torch

        pieces = [piece for hidden in self.hidden([row[:-1] for row in rows]) for _, piece in self.logits(hidden)]
        return torch.log_softmax(torch.cat(pieces), dim=-1)

    def _groups(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """Neighbours that fit one step. A prompt that does not is alone, and taken in several steps."""
        group: list[Sequence[int]] = []
        for prompt in prompts:
            if group and (sum(map(len, group)) + len(prompt) > self.step_tokens or len(group) == self.step_rows):
                yield group
                group = []
            group.append(prompt)
        if group:
            yield group

    def _states(self, group: Sequence[Sequence[int]]) -> list[Tensor]:
        import torch

        self._drop()
        began = time.perf_counter()
        self._seen = []
        try:
            chosen = self.generate(group, most=1, finished=lambda new: True)
        finally:
            seen, self._seen = self._seen, None
        self.seconds += time.perf_counter() - began
        if len(group) == 1:
            ids, hidden = torch.cat([one.ids for one in seen]), torch.cat([one.hidden for one in seen])
            rows = {tuple(ids[: len(group[0])].tolist()): hidden[: len(group[0])]}
        else:
            rows = _rows(seen, sum(map(len, group)))
        try:
            states = [rows[tuple(prompt)] for prompt in group]
        except KeyError:
            raise RuntimeError("vLLM's model was given other tokens than were asked; its hidden states are no one's") from None
        self._check(states, [new[0] for new in chosen])
        return states

    def _check(self, states: Sequence[Tensor], chosen: Sequence[int]) -> None:
        """RuntimeError where the logits made here are not those that vLLM chose its tokens by."""
        for hidden, token in zip(states, chosen, strict=True):
            if self._checked >= STARTS:
                return
            self._checked += 1
            row = next(self.logits(hidden[-1:]))[1][0]
            if bool(row.isfinite().all()) and not float(row[token]) >= float(row.max()) - NEAR:
                raise RuntimeError(
                    f"vLLM chose a token whose logit is {float(row.max() - row[token]):.3g} below the largest one made of the "
                    "hidden states read from its model: they are not those that it answers from"
                )

    def _watch(self, module: object, args: tuple[object, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if self._seen is None:
            return
        ids, positions = kwargs.get("input_ids"), kwargs.get("positions")
        if ids is None or positions is None or not hasattr(output, "clone"):
            raise Unsupported("vLLM gives this model its inputs otherwise than as token ids, so its states cannot be told apart")
        places = positions[-1] if positions.dim() > 1 else positions
        self._seen.append(Seen(ids=ids.clone(), positions=places.clone(), hidden=output.clone()))

    # ------------------------------------------------------------------ tokens

    def generate(
        self, prompts: Sequence[Sequence[int]], *, most: int, finished: Callable[[Sequence[int]], bool]
    ) -> list[list[int]]:
        """New ids (at most `most`, the finishing ones included) of every prompt, greedy, in order."""
        self._drop()
        names = {self.add(prompt, most): place for place, prompt in enumerate(prompts)}
        new: list[list[int]] = [[] for _ in prompts]
        while self.engine.has_unfinished_requests():
            for name, ids, done in self.step():
                new[names[name]] = ids
                if not done and finished(ids):
                    self.engine.abort_request([name])
        return new

    def add(self, prompt: Sequence[int], most: int) -> str:
        """Queues a request for `most` greedy tokens; its name."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = SamplingParams(
            temperature=0.0, max_tokens=most, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.CUMULATIVE
        )
        name = f"quant-harness-{next(self._numbers)}"
        self.engine.add_request(name, {"prompt_token_ids": list(prompt)}, asked)
        return name

    def step(self) -> list[tuple[str, list[int], bool]]:
        """One step of the engine: (request, its new ids so far, whether it is done) of each request that got a token."""
        return [(one.request_id, list(one.outputs[0].token_ids), bool(one.finished)) for one in self.engine.step()]

    def begin(self, prompts: Sequence[Sequence[int]], most: int) -> None:
        """Prefills prompts in one step and keeps them for `go_on`. Unsupported where one step does not take them all."""
        self._drop()
        tokens = sum(map(len, prompts))
        if tokens > self.step_tokens or len(prompts) > self.step_rows:
            raise Unsupported(
                f"{len(prompts)} prompts of {tokens} tokens are more than one step of vLLM takes here ({self.step_rows} rows, "
                f"{self.step_tokens} tokens): raise max_num_seqs and max_num_batched_tokens in the suite, or take a smaller batch"
            )
        if max(map(len, prompts)) + most > self.context_length:
            raise Unsupported(
                f"{max(map(len, prompts)) + most} tokens do not fit vLLM's context of {self.context_length} here; choose a "
                "shorter prompt or fewer new tokens, or raise max_model_len"
            )
        self._held = [self.add(prompt, most) for prompt in prompts]
        self._one_each(1)

    def go_on(self, number: int) -> None:
        """One more token, the `number`th, of every prompt that was begun."""
        self._one_each(number)

    def _one_each(self, number: int) -> None:
        said = self.step()
        if sorted(name for name, _, _ in said) != sorted(self._held) or any(len(ids) != number for _, ids, _ in said):
            raise RuntimeError("vLLM's step did not give one token to each prompt, so what was timed is no such step")

    def _drop(self) -> None:
        """Ends what `begin` has left."""
        held, self._held = self._held, []
        if held and self.engine.has_unfinished_requests():
            self.engine.abort_request(held)
            while self.engine.has_unfinished_requests():
                self.step()

    # ------------------------------------------------------------------ what it holds

    def pool_bytes(self) -> int:
        """What is reserved for keys and values."""
        tensors = [one for each in self.runner.kv_caches for one in (each if isinstance(each, (list, tuple)) else [each])]
        return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())

    def used_bytes(self) -> int:
        """Keys and values of the requests that are held now, in whole blocks."""
        pool = self.engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
        taken = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # one block belongs to nobody
        return int(self.pool_bytes() * taken // pool.num_gpu_blocks)

    @property
    def block_tokens(self) -> int:
        return int(self.config.cache_config.block_size)


def rounding(*, w4a8: bool) -> dict[str, str]:
    """The setting of vLLM's CPU kernels for 4 bits, as its environment has it."""
    return {"VLLM_CPU_INT4_W4A8": "1" if w4a8 else "0"}


def arguments(*, dtype: str, kv: str, flags: Mapping[str, OptionValue]) -> dict[str, object]:
    """vLLM's settings for a way of running, by the names of its own engine arguments. Nothing but safetensors is read, and no
    code of a checkpoint is run."""
    own = {name: flags[name] for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens") if flags[name]}
    return {
        "dtype": dtype,
        "kv_cache_dtype": kv or "auto",
        "enforce_eager": bool(flags["enforce_eager"]),
        "tensor_parallel_size": int(flags["tensor_parallel_size"] or 1),
        "kv_cache_memory_bytes": int(float(flags["kv_cache_gib"] or 1) * (1 << 30)),
        "load_format": "safetensors",
        "generation_config": "vllm",
        "trust_remote_code": False,
        "seed": 0,
        **own,
    }


def _engine(folder: Path, settings: Mapping[str, object], version: str) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    apart = {"skip_tokenizer_init": True, "enable_prefix_caching": False, "async_scheduling": False, "disable_log_stats": True}
    try:
        return LLMEngine.from_engine_args(EngineArgs(model=str(folder), **settings, **apart))
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # whatever vLLM raises of a checkpoint is its verdict on it
        if is_out_of_memory(error):
            raise
        raise Unsupported(f"vLLM {version} cannot load this artifact: {shortened(error, folder)}") from error


def shortened(error: BaseException, folder: Path) -> str:
    """An error of vLLM in one line without this machine's folders: its kind and what it says, its help and hints left out."""
    said = " ".join(str(error).replace(str(folder), "(artifact)").split())
    for mark in ("[type=", "For further information"):  # of pydantic, which holds the settings
        said = said.partition(mark)[0].strip()
    return f"{type(error).__name__}: {said[:300]}{' ...' if len(said) > 300 else ''}"


def _rows(seen: Sequence[Seen], tokens: int) -> dict[tuple[int, ...], Tensor]:
    """The states of the prompts of one step, by their ids: each begins where a position is 0."""
    first = seen[0]
    ids, places, hidden = first.ids[:tokens], first.positions[:tokens], first.hidden[:tokens]
    begins = [*(places == 0).nonzero().flatten().tolist(), tokens]
    return {tuple(ids[a:b].tolist()): hidden[a:b] for a, b in itertools.pairwise(begins)}
