"""`EndpointLM`: lm-eval's requests answered by a server, on the tokens that every other engine is asked.

Tokenization, requests and the cutting of answers are those of `harness.scoring.requests`. Log-likelihoods are sums of what the
server says of the prompt's tokens; generation is greedy. An input that does not fit the server's context is its refusal, never
a shorter input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.errors import ServerTrouble, Unsupported
from harness.runtimes.openai_server import AT_ONCE, Server
from harness.scoring.generate import is_greedy
from harness.scoring.requests import Answer, Encoded, Generation, Pair, RequestsLM, Text, source_config, sums

MOST_STOPS = 4
"""Stop strings of one request: the OpenAI API takes four. All of them are applied here again, so fewer only cost time."""


class EndpointLM(RequestsLM):
    """An `lm_eval.api.model.LM` over a server. `model_dir`: the source model, for its limits and end-of-sequence ids."""

    def __init__(self, server: Server, *, model_dir: Path) -> None:
        super().__init__(server.tokenizer, config=source_config(model_dir))
        self.server = server
        self.requests = 0
        self.asked_tokens = 0
        self.uncounted = 0

    def _answers(self, kind: str, texts: Sequence[Text], encode: Callable[[], Encoded]) -> list[Answer]:
        encoded = encode()
        answers = self._token_answers(encoded.pairs)
        return answers if encoded.bounds is None else sums(answers, encoded.bounds)

    def _token_answers(self, pairs: Sequence[Pair]) -> list[Answer]:
        """Equal inputs are asked once."""
        # A model's input is all but the last token, cut from the left to the longest that it takes: lm-eval's rule.
        inputs = [tuple((context + continuation)[-(self.max_length + 1) :]) for context, continuation in pairs]
        self._count(len(pairs), sum(len(context) + len(continuation) > self.max_length + 1 for context, continuation in pairs))
        distinct = sorted(set(inputs))
        began = time.perf_counter()
        scores = dict(zip(distinct, self.server.score(distinct), strict=True))
        self.model_seconds += time.perf_counter() - began
        self.requests += len(distinct)
        self.asked_tokens += sum(map(len, distinct))
        answers = []
        for ids, (_, continuation) in zip(inputs, pairs, strict=True):
            scored = scores[ids]
            part = slice(max(1, len(ids) - len(continuation)), None)
            if bool((scored.logprob[part] != scored.logprob[part]).any()) and scored.logprob[1] != scored.logprob[1]:
                raise Unsupported("the server gives no log-probability of the first token after BOS, which this task asks for")
            answers.append((float(scored.logprob[part].sum()), bool(scored.greedy[part].all())))
        return answers

    def _generate(self, prompts: list[list[int]], asked: Generation) -> list[str]:
        if not is_greedy(asked.sampling, None):
            raise Unsupported("this task samples or penalizes; a server is asked greedily only")
        stops = [text for text in asked.until if text and text != asked.end][:MOST_STOPS]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda ids: self._generated(ids, asked.most, stops), prompts))
        self.requests += len(prompts)
        self.asked_tokens += sum(map(len, prompts))
        self.uncounted += sum(not counted for _, counted in answers)
        return [text for text, _ in answers]

    def _generated(self, ids: list[int], most: int, stops: list[str]) -> tuple[str, bool]:
        """The new text, and whether the server counts the prompt's tokens. Runs in threads."""
        body = {"prompt": self.server.prompt(ids), "max_tokens": most, **self.server.greedy, **({"stop": stops} if stops else {})}
        choice, usage = self.server.complete(body)
        self.server.counted(ids, usage)
        text = choice.get("text")
        if not isinstance(text, str):
            raise ServerTrouble(f"server {self.server.client.url}: a completion came without text", "error")
        return text, "prompt_tokens" in usage

    def report(self) -> dict[str, object]:
        """What was asked, as plain data for a record."""
        return {
            "engine": "endpoint",
            "notes": self._said(),
            **self._limits(),
            "prompts": self.server.prompts.note,
            "greedy": self.server.greedy,
            "requests": self.requests,
            "asked_tokens": self.asked_tokens,
            "prompts_not_counted_by_the_server": self.uncounted,
            "server": self.server.introduced,
            "fingerprints": sorted(self.server.fingerprints),
        }
