"""Bits per byte, for every kind of tokenizer: the bytes are those of the text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from harness.engines.transformers import Transformers
from harness.errors import Unsupported
from harness.models.corpora import bytes_of_spans, token_bytes, token_ids
from harness.probes.perplexity import PROBE
from tests.tiny_llama import TinySession, corpus_question, llama, text

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CODE = "".join(f"{'    ' * (i % 4)}if value == {i}:\n{'    ' * (i % 4 + 1)}return river\n\n\n" for i in range(60))
MIXED = " leading space, naïve Größe 你好世界 🙂🙂\n\n\ttab ﬁ ½ é e\u0301  two  spaces </s> and THE end  "


def byte_level(
    *,
    added: tuple[AddedToken, ...] = (),
    normalizer: Any = None,
    prefix: bool = False,
    trim: bool = False,
) -> Any:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([text(100), CODE], trainer)
    if trim:
        inner.post_processor = processors.ByteLevel(trim_offsets=True)
    inner.add_tokens(list(added))
    return inner


def sentencepiece() -> Any:
    """As Llama 2's: a space put before the text, spaces written as U+2581, unknown characters as bytes."""
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=["▁"], show_progress=False)
    inner.train_from_iterator([text(100).replace(" ", "▁")], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return inner


def word_piece() -> Any:
    """As BERT's: lower case, accents stripped, spaces in no token."""
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.train_from_iterator([text(100)], trainers.WordPieceTrainer(special_tokens=["[UNK]"], show_progress=False))
    return inner


RUNS = tuple(AddedToken(" " * n, normalized=False, special=False) for n in range(16, 1, -1))
KINDS: dict[str, Callable[[], Any]] = {
    "plain": byte_level,
    "runs of blanks added": lambda: byte_level(added=(*RUNS, AddedToken("\n\n\n", normalized=False))),
    "added tokens that take blanks along": lambda: byte_level(added=(AddedToken("river", lstrip=True, rstrip=True),)),
    "offsets trimmed": lambda: byte_level(trim=True, added=RUNS),
    "a space before the text": lambda: byte_level(prefix=True),
    "NFKC": lambda: byte_level(normalizer=normalizers.NFKC()),
    "NFD": lambda: byte_level(normalizer=normalizers.NFD()),
    "lower case, stripped": lambda: byte_level(normalizer=normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])),
    "SentencePiece with bytes": sentencepiece,
    "WordPiece": word_piece,
}


def made(kind: str) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample", [MIXED, CODE, "a", " x  "], ids=["mixed", "code", "one letter", "blanks around"])
def test_the_tokens_of_a_text_stand_for_all_its_bytes_each_once(kind: str, sample: str, tmp_path: Path) -> None:
    tokenizer = made(kind)
    ids = token_ids(tokenizer, sample, tmp_path)
    if not len(ids):
        pytest.skip("this tokenizer drops the whole text")
    sizes = token_bytes(tokenizer, sample, tmp_path)
    assert len(sizes) == len(ids)
    assert min(sizes) >= 0
    assert sum(sizes) == len(sample.encode())
    assert list(token_bytes(tokenizer, sample, tmp_path)) == list(sizes)  # from the cache


def test_a_byte_level_token_has_the_bytes_of_its_name(tmp_path: Path) -> None:
    tokenizer = made("plain")
    sample = text(30) + " naïve"
    sizes = token_bytes(tokenizer, sample, tmp_path)
    assert list(sizes) == [len(t) for t in tokenizer.convert_ids_to_tokens(list(token_ids(tokenizer, sample, tmp_path)))]


def test_an_added_run_of_blanks_counts_its_blanks(tmp_path: Path) -> None:
    tokenizer = made("runs of blanks added")
    sizes = dict(zip(token_ids(tokenizer, CODE, tmp_path), token_bytes(tokenizer, CODE, tmp_path), strict=True))
    assert sizes[tokenizer.convert_tokens_to_ids(" " * 8)] == 8
    assert sizes[tokenizer.convert_tokens_to_ids("\n\n\n")] == 3


def test_begin_and_end_of_text_stand_for_no_bytes(tmp_path: Path) -> None:
    tokenizer = made("SentencePiece with bytes")
    sizes = token_bytes(tokenizer, "the river", tmp_path)
    assert (sizes[0], sizes[-1], sum(sizes)) == (0, 0, 9)


def test_the_tokens_of_one_character_share_its_bytes() -> None:
    assert list(bytes_of_spans("a🙂b", [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)])) == [1, 1, 1, 1, 1, 1]
    assert list(bytes_of_spans("你好", [(0, 1), (0, 1), (1, 2)])) == [2, 1, 3]


def test_text_that_no_token_names_counts_to_the_token_after_it_and_at_the_end_to_the_last() -> None:
    assert list(bytes_of_spans("  ab  cd  ", [(0, 0), (2, 4), (6, 8), (0, 0)])) == [0, 4, 6, 0]


@pytest.mark.parametrize("spans", [[(2, 3), (0, 1)], [(0, 9)], [(0, 0)]], ids=["backwards", "beyond the end", "none"])
def test_spans_that_are_no_reading_of_the_text_are_unsupported(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(Unsupported, match="this tokenizer"):
        bytes_of_spans("abc", spans)


@pytest.mark.parametrize("definition", ["gptq-64", "llamacpp-64"])
@pytest.mark.parametrize("kind", ["plain", "runs of blanks added", "SentencePiece with bytes", "NFKC"])
def test_bits_per_byte_is_the_loss_over_the_bytes_between_the_scored_tokens(kind: str, definition: str, tmp_path: Path) -> None:
    """Against plain transformers and the tokenizer's own offsets: the bytes from the end of a window's last token that is not
    scored to the end of its last token. The sample has no character of several tokens at the edge of a window."""
    tokenizer = made(kind)
    model = llama(vocab_size=len(tokenizer))
    asked = TinySession(Transformers(model, tokenizer), tmp_path, corpus=CODE)
    answer = PROBE.measure(asked, corpus_question("perplexity", definition=definition))
    encoded = tokenizer(CODE, return_offsets_mapping=True)
    ends = [end for _, end in encoded["offset_mapping"]]
    given = 0 if definition == "gptq-64" else 32
    bits = size = 0.0
    for start in range(0, len(ends) - 63, 64):
        window = list(encoded["input_ids"][start : start + 64])
        if definition == "llamacpp-64" and kind == "SentencePiece with bytes":
            window[0] = tokenizer.bos_token_id
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([window])).logits[0].double(), dim=-1)
        bits -= sum(float(scores[i, window[i + 1]]) for i in range(given, 63)) / math.log(2)
        size += len(CODE[ends[start + given] : ends[start + 63]].encode())
    (found,) = [m for m in answer.measurements if m.metric == "bits_per_byte"]
    assert found.value == pytest.approx(bits / size, rel=1e-5)


def test_a_tokenizer_that_does_not_say_where_its_tokens_lie_gives_no_bits_per_byte_and_says_so(tmp_path: Path) -> None:
    class Letters(transformers.PythonBackend):
        """One token per character, in plain Python."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)  # type: ignore[no-untyped-call]

        @property
        def vocab_size(self) -> int:
            return 512

        def get_vocab(self) -> dict[str, int]:
            return {chr(i): i for i in range(512)}

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return ord(token)

        def _convert_id_to_token(self, index: int) -> str:
            return chr(index)

    asked = TinySession(Transformers(llama(), Letters()), tmp_path, corpus=text(60))
    answer = PROBE.measure(asked, corpus_question("perplexity"))
    assert [m.metric for m in answer.measurements] == ["perplexity", "nonfinite_tokens"]
    assert answer.facts["bits_per_byte"] == "not given: this tokenizer does not say which part of the text a token stands for"
