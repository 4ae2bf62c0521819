"""A tokenizer as GGUF stores it: byte-level BPE, with llama.cpp's name of the rule that cuts text into words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from harness.formats.config_json import mapping

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

SAMPLE = (
    "The quick brown fox jumps over 13 lazy dogs; it's 1999, isn't it?\n\n\tIndented  text -- "
    "na\u00efve caf\u00e9, \u6771\u4eac, \U0001f642 "
    'and {"a": [1, 2.5], "b": null}\r\nWE\'LL see \'RE "quoted" x^2 = 3.14159; def f(x):\n    return x  # done\n\n\n  end '
)
"""What both tokenizers are asked: words, contractions, numbers, runs of spaces and newlines, other scripts, code."""

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
Step: TypeAlias = tuple[str, object]
"""One step of cutting text into words: tokenizers' name of it, and its setting."""

_PRE: dict[tuple[Step, ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", _LLAMA3_SPLIT), ("ByteLevel", False)): "llama-bpe",
    (("Split", _LLAMA3_SPLIT.replace("{1,3}", "")), ("ByteLevel", False)): "qwen2",
}
"""The steps that cut text into words, as tokenizers describes them -> llama.cpp's name of that rule."""

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A byte-level BPE tokenizer as GGUF stores it; `pre` names llama.cpp's rule that cuts text into words."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    add_bos: bool


def read(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary | str:
    """A byte-level BPE tokenizer as GGUF stores it, or why it cannot be."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "it is no tokenizer of the tokenizers library"
    rules = json.loads(backend.to_str())
    model = rules["model"]
    steps = tuple(_steps(rules.get("pre_tokenizer")))
    if model.get("type") != "BPE" or model.get("byte_fallback") or steps not in _PRE:
        return "only byte-level BPE with a rule of GPT-2, SmolLM, Llama 3 or Qwen 2 is written"
    added = {int(token["id"]): token for token in rules.get("added_tokens", ())}
    by_id = {index: token for token, index in model["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    if max(by_id) >= rows:
        return f"it has ids up to {max(by_id)}, and the embedding {rows} rows"
    types = [
        (_CONTROL if added[i]["special"] else _USER_DEFINED) if i in added else _NORMAL if i in by_id else _UNUSED
        for i in range(rows)
    ]
    bos = tokenizer.bos_token_id
    first: list[int] = tokenizer("a")["input_ids"][:1]
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    return Vocabulary(
        pre=_PRE[steps],
        tokens=[by_id.get(i, f"[PAD{i}]") for i in range(rows)],
        types=types,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        special={name: int(index) for name, index in special.items() if index is not None},
        add_bos=bos is not None and first == [bos],
    )


def _steps(node: object) -> Iterator[Step]:
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    if kind == "Sequence":
        for inner in node["pretokenizers"]:
            yield from _steps(inner)
    elif kind == "Split":
        plain = node.get("behavior") == "Isolated" and not node.get("invert")
        yield kind, mapping(node, "pattern").get("Regex") if plain else None
    elif kind == "Digits":
        yield kind, node.get("individual_digits")
    elif kind == "ByteLevel":
        yield kind, None if node.get("add_prefix_space") else node.get("use_regex", True)
    else:
        yield str(kind), None


def add(writer: GGUFWriter, vocabulary: Vocabulary | str) -> None:
    """Writes the vocabulary, or, for a reason instead of one, that the file has none."""
    if isinstance(vocabulary, str):
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for name, index in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.add_bos)
