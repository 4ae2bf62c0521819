"""What lm-eval asks of a model, apart from how a model answers: the base of all scorers.

`RequestsLM` turns requests into token ids by the rules of lm-eval's `hf` backend, to the letter (`TemplateLM._encode_pair` is
inherited), and turns answers back into what lm-eval expects. A scorer says how pairs of ids are scored and how prompts go on.
`planned.PlannedLM` is one that scores by plans.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval.utils
import torch
import transformers
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    configure_pad_token,
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from harness.errors import Unsupported
from harness.scoring.chat import Conversations

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Pair = tuple[list[int], list[int]]
"""Ids of a context and of its continuation."""

Answer = tuple[float, bool]
"""Sum of the continuation's log-probabilities in nats, and whether each of its tokens is the most likely one at its place."""

Text = tuple[str, str] | str
"""(context, continuation) of a log-likelihood, or a whole document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Requests as ids. `bounds`: answer d sums the pairs bounds[d] to bounds[d + 1]; None where every pair has its answer."""

    pairs: Sequence[Pair]
    bounds: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How prompts are to go on: at most `most` new tokens, up to one of the strings `until`, the end of text `end` among them
    where the tokenizer has one. `sampling`: what else the task asks of `transformers.generate`."""

    until: list[str]
    most: int
    end: str | None
    sampling: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class HfSettings:
    """Settings of lm-eval's `hf` backend; each means here what it means there."""

    max_length: int | None = None
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    think_end_token: str | int | None = None
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)


class RequestsLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """The lm-eval side of a scorer.

    `config`: the source model's configuration. Its limit is that of every cell of the model, in every engine: an input that is
    longer is cut from the left, as lm-eval does, in all of them alike, and counted. `context_length`: what this runtime or file
    takes at most; an input that is longer than that and fits the model is Unsupported, because other cells answer it whole.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        config: PreTrainedConfig,
        device: torch.device | None = None,
        context_length: int | None = None,
        settings: HfSettings | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: PreTrainedTokenizerBase = configure_pad_token(tokenizer, model_config=config)
        settings = settings or HfSettings()
        self.add_bos_token = settings.add_bos_token
        think = settings.think_end_token
        # lm-eval's command line gives strings.
        self.think_end_token = int(think) if isinstance(think, str) and think.isdigit() else think
        self.chat_template_args = dict(settings.chat_template_args)
        self._max_length = settings.max_length or longest_input(config, self.tokenizer)
        self._context_length = context_length
        self._inputs = self._inputs_cut = 0
        self._whole = False
        self._prefix_token_id = settings.prefix_token_id
        self._device = device or torch.device("cpu")
        self._encoded: dict[tuple[str, bool | None], list[int]] = {}
        self._prefix_text: tuple[int, str] = (-1, "")
        self.notes: list[str] = []
        self.model_seconds = 0.0

    # ---- what a scorer says ----

    @abstractmethod
    def _answers(self, kind: str, texts: Sequence[Text], encode: Callable[[], Encoded]) -> list[Answer]:
        """The answers to requests of a kind (`loglikelihood`, `rolling`). `encode` gives their ids: who finds a plan on disk
        need not call it."""

    @abstractmethod
    def _token_answers(self, pairs: Sequence[Pair]) -> list[Answer]:
        """The answers to pairs of ids."""

    @abstractmethod
    def _generate(self, prompts: list[list[int]], asked: Generation) -> Sequence[list[int] | str]:
        """What follows each prompt: new ids, or text from a server that gives nothing else."""

    @abstractmethod
    def report(self) -> dict[str, object]:
        """What was done, as plain data for a record."""

    # ---- what does not fit ----

    def _count(self, inputs: int, cut: int) -> None:
        """Counts inputs that were asked, and those that were cut to the longest. Unsupported where none may be."""
        if cut and self._whole:
            raise Unsupported(
                f"{cut} of {inputs} inputs of this task are longer than the {self.max_length} tokens that the model takes; the "
                "beginning may be what is asked for; ask a shorter one, or a model of a longer context"
            )
        self._inputs += inputs
        self._inputs_cut += cut

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, an input that would be cut is Unsupported: of a text that is searched, the end is another text."""
        self._whole = True
        try:
            yield
        finally:
            self._whole = False

    def _must_fit(self, tokens: int) -> None:
        """Unsupported where an input of so many tokens, new ones included, is longer than this runtime takes."""
        if self._context_length is not None and tokens > self._context_length:
            raise Unsupported(
                f"an input of {tokens} tokens does not fit the context of {self._context_length} that this artifact has, and the "
                f"model itself takes {self.max_length}; cut here and whole in other cells, the answers could not be compared"
            )

    def _said(self) -> list[str]:
        """The notes, and how many inputs were cut."""
        if not self._inputs_cut:
            return list(self.notes)
        return [
            *self.notes,
            f"{self._inputs_cut} of {self._inputs} inputs are longer than the {self.max_length} tokens that the model takes; "
            "their beginnings were cut, in every cell of the model alike",
        ]

    def _limits(self) -> dict[str, object]:
        """The part of `report` on what fits."""
        return {"longest_input": self.max_length, "inputs": self._inputs, "inputs_cut": self._inputs_cut}

    # ---- what lm-eval asks of a model ----

    @property
    def eot_token_id(self) -> int | None:
        """End of text, as lm-eval's `hf` has it: the tokenizer's end-of-sequence id."""
        return self.tokenizer.eos_token_id  # type: ignore[no-any-return]

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context: given, or beginning of sequence, or end of sequence."""
        for token in (self._prefix_token_id, self.tokenizer.bos_token_id):
            if token is not None:
                return int(token)
        return self.tokenizer.eos_token_id  # type: ignore[no-any-return]

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """New tokens of a generation that names no limit (lm-eval's default)."""
        return 256

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text; a template that refuses a system message gets the chat without it (as lm-eval does)."""
        chats = Conversations(tokenizer=self.tokenizer, arguments=self.chat_template_args)
        return chats(chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids of a string, by the rules of lm-eval's `hf` on special tokens."""
        flag = self._special(string, add_special_tokens)
        known = self._encoded.get((string, flag))
        if known is None:
            known = self.tokenizer.encode(string, **_flag(flag))
        return list(known)

    def tok_decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """(log-probability of the continuation in nats, is it what greedy decoding gives) for every (context, continuation)."""
        texts = [tuple(request.args) for request in requests]
        answers = self._answers("loglikelihood", texts, lambda: self._encode_pairs(texts))
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of every whole document, in windows of `max_length` as lm-eval cuts them."""
        texts = [str(request.args[0]) for request in requests]
        answers = [answer for answer, _ in self._answers("rolling", texts, lambda: self._encode_windows(texts))]
        for text, value in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), value)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string; requests that ask for the same settings are generated together."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        answers = [""] * len(requests)
        for numbers in groups.values():
            asked = self._generation(requests[numbers[0]].args[1])
            prompts = [self._prompt(requests[number].args[0], self.max_length - asked.most) for number in numbers]
            self._must_fit(max(map(len, prompts)) + asked.most)
            began = time.perf_counter()
            generated = self._generate(prompts, asked)
            self.model_seconds += time.perf_counter() - began
            for number, new in zip(numbers, generated, strict=True):
                answers[number] = self._finish_text(new, asked.until)
                self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[object, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[Answer]:
        """lm-eval's entry for requests that are tokens already."""
        return self._token_answers([(context, continuation) for _, context, continuation in requests])

    # ---- tokens ----

    def _special(self, string: str, add_special_tokens: bool | None) -> bool | None:
        """The `add_special_tokens` to encode with; None = the tokenizer's default."""
        if add_special_tokens is not None:
            return add_special_tokens
        prefix = self.prefix_token_id
        if prefix is not None and self._prefix_text[0] != prefix:
            self._prefix_text = (prefix, str(self.tokenizer.decode(prefix)))
        if prefix is not None and has_bos_prefix(string, self._prefix_text[1]):
            return False
        return self.add_bos_token

    def _encode_ahead(self, wanted: Iterable[tuple[str, bool | None]]) -> None:
        """Encodes many strings in one call each per flag: the tokenizer's own threads do the work."""
        by_flag: dict[bool | None, dict[str, None]] = {}
        for string, add in wanted:
            by_flag.setdefault(self._special(string, add), {})[string] = None
        for flag, strings in by_flag.items():
            for string, ids in zip(strings, self.tokenizer(list(strings), **_flag(flag))["input_ids"], strict=True):
                self._encoded[(string, flag)] = ids

    def _encode_pairs(self, texts: Sequence[tuple[str, str]]) -> Encoded:
        """(context, continuation) texts as ids."""
        self._encode_ahead(strings_to_encode(texts))
        pairs = [self._pair(*text) for text in texts]
        self._encoded.clear()
        return Encoded(pairs=pairs)

    def _encode_windows(self, texts: Sequence[str]) -> Encoded:
        """Whole documents as ids, in windows of `max_length`."""
        self._encode_ahead((text, None) for text in texts)
        pairs: list[Pair] = []
        bounds = [0]
        for text in texts:
            for window in lm_eval.utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                pairs.append(lm_eval.utils.make_disjoint_window(window))
            bounds.append(len(pairs))
        self._encoded.clear()
        return Encoded(pairs=pairs, bounds=bounds)

    def _pair(self, context: str, continuation: str) -> Pair:
        """Context and continuation ids of a request (lm-eval's rule; an empty context is the prefix token)."""
        if context:
            pair: Pair = self._encode_pair(context, continuation)
            return pair
        ids = self.tok_encode(continuation, add_special_tokens=False)
        if ids and ids[0] == self.prefix_token_id:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    def _prompt(self, text: str, longest: int) -> list[int]:
        """Ids of a generation's prompt, cut from the left."""
        flag = False if has_bos_prefix(text, getattr(self.tokenizer, "bos_token", None)) else self.add_bos_token
        ids: list[int] = self.tokenizer(text, **_flag(flag))["input_ids"]
        self._count(1, len(ids) > longest)
        return ids[-longest:]

    # ---- generation ----

    def _generation(self, given: dict[str, object]) -> Generation:
        """A request's settings. ValueError where the new tokens leave no room for a prompt."""
        kwargs = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        end = None if self.eot_token_id is None else self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(kwargs.pop("until", None), eos=end)
        most = int(kwargs.pop("max_gen_toks"))
        if most >= self.max_length:
            raise ValueError(f"max_gen_toks {most} leaves no room for a prompt: the model takes {self.max_length} tokens")
        return Generation(until=until, most=most, end=end, sampling=kwargs)

    def _finish_text(self, new: list[int] | str, until: list[str]) -> str:
        """The answer's text, cut at the first stop string, without the thinking part (lm-eval's rules)."""
        think = self.think_end_token
        if isinstance(new, str):
            text = new
        elif isinstance(think, int):
            ends = [place for place, token in enumerate(new) if token == think]
            text = self.tok_decode(new[ends[-1] + 1 :] if ends else new).lstrip()
        else:
            text = self.tok_decode(new)
        return str(postprocess_generated_text(text, until, think if isinstance(think, str) else None))


def source_config(model_dir: Path) -> PreTrainedConfig:
    """The source model's configuration; code that a checkpoint brings along is never run."""
    config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
    return config


def longest_input(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input of a model in tokens, as lm-eval's `hf` reads it: derived from the source for all cells of a model."""
    return int(resolve_max_length(config, tokenizer))


def ends_of(config: object) -> list[int]:
    """The ids that end a sequence, of a generation configuration (or of None)."""
    ends = getattr(config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def sums(answers: Sequence[Answer], bounds: Sequence[int]) -> list[Answer]:
    """One answer for each stretch bounds[d] to bounds[d + 1]."""
    parts = [answers[first:end] for first, end in itertools.pairwise(bounds)]
    return [(sum(value for value, _ in part), all(greedy for _, greedy in part)) for part in parts]


def strings_to_encode(texts: Sequence[tuple[str, str]]) -> Iterable[tuple[str, bool | None]]:
    """The strings that encoding these pairs will ask for (the same whitespace rule as `TemplateLM._encode_pair`)."""
    for context, continuation in texts:
        if not context:
            yield continuation, False
            continue
        bare = context.rstrip()
        if bare != context:
            yield bare + context[len(bare) :] + continuation, None
            yield bare, None
        else:
            yield context + continuation, None
            yield context, None


def _flag(add_special_tokens: bool | None) -> dict[str, bool]:
    """The tokenizer's keyword, left away where its default is wanted."""
    return {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
