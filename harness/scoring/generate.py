"""Greedy generation in batches: one prefill per shared prefix, finished rows leave the batch.

Each row gets what it would get alone: `transformers.generate` with greedy search, stopped as lm-eval stops a batch of one (a stop
string appears in the decoded last tokens, or an end-of-sequence id is generated). What asks for more than greedy search, or
cannot share, goes through `generate_plain`: `transformers.generate` on rows of equal length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers

from harness.scoring.execute import Executor, KeyValues, held, new_cache
from harness.scoring.head import device_of
from harness.scoring.plan import common_prefix

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

CACHE_BYTES = 256 << 20
"""Keys and values of one batch, on a host."""

LEAST_HEADER = 32
"""A shared prefix below this many tokens is not worth a call of its own."""


class Stops:
    """Says whether a row is finished, from its new tokens alone. `ends` are ids that end a sequence, `strings` stop strings.

    A stop string of k tokens is looked for in the text of the last k + 2 new tokens (a stop string may be generated in another
    tokenization than its own): lm-eval's rule.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], ends: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.ends = frozenset(ends)
        self.by_length: dict[int, list[str]] = {}
        for string in strings:
            self.by_length.setdefault(len(tokenizer.encode(string, add_special_tokens=False)) + 2, []).append(string)

    def __call__(self, new: Sequence[int]) -> bool:
        if new and new[-1] in self.ends:
            return True
        for length, strings in self.by_length.items():
            text = str(self.tokenizer.decode(list(new[-length:])))
            if any(string in text for string in strings):
                return True
        return False


def generate(
    executor: Executor, prompts: Sequence[Sequence[int]], *, most: int, finished: Callable[[Sequence[int]], bool]
) -> list[list[int]]:
    """New token ids (at most `most`, the finishing ones included) of every prompt, greedy, in the order given.

    For models whose cache and masks were verified: prompts are padded on the left, below the prefix that they share.
    """
    answers: dict[tuple[int, ...], list[int]] = {tuple(prompt): [] for prompt in prompts}
    ordered = sorted(answers)
    for cluster, shared in clusters(ordered):
        header: KeyValues | None = None
        if shared:
            cache = new_cache(None, 1)
            executor.body(_ids(executor, [list(cluster[0][:shared])]), past_key_values=cache, use_cache=True)
            header = held(cache)
        waiting = sorted(cluster, key=lambda prompt: (-len(prompt), prompt))
        while waiting:
            rows = min(len(waiting), rows_at_once(executor, len(waiting[0]) + most))
            batch, waiting = waiting[:rows], waiting[rows:]
            for prompt, new in zip(batch, _batch(executor, batch, shared, header, most, finished), strict=True):
                answers[prompt] = new
    return [answers[tuple(prompt)] for prompt in prompts]


def clusters(ordered: Sequence[tuple[int, ...]]) -> list[tuple[list[tuple[int, ...]], int]]:
    """Cuts sorted, distinct prompts into runs that share a prefix worth computing once: (prompts, its length, or 0).

    At least the last token of each prompt stays below the prefix.
    """
    runs: list[tuple[list[tuple[int, ...]], int]] = []
    for prompt in ordered:
        if runs:
            members, shared = runs[-1]
            both = min(common_prefix(members[0], prompt), len(prompt) - 1, len(members[0]) - 1)
            if len(members) > 1:
                both = min(both, shared)
            if both >= max(LEAST_HEADER, shared // 2 if len(members) > 1 else 0):
                members.append(prompt)
                runs[-1] = (members, both)
                continue
            if len(members) > 1 and shared == 0 and both < LEAST_HEADER:
                members.append(prompt)
                continue
            if len(members) == 1 and both < LEAST_HEADER:
                members.append(prompt)
                runs[-1] = (members, 0)
                continue
        runs.append(([prompt], 0))
    return [(members, shared if len(members) > 1 else 0) for members, shared in runs]


def rows_at_once(executor: Executor, tokens: int) -> int:
    """Rows of `tokens` tokens whose keys and values fit the budget; prefill activations count too."""
    return max(1, min(256, CACHE_BYTES // (tokens * executor.cache_bytes_per_token), executor.budget_tokens // tokens * 2))


def _batch(
    executor: Executor,
    batch: Sequence[tuple[int, ...]],
    shared: int,
    header: KeyValues | None,
    most: int,
    finished: Callable[[Sequence[int]], bool],
) -> list[list[int]]:
    suffixes = [list(prompt[shared:]) for prompt in batch]
    width = max(map(len, suffixes))
    mask = _ids(executor, [[1] * shared + [0] * (width - len(s)) + [1] * len(s) for s in suffixes])
    ids = _ids(executor, [[0] * (width - len(s)) + s for s in suffixes])
    cache = new_cache(header, len(batch))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, shared:]
    new: list[list[int]] = [[] for _ in batch]
    alive = list(range(len(batch)))  # rows of the batch that are still in the tensors
    open_rows = set(alive)
    for _ in range(most):
        hidden = executor.body(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        chosen = executor.split.head(hidden[:, -1]).argmax(dim=-1)
        for row, token in zip(alive, chosen.tolist(), strict=True):
            if row in open_rows:
                new[row].append(token)
                if finished(new[row]):
                    open_rows.discard(row)
        if not open_rows:
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        if len(open_rows) <= len(alive) // 2:
            keep = [place for place, row in enumerate(alive) if row in open_rows]
            chosen_rows = torch.tensor(keep, device=ids.device)
            cache.batch_select_indices(chosen_rows)
            ids, positions, mask = ids[chosen_rows], positions[chosen_rows], mask[chosen_rows]
            alive = [alive[place] for place in keep]
    return new


def _ids(executor: Executor, rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.long, device=executor.split.device)


def is_greedy(sampling: Mapping[str, object], config: GenerationConfig | None) -> bool:
    """Whether generation is plain argmax: neither the request nor the model's generation configuration asks for more."""
    if sampling.get("do_sample") or sampling.get("temperature", 0.0) not in (0, 0.0, None):
        return False
    if set(sampling) - {"do_sample", "temperature", "top_p", "top_k", "seed"}:
        return False
    neutral: dict[str, tuple[float, ...]] = {
        "num_beams": (1,),
        "repetition_penalty": (1, 1.0),
        "encoder_repetition_penalty": (1, 1.0),
        "no_repeat_ngram_size": (0,),
        "min_length": (0,),
        "min_new_tokens": (0,),
    }
    others: tuple[str, ...] = (
        "bad_words_ids",
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "sequence_bias",
    )
    others += (
        "penalty_alpha",
        "guidance_scale",
        "dola_layers",
        "watermarking_config",
        "exponential_decay_length_penalty",
        "stop_strings",
    )
    for name in (*neutral, *others, "prompt_lookup_num_tokens", "remove_invalid_values"):
        value = getattr(config, name, None)
        if value not in (None, False, *neutral.get(name, ())):
            return False
    return True


def generate_plain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    sampling: Mapping[str, Any],
    most: int,
    finished: Stops,
    rows: int = 16,
) -> list[list[int]]:
    """`transformers.generate` on groups of equal prompt length, so that nothing is padded; every row stops for itself."""
    given = dict(sampling)
    if not given.get("do_sample"):
        given["do_sample"] = False
        for name in ("temperature", "top_p", "top_k"):
            given.pop(name, None)
    answers: list[list[int]] = [[] for _ in prompts]
    lengths: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt), []).append(number)
    for length, numbers in lengths.items():
        for start in range(0, len(numbers), rows):
            batch = numbers[start : start + rows]
            ids = torch.tensor([prompts[number] for number in batch], dtype=torch.long, device=device_of(model))

            class RowStop(transformers.StoppingCriteria):
                def __call__(
                    self, input_ids: torch.Tensor, scores: torch.Tensor, length: int = length, **_: object
                ) -> torch.Tensor:
                    return torch.tensor([finished(row[length:].tolist()) for row in input_ids], device=input_ids.device)

            with torch.no_grad():
                out = cast("Callable[..., torch.Tensor]", model.generate)(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=most,
                    pad_token_id=tokenizer.pad_token_id,
                    stopping_criteria=transformers.StoppingCriteriaList([RowStop()]),
                    **given,
                )
            for number, row in zip(batch, out.tolist(), strict=True):
                new = row[length:]
                # A finished row is padded until the last one is: cut where it finished.
                end = next((k for k in range(1, len(new) + 1) if finished(new[:k])), len(new))
                answers[number] = new[:end]
    return answers
