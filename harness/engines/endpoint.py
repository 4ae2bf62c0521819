"""The engine for a running server that speaks the OpenAI API: asked over HTTP, on the source model's own tokens.

What the server can answer is found out by asking before anything is measured (`harness.runtimes.openai_server`); what it cannot
is typed `unsupported` with the reason. **Divergence** needs the whole distribution at each position: servers give the few
largest, and what is left out is not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from harness.engines.base import EngineFacts, Timing, WindowScores, load_tokenizer
from harness.errors import Unsupported
from harness.methods.base import LoadRequest, Method
from harness.runtimes.openai_server import Server
from harness.spec import Served

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.scoring.endpoint import EndpointLM

PARTIAL = (
    "a server gives the few largest log-probabilities of a position and not the whole distribution, so its divergence from "
    "the baseline is not known; measure its checkpoint as a model of the suite, or compare perplexities"
)


def load(method: Method, request: LoadRequest) -> Endpoint:
    """Asks the server who it is; the tokenizer is the source model's."""
    if not isinstance(request.origin, Served):
        raise TypeError("only a server is asked over HTTP")
    return Endpoint(Server(request.origin, load_tokenizer(request.model_dir)), model_dir=request.model_dir)


class Endpoint:
    """A server that answers (the engines' `Loaded`, and `Partial`)."""

    def __init__(self, server: Server, *, model_dir: Path) -> None:
        self.model = server
        self._model_dir = model_dir
        self._lm: EndpointLM | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    # ------------------------------------------------------------------ windows

    def lacks(self, ability: Literal["windows", "distributions"]) -> str | None:
        """Why this server cannot answer `windows` or give `distributions`; None where it can."""
        return PARTIAL if ability == "distributions" else self.model.no_scores

    def score_windows(self, windows: Sequence[Sequence[int]], stored: Path | None) -> Iterator[WindowScores]:
        """`nll` of each window of T ids at its T-1 targets. Unsupported with a stored baseline: divergence cannot be had."""
        if stored is not None:
            raise Unsupported(PARTIAL)
        for number, (window, scored) in enumerate(zip(windows, self.model.score(windows), strict=True)):
            if len(window) > 1 and math.isnan(scored.logprob[1]):
                raise Unsupported(
                    f"window {number}: the server gives no log-probability of the first token after BOS, so the window's sum is "
                    "not known"
                )
            yield WindowScores(nll=(-scored.logprob[1:]).astype(np.float32))

    def store_baseline(self, windows: Sequence[Sequence[int]], folder: Path) -> Mapping[str, object]:
        raise Unsupported(PARTIAL)

    # ------------------------------------------------------------------ lm-eval

    def lm(self, *, plans: Path | None = None) -> EndpointLM:
        """The `lm_eval.api.model.LM` over this server, made once. It plans nothing: the server shares what it likes."""
        if self._lm is None:
            from harness.scoring.endpoint import EndpointLM

            self._lm = EndpointLM(self.model, model_dir=self._model_dir)
        return self._lm

    # ------------------------------------------------------------------ cost

    def time_generation(self, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> Timing:
        raise Unsupported("a server is timed by the probe `serving`, over HTTP")

    def run_phase(self, phase: str, *, prompt_tokens: int, new_tokens: int, batch: int, seed: int) -> dict[str, object]:
        """Has the server answer `batch` requests of that shape together, so that it holds what it needs for them."""
        new = 1 if phase == "prefill" else new_tokens
        prompts = [self.model.timed_prompt(prompt_tokens, seed + row) for row in range(batch)]
        with ThreadPoolExecutor(batch) as pool:
            rows = list(pool.map(lambda prompt: self.model.stream(prompt, new), prompts))
        return {"new_tokens": [row.new for row in rows], "prompt_tokens": [row.prompt for row in rows], "continued": False}

    # ------------------------------------------------------------------ facts

    def facts(self) -> EngineFacts:
        return EngineFacts(
            engine="endpoint",
            device="server",
            kernels=(),
            simulated=False,
            resident_weight_bytes=0,
            notes=self.model.notes,
            details={"server": self.model.introduced, "fingerprints": sorted(self.model.fingerprints)},
        )
