"""`EndpointLM`: lm-eval's requests answered by a server, on the tokens that every other engine is asked.

Tokenization, requests and the cutting of answers are `FastLM`'s, which are lm-eval's. Log-likelihoods are sums of what the
server says of the prompt's tokens; generation is greedy. An input that does not fit the server's context is its refusal, never
a shorter input.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lm_eval.utils
import torch
import transformers
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    configure_pad_token,
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from harness.errors import ServerTrouble, Unsupported
from harness.runtimes.openai_server import AT_ONCE, Endpoint
from harness.scoring.generate import is_greedy
from harness.scoring.lm import FastLM, Pair, strings_to_encode

MOST_STOPS = 4
"""Stop strings of one request: the OpenAI API takes four. All of them are applied here again, so fewer only cost time."""


class EndpointLM(FastLM):
    """An `lm_eval.api.model.LM` over a server. `model_dir`: the source model, for its limits and end-of-sequence ids."""

    def __init__(self, server: Endpoint, *, model_dir: Path) -> None:
        TemplateLM.__init__(self)  # not FastLM's: that one takes a torch model
        self.server = server
        self.config = transformers.AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
        self.tokenizer = configure_pad_token(server.tokenizer, model_config=self.config)
        self.add_bos_token = None
        self.think_end_token = None
        self.chat_template_args = {}
        self._prefix_token_id = None
        self._max_length = None
        self._encoded = {}
        self._prefix_text = (-1, "")
        self._tokenizer_digest = None
        self._device = torch.device("cpu")
        self.notes = []
        self.model_seconds = 0.0
        self.requests = 0
        self.asked_tokens = 0
        self.uncounted = 0

    @property
    def max_length(self) -> int:
        """Longest input in tokens: the source's limit, as for every other engine."""
        return int(resolve_max_length(self.config, self.tokenizer))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        texts = [tuple(request.args) for request in requests]
        self._encode_ahead(strings_to_encode(texts))
        pairs = [self._pair(*text) for text in texts]
        self._encoded.clear()
        answers = self._answers(pairs)
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        pairs: list[Pair] = []
        bounds = [0]
        for request in requests:
            windows = lm_eval.utils.get_rolling_token_windows(
                token_list=self.tok_encode(str(request.args[0])),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs += [lm_eval.utils.make_disjoint_window(window) for window in windows]
            bounds.append(len(pairs))
        scores = [score for score, _ in self._answers(pairs)]
        return [sum(scores[first:end]) for first, end in itertools.pairwise(bounds)]

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        return self._answers([(context, continuation) for _, context, continuation in requests])

    def _answers(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """(sum of the continuation's log-probabilities, is each its position's most likely token) of every pair; equal inputs
        are asked once."""
        # A model's input is all but the last token, cut from the left to the longest that it takes: lm-eval's rule.
        inputs = [tuple((context + continuation)[-(self.max_length + 1) :]) for context, continuation in pairs]
        distinct = sorted(set(inputs))
        began = time.perf_counter()
        found = dict(zip(distinct, self.server.score(distinct), strict=True))
        self.model_seconds += time.perf_counter() - began
        self.requests += len(distinct)
        self.asked_tokens += sum(map(len, distinct))
        answers = []
        for ids, (_, continuation) in zip(inputs, pairs, strict=True):
            scored = found[ids]
            part = slice(max(1, len(ids) - len(continuation)), None)
            if bool((scored.logprob[part] != scored.logprob[part]).any()) and scored.logprob[1] != scored.logprob[1]:
                raise Unsupported("the server gives no log-probability of the first token after BOS, which this task asks for")
            answers.append((float(scored.logprob[part].sum()), bool(scored.greedy[part].all())))
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        answers = [""] * len(requests)
        for numbers in groups.values():
            kwargs = dict(normalize_gen_kwargs(requests[numbers[0]].args[1], self.max_gen_toks))
            end = None if self.eot_token_id is None else self.tok_decode([self.eot_token_id], skip_special_tokens=False)
            until = handle_stop_sequences(kwargs.pop("until", None), eos=end)
            most = int(kwargs.pop("max_gen_toks"))
            if most >= self.max_length:
                raise ValueError(f"max_gen_toks {most} leaves no room for a prompt: the model takes {self.max_length} tokens")
            if not is_greedy(kwargs, None):
                raise Unsupported("this task samples or penalizes; a server is asked greedily only")
            prompts = [self._prompt(requests[number].args[0], self.max_length - most) for number in numbers]
            stops = [text for text in until if text and text != end][:MOST_STOPS]
            began = time.perf_counter()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                texts = list(pool.map(lambda ids, m=most, s=stops: self._generated(ids, m, s), prompts))
            self.model_seconds += time.perf_counter() - began
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = str(postprocess_generated_text(text, until, None))
                self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return answers

    def _generated(self, ids: list[int], most: int, stops: list[str]) -> str:
        body = {"prompt": self.server.prompt(ids), "max_tokens": most, **self.server.greedy, **({"stop": stops} if stops else {})}
        choice, usage = self.server.complete(body)
        self.server.counted(ids, usage)
        self.uncounted += "prompt_tokens" not in usage
        self.requests += 1
        self.asked_tokens += len(ids)
        if not isinstance(choice.get("text"), str):
            raise ServerTrouble(f"server {self.server.client.url}: a completion came without text", "error")
        return str(choice["text"])

    def report(self) -> dict[str, Any]:
        """What was asked, as plain data for a record."""
        return {
            "engine": "endpoint",
            "prompts": self.server.prompts.note,
            "greedy": self.server.greedy,
            "requests": self.requests,
            "asked_tokens": self.asked_tokens,
            "prompts_not_counted_by_the_server": self.uncounted,
            "server": self.server.introduced,
            "fingerprints": sorted(self.server.fingerprints),
        }
