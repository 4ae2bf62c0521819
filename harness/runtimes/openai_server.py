"""A running OpenAI-compatible server: what it can be asked, and how its log-probabilities are read and checked.

What it can answer is found out by asking (canaries):

- **prompts** go as token ids where the server takes them and counts as many; else as text, whose tokens are counted and
  compared by the server's own count;
- **log-likelihoods** (`echo`, `logprobs` of /completions) are used only where log-probabilities of the prompt come back, for
  these very tokens (by id where the server gives ids, else piece by piece); where a token's does not change with what comes
  after it; and where the distribution at a place does not change with the token that stands there. A server exists that fails
  the last of these (llama-cpp-python 0.3.36 for models without BOS is one token late) and looks right otherwise.

A server's sampling defaults are overridden (temperature 0, no penalties) as far as it takes the fields; what it does in spite of
them cannot be seen from here. See docs/endpoint.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.errors import ServerTrouble, Unsupported
from harness.runtimes.http import Client, Limits, Refused
from harness.spec import Served

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt: TypeAlias = str | list[int]
"""What a request carries as its prompt: text, or token ids."""

SAMPLE = "The quick brown fox jumps over the lazy dog, and then it sleeps until the sun comes up again."
"""What canaries ask. Plain words: any tokenizer that fits the model reads them."""

AT_ONCE = 4
"""Requests in flight when scoring: servers batch what comes together. It is only a strategy, and in no key."""

AGREEMENT_NATS = 0.05
"""A token's log-probability in a prompt and in the prompt's beginning: the same but for rounding, more in 16 bits or less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One prompt's scores: `logprob` in nats float64 [T], NaN where the server says none; `best` that of the most likely token;
    `greedy` bool [T]: no other token is more likely. Entry 0 has no meaning."""

    logprob: NDArray[np.float64]
    best: NDArray[np.float64]
    greedy: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """One timed request in seconds since it was sent: the first piece of text and the answer's end. `new` tokens as the server
    counts them (None: it does not), `pieces` of text, `prompt` tokens as counted, why it `finished`. A first token that is only
    a part of a character shows with the next one."""

    first_seconds: float
    last_seconds: float
    pieces: int
    new: int | None
    prompt: int | None
    finished: str

    @property
    def tpot_seconds(self) -> float | None:
        """(end - first) / (new tokens - 1); None where there are fewer than two, or nobody counted."""
        return None if self.new is None or self.new < 2 else (self.last_seconds - self.first_seconds) / (self.new - 1)


class _NotTheseTokens(Exception):
    """Prompt log-probabilities that cannot be taken for those of the tokens asked; says why."""


def client(origin: Served, limits: Limits | None = None) -> Client:
    return Client(url=origin.url.rstrip("/"), token_env=origin.token_env, limits=limits or Limits())


def introduce(origin: Served, limits: Limits | None = None) -> dict[str, object]:
    """What the server says of the model that it is asked for; ServerTrouble where it does not list it."""
    server, wanted = client(origin, limits), origin.model
    reply = server.get("/models")
    rows = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(rows, list):
        raise ServerTrouble(f"server {server.url}: GET /models gives no list of models; `url` usually ends with /v1", "error")
    listed = {str(row.get("id")): row for row in rows if isinstance(row, dict)}
    if wanted not in listed:
        known = ", ".join(repr(name[:100]) for name in sorted(listed)[:8]) or "none"
        raise ServerTrouble(f"server {server.url}: it has no model {wanted!r}; it lists {known}", "environment")
    plain = {str(k)[:60]: v for k, v in listed[wanted].items() if isinstance(v, (str, int, float, bool)) or v is None}
    return {"url": server.url, "model": {k: v[:200] if isinstance(v, str) else v for k, v in list(plain.items())[:20]}}


class Server:
    """One model of a server, asked on token ids of the source's `tokenizer`."""

    def __init__(self, origin: Served, tokenizer: PreTrainedTokenizerBase, *, limits: Limits | None = None) -> None:
        self.client = client(origin, limits)
        self.introduced = introduce(origin, limits)
        self.served = origin.model
        self.tokenizer = tokenizer
        self.fingerprints: set[str] = set()

    # ------------------------------------------------------------------ requests

    def complete(self, body: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
        """(first choice, usage) of a completion; ServerTrouble if the reply is no completion."""
        reply = self.client.post("/completions", {"model": self.served, **body})
        reply = reply if isinstance(reply, dict) else {}
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ServerTrouble(f"server {self.client.url}: its reply holds no completion", "error")
        fingerprint = reply.get("system_fingerprint")
        if isinstance(fingerprint, str):
            self.fingerprints.add(fingerprint[:100])
        usage = reply.get("usage")
        return choices[0], usage if isinstance(usage, dict) else {}

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """What to send as `prompt` for these token ids. Unsupported where only text can be sent and none stands for them."""
        how = self.prompts
        if how.by_ids:
            return list(ids)
        plain = list(ids)
        if how.adds_bos:
            if not plain or plain[0] != self.tokenizer.bos_token_id:
                raise Unsupported("this server takes text and puts BOS before it, and this request begins with no BOS")
            plain = plain[1:]
        elif plain and plain[0] in set(self.tokenizer.all_special_ids):
            raise Unsupported("this server takes text only, and a special token at the beginning of a request is no text")
        return str(self.tokenizer.decode(plain, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def counted(self, ids: Sequence[int], usage: Mapping[str, object]) -> None:
        """Unsupported if the server counts other prompt tokens than were asked: it did not read the same prompt."""
        counted = usage.get("prompt_tokens")
        if isinstance(counted, int) and counted != len(ids):
            raise Unsupported(
                f"the server reads a prompt of {len(ids)} tokens as {counted}, so its question is not that of other cells"
            )

    # ------------------------------------------------------------------ what the server can do

    @property
    def notes(self) -> tuple[str, ...]:
        """What has been learned of the server so far; asks nothing."""
        return (self.prompts.note,) if "prompts" in vars(self) else ()

    @cached_property
    def prompts(self) -> Prompts:
        """How prompts can be given. Unsupported where the server reads them as other tokens than the source's tokenizer."""
        tokenizer = self.tokenizer
        plain: list[int] = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
        try:
            _, usage = self.complete({"prompt": plain, "max_tokens": 1, "temperature": 0})
            counted = usage.get("prompt_tokens")
            if counted == len(plain):
                return Prompts(by_ids=True, adds_bos=False, note="prompts as token ids")
            why = "it does not count" if counted is None else f"it counts {counted} of {len(plain)} tokens"
        except Refused as refusal:
            why = f"it refuses them: {refusal}"
        _, usage = self.complete({"prompt": SAMPLE, "max_tokens": 1, "temperature": 0})
        counted = usage.get("prompt_tokens")
        ours = len(tokenizer(SAMPLE)["input_ids"])  # with BOS, where the tokenizer puts one
        if counted == len(plain) or counted == ours == len(plain) + 1:
            return Prompts(by_ids=False, adds_bos=counted != len(plain), note=f"prompts as text (token ids: {why})")
        said = "does not say how many tokens it reads" if counted is None else f"reads {counted} tokens"
        raise Unsupported(
            f"the server {said} where the source's tokenizer has {ours} ({SAMPLE!r}), so nothing shows that it serves this model"
        )

    @cached_property
    def no_scores(self) -> str | None:
        """Why log-probabilities of prompts cannot be had, or None: see the module's promises."""
        ids: list[int] = self.tokenizer(SAMPLE)["input_ids"]
        cut = len(ids) * 2 // 3
        try:
            whole, start = self._scores(ids), self._scores(ids[:cut])
            others = [self._scores([*ids[:cut], other]).best[cut] for other in self._others(ids, cut)]
        except (_NotTheseTokens, Unsupported) as reason:
            return f"no log-probabilities of prompts: {reason}"
        except Refused as refusal:
            return f"no log-probabilities of prompts: {refusal}"
        same = np.abs(whole.logprob[2 : len(start.logprob)] - start.logprob[2:])
        if np.isfinite(same).any() and float(np.nanmax(same)) > AGREEMENT_NATS:
            return (
                f"no log-probabilities of prompts that can be used: a token's differs by {float(np.nanmax(same)):.2g} nats "
                "with what comes after it"
            )
        if not others:
            return "no log-probabilities of prompts: no prompts were found to try them on (this tokenizer joins all words)"
        spread = np.abs(np.array(others) - whole.best[cut])
        if np.isfinite(spread).any() and float(np.nanmax(spread)) > AGREEMENT_NATS:
            return (
                "no log-probabilities of prompts that can be used: the distribution at a place changes with the token that "
                f"stands there (by {float(np.nanmax(spread)):.2g} nats), so they are those of another place, as "
                "llama-cpp-python gives them for models without BOS"
            )
        return None

    def _others(self, ids: Sequence[int], cut: int) -> list[int]:
        """Up to four tokens that may stand in the place of ids[cut], so that the text of it all is read as these tokens."""
        others: list[int] = []
        for token in dict.fromkeys(ids):
            if token in (ids[cut], *self.tokenizer.all_special_ids):
                continue
            text = self.tokenizer.decode([*ids[:cut], token], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if list(self.tokenizer(text)["input_ids"]) == [*ids[:cut], token]:
                others.append(token)
        return others[:4]

    # ------------------------------------------------------------------ scores

    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[Scored]:
        """Scores of prompts in order, a few in flight. Unsupported where the server gives none for prompts, or not for these."""
        reason = self.no_scores
        if reason is not None:
            raise Unsupported(reason)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                yield from pool.map(self._checked, sequences)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _checked(self, ids: Sequence[int]) -> Scored:
        try:
            return self._scores(ids)
        except _NotTheseTokens as reason:
            raise Unsupported(f"a prompt of {len(ids)} tokens: {reason}") from None

    def _scores(self, ids: Sequence[int]) -> Scored:
        # One new token, thrown away: not every server takes none. Temperature 1 leaves log-probabilities as they are.
        body: dict[str, object] = {"prompt": self.prompt(ids), "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 1.0}
        if self.prompts.by_ids:
            body["return_tokens_as_token_ids"] = True  # vLLM then names tokens by id; others ignore it
        choice, usage = self.complete(body)
        self.counted(ids, usage)
        return read_scores(choice.get("logprobs"), ids, self.tokenizer)

    # ------------------------------------------------------------------ timed requests

    def stream(self, prompt: Prompt, new_tokens: int) -> Streamed:
        """One streamed greedy generation. The text's first piece may hold several tokens; tokens are the server's count."""
        body: dict[str, object] = {
            "model": self.served,
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
        }
        body |= {"stream_options": {"include_usage": True}, **({"ignore_eos": True} if self.ignores_eos else {})}
        first = last = 0.0
        pieces = 0
        finished = ""
        usage: dict[str, object] = {}
        for when, event in self.client.stream("/completions", body):
            if not isinstance(event, dict):
                continue
            usage = event["usage"] if isinstance(event.get("usage"), dict) else usage
            choices = event.get("choices")
            choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
            if choice.get("text"):
                pieces += 1
                first = first or when
            last = when if choice else last  # the last tokens may have no text of their own
            finished = str(choice.get("finish_reason") or finished)[:40]
        if not finished:
            raise ServerTrouble(f"server {self.client.url}: its stream ended before the answer did", "error")
        if not pieces:
            raise ServerTrouble(f"server {self.client.url}: a streamed completion came without any text", "error")
        count = [usage.get(name) for name in ("completion_tokens", "prompt_tokens")]
        new, asked = (n if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 10**7 else None for n in count)
        return Streamed(first_seconds=first, last_seconds=last, pieces=pieces, new=new, prompt=asked, finished=finished)

    @cached_property
    def greedy(self) -> dict[str, float]:
        """Temperature 0 and no penalties, in all dialects that the server takes: llama-cpp-python penalizes what it has said
        before (1.1) unless told not to, greedy or not."""
        plain: dict[str, float] = {"temperature": 0, "presence_penalty": 0, "frequency_penalty": 0}
        for dialects in (("repeat_penalty", "repetition_penalty"), ("repetition_penalty",), ("repeat_penalty",)):
            body = {**plain, **dict.fromkeys(dialects, 1.0)}
            try:
                self.complete({"prompt": SAMPLE, "max_tokens": 1, **body})
            except Refused:
                continue
            return body
        return plain

    @cached_property
    def ignores_eos(self) -> bool:
        """Whether the server takes `ignore_eos` (vLLM, SGLang, llama-server), so that every timed row is as long as asked."""
        try:
            self.complete({"prompt": SAMPLE, "max_tokens": 1, "temperature": 0, "ignore_eos": True})
        except Refused:
            return False
        return True

    def timed_prompt(self, tokens: int, seed: int) -> Prompt:
        """A prompt of random tokens, another for each seed, so that no server's prefix cache knows it. As text it may be read as
        a few tokens more or less: the server's count is what is reported."""
        special = set(self.tokenizer.all_special_ids)
        source = np.random.default_rng(seed)
        drawn = source.integers(0, len(self.tokenizer), size=4 * tokens + 64).tolist()
        ids = [token for token in drawn if token not in special][:tokens]
        if self.prompts.by_ids:
            return ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """How a server takes prompts: as token ids, or as text before which it may put BOS itself."""

    by_ids: bool
    adds_bos: bool
    note: str


def read_scores(logprobs: object, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Scored:
    """The scores of the prompt `ids` from a completion's `logprobs` (echoed prompt, at most one new token). Raises
    _NotTheseTokens where they are missing, no numbers, of another length, or of other tokens."""
    if not isinstance(logprobs, dict):
        raise _NotTheseTokens("the server echoes none")
    tokens, values, tops = (logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        raise _NotTheseTokens("`tokens` and `token_logprobs` are not lists of one length")
    if not isinstance(tops, list) or len(tops) != len(values):
        raise _NotTheseTokens("`top_logprobs` is missing, so the most likely token is not known")
    # Servers differ in whether BOS is listed and whether the new token is: the tokens themselves decide.
    why = f"{len(tokens)} tokens come back for {len(ids)}"
    for skipped in (0, 1) if ids and ids[0] == tokenizer.bos_token_id else (0,):
        if len(tokens) - (len(ids) - skipped) in (0, 1):
            wrong = _other_tokens(tokens, ids[skipped:], tokenizer)
            if wrong is None:
                return _aligned(values, tops, len(ids), skipped)
            why = wrong
    raise _NotTheseTokens(why)


def _other_tokens(tokens: Sequence[object], ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why the server's tokens are not these ids, or None. A piece that is part of a character cannot be told, others must be."""
    told = 0
    special = set(tokenizer.all_special_ids)
    for place, (said, token) in enumerate(zip(tokens, ids, strict=False)):
        if not isinstance(said, str):
            return f"token {place} is no text"
        if said.startswith("token_id:"):
            if said != f"token_id:{token}":
                return f"token {place} is {said[:40]!r} where {token} was asked"
            told += 1
            continue
        name = str(tokenizer.convert_ids_to_tokens(token))
        piece = str(tokenizer.decode([token]))
        pieces = {piece, name, name.replace("\u2581", " ").replace("\u0120", " ").replace("\u010a", "\n")}
        if "\ufffd" in said or "\ufffd" in piece or token in special:
            continue
        # A tokenizer that marks the beginnings of words drops the mark when it decodes a piece alone.
        if said not in pieces and said.strip() not in {piece.strip() for piece in pieces if piece.strip()}:
            return f"token {place} is {said[:40]!r} where {name!r} was asked: the server reads other tokens"
        told += 1
    return None if 2 * told >= len(ids) else "which tokens they are of cannot be told"


def _aligned(values: Sequence[object], tops: Sequence[object], length: int, skipped: int) -> Scored:
    """Scores by place in the prompt; `skipped` = tokens at the front that the server does not list."""
    logprob = np.full(length, np.nan)
    highest = np.full(length, np.nan)
    greedy = np.zeros(length, bool)
    for place in range(max(1, skipped), length):
        value, top = values[place - skipped], tops[place - skipped]
        if value is None and skipped and place == skipped:
            continue  # the first listed token has none, as the first token has none elsewhere
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _NotTheseTokens(f"token {place} has no log-probability")
        if value > 1e-3:
            raise _NotTheseTokens(f"token {place} has a log-probability of {value:g}, which is none")
        if not isinstance(top, dict) or not all(isinstance(v, (int, float)) for v in top.values()) or not top:
            raise _NotTheseTokens(f"the most likely tokens at token {place} are missing")
        best = max(float(v) for v in top.values())
        if value > best + AGREEMENT_NATS:
            raise _NotTheseTokens(f"token {place} is more likely than the most likely token")
        logprob[place], highest[place] = min(float(value), 0.0), min(best, 0.0)
        greedy[place] = value >= best
    return Scored(logprob=logprob, best=highest, greedy=greedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What clients saw that asked one request after another: the answered ones, why others failed, seconds of it all."""

    rows: tuple[Streamed, ...]
    failures: tuple[str, ...]
    seconds: float
    prompt_tokens: int | None = None

    @property
    def new_tokens(self) -> int | None:
        counts = [row.new for row in self.rows]
        return None if any(n is None for n in counts) else sum(n for n in counts if n is not None)


def run_load(server: Server, *, clients: int, requests: int, prompt: int, new: int, seed: int, budget_seconds: float) -> Load:
    """`clients` threads, each sending its next request once its last is answered, until `requests` were sent or the budget is
    spent; what was sent is waited for."""
    prompts = [server.timed_prompt(prompt, seed * 1_000_003 + number) for number in range(requests)]
    _ = server.ignores_eos, server.greedy  # asked before the clock starts
    rows: list[Streamed] = []
    failures: list[str] = []
    began = time.perf_counter()
    todo = iter(range(requests))

    def ask() -> None:
        for number in todo:  # a range's iterator hands each number to one thread
            if time.perf_counter() - began > budget_seconds and rows:
                return
            try:
                rows.append(server.stream(prompts[number], new))
            except ServerTrouble as trouble:
                failures.append(str(trouble))

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(ask) for _ in range(clients)]:
            done.result()
    seconds = time.perf_counter() - began
    counted = [row.prompt for row in rows if row.prompt is not None]
    middle = round(statistics.median(counted)) if counted else None
    return Load(rows=tuple(rows), failures=tuple(failures), seconds=seconds, prompt_tokens=middle)
