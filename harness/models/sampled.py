"""Text that a model itself writes, to calibrate on where nobody has given any: what the model thinks text is.

Documents begin as the model's texts begin (with its BOS) and end at its EOS, or after `LENGTH` tokens. Every token is drawn from
the model's whole distribution: temperature 1, no top-k, no top-p, nothing else of its generation rules. This is how LLM-QAT
makes its data (Liu et al. 2023, arXiv:2305.17888), without its first deterministic tokens; Williams et al. 2024
(arXiv:2410.17170) find it on a level with real text for GPTQ and AWQ.

Documents come in blocks of `DOCUMENTS`, each with a seed of its own, and each kept in a file: a longer text begins with the
shorter one, and no block is sampled twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from harness.errors import BadInput
from harness.files import write_atomically
from harness.formats import config_json
from harness.models import build
from harness.spec import Json

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 1
"""Raised when the same model would write another text."""

DOCUMENTS = 16
LENGTH = 512

LEAST = 4
"""Tokens that the documents of a block must have on average."""

Told = Callable[[int, int], None]
"""(tokens that there are, tokens that are to be there)."""


def recipe(seed: int) -> Mapping[str, Json]:
    """All that decides a text beside the model and what computes it."""
    return {"version": VERSION, "documents": DOCUMENTS, "length": LENGTH, "temperature": 1, "seed": seed}


def words(seed: int) -> str:
    """What the text is, for people."""
    return f"sampled from the model itself (seed {seed}, temperature 1)"


def write(model_dir: Path, path: Path, tokens: int, *, seed: int, dtype: torch.dtype, device: str, tell: Told) -> None:
    """Writes a text of at least `tokens` tokens to `path`, and its blocks beside it, by the model in `model_dir`, held in
    `dtype`. Needs torch.

    BadInput for a model that ends its texts at once, or whose tokenizer does not say how one begins."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False)
    text: list[str] = []
    load = partial(_model, model_dir, dtype, device)
    for block in _blocks(model_dir, path.parent, tokenizer, seed, load, lambda done: tell(done, max(done, tokens))):
        text += block
        joined = "\n\n".join(text)
        if len(tokenizer(joined, verbose=False)["input_ids"]) >= tokens:
            write_atomically(path, joined)
            return


def _blocks(
    model_dir: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    load: Callable[[], PreTrainedModel],
    tell: Callable[[int], None],
) -> Iterator[list[str]]:
    """The documents of one block after another, from `folder` where they were sampled before, and else by the model that `load`
    returns. `tell` hears how many tokens there are."""
    model: PreTrainedModel | None = None
    done = number = 0
    while True:
        kept = folder / f"block-{number:04d}.json"
        if not kept.is_file():
            model = model or load()
            ids = _sample(model, tokenizer, model_dir, (seed << 20) + number, partial(_told, tell, done))
            decoded = (str(tokenizer.decode(row, skip_special_tokens=True)) for row in ids)
            documents = [document for document in decoded if document.strip()]
            folder.mkdir(parents=True, exist_ok=True)
            said = {"tokens": sum(map(len, ids)), "documents": documents}
            write_atomically(kept, json.dumps(said, ensure_ascii=False))
        block = json.loads(kept.read_text(encoding="utf-8"))
        if block["tokens"] < LEAST * DOCUMENTS or not block["documents"]:
            raise BadInput(
                f"no calibration text can be sampled from the model: it ends {DOCUMENTS} texts after {block['tokens']} tokens in "
                "all; name a text instead: calibration: {corpus: {path: my-text.txt}}"
            )
        done += block["tokens"]
        yield block["documents"]
        number += 1


def _told(tell: Callable[[int], None], before: int, new: int) -> None:
    tell(before + new)


def _model(model_dir: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    from transformers import GenerationConfig

    model = build.plain(model_dir, dtype, device)
    model.generation_config = GenerationConfig()  # its rules are for answers, and none of them is wanted here
    return model


def _sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_dir: Path, seed: int, tell: Callable[[int], None]
) -> list[list[int]]:
    """The ids of a block's documents, without what begins and ends them."""
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    ends = _ends(tokenizer, model_dir)
    start = _start(tokenizer, model_dir)
    rules = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=_length(model_dir) - len(start),
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else start[0],
        use_cache=True,
    )

    def count(ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        ending = torch.isin(ids[:, len(start) :], torch.tensor(ends, dtype=ids.dtype, device=ids.device))
        ended = ending.int().cummax(dim=1).values
        tell(int(ended.numel() - ended.sum()))
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    torch.manual_seed(seed)
    prompt = torch.tensor([start] * DOCUMENTS, device=model.device)
    with torch.inference_mode():
        generate = cast("Callable[..., Tensor]", model.generate)
        made = generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=rules,
            stopping_criteria=StoppingCriteriaList([count]),
        )
    rows = cast("list[list[int]]", made[:, len(start) :].tolist())
    known = len(tokenizer)  # a model may have rows beyond its tokenizer's tokens
    cut = [row[: next((place for place, token in enumerate(row) if token in ends), len(row))] for row in rows]
    return [[token for token in row if token < known] for row in cut]


def _start(tokenizer: PreTrainedTokenizerBase, model_dir: Path) -> list[int]:
    """What begins a text: the tokenizer's BOS, or the model's, or what the tokenizer puts before every text, or what ends one."""
    config = config_json.text_part(config_json.read(model_dir))
    for known in (tokenizer.bos_token_id, config.get("bos_token_id")):
        if isinstance(known, int) and not isinstance(known, bool):
            return [known]
    before = cast("list[int]", tokenizer("")["input_ids"])
    if before:
        return before
    if ends := _ends(tokenizer, model_dir):
        return [ends[0]]
    raise BadInput(
        "no calibration text can be sampled from the model: neither its tokenizer nor its config names the token that begins a "
        "text; name a text instead: calibration: {corpus: {path: my-text.txt}}"
    )


def _ends(tokenizer: PreTrainedTokenizerBase, model_dir: Path) -> list[int]:
    """What ends a text: by the model's generation rules, or else its tokenizer."""
    known = build.generation_config(model_dir).eos_token_id
    ids = [known] if isinstance(known, int) else list(known or ())
    return ids or [token for token in [tokenizer.eos_token_id] if isinstance(token, int)]


def _length(model_dir: Path) -> int:
    """Tokens of the longest document: what the model's context holds, at most LENGTH."""
    text = config_json.text_part(config_json.read(model_dir))
    return min(
        LENGTH, config_json.integer(text, "max_position_embeddings", "n_positions", "seq_length", "max_seq_len", default=LENGTH)
    )
