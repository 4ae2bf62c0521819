"""`FastLM`: lm-eval's Hugging Face answers for a fraction of the work.

    from harness.scoring import FastLM
    lm_eval.simple_evaluate(model=FastLM(pretrained="path-or-model"), tasks=["hellaswag"])

Tasks, prompts, filters and metrics stay lm-eval's; tokenization follows its `hf` backend to the letter
(`TemplateLM._encode_pair` is inherited). What differs is the work: prefixes are computed once, the output head runs where a token
is scored, log-probabilities are taken in float32 whatever the model's dtype.

Sharing is proven before it is used: a canary batch is answered packed and plain at construction, and the deepest input of the
data once more. What cannot share (windows shorter than an input, recurrent layers, ALiBi) runs as plain rows; `report()` says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lm_eval.utils
import numpy as np
import torch
import transformers
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    configure_pad_token,
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from harness.models.corpora import tokenizer_digest
from harness.scoring.execute import Executor
from harness.scoring.generate import Stops, generate, generate_plain, is_greedy
from harness.scoring.head import Split, device_of, split, unwrap
from harness.scoring.plan import HEADER_OVERHEAD, Plan, make_plan
from harness.scoring.plan_cache import PlanCache
from harness.scoring.sharing import allowed_deviation, proven_limit
from harness.scoring.widened import products

Pair = tuple[list[int], list[int]]
Encoded = tuple[list[Pair], list[int] | None]
"""Requests as ids, and where each answer begins if an answer is the sum over several (bounds[d] to bounds[d + 1])."""


@register_model("fastlm")
class FastLM(TemplateLM):  # type: ignore[misc]
    """An `lm_eval.api.model.LM` over a causal transformers model.

    `pretrained`: a model object (any loader's; kept as it is) or a path or hub id. `tokenizer`: an object, a path, or None (the
    model's). `device`, `dtype`, `revision`, `trust_remote_code` and further keywords serve loading only. `add_bos_token`,
    `prefix_token_id`, `max_length`, `think_end_token`, `chat_template_args` mean what they mean to lm-eval's `hf`. `plan_folder`:
    where plans are kept and found again, per tokenizer and requests (None: nowhere). `share=False` runs plain rows only. `cut`:
    this model's `split`, if it is there already.
    `batch_size` and `max_batch_size` are accepted, because lm-eval passes them, and ignored: batches follow from memory.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        tokenizer: Any = None,
        device: str | None = None,
        dtype: Any = "auto",
        revision: str = "main",
        trust_remote_code: bool = False,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: dict[str, Any] | None = None,
        plan_folder: str | os.PathLike[str] | None = None,
        share: bool = True,
        cut: Split | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **loading: Any,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, (str, os.PathLike)):
            source = os.fspath(pretrained)
            if isinstance(dtype, str) and dtype != "auto":
                dtype = getattr(torch, dtype)
            if device is None:
                device = "cuda" if torch.cuda.is_available() else "cpu"
            pretrained = transformers.AutoModelForCausalLM.from_pretrained(
                source, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, **loading
            ).to(device)
        elif loading:
            raise TypeError(f"these keywords serve loading, but a loaded model was given: {', '.join(sorted(loading))}")
        else:
            source = str(getattr(unwrap(pretrained), "name_or_path", ""))
        self.model = unwrap(pretrained)
        self.model.eval()
        if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
            given = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source if tokenizer is None else os.fspath(tokenizer),
                revision=revision,
                trust_remote_code=trust_remote_code,
                **given,
            )
        self.tokenizer = configure_pad_token(tokenizer, model_config=self.model.config)
        self.add_bos_token = add_bos_token
        digits = isinstance(think_end_token, str) and think_end_token.isdigit()  # lm-eval's command line gives strings
        self.think_end_token: str | int | None = int(str(think_end_token)) if digits else think_end_token
        self.chat_template_args = chat_template_args or {}
        self._prefix_token_id = prefix_token_id
        self._max_length = max_length
        self._device = device_of(self.model)
        self._encoded: dict[tuple[str, bool | None], list[int]] = {}
        self._prefix_text: tuple[int, str] = (-1, "")
        self._tokenizer_digest: str | None = None
        self._tokens: dict[str, int] = {"plain": 0, "run": 0, "scored": 0}
        self._verified_depth = 0
        self.notes: list[str] = []
        self.plans = PlanCache(None if plan_folder is None else Path(plan_folder), self.notes)
        self.model_seconds = 0.0
        self.split = split(self.model) if cut is None else cut
        if self.split.kind != "direct":
            self.notes.append(f"output head: {self.split.note}")
        self.executor = Executor(self.split)
        self.share_limit, remark = proven_limit(self.model, self.executor) if share else (0, "prefix sharing is switched off")
        self.share = self.share_limit > 0
        if remark:
            self.notes.append(remark)

    # ---- what lm-eval asks of a model ----

    @property
    def eot_token_id(self) -> int:
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
        return self._max_length or int(resolve_max_length(self.model.config, self.tokenizer))

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
        import jinja2

        def render(messages: list[dict[str, str]]) -> str:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.chat_template_args,
            )
            return text

        try:
            return render(chat_history)
        except jinja2.exceptions.TemplateError:
            return render([message for message in chat_history if message["role"] != "system"])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a string, by the rules of lm-eval's `hf` on special tokens."""
        flag = self._special(string, add_special_tokens)
        known = self._encoded.get((string, flag))
        if known is None:
            known = self.tokenizer.encode(string, **({} if flag is None else {"add_special_tokens": flag}))
        return list(known)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, is it what greedy decoding gives) for every (context, continuation)."""
        texts = [tuple(request.args) for request in requests]
        plan = self._plan("loglikelihood", texts, lambda: ([self._pair(*text) for text in texts], None))
        answers = self._run(plan)
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of every whole document, in windows of `max_length` as lm-eval cuts them."""
        texts = [str(request.args[0]) for request in requests]

        def windows() -> Encoded:
            found: list[Pair] = []
            bounds = [0]
            for text in texts:
                for window in lm_eval.utils.get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ):
                    found.append(lm_eval.utils.make_disjoint_window(window))
                bounds.append(len(found))
            return found, bounds

        plan = self._plan("rolling", texts, windows)
        answers = [answer for answer, _ in self._run(plan)]
        for text, value in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), value)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string. Greedy ones (the default) go through the shared-prefix engine, others through
        `transformers.generate`, in groups of equal prompt length."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        answers = [""] * len(requests)
        for numbers in groups.values():
            given = requests[numbers[0]].args[1]
            kwargs = dict(normalize_gen_kwargs(given, self.max_gen_toks))
            end = None if self.eot_token_id is None else self.tok_decode([self.eot_token_id], skip_special_tokens=False)
            until = handle_stop_sequences(kwargs.pop("until", None), eos=end)
            most = int(kwargs.pop("max_gen_toks"))
            if most >= self.max_length:
                raise ValueError(f"max_gen_toks {most} leaves no room for a prompt: the model takes {self.max_length} tokens")
            prompts = [self._prompt(requests[number].args[0], self.max_length - most) for number in numbers]
            began = time.perf_counter()
            generated = self._generate(prompts, kwargs, until, most)
            self.model_seconds += time.perf_counter() - began
            for number, new in zip(numbers, generated, strict=True):
                text = self._finish_text(new, until)
                answers[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return answers

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        """lm-eval's entry for requests that are tokens already."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        plan = self._make(pairs, None)
        return self._run(plan if self._holds(plan) else self._make(pairs, None))

    # ---- facts ----

    def report(self) -> dict[str, Any]:
        """What was done, as plain data for a record: how the head was cut, what was shared and why not, work counted."""
        run = self._tokens["run"]
        return {
            "engine": "fastlm",
            "head": self.split.facts(),
            "prefix_sharing": self.share,
            "prefix_sharing_limit": self.share_limit if self.share else 0,
            "notes": list(self.notes),
            "plans_made": self.plans.made,
            "plans_from_disk": self.plans.from_disk,
            "tokens_of_plain_rows": self._tokens["plain"],
            "tokens_run": run,
            "tokens_with_padding": self.executor.padded_tokens,
            "tokens_scored": self._tokens["scored"],
            "model_calls": self.executor.calls,
            "batch_tokens": self.executor.budget_tokens,
            "out_of_memory_retries": self.executor.out_of_memory,
        }

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
            given = {} if flag is None else {"add_special_tokens": flag}
            for string, ids in zip(strings, self.tokenizer(list(strings), **given)["input_ids"], strict=True):
                self._encoded[(string, flag)] = ids

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
        ids: list[int] = self.tokenizer(text, **({} if flag is None else {"add_special_tokens": flag}))["input_ids"]
        return ids[-longest:]

    # ---- plans ----

    def _plan(self, kind: str, texts: Sequence[Any], encode: Callable[[], Encoded]) -> Plan:
        """The plan of these requests; a plain one if packed execution does not hold on them."""
        plan = self._load_or_make(kind, texts, encode)
        return plan if self._holds(plan) else self._load_or_make(kind, texts, encode)

    def _load_or_make(self, kind: str, texts: Sequence[Any], encode: Callable[[], Encoded]) -> Plan:
        """Found on disk, or made (and kept there)."""

        def key() -> list[Any]:
            asked = [self.tokenizer_digest(), kind, self.prefix_token_id, self.add_bos_token, self.max_length]
            return [*asked, self._hidden_size(), self.share, self.share_limit, *self._plan_settings(), texts]

        def make() -> Plan:
            self._encode_ahead(((text, None) for text in texts) if kind == "rolling" else strings_to_encode(texts))
            pairs, bounds = encode()
            self._encoded.clear()
            return self._make(pairs, bounds)

        return self.plans.find_or_make(key, make)

    def _make(self, pairs: Sequence[Pair], bounds: Sequence[int] | None) -> Plan:
        """`bounds`: answer d sums pairs bounds[d] to bounds[d + 1] (None: one pair each)."""
        plan = make_plan(
            pairs,
            max_length=self.max_length,
            hidden_size=self._hidden_size(),
            share=self.share,
            share_limit=self.share_limit,
            header_overhead=max(HEADER_OVERHEAD, self.executor.call_tokens),
        )
        return plan if bounds is None else self._summed(plan, bounds)

    def _summed(self, plan: Plan, bounds: Sequence[int]) -> Plan:
        return dataclasses.replace(plan, request_start=plan.request_start[np.array(bounds)])

    def _plan_settings(self) -> list[Any]:
        """What of this executor decides a plan."""
        return [self.executor.call_tokens]

    def _hidden_size(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "hidden_size", self.split.hidden_size))

    def tokenizer_digest(self) -> str:
        """SHA-256 of all that decides how the tokenizer encodes."""
        if self._tokenizer_digest is None:
            self._tokenizer_digest = tokenizer_digest(self.tokenizer)
        return self._tokenizer_digest

    # ---- running ----

    def _run(self, plan: Plan) -> list[tuple[float, bool]]:
        self._count(plan)
        began = time.perf_counter()
        answers = plan.collect(*self.executor.run(plan))
        self.model_seconds += time.perf_counter() - began
        return answers

    def _count(self, plan: Plan) -> None:
        self._tokens["plain"] += plan.plain_tokens
        self._tokens["run"] += plan.tokens
        self._tokens["scored"] += len(plan.target)

    def _holds(self, plan: Plan) -> bool:
        """Whether packed execution gives the model's own hidden states at the depth of this data. Asked again only when data is
        twice as deep as what was verified; once it fails, everything runs as plain rows."""
        if not plan.shared or plan.deepest <= 2 * self._verified_depth:
            return True
        deviation = self.executor.deviation(plan)
        if deviation <= allowed_deviation(self.split.hidden_dtype):
            self._verified_depth = plan.deepest
            return True
        self.share = False
        self.notes.append(
            f"plain rows: at {plan.deepest} tokens, packed hidden states differ from plain ones by {deviation:.3g} of their size"
        )
        return False

    def _generate(self, prompts: list[list[int]], kwargs: dict[str, Any], until: list[str], most: int) -> list[list[int]]:
        config = getattr(self.model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        stops = Stops(self.tokenizer, until, [] if ends is None else [ends] if isinstance(ends, int) else list(ends))
        deepest = max(map(len, prompts)) + most
        if self.share and deepest <= self.share_limit and is_greedy(kwargs, config):
            return generate(self.executor, prompts, most=most, finished=stops)
        with products(self._device, self.split.hidden_dtype):
            return generate_plain(self.model, self.tokenizer, prompts, kwargs, most=most, finished=stops)

    def _finish_text(self, new: list[int], until: list[str]) -> str:
        """Text of the new tokens, cut at the first stop string, without the thinking part (lm-eval's rules)."""
        think = self.think_end_token
        if isinstance(think, int):
            ends = [place for place, token in enumerate(new) if token == think]
            text = self.tok_decode(new[ends[-1] + 1 :] if ends else new).lstrip()
        else:
            text = self.tok_decode(new)
        return str(postprocess_generated_text(text, until, think if isinstance(think, str) else None))


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
