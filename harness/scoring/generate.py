"""Greedy generation in batches: one prefill per shared prefix, finished rows leave the batch.

Each row gets what it would get alone: `transformers.generate` with greedy search, stopped as lm-eval stops a batch of one (a stop
string appears in the decoded last tokens, or an end-of-sequence id is generated). What asks for more than greedy search, or
cannot share, goes through `generate_plain`: `transformers.generate` on rows of equal length. Both are proven before they are
used, by `company` and `together`: a cache can be wrong for a batch and right for each of its rows (RWKV's is).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers

from harness.scoring.execute import Executor, KeyValues, held, new_cache
from harness.scoring.head import apart, device_of
from harness.scoring.plan import common_prefix

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

CACHE_BYTES = 256 << 20
"""Keys and values of one batch, on a host."""

GENERATION_ROWS = 16
"""Prompts that `transformers.generate` gets at once, where that changes no answer."""

PROOF_TOKENS = 4
"""New tokens that a proof looks at: the second already comes from a cache."""

LEAST_HEADER = 32
"""A shared prefix below this many tokens is not worth a call of its own."""


Watch = Callable[[tuple[int, ...], torch.Tensor], None]
"""Is told a prompt, and the final hidden state [H] that its next token is chosen from."""


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
    executor: Executor,
    prompts: Sequence[Sequence[int]],
    *,
    most: int,
    finished: Callable[[Sequence[int]], bool],
    watch: Watch | None = None,
) -> list[list[int]]:
    """New token ids (at most `most`, the finishing ones included) of every prompt, greedy, in the order given.

    For models whose cache and masks were verified: prompts are padded on the left, below the prefix that they share. `watch` is
    shown every hidden state that a new token is chosen from.
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
            for prompt, new in zip(batch, _batch(executor, batch, shared, header, most, finished, watch), strict=True):
                answers[prompt] = new
    return [answers[tuple(prompt)] for prompt in prompts]


def company(executor: Executor, prompts: Sequence[Sequence[int]], *, most: int) -> float:
    """How far hidden states that new tokens are chosen from are from those of a plain row, for the longest and the shortest of
    the prompts that would share a cache, together; see `apart`."""
    members, _ = max(clusters(sorted(set(map(tuple, prompts)))), key=lambda run: len(run[0]))
    pair = list(dict.fromkeys([max(members, key=len), min(members, key=len), members[0], members[-1]]))[:2]
    states: dict[tuple[int, ...], list[torch.Tensor]] = {prompt: [] for prompt in pair}
    found = generate(
        executor,
        pair,
        most=min(most, PROOF_TOKENS),
        finished=lambda new: False,
        watch=lambda prompt, hidden: states[prompt].append(hidden),
    )
    worst = 0.0
    for prompt, new in zip(pair, found, strict=True):
        plain = executor.body(_ids(executor, [[*prompt, *new[:-1]]]))[0, len(prompt) - 1 :]
        worst = max(worst, apart(torch.stack(states[prompt]), plain))
    return worst


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
    watch: Watch | None,
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
        for place, (row, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            if row in open_rows:
                if watch is not None:
                    watch(batch[row], hidden[place, -1])
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


def together(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> float | None:
    """How far the logits of two prompts of equal length that `transformers.generate` continues together are from those of each
    alone; see `apart`. None where no two different prompts have one length."""
    lengths: dict[int, set[tuple[int, ...]]] = {}
    for prompt in prompts:
        lengths.setdefault(len(prompt), set()).add(tuple(prompt))
    length = max((length for length, members in lengths.items() if len(members) > 1), default=None)
    if length is None:
        return None

    def logits(batch: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(new ids [B, T], logits [B, T, V]): those of the model, before any rule of decoding."""
        ids = torch.tensor(batch, dtype=torch.long, device=device_of(model))
        with torch.no_grad():
            out = cast("Callable[..., Any]", model.generate)(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=PROOF_TOKENS,
                min_new_tokens=PROOF_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, dim=1)

    pair = sorted(lengths[length])[:: len(lengths[length]) - 1][:2]
    both_ids, both = logits(pair)
    worst = 0.0
    for row, one in enumerate(pair):
        ids, alone = logits([one])
        # Beyond the first token that differs, the two answer different questions.
        same = int((ids[0] == both_ids[row]).long().cumprod(dim=0).sum()) + 1
        worst = max(worst, *(apart(a, b) for a, b in zip(both[row, :same], alone[0, :same], strict=True)))
    return worst


def generate_plain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    sampling: Mapping[str, Any],
    most: int,
    finished: Stops,
    rows: int = GENERATION_ROWS,
    before: Callable[[int], None] = lambda length: None,
) -> list[list[int]]:
    """`transformers.generate` on groups of equal prompt length, at most `rows` at once, so that nothing is padded; every row
    stops for itself. `before` is told the length of the prompts to come."""
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

            before(length)
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
