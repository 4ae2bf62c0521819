"""`FastLM`: lm-eval's Hugging Face answers for a fraction of the work.

    from harness.scoring import FastLM
    lm_eval.simple_evaluate(model=FastLM(pretrained="path-or-model"), tasks=["hellaswag"])

Tasks, prompts, filters and metrics stay lm-eval's, tokenization follows its `hf` backend (`harness.scoring.requests`). What
differs is the work: prefixes are computed once, the output head runs where a token is scored, log-probabilities are taken in
float32 whatever the model's dtype.

Sharing is proven before it is used (`harness.scoring.sharing`): packed rows against plain ones, batches against single inputs, on
a canary and on the data. What cannot share (windows shorter than an input, recurrent layers, ALiBi) runs as plain rows, what
cannot share a batch runs alone; `report()` says so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from lm_eval.api.registry import register_model

from harness.errors import Unsupported
from harness.scoring.execute import Executor
from harness.scoring.generate import GENERATION_ROWS, Stops, company, generate, generate_plain, is_greedy, together
from harness.scoring.head import Split, allowed_deviation, device_of, split, unwrap
from harness.scoring.plan import HEADER_OVERHEAD, Plan
from harness.scoring.planned import PlannedLM, PlanRules
from harness.scoring.requests import Generation, HfSettings, ends_of
from harness.scoring.sharing import Sharing
from harness.scoring.widened import products

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ALONE = "one input at a time"


@register_model("fastlm")
class FastLM(PlannedLM):
    """An `lm_eval.api.model.LM` over a causal transformers model.

    `pretrained`: a model object (any loader's; kept as it is) or a path or hub id. `tokenizer`: an object, a path, or None (the
    model's). `device`, `dtype`, `revision` and further keywords serve loading only; code of a checkpoint is never run.
    `add_bos_token`, `prefix_token_id`, `max_length`, `think_end_token`, `chat_template_args` mean what they mean to lm-eval's
    `hf`. `plan_folder`: where plans are kept and found again, per tokenizer and requests (None: nowhere). `share=False` runs
    plain rows only. `cut`: this model's `split`, if it is there already. `batch_size` and `max_batch_size` are accepted, because
    lm-eval passes them, and ignored: batches follow from memory.
    """

    def __init__(
        self,
        pretrained: object,
        *,
        tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
        device: str | None = None,
        dtype: str | torch.dtype = "auto",
        revision: str = "main",
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: dict[str, Any] | None = None,
        plan_folder: str | os.PathLike[str] | None = None,
        share: bool = True,
        cut: Split | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        **loading: Any,
    ) -> None:
        source = os.fspath(pretrained) if isinstance(pretrained, (str, os.PathLike)) else None
        if source is not None:
            pretrained = _loaded(source, revision=revision, dtype=dtype, device=device, loading=loading)
        elif loading:
            raise TypeError(f"these keywords serve loading, but a loaded model was given: {', '.join(sorted(loading))}")
        self.model: PreTrainedModel = unwrap(pretrained)
        self.model.eval()
        if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
            own = source or str(getattr(self.model, "name_or_path", ""))
            tokenizer = _tokenizer(own if tokenizer is None else os.fspath(tokenizer), revision, add_bos_token)
        self.split = split(self.model) if cut is None else cut
        self.executor = Executor(self.split)
        self.sharing = Sharing(self.model, self.executor, wanted=share)
        self.share_limit = self.sharing.limit
        self._plain_rows: int | None = None
        super().__init__(
            tokenizer,
            config=self.model.config,
            executor=self.executor,
            rules=PlanRules(
                name=(self.executor.call_tokens,),
                hidden_size=int(getattr(self.model.config.get_text_config(), "hidden_size", self.split.hidden_size)),
                share_limit=self.share_limit,
                header_overhead=max(HEADER_OVERHEAD, self.executor.call_tokens),
            ),
            plan_folder=None if plan_folder is None else Path(plan_folder),
            share=self.share_limit > 0,
            device=device_of(self.model),
            settings=HfSettings(
                max_length=max_length,
                add_bos_token=add_bos_token,
                prefix_token_id=prefix_token_id,
                think_end_token=think_end_token,
                chat_template_args=chat_template_args or {},
            ),
        )
        self.notes += self._remarks()

    def _remarks(self) -> list[str]:
        """What is to be said of the model before it is asked anything."""
        head = "" if self.split.kind == "direct" else f"output head: {self.split.note}"
        alone = f"{ALONE}: a row of the canary batch is not answered as it is alone" if self.executor.alone else ""
        return [remark for remark in (head, self.sharing.remark, alone) if remark]

    def report(self) -> dict[str, object]:
        """What was done, as plain data for a record: how the head was cut, what was shared and why not, work counted."""
        return {
            "engine": "fastlm",
            "head": self.split.facts(),
            **self._planned(),
            "prefix_sharing_limit": self.share_limit if self.share else 0,
            "batches": not self.executor.alone,
            "tokens_with_padding": self.executor.padded_tokens,
            "model_calls": self.executor.calls,
            "batch_tokens": self.executor.budget_tokens,
            "out_of_memory_retries": self.executor.out_of_memory,
        }

    def _holds(self, plan: Plan) -> bool:
        """Whether packed execution gives the model's own hidden states on this data; once it does not, everything runs as plain
        rows. Once a batch changes answers, every row runs alone."""
        refused = self.sharing.check(plan)
        if refused.company is not None and not self.executor.alone:
            self.executor.alone = True
            self.notes.append(f"{ALONE}: {refused.company}")
        if refused.packed is None or not self.share:
            return True
        self.share = False
        self.notes.append(f"plain rows: {refused.packed}")
        return False

    def _generate(self, prompts: list[list[int]], asked: Generation) -> list[list[int]]:
        """Greedy continuations (the default) go through the shared-prefix engine, others through `transformers.generate`, in
        groups of equal prompt length, or one by one where a group changes answers."""
        config = getattr(self.model, "generation_config", None)
        stops = Stops(self.tokenizer, asked.until, ends_of(config))
        deepest = max(map(len, prompts)) + asked.most
        if self.share and not self.executor.alone and deepest <= self.share_limit and is_greedy(asked.sampling, config):
            why = self.sharing.why_not_generate(deepest, lambda: company(self.executor, prompts, most=asked.most))
            if why is None:
                return generate(self.executor, prompts, most=asked.most, finished=stops)
            self.share = False
            self.notes.append(f"plain rows: {why}")
        with products(self.device, self.split.hidden_dtype):
            rows = self._rows_of_generation(prompts)
            return generate_plain(
                self.model,
                self.tokenizer,
                prompts,
                sampling=asked.sampling,
                most=asked.most,
                finished=stops,
                rows=rows,
                before=self.split.forget,
            )

    def _rows_of_generation(self, prompts: list[list[int]]) -> int:
        """Prompts of one length that `transformers.generate` may take together, proven on two of them."""
        if self._plain_rows is None:
            gap = 0.0 if self.executor.alone else together(self.model, self.tokenizer, prompts)
            if gap is None:  # no two prompts of one length: nothing to prove, and nothing that would share a batch
                return 1
            self._plain_rows = 1 if self.executor.alone else GENERATION_ROWS
            if gap > allowed_deviation(self.model, self.split.hidden_dtype):
                self._plain_rows = 1
                self.notes.append(
                    f"generation one prompt at a time: beside another prompt, transformers' logits differ from those of the "
                    f"same prompt alone by {gap:.3g} of their size"
                )
        return self._plain_rows


def _loaded(
    source: str, *, revision: str, dtype: str | torch.dtype, device: str | None, loading: dict[str, Any]
) -> torch.nn.Module:
    """The model of a path or hub id on the device. `loading`: further keywords of `from_pretrained`."""
    if loading.pop("trust_remote_code", False):
        raise Unsupported(f"{source}: code that a checkpoint brings is never run; leave trust_remote_code out")
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        source, revision=revision, dtype=dtype, trust_remote_code=False, **loading
    )
    return model.to(device)


def _tokenizer(source: str, revision: str, add_bos_token: bool | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a path or hub id; `add_bos_token` None leaves it as its own files say."""
    given = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
        source, revision=revision, trust_remote_code=False, **given
    )
    return tokenizer
