"""What an engine is: the runtime that loads an artifact and answers.

Every engine answers the same four things: windows of token ids scored over the full vocabulary, requests of lm-eval, timed
prefill and decode, and facts (which kernel ran, what it holds). Probes speak to this Protocol only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from harness.artifact import LayerKernel
from harness.errors import Unsupported
from harness.kv import CachedSplit
from harness.methods.base import LoadRequest, Method, Option
from harness.spec import Json

if TYPE_CHECKING:
    import numpy as np
    from lm_eval.api.model import LM
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowScores:
    """Scores of one window of T token ids: arrays [T-1], position i scores token i+1.

    `nll` in nats. With a stored baseline: `kl` = KL(baseline || this) in nats over the full vocabulary, `same_top` = whether both
    have the same most likely token, `base_top` = the baseline's top probability, `delta_p` = p_this(target) -
    p_baseline(target), `base_nll`. None without a stored baseline.
    """

    nll: NDArray[np.float32]
    kl: NDArray[np.float32] | None = None
    same_top: NDArray[np.bool_] | None = None
    base_top: NDArray[np.float32] | None = None
    delta_p: NDArray[np.float32] | None = None
    base_nll: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedScores:
    """Scores of one window through the cache, arrays [T-1-W] of the targets after the warm-up: `scores` as they are elsewhere;
    `own` against the same weights with keys and values unquantized, None where the cell's are."""

    scores: WindowScores
    own: WindowScores | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One timed generation: `ttft_seconds` = prefill to first token, `step_seconds` = one entry per later token."""

    ttft_seconds: float
    step_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What the engine really holds and runs, once a forward pass has been made: what unpacks its weights does so by then."""

    engine: str
    device: str
    kernels: tuple[LayerKernel, ...]
    simulated: bool
    resident_weight_bytes: int
    notes: tuple[str, ...] = ()
    details: Mapping[str, Json] = field(default_factory=dict)


BASELINE_FACTS = "baseline.json"
"""The file in a stored baseline's folder that holds what `store_baseline` returned."""


class Loaded(Protocol):
    """A loaded artifact that answers. Lives in one child process and is never pickled."""

    @property
    def model(self) -> object:
        """What the method's `load` returned."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the source model."""

    def facts(self) -> EngineFacts:
        """What it holds and runs, after a forward pass: makes a small one where there was none."""

    def score_windows(self, windows: Sequence[Sequence[int]], stored: Path | None) -> Iterator[WindowScores]:
        """Scores windows in order, batched as memory allows; `stored` is a folder written by `store_baseline`."""

    def store_baseline(self, windows: Sequence[Sequence[int]], folder: Path) -> Mapping[str, object]:
        """Keeps this model's answers on `windows` so that others can be compared with it; returns facts (bytes, kind)."""

    def lm(self, *, plans: Path | None = None) -> LM:
        """An `lm_eval.api.model.LM` over this model; what it plans for a set of requests may be kept in the folder `plans`."""

    def time_generation(self, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> Timing:
        """One timed greedy generation of exactly `new_tokens` after `prompt_tokens` random ids, `batch` rows, KV cache on."""

    def run_phase(self, phase: str, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> Mapping[str, Json]:
        """Runs `prefill` or `decode` once for the memory probe and returns its facts: {"kv_cache_bytes": ..., "continued": ...}.

        A prefill's cache is kept until the next call; a decode of the same prompt goes on from it (`continued`), so that its
        peak does not hold the prefill's."""


@runtime_checkable
class Rerun(Protocol):
    """What an engine may offer beside `Loaded`: the same weights under another legitimate execution, for the noise floor of
    divergence."""

    def rerun_windows(self, windows: Sequence[Sequence[int]], stored: Path) -> tuple[str, Iterator[WindowScores]]:
        """(what was executed otherwise, scores of the windows against the stored baseline)."""


@runtime_checkable
class ThroughCache(Protocol):
    """What an engine offers beside `Loaded` whose answers can be had from what it has cached."""

    def score_cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, stored: Path | None) -> Iterator[CachedScores]:
        """Scores windows in order, one at a time, each in the calls of `split`; `stored` is a folder of `store_cached`."""

    def store_cached(self, windows: Sequence[Sequence[int]], split: CachedSplit, folder: Path) -> Mapping[str, object]:
        """As `store_baseline`, of what is scored after the warm-up."""


@runtime_checkable
class Fills(Protocol):
    """What an engine offers beside `Loaded` whose keys and values are weighed from outside."""

    def fill(self, contexts: Sequence[int], *, rows: int, seed: int) -> Iterator[int]:
        """Fills a new cache of `rows` rows of random tokens to each of the ascending `contexts`, and gives the context each time;
        then the cache is let go."""


@runtime_checkable
class Partial(Protocol):
    """What an engine offers beside `Loaded` that cannot answer everything: a server, for one, gives only what its API has."""

    def lacks(self, ability: Literal["windows", "distributions"]) -> str | None:
        """Why it cannot score windows, or give the whole distribution at a position that divergence needs; None where it can."""


@runtime_checkable
class WeightsAlone(Protocol):
    """What an engine offers beside `Loaded` that reads quantized keys and values in one pass already: a check of the weights is
    not to see them."""

    def score_weights(self, windows: Sequence[Sequence[int]], stored: Path | None) -> Iterator[WindowScores]:
        """As `score_windows`, with keys and values unquantized."""


def through_cache(loaded: Loaded) -> ThroughCache:
    """The engine as one whose cache is read. Unsupported where it cannot be asked for that."""
    if not isinstance(loaded, ThroughCache):
        raise Unsupported("this engine gives no scores in several calls of one text, so nothing can be read through its cache")
    return loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An environment of an engine's own. `absent`: packages that are brought along, do not fit, and are taken away again."""

    environment: str
    requirements: tuple[str, ...]
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A row of ENGINES."""

    name: str
    title: str
    modules: tuple[str, ...]
    load: Callable[[Method, LoadRequest], Loaded]  # through the loader of the method's row
    places: Mapping[str, Place] = field(default_factory=dict)  # by kind of device; none: it runs where the method's loader does
    flags: Mapping[str, Option] = field(default_factory=dict)  # its settings of running, which a suite writes beside a method's
    # a server of its own over an artifact, started and stopped: what is asked over HTTP (runtimes/openai_server.py)
    serve: Callable[[LoadRequest], AbstractContextManager[Any]] | None = None

    def place(self, device: str) -> Place | None:
        """Its own environment for a device (`cpu`, `cuda:0`)."""
        return self.places.get(device.partition(":")[0])


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the source model's folder; code that a checkpoint brings along is never run."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False)
    return tokenizer
